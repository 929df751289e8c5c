//! The one transaction that runs: an overlay on a connection.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection};
use tokio::sync::MutexGuard;

use super::connect::{within, within_commit};
use super::overlay::Overlay;
use super::rows::On;
use super::{flush, prefetch};
use crate::control::document::Document;
use crate::control::store::{
    Activity, AuditEntry, Changes, GrantRow, Head, Idempotent, Page, Read, RequestRow, Rows, Selector, StoreError,
    Transaction, Wanted, Write,
};
use crate::domain::grant::GrantState;
use crate::domain::id::{EntitlementName, GrantId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// What every command reads and few change, as it was at a revision; whoever changes it moves the revision.
#[derive(Debug, Clone, Default)]
pub(super) struct Remembered {
    pub(super) revision: Option<Revision>,
    documents: Option<Arc<Vec<Document>>>,
    locks: Option<Arc<Vec<Lock>>>,
}

/// A connection inside a transaction. One that is dropped there is closed, which undoes it, and not used again.
#[derive(Debug)]
pub(super) struct Held(Option<PoolConnection<Any>>);

impl Held {
    /// Begins a transaction on it.
    pub(super) async fn begin(connection: PoolConnection<Any>, begin: &'static str) -> Read<Self> {
        let mut held = Self(Some(connection));
        within(sqlx::query(begin).execute(held.get()?)).await?;
        Ok(held)
    }

    pub(super) fn get(&mut self) -> Read<&mut AnyConnection> {
        self.0.as_deref_mut().ok_or_else(|| StoreError::Refused("the transaction is over".into()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.0 {
            connection.close_on_drop();
        }
    }
}

/// A transaction of a [`SqlStore`](super::SqlStore).
#[derive(Debug)]
pub struct SqlTransaction<'s> {
    connection: Held,
    overlay: Overlay,
    here: Remembered,
    turn: MutexGuard<'s, Remembered>,
}

impl<'s> SqlTransaction<'s> {
    /// On a connection that holds the counter row.
    pub(super) fn on(connection: Held, head: Head, turn: MutexGuard<'s, Remembered>) -> Self {
        let fresh = Remembered { revision: Some(head.revision), ..Remembered::default() };
        let here = if turn.revision == Some(head.revision) { turn.clone() } else { fresh };
        Self { connection, overlay: Overlay::on(head), here, turn }
    }

    /// Puts the counter row where a copy has it.
    pub(super) async fn set_head(&mut self, head: Head) -> Read<()> {
        self.overlay.put(Write::Head(head));
        self.flush().await.map(drop)
    }

    /// Makes everything durable.
    pub(super) async fn finish(mut self) -> Read<()> {
        self.flush().await?;
        // Until it is known what became of it, nothing is known.
        self.turn.revision = None;
        within_commit(sqlx::query("COMMIT").execute(self.connection.get()?)).await?;
        // The next transaction begins on the same connection.
        drop(self.connection.0.take());
        let revision = Some(self.overlay.head.revision);
        *self.turn = Remembered { revision, ..self.here.clone() };
        Ok(())
    }

    pub(super) fn connection(&mut self) -> Read<&mut AnyConnection> {
        self.connection.get()
    }

    fn on_connection(&mut self) -> Read<On<'_>> {
        Ok(On(self.connection()?))
    }

    /// Writes what waits, so that a question about many rows sees it.
    async fn flush(&mut self) -> Read<On<'_>> {
        if self.overlay.is_written() {
            let waiting = self.overlay.flush();
            flush::flush(self.connection()?, waiting).await?;
        }
        self.on_connection()
    }

    fn know_grants(&mut self, rows: &[GrantRow]) {
        rows.iter().for_each(|row| self.overlay.grants.read(row.grant.id.clone(), Some(row.clone())));
    }

    fn know_requests(&mut self, rows: &[RequestRow]) {
        rows.iter().for_each(|row| self.overlay.requests.read(row.request.id.clone(), Some(row.clone())));
    }
}

impl Transaction for SqlTransaction<'_> {
    async fn prefetch(&mut self, wanted: Wanted) -> Read<()> {
        self.flush().await?;
        prefetch::prefetch(self.connection.get()?, &mut self.overlay, wanted).await
    }

    async fn apply(&mut self, writes: Vec<Write>) -> Read<()> {
        for write in writes {
            let Some(rare) = self.overlay.put(write) else { continue };
            match &rare {
                Write::Lock(_) | Write::NoLock(_) => self.here.locks = None,
                _ => self.here.documents = None,
            }
            flush::at_once(self.connection()?, &rare).await?;
        }
        Ok(())
    }

    async fn commit(self) -> Read<()> {
        self.finish().await
    }
}

impl Rows for SqlTransaction<'_> {
    async fn head(&mut self) -> Read<Head> {
        Ok(self.overlay.head.clone())
    }

    async fn documents(&mut self) -> Read<Vec<Document>> {
        if let Some(documents) = &self.here.documents {
            return Ok(Vec::clone(documents));
        }
        let documents = self.on_connection()?.documents().await?;
        self.here.documents = Some(Arc::new(documents.clone()));
        Ok(documents)
    }

    async fn request(&mut self, id: &RequestId) -> Read<Option<RequestRow>> {
        if let Some(known) = self.overlay.requests.get(id) {
            return Ok(known);
        }
        let row = self.on_connection()?.request(id).await?;
        self.overlay.requests.read(id.clone(), row.clone());
        Ok(row)
    }

    async fn grant(&mut self, id: &GrantId) -> Read<Option<GrantRow>> {
        if let Some(known) = self.overlay.grants.get(id) {
            return Ok(known);
        }
        let row = self.on_connection()?.grant(id).await?;
        self.overlay.grants.read(id.clone(), row.clone());
        Ok(row)
    }

    async fn held(&mut self, principal: &Principal, entitlement: &EntitlementName) -> Read<u32> {
        let key = (principal.clone(), entitlement.clone());
        if let Some(held) = self.overlay.held.get(&key) {
            return Ok(*held);
        }
        let held = self.flush().await?.held(principal, entitlement).await?;
        self.overlay.held.insert(key, held);
        Ok(held)
    }

    async fn holds(&mut self, principal: &Principal, most: u32) -> Read<u32> {
        if let Some(held) = self.overlay.holders.get(principal) {
            return Ok((*held).min(most));
        }
        let held = self.flush().await?.holds(principal, u32::MAX).await?;
        self.overlay.holders.insert(principal.clone(), held);
        Ok(held.min(most))
    }

    async fn idempotent(&mut self, caller: &Principal, key: &str) -> Read<Option<Idempotent>> {
        let known = (caller.clone(), key.to_owned());
        if let Some(used) = self.overlay.keys.get(&known) {
            return Ok(used.clone());
        }
        let used = self.on_connection()?.idempotent(caller, key).await?;
        self.overlay.keys.insert(known, used.clone());
        Ok(used)
    }

    async fn used(&mut self, grant: &GrantId, use_id: &str) -> Read<bool> {
        let known = (grant.clone(), use_id.to_owned());
        if let Some(used) = self.overlay.uses.get(&known) {
            return Ok(*used);
        }
        let used = self.on_connection()?.used(grant, use_id).await?;
        self.overlay.uses.insert(known, used);
        Ok(used)
    }

    async fn task(&mut self, reference: &TaskRef) -> Read<Option<Task>> {
        if let Some(known) = self.overlay.tasks.get(reference) {
            return Ok(known);
        }
        let task = self.on_connection()?.task(reference).await?;
        self.overlay.tasks.read(reference.clone(), task.clone());
        Ok(task)
    }

    async fn locks(&mut self) -> Read<Vec<Lock>> {
        if let Some(locks) = &self.here.locks {
            return Ok(Vec::clone(locks));
        }
        let locks = self.on_connection()?.locks().await?;
        self.here.locks = Some(Arc::new(locks.clone()));
        Ok(locks)
    }

    async fn selected(&mut self, selector: &Selector) -> Read<Vec<GrantRow>> {
        if let Some(id) = &selector.grant {
            let row = self.grant(id).await?.filter(|row| row.state == GrantState::Active && selector.selects(row));
            return Ok(row.into_iter().collect());
        }
        let rows = self.flush().await?.selected(selector).await?;
        self.know_grants(&rows);
        Ok(rows)
    }

    async fn pending_of(&mut self, task: &TaskRef) -> Read<Vec<RequestRow>> {
        let rows = self.flush().await?.pending_of(task).await?;
        self.know_requests(&rows);
        Ok(rows)
    }

    async fn grants_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        let rows = self.flush().await?.grants_due(now, limit).await?;
        self.know_grants(&rows);
        Ok(rows)
    }

    async fn grants_idle(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        let rows = self.flush().await?.grants_idle(now, limit).await?;
        self.know_grants(&rows);
        Ok(rows)
    }

    async fn activity(&mut self, ids: &[GrantId]) -> Read<HashMap<GrantId, Activity>> {
        self.on_connection()?.activity(ids).await
    }

    async fn requests_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<RequestRow>> {
        let rows = self.flush().await?.requests_due(now, limit).await?;
        self.know_requests(&rows);
        Ok(rows)
    }

    async fn requests(&mut self, page: &Page) -> Read<Vec<RequestRow>> {
        let rows = self.flush().await?.requests(page).await?;
        self.know_requests(&rows);
        Ok(rows)
    }

    async fn grants(&mut self, page: &Page) -> Read<Vec<GrantRow>> {
        let rows = self.flush().await?.grants(page).await?;
        self.know_grants(&rows);
        Ok(rows)
    }

    async fn changes(&mut self, after: Revision, limit: u32) -> Read<Changes> {
        self.flush().await?.changes(after, limit).await
    }

    async fn audit(&mut self, from: u64, limit: u32) -> Read<Vec<AuditEntry>> {
        self.flush().await?.audit(from, limit).await
    }
}
