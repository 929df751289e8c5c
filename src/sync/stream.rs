//! The server's end of a stream: frames in, and the next frame out whenever there is room for one. Pure; whoever drives
//! it owns the connection and time.
//!
//! It holds places and no frames: how far it has read, how far it has said, which pings wait. What is sent next is looked
//! up when it can be sent, so a slow reader gets what is true then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::hub::{Everything, Hub, Inner, is_for};
use super::session::Session;
use super::{Bundle, bundle_of, digest_of};
use crate::domain::id::{BackendName, GrantId, Revision};
use crate::domain::principal::Principal;
use crate::domain::time::{Now, Timestamp, Uptime};
use crate::domain::view::Change;
use crate::wire::{Unreadable, v1};

/// Most changes in one frame, and most grants in one part of a snapshot.
pub const FRAME_CHANGES_MAX: usize = 256;

/// Most backends of one stream.
const BACKENDS_MAX: usize = 1_024;

/// Most bundles that a sidecar says it holds: one of each backend, and some that are about all.
const BUNDLES_MAX: usize = BACKENDS_MAX + 64;

/// Most pings that wait on one stream.
const PINGS_MAX: usize = 64;

/// Why a stream is refused or ended by the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A frame cannot be read, or is not expected.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The sidecar is not one of the backend's.
    #[error("{sidecar} may not follow backend `{backend}`: name it under `sidecars` of that Backend")]
    NotYours {
        /// Who.
        sidecar: Principal,
        /// Which.
        backend: BackendName,
    },
    /// More than one sidecar can need.
    #[error("{0}")]
    TooMuch(&'static str),
}

/// What a frame of the sidecar's says that is not about the stream itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A grant was used so many times since it was said last.
    Used {
        /// Which.
        grant: GrantId,
        /// When for the last time, by the sidecar's clock.
        last: Timestamp,
        /// How often.
        calls: u64,
    },
    /// A bundle cannot be used there.
    Unusable {
        /// Its name.
        bundle: String,
        /// Which.
        digest: String,
        /// Why.
        error: String,
    },
}

/// A snapshot that is being said.
#[derive(Debug)]
struct Telling {
    everything: Everything,
    next: usize,
    part: u32,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Stream {
    hub: Arc<Hub>,
    session: Arc<Session>,
    /// What the sidecar holds once it has read everything that was sent; none where it begins anew.
    said: Option<Revision>,
    /// Up to where was looked for changes; what lies between is not for this sidecar.
    seen: Revision,
    /// Up to where ends were said ahead.
    ahead: Revision,
    hurries: u64,
    telling: Option<Telling>,
    /// The names of the bundles about one backend that the sidecar wants.
    wanted: BTreeSet<Arc<str>>,
    bundles: BTreeMap<Arc<str>, Arc<str>>,
    bundle_changes: Option<u64>,
    pings: VecDeque<(u64, Uptime)>,
}

impl Stream {
    /// Opens a stream with its first frame.
    ///
    /// # Errors
    /// [`Refused`]; there is no stream then.
    pub fn open(
        hub: Arc<Hub>,
        sidecar: Principal,
        subscribe: v1::Subscribe,
        may_follow: impl Fn(&Principal, &BackendName) -> bool,
    ) -> Result<Self, Refused> {
        if subscribe.backends.len() > BACKENDS_MAX {
            return Err(Refused::TooMuch("a stream follows at most 1,024 backends"));
        }
        if subscribe.boot_id.len() > 64 || subscribe.version.len() > 64 {
            return Err(Refused::TooMuch("boot_id and version have at most 64 bytes"));
        }
        let mut backends = BTreeSet::new();
        for name in &subscribe.backends {
            let backend = BackendName::new(name).map_err(|error| Unreadable::new("subscribe.backends", error))?;
            if !may_follow(&sidecar, &backend) {
                return Err(Refused::NotYours { sidecar, backend });
            }
            backends.insert(backend);
        }
        let mut wanted = BTreeSet::new();
        for name in &subscribe.action_maps {
            let backend = BackendName::new(name).ok().filter(|backend| backends.contains(backend));
            let refuse = || Unreadable::new("subscribe.action_maps", "it names what is not among `backends`");
            wanted.insert(bundle_of(&backend.ok_or_else(refuse)?));
        }
        let staleness = Some(subscribe.staleness_max_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
        if !hub.bears(staleness) {
            return Err(Refused::TooMuch(
                "a sidecar behind a relay serves no longer without evidence than the relay says",
            ));
        }
        let bundles = subscribe.bundles.into_iter();
        let bundles = bundles.take(BUNDLES_MAX).map(|held| (held.name.into(), held.digest.into()));
        let said = subscribe.resume_revision.map(Revision);
        let session =
            Session::new(sidecar, subscribe.boot_id, subscribe.version, backends, staleness, hub.clock().now().uptime);
        let session = Arc::new(session);
        hub.join(Arc::clone(&session));
        Ok(Self {
            hub,
            session,
            said,
            seen: said.unwrap_or_default(),
            ahead: said.unwrap_or_default(),
            hurries: 0,
            telling: None,
            wanted,
            bundles: bundles.collect(),
            bundle_changes: None,
            pings: VecDeque::new(),
        })
    }

    /// Whom it speaks to.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whether the sidecar may still follow all that it follows.
    ///
    /// # Errors
    /// [`Refused::NotYours`] when it may not: the stream is to be ended.
    pub fn check(&self, may_follow: impl Fn(&Principal, &BackendName) -> bool) -> Result<(), Refused> {
        match self.session.backends.iter().find(|backend| !may_follow(&self.session.sidecar, backend)) {
            None => Ok(()),
            Some(backend) => Err(Refused::NotYours { sidecar: self.session.sidecar.clone(), backend: backend.clone() }),
        }
    }

    /// Takes a frame in, at `now`.
    ///
    /// # Errors
    /// [`Refused`]: the stream is to be ended.
    pub fn take(&mut self, frame: v1::ClientFrame, now: Uptime) -> Result<Vec<Said>, Refused> {
        use v1::client_frame::Frame;
        match frame.frame {
            Some(Frame::Subscribe(_)) => Err(Unreadable::new("subscribe", "it comes once, at the beginning").into()),
            Some(Frame::Ack(ack)) => {
                // Nobody enforces what was not said to them.
                if self.said.is_some_and(|said| ack.revision <= said.0) {
                    self.session.acknowledge(Revision(ack.revision));
                    self.hub.note_ack();
                }
                Ok(Vec::new())
            }
            Some(Frame::Ping(ping)) => {
                if self.pings.len() >= PINGS_MAX {
                    return Err(Refused::TooMuch("too many pings wait for their answers"));
                }
                self.pings.push_back((ping.nonce, now));
                self.hub.ask(&self.session, now);
                Ok(Vec::new())
            }
            Some(Frame::Activity(activity)) => activity.grants.iter().map(used).collect(),
            Some(Frame::Nack(nack)) => {
                let cut = |text: String| text.chars().take(500).collect();
                let (bundle, digest, error) = (cut(nack.name), cut(nack.digest), cut(nack.error));
                Ok(vec![Said::Unusable { bundle, digest, error }])
            }
            None => Ok(Vec::new()),
        }
    }

    /// The next frame, if there is anything to say at `now`.
    pub fn next(&mut self, now: Now) -> Option<v1::ServerFrame> {
        let hub = Arc::clone(&self.hub);
        let inner = hub.read();
        let head = inner.head?;
        let frame = self
            .hurried(&inner)
            .or_else(|| self.bundle(&inner, head))
            .or_else(|| self.begin(&inner, head))
            .or_else(|| self.ahead(&inner, head))
            .or_else(|| self.part())
            .or_else(|| self.delta(&inner))
            .or_else(|| self.pong(&inner, now))?;
        Some(v1::ServerFrame { frame: Some(frame) })
    }

    /// What came to the hub ahead of its turn.
    fn hurried(&mut self, inner: &Inner) -> Option<v1::server_frame::Frame> {
        if self.hurries == inner.hurries() {
            return None;
        }
        let backends = &self.session.backends;
        let news = inner.hurried(self.hurries).filter(|(_, _, change)| is_for(change, backends));
        let changes: Vec<_> = news.filter_map(|(_, revision, change)| ahead_of_turn(*revision, change)).collect();
        self.hurries = inner.hurries();
        (!changes.is_empty()).then_some(v1::server_frame::Frame::Urgent(v1::Urgent { changes }))
    }

    fn bundle(&mut self, inner: &Inner, head: Revision) -> Option<v1::server_frame::Frame> {
        // A sidecar that holds more than is held here may hold newer ones too.
        let is_behind = self.said.is_some_and(|said| said > head);
        if is_behind || self.bundle_changes == Some(inner.bundle_changes()) {
            return None;
        }
        let is_mine = |bundle: &Bundle| bundle.backend().is_none() || self.wanted.contains(&bundle.name);
        let is_news = |bundle: &Bundle| self.bundles.get(&bundle.name) != Some(&bundle.digest);
        let news = inner.bundles().find(|bundle| is_mine(bundle) && is_news(bundle));
        let Some(bundle) = news else {
            self.bundle_changes = Some(inner.bundle_changes());
            return None;
        };
        self.bundles.insert(Arc::clone(&bundle.name), Arc::clone(&bundle.digest));
        Some(v1::server_frame::Frame::Bundle(v1::Bundle {
            name: bundle.name.to_string(),
            digest: bundle.digest.to_string(),
            content: bundle.content.clone(),
            revision: bundle.revision.0,
        }))
    }

    /// Begins a snapshot where the sidecar holds nothing that can be gone on from. Says nothing itself.
    fn begin(&mut self, inner: &Inner, head: Revision) -> Option<v1::server_frame::Frame> {
        // More than is held here: another replica was ahead of this one, which will catch up. It proves nothing until then.
        let has_place = self.said.is_some_and(|said| said > head || said >= inner.floor());
        if self.telling.is_none() && !has_place {
            let everything = inner.everything(&self.session.backends)?;
            (self.seen, self.ahead) = (everything.revision, everything.revision);
            self.said = None;
            self.telling = Some(Telling { everything, next: 0, part: 0 });
        }
        None
    }

    /// Ends and locks that would wait behind other frames.
    fn ahead(&mut self, inner: &Inner, head: Revision) -> Option<v1::server_frame::Frame> {
        let from = self.ahead.max(self.seen);
        if head <= from {
            return None;
        }
        self.ahead = head;
        let backlog = inner.after(self.seen).flat_map(|batch| &batch.changes);
        let backlog = backlog.filter(|change| is_for(change, &self.session.backends)).take(FRAME_CHANGES_MAX + 1);
        if self.telling.is_none() && backlog.count() <= FRAME_CHANGES_MAX {
            return None;
        }
        let news = inner.after(from).flat_map(|batch| batch.changes.iter().map(|change| (batch.to, change)));
        let news = news.filter(|(_, change)| change.is_end() && is_for(change, &self.session.backends));
        let changes: Vec<_> = news.filter_map(|(at, change)| ahead_of_turn(at, change)).collect();
        (!changes.is_empty()).then_some(v1::server_frame::Frame::Urgent(v1::Urgent { changes }))
    }

    fn part(&mut self) -> Option<v1::server_frame::Frame> {
        let Telling { everything, next, part } = self.telling.as_mut()?;
        let this = *part;
        let until = (*next + FRAME_CHANGES_MAX).min(everything.grants.len());
        let grants = everything.grants[*next..until].iter().map(|grant| (&**grant).into()).collect();
        let locks = everything.locks.iter().filter(|_| this == 0).map(|lock| (&**lock).into()).collect();
        *next = until;
        *part += 1;
        let (revision, last) = (everything.revision, until == everything.grants.len());
        if last {
            self.telling = None;
            self.said = Some(revision);
        }
        Some(v1::server_frame::Frame::Snapshot(v1::Snapshot { revision: revision.0, grants, locks, part: this, last }))
    }

    fn delta(&mut self, inner: &Inner) -> Option<v1::server_frame::Frame> {
        let from = self.said?;
        let mut changes = Vec::new();
        for batch in inner.after(self.seen.max(from)) {
            let mine = batch.changes.iter().filter(|change| is_for(change, &self.session.backends));
            let mine: Vec<_> = mine.filter_map(said).collect();
            if !changes.is_empty() && changes.len() + mine.len() > FRAME_CHANGES_MAX {
                break;
            }
            changes.extend(mine);
            self.seen = batch.to;
        }
        (!changes.is_empty()).then(|| self.say(from, changes))
    }

    fn say(&mut self, from: Revision, changes: Vec<v1::Change>) -> v1::server_frame::Frame {
        let to = self.seen.max(from);
        self.said = Some(to);
        v1::server_frame::Frame::Delta(v1::Delta { from: from.0, to: to.0, changes })
    }

    /// Answers the pings that came before the last proof was asked for. All that it is about was sent before.
    fn pong(&mut self, inner: &Inner, now: Now) -> Option<v1::server_frame::Frame> {
        let proof = inner.proof().filter(|proof| self.session.was_published(proof.asked))?;
        let answered = self.pings.iter().take_while(|(_, received)| *received <= proof.asked).count();
        let (nonce, received) = *self.pings.get(answered.checked_sub(1)?)?;
        let said = self.said?;
        if said < proof.revision {
            // What lies between is not for this sidecar; it must know that it has missed nothing.
            self.seen = self.seen.max(proof.revision);
            return Some(self.say(said, Vec::new()));
        }
        if said > inner.head? {
            return None;
        }
        self.pings.drain(..answered);
        self.session.prove(received);
        Some(v1::server_frame::Frame::Pong(v1::Pong {
            nonce,
            as_of_revision: proof.revision.0,
            // Behind a relay too grants end by the later of all clocks.
            server_time: now.wall.plus(inner.ahead).as_micros(),
            bundles: digest_of(self.bundles.iter().map(|(name, digest)| (&**name, &**digest))),
        }))
    }

    /// The stream is over.
    pub fn close(&self, now: Uptime) {
        self.hub.leave(&self.session, now);
    }
}

fn used(activity: &v1::GrantActivity) -> Result<Said, Refused> {
    let grant = GrantId::new(&activity.grant).map_err(|error| Unreadable::new("activity.grant", error))?;
    Ok(Said::Used { grant, last: Timestamp::from_micros(activity.last_used), calls: activity.calls })
}

fn ahead_of_turn(revision: Revision, change: &Change) -> Option<v1::Ahead> {
    let change = match change {
        Change::End { id, backend, state } => v1::ahead::Change::Ended(v1::Ended::of(id, backend, *state)),
        Change::Lock(lock) => v1::ahead::Change::Lock((&**lock).into()),
        _ => return None,
    };
    Some(v1::Ahead { revision: revision.0, change: Some(change) })
}

fn said(change: &Change) -> Option<v1::Change> {
    use v1::change::Change as Said;
    let change = match change {
        Change::Grant(grant) => Said::Grant((&**grant).into()),
        Change::End { id, backend, state } => Said::Ended(v1::Ended::of(id, backend, *state)),
        Change::Lock(lock) => Said::Lock((&**lock).into()),
        Change::Unlock(id) => Said::Unlock(id.to_string()),
        Change::Declared => return None,
    };
    Some(v1::Change { change: Some(change) })
}
