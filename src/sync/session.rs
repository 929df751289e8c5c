//! What a server knows of one sidecar that follows it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::id::{BackendName, Revision};
use crate::domain::principal::Principal;
use crate::domain::time::Uptime;

/// One sidecar that follows, or followed a moment ago.
#[derive(Debug)]
pub struct Session {
    /// Who it is, by its certificate.
    pub sidecar: Principal,
    /// Which of its processes.
    pub boot_id: String,
    /// Its version, as it says.
    pub version: String,
    /// What it serves.
    pub backends: BTreeSet<BackendName>,
    /// How long it serves without evidence; none where some backend is served until its grants end.
    pub staleness_max: Option<Duration>,
    /// When it joined, on this machine's clock.
    joined: Uptime,
    connected: AtomicBool,
    /// 1 + the revision; 0 before the first.
    acked: AtomicU64,
    /// When the ping came that was answered last, on this machine's clock.
    proved: AtomicI64,
    /// When other servers had been told of it, where there are any.
    published: AtomicI64,
    woken: Notify,
}

/// What another server says of a session of its own.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Who it is.
    pub sidecar: Principal,
    /// Which of its processes.
    pub boot_id: String,
    /// Its version.
    pub version: String,
    /// What it serves.
    pub backends: BTreeSet<BackendName>,
    /// How long it serves without evidence; none where some backend is served until its grants end.
    pub staleness_max: Option<Duration>,
    /// Whether its stream is open.
    pub connected: bool,
    /// The last revision that it says is enforced.
    pub acked: Option<Revision>,
    /// When it denies at the latest, by this machine's clock.
    pub fresh_until: Uptime,
}

/// `proved` before any ping was answered.
const NEVER: i64 = i64::MIN;

impl Session {
    pub(super) fn new(
        sidecar: Principal,
        boot_id: String,
        version: String,
        backends: BTreeSet<BackendName>,
        staleness_max: Option<Duration>,
        joined: Uptime,
    ) -> Self {
        Self {
            sidecar,
            boot_id,
            version,
            backends,
            staleness_max,
            joined,
            connected: AtomicBool::new(true),
            acked: AtomicU64::new(0),
            proved: AtomicI64::new(NEVER),
            published: AtomicI64::new(NEVER),
            woken: Notify::new(),
        }
    }

    pub(super) fn heard(said: Heard) -> Self {
        let max = said.staleness_max;
        let session = Self::new(said.sidecar, said.boot_id, said.version, said.backends, max, Uptime::from_micros(0));
        session.connected.store(said.connected, Ordering::Release);
        if let Some(acked) = said.acked {
            session.acknowledge(acked);
        }
        let before = max.map_or(0, |max| i64::try_from(max.as_micros()).unwrap_or(i64::MAX));
        session.prove(Uptime::from_micros(said.fresh_until.as_micros().saturating_sub(before)));
        session
    }

    /// Whether both are of one process that serves the same.
    pub(super) fn is_of_the_same(&self, other: &Self) -> bool {
        self.sidecar == other.sidecar && self.boot_id == other.boot_id && self.backends == other.backends
    }

    /// Takes over what is known of the same process from elsewhere.
    pub(super) fn inherit(&self, before: &Self) {
        // It serves from the old evidence until it has new.
        self.proved.fetch_max(before.proved.load(Ordering::Acquire), Ordering::AcqRel);
        if self.backends.is_subset(&before.backends) {
            self.acked.fetch_max(before.acked.load(Ordering::Acquire), Ordering::AcqRel);
        }
    }

    /// Others were told of it, at `at` at the latest; whether that is new.
    pub(super) fn publish(&self, at: Uptime) -> bool {
        self.published.compare_exchange(NEVER, at.as_micros(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether others had been told of it when the evidence of that moment was asked for.
    pub(super) fn was_published(&self, asked: Uptime) -> bool {
        let at = self.published.load(Ordering::Acquire);
        at != NEVER && at <= asked.as_micros()
    }

    /// Whether its stream is open.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// The last revision that it says is enforced.
    pub fn acked(&self) -> Option<Revision> {
        self.acked.load(Ordering::Acquire).checked_sub(1).map(Revision)
    }

    /// Whether it says that everything up to `revision` is enforced.
    pub fn enforces(&self, revision: Revision) -> bool {
        self.acked() >= Some(revision)
    }

    /// When it denies at the latest, unless it gets new evidence. It asked before its ping came here, so it denies
    /// no later than this; and what evidence it brought with it is older than its coming. [`Uptime::MAX`] where it serves
    /// some backend until its grants end.
    pub fn fresh_until(&self) -> Uptime {
        let proved = Uptime::from_micros(self.proved.load(Ordering::Acquire));
        self.staleness_max.map_or(Uptime::MAX, |max| proved.max(self.joined).plus(max))
    }

    /// The age of its evidence; none where it has none.
    pub fn age(&self, now: Uptime) -> Option<Duration> {
        match self.proved.load(Ordering::Acquire) {
            NEVER => None,
            at => Some(now.since(Uptime::from_micros(at))),
        }
    }

    pub(super) fn acknowledge(&self, revision: Revision) {
        self.acked.fetch_max(revision.0.saturating_add(1), Ordering::AcqRel);
    }

    pub(super) fn prove(&self, asked: Uptime) {
        self.proved.fetch_max(asked.as_micros(), Ordering::AcqRel);
    }

    /// Whether both are sessions of one process.
    pub(super) fn is_of_process(&self, other: &Self) -> bool {
        self.sidecar == other.sidecar && self.boot_id == other.boot_id
    }

    pub(super) fn close(&self) {
        self.connected.store(false, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Returns when there may be something to send. Dropping the future loses nothing.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}
