//! From the text of policies to a checked and sliced set of them.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use cedar_policy::{
    Authorizer, Effect, Entities, Entity, ParseError, ParseErrors, Policy, PolicyId, PolicySet, Schema, ValidationMode,
    Validator,
};

use miette::Diagnostic;

use super::bounds;
use super::check::{self, LoadError};
use super::question::{self, Word, uid};
use super::schema::{ADMIN_ACTIONS, Backends, classes, group, text};
use super::slice::{Head, Slices};
use super::{About, Policies, Prepared, Question};
use crate::control::document::{Class, Mode, PolicySpec, Target};
use crate::domain::entitlement::Entitlement;
use crate::domain::id::{ActionName, BackendName, EntitlementName};

/// Most guardrails that can apply to one action of one backend: each costs every call.
const SLICE_MAX: usize = 32;

/// What is in force without any document, and what every other policy can forbid.
pub(super) const BUILTIN: &str = r#"
@id("leasehold.eligible")
permit(principal, action == Leasehold::Action::"elevation:request", resource) when { principal in resource.eligible };
@id("leasehold.not_eligible") @reason("the entitlement's `eligible` names no group of this principal")
forbid(principal, action == Leasehold::Action::"elevation:request", resource) unless { principal in resource.eligible };
@id("leasehold.approvers")
permit(principal, action == Leasehold::Action::"elevation:approve", resource);
"#;

const BUILTIN_ADMIN: &str = r#"
@id("leasehold.admins")
permit(principal in Leasehold::Group::"leasehold.admins", action in Leasehold::Action::"admin:any", resource);
"#;

/// Reads and checks all policies against what they can be about.
///
/// # Errors
/// [`LoadError`] with every mistake found.
pub fn load(
    documents: &BTreeMap<String, PolicySpec>,
    backends: &Backends,
    entitlements: &BTreeMap<EntitlementName, Entitlement>,
) -> Result<Policies, LoadError> {
    let mut loader = Loader::new(documents, backends, entitlements).map_err(|error| LoadError(vec![error]))?;
    let builtin = |target, cedar: &str| PolicySpec { target, mode: Mode::Enforce, cedar: cedar.to_owned() };
    loader.add(None, &builtin(Target::Elevation, BUILTIN));
    loader.add(None, &builtin(Target::Admin, BUILTIN_ADMIN));
    for (name, document) in documents {
        loader.add(Some(name), document);
    }
    loader.check_slices();
    if loader.errors.is_empty() { Ok(loader.policies) } else { Err(LoadError(loader.errors)) }
}

/// Changes exactly when a policy does: each text has its length in front, so no two sets read as one.
fn digest(documents: &BTreeMap<String, PolicySpec>) -> String {
    let mut hash = Context::new(&SHA256);
    let mut add = |text: &str| {
        hash.update(&text.len().to_be_bytes());
        hash.update(text.as_bytes());
    };
    add(BUILTIN);
    add(BUILTIN_ADMIN);
    for (name, document) in documents {
        [name, document.target.as_str(), document.mode.as_str(), &document.cedar].into_iter().for_each(&mut add);
    }
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Loader<'l> {
    backends: &'l Backends,
    entitlements: &'l BTreeMap<EntitlementName, Entitlement>,
    validators: BTreeMap<Target, Validator>,
    /// The actions that guardrails can be about, with the groups they are in.
    calls: Vec<(&'l BackendName, &'l ActionName, Vec<&'static str>)>,
    /// Guardrails that name neither a backend nor an action.
    unscoped: Vec<PolicyId>,
    seen: HashMap<String, String>,
    policies: Policies,
    errors: Vec<String>,
}

impl<'l> Loader<'l> {
    fn new(
        documents: &BTreeMap<String, PolicySpec>,
        backends: &'l Backends,
        entitlements: &'l BTreeMap<EntitlementName, Entitlement>,
    ) -> Result<Self, String> {
        let mut validators = BTreeMap::new();
        for target in [Target::Elevation, Target::Guardrail, Target::Admin] {
            let (schema, _) = Schema::from_cedarschema_str(&text(target, backends))
                .map_err(|error| format!("the actions of the backends make no schema: {error}"))?;
            validators.insert(target, Validator::new(schema));
        }
        let classes = classes(backends);
        let groups = |action: &ActionName| {
            let own = classes.get(action).into_iter().flatten().map(|class: &Class| group(*class));
            std::iter::once("call:any").chain(own).collect::<Vec<_>>()
        };
        let named = |(backend, actions): (&'l BackendName, &'l Vec<(ActionName, Class)>)| {
            actions.iter().map(move |(action, _)| (backend, action))
        };
        let calls: Vec<_> = backends.iter().flat_map(named).map(|(b, action)| (b, action, groups(action))).collect();
        let policies = Policies {
            authorizer: Authorizer::new(),
            request: Question::default(),
            auto_approve: Question::default(),
            approve: Question::default(),
            admin: ADMIN_ACTIONS.iter().map(|action| (*action, Question::default())).collect(),
            guardrails: calls
                .iter()
                .map(|(b, action, groups)| (((*b).clone(), (*action).clone()), (groups.clone(), Question::default())))
                .collect(),
            about: HashMap::new(),
            entitlements: prepare(entitlements)?,
            system: system()?,
            dangling: Vec::new(),
            digest: digest(documents),
        };
        Ok(Self {
            backends,
            entitlements,
            validators,
            calls,
            unscoped: Vec::new(),
            seen: HashMap::new(),
            policies,
            errors: Vec::new(),
        })
    }

    /// Adds the policies of a document; without a name it is a built-in one.
    fn add(&mut self, document: Option<&str>, spec: &PolicySpec) {
        let name = document.unwrap_or("leasehold");
        let wrong = |error: &dyn std::fmt::Display| format!("Policy `{name}`: {error}");
        if let Err(error) = bounds::check(&spec.cedar) {
            return self.errors.push(wrong(&error));
        }
        let set = match PolicySet::from_str(&spec.cedar) {
            Ok(set) => set,
            Err(error) => return self.errors.push(wrong(&located(&spec.cedar, &error))),
        };
        if set.templates().next().is_some() {
            self.errors.push(wrong(&"templates are not used here; write the policy out"));
        } else if set.is_empty() {
            self.errors.push(wrong(&"spec.cedar has no policy"));
        }
        for policy in set.policies() {
            if let Err(error) = self.add_one(document, spec, policy) {
                self.errors.push(wrong(&error));
            }
        }
    }

    fn add_one(&mut self, document: Option<&str>, spec: &PolicySpec, policy: &Policy) -> Result<(), String> {
        let id = check::id(policy, document.is_none())?;
        if let Some(other) = self.seen.insert(id.to_ascii_lowercase(), id.clone()) {
            let alike =
                if other == id { String::new() } else { format!(", or one that differs from `{other}` in case") };
            return Err(format!("two policies have the id `{id}`{alike}"));
        }
        let head = Head::of(policy);
        let policy = policy.new_id(PolicyId::new(&id));
        self.check(document.is_none(), spec.target, &policy, &head).map_err(|error| format!("`{id}`: {error}"))?;
        let about = About {
            obligations: check::obligations(&policy).map_err(|error| format!("`{id}`: {error}"))?,
            document: document.unwrap_or("leasehold").to_owned(),
            target: spec.target,
            mode: spec.mode,
            text: policy.to_cedar().unwrap_or_default().trim().to_owned(),
        };
        check::heard(&about.obligations, spec.target, &policy, &head).map_err(|error| format!("`{id}`: {error}"))?;
        for name in check::dangling(&policy, self.entitlements) {
            let message =
                format!("Policy `{}`: `{id}`: there is no Entitlement `{}`", about.document, name.escape_debug());
            self.policies.dangling.push((about.document.clone(), message));
        }
        self.policies.about.insert(policy.id().clone(), about);
        self.put(spec, &policy, &head).map_err(|error| format!("`{id}`: {error}"))
    }

    fn check(&self, builtin: bool, target: Target, policy: &Policy, head: &Head) -> Result<(), String> {
        if target == Target::Guardrail && policy.effect() != Effect::Forbid {
            return Err("a guardrail only forbids; what may be done is an entitlement's to say".into());
        }
        check::asked(target, head)?;
        if let Some(validator) = self.validators.get(&target) {
            let mut alone = PolicySet::new();
            alone.add(policy.clone()).map_err(|error| error.to_string())?;
            let checked = validator.validate(&alone, ValidationMode::Strict);
            // A warning is about a policy that can never apply, or a text that looks like another: nobody wants either.
            if !checked.validation_passed_without_warnings() {
                let errors = checked.validation_errors().map(ToString::to_string);
                let all: Vec<String> = errors.chain(checked.validation_warnings().map(ToString::to_string)).collect();
                return Err(all.join("; "));
            }
        }
        check::named(policy, self.backends)?;
        if !builtin && target != Target::Guardrail && check::permits_everything(policy, head) {
            return Err("it permits everything to everybody; name a principal, a group or a condition".into());
        }
        Ok(())
    }

    /// Puts a policy where it is asked.
    fn put(&mut self, spec: &PolicySpec, policy: &Policy, head: &Head) -> Result<(), String> {
        match spec.target {
            Target::Elevation => {
                let policies = &mut self.policies;
                let questions = [
                    ("elevation:request", &mut policies.request),
                    ("elevation:auto_approve", &mut policies.auto_approve),
                    ("elevation:approve", &mut policies.approve),
                ];
                for (_, question) in questions.into_iter().filter(|(action, _)| head.is_about(action, &[])) {
                    question.of(spec.mode).add(policy, head)?;
                }
                Ok(())
            }
            Target::Admin => {
                for (action, question) in &mut self.policies.admin {
                    if head.is_about(action, &["admin:any"]) {
                        question.of(spec.mode).add(policy, head)?;
                    }
                }
                Ok(())
            }
            Target::Guardrail => self.put_guardrail(spec.mode, policy, head),
        }
    }

    fn put_guardrail(&mut self, mode: Mode, policy: &Policy, head: &Head) -> Result<(), String> {
        let mut applies = false;
        for (backend, action, groups) in &self.calls {
            let here = head.backend().is_none_or(|named| named == backend.as_str());
            if here && head.is_about(action.as_str(), groups) {
                applies = true;
                let key = ((*backend).clone(), (*action).clone());
                if let Some((_, question)) = self.policies.guardrails.get_mut(&key) {
                    question.of(mode).add_general(policy)?;
                }
            }
        }
        if !applies {
            return Err("it applies to no action of any backend: see what its head names".into());
        }
        if head.resource.is_none() && head.is_about("call:any", &[]) {
            self.unscoped.push(policy.id().clone());
        }
        Ok(())
    }

    fn check_slices(&mut self) {
        self.unscoped.sort();
        let unscoped: Vec<String> = self.unscoped.iter().take(8).map(|id| format!("`{id}`")).collect();
        let more = if self.unscoped.len() > unscoped.len() { ", …" } else { "" };
        for ((backend, action), (_, question)) in &self.policies.guardrails {
            if question.len() > SLICE_MAX {
                let mut message = format!(
                    "{} guardrails apply to `{action}` on `{backend}`, and at most {SLICE_MAX} may: each costs every call.",
                    question.len()
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

impl Question {
    fn of(&mut self, mode: Mode) -> &mut Slices {
        match mode {
            Mode::Enforce => &mut self.enforced,
            Mode::Shadow => &mut self.shadow,
        }
    }
}

fn prepare(
    entitlements: &BTreeMap<EntitlementName, Entitlement>,
) -> Result<BTreeMap<EntitlementName, Prepared>, String> {
    let prepared = entitlements.iter().map(|(name, entitlement)| {
        let own = uid(Word::Entitlement, name.as_str());
        let backend = uid(Word::Backend, entitlement.backend.as_str());
        let entity = question::entitlement(&own, &backend, &entitlement.eligible)?;
        let entities = question::with(&Entities::empty(), [entity.clone()])?;
        Ok((name.clone(), Prepared { uid: own, backend, entities, entity }))
    });
    prepared.collect()
}

/// What administration is about, and the group that its actions are in.
fn system() -> Result<Entities, String> {
    let admin = uid(Word::Action, "admin:any");
    let actions =
        ADMIN_ACTIONS.iter().map(|action| Entity::new_no_attrs(uid(Word::Action, action), [admin.clone()].into()));
    let all = actions.chain([Entity::with_uid(uid(Word::System, "leasehold"))]);
    question::with(&Entities::empty(), all)
}

/// A mistake in the text, with its line.
fn located(text: &str, errors: &ParseErrors) -> String {
    let line = |error: &ParseError| {
        let offset = error.labels()?.next()?.offset();
        Some(text.get(..offset)?.matches('\n').count() + 1)
    };
    let one = |error: &ParseError| match line(error) {
        Some(line) => format!("spec.cedar, line {line}: {error}"),
        None => format!("spec.cedar: {error}"),
    };
    errors.iter().map(one).collect::<Vec<_>>().join("; ")
}
