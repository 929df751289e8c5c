//! The Cedar schema of our own questions; those about calls are the guardrails'.

use crate::control::document::Target;
use crate::guardrail::schema::{Backends, calls, question, text as whole};

/// What admins do, as policies name it.
pub const ADMIN_ACTIONS: &[&str] = &[
    "admin:apply",
    "admin:read",
    "admin:lock",
    "admin:revoke",
    "admin:task",
    "admin:audit",
    "admin:consume",
    "admin:enroll",
];

const ELEVATION: &str = r#"
  action "elevation:request", "elevation:auto_approve" appliesTo {
    principal: [Principal], resource: [Entitlement],
    context: {
      "now": datetime, "ttl_s": Long, "uses"?: Long, "actions": Set<String>, "resources": Set<String>,
      "arguments"?: String, "emergency": Bool, "task"?: Task } };
  action "elevation:approve" appliesTo { principal: [Principal], resource: [Request], context: { "now": datetime } };
"#;

/// The schema of the questions of one target, as Cedar text.
pub fn text(target: Target, backends: &Backends) -> String {
    match target {
        Target::Elevation => whole(ELEVATION),
        Target::Admin => {
            let actions = ADMIN_ACTIONS.iter().map(|action| question(action, "\"admin:any\"", "System"));
            whole(&std::iter::once("  action \"admin:any\";\n".to_owned()).chain(actions).collect::<String>())
        }
        Target::Guardrail => whole(&calls(backends)),
    }
}
