//! The model: rows in maps. It is what the suite compares the engines with, and it loses everything when it is dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    Activity, AuditEntry, Change, Changes, GrantRow, Head, Idempotent, Keep, Page, Read, RequestRow, Rows, Selector,
    Store, StoreError, Transaction, Write,
};
use crate::control::document::{Document, Kind};
use crate::domain::grant::{GrantState, Idle};
use crate::domain::id::{EntitlementName, GrantId, LockId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

#[derive(Debug, Clone, Default)]
struct Tables {
    head: Head,
    documents: BTreeMap<(Kind, String), Document>,
    requests: BTreeMap<RequestId, RequestRow>,
    grants: BTreeMap<GrantId, GrantRow>,
    locks: BTreeMap<LockId, Lock>,
    tasks: BTreeMap<TaskRef, Task>,
    /// The requests that became grants; each became one.
    granted: BTreeSet<RequestId>,
    uses: BTreeMap<(GrantId, String), Timestamp>,
    idempotent: BTreeMap<(Principal, String), (Idempotent, Timestamp)>,
    changes: BTreeMap<Revision, (Timestamp, Change)>,
    /// The last revision whose change is kept no more.
    floor: Revision,
    audit: BTreeMap<u64, AuditEntry>,
    activity: HashMap<GrantId, Activity>,
    leases: BTreeMap<String, (String, Timestamp)>,
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    committed: Arc<Mutex<Tables>>,
}

/// A transaction, or a view, of a [`MemoryStore`].
#[derive(Debug)]
pub struct Memory {
    tables: Tables,
    committed: Option<OwnedMutexGuard<Tables>>,
}

impl Store for MemoryStore {
    type Transaction<'s> = Memory;
    type View<'s> = Memory;

    async fn begin(&self) -> Read<Memory> {
        let committed = Arc::clone(&self.committed).lock_owned().await;
        Ok(Memory { tables: committed.clone(), committed: Some(committed) })
    }

    async fn view(&self) -> Read<Memory> {
        Ok(Memory { tables: self.committed.lock().await.clone(), committed: None })
    }

    async fn lease(&self, name: &str, holder: &str, now: Timestamp, ttl: Duration) -> Read<bool> {
        let mut tables = self.committed.lock().await;
        let free = tables.leases.get(name).is_none_or(|(held_by, until)| held_by == holder || *until <= now);
        if free {
            tables.leases.insert(name.to_owned(), (holder.to_owned(), now.plus(ttl)));
        }
        Ok(free)
    }

    async fn used(&self, used: BTreeMap<GrantId, Activity>) -> Read<()> {
        let mut tables = self.committed.lock().await;
        for (grant, activity) in used {
            let known = tables.activity.entry(grant).or_insert(Activity { calls: 0, ..activity });
            known.add(activity.last_used, activity.calls);
        }
        Ok(())
    }

    async fn compact(&self, now: Timestamp, keep: Keep) -> Read<bool> {
        let mut tables = self.committed.lock().await;
        let tables = &mut *tables;
        tables.uses.retain(|_, keep_until| *keep_until > now);
        tables.idempotent.retain(|_, (_, keep_until)| *keep_until > now);
        tables.leases.retain(|_, (_, until)| *until > now);
        let head = tables.head.revision.0;
        tables.changes.retain(|revision, (at, _)| {
            let (age, behind) = (now.since(*at), head - revision.0);
            let stays = behind < keep.most && (behind < keep.least || age < keep.age);
            if !stays {
                tables.floor = tables.floor.max(*revision);
            }
            stays
        });
        Ok(false)
    }
}

impl Tables {
    /// What the engines refuse by their keys.
    fn check(&self, write: &Write) -> Read<()> {
        let taken = match write {
            Write::Request(row) => row.version == 1 && self.requests.contains_key(&row.request.id),
            Write::Grant(row) => {
                row.narrowed_from.is_none()
                    && self.granted.contains(&row.request)
                    && !self.grants.contains_key(&row.grant.id)
            }
            Write::Use { grant, use_id, .. } => self.uses.contains_key(&(grant.clone(), use_id.clone())),
            Write::Idempotent { caller, key, .. } => self.idempotent.contains_key(&(caller.clone(), key.clone())),
            _ => false,
        };
        if taken { Err(StoreError::Refused(format!("there is such a row already: {write:?}"))) } else { Ok(()) }
    }
}

impl Transaction for Memory {
    async fn apply(&mut self, writes: Vec<Write>) -> Read<()> {
        let tables = &mut self.tables;
        for write in writes {
            tables.check(&write)?;
            match write {
                Write::Document(document) => {
                    tables.documents.insert((document.kind, document.metadata.name.clone()), document);
                }
                Write::NoDocument(kind, name) => drop(tables.documents.remove(&(kind, name))),
                Write::Request(row) => drop(tables.requests.insert(row.request.id.clone(), *row)),
                Write::Grant(row) => {
                    tables.granted.insert(row.request.clone());
                    tables.grants.insert(row.grant.id.clone(), *row);
                }
                Write::Lock(lock) => drop(tables.locks.insert(lock.id.clone(), *lock)),
                Write::NoLock(id) => drop(tables.locks.remove(&id)),
                Write::Task(task) => drop(tables.tasks.insert(task.reference.clone(), task)),
                Write::Use { grant, use_id, keep_until } => drop(tables.uses.insert((grant, use_id), keep_until)),
                Write::Idempotent { caller, key, digest, request, keep_until } => {
                    tables.idempotent.insert((caller, key), (Idempotent { digest, request }, keep_until));
                }
                Write::Change { revision, at, change } => drop(tables.changes.insert(revision, (at, *change))),
                Write::Audit(entry) => drop(tables.audit.insert(entry.sequence, *entry)),
                Write::Head(head) => tables.head = head,
            }
        }
        Ok(())
    }

    async fn commit(self) -> Read<()> {
        if let Some(mut committed) = self.committed {
            *committed = self.tables;
        }
        Ok(())
    }
}

fn page<T: Clone>(rows: impl Iterator<Item = T>, page: &Page) -> Vec<T> {
    rows.take(page.limit as usize).collect()
}

impl Rows for Memory {
    async fn head(&mut self) -> Read<Head> {
        Ok(self.tables.head.clone())
    }

    async fn documents(&mut self) -> Read<Vec<Document>> {
        Ok(self.tables.documents.values().cloned().collect())
    }

    async fn request(&mut self, id: &RequestId) -> Read<Option<RequestRow>> {
        Ok(self.tables.requests.get(id).cloned())
    }

    async fn grant(&mut self, id: &GrantId) -> Read<Option<GrantRow>> {
        Ok(self.tables.grants.get(id).cloned())
    }

    async fn held(&mut self, principal: &Principal, entitlement: &EntitlementName) -> Read<u32> {
        let grants = self.tables.grants.values().filter(|row| {
            row.state == GrantState::Active && row.grant.principal == *principal && row.entitlement == *entitlement
        });
        let requests = self.tables.requests.values().filter(|row| {
            row.elevation.is_pending() && row.request.subject == *principal && row.request.entitlement == *entitlement
        });
        Ok(u32::try_from(grants.count() + requests.count()).unwrap_or(u32::MAX))
    }

    async fn idempotent(&mut self, caller: &Principal, key: &str) -> Read<Option<Idempotent>> {
        Ok(self.tables.idempotent.get(&(caller.clone(), key.to_owned())).map(|(used, _)| used.clone()))
    }

    async fn used(&mut self, grant: &GrantId, use_id: &str) -> Read<bool> {
        Ok(self.tables.uses.contains_key(&(grant.clone(), use_id.to_owned())))
    }

    async fn task(&mut self, reference: &TaskRef) -> Read<Option<Task>> {
        Ok(self.tables.tasks.get(reference).cloned())
    }

    async fn locks(&mut self) -> Read<Vec<Lock>> {
        Ok(self.tables.locks.values().cloned().collect())
    }

    async fn selected(&mut self, selector: &Selector) -> Read<Vec<GrantRow>> {
        let active = self.tables.grants.values().filter(|row| row.state == GrantState::Active);
        Ok(active.filter(|row| selector.selects(row)).cloned().collect())
    }

    async fn pending_of(&mut self, task: &TaskRef) -> Read<Vec<RequestRow>> {
        let pending = self.tables.requests.values().filter(|row| row.elevation.is_pending());
        Ok(pending.filter(|row| row.request.task.as_ref() == Some(task)).cloned().collect())
    }

    async fn grants_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        let due = |row: &&GrantRow| row.state == GrantState::Active && row.grant.window.expires_at <= now;
        let mut rows: Vec<_> = self.tables.grants.values().filter(due).collect();
        rows.sort_by_key(|row| (row.grant.window.expires_at, &row.grant.id));
        Ok(rows.into_iter().take(limit as usize).cloned().collect())
    }

    async fn grants_idle(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        let over = |row: &&GrantRow| row.state == GrantState::Active && row.idle.is_some_and(|idle| idle.is_over(now));
        let mut rows: Vec<_> = self.tables.grants.values().filter(over).collect();
        rows.sort_by_key(|row| (row.idle.map(Idle::due), &row.grant.id));
        Ok(rows.into_iter().take(limit as usize).cloned().collect())
    }

    async fn activity(&mut self, ids: &[GrantId]) -> Read<HashMap<GrantId, Activity>> {
        let used = ids.iter().filter_map(|id| Some((id.clone(), *self.tables.activity.get(id)?)));
        Ok(used.collect())
    }

    async fn requests_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<RequestRow>> {
        let due = |row: &&RequestRow| row.elevation.is_pending() && row.request.window_until <= now;
        let mut rows: Vec<_> = self.tables.requests.values().filter(due).collect();
        rows.sort_by_key(|row| (row.request.window_until, &row.request.id));
        Ok(rows.into_iter().take(limit as usize).cloned().collect())
    }

    async fn requests(&mut self, wanted: &Page) -> Read<Vec<RequestRow>> {
        let rows = self.tables.requests.values().filter(|row| {
            wanted.after.as_ref().is_none_or(|after| row.request.id.as_str() > after.as_str())
                && wanted.state.as_ref().is_none_or(|state| row.elevation.state() == state)
                && wanted.principal.as_ref().is_none_or(|p| row.request.requester == *p || row.request.subject == *p)
        });
        Ok(page(rows.cloned(), wanted))
    }

    async fn grants(&mut self, wanted: &Page) -> Read<Vec<GrantRow>> {
        let rows = self.tables.grants.values().filter(|row| {
            wanted.after.as_ref().is_none_or(|after| row.grant.id.as_str() > after.as_str())
                && wanted.state.as_ref().is_none_or(|state| row.state.as_str() == state)
                && wanted.principal.as_ref().is_none_or(|p| row.grant.principal == *p)
        });
        Ok(page(rows.cloned(), wanted))
    }

    async fn changes(&mut self, after: Revision, limit: u32) -> Read<Changes> {
        if after < self.tables.floor {
            return Ok(Changes::Compacted { floor: self.tables.floor });
        }
        let changes = self.tables.changes.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        let next = changes.take(limit as usize).map(|(revision, (_, change))| (*revision, change.clone()));
        Ok(Changes::Next(next.collect()))
    }

    async fn audit(&mut self, from: u64, limit: u32) -> Read<Vec<AuditEntry>> {
        Ok(self.tables.audit.range(from..).take(limit as usize).map(|(_, entry)| entry.clone()).collect())
    }
}
