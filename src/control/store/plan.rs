//! What a command wants to change, each change with its audit entry.

use serde_json::{Value, json};

use super::{AuditEntry, Change, GrantRow, Head, RequestRow, Revision};
use crate::control::document::{Document, Kind};
use crate::domain::id::{GrantId, LockId, RequestId};
use crate::domain::json;
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// One change of a row.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each names the row it puts or removes")]
pub enum Write {
    Document(Document),
    NoDocument(Kind, String),
    Request(Box<RequestRow>),
    Grant(Box<GrantRow>),
    Lock(Box<Lock>),
    NoLock(LockId),
    Task(Task),
    Use { grant: GrantId, use_id: String, keep_until: Timestamp },
    Idempotent { caller: Principal, key: String, digest: String, request: RequestId, keep_until: Timestamp },
    Change { revision: Revision, at: Timestamp, change: Box<Change> },
    Audit(Box<AuditEntry>),
    Head(Head),
}

/// The writes of one command. Nothing writes a state but [`Plan::transition`], and it always writes the entry too.
#[derive(Debug)]
pub struct Plan {
    head: Head,
    now: Timestamp,
    actor: String,
    writes: Vec<Write>,
}

impl Plan {
    /// An empty plan on top of `head`.
    pub fn new(head: Head, actor: &str, now: Timestamp) -> Self {
        Self { head, now, actor: actor.to_owned(), writes: Vec::new() }
    }

    /// A row, the change that sidecars hear of, and the audit entry, as one. A grant has the revision of its change from
    /// then on: it is returned.
    pub fn transition(
        &mut self,
        write: Write,
        change: Option<Change>,
        event: &str,
        subject: &str,
        detail: Value,
    ) -> Revision {
        let mut write = write;
        if let Some(change) = change {
            self.head.revision = Revision(self.head.revision.0 + 1);
            if let Write::Grant(row) = &mut write {
                row.revision = self.head.revision;
            }
            let (revision, at) = (self.head.revision, self.now);
            self.writes.push(Write::Change { revision, at, change: Box::new(change) });
        }
        self.writes.push(write);
        self.entry(event, subject, detail);
        self.head.revision
    }

    /// An entry of something that changes no row.
    pub fn entry(&mut self, event: &str, subject: &str, detail: Value) {
        let entry = chain(&self.head, self.now, &self.actor, event, subject, detail);
        self.head.sequence = entry.sequence;
        self.head.audit_hash.clone_from(&entry.hash);
        self.writes.push(Write::Audit(Box::new(entry)));
    }

    /// A row that is no state: an idempotency key, the number of a use, when to look at a grant again.
    pub fn note(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Documents changed.
    pub fn declared(&mut self) {
        self.head.generation += 1;
    }

    /// The writes, with the head they lead to.
    pub fn finish(mut self) -> Vec<Write> {
        if !self.writes.is_empty() {
            self.writes.push(Write::Head(self.head));
        }
        self.writes
    }
}

/// The entry that follows on `head`.
pub fn chain(head: &Head, at: Timestamp, actor: &str, event: &str, subject: &str, detail: Value) -> AuditEntry {
    let mut entry = AuditEntry {
        sequence: head.sequence + 1,
        at,
        actor: actor.to_owned(),
        event: event.to_owned(),
        subject: subject.to_owned(),
        detail,
        previous: head.audit_hash.clone(),
        hash: String::new(),
    };
    entry.hash = entry.expected_hash();
    entry
}

impl AuditEntry {
    /// The hash that this entry must have: SHA-256 over everything else of it, as JSON with sorted keys.
    pub fn expected_hash(&self) -> String {
        json::digest(&json!([self.sequence, self.at, self.actor, self.event, self.subject, self.detail, self.previous]))
    }
}
