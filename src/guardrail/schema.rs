//! The Cedar schema: the types of things, and the actions of every backend.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::domain::action::ActionClass;
use crate::domain::id::{ActionName, BackendName};

/// The actions of every backend.
pub type Backends = BTreeMap<BackendName, Vec<(ActionName, ActionClass)>>;

/// What policies call all actions of all backends.
pub(crate) const ANY: &str = "call:any";

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

/// A schema of all types and of these questions, as Cedar text.
pub(crate) fn text(questions: &str) -> String {
    format!("namespace Leasehold {{{TYPES}{questions}}}\n")
}

/// A question that has no circumstances but the moment.
pub(crate) fn question(action: &str, groups: &str, resource: &str) -> String {
    format!(
        "  action \"{action}\" in [{groups}] appliesTo {{ principal: [Principal], resource: [{resource}], context: {{ \"now\": datetime }} }};\n"
    )
}

/// The questions about calls.
pub(crate) fn calls(backends: &Backends) -> String {
    let mut text = format!("  action \"{ANY}\";\n");
    for class in [ActionClass::Read, ActionClass::Write, ActionClass::Admin] {
        let _ = writeln!(text, "  action \"{}\" in [\"{ANY}\"];", group(class));
    }
    for (action, classes) in classes(backends) {
        let groups: Vec<String> = classes.iter().map(|class| format!("\"{}\"", group(*class))).collect();
        text.push_str(&question(action.as_str(), &groups.join(", "), "Resource"));
    }
    text
}

/// What policies call all actions of a class.
pub(crate) const fn group(class: ActionClass) -> &'static str {
    match class {
        ActionClass::Read => "call:read",
        ActionClass::Write => "call:write",
        ActionClass::Admin => "call:admin",
    }
}

/// Every action with its class. Two backends may have an action of one name and different classes: it is of both then,
/// so that what forbids either forbids it.
pub(crate) fn classes(backends: &Backends) -> BTreeMap<&ActionName, BTreeSet<ActionClass>> {
    let mut classes: BTreeMap<&ActionName, BTreeSet<ActionClass>> = BTreeMap::new();
    for (name, class) in backends.values().flatten() {
        classes.entry(name).or_default().insert(*class);
    }
    classes
}
