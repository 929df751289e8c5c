//! What a policy must be, beyond what Cedar demands: it is read without harm, has a name, and names what is there.

use std::collections::HashMap;
use std::str::FromStr;

use cedar_policy::{ParseError, ParseErrors, Policy, PolicySet, ValidationMode, Validator};
use miette::Diagnostic;

use super::bounds;
use super::schema::Backends;
use super::words::{Word, word};
use crate::domain::principal::{Principal, group_name};

/// Everything that is wrong with the policies; none of them is in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct LoadError(pub Vec<String>);

/// Longest id, and longest text of a reason, in bytes.
const ID_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 500;

/// The policies of a text.
///
/// # Errors
/// A sentence, with the line where there is one.
pub(crate) fn read(text: &str) -> Result<PolicySet, String> {
    bounds::check(text)?;
    let set = PolicySet::from_str(text).map_err(|errors| located(text, &errors))?;
    if set.templates().next().is_some() {
        return Err("templates are not used here; write the policy out".into());
    }
    if set.is_empty() {
        return Err("spec.cedar has no policy".into());
    }
    Ok(set)
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

/// The id of a policy, by which a ruling names it.
pub(crate) fn id(policy: &Policy, builtin: bool) -> Result<String, String> {
    let id = policy.annotation("id").ok_or("each policy has an `@id(\"…\")`, so that a ruling can name it")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(plain) {
        let shown: String = id.chars().take(80).collect();
        return Err(format!("`@id(\"{}\")`: use ASCII letters, digits, `.`, `_` and `-`", shown.escape_debug()));
    }
    if !builtin && id.to_ascii_lowercase().starts_with("leasehold.") {
        return Err(format!("`{id}`: ids that begin with `leasehold.` are ours"));
    }
    Ok(id.to_owned())
}

/// What those are told whom a policy stops.
pub(crate) fn reason(value: &str) -> Result<String, String> {
    if value.is_empty() || value.len() > REASON_BYTES_MAX || value.chars().any(char::is_control) {
        return Err(format!("`@reason` is one line of at most {REASON_BYTES_MAX} bytes"));
    }
    Ok(value.to_owned())
}

/// An annotation that is none of ours.
pub(crate) fn unknown_annotation(name: &str) -> String {
    format!("`@{name}` is not known; there are @id, @reason, @max_ttl, @max_uses, @quorum, @require_approvers")
}

/// Whether a policy fits the schema, and can apply.
pub(crate) fn fits(validator: &Validator, policy: &Policy) -> Result<(), String> {
    let mut alone = PolicySet::new();
    alone.add(policy.clone()).map_err(|error| error.to_string())?;
    let checked = validator.validate(&alone, ValidationMode::Strict);
    // A warning is about a policy that can never apply, or a text that looks like another: nobody wants either.
    if checked.validation_passed_without_warnings() {
        return Ok(());
    }
    let errors = checked.validation_errors().map(ToString::to_string);
    let all: Vec<String> = errors.chain(checked.validation_warnings().map(ToString::to_string)).collect();
    Err(all.join("; "))
}

/// What a policy names must be there: a name with a slip in it would make the policy say nothing.
pub(crate) fn named(policy: &Policy, backends: &Backends) -> Result<(), String> {
    for uid in policy.entity_literals() {
        let id = uid.id().unescaped();
        let there = match word(&uid) {
            Some(Word::Group) => group_name(id),
            Some(Word::Principal) => match Principal::parse(id) {
                Err(error) => Err(error.to_string()),
                Ok(_) if !id.is_ascii() => Err(format!("principal `{}`: write plain ASCII", id.escape_debug())),
                Ok(_) => Ok(()),
            },
            Some(Word::Backend) if !backends.keys().any(|name| name.as_str() == id) => {
                Err(format!("there is no Backend `{}`", id.escape_debug()))
            }
            Some(Word::System) if id != "leasehold" => Err("there is one System, `leasehold`".into()),
            _ => Ok(()),
        };
        there?;
    }
    Ok(())
}

/// Whether an id is nobody else's, nor one that could be taken for it. `seen` are those in lower case, and as written.
pub(crate) fn unique(seen: &mut HashMap<String, String>, id: &str) -> Result<(), String> {
    let Some(other) = seen.insert(id.to_ascii_lowercase(), id.to_owned()) else { return Ok(()) };
    let alike = if other == id { String::new() } else { format!(", or one that differs from `{other}` in case") };
    Err(format!("two policies have the id `{id}`{alike}"))
}
