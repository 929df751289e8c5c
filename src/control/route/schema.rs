//! The Cedar schema: our own questions, and the actions of every backend.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::control::document::{Class, Target};
use crate::domain::id::{ActionName, BackendName};

/// The actions of every backend.
pub type Backends = BTreeMap<BackendName, Vec<(ActionName, Class)>>;

/// What admins do, as policies name it.
pub const ADMIN_ACTIONS: &[&str] =
    &["admin:apply", "admin:read", "admin:lock", "admin:revoke", "admin:task", "admin:audit", "admin:consume"];

const TYPES: &str = r#"
  type Task = { "source": String, "ref": String, "kind": String, "open": Bool, "verified": Bool };
  entity Group;
  entity System;
  entity Principal in [Group] = { "kind": String, "owner"?: String };
  entity Backend;
  entity Resource in [Backend];
  entity Entitlement in [Backend] = { "eligible": Set<Group> };
  entity Request in [Backend] = {
    "entitlement": Entitlement, "requester": Principal, "subject": Principal, "ttl_s": Long, "emergency": Bool };
"#;

const ELEVATION: &str = r#"
  action "elevation:request", "elevation:auto_approve" appliesTo {
    principal: [Principal], resource: [Entitlement],
    context: {
      "now": datetime, "ttl_s": Long, "uses"?: Long, "actions": Set<String>, "resources": Set<String>,
      "emergency": Bool, "task"?: Task } };
  action "elevation:approve" appliesTo { principal: [Principal], resource: [Request], context: { "now": datetime } };
"#;

/// The schema of the questions of one target, as Cedar text.
pub fn text(target: Target, backends: &Backends) -> String {
    let mut text = format!("namespace Leasehold {{{TYPES}");
    match target {
        Target::Elevation => text.push_str(ELEVATION),
        Target::Admin => {
            text.push_str("  action \"admin:any\";\n");
            for action in ADMIN_ACTIONS {
                add(&mut text, action, "\"admin:any\"", "System");
            }
        }
        Target::Guardrail => {
            text.push_str("  action \"call:any\";\n");
            for class in [Class::Read, Class::Write, Class::Admin] {
                let _ = writeln!(text, "  action \"{}\" in [\"call:any\"];", group(class));
            }
            for (action, classes) in classes(backends) {
                let groups: Vec<String> = classes.iter().map(|class| format!("\"{}\"", group(*class))).collect();
                add(&mut text, action.as_str(), &groups.join(", "), "Resource");
            }
        }
    }
    text.push_str("}\n");
    text
}

fn add(text: &mut String, action: &str, groups: &str, resource: &str) {
    let _ = writeln!(
        text,
        "  action \"{action}\" in [{groups}] appliesTo {{ principal: [Principal], resource: [{resource}], context: {{ \"now\": datetime }} }};"
    );
}

/// What policies call all actions of a class.
pub(super) const fn group(class: Class) -> &'static str {
    match class {
        Class::Read => "call:read",
        Class::Write => "call:write",
        Class::Admin => "call:admin",
    }
}

/// Every action with its class. Two backends may have an action of one name and different classes: it is of both then,
/// so that what forbids either forbids it.
pub(super) fn classes(backends: &Backends) -> BTreeMap<&ActionName, BTreeSet<Class>> {
    let mut classes: BTreeMap<&ActionName, BTreeSet<Class>> = BTreeMap::new();
    for (name, class) in backends.values().flatten() {
        classes.entry(name).or_default().insert(*class);
    }
    classes
}
