//! Backends and their actions: listed, or read from the rules of an action map.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::principal::check_pattern;
use crate::action_map::document::{ActionMapDocument, MAP_BYTES_MAX, RULES_MAX};
use crate::domain::action::ActionClass as Class;
use crate::domain::id::ActionName;

/// Most actions of a backend.
const ACTIONS_MAX: usize = 2_000;

/// Most entries in `sidecars`: each is looked at for every stream.
const SIDECARS_MAX: usize = 256;

/// A backend as the control plane needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// The action map that names its actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_map: Option<String>,
    /// Its actions, where it names no map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<NamedAction>>,
    /// The sidecars that may follow it, by their SPIFFE ids; one `*` at the end of each at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sidecars: Vec<String>,
}

/// An action and how much it can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedAction {
    /// Its name.
    pub name: String,
    /// How much it can change.
    pub class: Class,
}

/// Where the actions of a backend are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actions {
    /// In the backend itself.
    Listed(Vec<(ActionName, Class)>),
    /// In the action map of that name.
    Mapped(String),
}

impl BackendSpec {
    /// Its actions, and the sidecars that may follow it.
    pub(super) fn resolve(mut self) -> Result<(Actions, Vec<String>), String> {
        let sidecars = std::mem::take(&mut self.sidecars);
        if sidecars.len() > SIDECARS_MAX {
            return Err(format!("spec.sidecars: at most {SIDECARS_MAX}"));
        }
        for sidecar in &sidecars {
            check_pattern(sidecar).map_err(|error| format!("spec.sidecars: {error}"))?;
            if !sidecar.starts_with("spiffe://") {
                return Err(format!("spec.sidecars: `{}` is no SPIFFE id", super::short(sidecar)));
            }
        }
        Ok((self.actions()?, sidecars))
    }

    fn actions(self) -> Result<Actions, String> {
        match (self.action_map, self.actions) {
            (Some(map), None) => Ok(Actions::Mapped(map)),
            (None, Some(actions)) => {
                let mut listed = Vec::new();
                for action in &actions {
                    let name = action_name(&action.name).map_err(|error| format!("spec.actions: {error}"))?;
                    if listed.iter().any(|(known, _)| *known == name) {
                        return Err(format!("spec.actions: `{name}` is there twice"));
                    }
                    listed.push((name, action.class));
                }
                Ok(Actions::Listed(check(listed).map_err(|error| format!("spec.actions: {error}"))?))
            }
            _ => Err("spec: name an `action_map`, or list `actions`: one of the two".into()),
        }
    }
}

/// The actions that the rules of a map name; several rules may name one, and the gravest class counts.
pub(super) fn named_by(map: &ActionMapDocument) -> Result<Vec<(ActionName, Class)>, String> {
    if map.rules.len() > RULES_MAX {
        return Err(format!("spec.rules: at most {RULES_MAX}"));
    }
    // What cannot be written is no smaller.
    if serde_json::to_vec(map).map_or(true, |text| text.len() > MAP_BYTES_MAX) {
        return Err("spec: at most 1 MiB, written as JSON".to_owned());
    }
    let mut actions: Vec<(ActionName, Class)> = Vec::new();
    for (place, rule) in map.rules.iter().enumerate() {
        let name = action_name(&rule.action).map_err(|error| format!("spec.rules[{place}]: {error}"))?;
        match actions.iter_mut().find(|(known, _)| *known == name) {
            Some((_, class)) => *class = (*class).max(rule.class),
            None => actions.push((name, rule.class)),
        }
    }
    check(actions).map_err(|error| format!("spec.rules: {error}"))
}

fn action_name(text: &str) -> Result<ActionName, String> {
    ActionName::new(text).map_err(|error| error.to_string())
}

fn check(actions: Vec<(ActionName, Class)>) -> Result<Vec<(ActionName, Class)>, String> {
    if actions.is_empty() || actions.len() > ACTIONS_MAX {
        return Err(format!("from 1 to {ACTIONS_MAX} actions"));
    }
    let mut seen: BTreeMap<String, &ActionName> = BTreeMap::new();
    for (name, _) in &actions {
        if let Some(other) = seen.insert(name.as_str().to_ascii_lowercase(), name) {
            return Err(format!("`{other}` and `{name}` differ in nothing but case"));
        }
    }
    Ok(actions)
}
