//! Everything that was declared, read and checked as a whole.

use std::collections::BTreeMap;

use super::document::{Document, Kind, PrincipalKind, PrincipalSpec, Spec};
use super::route::schema::Backends;
use super::route::{Actor, Policies, load};
use crate::domain::entitlement::Entitlement;
use crate::domain::id::{BackendName, EntitlementName};
use crate::domain::principal::Principal;

/// The group whose members may do everything that an admin may.
pub const ADMINS: &str = "leasehold.admins";

/// Whoever holds the token that the first start wrote.
pub const LOCAL_ADMIN: &str = "urn:leasehold:local#admin";

/// All documents of one moment, read. It is whole: what one document names, another declares.
#[derive(Debug)]
pub struct Catalogue {
    /// The actions of every backend.
    pub backends: Backends,
    /// What may be asked for.
    pub entitlements: BTreeMap<EntitlementName, Entitlement>,
    /// The policies.
    pub policies: Policies,
    /// How often documents changed before this.
    pub generation: u64,
    principals: Vec<PrincipalSpec>,
}

/// Somebody who is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub principal: Principal,
    /// What they are.
    pub kind: PrincipalKind,
    /// The groups they are in.
    pub groups: Vec<String>,
    /// Who answers for them.
    pub owner: Option<String>,
    /// Whether the owner may approve what they ask for.
    pub owner_may_approve: bool,
    /// Whether they were disabled.
    pub disabled: bool,
}

impl Known {
    /// As policy sees them.
    pub fn actor(&self) -> Actor<'_> {
        Actor { principal: &self.principal, kind: self.kind, groups: &self.groups, owner: self.owner.as_deref() }
    }
}

impl Catalogue {
    /// Reads all documents.
    ///
    /// # Errors
    /// Every mistake found; nothing of it is used then.
    pub fn read(documents: &[Document], generation: u64) -> Result<Self, Vec<String>> {
        let (mut errors, mut backends, mut entitlements) = (Vec::new(), Backends::new(), BTreeMap::new());
        let (mut principals, mut policies) = (Vec::new(), BTreeMap::new());
        for document in documents {
            match document.read() {
                Err(error) => errors.push(error),
                Ok(Spec::Backend(actions)) => match BackendName::new(&document.metadata.name) {
                    Ok(name) => drop(backends.insert(name, actions)),
                    Err(error) => errors.push(error.to_string()),
                },
                Ok(Spec::Principal(spec)) => principals.push(spec),
                Ok(Spec::Entitlement(entitlement)) => {
                    entitlements.insert(entitlement.name.clone(), *entitlement);
                }
                Ok(Spec::Policy(spec)) => {
                    policies.insert(document.metadata.name.clone(), spec);
                }
            }
        }
        for entitlement in entitlements.values() {
            check(entitlement, &backends).unwrap_or_else(|error| errors.push(error));
        }
        for (place, spec) in principals.iter().enumerate() {
            if principals[..place].iter().any(|other| other.principal == spec.principal) {
                errors.push(format!("two Principals say who `{}` is", spec.principal));
            }
        }
        let policies = load(&policies, &backends).map_err(|error| errors.extend(error.0));
        match policies {
            Ok(policies) if errors.is_empty() => Ok(Self { backends, entitlements, policies, generation, principals }),
            _ => Err(errors),
        }
    }

    /// Every Principal that was declared.
    pub fn principals(&self) -> impl Iterator<Item = &PrincipalSpec> {
        self.principals.iter()
    }

    /// Who somebody is: by the exact name, else by the longest pattern.
    pub fn know(&self, principal: &Principal) -> Option<Known> {
        let text = principal.as_str();
        if text == LOCAL_ADMIN {
            return Some(Known {
                principal: principal.clone(),
                kind: PrincipalKind::User,
                groups: vec![ADMINS.to_owned()],
                owner: None,
                owner_may_approve: false,
                disabled: false,
            });
        }
        let spec = self
            .principals
            .iter()
            .filter(|spec| matches(&spec.principal, text))
            .max_by_key(|spec| (!spec.principal.ends_with('*'), spec.principal.len()))?;
        Some(Known {
            principal: principal.clone(),
            kind: spec.kind,
            groups: spec.groups.clone(),
            owner: spec.owner.clone(),
            owner_may_approve: spec.owner_may_approve,
            disabled: spec.disabled,
        })
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => pattern == text,
    }
}

fn check(entitlement: &Entitlement, backends: &Backends) -> Result<(), String> {
    let name = &entitlement.name;
    let Some(actions) = backends.get(&entitlement.backend) else {
        return Err(format!("Entitlement `{name}`: there is no Backend `{}`", entitlement.backend));
    };
    for pattern in entitlement.scope.actions() {
        if !actions.iter().any(|(action, _)| pattern.covers(action)) {
            return Err(format!("Entitlement `{name}`: no action of `{}` is `{pattern}`", entitlement.backend));
        }
    }
    if !entitlement.emergency
        && entitlement.steps.is_empty()
        && entitlement.scope.actions().iter().any(|action| action.as_str() == "*")
        && entitlement.scope.resources().iter().any(|resource| resource.as_str() == "**")
    {
        return Err(format!(
            "Entitlement `{name}`: every action on everything needs approvers, or `emergency: true`; name what is needed"
        ));
    }
    Ok(())
}

/// The documents in the order in which they refer to each other.
pub fn in_order(mut documents: Vec<Document>) -> Vec<Document> {
    let place = |kind: Kind| Kind::ALL.iter().position(|other| *other == kind);
    documents.sort_by(|a, b| (place(a.kind), &a.metadata.name).cmp(&(place(b.kind), &b.metadata.name)));
    documents
}
