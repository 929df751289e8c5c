//! The one place where the configuration meets the action-map compiler.

use crate::sidecar::canonical::Relaxations;
use crate::sidecar::resolve::{ActionMap, BUILTIN, builtin};

/// The names of the shipped maps.
pub(super) const BUILTIN_ACTION_MAPS: &[&str] = BUILTIN;

/// The text of a shipped map.
pub(super) fn builtin_action_map(name: &str) -> Option<&'static str> {
    builtin(name)
}

/// What is wrong with a map, as message and hint.
pub(super) fn check_action_map(origin: &str, text: &str, canonical: Relaxations) -> Vec<(String, String)> {
    let map = match ActionMap::from_yaml(text) {
        Ok(map) => map,
        Err(errors) => {
            return errors.0.iter().map(|error| (format!("`{origin}`: {error}"), String::new())).collect();
        }
    };
    map.requires()
        .lacking(canonical.encoded_slash_keep, canonical.path_params_keep)
        .map(|name| {
            let message = format!("`{origin}` cannot work while `canonical.{name}` is refused");
            (message, format!("add `canonical: {{{name}: keep}}`"))
        })
        .collect()
}
