//! What an administrator declares: documents with an envelope, each of one kind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::action::{ActionClass, ActionPattern, Scope};
use crate::domain::elevation::seconds;
use crate::domain::entitlement::{DURATION_MAX, Entitlement, Step, TaskRule};
use crate::domain::id::{ActionName, BackendName, EntitlementName};
use crate::domain::resource::ResourcePattern;

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A protected API and its actions.
    Backend,
    /// Who a name stands for.
    Principal,
    /// What may be asked for.
    Entitlement,
    /// Cedar text.
    Policy,
}

impl Kind {
    /// Every kind, in the order in which documents refer to each other.
    pub const ALL: [Self; 4] = [Self::Backend, Self::Principal, Self::Entitlement, Self::Policy];

    /// The kind as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "Backend",
            Self::Principal => "Principal",
            Self::Entitlement => "Entitlement",
            Self::Policy => "Policy",
        }
    }

    /// The kind as the API's paths have it.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Backend => "backends",
            Self::Principal => "principals",
            Self::Entitlement => "entitlements",
            Self::Policy => "policies",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One document, as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// `leasehold/v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Its kind.
    pub kind: Kind,
    /// Its name and what is known of it.
    pub metadata: Metadata,
    /// What it says; its shape is its kind's.
    pub spec: serde_json::Value,
}

/// A document's name and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among its kind.
    pub name: String,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How often its `spec` changed; given by the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// What documents begin with.
pub const API_VERSION: &str = "leasehold/v1";

/// A backend as the control plane needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its actions, as its action map names them.
    pub actions: Vec<NamedAction>,
}

/// An action and how much it can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedAction {
    /// Its name.
    pub name: String,
    /// `read`, `write` or `admin`.
    pub class: Class,
}

/// How much an action can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words are the domain's")]
pub enum Class {
    Read,
    Write,
    Admin,
}

impl From<ActionClass> for Class {
    fn from(class: ActionClass) -> Self {
        match class {
            ActionClass::Read => Self::Read,
            ActionClass::Write => Self::Write,
            ActionClass::Admin => Self::Admin,
        }
    }
}

impl Class {
    /// The class as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// What a principal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// A service.
    Workload,
    /// A pipeline.
    Ci,
    /// An AI agent.
    Agent,
    /// A person.
    User,
}

impl PrincipalKind {
    /// The kind as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Ci => "ci",
            Self::Agent => "agent",
            Self::User => "user",
        }
    }
}

/// Who a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether the owner may approve what it asks for.
    #[serde(default)]
    pub owner_may_approve: bool,
    /// A disabled principal gets nothing and loses what it has.
    #[serde(default)]
    pub disabled: bool,
}

/// What may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntitlementSpec {
    backend: BackendName,
    actions: Vec<ActionPattern>,
    resources: Vec<ResourcePattern>,
    eligible: Vec<String>,
    duration_max: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uses_max: Option<u32>,
    #[serde(default)]
    approval: ApprovalSpec,
    #[serde(default)]
    justification_required: bool,
    #[serde(default)]
    task: TaskRule,
    #[serde(default = "one")]
    concurrent_max: u32,
    #[serde(default)]
    emergency: bool,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalSpec {
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(with = "seconds", default = "day", rename = "window_seconds")]
    window: Duration,
}

impl Default for ApprovalSpec {
    fn default() -> Self {
        Self { steps: Vec::new(), window: day() }
    }
}

fn day() -> Duration {
    Duration::from_secs(86_400)
}

impl EntitlementSpec {
    /// What it means.
    ///
    /// # Errors
    /// A sentence naming what cannot be.
    pub fn resolve(self, name: &str) -> Result<Entitlement, String> {
        if self.actions.is_empty() || self.resources.is_empty() || self.eligible.is_empty() {
            return Err("`actions`, `resources` and `eligible` name at least one each".into());
        }
        let duration_max = duration(&self.duration_max)?;
        if duration_max.is_zero() || duration_max > DURATION_MAX {
            return Err("`duration_max` is from 1s to 24h".into());
        }
        if self.uses_max == Some(0) || self.concurrent_max == 0 {
            return Err("`uses_max` and `concurrent_max` are at least 1".into());
        }
        let names = self.eligible.iter().chain(self.approval.steps.iter().flat_map(|step| &step.approvers));
        for group in names {
            group_name(group)?;
        }
        if self.approval.steps.iter().any(|step| step.approvers.is_empty() || step.quorum == 0) {
            return Err("each step of `approval` has at least one group and a `quorum` of at least 1".into());
        }
        Ok(Entitlement {
            name: EntitlementName::new(name).map_err(|error| error.to_string())?,
            backend: self.backend,
            scope: Scope::new(self.actions, self.resources),
            eligible: self.eligible,
            duration_max,
            uses_max: self.uses_max,
            steps: self.approval.steps,
            window: self.approval.window,
            justification_required: self.justification_required,
            task: self.task,
            concurrent_max: self.concurrent_max,
            emergency: self.emergency,
        })
    }
}

/// Reads `90s`, `15m`, `4h` or `1d`.
///
/// # Errors
/// A sentence saying how it is written.
pub fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{}` is not a duration such as `90s`, `15m` or `4h`", text.escape_debug());
    let unit = text.chars().last().ok_or_else(refuse)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(refuse()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(refuse)
}

/// Groups are lower-case ASCII, so that no two look alike.
///
/// # Errors
/// A sentence saying what a group is called.
pub fn group_name(text: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(plain) {
        return Err(format!("group `{}`: use a-z, 0-9, `.`, `_` and `-`", text.escape_debug()));
    }
    Ok(())
}

/// What a policy is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Requests and approvals.
    Elevation,
    /// Calls, although a grant covers them; only `forbid`.
    Guardrail,
    /// Administration.
    Admin,
}

/// Whether a policy counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It counts.
    #[default]
    Enforce,
    /// It is evaluated and told, and does not count.
    Shadow,
}

/// Cedar text and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// What it is asked about.
    pub target: Target,
    /// Whether it counts.
    #[serde(default)]
    pub mode: Mode,
    /// The Cedar text.
    pub cedar: String,
}

/// A document's spec, read by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// Of a backend.
    Backend(Vec<(ActionName, Class)>),
    /// Of a principal.
    Principal(PrincipalSpec),
    /// Of an entitlement.
    Entitlement(Box<Entitlement>),
    /// Of a policy.
    Policy(PolicySpec),
}

impl Document {
    /// Reads the spec by its kind.
    ///
    /// # Errors
    /// A sentence naming the document and what is wrong with it.
    pub fn read(&self) -> Result<Spec, String> {
        let name = &self.metadata.name;
        let fail = |error: String| format!("{} `{}`: {error}", self.kind, name.escape_debug());
        if self.api_version != API_VERSION {
            return Err(fail(format!("write `apiVersion: {API_VERSION}`")));
        }
        EntitlementName::new(name).map_err(|error| fail(error.to_string()))?;
        let spec = self.spec.clone();
        let text = |error: serde_json::Error| fail(error.to_string());
        match self.kind {
            Kind::Backend => {
                BackendName::new(name).map_err(|error| fail(error.to_string()))?;
                let spec: BackendSpec = serde_json::from_value(spec).map_err(text)?;
                let mut actions = Vec::new();
                for action in spec.actions {
                    let name = ActionName::new(&action.name).map_err(|error| fail(error.to_string()))?;
                    actions.push((name, action.class));
                }
                Ok(Spec::Backend(actions))
            }
            Kind::Principal => {
                let spec: PrincipalSpec = serde_json::from_value(spec).map_err(text)?;
                spec.groups.iter().try_for_each(|group| group_name(group)).map_err(fail)?;
                let bare = spec.principal.strip_suffix('*').unwrap_or(&spec.principal);
                if bare.contains('*') || bare.is_empty() || !(bare.starts_with("spiffe://") || bare.contains('#')) {
                    return Err(fail(
                        "`principal` is `spiffe://…` or `issuer#subject`, with `*` only at its end".into(),
                    ));
                }
                Ok(Spec::Principal(spec))
            }
            Kind::Entitlement => {
                let spec: EntitlementSpec = serde_json::from_value(spec).map_err(text)?;
                Ok(Spec::Entitlement(Box::new(spec.resolve(name).map_err(fail)?)))
            }
            Kind::Policy => Ok(Spec::Policy(serde_json::from_value(spec).map_err(text)?)),
        }
    }
}

/// Reads YAML with several documents.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_yaml(text: &str) -> Result<Vec<Document>, Vec<String>> {
    serde_saphyr::from_multiple(text).map_err(|error| vec![error.to_string()])
}
