//! From the text of policies to a checked and sliced set of them.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest::{Context, SHA256};
use cedar_policy::{Authorizer, Entities, Entity, Policy, PolicyId, Schema, Validator};

use super::answer::Obligations;
use super::check;
use super::question::{self, Word, uid};
use super::schema::{ADMIN_ACTIONS, text};
use super::slice::Slices;
use super::{About, Policies, Prepared, Question};
use crate::control::document::{Mode, PolicySpec, Target};
use crate::domain::entitlement::Entitlement;
use crate::domain::id::EntitlementName;
use crate::guardrail::check::{self as common, LoadError};
use crate::guardrail::head::Head;
use crate::guardrail::schema::Backends;
use crate::guardrail::{GuardrailDocument, Guardrails};

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
    loader.add_guardrails(documents);
    for (name, document) in documents.iter().filter(|(_, document)| document.target != Target::Guardrail) {
        loader.add(Some(name), document);
    }
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
    /// Ids in lower case, and as they are written.
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
        for target in [Target::Elevation, Target::Admin] {
            let (schema, _) = Schema::from_cedarschema_str(&text(target, backends))
                .map_err(|error| format!("the actions of the backends make no schema: {error}"))?;
            validators.insert(target, Validator::new(schema));
        }
        let policies = Policies {
            authorizer: Authorizer::new(),
            request: Question::default(),
            auto_approve: Question::default(),
            approve: Question::default(),
            admin: ADMIN_ACTIONS.iter().map(|action| (*action, Question::default())).collect(),
            guardrails: Guardrails::none(),
            documents: guardrails(documents),
            about: HashMap::new(),
            entitlements: prepare(entitlements)?,
            system: system()?,
            dangling: Vec::new(),
            digest: digest(documents),
        };
        let (seen, errors) = (HashMap::new(), Vec::new());
        Ok(Self { backends, entitlements, validators, seen, policies, errors })
    }

    /// Guardrails are read as a sidecar reads them.
    fn add_guardrails(&mut self, documents: &BTreeMap<String, PolicySpec>) {
        let guardrails = match Guardrails::compile(&guardrails(documents), self.backends) {
            Ok(guardrails) => guardrails,
            Err(LoadError(errors)) => return self.errors.extend(errors),
        };
        for guardrail in guardrails.all() {
            let (rule, policy) = (&guardrail.rule, &guardrail.policy);
            if let Err(error) = common::unique(&mut self.seen, &rule.id) {
                self.errors.push(format!("Policy `{}`: {error}", rule.document));
            }
            let about = About {
                obligations: Obligations { reason: rule.reason.clone(), ..Obligations::default() },
                document: rule.document.clone(),
                target: Target::Guardrail,
                mode: guardrail.mode,
                text: policy.to_cedar().unwrap_or_default().trim().to_owned(),
            };
            self.add_about(policy, about);
        }
        self.policies.guardrails = guardrails;
    }

    fn add_about(&mut self, policy: &Policy, about: About) {
        for name in check::dangling(policy, self.entitlements) {
            let (document, id, name) = (&about.document, policy.id(), name.escape_debug());
            let message = format!("Policy `{document}`: `{id}`: there is no Entitlement `{name}`");
            self.policies.dangling.push((document.clone(), message));
        }
        self.policies.about.insert(policy.id().clone(), about);
    }

    /// Adds the policies of a document; without a name it is a built-in one.
    fn add(&mut self, document: Option<&str>, spec: &PolicySpec) {
        let name = document.unwrap_or("leasehold");
        let wrong = |error: &str| format!("Policy `{name}`: {error}");
        let set = match common::read(&spec.cedar) {
            Ok(set) => set,
            Err(error) => return self.errors.push(wrong(&error)),
        };
        for policy in set.policies() {
            if let Err(error) = self.add_one(document, spec, policy) {
                self.errors.push(wrong(&error));
            }
        }
    }

    fn add_one(&mut self, document: Option<&str>, spec: &PolicySpec, policy: &Policy) -> Result<(), String> {
        let id = common::id(policy, document.is_none())?;
        common::unique(&mut self.seen, &id)?;
        let policy = policy.new_id(PolicyId::new(&id));
        self.add_named(document, spec, &policy).map_err(|error| format!("`{id}`: {error}"))
    }

    fn add_named(&mut self, document: Option<&str>, spec: &PolicySpec, policy: &Policy) -> Result<(), String> {
        let head = Head::of(policy);
        self.check(document.is_none(), spec.target, policy, &head)?;
        let about = About {
            obligations: check::obligations(policy)?,
            document: document.unwrap_or("leasehold").to_owned(),
            target: spec.target,
            mode: spec.mode,
            text: policy.to_cedar().unwrap_or_default().trim().to_owned(),
        };
        check::heard(&about.obligations, spec.target, policy, &head)?;
        self.add_about(policy, about);
        self.put(spec, policy, &head)
    }

    fn check(&self, builtin: bool, target: Target, policy: &Policy, head: &Head) -> Result<(), String> {
        check::asked(target, head)?;
        if let Some(validator) = self.validators.get(&target) {
            common::fits(validator, policy)?;
        }
        common::named(policy, self.backends)?;
        if !builtin && check::permits_everything(policy, head) {
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
            Target::Guardrail => Err("a guardrail is read with the guardrails".into()),
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

/// The documents that are about calls.
fn guardrails(documents: &BTreeMap<String, PolicySpec>) -> Vec<GuardrailDocument> {
    let about_calls = documents.iter().filter(|(_, document)| document.target == Target::Guardrail);
    let plain = |(name, document): (&String, &PolicySpec)| GuardrailDocument {
        name: name.clone(),
        mode: document.mode,
        cedar: document.cedar.clone(),
    };
    about_calls.map(plain).collect()
}
