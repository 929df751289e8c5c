//! An action map as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A whole map.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionMapDocument {
    /// What the backend's configuration must let through for the map to work.
    #[serde(default)]
    pub requires: Requires,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<RuleDocument>,
}

/// Relaxations of the canonical form that a map needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requires {
    /// `%2F` in a segment is data.
    pub encoded_slash: bool,
    /// `;` in a segment is data.
    pub path_params: bool,
}

/// One rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDocument {
    /// The action it names.
    pub action: String,
    /// How much the action can change.
    pub class: ClassDocument,
    /// The method, or several; GET covers HEAD. Not with `grpc`.
    #[serde(default)]
    pub method: Option<Several>,
    /// The path template, or several that mean the same. Not with `grpc`.
    #[serde(default)]
    pub path: Option<Several>,
    /// `package.Service/Method`, instead of `method` and `path`; `*` for every method of the service.
    #[serde(default)]
    pub grpc: Option<String>,
    /// Conditions on header fields.
    #[serde(default)]
    pub headers: BTreeMap<String, WantedDocument>,
    /// Conditions on query parameters.
    #[serde(default)]
    pub query: BTreeMap<String, WantedDocument>,
    /// The protocol the call upgrades to: `websocket`.
    #[serde(default)]
    pub upgrade: Option<String>,
    /// Whether the answer is a stream.
    #[serde(default)]
    pub streaming: bool,
    /// Fields of a JSON body that the rule reads, by the name they have in `resource`.
    #[serde(default)]
    pub body: BTreeMap<String, BodyFieldDocument>,
    /// Most bytes of a body that is read.
    #[serde(default)]
    pub body_bytes_max: Option<usize>,
    /// What it is done to: literals and `{name}` of the path or the body.
    pub resource: String,
    /// The call reaches from one key to another, as in etcd.
    #[serde(default)]
    pub range: Option<RangeDocument>,
}

/// One text or several.
#[derive(Debug, Clone, Deserialize)]
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

/// The class of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassDocument {
    /// Looks.
    Read,
    /// Changes data.
    Write,
    /// Changes who may do what, or the service itself.
    Admin,
}

/// What a header field or a query parameter must be.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WantedDocument {
    /// Every occurrence is this.
    Equals(String),
    /// There is at least one.
    Present(bool),
}

/// One field of a JSON body.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyFieldDocument {
    /// Where it is (RFC 6901).
    pub pointer: String,
    /// Other places it may be instead; in two places at once it is refused.
    #[serde(default)]
    pub or: Vec<String>,
    /// How it is encoded.
    #[serde(default)]
    pub encoding: EncodingDocument,
    /// What it is when it is missing; without this it must be there.
    #[serde(default)]
    pub default: Option<String>,
    /// The rule is meant only for calls where the field is exactly this.
    #[serde(default)]
    pub equals: Option<String>,
    /// The rule is meant only for calls where the field is (or is not) there.
    #[serde(default)]
    pub present: Option<bool>,
}

/// How a field is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodingDocument {
    /// As text.
    #[default]
    None,
    /// As base64 of bytes (RFC 4648 section 4).
    Base64,
}

/// A half-open range of keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeDocument {
    /// The name of the first key.
    pub from: String,
    /// The name of the end: empty for the one key, a zero byte for everything after it.
    pub to: String,
}
