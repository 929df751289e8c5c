//! What a server knows, and what changed of late: the one thing that all streams read.
//!
//! There is no queue for a stream. The hub keeps the last changes once; each stream remembers how far it has read. So a
//! slow sidecar costs nobody anything: what it has not read it finds later, or begins with a snapshot where that is kept
//! no more, and its own evidence runs out meanwhile.

mod sessions;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::enforce::{Endings, Of};
use super::session::Session;
use super::{Bundle, Sink};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::id::{BackendName, GrantId, LockId, Revision};
use crate::domain::lock::Lock;
use crate::domain::time::{Clock, Uptime};
use crate::domain::view::{Change, Snapshot};

/// Most changes that are kept for streams that are behind.
pub const CHANGES_KEPT: usize = 65_536;

/// How long a session is remembered after its stream closed, if its evidence ran out before.
const REMEMBER: Duration = Duration::from_secs(3_600);

/// Changes that became known together: all after the batch before it, up to `to`.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) to: Revision,
    pub(super) changes: Vec<Change>,
}

/// Everything of some backends, at one revision.
#[derive(Debug)]
pub(super) struct Everything {
    pub(super) revision: Revision,
    pub(super) grants: Vec<Arc<Grant>>,
    pub(super) locks: Vec<Arc<Lock>>,
}

/// The proof that the hub holds what its source held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proof {
    /// When it was asked for.
    pub(super) asked: Uptime,
    /// What was held then.
    pub(super) revision: Revision,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// What is held; none before the first view.
    pub(super) head: Option<Revision>,
    grants: HashMap<BackendName, HashMap<GrantId, Arc<Grant>>>,
    locks: BTreeMap<LockId, Arc<Lock>>,
    log: VecDeque<Arc<Batch>>,
    logged: usize,
    /// Streams that hold less begin anew.
    floor: Revision,
    /// What came ahead of its turn, with its place; only a relay's source says such things.
    hurried: Vec<(u64, Revision, Change)>,
    hurries: u64,
    bundles: BTreeMap<Arc<str>, Bundle>,
    bundle_changes: u64,
    proof: Option<Proof>,
    /// How far the origin's clock is ahead of this machine's at most, where a source says so.
    pub(super) ahead: Duration,
    sessions: Vec<Arc<Session>>,
    /// Those of other servers, as these say.
    others: Vec<Arc<Session>>,
    endings: Endings,
    /// Until when evidence may be asked for that sidecars are given; other servers count on it. None without any.
    fence: Option<Uptime>,
}

/// What all streams of a server read. Only a source writes to it.
#[derive(Debug)]
pub struct Hub {
    clock: Arc<dyn Clock>,
    /// How long anybody who follows may serve without evidence; none where that is theirs to say.
    staleness_most: Option<Duration>,
    inner: RwLock<Inner>,
    asked: Notify,
    /// Who waits for evidence, and since when.
    pings: std::sync::Mutex<Vec<(Uptime, Arc<Session>)>>,
    acks: Notify,
    joins: Notify,
}

impl Hub {
    /// A hub that knows nothing; its streams wait.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            staleness_most: None,
            inner: RwLock::default(),
            asked: Notify::new(),
            pings: std::sync::Mutex::default(),
            acks: Notify::new(),
            joins: Notify::new(),
        }
    }

    /// As [`Hub::new`], of a relay that is itself counted on to deny after `most`: so is everybody behind it.
    pub fn of_relay(clock: Arc<dyn Clock>, most: Duration) -> Self {
        Self { staleness_most: Some(most), ..Self::new(clock) }
    }

    /// Whether somebody may follow who serves so long without evidence.
    pub(super) fn bears(&self, staleness_max: Option<Duration>) -> bool {
        self.staleness_most.is_none_or(|most| staleness_max.is_some_and(|max| max <= most))
    }

    /// The clocks that sessions and ends are measured by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // Nothing panics while it is written to; if it ever did, what is half written is not proved.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held; none before the first view.
    pub fn head(&self) -> Option<Revision> {
        self.read().head
    }

    /// Returns when a sidecar waits for evidence: whoever writes to the hub then asks its own source.
    /// Dropping the future loses nothing.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// How many changes are kept, for gauges.
    pub fn changes_kept(&self) -> usize {
        self.read().logged
    }

    pub(super) fn note_ack(&self) {
        self.acks.notify_one();
    }

    /// Has `session` woken at the first proof that is asked for after `since`.
    pub(super) fn ask(&self, session: &Arc<Session>, since: Uptime) {
        let mut pings = self.pings.lock().unwrap_or_else(PoisonError::into_inner);
        pings.push((since, Arc::clone(session)));
        drop(pings);
        self.asked.notify_one();
    }

    fn wake(&self, of: &Of) {
        for session in &self.read().sessions {
            if of.has(session) {
                session.wake();
            }
        }
    }

    /// Has everybody look, whatever they serve.
    pub fn wake_all(&self) {
        self.wake(&Of::All);
    }
}

/// Whose streams some changes have to do with, and whether any of them takes something away.
struct Touched {
    backends: Of,
    ended: bool,
}

impl Touched {
    fn by<'a>(changes: impl Iterator<Item = &'a Change>) -> Self {
        let (mut only, mut all, mut ended) = (BTreeSet::new(), false, false);
        for change in changes.filter(|change| !matches!(change, Change::Declared)) {
            ended |= change.is_end();
            match change.backend() {
                Some(backend) if only.contains(backend) => {}
                Some(backend) => drop(only.insert(backend.clone())),
                None => all = true,
            }
        }
        Self { backends: if all { Of::All } else { Of::Only(only) }, ended }
    }
}

/// Whether a change is for somebody who serves these backends.
pub(super) fn is_for(change: &Change, backends: &BTreeSet<BackendName>) -> bool {
    match change.backend() {
        Some(backend) => backends.contains(backend),
        None => !matches!(change, Change::Declared),
    }
}

impl Inner {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Grant(grant) => {
                let of = self.grants.entry(grant.backend.clone()).or_default();
                of.insert(grant.id.clone(), Arc::new((**grant).clone()));
            }
            Change::End { id, backend, .. } => {
                if let Some(of) = self.grants.get_mut(backend) {
                    of.remove(id);
                }
            }
            Change::Lock(lock) => {
                self.locks.insert(lock.id.clone(), Arc::new((**lock).clone()));
            }
            Change::Unlock(id) => {
                self.locks.remove(id);
            }
            Change::Declared => {}
        }
    }

    fn keep(&mut self, batch: Batch) {
        self.logged += batch.changes.len().max(1);
        self.log.push_back(Arc::new(batch));
        while self.logged > CHANGES_KEPT {
            let Some(oldest) = self.log.pop_front() else { break };
            self.logged -= oldest.changes.len().max(1);
            self.floor = oldest.to;
        }
    }

    /// The lowest revision that a stream can go on from.
    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    /// The batches that say something after `revision`, oldest first.
    pub(super) fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Batch>> {
        let first = self.log.partition_point(|batch| batch.to <= revision);
        self.log.range(first..)
    }

    /// What a sidecar enforces: what it said, and what came since that has nothing to do with it.
    fn enforced_by(&self, session: &Session, head: Revision) -> Revision {
        let Some(mut enforced) = session.acked() else { return Revision(0) };
        for batch in self.after(enforced) {
            if batch.changes.iter().any(|change| is_for(change, &session.backends)) {
                return enforced;
            }
            enforced = batch.to;
        }
        head.max(enforced)
    }

    /// What came ahead of its turn since the hurry of that number.
    pub(super) fn hurried(&self, since: u64) -> impl Iterator<Item = &(u64, Revision, Change)> {
        self.hurried.iter().filter(move |(number, _, _)| *number > since)
    }

    /// The number of the last hurry.
    pub(super) fn hurries(&self) -> u64 {
        self.hurries
    }

    /// The last proof.
    pub(super) fn proof(&self) -> Option<Proof> {
        self.proof
    }

    /// The bundles, of all backends.
    pub(super) fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.bundles.values()
    }

    /// How often bundles changed.
    pub(super) fn bundle_changes(&self) -> u64 {
        self.bundle_changes
    }

    /// Everything of these backends.
    pub(super) fn everything(&self, backends: &BTreeSet<BackendName>) -> Option<Everything> {
        let revision = self.head?;
        let grants = backends.iter().filter_map(|backend| self.grants.get(backend));
        let locks = self.locks.values().filter(|lock| lock.backend.as_ref().is_none_or(|b| backends.contains(b)));
        Some(Everything {
            revision,
            grants: grants.flat_map(|of| of.values().cloned()).collect(),
            locks: locks.cloned().collect(),
        })
    }
}

impl Sink for Hub {
    fn replace(&self, snapshot: Snapshot) -> Result<(), String> {
        let mut inner = self.write();
        if let Some(head) = inner.head.filter(|head| *head > snapshot.revision) {
            return Err(format!("revision {} is older than the revision {head} held already", snapshot.revision));
        }
        let is_same = inner.head == Some(snapshot.revision);
        inner.grants.clear();
        for stated in snapshot.grants.iter().filter(|stated| stated.state == GrantState::Active) {
            inner.apply(&Change::Grant(Box::new(stated.to_owned().grant)));
        }
        inner.locks = snapshot.locks.into_iter().map(|lock| (lock.id.clone(), Arc::new(lock))).collect();
        inner.head = Some(snapshot.revision);
        if !is_same {
            // What happened in between is not known: everybody begins anew.
            inner.log.clear();
            inner.logged = 0;
            inner.floor = snapshot.revision;
        }
        inner.hurried.retain(|(_, revision, _)| *revision > snapshot.revision);
        drop(inner);
        self.wake_all();
        Ok(())
    }

    fn advance(&self, to: Revision, changes: Vec<Change>) -> Result<(), String> {
        let mut inner = self.write();
        let Some(from) = inner.head else { return Err("a change came before the first view".to_owned()) };
        if to < from {
            return Err(format!("revision {to} came after {from}"));
        }
        let touched = Touched::by(changes.iter());
        for change in &changes {
            inner.apply(change);
        }
        inner.head = Some(to);
        inner.hurried.retain(|(_, revision, _)| *revision > to);
        if touched.ended {
            inner.endings.note(to, touched.backends.clone(), self.clock.now().uptime);
        }
        if to > from {
            inner.keep(Batch { to, changes });
        }
        drop(inner);
        self.wake(&touched.backends);
        Ok(())
    }

    fn hurry(&self, ahead: Vec<(Revision, Change)>) {
        let mut inner = self.write();
        let touched = Touched::by(ahead.iter().map(|(_, change)| change));
        for (revision, change) in ahead {
            // INVARIANT: only what takes away. A snapshot without the grant, or with the lock, is on the safe side.
            inner.apply(&change);
            inner.hurries += 1;
            let number = inner.hurries;
            inner.hurried.push((number, revision, change));
        }
        drop(inner);
        self.wake(&touched.backends);
    }

    fn bundle(&self, bundle: Bundle) -> Result<(), String> {
        let of = match bundle.backend().map(BackendName::new) {
            None => Of::All,
            Some(Ok(backend)) => Of::Only([backend].into()),
            Some(Err(error)) => return Err(error.to_string()),
        };
        let mut inner = self.write();
        match inner.bundles.get_mut(&bundle.name) {
            Some(known) if known.revision > bundle.revision => return Ok(()),
            Some(known) if known.digest == bundle.digest => {
                known.revision = bundle.revision;
                return Ok(());
            }
            _ => {}
        }
        inner.bundles.insert(Arc::clone(&bundle.name), bundle);
        inner.bundle_changes += 1;
        drop(inner);
        self.wake(&of);
        Ok(())
    }

    fn ahead(&self, by: Duration) {
        self.write().ahead = by;
    }

    fn prove(&self, at: Uptime) {
        let mut inner = self.write();
        let Some(revision) = inner.head else { return };
        if inner.fence.is_some_and(|until| at > until) {
            return;
        }
        if inner.proof.is_some_and(|proof| proof.asked >= at) {
            return;
        }
        inner.proof = Some(Proof { asked: at, revision });
        drop(inner);
        // Whoever asked while the source was read waits for the next one.
        let mut pings = self.pings.lock().unwrap_or_else(PoisonError::into_inner);
        pings.retain(|(since, session)| {
            let waits = *since > at;
            if !waits {
                session.wake();
            }
            waits
        });
    }
}
