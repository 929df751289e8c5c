//! Step `resolve`: what a call does, by the backend's action map: an action and the resource it is done to.
//!
//! Rules are tried in order and the first that matches names the action; what no rule names is unmapped, and denied. A
//! rule that could never match, or two that match the same and say different things, are errors when the map is loaded. A
//! rule that depends on the body and cannot read it refuses.
//!
//! Deliberately absent: regular expressions, a rule that allows (that is a grant's business), and any default.

mod body;
mod compile;
mod range;
mod template;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use crate::action_map::{ActionMapDocument, Requires};
use crate::domain::action::ActionClass;
use crate::domain::id::ActionName;
use crate::domain::resource::Resource;
use crate::domain::yaml::{self, Size};
use crate::sidecar::canonical::Canonical;
use crate::sidecar::reason::Reason;

use body::BodyFields;
use compile::{Condition, Rule};
use template::Values;

/// A named operation of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionSpec {
    /// Its name.
    pub name: ActionName,
    /// How much it can change.
    pub class: ActionClass,
    /// Its place among the actions of its map.
    pub index: usize,
    /// Whether its answers are streams, which are not searched for the credential.
    pub streaming: bool,
    /// The protocol it upgrades to.
    pub upgrade: Option<String>,
}

/// What is wrong with one rule of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    /// Which rule, counted from 0; none when the whole map is wrong.
    pub rule: Option<usize>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "rules[{rule}]: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Everything that is wrong with a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct RuleErrors(pub Vec<RuleError>);

/// A backend's action map, ready to be used.
#[derive(Debug)]
pub struct ActionMap {
    actions: Vec<Arc<ActionSpec>>,
    rules: Vec<Rule>,
    requires: Requires,
    /// Whether every literal of every path is one that no folding could change.
    plain: bool,
}

/// A call that a rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What it does.
    pub action: Arc<ActionSpec>,
    /// What it does it to.
    pub resource: Resource,
}

/// What the head of a call tells.
#[derive(Debug)]
pub enum Match<'m> {
    /// Everything.
    Action(Resolved),
    /// The body must be read to know.
    NeedsBody(BodyRules<'m>),
    /// No rule names it.
    Unmapped,
}

/// The rules that a call's body decides between.
#[derive(Debug)]
pub struct BodyRules<'m> {
    map: &'m ActionMap,
    first: usize,
    bytes_max: usize,
}

/// Why a body that decides cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyRefused {
    /// It is encoded, or not JSON by its type.
    Unreadable,
    /// It is not the JSON it should be, or a field that decides is missing or not what it should be.
    Malformed,
}

impl BodyRefused {
    /// The reason as it is answered and counted.
    pub const fn as_reason(self) -> Reason {
        match self {
            Self::Unreadable => Reason::BodyUnreadable,
            Self::Malformed => Reason::Malformed,
        }
    }

    /// The name of the defect, from a closed list.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unreadable => "body_not_json",
            Self::Malformed => "body_malformed",
        }
    }
}

/// The text of a map that is shipped with the program.
pub fn builtin(name: &str) -> Option<&'static str> {
    match name {
        "rabbitmq" => Some(include_str!("../../../config/backends/rabbitmq.yaml")),
        "etcd" => Some(include_str!("../../../config/backends/etcd.yaml")),
        _ => None,
    }
}

/// The names of the maps that are shipped with the program.
pub const BUILTIN: &[&str] = &["etcd", "rabbitmq"];

impl ActionMap {
    /// Reads and compiles a map.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_yaml(text: &str) -> Result<Self, RuleErrors> {
        let document: ActionMapDocument = yaml::read(text, Size::Small)
            .map_err(|error| RuleErrors(vec![RuleError { rule: None, message: error.to_string() }]))?;
        Self::compile(&document)
    }

    /// Compiles a map.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn compile(document: &ActionMapDocument) -> Result<Self, RuleErrors> {
        let (actions, rules) = compile::compile(document)?;
        let plain = rules.iter().flat_map(|rule| &rule.path.pieces).all(|piece| match piece {
            template::Piece::Literal(text) => template::is_plain(text),
            template::Piece::One { .. } | template::Piece::Tail { .. } => true,
        });
        Ok(Self { actions, rules, requires: document.requires, plain })
    }

    /// The actions it can name.
    pub fn actions(&self) -> &[Arc<ActionSpec>] {
        &self.actions
    }

    /// What the backend's configuration must let through for the map to work.
    pub fn requires(&self) -> Requires {
        self.requires
    }

    /// What the call does, as far as its head tells.
    pub fn resolve(&self, call: &Canonical) -> Match<'_> {
        let segments: template::Path<'_> = call.segments().collect();
        if self.is_near_miss(&segments) {
            return Match::Unmapped;
        }
        for (place, rule) in self.rules.iter().enumerate() {
            let Some(values) = rule.matches(call, &segments) else { continue };
            if rule.reads_body() {
                let rules = self.rules[place..].iter().filter(|rule| rule.matches(call, &segments).is_some());
                let bytes_max = rules.map(|rule| rule.body_bytes_max()).max().unwrap_or(0);
                return Match::NeedsBody(BodyRules { map: self, first: place, bytes_max });
            }
            return match rule.resource(&values) {
                Some(resource) => Match::Action(Resolved { action: Arc::clone(&rule.action), resource }),
                None => Match::Unmapped,
            };
        }
        Match::Unmapped
    }

    /// Whether a segment looks like a literal of the map and is not. What a carve-out names must not be reached by
    /// another spelling of its name.
    fn is_near_miss(&self, segments: &template::Path<'_>) -> bool {
        if self.plain && segments.iter().all(|segment| template::is_plain(segment)) {
            return false;
        }
        self.rules.iter().any(|rule| {
            for (piece, segment) in rule.path.pieces.iter().zip(segments) {
                match piece {
                    template::Piece::Literal(text) if text == segment => {}
                    template::Piece::Literal(text) => return template::looks_like(segment, text),
                    template::Piece::One { .. } => {}
                    template::Piece::Tail { .. } => return false,
                }
            }
            false
        })
    }
}

impl BodyRules<'_> {
    /// Most bytes of a body that are read to decide.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What the call does, now that its body is read; none if no rule names it.
    ///
    /// # Errors
    /// [`BodyRefused`] when a rule that could match cannot read the body.
    pub fn resolve(&self, call: &Canonical, body: &[u8]) -> Result<Option<Resolved>, BodyRefused> {
        let json = body::parse(call.headers(), body)?;
        let segments: template::Path<'_> = call.segments().collect();
        for rule in &self.map.rules[self.first..] {
            let Some(mut values) = rule.matches(call, &segments) else { continue };
            if !rule.body_matches(&json) {
                continue;
            }
            rule.read_body(&json, &mut values)?;
            let resource = rule.resource(&values).ok_or(BodyRefused::Malformed)?;
            return Ok(Some(Resolved { action: Arc::clone(&rule.action), resource }));
        }
        Ok(None)
    }
}

/// Resolves arbitrary bytes against a map, for fuzzing: the first line is the target, the rest the body.
pub fn fuzz(map: &ActionMap, bytes: &[u8]) {
    let split = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let Ok(target) = std::str::from_utf8(&bytes[..split]) else { return };
    let body = bytes.get(split + 1..).unwrap_or_default();
    let Some(call) = crate::sidecar::canonical::for_fuzzing(target) else { return };
    if let Match::NeedsBody(rules) = map.resolve(&call) {
        let _ = rules.resolve(&call, body);
    }
}

impl Rule {
    fn matches<'c>(&'c self, call: &'c Canonical, segments: &template::Path<'c>) -> Option<Values<'c>> {
        if !self.methods.has(call.method()) || self.action.upgrade.as_deref() != call.upgrade() {
            return None;
        }
        if self.grpc && !call.is_grpc() {
            return None;
        }
        let values = self.path.matches(segments)?;
        let good = self.conditions.iter().all(|condition| match condition {
            Condition::Header(name, wanted) => wanted.holds_for_header(call.headers(), name),
            Condition::Query(name, wanted) => wanted.holds_for_query(call, name),
        });
        good.then_some(values)
    }

    fn reads_body(&self) -> bool {
        self.body.is_some()
    }

    fn body_bytes_max(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.bytes_max)
    }

    fn body_matches(&self, json: &serde_json::Value) -> bool {
        self.body.as_ref().is_none_or(|body| body.matches(json))
    }

    fn read_body<'c>(&'c self, json: &'c serde_json::Value, values: &mut Values<'c>) -> Result<(), BodyRefused> {
        self.body.as_ref().map_or(Ok(()), |body: &BodyFields| body.read(json, values))
    }

    fn resource(&self, values: &Values<'_>) -> Option<Resource> {
        match &self.range {
            None => Some(self.resource.fill(values)),
            Some(range) => range.resource(&self.resource, values),
        }
    }
}
