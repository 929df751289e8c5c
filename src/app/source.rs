//! Where this process takes its grants from: a file, or the control plane beside it.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::config::{Config, GrantSource as Configured, OnStale};
use crate::control::store::sql::SqlStore;
use crate::control::store::{Change as Kept, Changes as KeptChanges, Head, Page, Rows, Store};
use crate::domain::grant::GrantState;
use crate::domain::id::Revision;
use crate::domain::time::Timestamp;
use crate::domain::view::{Change, Snapshot, StatedGrant};
use crate::sidecar::decide::Decider;
use crate::sidecar::sync::file::{FileSettings, FileSource};
use crate::sidecar::sync::sink::TableSink;
use crate::sync::client::{ControlSource, Status, Upstreams};
use crate::sync::feed::{Changes, Feed, FeedSource};
use crate::sync::follower::About;
use crate::sync::{GrantSource, Work};

/// The configured source, with its first view in force.
pub(super) struct Opened {
    /// The source.
    pub(super) source: Box<dyn GrantSource>,
    /// What it shows of itself, where it is followed over the network.
    pub(super) status: Option<Arc<Status>>,
}

impl Opened {
    fn near(source: impl GrantSource + 'static) -> Self {
        Self { source: Box::new(source), status: None }
    }
}

pub(super) async fn open(config: &Config, decider: &Arc<Decider>, beside: Option<Beside>) -> anyhow::Result<Opened> {
    let sink = || Arc::new(TableSink::new(Arc::clone(decider)));
    let clock = Arc::clone(decider.clock());
    let (mut opened, what) = match (&config.grants.source, beside) {
        (Configured::File { file, poll }, _) => {
            let settings = FileSettings { path: file.clone(), poll: *poll };
            let source = FileSource::new(settings, Arc::clone(decider));
            (Opened::near(source), format!("grants file {}", file.display()))
        }
        (Configured::Control, Some(beside)) => {
            (Opened::near(FeedSource::new(beside, sink(), clock)), "the control plane's grants".to_owned())
        }
        (Configured::Control, None) => return Err(anyhow!("there is no control plane in this process")),
        (Configured::Remote { servers, first_view }, _) => {
            let upstreams = Upstreams::open(servers.clone()).context("grants.control.tls")?;
            let patience = (config.grants.staleness_max, *first_view);
            let source = ControlSource::new(upstreams, about(config)?, sink(), clock, patience);
            let status = Some(source.status());
            (Opened { source: Box::new(source), status }, "grants.control".to_owned())
        }
    };
    opened.source.first().await.map_err(|error| anyhow!(error)).with_context(|| what)?;
    Ok(opened)
}

/// What this sidecar says of itself.
fn about(config: &Config) -> anyhow::Result<About> {
    let has_bound = config.backends.iter().all(|backend| backend.on_stale == OnStale::Deny);
    Ok(About {
        backends: config.backends.iter().map(|backend| backend.name.clone()).collect(),
        boot_id: boot_id()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        staleness_max: has_bound.then_some(config.grants.staleness_max),
    })
}

/// Tells this process from all others of the same identity.
fn boot_id() -> anyhow::Result<String> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow!("the system has no random bytes"))?;
    Ok(format!("{:016x}", u64::from_le_bytes(random)))
}

/// The control plane in the same process, as a feed: its store is read, its engine says when.
#[derive(Debug)]
pub(super) struct Beside {
    store: Arc<SqlStore>,
    head: watch::Receiver<Head>,
    since: Timestamp,
}

/// Rows of one page of a snapshot, and changes of one answer.
const PAGE: u32 = 1_000;

impl Beside {
    /// Counted grants from before `since` are stated as used up: how often they were used, only the process knew that
    /// used them, and a use that is not known is lost rather than given twice.
    pub(super) fn new(store: Arc<SqlStore>, head: watch::Receiver<Head>, since: Timestamp) -> Self {
        Self { store, head, since }
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

fn translate(change: Kept) -> Change {
    match change {
        Kept::Grant(grant) => Change::Grant(grant),
        Kept::End { id, backend, state } => Change::End { id, backend, state },
        Kept::Lock(lock) => Change::Lock(lock),
        Kept::Unlock { id } => Change::Unlock(id),
        Kept::Declared => Change::Other,
    }
}

impl Feed for Beside {
    fn snapshot(&self) -> Work<'_, Result<Snapshot, String>> {
        Box::pin(self.read_all())
    }

    fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>> {
        Box::pin(self.read_changes(after))
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
