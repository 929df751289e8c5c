//! What is valid and yet probably not meant: nobody can ask, nobody can agree, nothing can be asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::Catalogue;
use crate::control::document::PrincipalSpec;
use crate::domain::entitlement::{Entitlement, Step};

impl Catalogue {
    /// What deserves a look, each as a sentence that names the document.
    pub fn notices(&self) -> Vec<String> {
        let mut notices: Vec<String> = self.policies.dangling().iter().map(|(_, message)| message.clone()).collect();
        let members = self.members();
        for entitlement in self.entitlements.values() {
            empty_groups(entitlement, &members, &mut notices);
            for (place, step) in entitlement.steps.iter().enumerate() {
                if let Some(most) = reachable(step, &members)
                    && (1..step.quorum as usize).contains(&most)
                {
                    notices.push(format!(
                        "Entitlement `{}`: approval.steps[{place}] wants {} approvers, and there are {most}",
                        entitlement.name, step.quorum
                    ));
                }
            }
        }
        for (backend, actions) in &self.backends {
            let asked: Vec<&Entitlement> = self.entitlements.values().filter(|e| e.backend == *backend).collect();
            let covered = |action| asked.iter().any(|e| e.scope.actions().iter().any(|pattern| pattern.covers(action)));
            let unreachable: Vec<String> =
                actions.iter().filter(|(name, _)| !covered(name)).map(|(name, _)| format!("`{name}`")).collect();
            if !unreachable.is_empty() {
                notices.push(format!("Backend `{backend}`: no entitlement covers {}", unreachable.join(", ")));
            }
        }
        notices
    }

    /// The members of each group by their documents.
    fn members(&self) -> BTreeMap<&str, Vec<&PrincipalSpec>> {
        let mut members: BTreeMap<&str, Vec<&PrincipalSpec>> = BTreeMap::new();
        for spec in self.principals.values().filter(|spec| !spec.disabled) {
            for group in &spec.groups {
                members.entry(group).or_default().push(spec);
            }
        }
        members
    }
}

fn empty_groups(entitlement: &Entitlement, members: &BTreeMap<&str, Vec<&PrincipalSpec>>, notices: &mut Vec<String>) {
    let approvers = entitlement.steps.iter().flat_map(|step| &step.approvers);
    let wanted = entitlement.eligible.iter().map(|group| ("eligible", group));
    for (field, group) in wanted.chain(approvers.map(|group| ("approval.steps", group))) {
        if !members.contains_key(group.as_str()) {
            notices.push(format!("Entitlement `{}`: {field}: nobody is in `{group}`", entitlement.name));
        }
    }
}

/// How many different approvers there can be; none where a pattern stands for any number.
fn reachable(step: &Step, members: &BTreeMap<&str, Vec<&PrincipalSpec>>) -> Option<usize> {
    let all = step.approvers.iter().filter_map(|group| members.get(group.as_str())).flatten();
    let names: BTreeSet<&str> = all.map(|spec| spec.principal.as_str()).collect();
    (!names.iter().any(|name| name.ends_with('*'))).then_some(names.len())
}
