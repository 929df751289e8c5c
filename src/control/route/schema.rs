//! The Cedar schema: our own questions, and the actions of every backend.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::control::document::Class;
use crate::domain::id::{ActionName, BackendName};

/// The actions of every backend.
pub type Backends = BTreeMap<BackendName, Vec<(ActionName, Class)>>;

/// What admins do, as policies name it.
pub const ADMIN_ACTIONS: &[&str] =
    &["admin:apply", "admin:read", "admin:lock", "admin:revoke", "admin:task", "admin:audit", "admin:consume"];

/// The schema as Cedar text.
pub(super) fn text(backends: &Backends) -> String {
    let mut text = String::from(
        r#"namespace Leasehold {
  type Task = { "source": String, "ref": String, "kind": String, "open": Bool, "verified": Bool };
  entity Group;
  entity System;
  entity Principal in [Group] = { "kind": String, "owner"?: String };
  entity Backend;
  entity Resource in [Backend];
  entity Entitlement in [Backend] = { "eligible": Set<Group> };
  entity Request in [Backend] = { "entitlement": Entitlement, "requester": Principal, "ttl_s": Long, "emergency": Bool };
  action "elevation:request", "elevation:auto_approve" appliesTo {
    principal: [Principal], resource: [Entitlement],
    context: { "now": datetime, "ttl_s": Long, "uses"?: Long, "actions": Set<String>, "emergency": Bool, "task"?: Task } };
  action "elevation:approve" appliesTo { principal: [Principal], resource: [Request], context: { "now": datetime } };
  action "admin:any";
"#,
    );
    for action in ADMIN_ACTIONS {
        let _ = writeln!(
            text,
            "  action \"{action}\" in [\"admin:any\"] appliesTo {{ principal: [Principal], resource: [System], context: {{ \"now\": datetime }} }};"
        );
    }
    text.push_str("  action \"call:any\"; action \"call:read\" in [\"call:any\"]; action \"call:write\" in [\"call:any\"]; action \"call:admin\" in [\"call:any\"];\n");
    let mut actions: BTreeMap<&str, Class> = BTreeMap::new();
    for (name, class) in backends.values().flatten() {
        // Two backends may have an action of one name: it counts as the graver of the two.
        let known = actions.entry(name.as_str()).or_insert(*class);
        if *class as u8 > *known as u8 {
            *known = *class;
        }
    }
    for (name, class) in actions {
        let class = class.as_str();
        let _ = writeln!(
            text,
            "  action \"{name}\" in [\"call:{class}\"] appliesTo {{ principal: [Principal], resource: [Resource], context: {{ \"now\": datetime }} }};"
        );
    }
    text.push_str("}\n");
    text
}
