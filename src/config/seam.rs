//! The one place where the configuration meets the action-map compiler.
//!
//! SEAM: until `sidecar::resolve` lands, the shipped maps are known by name only and a map's text is checked for being
//! readable and for what it `requires`; afterwards these three items become one call each.

use serde::Deserialize;

use super::resolved::{ActionMapSource, Canonical};

/// The names of the shipped maps.
pub(super) const BUILTIN_ACTION_MAPS: &[&str] = &["etcd", "rabbitmq"];

/// The text of a shipped map.
pub(super) fn builtin_action_map(name: &str) -> Option<&'static str> {
    BUILTIN_ACTION_MAPS.contains(&name).then_some("")
}

/// What is wrong with a map, as message and hint.
pub(super) fn check_action_map(source: &ActionMapSource, canonical: Canonical) -> Vec<(String, String)> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Head {
        requires: Vec<String>,
    }
    if source.text.is_empty() {
        return Vec::new();
    }
    let head: Head = match super::yaml(&source.text) {
        Ok(head) => head,
        Err(error) => return vec![(format!("`{}` cannot be read: {error}", source.origin), String::new())],
    };
    let mut wrong = Vec::new();
    for name in &head.requires {
        let kept = match name.as_str() {
            "encoded_slash" => canonical.encoded_slash_keep,
            "path_params" => canonical.path_params_keep,
            "method_override" => canonical.method_override_keep,
            _ => {
                wrong.push((format!("`{}` requires `{name}`, which is not known", source.origin), String::new()));
                continue;
            }
        };
        if !kept {
            let message = format!("`{}` cannot work while `canonical.{name}` is refused", source.origin);
            wrong.push((message, format!("add `canonical: {{{name}: keep}}`")));
        }
    }
    wrong
}
