//! An action map as it is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::action::ActionClass;

/// Most rules of a map: each is compared with all others when it is compiled.
pub const RULES_MAX: usize = 2_000;

/// Largest map, in bytes of JSON: it travels in one frame.
pub const MAP_BYTES_MAX: usize = 1 << 20;

/// A whole map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionMapDocument {
    /// What the backend's configuration must let through for the map to work.
    #[serde(default, skip_serializing_if = "Requires::is_nothing")]
    pub requires: Requires,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<RuleDocument>,
}

/// Relaxations of the canonical form that a map needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requires {
    /// `%2F` in a segment is data.
    pub encoded_slash: bool,
    /// `;` in a segment is data.
    pub path_params: bool,
}

impl Requires {
    /// What is needed and not let through, as it is called in the sidecar's settings.
    pub fn lacking(self, encoded_slash_kept: bool, path_params_kept: bool) -> impl Iterator<Item = &'static str> {
        let slash = (self.encoded_slash && !encoded_slash_kept).then_some("encoded_slash");
        let params = (self.path_params && !path_params_kept).then_some("path_params");
        slash.into_iter().chain(params)
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDocument {
    /// The action it names.
    pub action: String,
    /// How much the action can change.
    pub class: ActionClass,
    /// The method, or several; GET covers HEAD. Not with `grpc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Several>,
    /// The path template, or several that mean the same. Not with `grpc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Several>,
    /// `package.Service/Method`, instead of `method` and `path`; `*` for every method of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Conditions on header fields.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, WantedDocument>,
    /// Conditions on query parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, WantedDocument>,
    /// The protocol the call upgrades to: `websocket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<String>,
    /// Whether the answer is a stream.
    #[serde(default)]
    pub streaming: bool,
    /// Fields of a JSON body that the rule reads, by the name they have in `resource`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub body: BTreeMap<String, BodyFieldDocument>,
    /// Most bytes of a body that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_bytes_max: Option<usize>,
    /// What it is done to: literals and `{name}` of the path or the body.
    pub resource: String,
    /// The call reaches from one key to another, as in etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<RangeDocument>,
}

/// One text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Several {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Several {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// What a header field or a query parameter must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WantedDocument {
    /// Every occurrence is this.
    Equals(String),
    /// There is at least one.
    Present(bool),
}

/// One field of a JSON body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyFieldDocument {
    /// Where it is (RFC 6901).
    pub pointer: String,
    /// Other places it may be instead; in two places at once it is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub or: Vec<String>,
    /// How it is encoded.
    #[serde(default)]
    pub encoding: EncodingDocument,
    /// What it is when it is missing; without this it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// The rule is meant only for calls where the field is exactly this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
    /// The rule is meant only for calls where the field is (or is not) there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// How a field is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodingDocument {
    /// As text.
    #[default]
    None,
    /// As base64 of bytes (RFC 4648 section 4).
    Base64,
}

/// A half-open range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeDocument {
    /// The name of the first key.
    pub from: String,
    /// The name of the end: empty for the one key, a zero byte for everything after it.
    pub to: String,
}
