//! What an administrator declares: documents with an envelope, each of one kind.
//!
//! They come as JSON through the API or as YAML from files ([`read_yaml`]), and mean the same. Each is read strictly: an
//! unknown field, a value out of its range or a name that could be mistaken for another refuses it, with the document and
//! the field in front. What one document says of another is the catalogue's to check.
//!
//! Deliberately absent: secrets, includes and substitution of any kind, and defaults that permit something.

mod backend;
mod entitlement;
mod policy;
mod principal;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::action_map::ActionMapDocument;
use crate::domain::entitlement::Entitlement;
use crate::domain::id::{ActionName, BackendName, EntitlementName};

pub use crate::domain::action::ActionClass as Class;
pub use crate::domain::principal::{PrincipalKind, group_name};
pub use crate::guardrail::Mode;
pub use backend::{Actions, BackendSpec, NamedAction};
pub use policy::{PolicySpec, Target};
pub use principal::PrincipalSpec;
pub use yaml::{YamlError, parse_yaml, read_yaml};

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// How the calls of a backend become actions.
    ActionMap,
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
    pub const ALL: [Self; 5] = [Self::ActionMap, Self::Backend, Self::Principal, Self::Entitlement, Self::Policy];

    /// The kind as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ActionMap => "ActionMap",
            Self::Backend => "Backend",
            Self::Principal => "Principal",
            Self::Entitlement => "Entitlement",
            Self::Policy => "Policy",
        }
    }

    /// The kind as the API's paths have it.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::ActionMap => "action-maps",
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

/// Most labels of a document, and most bytes of a label's name and value.
const LABELS_MAX: (usize, usize) = (64, 256);

/// A document's spec, read by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// Of an action map: the actions that it names, and what it says.
    ActionMap(Vec<(ActionName, Class)>, ActionMapDocument),
    /// Of a backend: its actions, and the sidecars that may follow it.
    Backend(Actions, Vec<String>),
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
    /// A sentence naming the document, the field and what is wrong with it.
    pub fn read(&self) -> Result<Spec, String> {
        self.try_read().map_err(|error| format!("{} `{}`: {error}", self.kind, self.metadata.name.escape_debug()))
    }

    fn try_read(&self) -> Result<Spec, String> {
        let name = &self.metadata.name;
        if self.api_version != API_VERSION {
            return Err(format!("write `apiVersion: {API_VERSION}`"));
        }
        EntitlementName::new(name).map_err(|error| format!("metadata.name: {error}"))?;
        check_labels(&self.metadata.labels)?;
        Ok(match self.kind {
            Kind::ActionMap => {
                let map: ActionMapDocument = self.spec()?;
                Spec::ActionMap(backend::named_by(&map)?, map)
            }
            Kind::Backend => {
                BackendName::new(name).map_err(|error| format!("metadata.name: {error}"))?;
                let (actions, sidecars) = self.spec::<BackendSpec>()?.resolve()?;
                Spec::Backend(actions, sidecars)
            }
            Kind::Principal => Spec::Principal(self.spec::<PrincipalSpec>()?.check()?),
            Kind::Entitlement => {
                let spec: entitlement::EntitlementSpec = self.spec()?;
                Spec::Entitlement(Box::new(spec.resolve(name)?))
            }
            Kind::Policy => Spec::Policy(self.spec::<PolicySpec>()?.check()?),
        })
    }

    fn spec<T: DeserializeOwned>(&self) -> Result<T, String> {
        // A list could stand for a struct, by the order of its fields.
        if !self.spec.is_object() {
            return Err("spec: fields and values are expected here".into());
        }
        serde_path_to_error::deserialize(self.spec.clone()).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { String::new() } else { format!(".{path}") };
            format!("spec{path}: {}", error.inner())
        })
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    let (most, bytes) = LABELS_MAX;
    let plain = |text: &String| text.len() <= bytes && !text.chars().any(char::is_control);
    if labels.len() > most || !labels.iter().all(|(name, value)| plain(name) && plain(value)) {
        return Err(format!("metadata.labels: at most {most}, each of at most {bytes} bytes, in one line"));
    }
    Ok(())
}

/// Reads `90s`, `15m`, `4h` or `1d`.
///
/// # Errors
/// A sentence saying how it is written.
pub fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{}` is not a duration such as `90s`, `15m` or `4h`", short(text));
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

fn duration_text<'de, D: Deserializer<'de>>(reader: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(reader)?;
    duration(&text).map_err(serde::de::Error::custom)
}

/// A text that somebody sent, fit to be shown.
fn short(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}
