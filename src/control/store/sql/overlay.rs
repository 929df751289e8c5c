//! What a transaction has read and written so far. Its reads look here first; its writes wait here until it ends.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::mem::take;

use crate::control::store::{AuditEntry, Change, GrantRow, Head, Idempotent, RequestRow, Write};
use crate::domain::grant::GrantState;
use crate::domain::id::{EntitlementName, GrantId, RequestId, Revision, TaskRef};
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// A row that waits to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waiting<T> {
    pub(super) row: T,
    /// Whether the engine has no such row yet. One that it has all the same is refused, not overwritten.
    pub(super) is_new: bool,
}

/// Rows of one kind: as they were read or written, and which of them wait.
#[derive(Debug)]
pub(super) struct Table<K, T> {
    known: HashMap<K, Option<T>>,
    waiting: BTreeMap<K, Waiting<T>>,
}

impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Self { known: HashMap::new(), waiting: BTreeMap::new() }
    }
}

impl<K: Clone + Ord + Hash, T: Clone> Table<K, T> {
    /// The row, if it is known whether there is one.
    pub(super) fn get(&self, key: &K) -> Option<Option<T>> {
        self.known.get(key).cloned()
    }

    pub(super) fn is_known(&self, key: &K) -> bool {
        self.known.contains_key(key)
    }

    /// What the engine has. It never takes the place of what was written here.
    pub(super) fn read(&mut self, key: K, row: Option<T>) {
        self.known.entry(key).or_insert(row);
    }

    fn write(&mut self, key: K, row: T) {
        let before = self.known.insert(key.clone(), Some(row.clone())).flatten();
        match self.waiting.get_mut(&key) {
            Some(waiting) => waiting.row = row,
            None => drop(self.waiting.insert(key, Waiting { row, is_new: before.is_none() })),
        }
    }
}

/// What waits to be written, each kind at once.
#[derive(Debug, Default)]
pub(super) struct Flush {
    pub(super) requests: Vec<Waiting<RequestRow>>,
    pub(super) grants: Vec<Waiting<GrantRow>>,
    pub(super) tasks: Vec<Task>,
    pub(super) uses: Vec<(GrantId, String, Timestamp)>,
    pub(super) keys: Vec<(Principal, String, Idempotent, Timestamp)>,
    pub(super) changes: Vec<(Revision, Timestamp, Change)>,
    pub(super) audit: Vec<AuditEntry>,
    pub(super) head: Option<Head>,
}

/// The rows of one transaction.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) head: Head,
    pub(super) requests: Table<RequestId, RequestRow>,
    pub(super) grants: Table<GrantId, GrantRow>,
    pub(super) tasks: Table<TaskRef, Task>,
    pub(super) keys: HashMap<(Principal, String), Option<Idempotent>>,
    pub(super) uses: HashMap<(GrantId, String), bool>,
    pub(super) held: HashMap<(Principal, EntitlementName), u32>,
    pub(super) holders: HashMap<Principal, u32>,
    rest: Flush,
}

impl Overlay {
    pub(super) fn on(head: Head) -> Self {
        Self { head, ..Self::default() }
    }

    /// Whether anything waits.
    pub(super) fn is_written(&self) -> bool {
        // Whatever is written moves the head.
        self.rest.head.is_some()
    }

    /// Takes a write, unless it is one of the few that are not kept here.
    pub(super) fn put(&mut self, write: Write) -> Option<Write> {
        match write {
            Write::Request(row) => {
                let id = row.request.id.clone();
                let before = self.requests.get(&id).flatten().is_some_and(|row| row.elevation.is_pending());
                let key = (row.request.subject.clone(), row.request.entitlement.clone());
                count(self.held.get_mut(&key), before, row.elevation.is_pending());
                self.requests.write(id, *row);
            }
            Write::Grant(row) => {
                let id = row.grant.id.clone();
                let active = |row: &GrantRow| row.state == GrantState::Active;
                let before = self.grants.get(&id).flatten().is_some_and(|row| active(&row));
                let key = (row.grant.principal.clone(), row.entitlement.clone());
                count(self.held.get_mut(&key), before, active(&row));
                count(self.holders.get_mut(&key.0), before, active(&row));
                self.grants.write(id, *row);
            }
            Write::Task(task) => self.tasks.write(task.reference.clone(), task),
            Write::Use { grant, use_id, keep_until } => {
                self.uses.insert((grant.clone(), use_id.clone()), true);
                self.rest.uses.push((grant, use_id, keep_until));
            }
            Write::Idempotent { caller, key, digest, request, keep_until } => {
                let used = Idempotent { digest, request };
                self.keys.insert((caller.clone(), key.clone()), Some(used.clone()));
                self.rest.keys.push((caller, key, used, keep_until));
            }
            Write::Change { revision, at, change } => self.rest.changes.push((revision, at, *change)),
            Write::Audit(entry) => self.rest.audit.push(*entry),
            Write::Head(head) => {
                self.rest.head = Some(head.clone());
                self.head = head;
            }
            other @ (Write::Document(_) | Write::NoDocument(..) | Write::Lock(_) | Write::NoLock(_)) => {
                return Some(other);
            }
        }
        None
    }

    /// Everything that waits; it waits no more.
    pub(super) fn flush(&mut self) -> Flush {
        Flush {
            requests: take(&mut self.requests.waiting).into_values().collect(),
            grants: take(&mut self.grants.waiting).into_values().collect(),
            tasks: take(&mut self.tasks.waiting).into_values().map(|waiting| waiting.row).collect(),
            ..take(&mut self.rest)
        }
    }
}

/// Keeps a count of what is held right, where it is known.
fn count(held: Option<&mut u32>, before: bool, after: bool) {
    if let Some(held) = held {
        *held = held.saturating_add(u32::from(after)).saturating_sub(u32::from(before));
    }
}
