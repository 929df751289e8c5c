//! Policies by what their heads name, so that a question is put only to those that can have a say in it: Cedar's cost
//! grows with the number of policies it is given, whether they match or not.

use std::collections::HashMap;

use cedar_policy::{
    ActionConstraint, Authorizer, Decision, Entities, EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint,
    Request, ResourceConstraint, Response,
};

use super::question::{Word, word};

/// The policies of one question: those whose heads name a backend, an entitlement, a group or somebody, by it; and the rest.
#[derive(Debug, Default)]
pub(super) struct Slices {
    general: PolicySet,
    within: HashMap<EntityUid, PolicySet>,
}

/// What policies say together, as if they were one set.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) permits: Vec<PolicyId>,
    pub(super) forbids: Vec<PolicyId>,
    pub(super) errors: Vec<String>,
}

impl Slices {
    pub(super) fn add(&mut self, policy: &Policy, head: &Head) -> Result<(), String> {
        let set = match head.resource.as_ref().or(head.principal.as_ref()) {
            Some(named) => self.within.entry(named.clone()).or_default(),
            None => &mut self.general,
        };
        set.add(policy.clone()).map_err(|error| error.to_string())
    }

    /// For a question that was sliced by more than the heads say: everything is asked.
    pub(super) fn add_general(&mut self, policy: &Policy) -> Result<(), String> {
        self.general.add(policy.clone()).map_err(|error| error.to_string())
    }

    pub(super) fn len(&self) -> usize {
        self.general.num_of_policies() + self.within.values().map(PolicySet::num_of_policies).sum::<usize>()
    }

    /// What the policies say. `within` is all that the principal and the resource are or are in.
    pub(super) fn ask(
        &self,
        authorizer: &Authorizer,
        request: &Request,
        entities: &Entities,
        within: &[EntityUid],
    ) -> Found {
        let named = within.iter().filter_map(|uid| self.within.get(uid));
        let mut found = Found::default();
        for set in std::iter::once(&self.general).chain(named).filter(|set| !set.is_empty()) {
            found.add(&authorizer.is_authorized(request, set, entities));
        }
        // A group that is named twice for somebody is asked twice.
        for ids in [&mut found.permits, &mut found.forbids] {
            ids.sort();
            ids.dedup();
        }
        found
    }
}

impl Found {
    fn add(&mut self, response: &Response) {
        let determining = response.diagnostics().reason().cloned();
        match response.decision() {
            Decision::Allow => self.permits.extend(determining),
            Decision::Deny => self.forbids.extend(determining),
        }
        self.errors.extend(response.diagnostics().errors().map(ToString::to_string));
    }
}

/// What the head of a policy names.
#[derive(Debug)]
pub(super) struct Head {
    actions: Option<Vec<String>>,
    principal: Option<EntityUid>,
    pub(super) resource: Option<EntityUid>,
    /// Whether it is about everybody and everything.
    pub(super) universal: bool,
}

impl Head {
    pub(super) fn of(policy: &Policy) -> Self {
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
    pub(super) fn actions(&self) -> Option<&[String]> {
        self.actions.as_deref()
    }

    /// The backend it names.
    pub(super) fn backend(&self) -> Option<&str> {
        let named = self.resource.as_ref().filter(|uid| word(uid) == Some(Word::Backend))?;
        Some(named.id().unescaped())
    }

    /// Whether it can be about this action, which is in these groups.
    pub(super) fn is_about(&self, action: &str, groups: &[&str]) -> bool {
        self.actions.as_ref().is_none_or(|named| named.iter().any(|name| name == action || groups.contains(&&**name)))
    }
}
