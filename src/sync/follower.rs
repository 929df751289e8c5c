//! The sidecar's end of a stream: frames in, calls of the sink out. Pure; whoever drives it owns the connection and time.
//!
//! It never trusts an order it did not check: a delta that does not begin where the last one ended breaks the stream. An
//! end that came ahead of its turn is remembered until its turn, so that an older statement of the grant, in a snapshot
//! or in a delta, does not bring it back.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::{Bundle, Sink, digest_of};
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, GrantId, LockId, Revision};
use crate::domain::lock::Lock;
use crate::domain::time::Uptime;
use crate::domain::view::{Change, Snapshot, StatedGrant};
use crate::wire::{Shared, Unreadable, v1};

/// What a follower says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// What it serves.
    pub backends: BTreeSet<BackendName>,
    /// Of these those whose action maps it takes from here.
    pub action_maps: BTreeSet<BackendName>,
    /// Distinguishes processes of one identity.
    pub boot_id: String,
    /// Its version.
    pub version: String,
    /// How long it serves without evidence; none where some backend is served until its grants end.
    pub staleness_max: Option<Duration>,
}

/// Why a stream cannot go on. The next one begins at what was in force, or anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A frame says nothing that can be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A change is missing.
    #[error("changes after revision {from} came where {held:?} is in force")]
    Gap {
        /// Where the delta begins.
        from: u64,
        /// What is in force.
        held: Option<Revision>,
    },
    /// Parts of snapshots are mixed up.
    #[error("a part of a snapshot came out of turn")]
    Parts,
    /// Another source told of a newer bundle.
    #[error("the source is behind the one before it")]
    Behind,
    /// A bundle is missing.
    #[error("the source speaks of other bundles than came here")]
    Bundles,
    /// The sink refuses what it is told.
    #[error("what the source says cannot be put in force: {0}")]
    Refused(String),
    /// The server asks to connect again.
    #[error("the source asks to connect again: {reason}")]
    GoAway {
        /// Why.
        reason: String,
        /// Not before that long.
        after: Duration,
    },
}

/// What came of a frame.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    /// Something in force changed.
    pub changed: bool,
    /// Something ended: whoever ended it waits for the next [`Follower::ack`].
    pub ended: bool,
    /// To be sent back.
    pub reply: Option<v1::ClientFrame>,
}

/// The state of a stream's receiving end, kept from one stream to the next.
#[derive(Debug)]
pub struct Follower {
    about: About,
    /// What is in force; none where nothing whole is.
    held: Option<Revision>,
    acked: Option<Revision>,
    /// The number of the next part, and the parts before it.
    assembling: Option<(u32, Snapshot)>,
    ended_ahead: HashMap<GrantId, (Revision, GrantState)>,
    locked_ahead: HashMap<LockId, (Revision, Box<Lock>)>,
    /// The bundles in force, and the newest revision that was told of each.
    bundles: BTreeMap<String, String>,
    bundle_revisions: BTreeMap<String, u64>,
    /// What this stream told of, whether it could be used or not.
    told: BTreeMap<String, String>,
    shared: Shared,
    pings: VecDeque<(u64, Uptime)>,
    nonce: u64,
}

/// Bundles of one source that are about all backends; there is one kind of them today.
const BUNDLES_MAX: usize = 64;

/// Pings that wait for their answers; a source that answers none is asked no more often than that.
const PINGS_MAX: usize = 64;

impl Follower {
    /// A follower that holds nothing.
    pub fn new(about: About) -> Self {
        Self {
            about,
            held: None,
            acked: None,
            assembling: None,
            ended_ahead: HashMap::new(),
            locked_ahead: HashMap::new(),
            bundles: BTreeMap::new(),
            bundle_revisions: BTreeMap::new(),
            told: BTreeMap::new(),
            shared: Shared::default(),
            pings: VecDeque::new(),
            nonce: 0,
        }
    }

    /// What is in force; none where nothing whole is.
    pub fn held(&self) -> Option<Revision> {
        self.held
    }

    /// What it says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Follows other backends from the next stream on. What was held of others is no beginning for these.
    pub fn serve(&mut self, backends: BTreeSet<BackendName>) {
        if backends != self.about.backends {
            self.about.action_maps.retain(|backend| backends.contains(backend));
            self.about.backends = backends;
            self.held = None;
        }
    }

    /// The first frame of a new stream. What the last one had begun is forgotten: unfinished snapshots, unanswered pings.
    pub fn subscribe(&mut self) -> v1::ClientFrame {
        self.assembling = None;
        self.pings.clear();
        self.acked = None;
        self.told.clone_from(&self.bundles);
        let bundles = self.bundles.iter();
        frame(v1::client_frame::Frame::Subscribe(v1::Subscribe {
            backends: self.about.backends.iter().map(ToString::to_string).collect(),
            resume_revision: self.held.map(|held| held.0),
            boot_id: self.about.boot_id.clone(),
            version: self.about.version.clone(),
            staleness_max_ms: self.about.staleness_max.map_or(0, |max| u64::try_from(max.as_millis()).unwrap_or(0)),
            bundles: bundles
                .map(|(name, digest)| v1::BundleRef { name: name.clone(), digest: digest.clone() })
                .collect(),
            action_maps: self.about.action_maps.iter().map(ToString::to_string).collect(),
        }))
    }

    /// Asks for evidence, at `now`. The answer proves the view as of this moment and of no later one.
    pub fn ping(&mut self, now: Uptime) -> Option<v1::ClientFrame> {
        if self.pings.len() >= PINGS_MAX {
            return None;
        }
        self.nonce += 1;
        self.pings.push_back((self.nonce, now));
        Some(frame(v1::client_frame::Frame::Ping(v1::Ping { nonce: self.nonce })))
    }

    /// Says how far everything is in force, where that is news.
    pub fn ack(&mut self) -> Option<v1::ClientFrame> {
        self.ack_up_to(Revision(u64::MAX))
    }

    /// As [`Follower::ack`], of a relay: no more is enforced than those behind it enforce ([`Hub::enforced`]).
    ///
    /// [`Hub::enforced`]: super::hub::Hub::enforced
    pub fn ack_up_to(&mut self, least: Revision) -> Option<v1::ClientFrame> {
        let enforced = self.held?.min(least);
        if Some(enforced) <= self.acked {
            return None;
        }
        self.acked = Some(enforced);
        Some(frame(v1::client_frame::Frame::Ack(v1::Ack { revision: enforced.0 })))
    }

    /// Takes a frame in.
    ///
    /// # Errors
    /// [`Broken`]: this stream is over.
    pub fn take(&mut self, frame: v1::ServerFrame, sink: &dyn Sink) -> Result<Taken, Broken> {
        use v1::server_frame::Frame;
        match frame.frame {
            Some(Frame::Snapshot(part)) => self.part(part, sink),
            Some(Frame::Delta(delta)) => self.delta(delta, sink),
            Some(Frame::Urgent(urgent)) => self.urgent(urgent, sink),
            Some(Frame::Bundle(bundle)) => self.bundle(bundle, sink),
            Some(Frame::Pong(pong)) => {
                self.pong(&pong, sink)?;
                Ok(Taken::default())
            }
            Some(Frame::GoAway(away)) => {
                Err(Broken::GoAway { reason: away.reason, after: Duration::from_millis(away.retry_after_ms) })
            }
            // A kind of frame that a later version added and that this one can do without.
            None => Ok(Taken::default()),
        }
    }

    fn part(&mut self, part: v1::Snapshot, sink: &dyn Sink) -> Result<Taken, Broken> {
        let revision = Revision(part.revision);
        if part.part == 0 {
            self.assembling = Some((0, Snapshot { revision, ..Snapshot::default() }));
        }
        let Some((next, snapshot)) = self.assembling.as_mut() else { return Err(Broken::Parts) };
        if *next != part.part || snapshot.revision != revision {
            return Err(Broken::Parts);
        }
        *next += 1;
        // What is hollow here would stand in the way of the grant itself, when whoever is between knows of it.
        for grant in part.grants.into_iter().filter(|grant| !grant.is_hollow()) {
            let grant = self.shared.grant(grant)?;
            snapshot.grants.push(StatedGrant::active(grant).view());
        }
        for lock in part.locks {
            snapshot.locks.push(Lock::try_from(lock)?);
        }
        if !part.last {
            return Ok(Taken::default());
        }
        let (_, snapshot) = self.assembling.take().ok_or(Broken::Parts)?;
        self.replace(snapshot, sink)
    }

    fn replace(&mut self, mut snapshot: Snapshot, sink: &dyn Sink) -> Result<Taken, Broken> {
        let revision = snapshot.revision;
        // INVARIANT: an end is final. What came ahead counts, however old the statement that it meets.
        if !self.ended_ahead.is_empty() {
            snapshot.grants.set_states(|id| self.ended_ahead.get(id).map(|(_, state)| *state));
        }
        let ahead = self.locked_ahead.values().filter(|(at, _)| *at > revision);
        for (_, lock) in ahead {
            snapshot.locks.retain(|held| held.id != lock.id);
            snapshot.locks.push((**lock).clone());
        }
        self.held = None;
        sink.replace(snapshot).map_err(Broken::Refused)?;
        self.hold(revision);
        Ok(Taken { changed: true, ended: true, reply: None })
    }

    fn hold(&mut self, revision: Revision) {
        self.held = Some(revision);
        self.ended_ahead.retain(|_, (at, _)| *at > revision);
        self.locked_ahead.retain(|_, (at, _)| *at > revision);
    }

    fn delta(&mut self, delta: v1::Delta, sink: &dyn Sink) -> Result<Taken, Broken> {
        if self.assembling.is_some() {
            return Err(Broken::Parts);
        }
        if self.held != Some(Revision(delta.from)) || delta.to < delta.from {
            return Err(Broken::Gap { from: delta.from, held: self.held });
        }
        let to = Revision(delta.to);
        let mut changes = Vec::with_capacity(delta.changes.len());
        for change in delta.changes {
            let change = read(change, &mut self.shared)?;
            // Its end, which comes later in the order, is in force already: not for a moment is it stated again.
            let is_over = matches!(&change, Change::Grant(grant) if self.ended_ahead.contains_key(&grant.id));
            if !is_over {
                changes.push(change);
            }
        }
        let taken = Taken { changed: !changes.is_empty(), ended: changes.iter().any(Change::is_end), reply: None };
        let lifted_too_soon: Vec<_> = self.locks_after(&changes, to);
        if let Err(error) = sink.advance(to, changes) {
            // What was applied of it is not known: only a snapshot is a beginning now.
            self.held = None;
            return Err(Broken::Refused(error));
        }
        self.hold(to);
        if !lifted_too_soon.is_empty() {
            sink.hurry(lifted_too_soon);
        }
        Ok(taken)
    }

    /// Locks that came ahead, of an id that an older change of this delta lifts or states: they stand.
    fn locks_after(&self, changes: &[Change], to: Revision) -> Vec<(Revision, Change)> {
        let of = |id: &LockId| {
            let (at, lock) = self.locked_ahead.get(id).filter(|(at, _)| *at > to)?;
            Some((*at, Change::Lock(lock.clone())))
        };
        let ids = changes.iter().filter_map(|change| match change {
            Change::Unlock(id) => Some(id),
            Change::Lock(lock) => Some(&lock.id),
            _ => None,
        });
        ids.filter_map(of).collect()
    }

    fn urgent(&mut self, urgent: v1::Urgent, sink: &dyn Sink) -> Result<Taken, Broken> {
        let mut ahead = Vec::with_capacity(urgent.changes.len());
        for change in urgent.changes {
            let revision = Revision(change.revision);
            // Its turn has come already; said again it could undo what came after it.
            if self.held.is_some_and(|held| revision <= held) {
                continue;
            }
            match change.change {
                Some(v1::ahead::Change::Ended(ended)) => {
                    let (id, backend, state) = ended.read()?;
                    self.ended_ahead.insert(id.clone(), (revision, state));
                    ahead.push((revision, Change::End { id, backend, state }));
                }
                Some(v1::ahead::Change::Lock(lock)) => {
                    let lock = Box::new(Lock::try_from(lock)?);
                    let known = self.locked_ahead.get(&lock.id).map_or(Revision(0), |(at, _)| *at);
                    if revision >= known {
                        self.locked_ahead.insert(lock.id.clone(), (revision, lock.clone()));
                        ahead.push((revision, Change::Lock(lock)));
                    }
                }
                None => return Err(Unreadable::new("urgent.change", "it is empty").into()),
            }
        }
        let changed = !ahead.is_empty();
        if changed {
            sink.hurry(ahead);
        }
        Ok(Taken { changed, ended: false, reply: None })
    }

    fn bundle(&mut self, bundle: v1::Bundle, sink: &dyn Sink) -> Result<Taken, Broken> {
        let v1::Bundle { name, digest, .. } = bundle;
        if self.told.len() >= BUNDLES_MAX + self.about.action_maps.len() && !self.told.contains_key(&name) {
            return Err(Unreadable::new("bundle.name", "there are too many").into());
        }
        self.told.insert(name.clone(), digest.clone());
        let newest = self.bundle_revisions.entry(name.clone()).or_default();
        // Another replica, which is behind: what it lifts again may have been forbidden long ago.
        if bundle.revision < *newest && self.bundles.get(&name) != Some(&digest) {
            return Err(Broken::Behind);
        }
        *newest = bundle.revision.max(*newest);
        let revision = Revision(bundle.revision);
        let given =
            Bundle { name: name.as_str().into(), digest: digest.as_str().into(), revision, content: bundle.content };
        let reply = match sink.bundle(given) {
            Ok(()) => {
                self.bundles.insert(name, digest);
                None
            }
            Err(error) => {
                let nack = v1::Nack { name, digest, error };
                Some(frame(v1::client_frame::Frame::Nack(nack)))
            }
        };
        Ok(Taken { changed: reply.is_none(), ended: false, reply })
    }

    fn pong(&mut self, pong: &v1::Pong, sink: &dyn Sink) -> Result<(), Broken> {
        if pong.bundles != digest_of(self.told.iter().map(|(name, digest)| (name.as_str(), digest.as_str()))) {
            return Err(Broken::Bundles);
        }
        // INVARIANT: it proves something only of a whole view, and only if all it speaks of is in force.
        if self.assembling.is_some() {
            return Err(Broken::Parts);
        }
        if self.held.is_none_or(|held| held.0 < pong.as_of_revision) {
            return Err(Broken::Gap { from: pong.as_of_revision, held: self.held });
        }
        let Some(place) = self.pings.iter().position(|(nonce, _)| *nonce == pong.nonce) else { return Ok(()) };
        if let Some((_, asked)) = self.pings.drain(..=place).next_back() {
            sink.prove(asked);
        }
        Ok(())
    }
}

fn frame(frame: v1::client_frame::Frame) -> v1::ClientFrame {
    v1::ClientFrame { frame: Some(frame) }
}

fn read(change: v1::Change, shared: &mut Shared) -> Result<Change, Unreadable> {
    use v1::change::Change as Said;
    Ok(match change.change {
        // What it is bound to got lost on the way, and it may be a narrowing: as in a snapshot, it is not in force.
        Some(Said::Grant(grant)) if grant.is_hollow() => {
            let (id, backend, state) =
                v1::Ended { grant: grant.id, backend: grant.backend, state: String::new() }.read()?;
            Change::End { id, backend, state }
        }
        Some(Said::Grant(grant)) => Change::Grant(Box::new(shared.grant(grant)?)),
        Some(Said::Ended(ended)) => {
            let (id, backend, state) = ended.read()?;
            Change::End { id, backend, state }
        }
        Some(Said::Lock(lock)) => Change::Lock(Box::new(Lock::try_from(lock)?)),
        Some(Said::Unlock(id)) => {
            Change::Unlock(LockId::new(&id).map_err(|error| Unreadable::new("change.unlock", error))?)
        }
        // A kind of change that is not known here may be a narrowing.
        None => return Err(Unreadable::new("delta.change", "it is of a kind that this version does not know")),
    })
}
