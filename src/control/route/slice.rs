//! Policies by what their heads name, so that a question is put only to those that can have a say in it: Cedar's cost
//! grows with the number of policies it is given, whether they match or not.

use std::collections::HashMap;

use cedar_policy::{Authorizer, Decision, Entities, EntityUid, Policy, PolicyId, PolicySet, Request, Response};

use crate::guardrail::head::Head;

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
