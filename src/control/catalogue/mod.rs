//! Everything that was declared, read and checked as a whole.

mod notices;

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use super::document::{Actions, Class, Document, Kind, PolicySpec, PrincipalSpec, Spec};
use super::route::{Actor, Policies, load};
use crate::action_map::{ActionMapDocument, BackendBundle, NamedMap, Packed};
use crate::domain::entitlement::Entitlement;
use crate::domain::id::{ActionName, BackendName, EntitlementName};
use crate::domain::principal::{Principal, PrincipalKind, PrincipalMap};
use crate::guardrail::{Backends, GuardrailBundle};

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
    principals: PrincipalMap<PrincipalSpec>,
    sidecars: HashMap<BackendName, Vec<String>>,
    maps: BTreeMap<String, ActionMapDocument>,
    /// Which map a backend names.
    mapped: HashMap<BackendName, String>,
    bundles: OnceLock<Vec<(BackendName, Packed)>>,
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
    /// How many active grants they can hold at once.
    pub grants_max: u32,
}

impl Known {
    /// As policy sees them.
    pub fn actor(&self) -> Actor<'_> {
        Actor { principal: &self.principal, kind: self.kind, groups: &self.groups, owner: self.owner.as_deref() }
    }
}

/// The documents by kind.
#[derive(Default)]
struct Declared {
    maps: BTreeMap<String, (Vec<(ActionName, Class)>, ActionMapDocument)>,
    mapped: HashMap<BackendName, String>,
    backends: BTreeMap<BackendName, Actions>,
    principals: Vec<PrincipalSpec>,
    entitlements: BTreeMap<EntitlementName, Entitlement>,
    policies: BTreeMap<String, PolicySpec>,
    sidecars: HashMap<BackendName, Vec<String>>,
    errors: Vec<String>,
}

impl Catalogue {
    /// Reads all documents. Their order means nothing.
    ///
    /// # Errors
    /// Every mistake found; nothing of it is used then.
    pub fn read(documents: &[Document], generation: u64) -> Result<Self, Vec<String>> {
        let mut declared = Declared { errors: alike(documents), ..Declared::default() };
        for document in documents {
            if let Err(error) = declared.add(document) {
                declared.errors.push(error);
            }
        }
        let backends = declared.actions();
        let Declared { maps, mapped, principals, entitlements, policies, sidecars, mut errors, .. } = declared;
        errors.extend(entitlements.values().filter_map(|entitlement| check(entitlement, &backends).err()));
        errors.extend(same_principals(&principals));
        // What is wrong with a policy may be what is wrong with a backend it names: the first is said, and once.
        if !errors.is_empty() {
            return Err(errors);
        }
        let policies = load(&policies, &backends, &entitlements).map_err(|error| error.0)?;
        let principals = principals.into_iter().map(|spec| (spec.principal.as_str().into(), spec)).collect();
        let maps = maps.into_iter().map(|(name, (_, map))| (name, map)).collect();
        let bundles = OnceLock::new();
        Ok(Self { backends, entitlements, policies, generation, principals, sidecars, maps, mapped, bundles })
    }

    /// Every Principal that was declared.
    pub fn principals(&self) -> impl Iterator<Item = &PrincipalSpec> {
        self.principals.values()
    }

    /// The guardrails, for who enforces them: the documents, and of the others what they look at.
    pub fn guardrail_bundle(&self) -> GuardrailBundle {
        let (guardrails, documents) = self.policies.bundled();
        let people = self.principals.values();
        let people = people.map(|p| (p.principal.as_str(), p.kind, p.groups.as_slice(), p.owner.as_deref()));
        GuardrailBundle::new(documents, &self.backends, guardrails.needs(), people)
    }

    /// What the sidecars of each backend have to know of it. Made once, when it is first asked for.
    pub fn backend_bundles(&self) -> &[(BackendName, Packed)] {
        self.bundles.get_or_init(|| {
            // Many backends may name one map.
            let pack = |(name, map): (&String, &ActionMapDocument)| {
                let named = NamedMap { name: name.clone(), map: map.clone() };
                (name.clone(), BackendBundle { action_map: Some(named) }.pack())
            };
            let maps: HashMap<String, Packed> = self.maps.iter().map(pack).collect();
            let none = BackendBundle::default().pack();
            let of = |name: &BackendName| self.mapped.get(name).and_then(|map| maps.get(map)).unwrap_or(&none).clone();
            self.backends.keys().map(|name| (name.clone(), of(name))).collect()
        })
    }

    /// Whether a sidecar may follow a backend, and take uses of its grants.
    pub fn may_follow(&self, sidecar: &Principal, backend: &BackendName) -> bool {
        self.sidecars.get(backend).is_some_and(|listed| listed.iter().any(|listed| is_listed(sidecar, listed)))
    }

    /// Whether some backend names that sidecar.
    pub fn is_sidecar(&self, sidecar: &Principal) -> bool {
        self.sidecars.values().flatten().any(|listed| is_listed(sidecar, listed))
    }

    /// Who somebody is: by the exact name, else by the longest pattern.
    pub fn know(&self, principal: &Principal) -> Option<Known> {
        if principal.as_str() == LOCAL_ADMIN {
            return Some(Known {
                principal: principal.clone(),
                kind: PrincipalKind::User,
                groups: vec![ADMINS.to_owned()],
                owner: None,
                owner_may_approve: false,
                disabled: false,
                grants_max: PrincipalSpec::GRANTS_MAX_DEFAULT,
            });
        }
        let spec = self.principals.get(principal)?;
        Some(Known {
            principal: principal.clone(),
            kind: spec.kind,
            groups: spec.groups.clone(),
            owner: spec.owner.clone(),
            owner_may_approve: spec.owner_may_approve,
            disabled: spec.disabled,
            grants_max: spec.grants_max,
        })
    }
}

impl Declared {
    fn add(&mut self, document: &Document) -> Result<(), String> {
        let name = &document.metadata.name;
        match document.read()? {
            Spec::ActionMap(actions, map) => drop(self.maps.insert(name.clone(), (actions, map))),
            Spec::Backend(actions, sidecars) => {
                let name = BackendName::new(name).map_err(|error| error.to_string())?;
                self.sidecars.insert(name.clone(), sidecars);
                self.backends.insert(name, actions);
            }
            Spec::Principal(spec) => self.principals.push(spec),
            Spec::Entitlement(entitlement) => {
                self.entitlements.insert(entitlement.name.clone(), *entitlement);
            }
            Spec::Policy(spec) => drop(self.policies.insert(name.clone(), spec)),
        }
        Ok(())
    }

    /// The actions of every backend, wherever they are named.
    fn actions(&mut self) -> Backends {
        let mut all = Backends::new();
        for (name, actions) in std::mem::take(&mut self.backends) {
            let actions = match actions {
                Actions::Listed(actions) => actions,
                Actions::Mapped(map) => match self.maps.get(&map) {
                    Some((actions, _)) => {
                        self.mapped.insert(name.clone(), map);
                        actions.clone()
                    }
                    None => {
                        let map = map.escape_debug();
                        self.errors.push(format!("Backend `{name}`: spec.action_map: there is no ActionMap `{map}`"));
                        continue;
                    }
                },
            };
            all.insert(name, actions);
        }
        all
    }
}

fn is_listed(sidecar: &Principal, listed: &str) -> bool {
    let text = sidecar.as_str();
    match listed.strip_suffix('*') {
        Some(prefix) => text.len() > prefix.len() && text.starts_with(prefix),
        None => listed == text,
    }
}

/// Documents that one could take for another.
fn alike(documents: &[Document]) -> Vec<String> {
    let mut seen: HashMap<(Kind, String), &str> = HashMap::new();
    let mut errors = Vec::new();
    for document in documents {
        let name = document.metadata.name.as_str();
        if let Some(other) = seen.insert((document.kind, name.to_ascii_lowercase()), name) {
            let kind = document.kind;
            errors.push(if other == name {
                format!("{kind} `{}` is declared twice", name.escape_debug())
            } else {
                format!("{kind} `{}` and `{}` differ in nothing but case", other.escape_debug(), name.escape_debug())
            });
        }
    }
    errors
}

fn same_principals(principals: &[PrincipalSpec]) -> Vec<String> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut errors = Vec::new();
    for spec in principals {
        let text = spec.principal.as_str();
        if let Some(other) = seen.insert(text.to_ascii_lowercase(), text) {
            errors.push(if other == text {
                format!("two Principals say who `{text}` is")
            } else {
                format!("the principals `{other}` and `{text}` differ in nothing but case")
            });
        }
    }
    errors
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
