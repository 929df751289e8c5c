//! The shape of a grants file, and its way into the domain.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::domain::action::{ActionPattern, Scope};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, Borrowed, GrantId, LockId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::domain::time::{Timestamp, Window};
use crate::domain::view::{Snapshot, Stated, StatedGrants};
use crate::domain::yaml::{self, Size};

/// Why a grants file is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct DocumentError {
    place: String,
    reason: String,
}

impl DocumentError {
    fn new(place: impl Into<String>, reason: impl ToString) -> Self {
        Self { place: place.into(), reason: reason.to_string() }
    }
}

/// How the file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One YAML document.
    Yaml,
    /// One JSON object a line; quicker to read, for very many grants.
    JsonLines,
}

impl Format {
    /// By the ending of the file's name: `.jsonl` and `.ndjson` are lines, everything else is YAML.
    pub fn of(path: &std::path::Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl" | "ndjson") => Self::JsonLines,
            _ => Self::Yaml,
        }
    }
}

/// A text as it stands in the file, copied only where it has an escape.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDocument<'a> {
    revision: Option<u64>,
    #[serde(default, borrow)]
    grants: Option<Vec<RawGrant<'a>>>,
    #[serde(default)]
    locks: Option<Vec<RawLock>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum RawLine<'a> {
    Revision(u64),
    Grant(#[serde(borrow)] RawGrant<'a>),
    Lock(RawLock),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    principal: Text<'a>,
    #[serde(borrow)]
    backend: Text<'a>,
    #[serde(borrow)]
    actions: Vec<Text<'a>>,
    #[serde(borrow)]
    resources: Vec<Text<'a>>,
    #[serde(borrow)]
    not_before: Option<Text<'a>>,
    #[serde(borrow)]
    expires_at: Text<'a>,
    uses_max: Option<u32>,
    #[serde(borrow)]
    task: Option<Text<'a>>,
    #[serde(borrow)]
    arguments: Option<Text<'a>>,
    #[serde(default)]
    state: RawState,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawState {
    #[default]
    Active,
    Revoked,
    Released,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLock {
    id: String,
    principal: Option<String>,
    backend: Option<String>,
    action: Option<String>,
    resource: Option<String>,
    grant: Option<String>,
    task: Option<String>,
    #[serde(default)]
    message: Option<String>,
    expires_at: Option<String>,
}

/// Reads a whole file's content.
///
/// # Errors
/// [`DocumentError`] naming the first place that is wrong; nothing of the file is used then.
pub fn read(format: Format, content: &[u8]) -> Result<Snapshot, DocumentError> {
    match format {
        Format::Yaml => read_yaml(content),
        Format::JsonLines => read_lines(content),
    }
}

fn read_yaml(content: &[u8]) -> Result<Snapshot, DocumentError> {
    let text = std::str::from_utf8(content).map_err(|_| DocumentError::new("the file", "it is not UTF-8"))?;
    let document: Option<RawDocument<'_>> =
        yaml::read(text, Size::Large).map_err(|error| DocumentError::new("the file", error))?;
    let Some(document) = document else {
        return Err(DocumentError::new("the file", "it is empty; write `grants: []` where nothing is granted"));
    };
    let mut snapshot = Snapshot { revision: Revision(document.revision.unwrap_or(0)), ..Snapshot::default() };
    let mut shared = Shared::default();
    for (place, raw) in document.grants.unwrap_or_default().into_iter().enumerate() {
        let id = raw.id.0.clone();
        let read = shared.read(raw, &mut snapshot.grants);
        read.map_err(|e| DocumentError::new(format!("grants[{place}] `{id}`"), e))?;
    }
    for (place, raw) in document.locks.unwrap_or_default().into_iter().enumerate() {
        let id = raw.id.clone();
        snapshot.locks.push(lock(raw).map_err(|e| DocumentError::new(format!("locks[{place}] `{id}`"), e))?);
    }
    Ok(snapshot)
}

/// From this size on a file of lines is read by several threads.
const PART_BYTES_MIN: usize = 1 << 20;

fn read_lines(content: &[u8]) -> Result<Snapshot, DocumentError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let parts = parts(content, (content.len() / threads).max(PART_BYTES_MIN));
    let read: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = parts.iter().map(|part| scope.spawn(|| read_part(part))).collect();
        started.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let mut snapshot = Snapshot::default();
    let mut lines = 0;
    for (part, read) in parts.iter().zip(read) {
        let Ok(read) = read else { return Err(DocumentError::new("the file", "it could not be read to its end")) };
        let mut read = read.map_err(|(line, error)| DocumentError::new(format!("line {}", lines + line + 1), error))?;
        snapshot.revision = read.revision.unwrap_or(snapshot.revision);
        snapshot.grants.append(read.grants);
        snapshot.locks.append(&mut read.locks);
        lines += memchr::memchr_iter(b'\n', part).count();
    }
    Ok(snapshot)
}

/// Pieces of about that size, cut where lines end.
fn parts(mut content: &[u8], size: usize) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while content.len() > size {
        let end = memchr::memchr(b'\n', &content[size..]).map_or(content.len(), |end| size + end + 1);
        let (part, rest) = content.split_at(end);
        parts.push(part);
        content = rest;
    }
    parts.push(content);
    parts
}

/// What a piece of a file of lines says.
#[derive(Debug, Default)]
struct Part {
    revision: Option<Revision>,
    grants: StatedGrants,
    locks: Vec<Lock>,
}

/// Reads a piece; on error also says in which of its lines.
fn read_part(content: &[u8]) -> Result<Part, (usize, String)> {
    let mut part = Part::default();
    let mut shared = Shared::default();
    for (place, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let at = |error: &dyn ToString| (place, error.to_string());
        let line = std::str::from_utf8(line).map_err(|_| at(&"it is not UTF-8"))?;
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line).map_err(|error| at(&error))? {
            RawLine::Revision(revision) => part.revision = Some(Revision(revision)),
            RawLine::Grant(raw) => shared.read(raw, &mut part.grants).map_err(|error| at(&error))?,
            RawLine::Lock(raw) => part.locks.push(lock(raw).map_err(|error| at(&error))?),
        }
    }
    Ok(part)
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// What many grants of a file say alike: read once and then shared, so that a million of them take little room and time.
#[derive(Debug, Default)]
struct Shared<'a> {
    scopes: HashMap<(Vec<Text<'a>>, Vec<Text<'a>>), Arc<Scope>, ahash::RandomState>,
    backends: HashMap<Text<'a>, BackendName, ahash::RandomState>,
}

impl<'a> Shared<'a> {
    /// Reads a grant and adds it to those before it.
    fn read(&mut self, raw: RawGrant<'a>, grants: &mut StatedGrants) -> Result<(), String> {
        let expires_at = Timestamp::parse(&raw.expires_at.0)?;
        let not_before = match &raw.not_before {
            Some(stamp) => Timestamp::parse(&stamp.0)?,
            None => Timestamp::from_seconds(0),
        };
        if not_before >= expires_at {
            return Err("it ends before it begins: `not_before` must be earlier than `expires_at`".to_owned());
        }
        if raw.uses_max == Some(0) {
            return Err("`uses_max: 0` permits nothing; leave the grant out instead".to_owned());
        }
        if raw.actions.is_empty() || raw.resources.is_empty() {
            return Err("`actions` and `resources` name at least one each".to_owned());
        }
        grants.push(Stated {
            id: Borrowed::new(&raw.id.0).map_err(text)?,
            principal: Borrowed::new(&raw.principal.0).map_err(text)?,
            task: raw.task.as_ref().map(|task| Borrowed::new(&task.0)).transpose().map_err(text)?,
            backend: &self.backend(raw.backend)?,
            scope: &bound(self.scope(raw.actions, raw.resources)?, raw.arguments.as_ref())?,
            window: Window { not_before, expires_at },
            uses_max: raw.uses_max,
            state: match raw.state {
                RawState::Active => GrantState::Active,
                RawState::Revoked => GrantState::Revoked,
                RawState::Released => GrantState::Released,
            },
        });
        Ok(())
    }

    fn backend(&mut self, raw: Text<'a>) -> Result<BackendName, String> {
        if let Some(known) = self.backends.get(&raw) {
            return Ok(known.clone());
        }
        let backend = BackendName::new(&raw.0).map_err(text)?;
        self.backends.insert(raw, backend.clone());
        Ok(backend)
    }

    fn scope(&mut self, actions: Vec<Text<'a>>, resources: Vec<Text<'a>>) -> Result<Arc<Scope>, String> {
        let raw = (actions, resources);
        if let Some(known) = self.scopes.get(&raw) {
            return Ok(Arc::clone(known));
        }
        let actions = raw.0.iter().map(|a| ActionPattern::new(&a.0)).collect::<Result<_, _>>().map_err(text)?;
        let resources = raw.1.iter().map(|r| ResourcePattern::new(&r.0)).collect::<Result<_, _>>().map_err(text)?;
        let scope = Arc::new(Scope::new(actions, resources));
        self.scopes.insert(raw, Arc::clone(&scope));
        Ok(scope)
    }
}

/// The scope for one call, where the file names one.
fn bound(scope: Arc<Scope>, arguments: Option<&Text<'_>>) -> Result<Arc<Scope>, String> {
    let Some(digest) = arguments else { return Ok(scope) };
    let digest = ArgumentDigest::parse(&digest.0).map_err(text)?;
    Ok(Arc::new(Scope::clone(&scope).bound_to(Some(digest))))
}

fn lock(raw: RawLock) -> Result<Lock, String> {
    Ok(Lock {
        id: LockId::new(&raw.id).map_err(text)?,
        principal: raw.principal.as_deref().map(Principal::parse).transpose().map_err(text)?,
        backend: raw.backend.as_deref().map(BackendName::new).transpose().map_err(text)?,
        action: raw.action.as_deref().map(ActionPattern::new).transpose().map_err(text)?,
        resource: raw.resource.as_deref().map(ResourcePattern::new).transpose().map_err(text)?,
        grant: raw.grant.as_deref().map(GrantId::new).transpose().map_err(text)?,
        task: raw.task.as_deref().map(TaskRef::new).transpose().map_err(text)?,
        message: raw.message.unwrap_or_default(),
        expires_at: raw.expires_at.as_deref().map(Timestamp::parse).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANT: &str = r#"{"grant":{"id":"g1","principal":"https://idp.test#bot","backend":"rabbitmq","actions":["queue.delete"],"resources":["vhosts/%2F/queues/orders"],"expires_at":"2026-11-23T15:15:00Z"}}"#;

    #[test]
    fn both_formats_say_the_same() {
        let yaml = "revision: 7\ngrants:\n  - id: g1\n    principal: https://idp.test#bot\n    backend: rabbitmq\n    actions: [queue.delete]\n    resources: [vhosts/%2F/queues/orders]\n    expires_at: 2026-11-23T15:15:00Z\nlocks:\n  - {id: l1, task: \"jira:OPS-1\", message: stop}\n";
        let lines = format!(
            "{{\"revision\":7}}\n{GRANT}\n\n{{\"lock\":{{\"id\":\"l1\",\"task\":\"jira:OPS-1\",\"message\":\"stop\"}}}}\n"
        );
        let yaml = read(Format::Yaml, yaml.as_bytes()).unwrap();
        let lines = read(Format::JsonLines, lines.as_bytes()).unwrap();
        assert_eq!(yaml.revision, lines.revision);
        assert_eq!(yaml.grants, lines.grants);
        assert_eq!(yaml.locks, lines.locks);
    }

    #[test]
    fn a_file_read_in_parts_says_what_it_said_whole() {
        let lines: String =
            (0..9_000).map(|n| format!("{}\n", GRANT.replace("\"g1\"", &format!("\"g{n}\"")))).collect();
        let content = format!("{{\"revision\":7}}\n{lines}");
        assert!(content.len() > PART_BYTES_MIN);
        let read_whole = read(Format::JsonLines, content.as_bytes()).unwrap();
        assert_eq!((read_whole.revision, read_whole.grants.len()), (Revision(7), 9_000));
        assert_eq!(read_whole.grants.get(8_999).unwrap().id.as_str(), "g8999");
        for size in [1, 100, 1_000, content.len() - 1, content.len()] {
            assert_eq!(parts(content.as_bytes(), size).concat(), content.as_bytes());
            assert!(parts(content.as_bytes(), size).iter().all(|part| part.is_empty() || part.ends_with(b"\n")));
        }
        let broken = content.replace("\"g8765\"", "\"g 8765\"");
        let error = read(Format::JsonLines, broken.as_bytes()).expect_err("a name with a space").to_string();
        assert!(error.starts_with("line 8767:"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (yaml, expected) in [
            ("", "empty"),
            ("grants: [{id: g1}]", "line"),
            ("grants: []\ngrant: []", "grant"),
            (
                "grants:\n  - {id: \"g 1\", principal: \"a#b\", backend: x, actions: [a], resources: [b], expires_at: 2026-11-23T15:15:00Z}",
                "grants[0]",
            ),
            (
                "grants:\n  - {id: g1, principal: \"a#b\", backend: x, actions: [], resources: [b], expires_at: 2026-11-23T15:15:00Z}",
                "at least one",
            ),
            (
                "grants:\n  - {id: g1, principal: \"a#b\", backend: x, actions: [a], resources: [b], expires_at: soon}",
                "RFC 3339",
            ),
            (
                "grants:\n  - {id: g1, principal: \"a#b\", backend: x, actions: [a], resources: [b], expires_at: 2026-11-23T15:15:00Z, uses_max: 0}",
                "uses_max",
            ),
            (
                "grants:\n  - {id: g1, principal: \"a#b\", backend: x, actions: [a], resources: [b], expires_at: 2026-11-23T15:15:00Z, not_before: 2026-11-23T15:15:00Z}",
                "ends before",
            ),
        ] {
            let error = read(Format::Yaml, yaml.as_bytes()).expect_err(yaml).to_string();
            assert!(error.contains(expected), "`{error}` does not say `{expected}`");
        }
        let bound =
            |digest: &str| GRANT.replace("\"expires_at\"", &format!("\"arguments\":\"{digest}\",\"expires_at\""));
        let digest = ArgumentDigest::from_bytes([7; 32]);
        let read_bound = read(Format::JsonLines, bound(&digest.to_string()).as_bytes()).unwrap();
        assert_eq!(read_bound.grants.get(0).unwrap().scope.arguments(), Some(&digest));
        let error = read(Format::JsonLines, bound("sha256:7").as_bytes()).expect_err("a short digest").to_string();
        assert!(error.starts_with("line 1: digest of arguments `sha256:7`"), "{error}");
        let cut = &GRANT.as_bytes()[..GRANT.len() / 2];
        assert!(read(Format::JsonLines, cut).expect_err("half a line").to_string().starts_with("line 1"));
    }
}
