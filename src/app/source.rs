//! Where this process takes its grants from: a file, or the control plane beside it.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::config::{Config, GrantSource as Configured};
use crate::control::engine::Engine;
use crate::control::store::sql::SqlStore;
use crate::control::store::{Change as Kept, Changes as KeptChanges, Head, Page, Rows, Store};
use crate::domain::grant::GrantState;
use crate::domain::id::Revision;
use crate::domain::time::Timestamp;
use crate::domain::view::{Change, Snapshot, StatedGrant};
use crate::sidecar::decide::Decider;
use crate::sidecar::sync::file::{FileSettings, FileSource};
use crate::sidecar::sync::sink::TableSink;
use crate::sync::feed::{Changes, Feed, FeedSource};
use crate::sync::local::Local;
use crate::sync::{Bundle, GUARDRAILS, GrantSource, Work};

/// The configured source, with its first view in force.
pub(super) async fn open(
    config: &Config,
    decider: &Arc<Decider>,
    beside: Option<Beside>,
) -> anyhow::Result<Box<dyn GrantSource>> {
    let (mut source, what): (Box<dyn GrantSource>, String) = match (&config.grants.source, beside) {
        (Configured::File { file, poll }, _) => {
            let settings = FileSettings { path: file.clone(), poll: *poll };
            (Box::new(FileSource::new(settings, Arc::clone(decider))), format!("grants file {}", file.display()))
        }
        (Configured::Control, Some(beside)) => {
            let (sink, clock) = (Arc::new(TableSink::new(Arc::clone(decider))), Arc::clone(decider.clock()));
            (Box::new(FeedSource::new(beside, sink, clock)), "the control plane's grants".to_owned())
        }
        (Configured::Control, None) => return Err(anyhow!("there is no control plane in this process")),
    };
    source.first().await.map_err(|error| anyhow!(error)).with_context(|| what)?;
    Ok(source)
}

/// The control plane in the same process, as a feed: its store is read, its engine says when.
#[derive(Debug)]
pub(super) struct Beside {
    store: Arc<SqlStore>,
    engine: Engine,
    head: watch::Receiver<Head>,
    since: Timestamp,
    local: Option<Local>,
}

/// Rows of one page of a snapshot, and changes of one answer.
const PAGE: u32 = 1_000;

impl Beside {
    /// Counted grants from before `since` are stated as used up: how often they were used, only the process knew that
    /// used them, and a use that is not known is lost rather than given twice.
    pub(super) fn new(store: Arc<SqlStore>, engine: Engine, since: Timestamp) -> Self {
        let head = engine.head();
        Self { store, engine, head, since, local: None }
    }

    /// The same for a sidecar that counts among those that follow.
    pub(super) fn counted(self, local: Local) -> Self {
        Self { local: Some(local), ..self }
    }

    async fn read_all(&self) -> Result<Snapshot, String> {
        let text = |error: crate::control::store::StoreError| error.to_string();
        let mut rows = self.store.view().await.map_err(text)?;
        let revision = rows.head().await.map_err(text)?.revision;
        let mut snapshot = Snapshot { revision, grants: Vec::new(), locks: rows.locks().await.map_err(text)? };
        let mut page = Page { state: Some("active".to_owned()), limit: PAGE, ..Page::default() };
        loop {
            let found = rows.grants(&page).await.map_err(text)?;
            let Some(last) = found.last() else { return Ok(snapshot) };
            page.after = Some(last.grant.id.to_string());
            snapshot.grants.extend(found.into_iter().map(|row| {
                let is_lost = row.grant.uses_max.is_some() && row.created_at < self.since;
                let state = if is_lost { GrantState::Exhausted } else { GrantState::Active };
                StatedGrant { grant: row.grant, state }
            }));
        }
    }

    async fn read_changes(&self, after: Revision) -> Result<Changes, String> {
        let mut rows = self.store.view().await.map_err(|error| error.to_string())?;
        Ok(match rows.changes(after, PAGE).await.map_err(|error| error.to_string())? {
            KeptChanges::Next(next) => {
                Changes::Next(next.into_iter().map(|(revision, change)| (revision, translate(change))).collect())
            }
            KeptChanges::Compacted { .. } => Changes::Compacted,
        })
    }
}

fn local_may_prove(local: &Local) -> Result<(), String> {
    let refusal = "other control planes do not hear of this one, so what they say of its sidecar would be wrong";
    if local.may_prove() { Ok(()) } else { Err(refusal.to_owned()) }
}

fn translate(change: Kept) -> Change {
    match change {
        Kept::Grant(grant) => Change::Grant(grant),
        Kept::End { id, backend, state } => Change::End { id, backend, state },
        Kept::Lock(lock) => Change::Lock(lock),
        Kept::Unlock { id } => Change::Unlock(id),
        Kept::Declared => Change::Declared,
    }
}

impl Feed for Beside {
    fn snapshot(&self) -> Work<'_, Result<Snapshot, String>> {
        // What is read here is served from before we hear whether it was put in force.
        let asked = self.local.as_ref().map_or(Ok(()), |local| {
            local.proves(local.now());
            local_may_prove(local)
        });
        Box::pin(async move {
            asked?;
            self.read_all().await
        })
    }

    fn bundles(&self, revision: Revision) -> Work<'_, Result<Vec<Bundle>, String>> {
        Box::pin(async move {
            let catalogue = self.engine.committed(&*self.store).await.map_err(|error| error.to_string())?;
            let guardrails = catalogue.guardrail_bundle();
            let content = serde_json::to_vec(&guardrails).map_err(|error| error.to_string())?.into();
            Ok(vec![Bundle { name: GUARDRAILS.into(), digest: guardrails.digest().into(), revision, content }])
        })
    }

    fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>> {
        Box::pin(async move {
            let Some(local) = &self.local else { return self.read_changes(after).await };
            // Whoever asks what comes after it has put it in force.
            local.enforces(after);
            let asked = local.now();
            local_may_prove(local)?;
            let changes = self.read_changes(after).await?;
            if matches!(&changes, Changes::Next(next) if next.is_empty()) {
                local.proves(asked);
            }
            Ok(changes)
        })
    }

    fn moved(&mut self) -> Work<'_, ()> {
        Box::pin(async {
            if self.head.changed().await.is_err() {
                // The engine stopped; what is committed can still be read.
                std::future::pending::<()>().await;
            }
        })
    }
}
