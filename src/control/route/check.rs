//! What a policy about requests or administration must be, beyond what every policy must: its annotations are heard, and
//! it can have a say.

use std::collections::BTreeMap;

use cedar_policy::{Effect, Policy};
use serde_json::Value;

use super::answer::Obligations;
use crate::control::document::{Target, duration, group_name};
use crate::domain::entitlement::{DURATION_MAX, Entitlement};
use crate::domain::id::EntitlementName;
use crate::guardrail::check;
use crate::guardrail::head::Head;
use crate::guardrail::words::{Word, word};

/// Most approvers that a policy can demand of a step.
const QUORUM_MAX: u32 = 16;

/// The annotations of a policy, which Cedar itself does not look at.
pub(super) fn obligations(policy: &Policy) -> Result<Obligations, String> {
    let mut found = Obligations::default();
    let number = |name: &str, text: &str, most: u32| {
        let number = text.parse::<u32>().ok().filter(|n| *n > 0 && *n <= most);
        number.ok_or_else(|| format!("`@{name}(\"{}\")` is a number from 1 to {most}", text.escape_debug()))
    };
    for (name, value) in policy.annotations() {
        match name {
            "id" => {}
            "reason" => found.reason = Some(check::reason(value)?),
            "max_ttl" => {
                let ttl = duration(value).map_err(|error| format!("`@max_ttl`: {error}"))?;
                if ttl.is_zero() || ttl > DURATION_MAX {
                    return Err("`@max_ttl` is from `1s` to `24h`".into());
                }
                found.max_ttl = Some(ttl);
            }
            "max_uses" => found.max_uses = Some(number(name, value, u32::MAX)?),
            "quorum" => found.quorum = Some(number(name, value, QUORUM_MAX)?),
            "require_approvers" => {
                let groups: Vec<String> = value.split(',').map(|group| group.trim().to_owned()).collect();
                let named = groups.iter().try_for_each(|group| group_name(group));
                named.map_err(|error| format!("`@require_approvers`: {error}"))?;
                found.approvers = groups;
            }
            other => return Err(check::unknown_annotation(other)),
        }
    }
    Ok(found)
}

/// What a policy demands must be heard: only what permits a request has obligations.
pub(super) fn heard(obligations: &Obligations, target: Target, policy: &Policy, head: &Head) -> Result<(), String> {
    let tightens = obligations.max_ttl.is_some() || obligations.max_uses.is_some();
    let demands = obligations.quorum.is_some() || !obligations.approvers.is_empty();
    if !tightens && !demands {
        return Ok(());
    }
    let all = "@max_ttl, @max_uses, @quorum and @require_approvers";
    if target != Target::Elevation || policy.effect() == Effect::Forbid {
        return Err(format!("{all} are for a `permit` about a request; here nobody would heed them"));
    }
    let request = head.is_about("elevation:request", &[]);
    if !request && !head.is_about("elevation:auto_approve", &[]) {
        return Err(format!(
            "{all} are for `elevation:request` and `elevation:auto_approve`; here nobody would heed them"
        ));
    }
    if demands && !request {
        return Err("what is approved with nobody looking has no approvers: put @quorum and @require_approvers on a \
                    policy about `elevation:request`"
            .into());
    }
    Ok(())
}

/// A policy that names only actions it is never asked about does nothing, which nobody wants to find out later.
pub(super) fn asked(target: Target, head: &Head) -> Result<(), String> {
    let asked = |name: &str| {
        let elevation = name.starts_with("elevation:");
        let admin = name.starts_with("admin:");
        if target == Target::Admin { admin } else { elevation }
    };
    match head.actions().unwrap_or_default().iter().find(|name| !asked(name)) {
        Some(name) => Err(format!("with `target: {}` it is never asked about `{name}`", target.as_str())),
        None => Ok(()),
    }
}

/// Whether a policy permits everything to everybody, however that is written.
pub(super) fn permits_everything(policy: &Policy, head: &Head) -> bool {
    policy.effect() == Effect::Permit && head.universal && policy.to_json().is_ok_and(|json| trivial(&json))
}

/// Whether no condition of a policy can fail.
fn trivial(policy: &Value) -> bool {
    let conditions = policy["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().all(|condition| condition["body"]["Value"] == Value::Bool(condition["kind"] == "when"))
}

/// The entitlements that a policy names and that are not declared.
pub(super) fn dangling(policy: &Policy, entitlements: &BTreeMap<EntitlementName, Entitlement>) -> Vec<String> {
    let literals = policy.entity_literals();
    let named = literals.iter().filter(|uid| word(uid) == Some(Word::Entitlement)).map(|uid| uid.id().unescaped());
    named.filter(|id| !entitlements.keys().any(|name| name.as_str() == *id)).map(str::to_owned).collect()
}
