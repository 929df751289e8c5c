//! Who follows a hub, here and at other servers, and what all of them enforce.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Hub, REMEMBER};
use crate::domain::id::Revision;
use crate::domain::time::Uptime;
use crate::sync::session::{Heard, Session};

impl Hub {
    /// Returns when a sidecar said what it enforces, or ended. Dropping the future loses nothing.
    pub async fn acknowledged(&self) {
        self.acks.notified().await;
    }

    /// Everybody who follows here, or did a while ago.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.read().sessions.clone()
    }

    /// Everybody who follows here or another server.
    pub fn everybody(&self) -> Vec<Arc<Session>> {
        let inner = self.read();
        inner.sessions.iter().chain(&inner.others).cloned().collect()
    }

    /// From now on there are other servers: nobody gets evidence before these could have heard of it ([`Hub::told`]).
    pub fn share(&self) {
        self.write().fence.get_or_insert(Uptime::from_micros(0));
    }

    /// Other servers could hear of these sessions, as they were at `begun`: for `lasts` from then on evidence may be asked
    /// for that sidecars are given.
    pub fn told(&self, sessions: &[Arc<Session>], begun: Uptime, lasts: Duration) {
        let now = self.clock.now().uptime;
        self.write().fence = Some(begun.plus(lasts));
        // Evidence from before does not count for them: what they ask for is looked up again.
        sessions.iter().filter(|session| session.publish(now)).for_each(|session| self.ask(session, now));
    }

    /// Whether evidence that is asked for now may be given.
    pub fn may_prove(&self, asked: Uptime) -> bool {
        self.read().fence.is_none_or(|until| asked <= until)
    }

    /// What all other servers say, in place of what they said before.
    pub fn hear(&self, said: Vec<Heard>) {
        let mut inner = self.write();
        let mut others: Vec<Arc<Session>> = Vec::new();
        for session in said.into_iter().map(|said| Arc::new(Session::heard(said))) {
            // What several servers say of one process is true together: it knows the most that any of them was told.
            if let Some(known) = others.iter().find(|known| known.is_of_the_same(&session)) {
                known.inherit(&session);
            } else if let Some(place) = inner.sessions.iter().position(|known| known.is_of_the_same(&session)) {
                if inner.sessions[place].is_connected() || !session.is_connected() {
                    inner.sessions[place].inherit(&session);
                } else {
                    session.inherit(&inner.sessions.swap_remove(place));
                    others.push(session);
                }
            } else {
                others.push(session);
            }
        }
        inner.others = others;
        drop(inner);
        self.note_ack();
    }

    /// Returns when somebody joined. Dropping the future loses nothing.
    pub async fn joined(&self) {
        self.joins.notified().await;
    }

    /// Whether some end is not known to be enforced by everybody.
    pub fn is_settling(&self) -> bool {
        self.read().endings.are_open()
    }

    /// The ends that everybody enforces now and did not when this was asked last, each with how long that took.
    pub fn settle(&self) -> Vec<(Revision, Duration)> {
        let now = self.clock.now().uptime;
        let mut inner = self.write();
        let inner = &mut *inner;
        let everybody: Vec<_> = inner.sessions.iter().chain(&inner.others).cloned().collect();
        inner.endings.settle(&everybody, now)
    }

    /// How long it took until the ends of a revision were enforced by everybody: none where they are not yet, or where it
    /// was too long ago to be known.
    pub fn enforced_within(&self, revision: Revision) -> Option<Duration> {
        self.read().endings.enforced_within(revision)
    }

    /// What everybody enforces who follows and may hold evidence: a relay says no more of itself. None before the first
    /// view.
    pub fn enforced(&self) -> Option<Revision> {
        let now = self.clock.now().uptime;
        let inner = self.read();
        let head = inner.head?;
        let those = inner.sessions.iter().filter(|session| session.fresh_until() >= now);
        Some(those.map(|session| inner.enforced_by(session, head)).min().unwrap_or(head))
    }

    pub(in crate::sync) fn join(&self, session: Arc<Session>) {
        let mut inner = self.write();
        if inner.fence.is_none() {
            session.publish(Uptime::from_micros(0));
        }
        // A process that connects again has one session, which goes on from the evidence of the one before. What counts as
        // open may have been opened after it: streams of one process come here in any order.
        inner.sessions.retain(|known| {
            let is_gone = known.is_of_process(&session) && !known.is_connected();
            if is_gone {
                session.inherit(known);
            }
            !is_gone
        });
        inner.sessions.push(session);
        drop(inner);
        self.joins.notify_one();
    }

    pub(in crate::sync) fn leave(&self, session: &Arc<Session>, now: Uptime) {
        session.close();
        self.pings.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, waits)| waits.is_connected());
        let mut inner = self.write();
        let heir = inner.sessions.iter().find(|known| known.is_of_process(session) && known.is_connected()).cloned();
        if let Some(heir) = &heir {
            heir.inherit(session);
        }
        inner.sessions.retain(|known| {
            let is_inherited = heir.is_some() && Arc::ptr_eq(known, session);
            !is_inherited && (known.is_connected() || known.fresh_until().plus(REMEMBER) > now)
        });
        drop(inner);
        self.note_ack();
    }
}
