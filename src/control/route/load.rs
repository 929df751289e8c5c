//! From the text of policies to a checked set of them.

use std::collections::BTreeMap;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use cedar_policy::{
    ActionConstraint, Effect, Policy, PolicyId, PolicySet, PrincipalConstraint, ResourceConstraint, Schema,
    ValidationMode, Validator,
};

use super::schema::{Backends, text};
use super::{Obligations, Policies};
use crate::control::document::{Mode, PolicySpec, Target, duration, group_name};

/// Most guardrails that can apply to one action of one backend: each costs every call.
const SLICE_MAX: usize = 32;

/// Everything that is wrong with the policies; none of them is in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct LoadError(pub Vec<String>);

/// What is in force without any document, and what every other policy can forbid.
const BUILTIN: &str = r#"
@id("leasehold.eligible")
permit(principal, action == Leasehold::Action::"elevation:request", resource) when { principal in resource.eligible };
@id("leasehold.approvers")
permit(principal, action == Leasehold::Action::"elevation:approve", resource);
"#;

const BUILTIN_ADMIN: &str = r#"
@id("leasehold.admins")
permit(principal in Leasehold::Group::"leasehold.admins", action in Leasehold::Action::"admin:any", resource);
"#;

/// Reads and checks all policies against the actions that the backends have.
///
/// # Errors
/// [`LoadError`] with every mistake found.
pub fn load(documents: &BTreeMap<String, PolicySpec>, backends: &Backends) -> Result<Policies, LoadError> {
    let (schema, _) = Schema::from_cedarschema_str(&text(backends))
        .map_err(|error| LoadError(vec![format!("the actions of the backends make no schema: {error}")]))?;
    let mut loader = Loader::new(schema);
    loader.add("leasehold", Target::Elevation, Mode::Enforce, BUILTIN);
    loader.add("leasehold", Target::Admin, Mode::Enforce, BUILTIN_ADMIN);
    for (name, document) in documents {
        loader.add(name, document.target, document.mode, &document.cedar);
    }
    loader.check_slices(backends);
    let mut all = String::new();
    for (name, document) in documents {
        all.push_str(&format!("{name}\u{0}{:?}\u{0}{:?}\u{0}{}\u{0}", document.target, document.mode, document.cedar));
    }
    let hash = digest(&SHA256, all.as_bytes());
    let hex = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    loader.finish(hex)
}

struct Loader {
    schema: Schema,
    validator: Validator,
    elevation: PolicySet,
    admin: PolicySet,
    guardrails: PolicySet,
    obligations: BTreeMap<PolicyId, Obligations>,
    shadow: PolicySet,
    errors: Vec<String>,
}

impl Loader {
    fn new(schema: Schema) -> Self {
        Self {
            validator: Validator::new(schema.clone()),
            schema,
            elevation: PolicySet::new(),
            admin: PolicySet::new(),
            guardrails: PolicySet::new(),
            obligations: BTreeMap::new(),
            shadow: PolicySet::new(),
            errors: Vec::new(),
        }
    }

    fn add(&mut self, document: &str, target: Target, mode: Mode, cedar: &str) {
        let set = match PolicySet::from_str(cedar) {
            Ok(set) => set,
            Err(error) => return self.errors.push(format!("policy `{document}`: {error}")),
        };
        if set.templates().next().is_some() {
            self.errors.push(format!("policy `{document}`: templates are not used here; write the policy out"));
        }
        for policy in set.policies() {
            if let Err(error) = self.add_one(document, target, mode, policy) {
                self.errors.push(format!("policy `{document}`: {error}"));
            }
        }
    }

    fn add_one(&mut self, document: &str, target: Target, mode: Mode, policy: &Policy) -> Result<(), String> {
        let id = policy.annotation("id").ok_or("each policy has an `@id(\"…\")`, so that a ruling can name it")?;
        if document != "leasehold" && id.starts_with("leasehold.") {
            return Err(format!("`{id}`: ids that begin with `leasehold.` are ours"));
        }
        let id = PolicyId::new(id);
        if self.obligations.contains_key(&id) {
            return Err(format!("two policies have the id `{id}`"));
        }
        let obligations = obligations(policy).map_err(|error| format!("`{id}`: {error}"))?;
        let policy = policy.new_id(id.clone());
        if target == Target::Guardrail && policy.effect() != Effect::Forbid {
            return Err(format!("`{id}`: a guardrail only forbids; what may be done is an entitlement's to say"));
        }
        let mut alone = PolicySet::new();
        alone.add(policy.clone()).map_err(|error| error.to_string())?;
        let checked = self.validator.validate(&alone, ValidationMode::Strict);
        if !checked.validation_passed() {
            let errors: Vec<String> = checked.validation_errors().map(ToString::to_string).collect();
            return Err(format!("`{id}`: {}", errors.join("; ")));
        }
        if document != "leasehold" && target != Target::Guardrail && permits_everything(&policy) {
            return Err(format!(
                "`{id}`: it permits everything to everybody; name a principal, a group or a condition"
            ));
        }
        self.check_target(target, &policy).map_err(|error| format!("`{id}`: {error}"))?;
        self.obligations.insert(id.clone(), obligations);
        if mode == Mode::Shadow {
            return self.shadow.add(policy).map_err(|error| error.to_string());
        }
        let set = match target {
            Target::Elevation => &mut self.elevation,
            Target::Admin => &mut self.admin,
            Target::Guardrail => &mut self.guardrails,
        };
        set.add(policy).map_err(|error| error.to_string())
    }

    /// A policy that names only actions it is never asked about does nothing, which nobody wants to find out later.
    fn check_target(&self, target: Target, policy: &Policy) -> Result<(), String> {
        let named = match policy.action_constraint() {
            ActionConstraint::Any => return Ok(()),
            ActionConstraint::Eq(action) => vec![action],
            ActionConstraint::In(actions) => actions,
        };
        let asked = |name: &str| match target {
            Target::Elevation => name.starts_with("elevation:"),
            Target::Admin => name.starts_with("admin:"),
            Target::Guardrail => !name.starts_with("elevation:") && !name.starts_with("admin:"),
        };
        match named.iter().find(|action| !asked(action.id().unescaped())) {
            Some(action) => Err(format!("it is never asked about {action}: see `target`")),
            None => Ok(()),
        }
    }

    fn check_slices(&mut self, backends: &Backends) {
        for (backend, actions) in backends {
            for (action, class) in actions {
                let applies = |policy: &&Policy| {
                    let by_action = match policy.action_constraint() {
                        ActionConstraint::Any => true,
                        ActionConstraint::Eq(named) => named.id().unescaped() == action.as_str(),
                        ActionConstraint::In(named) => named.iter().any(|named| {
                            let name = named.id().unescaped();
                            name == action.as_str() || name == "call:any" || name == format!("call:{}", class.as_str())
                        }),
                    };
                    let by_backend = match policy.resource_constraint() {
                        ResourceConstraint::In(within) => within.id().unescaped() == backend.as_str(),
                        _ => true,
                    };
                    by_action && by_backend
                };
                let slice: Vec<&Policy> = self.guardrails.policies().filter(applies).collect();
                if slice.len() > SLICE_MAX {
                    let message = format!(
                        "{} guardrails apply to `{action}` on `{backend}`, and at most {SLICE_MAX} may: each costs every \
                         call. Name a backend or an action in their heads",
                        slice.len()
                    );
                    self.errors.push(message);
                }
            }
        }
    }

    fn finish(self, digest: String) -> Result<Policies, LoadError> {
        if !self.errors.is_empty() {
            return Err(LoadError(self.errors));
        }
        Ok(Policies {
            schema: self.schema,
            elevation: self.elevation,
            admin: self.admin,
            guardrails: self.guardrails,
            obligations: self.obligations,
            shadow: self.shadow,
            digest,
        })
    }
}

fn permits_everything(policy: &Policy) -> bool {
    policy.effect() == Effect::Permit
        && matches!(policy.principal_constraint(), PrincipalConstraint::Any)
        && matches!(policy.resource_constraint(), ResourceConstraint::Any)
        && !policy.has_non_scope_constraint()
}

fn obligations(policy: &Policy) -> Result<Obligations, String> {
    let mut found = Obligations::default();
    let number = |name: &str, text: &str| {
        text.parse::<u32>().ok().filter(|n| *n > 0).ok_or(format!("`@{name}(\"{text}\")` is a number from 1"))
    };
    for (name, value) in policy.annotations() {
        match name {
            "id" => {}
            "reason" => found.reason = Some(value.to_owned()),
            "max_ttl" => found.max_ttl = Some(duration(value)?),
            "max_uses" => found.max_uses = Some(number(name, value)?),
            "quorum" => found.quorum = Some(number(name, value)?),
            "require_approvers" => {
                let groups: Vec<String> = value.split(',').map(|group| group.trim().to_owned()).collect();
                groups.iter().try_for_each(|group| group_name(group))?;
                found.approvers = groups;
            }
            other => {
                return Err(format!(
                    "`@{other}` is not known; there are @id, @reason, @max_ttl, @max_uses, @quorum, @require_approvers"
                ));
            }
        }
    }
    Ok(found)
}
