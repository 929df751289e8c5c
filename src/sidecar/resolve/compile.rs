//! From an action map as it is written to one that is ready, or to everything that is wrong with it.

use std::sync::Arc;

use http::Method;
use http::header::{HeaderMap, HeaderName};

use super::body::{BodyField, BodyFields};
use super::range::KeyRange;
use super::template::{PathTemplate, Piece, ResourceTemplate};
use super::{ActionSpec, RuleError, RuleErrors};
use crate::action_map::document::{ActionMapDocument, BodyFieldDocument, RULES_MAX, RuleDocument, WantedDocument};
use crate::domain::id::ActionName;
use crate::sidecar::canonical::Canonical;

/// Most bytes of a body that is read where a rule does not say.
const BODY_BYTES_DEFAULT: usize = 64 * 1024;

/// Most bytes of a body that a rule may have read.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Which methods a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Methods {
    Any,
    Of(Vec<Method>),
}

impl Methods {
    pub(super) fn has(&self, method: &Method) -> bool {
        match self {
            Self::Any => true,
            // HEAD is GET without the body: the same rule decides both.
            Self::Of(all) => all.contains(method) || (*method == Method::HEAD && all.contains(&Method::GET)),
        }
    }

    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Of(ours), Self::Of(_)) => ours.iter().any(|method| other.has(method)),
        }
    }

    fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Any) => true,
            (Self::Any, Self::Of(_)) => false,
            (Self::Of(ours), Self::Of(_)) => ours.iter().all(|method| other.has(method)),
        }
    }
}

/// What a field or a parameter must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Equals(String),
    Present,
    Absent,
}

impl Wanted {
    /// Every occurrence, and every member of a list, must be what is wanted; one that cannot be read is not.
    pub(super) fn holds_for_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let mut values = headers.get_all(name).iter().peekable();
        match self {
            Self::Present => values.peek().is_some(),
            Self::Absent => values.peek().is_none(),
            Self::Equals(wanted) => {
                values.peek().is_some()
                    && values.all(|value| {
                        value.to_str().is_ok_and(|text| text.split(',').all(|member| member.trim() == wanted))
                    })
            }
        }
    }

    pub(super) fn holds_for_query(&self, call: &Canonical, name: &str) -> bool {
        let mut values = call.query().filter(|(given, _)| given == name).peekable();
        match self {
            Self::Present => values.peek().is_some(),
            Self::Absent => values.peek().is_none(),
            Self::Equals(wanted) => values.peek().is_some() && values.all(|(_, value)| value == *wanted),
        }
    }
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Header(HeaderName, Wanted),
    Query(String, Wanted),
}

/// A rule that is ready.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) action: Arc<ActionSpec>,
    pub(super) methods: Methods,
    pub(super) path: PathTemplate,
    pub(super) grpc: bool,
    pub(super) conditions: Vec<Condition>,
    pub(super) body: Option<BodyFields>,
    pub(super) resource: ResourceTemplate,
    pub(super) range: Option<KeyRange>,
    /// Its place in the document.
    written: usize,
}

pub(super) fn compile(document: &ActionMapDocument) -> Result<(Vec<Arc<ActionSpec>>, Vec<Rule>), RuleErrors> {
    let mut errors = Vec::new();
    let mut actions: Vec<Arc<ActionSpec>> = Vec::new();
    let mut rules: Vec<Rule> = Vec::new();
    if document.rules.len() > RULES_MAX {
        let message = format!("{} rules, and a map has at most {RULES_MAX}", document.rules.len());
        return Err(RuleErrors(vec![RuleError { rule: None, message }]));
    }
    if document.rules.is_empty() {
        errors.push(RuleError { rule: None, message: "a map without rules denies everything; write some".to_owned() });
    }
    for (place, written) in document.rules.iter().enumerate() {
        let mut fail = |message: String| errors.push(RuleError { rule: Some(place), message });
        let action = match action(written, &mut actions) {
            Ok(action) => action,
            Err(message) => {
                fail(message);
                continue;
            }
        };
        match compile_rule(written, &action, place) {
            Ok(new) => rules.extend(new),
            Err(message) => fail(message),
        }
    }
    for (place, rule) in rules.iter().enumerate() {
        if let Some(earlier) = rules[..place].iter().find(|earlier| earlier.hides(rule)) {
            let message = format!(
                "it never matches, because rules[{}] (`{}`) matches all it would; put the narrower one first, or drop one",
                earlier.written, earlier.action.name
            );
            errors.push(RuleError { rule: Some(rule.written), message });
        } else if let Some(earlier) = rules[..place].iter().find(|earlier| earlier.crosses(rule, &rules[..place])) {
            let message = format!(
                "it and rules[{}] (`{}`) match some of the same calls, and neither is the narrower one; put a rule for what both match before them",
                earlier.written, earlier.action.name
            );
            errors.push(RuleError { rule: Some(rule.written), message });
        }
    }
    if errors.is_empty() { Ok((actions, rules)) } else { Err(RuleErrors(errors)) }
}

/// The action of a rule: known already, or new. Rules that name one action agree on what it is.
fn action(written: &RuleDocument, actions: &mut Vec<Arc<ActionSpec>>) -> Result<Arc<ActionSpec>, String> {
    let name = ActionName::new(&written.action).map_err(|error| error.to_string())?;
    if written.upgrade.as_deref().is_some_and(|to| to != "websocket") {
        return Err("`upgrade` can only be `websocket`".to_owned());
    }
    let spec = ActionSpec {
        name,
        class: written.class,
        index: actions.len(),
        streaming: written.streaming,
        upgrade: written.upgrade.clone(),
    };
    match actions.iter().find(|known| known.name == spec.name) {
        Some(known) if (ActionSpec { index: known.index, ..spec.clone() }) == **known => Ok(Arc::clone(known)),
        Some(_) => {
            Err(format!("action `{}` has another class, `streaming` or `upgrade` in an earlier rule", spec.name))
        }
        None => {
            let spec = Arc::new(spec);
            actions.push(Arc::clone(&spec));
            Ok(spec)
        }
    }
}

fn compile_rule(written: &RuleDocument, action: &Arc<ActionSpec>, place: usize) -> Result<Vec<Rule>, String> {
    let (methods, paths, grpc) = where_it_applies(written)?;
    let conditions = conditions(written)?;
    let body = body(written)?;
    let mut rules = Vec::new();
    for path in paths {
        let mut known: Vec<(&str, bool)> = path.names().collect();
        for field in body.iter().flat_map(|body| &body.fields) {
            known.push((&*field.name, false));
        }
        for (at, (name, _)) in known.iter().enumerate() {
            if known[..at].iter().any(|(other, _)| other == name) {
                return Err(format!("`{name}` is given a value twice"));
            }
        }
        let resource = ResourceTemplate::read(&written.resource, &known)?;
        let range = match &written.range {
            None => None,
            Some(range) => {
                let find = |name: &str| {
                    let found = known.iter().find(|(known, _)| *known == name).map(|(known, _)| *known);
                    found.ok_or_else(|| format!("range: nothing gives `{name}` a value"))
                };
                let range = KeyRange { from: find(&range.from)?.into(), to: find(&range.to)?.into() };
                if !resource.ends_with_path(&range.from) {
                    return Err(format!("range: `resource` must end with `{{{}...}}`", range.from));
                }
                Some(range)
            }
        };
        rules.push(Rule {
            action: Arc::clone(action),
            methods: methods.clone(),
            path,
            grpc,
            conditions: conditions.clone(),
            body: body.clone(),
            resource,
            range,
            written: place,
        });
    }
    Ok(rules)
}

fn where_it_applies(written: &RuleDocument) -> Result<(Methods, Vec<PathTemplate>, bool), String> {
    match (&written.grpc, &written.method, &written.path) {
        (Some(grpc), None, None) => {
            let (service, method) = grpc.split_once('/').ok_or("`grpc` is written `package.Service/Method`")?;
            let path = if method == "*" { format!("/{service}/{{method}}") } else { format!("/{service}/{method}") };
            Ok((Methods::Of(vec![Method::POST]), vec![PathTemplate::read(&path)?], true))
        }
        (None, Some(methods), Some(paths)) => {
            let paths = paths.all().iter().map(|path| PathTemplate::read(path)).collect::<Result<Vec<_>, _>>()?;
            if paths.is_empty() {
                return Err("`path` is empty".to_owned());
            }
            let methods = match methods.all() {
                [] => return Err("`method` is empty".to_owned()),
                [any] if any == "*" => Methods::Any,
                some => Methods::Of(some.iter().map(|name| method(name)).collect::<Result<_, _>>()?),
            };
            Ok((methods, paths, false))
        }
        _ => Err("write `method` and `path`, or `grpc`, and not both".to_owned()),
    }
}

fn method(name: &str) -> Result<Method, String> {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let good = known.contains(&name) || name.bytes().all(|b| b.is_ascii_uppercase());
    if matches!(name, "TRACE" | "TRACK" | "CONNECT") {
        return Err(format!("`{name}` is never forwarded"));
    }
    Method::from_bytes(name.as_bytes())
        .ok()
        .filter(|_| good && !name.is_empty())
        .ok_or_else(|| format!("`{name}` is no method; methods are written in capitals"))
}

fn conditions(written: &RuleDocument) -> Result<Vec<Condition>, String> {
    let wanted = |document: &WantedDocument| match document {
        WantedDocument::Equals(text) => Wanted::Equals(text.clone()),
        WantedDocument::Present(true) => Wanted::Present,
        WantedDocument::Present(false) => Wanted::Absent,
    };
    let mut all = Vec::new();
    for (name, document) in &written.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is no header field"))?;
        all.push(Condition::Header(name, wanted(document)));
    }
    for (name, document) in &written.query {
        all.push(Condition::Query(name.clone(), wanted(document)));
    }
    Ok(all)
}

fn body(written: &RuleDocument) -> Result<Option<BodyFields>, String> {
    if written.body.is_empty() {
        return match written.body_bytes_max {
            None => Ok(None),
            Some(_) => Err("`body_bytes_max` is of no use without `body`".to_owned()),
        };
    }
    let bytes_max = written.body_bytes_max.unwrap_or(BODY_BYTES_DEFAULT);
    if bytes_max == 0 || bytes_max > BODY_BYTES_MAX {
        return Err(format!("`body_bytes_max` is from 1 to {BODY_BYTES_MAX}"));
    }
    let fields = written.body.iter().map(|(name, field)| body_field(name, field)).collect::<Result<_, _>>()?;
    Ok(Some(BodyFields { fields, bytes_max }))
}

fn body_field(name: &str, field: &BodyFieldDocument) -> Result<BodyField, String> {
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !good {
        return Err(format!("body `{name}` is no name; use a-z, 0-9 and `_`"));
    }
    let pointers: Vec<String> = std::iter::once(&field.pointer).chain(&field.or).cloned().collect();
    if let Some(bad) = pointers.iter().find(|pointer| !pointer.starts_with('/')) {
        return Err(format!("body `{name}`: pointer `{bad}` must begin with `/`"));
    }
    Ok(BodyField {
        name: name.into(),
        pointers,
        encoding: field.encoding,
        default: field.default.clone(),
        equals: field.equals.clone(),
        present: field.present,
    })
}

impl Rule {
    /// Whether some calls match this rule and a later one of another action, neither is the narrower, and no rule before
    /// the later one settles what both match.
    fn crosses(&self, later: &Self, before: &[Self]) -> bool {
        let plain = |rule: &Self| rule.conditions.is_empty() && !rule.decides_by_body();
        let comparable = self.action.name != later.action.name
            && self.action.upgrade == later.action.upgrade
            && self.grpc == later.grpc
            && self.methods.meets(&later.methods)
            && plain(self)
            && plain(later);
        if !comparable || self.path.is_within(&later.path) || later.path.is_within(&self.path) {
            return false;
        }
        // The one that names a segment where the other takes any, reading from the left, is the narrower: a carve-out
        // stands before what it is carved out of.
        let names_first = self.path.pieces.iter().zip(&later.path.pieces).find_map(|(ours, theirs)| {
            let literal = |piece: &Piece| matches!(piece, Piece::Literal(_));
            (literal(ours) != literal(theirs)).then(|| literal(ours))
        });
        if names_first == Some(true) {
            return false;
        }
        let Some(both) = self.path.meet(&later.path) else { return false };
        let settles = |rule: &&Self| {
            rule.written != self.written && plain(rule) && both.is_within(&rule.path) && rule.path.is_within(&self.path)
        };
        !before.iter().any(|rule| settles(&rule))
    }

    /// Whether it is meant only for some bodies.
    fn decides_by_body(&self) -> bool {
        self.body.iter().flat_map(|body| &body.fields).any(|f| f.equals.is_some() || f.present.is_some())
    }

    /// Whether a later rule can never match because this one matches all that it would.
    fn hides(&self, later: &Self) -> bool {
        let same_upgrade = self.action.upgrade == later.action.upgrade;
        let unconditional = self.conditions.is_empty() || self.conditions == later.conditions;
        same_upgrade
            && unconditional
            && !self.decides_by_body()
            && (!self.grpc || later.grpc)
            && later.methods.is_within(&self.methods)
            && later.path.is_within(&self.path)
            && !matches!(later.path.pieces.last(), Some(Piece::Tail { .. }) if self.path.pieces.is_empty())
    }
}
