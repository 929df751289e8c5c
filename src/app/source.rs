//! Where this process takes its grants from: a file, or the control plane beside it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use super::build;
use super::join::{self, Renewal};
use crate::action_map::{BackendBundle, Packed};
use crate::config::{Config, GrantSource as Configured, Join, OnStale};
use crate::control::catalogue::{Catalogue, LOCAL_ADMIN};
use crate::control::command::Command;
use crate::control::engine::Engine;
use crate::control::publish::Usage;
use crate::control::store::sql::SqlStore;
use crate::control::store::{Change as Kept, Changes as KeptChanges, Head, Page, Rows, Store};
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, GrantId, Revision};
use crate::domain::principal::Principal;
use crate::domain::time::Clock;
use crate::domain::view::{Change, Snapshot, StatedGrant, StatedGrants};
use crate::sidecar::consume::remote::Remote;
use crate::sidecar::consume::{Counter, Counting};
use crate::sidecar::decide::Decider;
use crate::sidecar::plane::given::GivenMaps;
use crate::sidecar::record::{Recorder, Used};
use crate::sidecar::sync::file::{FileSettings, FileSource};
use crate::sidecar::sync::sink::TableSink;
use crate::sync::client::{Activity, ControlSource, Servers, Status, Upstreams, Use, Uses};
use crate::sync::feed::{Changes, Feed, FeedSource};
use crate::sync::follower::About;
use crate::sync::local::Local;
use crate::sync::{Bundle, GUARDRAILS, GrantSource, Work, bundle_of};

/// The configured source, with its first view in force.
pub(super) struct Opened {
    /// The source.
    pub(super) source: Box<dyn GrantSource>,
    /// What it shows of itself, where it is followed over the network.
    pub(super) status: Option<Arc<Status>>,
    /// Who counts the uses of counted grants.
    pub(super) counting: Counting,
    /// What keeps the certificate good that the source is shown, where that is our own care.
    pub(super) renewal: Option<Renewal>,
}

impl Opened {
    fn near(source: impl GrantSource + 'static, counting: Counting) -> Self {
        Self { source: Box::new(source), status: None, counting, renewal: None }
    }
}

/// Whether this process counts the uses of counted grants itself: nobody else can where they come from a file.
pub(super) fn counts(config: &Config) -> bool {
    matches!(config.grants.source, Configured::File { .. })
}

pub(super) async fn open(
    config: &Config,
    decider: &Arc<Decider>,
    recorder: &Arc<Recorder>,
    maps: &Arc<GivenMaps>,
    beside: Option<Beside>,
) -> anyhow::Result<Opened> {
    let sink = || Arc::new(TableSink::new(Arc::clone(decider)).mapping(Arc::clone(maps)));
    let clock = Arc::clone(decider.clock());
    let (mut opened, what) = match (&config.grants.source, beside) {
        (Configured::File { file, poll }, _) => {
            let settings = FileSettings { path: file.clone(), poll: *poll };
            let source = FileSource::new(settings, Arc::clone(decider));
            (Opened::near(source, Counting::Local), format!("grants file {}", file.display()))
        }
        (Configured::Control, Some(beside)) => {
            let counting = Counting::Remote(Arc::new(beside.counter()));
            if let Some(usage) = &beside.usage {
                usage.beside(uses(recorder, decider));
            }
            let source = FeedSource::new(beside, sink(), clock);
            (Opened::near(source, counting), "the control plane's grants".to_owned())
        }
        (Configured::Control, None) => return Err(anyhow!("there is no control plane in this process")),
        (Configured::Remote { servers, join, first_view }, _) => {
            let (upstreams, renewal) = upstreams(servers, join.as_ref(), &clock).await.context("grants.control")?;
            let patience = (config.grants.staleness_max, *first_view);
            let counting = Counting::Remote(Arc::new(Remote::new(Arc::clone(&upstreams))));
            let source = ControlSource::new(upstreams, about(config)?, sink(), clock, patience);
            let source = source.telling(uses(recorder, decider));
            let status = source.status();
            let renewal = renewal.map(|renewal| Renewal { status: Arc::clone(&status), ..renewal });
            (Opened { source: Box::new(source), status: Some(status), counting, renewal }, "grants.control".to_owned())
        }
    };
    opened.source.first().await.map_err(|error| anyhow!(error)).with_context(|| what)?;
    Ok(opened)
}

/// Whom grants are followed from, with what keeps the certificate good that is shown to them.
pub(super) async fn upstreams(
    servers: &Servers,
    join: Option<&Join>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Arc<Upstreams>, Option<Renewal>)> {
    let Some(settings) = join else { return Ok((Upstreams::open(servers.clone()).context("tls")?, None)) };
    join::ensure(settings, &servers.addresses, &**clock).await.context("join")?;
    let upstreams = Upstreams::open(servers.clone()).context("join")?;
    let renewal = Renewal {
        join: settings.clone(),
        addresses: servers.addresses.clone(),
        upstreams: Arc::clone(&upstreams),
        clock: Arc::clone(clock),
        status: Arc::default(),
    };
    Ok((upstreams, Some(renewal)))
}

/// What calls were carried out under each grant. One that runs is a use, for as long as it runs.
fn uses(recorder: &Arc<Recorder>, decider: &Arc<Decider>) -> Uses {
    recorder.count_uses();
    let (recorder, decider) = (Arc::clone(recorder), Arc::clone(decider));
    Arc::new(move || {
        // In this order: a call that ends in between is among those that ended.
        let running = decider.grants_running();
        let now = decider.clock().now().wall;
        let running = running.into_iter().map(|grant| Activity { grant, last: now, calls: 0 });
        let uses = recorder.take_uses().into_iter();
        running.chain(uses.map(|Used { grant, last, calls }| Activity { grant, last, calls })).collect()
    })
}

/// What this sidecar says of itself.
fn about(config: &Config) -> anyhow::Result<About> {
    let has_bound = config.backends.iter().all(|backend| backend.on_stale == OnStale::Deny);
    Ok(About {
        backends: config.backends.iter().map(|backend| backend.name.clone()).collect(),
        action_maps: build::mapped_by_control(config).collect(),
        boot_id: boot_id()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        staleness_max: has_bound.then_some(config.grants.staleness_max),
    })
}

/// Tells this process from all others of the same identity.
pub(super) fn boot_id() -> anyhow::Result<String> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow!("the system has no random bytes"))?;
    Ok(format!("{:016x}", u64::from_le_bytes(random)))
}

/// The control plane in the same process, as a feed: its store is read, its engine says when.
#[derive(Debug)]
pub(super) struct Beside {
    store: Arc<SqlStore>,
    engine: Engine,
    head: watch::Receiver<Head>,
    local: Option<Local>,
    usage: Option<Arc<Usage>>,
    /// The backends that something was said of.
    told: Mutex<BTreeSet<BackendName>>,
}

/// Rows of one page of a snapshot, and changes of one answer.
const PAGE: u32 = 1_000;

impl Beside {
    pub(super) fn new(store: Arc<SqlStore>, engine: Engine) -> Self {
        let head = engine.head();
        Self { store, engine, head, local: None, usage: None, told: Mutex::default() }
    }

    /// The same for a sidecar that counts among those that follow, and says how it uses grants.
    pub(super) fn counted(self, local: Local, usage: Arc<Usage>) -> Self {
        Self { local: Some(local), usage: Some(usage), ..self }
    }

    /// The same control plane, to count uses.
    fn counter(&self) -> BesideCounter {
        BesideCounter { store: Arc::clone(&self.store), engine: self.engine.clone() }
    }

    /// What is to be known of each backend; of one that is declared no more, that there is nothing.
    fn backend_bundles(&self, catalogue: &Catalogue, revision: Revision) -> Vec<Bundle> {
        let bundle = |backend: &BackendName, packed: &Packed| {
            let Packed { digest, content } = packed.clone();
            Bundle { name: bundle_of(backend), digest, revision, content }
        };
        let declared = catalogue.backend_bundles();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = BackendBundle::default().pack();
        let gone =
            told.iter().filter(|name| !catalogue.backends.contains_key(*name)).map(|name| bundle(name, &nothing));
        let bundles = gone.chain(declared.iter().map(|(name, packed)| bundle(name, packed))).collect();
        told.extend(declared.iter().map(|(name, _)| name.clone()));
        bundles
    }

    async fn read_all(&self) -> Result<Snapshot, String> {
        let text = |error: crate::control::store::StoreError| error.to_string();
        let mut rows = self.store.view().await.map_err(text)?;
        let revision = rows.head().await.map_err(text)?.revision;
        let mut snapshot =
            Snapshot { revision, grants: StatedGrants::default(), locks: rows.locks().await.map_err(text)? };
        let mut page = Page { state: Some("active".to_owned()), limit: PAGE, ..Page::default() };
        loop {
            let found = rows.grants(&page).await.map_err(text)?;
            let Some(last) = found.last() else { return Ok(snapshot) };
            page.after = Some(last.grant.id.to_string());
            let stated = found.into_iter().map(|row| StatedGrant::active(row.grant));
            snapshot.grants.extend(stated);
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
            let guardrails = Bundle { name: GUARDRAILS.into(), digest: guardrails.digest().into(), revision, content };
            let backends = self.backend_bundles(&catalogue, revision);
            Ok(std::iter::once(guardrails).chain(backends).collect())
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

/// The control plane in the same process, asked for uses as it would be over the network.
#[derive(Debug)]
struct BesideCounter {
    store: Arc<SqlStore>,
    engine: Engine,
}

/// How long a call waits for its use.
const USE_WITHIN: Duration = Duration::from_secs(5);

impl BesideCounter {
    async fn consume(&self, grant: &GrantId, use_id: &str) -> Result<Use, String> {
        let actor = Principal::parse(LOCAL_ADMIN).map_err(|error| error.to_string())?;
        let command = Command::Consume { grant: grant.clone(), use_id: use_id.to_owned() };
        match self.engine.run(actor, command).await {
            Ok(_) => Ok(Use::Taken),
            Err(refusal) if refusal.code == "ended" => {
                let mut rows = self.store.view().await.map_err(|error| error.to_string())?;
                let row = rows.grant(grant).await.map_err(|error| error.to_string())?;
                let is_exhausted = row.is_some_and(|row| row.state == GrantState::Exhausted);
                Ok(if is_exhausted { Use::Exhausted } else { Use::Ended })
            }
            Err(refusal) => Err(refusal.detail),
        }
    }
}

impl Counter for BesideCounter {
    fn take<'a>(&'a self, grant: &'a GrantId, use_id: &'a str) -> Work<'a, Result<Use, String>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(USE_WITHIN, self.consume(grant, use_id)).await;
            asked.unwrap_or_else(|_| Err("the control plane did not answer in time".to_owned()))
        })
    }
}
