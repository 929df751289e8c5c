//! What the head of a policy names: by that it is put only to the questions it can have a say in.

use cedar_policy::{ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::words::{Word, word};

/// What the head of a policy names.
#[derive(Debug)]
pub(crate) struct Head {
    actions: Option<Vec<String>>,
    pub(crate) principal: Option<EntityUid>,
    pub(crate) resource: Option<EntityUid>,
    /// Whether it is about everybody and everything.
    pub(crate) universal: bool,
}

impl Head {
    pub(crate) fn of(policy: &Policy) -> Self {
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => None,
            ActionConstraint::Eq(action) => Some(vec![action]),
            ActionConstraint::In(actions) => Some(actions),
        };
        let resource = match policy.resource_constraint() {
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
            ResourceConstraint::In(named) | ResourceConstraint::Eq(named) | ResourceConstraint::IsIn(_, named) => {
                Some(named)
            }
        };
        let principal = match policy.principal_constraint() {
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
            PrincipalConstraint::In(named) | PrincipalConstraint::Eq(named) | PrincipalConstraint::IsIn(_, named) => {
                Some(named)
            }
        };
        Self {
            actions: actions.map(|actions| actions.iter().map(|uid| uid.id().unescaped().to_owned()).collect()),
            universal: principal.is_none() && resource.is_none(),
            principal,
            resource,
        }
    }

    /// The actions it names; none where it is about all.
    pub(crate) fn actions(&self) -> Option<&[String]> {
        self.actions.as_deref()
    }

    /// The backend it names.
    pub(crate) fn backend(&self) -> Option<&str> {
        let named = self.resource.as_ref().filter(|uid| word(uid) == Some(Word::Backend))?;
        Some(named.id().unescaped())
    }

    /// Whether it can be about this action, which is in these groups.
    pub(crate) fn is_about(&self, action: &str, groups: &[&str]) -> bool {
        self.actions.as_ref().is_none_or(|named| named.iter().any(|name| name == action || groups.contains(&&**name)))
    }
}
