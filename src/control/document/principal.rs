//! Who a name stands for.

use serde::Deserialize;

use super::short;
use crate::domain::principal::{Principal, PrincipalKind, group_name};

/// Most active grants that a principal may be given to hold.
const GRANTS_MAX: u32 = 1_000_000;

/// Who a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalSpec {
    /// The exact principal, or one with a single `*` at its end: `https://ci.example#repo:org/app:*`.
    pub principal: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: PrincipalKind,
    /// The groups it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The principal of the person who answers for it.
    #[serde(default)]
    pub owner: Option<String>,
    /// Whether the owner may approve what it asks for.
    #[serde(default)]
    pub owner_may_approve: bool,
    /// A disabled principal gets nothing and loses what it has.
    #[serde(default)]
    pub disabled: bool,
    /// How many active grants it can hold at once, of whatever entitlements.
    #[serde(default = "hundred")]
    pub grants_max: u32,
}

fn hundred() -> u32 {
    PrincipalSpec::GRANTS_MAX_DEFAULT
}

impl PrincipalSpec {
    /// How many active grants a principal can hold where its document does not say.
    pub const GRANTS_MAX_DEFAULT: u32 = 100;

    pub(super) fn check(self) -> Result<Self, String> {
        check_pattern(&self.principal).map_err(|error| format!("spec.principal: {error}"))?;
        self.groups.iter().try_for_each(|group| group_name(group)).map_err(|error| format!("spec.groups: {error}"))?;
        match &self.owner {
            // An owner who is no principal would never be kept from approving.
            Some(owner) => check_exact(owner).map_err(|error| format!("spec.owner: {error}"))?,
            None if self.owner_may_approve => return Err("spec.owner_may_approve: there is no `owner`".into()),
            None => {}
        }
        if self.grants_max == 0 || self.grants_max > GRANTS_MAX {
            return Err(format!("spec.grants_max: from 1 to {GRANTS_MAX}; `disabled: true` is for none"));
        }
        Ok(self)
    }
}

pub(super) fn check_pattern(text: &str) -> Result<(), String> {
    let Some(prefix) = text.strip_suffix('*') else { return check_exact(text) };
    // The trust domain or the issuer is named in full: `spiffe://prod*` would be `spiffe://prod.elsewhere/…` too.
    let whole = match prefix.strip_prefix("spiffe://") {
        Some(rest) => rest.contains('/'),
        None => prefix.contains('#'),
    };
    if !whole {
        return Err("with a `*` it names the trust domain or the issuer in full: `spiffe://prod.example/ci/*`, \
                    `https://ci.example#repo:org/app:*`"
            .into());
    }
    check_exact(&format!("{prefix}x"))
}

fn check_exact(text: &str) -> Result<(), String> {
    if text.contains('*') {
        return Err("there is one `*` at most, at the end of `principal`".into());
    }
    // Subjects are ASCII (OpenID Connect Core, section 2), and what only looks like one is nobody's.
    if let Some(strange) = text.chars().find(|c| !matches!(c, ' '..='~')) {
        return Err(format!("`{}` has `{}`: write plain ASCII", short(text), strange.escape_unicode()));
    }
    Principal::parse(text).map(drop).map_err(|error| error.to_string())
}
