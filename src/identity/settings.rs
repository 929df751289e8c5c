//! What identities are verified by.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use serde_json::Value;

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Trust domains whose certificates are accepted.
    pub spiffe: Vec<TrustDomain>,
    /// Issuers whose tokens are accepted.
    pub issuers: Vec<IssuerSettings>,
    /// How many verified tokens are remembered.
    pub token_cache_entries: usize,
    /// How many failed signatures a second are looked at from one source; past it its unknown tokens get 503.
    pub failures_per_second_max: u32,
}

/// A SPIFFE trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain {
    /// Its name.
    pub name: String,
    /// Who signs its certificates, PEM.
    pub bundle: PathBuf,
}

/// How tokens of an issuer are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's (RFC 7518, RFC 8037)")]
pub enum TokenAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl TokenAlgorithm {
    /// The algorithm as a token writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Where an issuer's keys are.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A JWK set in a file; read again when it changes.
    File(PathBuf),
    /// A JWK set behind a URL.
    Url(UrlKeys),
}

/// A JWK set behind a URL.
#[derive(Debug, Clone)]
pub struct UrlKeys {
    /// The URL.
    pub url: Uri,
    /// Who signs the server's certificate, PEM; needed for https.
    pub ca: Option<PathBuf>,
    /// How often it is fetched.
    pub refresh: Duration,
    /// How often at most, when tokens name keys that are not known.
    pub refresh_min: Duration,
    /// For how long the last good keys serve.
    pub stale_max: Duration,
    /// Most bytes of an answer.
    pub bytes_max: usize,
}

/// What is known of an issuer beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Nothing.
    None,
    /// A Kubernetes API server: service-account tokens.
    Kubernetes,
}

/// One issuer of tokens.
#[derive(Debug, Clone)]
pub struct IssuerSettings {
    /// Its name here.
    pub name: String,
    /// `iss`, to the letter.
    pub issuer: String,
    /// `aud`: one of these.
    pub audience: Vec<String>,
    /// How its tokens are signed; no other way is accepted.
    pub algorithm: TokenAlgorithm,
    /// Where its keys are.
    pub keys: KeySource,
    /// What is known of it beforehand.
    pub preset: Preset,
    /// What `typ` must be; without it, any type of an access token.
    pub typ: Option<String>,
    /// How far clocks may differ. Grants have no such leeway.
    pub leeway: Duration,
    /// Longest life of a token.
    pub lifetime_max: Duration,
    /// Attributes of the principal, by the claim (RFC 6901) each is taken from.
    pub attributes: BTreeMap<Arc<str>, String>,
    /// The task a token is for.
    pub task: Option<TaskTemplate>,
    /// Claims that must be what they are here.
    pub required_claims: BTreeMap<String, Value>,
    /// Whether a token (by `jti`) is good for one call only.
    pub single_use: bool,
    /// Our own client there, which people log in with: an ID token for it and nobody else is good, too.
    pub own_client: Option<String>,
}

/// How a task is named by claims: `github:{/repository}:run:{/run_id}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTemplate(Vec<TaskPart>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum TaskPart {
    Literal(String),
    Claim(String),
}

impl TaskTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            if open > 0 {
                parts.push(TaskPart::Literal(rest[..open].to_owned()));
            }
            let close = rest[open..].find('}').ok_or_else(|| format!("task `{text}`: a `{{` is not closed"))? + open;
            let pointer = &rest[open + 1..close];
            if !pointer.starts_with('/') {
                return Err(format!("task `{text}`: write a claim as `{{/claim}}`"));
            }
            parts.push(TaskPart::Claim(pointer.to_owned()));
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(TaskPart::Literal(rest.to_owned()));
        }
        if parts.is_empty() {
            return Err("task is empty".to_owned());
        }
        Ok(Self(parts))
    }

    /// The text for these claims; none where one is missing.
    pub(super) fn fill(&self, claims: &Value) -> Option<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                TaskPart::Literal(literal) => text.push_str(literal),
                TaskPart::Claim(pointer) => text.push_str(&claim_text(claims, pointer)?),
            }
        }
        Some(text)
    }
}

/// A claim that is a text or a number, as text.
pub(super) fn claim_text(claims: &Value, pointer: &str) -> Option<String> {
    match claims.pointer(pointer)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A file that identities cannot be verified by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct SettingsError {
    path: String,
    reason: String,
}

impl SettingsError {
    pub(super) fn new(path: &std::path::Path, reason: impl ToString) -> Self {
        Self { path: path.display().to_string(), reason: reason.to_string() }
    }
}
