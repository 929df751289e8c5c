//! The only module that knows everything: configuration in, a running program out.
//!
//! Traffic runs on threads of its own, one runtime each. Everything else — the admin listener, the grants, keys, files,
//! records — runs on the runtime that called [`start`], so that none of it delays a call.

pub mod arguments;
pub mod audit;
mod authority;
mod build;
pub mod clock;
pub mod control;
pub mod demo;
mod gauges;
mod join;
pub mod policy;
mod publish;
pub mod relay;
mod reload;
mod report;
mod source;
pub mod store;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::domain::time::Clock;
use crate::sidecar::accept::listen::Bound;
use crate::sidecar::call::Shared;
use crate::sidecar::consume::Counting;
use crate::sidecar::decide::Decider;
use crate::sidecar::forward::pool::Pool;
use crate::sidecar::plane::Plane;
use crate::sidecar::plane::given::GivenMaps;
use crate::sidecar::record::{self, Recorder};
use crate::sidecar::worker::Worker;
use crate::sync::GrantSource;
use crate::sync::client::Status;
use crate::telemetry::admin::Readiness;
use crate::telemetry::metrics::Metrics;
use clock::SystemClock;
use join::Renewal;
use source::{Beside, Opened};

/// What the parts of a running program share.
#[derive(Clone)]
struct Parts {
    config: Arc<ArcSwap<Config>>,
    plane: Arc<ArcSwap<Plane>>,
    maps: Arc<GivenMaps>,
    decider: Arc<Decider>,
    recorder: Arc<Recorder>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    readiness: Readiness,
    addresses: Arc<[Option<SocketAddr>]>,
    /// What the source of grants shows of itself, where it is followed over the network.
    source: Option<Arc<Status>>,
    counting: Counting,
}

/// A running sidecar. Dropping it without [`Running::stop`] cuts everything at once.
pub struct Running {
    parts: Parts,
    admin: SocketAddr,
    drain: CancellationToken,
    cut: CancellationToken,
    upkeep: CancellationToken,
    tasks: JoinSet<()>,
    workers: Vec<JoinHandle<()>>,
}

/// Starts a sidecar: everything is read, checked and bound before the first call is accepted.
///
/// Must be called on a multi-threaded runtime, which then carries all that is not traffic.
///
/// # Errors
/// What is wrong with the configuration, a file it names, or an address it wants; nothing runs then.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    start_beside(config, Metrics::new(), None).await
}

/// As [`start`], with the control plane in the same process where there is one.
async fn start_beside(config: Config, metrics: Metrics, beside: Option<Beside>) -> anyhow::Result<Running> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let workers = match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let bound = bind(&config)?;
    let addresses: Arc<[Option<SocketAddr>]> = bound.iter().map(Bound::address).collect();
    let admin_listener = tokio::net::TcpListener::bind(config.admin.address)
        .await
        .with_context(|| format!("admin.address {}", config.admin.address))?;
    let admin = admin_listener.local_addr()?;

    let plane = build::plane(&config, &addresses, Arc::clone(&clock)).await?;
    let names = build::names(&config);
    let recorder =
        Recorder::open(record_settings(&config), plane.catalogue(&names), metrics.registry(), Arc::clone(&clock))?;
    let plane = Arc::new(ArcSwap::from_pointee(plane));
    let given = build::mapped_by_control(&config);
    let maps = Arc::new(GivenMaps::new(Arc::clone(&plane), Arc::clone(&recorder), names, given));
    let counts = source::counts(&config);
    let decider = Decider::counting(Arc::clone(&clock), config.grants.staleness_max, workers, counts);
    let Opened { source, status, counting, renewal } =
        source::open(&config, &decider, &recorder, &maps, beside).await?;
    for missing in maps.standing().iter().filter(|map| map.held.is_none()) {
        let backend = &missing.backend;
        tracing::warn!(%backend, "no action map from the control plane yet: the backend's calls are denied until it comes");
    }

    let parts = Parts {
        config: Arc::new(ArcSwap::from_pointee(config)),
        plane,
        maps,
        decider,
        recorder,
        clock,
        metrics,
        readiness: Readiness::new(),
        addresses,
        source: status,
        counting,
    };
    let mut running = Running {
        parts,
        admin,
        drain: CancellationToken::new(),
        cut: CancellationToken::new(),
        upkeep: CancellationToken::new(),
        tasks: JoinSet::new(),
        workers: Vec::new(),
    };
    running.begin_upkeep(source, renewal, admin_listener)?;
    running.begin_traffic(bound, workers)?;
    Ok(running)
}

impl Running {
    /// Where a TCP listener is bound.
    pub fn address(&self, listener: &str) -> Option<SocketAddr> {
        let config = self.parts.config.load();
        let place = config.listeners.iter().position(|l| l.name == listener)?;
        self.parts.addresses[place]
    }

    /// Where the admin listener is bound.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The grants, to change them without a file; for benches and tests.
    pub fn decider(&self) -> &Arc<Decider> {
        &self.parts.decider
    }

    /// Stops: unready, no new connection, calls drain until the configured deadline, what is left is cut, records are
    /// flushed.
    ///
    /// # Errors
    /// When the last records could not be written.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.parts.readiness.set("serving", Err("draining".to_owned()));
        self.drain.cancel();
        let deadline = self.parts.config.load().drain_timeout;
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().for_each(|w| drop(w.join())));
        let mut joined = std::pin::pin!(joined);
        if tokio::time::timeout(deadline, joined.as_mut()).await.is_err() {
            tracing::warn!(?deadline, "calls that did not end in time are cut");
            self.cut.cancel();
            let _ = joined.await;
        }
        self.upkeep.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.parts.recorder.flush_all()?;
        Ok(())
    }

    fn begin_upkeep(
        &mut self,
        source: Box<dyn GrantSource>,
        renewal: Option<Renewal>,
        admin: tokio::net::TcpListener,
    ) -> anyhow::Result<()> {
        let parts = self.parts.clone();
        let stop = || self.upkeep.clone();
        gauges::register(&parts)?;
        let (decider, token) = (Arc::clone(&parts.decider), stop());
        self.tasks.spawn(async move { decider.watch(token).await });
        let (plane, token) = (Arc::clone(&parts.plane), stop());
        let changed = Box::new(move || plane.load().credentials.maintain());
        self.tasks.spawn(source.follow(token, changed));
        if let Some(renewal) = renewal {
            self.tasks.spawn(renewal.run(stop()));
        }
        self.tasks.spawn(Arc::clone(&parts.recorder).maintain(stop()));
        self.tasks.spawn(reload::follow(parts.clone(), stop()));
        self.tasks.spawn(reload::follow_keys(Arc::clone(&parts.plane), stop()));
        self.tasks.spawn(report::follow_readiness(parts.clone(), stop()));
        let handlers = report::handlers(&parts);
        let address = admin.local_addr()?;
        let admin_parts = report::admin(&parts, handlers, address);
        self.tasks.spawn(crate::telemetry::admin::serve(admin, admin_parts, stop()));
        Ok(())
    }

    fn begin_traffic(&mut self, bound: Vec<Bound>, workers: usize) -> anyhow::Result<()> {
        let config = self.parts.config.load_full();
        let slots: Vec<Arc<Semaphore>> =
            config.listeners.iter().map(|l| Arc::new(Semaphore::new(l.limits.connections))).collect();
        let idle_max = config.backends.iter().map(|b| b.pool_idle_per_worker).max().unwrap_or(0);
        for number in 0..workers {
            let listeners = bound.iter().map(Bound::copy).collect::<Result<Vec<_>, _>>()?;
            let shared = Shared {
                plane: Arc::clone(&self.parts.plane),
                decider: Arc::clone(&self.parts.decider),
                counting: self.parts.counting.clone(),
                running: self.parts.decider.worker(),
                recorder: self.parts.recorder.worker(),
                pool: Arc::new(Pool::new(idle_max)),
            };
            let worker = Worker::new(Arc::new(shared), self.drain.clone(), self.cut.clone());
            let slots = slots.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                if let Err(error) = runtime.block_on(worker.run(listeners, slots)) {
                    tracing::error!(%error, "a worker stopped");
                }
                runtime.shutdown_background();
            })?;
            self.workers.push(thread);
        }
        self.parts.readiness.set("serving", Ok(()));
        for (listener, address) in config.listeners.iter().zip(&*self.parts.addresses) {
            let address = address.map_or_else(|| listener.address.to_string(), |address| address.to_string());
            tracing::info!(listener = listener.name, address, "listening");
        }
        tracing::info!(address = %self.admin, "admin listening");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.cancel();
        self.cut.cancel();
        self.upkeep.cancel();
    }
}

fn bind(config: &Config) -> anyhow::Result<Vec<Bound>> {
    config
        .listeners
        .iter()
        .map(|listener| {
            Bound::bind(&listener.address)
                .with_context(|| format!("listener `{}`: {}", listener.name, listener.address))
        })
        .collect()
}

fn record_settings(config: &Config) -> record::Settings {
    record::Settings {
        directory: config.audit.directory.clone(),
        segment_bytes: config.audit.segment_bytes,
        bytes_max: config.audit.bytes_max,
        intent: config.audit.intent,
        access_log: config.access_log,
    }
}

/// Runs a sidecar until the process is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// When it cannot start, or the last records could not be written.
pub fn run(config: Config) -> anyhow::Result<()> {
    carry(Some(2), async |stop| {
        let Some(running) = stop.unless(start(config)).await? else { return Ok(()) };
        stop.heard().await;
        tracing::info!("stopping");
        running.stop().await
    })
}

/// How long a name that is still looked up, or a file that is still read, is waited for at the end.
const LEFTOVERS_WITHIN: Duration = Duration::from_secs(1);

/// Carries out a command that runs until the process is told to stop, with so many threads, or one for each core.
fn carry(threads: Option<usize>, run: impl AsyncFnOnce(Stop) -> anyhow::Result<()>) -> anyhow::Result<()> {
    harden()?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    threads.map(|threads| builder.worker_threads(threads));
    let runtime = builder.enable_all().build()?;
    // Before anything runs, so that a signal that comes early is a stop too.
    let ended = runtime.block_on(async { run(Stop::listen()?).await });
    runtime.shutdown_timeout(LEFTOVERS_WITHIN);
    ended
}

/// Whether the process was told to stop.
struct Stop(CancellationToken);

impl Stop {
    /// From now on; signals end nothing by themselves any more.
    fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = CancellationToken::new();
        let heard = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            heard.cancel();
        });
        Ok(Self(stop))
    }

    /// Returns once it was.
    async fn heard(&self) {
        self.0.cancelled().await;
    }

    /// What `start` makes; nothing where the process is told to stop before that. What was begun is then dropped.
    async fn unless<T>(&self, start: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
        tokio::select! {
            biased;
            () = self.heard() => {
                tracing::info!("told to stop before the start was over");
                Ok(None)
            }
            started = start => started.map(Some),
        }
    }
}

/// No core file and no debugger of the same user may show the credentials in memory.
///
/// # Errors
/// When the system refuses.
pub fn harden() -> anyhow::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("core files cannot be turned off")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("dumps cannot be turned off")?;
    if rustix::process::dumpable_behavior()? != DumpableBehavior::NotDumpable {
        bail!("dumps cannot be turned off");
    }
    Ok(())
}

/// How often files that change now and then are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
