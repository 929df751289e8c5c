//! The one place where the configuration meets the action-map compiler.

use super::resolved::{ActionMapSource, Canonical};
use crate::sidecar::resolve::{ActionMap, BUILTIN, builtin};

/// The names of the shipped maps.
pub(super) const BUILTIN_ACTION_MAPS: &[&str] = BUILTIN;

/// The text of a shipped map.
pub(super) fn builtin_action_map(name: &str) -> Option<&'static str> {
    builtin(name)
}

/// What is wrong with a map, as message and hint.
pub(super) fn check_action_map(source: &ActionMapSource, canonical: Canonical) -> Vec<(String, String)> {
    let map = match ActionMap::from_yaml(&source.text) {
        Ok(map) => map,
        Err(errors) => {
            return errors.0.iter().map(|error| (format!("`{}`: {error}", source.origin), String::new())).collect();
        }
    };
    let requires = map.requires();
    let needs = [
        ("encoded_slash", requires.encoded_slash && !canonical.encoded_slash_keep),
        ("path_params", requires.path_params && !canonical.path_params_keep),
    ];
    needs
        .into_iter()
        .filter(|(_, missing)| *missing)
        .map(|(name, _)| {
            let message = format!("`{}` cannot work while `canonical.{name}` is refused", source.origin);
            (message, format!("add `canonical: {{{name}: keep}}`"))
        })
        .collect()
}
