//! From the text of guardrails to a checked and sliced set of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::{Effect, EntityUid, Policy, PolicyId, Schema, Validator};
use serde_json::Value;

use super::bundle::{GuardrailBundle, GuardrailDocument, Mode};
use super::check::{self, LoadError};
use super::head::Head;
use super::judge::{Guardrail, Guardrails, Rule, Slice};
use super::people::People;
use super::schema::{self, ANY, Backends};
use super::words::{Word, word};
use crate::domain::action::ActionClass;
use crate::domain::id::{ActionName, BackendName};

/// Most guardrails that can apply to one action of one backend: each costs every call.
const SLICE_MAX: usize = 32;

/// What of somebody guardrails look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// The groups that they name.
    pub groups: BTreeSet<String>,
    /// Whether they look at what somebody is.
    pub kind: bool,
    /// Whether they look at who answers for them.
    pub owner: bool,
}

impl Guardrails {
    /// Reads and checks what the control plane sent.
    ///
    /// # Errors
    /// [`LoadError`] with every mistake found; nothing of it is to be used then.
    pub fn load(bundle: &GuardrailBundle) -> Result<Self, LoadError> {
        let alone = |error: String| LoadError(vec![error]);
        let mut guardrails = Self::compile(&bundle.policies, &bundle.backends().map_err(alone)?)?;
        guardrails.people = People::read(&bundle.principals, &guardrails.named).map_err(alone)?;
        guardrails.digest = bundle.digest();
        Ok(guardrails)
    }

    /// Reads and checks documents; nobody is known yet.
    ///
    /// # Errors
    /// [`LoadError`] with every mistake found.
    pub fn compile(documents: &[GuardrailDocument], backends: &Backends) -> Result<Self, LoadError> {
        let mut loader = Loader::new(backends).map_err(|error| LoadError(vec![error]))?;
        for document in documents {
            loader.add(document);
        }
        loader.check_slices();
        if loader.errors.is_empty() { Ok(loader.guardrails) } else { Err(LoadError(loader.errors)) }
    }
}

struct Loader<'l> {
    backends: &'l Backends,
    validator: Validator,
    /// Every action with the groups it is in.
    calls: Vec<(&'l BackendName, &'l ActionName, Vec<&'static str>)>,
    /// Those that name neither a backend nor an action.
    unscoped: Vec<PolicyId>,
    /// Ids in lower case, and as they are written.
    seen: HashMap<String, String>,
    guardrails: Guardrails,
    errors: Vec<String>,
}

impl<'l> Loader<'l> {
    fn new(backends: &'l Backends) -> Result<Self, String> {
        let (schema, _) = Schema::from_cedarschema_str(&schema::text(&schema::calls(backends)))
            .map_err(|error| format!("the actions of the backends make no schema: {error}"))?;
        let classes = schema::classes(backends);
        let groups = |action: &ActionName| {
            let own = classes.get(action).into_iter().flatten().map(|class: &ActionClass| schema::group(*class));
            std::iter::once(ANY).chain(own).collect::<Vec<_>>()
        };
        let named = |(backend, actions): (&'l BackendName, &'l Vec<(ActionName, ActionClass)>)| {
            actions.iter().map(move |(action, _)| (backend, action))
        };
        let calls: Vec<_> = backends.iter().flat_map(named).map(|(b, action)| (b, action, groups(action))).collect();
        let mut guardrails = Guardrails::none();
        for (number, (backend, action, groups)) in (0..).zip(&calls) {
            let slice = Slice::new(number, backend, action, groups);
            guardrails.slices.entry((*backend).clone()).or_default().insert((*action).clone(), slice);
        }
        let validator = Validator::new(schema);
        let (unscoped, seen, errors) = (Vec::new(), HashMap::new(), Vec::new());
        Ok(Self { backends, validator, calls, unscoped, seen, guardrails, errors })
    }

    fn add(&mut self, document: &GuardrailDocument) {
        let name = &document.name;
        let wrong = |error: &str| format!("Policy `{name}`: {error}");
        let set = match check::read(&document.cedar) {
            Ok(set) => set,
            Err(error) => return self.errors.push(wrong(&error)),
        };
        for policy in set.policies() {
            if let Err(error) = self.add_one(document, policy) {
                self.errors.push(wrong(&error));
            }
        }
    }

    fn add_one(&mut self, document: &GuardrailDocument, policy: &Policy) -> Result<(), String> {
        let id = check::id(policy, false)?;
        check::unique(&mut self.seen, &id)?;
        let policy = policy.new_id(PolicyId::new(&id));
        self.add_named(document, policy, &id).map_err(|error| format!("`{id}`: {error}"))
    }

    fn add_named(&mut self, document: &GuardrailDocument, policy: Policy, id: &str) -> Result<(), String> {
        let head = Head::of(&policy);
        if policy.effect() != Effect::Forbid {
            return Err("a guardrail only forbids; what may be done is an entitlement's to say".into());
        }
        let others = |name: &&String| name.starts_with("elevation:") || name.starts_with("admin:");
        if let Some(name) = head.actions().unwrap_or_default().iter().find(others) {
            return Err(format!("with `target: guardrail` it is never asked about `{name}`"));
        }
        check::fits(&self.validator, &policy)?;
        check::named(&policy, self.backends)?;
        let rule = Arc::new(Rule { document: document.name.clone(), id: id.to_owned(), reason: reason(&policy)? });
        self.put(document.mode, &policy, &head)?;
        self.look_at(&policy);
        self.guardrails.rules.insert(policy.id().clone(), Arc::clone(&rule));
        self.guardrails.all.push(Guardrail { rule, mode: document.mode, policy, head });
        Ok(())
    }

    /// Puts a policy where it is asked.
    fn put(&mut self, mode: Mode, policy: &Policy, head: &Head) -> Result<(), String> {
        let resources = ids(policy, Word::Resource);
        let timed = strings(policy).is_none_or(|strings| strings.contains("context"));
        let mut applies = false;
        for (backend, action, groups) in &self.calls {
            let here = head.backend().is_none_or(|named| named == backend.as_str());
            if here && head.is_about(action.as_str(), groups) {
                applies = true;
                let slices = self.guardrails.slices.get_mut(*backend);
                if let Some(slice) = slices.and_then(|slices| slices.get_mut(*action)) {
                    slice.add(mode, policy, timed, &resources)?;
                }
            }
        }
        if !applies {
            return Err("it applies to no action of any backend: see what its head names".into());
        }
        if head.resource.is_none() && head.is_about(ANY, &[]) {
            self.unscoped.push(policy.id().clone());
        }
        Ok(())
    }

    /// Notes what of principals a policy can tell apart.
    fn look_at(&mut self, policy: &Policy) {
        let strings = strings(policy);
        let reads = |attribute: &str| strings.as_ref().is_none_or(|strings| strings.contains(attribute));
        let needs = &mut self.guardrails.needs;
        needs.kind |= reads("kind");
        needs.owner |= reads("owner");
        needs.groups.extend(ids(policy, Word::Group));
        self.guardrails.named.extend(ids(policy, Word::Principal));
    }

    fn check_slices(&mut self) {
        self.unscoped.sort();
        let unscoped: Vec<String> = self.unscoped.iter().take(8).map(|id| format!("`{id}`")).collect();
        let more = if self.unscoped.len() > unscoped.len() { ", …" } else { "" };
        for (backend, action, number) in self.guardrails.slices() {
            if number > SLICE_MAX {
                let mut message = format!(
                    "{number} guardrails apply to `{action}` on `{backend}`, and at most {SLICE_MAX} may: each costs every call."
                );
                if !unscoped.is_empty() {
                    message += &format!(
                        " Name a backend or an action in the heads of those that have neither: {}{more}",
                        unscoped.join(", ")
                    );
                }
                self.errors.push(message);
            }
        }
    }
}

/// The annotations of a guardrail: there is nothing it could demand.
fn reason(policy: &Policy) -> Result<Option<String>, String> {
    let mut found = None;
    for (name, value) in policy.annotations() {
        match name {
            "id" => {}
            "reason" => found = Some(check::reason(value)?),
            "max_ttl" | "max_uses" | "quorum" | "require_approvers" => {
                return Err(format!("`@{name}` is for a `permit` about a request; here nobody would heed it"));
            }
            other => return Err(check::unknown_annotation(other)),
        }
    }
    Ok(found)
}

/// The things of a type that a policy names.
fn ids(policy: &Policy, wanted: Word) -> BTreeSet<String> {
    let named = policy.entity_literals();
    named
        .iter()
        .filter(|uid| word(uid) == Some(wanted))
        .map(|uid: &EntityUid| uid.id().unescaped().to_owned())
        .collect()
}

/// The variables and the attributes that a policy reads, and all texts in it besides: more than it reads, and never less.
/// None where that cannot be told.
fn strings(policy: &Policy) -> Option<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut left = vec![policy.to_json().ok()?];
    while let Some(value) = left.pop() {
        match value {
            Value::String(text) => drop(found.insert(text)),
            Value::Array(values) => left.extend(values),
            Value::Object(object) => left.extend(object.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    Some(found)
}
