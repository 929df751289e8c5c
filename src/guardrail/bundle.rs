//! Guardrails in a form that can travel: the documents as they are written, and of the others what they speak of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::load::Needs;
use super::schema::Backends;
use super::words::Actor;
use crate::domain::action::ActionClass;
use crate::domain::id::{ActionName, BackendName};
use crate::domain::json;
use crate::domain::principal::{Principal, PrincipalKind, stands_for};

/// Whether a policy counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It counts.
    #[default]
    Enforce,
    /// It is evaluated and told, and does not count.
    Shadow,
}

impl Mode {
    /// The mode as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }
}

/// All guardrails of a moment. A field that is not known refuses it: what it says could forbid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardrailBundle {
    /// The documents, by name.
    pub policies: Vec<GuardrailDocument>,
    /// Every backend with its actions, by name; none where there is no policy.
    pub backends: Vec<BundledBackend>,
    /// The principals that policies can tell from others, by name; none where they look at nobody.
    pub principals: Vec<BundledPrincipal>,
}

/// A Policy document about calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardrailDocument {
    /// Its name.
    pub name: String,
    /// Whether it counts.
    pub mode: Mode,
    /// The Cedar text.
    pub cedar: String,
}

/// A backend and its actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledBackend {
    /// Its name.
    pub name: BackendName,
    /// Its actions, by name.
    pub actions: Vec<BundledAction>,
}

/// An action and how much it can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledAction {
    /// Its name.
    pub name: ActionName,
    /// How much it can change.
    pub class: ActionClass,
}

/// What policies see of somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledPrincipal {
    /// The exact principal, or one with a `*` at its end.
    pub principal: String,
    /// What it is.
    pub kind: PrincipalKind,
    /// Of its groups those that a policy names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Who answers for it, where a policy reads that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl GuardrailBundle {
    /// The bundle of these documents. `people` are the principals by the names in their documents.
    pub fn new<'a>(
        documents: &[GuardrailDocument],
        backends: &Backends,
        needs: &Needs,
        people: impl Iterator<Item = (&'a str, PrincipalKind, &'a [String], Option<&'a str>)>,
    ) -> Self {
        if documents.is_empty() {
            return Self::default();
        }
        let mut policies = documents.to_vec();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let backend = |(name, actions): (&BackendName, &Vec<(ActionName, ActionClass)>)| {
            let mut actions: Vec<BundledAction> =
                actions.iter().map(|(name, class)| BundledAction { name: name.clone(), class: *class }).collect();
            actions.sort_by(|a, b| a.name.cmp(&b.name));
            BundledBackend { name: name.clone(), actions }
        };
        let all = people.map(|(name, kind, groups, owner)| {
            let mut groups: Vec<String> =
                groups.iter().filter(|group| needs.groups.contains(*group)).cloned().collect();
            groups.sort();
            groups.dedup();
            let owner = owner.filter(|_| needs.owner).map(str::to_owned);
            BundledPrincipal { principal: name.to_owned(), kind, groups, owner }
        });
        let mut principals = told_apart(all.collect(), needs.kind);
        principals.sort_by(|a, b| a.principal.cmp(&b.principal));
        Self { policies, backends: backends.iter().map(backend).collect(), principals }
    }

    /// The SHA-256 of all of it, in hex: it changes exactly when the bundle does.
    pub fn digest(&self) -> String {
        json::digest(&serde_json::to_value(self).expect("texts and lists of them are JSON"))
    }

    /// The actions of every backend.
    pub(super) fn backends(&self) -> Result<Backends, String> {
        let mut backends = BTreeMap::new();
        for BundledBackend { name, actions } in &self.backends {
            let actions = actions.iter().map(|action| (action.name.clone(), action.class)).collect();
            if backends.insert(name.clone(), actions).is_some() {
                return Err(format!("the backend `{name}` is there twice"));
            }
        }
        Ok(backends)
    }
}

impl BundledPrincipal {
    /// As policy sees somebody of that name.
    pub(super) fn actor<'a>(&'a self, principal: &'a Principal) -> Actor<'a> {
        Actor { principal, kind: self.kind, groups: &self.groups, owner: self.owner.as_deref() }
    }
}

/// Leaves out those who are to policies as if nobody knew them. Not where a pattern stands for them: without their own
/// name they would be taken for what it says.
fn told_apart(all: Vec<BundledPrincipal>, by_kind: bool) -> Vec<BundledPrincipal> {
    let plain = |one: &BundledPrincipal| !by_kind && one.groups.is_empty() && one.owner.is_none();
    let telling = |one: &&BundledPrincipal| one.principal.ends_with('*') && !plain(one);
    let patterns: Vec<String> = all.iter().filter(telling).map(|one| one.principal.clone()).collect();
    let is_within = |one: &BundledPrincipal| patterns.iter().any(|pattern| stands_for(pattern, &one.principal));
    all.into_iter().filter(|one| !plain(one) || is_within(one)).collect()
}
