//! One grant as the table holds it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering};

use crate::domain::action::Scope;
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, Borrowed, GrantId, TaskRef};
use crate::domain::principal::Principal;
use crate::domain::time::{Anchored, Now, Position, Timestamp, Uptime, Window};
use crate::domain::view::Stated;
use crate::guardrail::{Guardrails, Seat, SeatMemory};

/// What many grants have in common, held once: where they hold and for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Terms {
    pub(super) backend: BackendName,
    pub(super) scope: Arc<Scope>,
}

/// What tells a grant from all others, in one piece of memory: id, principal and task, one after the other.
struct Names {
    text: Box<str>,
    principal_at: u16,
    task_at: u16,
}

impl Names {
    fn new(stated: &Stated<'_>) -> Self {
        let (id, principal) = (stated.id.as_str(), stated.principal.as_str());
        let text = [id, principal, stated.task.map_or("", |task| task.as_str())].concat().into_boxed_str();
        // INVARIANT: an id has at most 128 bytes, a principal at most 2,048.
        let place = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        Self { text, principal_at: place(id.len()), task_at: place(id.len() + principal.len()) }
    }

    fn between(&self, from: u16, to: usize) -> &str {
        self.text.get(usize::from(from)..to).unwrap_or_default()
    }

    fn id(&self) -> Borrowed<'_, GrantId> {
        Borrowed::of_valid(self.between(0, self.principal_at.into()))
    }

    fn principal(&self) -> Borrowed<'_, Principal> {
        Borrowed::of_valid(self.between(self.principal_at, self.task_at.into()))
    }

    fn task(&self) -> Option<Borrowed<'_, TaskRef>> {
        let task = self.between(self.task_at, self.text.len());
        (!task.is_empty()).then(|| Borrowed::of_valid(task))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entry(&self.id()).entry(&self.principal()).entries(self.task()).finish()
    }
}

/// One grant in the table. Its state and its end only move one way.
#[derive(Debug)]
pub struct Entry {
    names: Names,
    terms: Arc<Terms>,
    not_before: Timestamp,
    expires_at: AtomicI64,
    ends_uptime: AtomicI64,
    /// The latest end any statement of this grant ever gave it, on the uptime clock: until then it is remembered.
    remembered_until: AtomicI64,
    uses_max: AtomicU32,
    uses: AtomicU32,
    state: AtomicU8,
    seat: SeatMemory,
}

/// What `uses_max` holds for a grant that is not counted.
const UNCOUNTED: u32 = u32::MAX;

impl Entry {
    pub(super) fn new(stated: Stated<'_>, terms: Arc<Terms>, now: Now) -> Self {
        let anchored = stated.window.anchor(now);
        Self {
            names: Names::new(&stated),
            terms,
            not_before: stated.window.not_before,
            expires_at: AtomicI64::new(stated.window.expires_at.as_micros()),
            ends_uptime: AtomicI64::new(anchored.ends_uptime().as_micros()),
            remembered_until: AtomicI64::new(anchored.ends_uptime().as_micros()),
            uses_max: AtomicU32::new(stated.uses_max.map_or(UNCOUNTED, |n| n.min(UNCOUNTED - 1))),
            uses: AtomicU32::new(0),
            state: AtomicU8::new(stated.state as u8),
            seat: SeatMemory::default(),
        }
    }

    /// The grant's id.
    pub fn id(&self) -> Borrowed<'_, GrantId> {
        self.names.id()
    }

    /// Who may act.
    pub fn principal(&self) -> Borrowed<'_, Principal> {
        self.names.principal()
    }

    /// What its principal, which whoever asks has at hand, is to these guardrails.
    pub(super) fn seat(&self, guardrails: &Guardrails, principal: &Principal) -> Seat {
        self.seat.seat(guardrails, principal)
    }

    /// On which backend.
    pub fn backend(&self) -> &BackendName {
        &self.terms.backend
    }

    /// Which actions on which resources.
    pub fn scope(&self) -> &Scope {
        &self.terms.scope
    }

    /// What justifies it.
    pub fn task(&self) -> Option<Borrowed<'_, TaskRef>> {
        self.names.task()
    }

    /// When it holds, on both clocks.
    pub fn window(&self) -> Anchored {
        let window = Window {
            not_before: self.not_before,
            expires_at: Timestamp::from_micros(self.expires_at.load(Ordering::Acquire)),
        };
        Anchored::from_parts(window, Uptime::from_micros(self.ends_uptime.load(Ordering::Acquire)))
    }

    /// How many calls it is good for, and how many it had.
    pub fn uses(&self) -> (Option<u32>, u32) {
        let max = self.uses_max.load(Ordering::Acquire);
        ((max != UNCOUNTED).then_some(max), self.uses.load(Ordering::Acquire))
    }

    /// Whether it is good for a number of calls only.
    pub fn is_counted(&self) -> bool {
        self.uses_max.load(Ordering::Acquire) != UNCOUNTED
    }

    /// The state at `now`. A grant seen past its end stays expired, whatever the clocks say later.
    pub fn state(&self, now: Now) -> GrantState {
        let state = GrantState::from_number(self.state.load(Ordering::SeqCst));
        if state == GrantState::Active && self.window().position(now) == Position::After {
            self.end(GrantState::Expired);
            return GrantState::from_number(self.state.load(Ordering::SeqCst));
        }
        state
    }

    /// Ends the grant, if nothing ended it before. Returns whether this call did.
    pub(super) fn end(&self, state: GrantState) -> bool {
        self.state.compare_exchange(GrantState::Active as u8, state as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Takes one use. At most `uses_max` calls of this ever return `true`; a use is never given back.
    pub(super) fn take_use(&self) -> bool {
        let max = self.uses_max.load(Ordering::Acquire);
        if max == UNCOUNTED {
            return true;
        }
        self.uses.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < max).then_some(used + 1)).is_ok()
    }

    /// Whether a use is left.
    pub(super) fn has_use(&self) -> bool {
        let max = self.uses_max.load(Ordering::Acquire);
        max == UNCOUNTED || self.uses.load(Ordering::Acquire) < max
    }

    /// The same grant was read again: whatever it says now can only shorten what stands here.
    pub(super) fn narrow(&self, stated: Stated<'_>, now: Now) {
        let read_again = stated.window.anchor(now);
        self.expires_at.fetch_min(stated.window.expires_at.as_micros(), Ordering::AcqRel);
        self.ends_uptime.fetch_min(read_again.ends_uptime().as_micros(), Ordering::AcqRel);
        self.remembered_until.fetch_max(read_again.ends_uptime().as_micros(), Ordering::AcqRel);
        if let Some(max) = stated.uses_max {
            self.uses_max.fetch_min(max, Ordering::AcqRel);
        }
        if stated.state != GrantState::Active {
            self.end(stated.state);
        }
    }

    /// Ends no later than by `now`.
    pub(super) fn anchor_again(&self, now: Now) {
        let anchored = self.window().window().anchor(now);
        self.ends_uptime.fetch_min(anchored.ends_uptime().as_micros(), Ordering::AcqRel);
    }

    /// Whether nothing could take this for a live grant any more. Only time that has passed counts: a wall clock that
    /// jumped ahead and back must find the tombstone where it was.
    pub(super) fn is_over(&self, now: Now) -> bool {
        now.uptime.as_micros() >= self.remembered_until.load(Ordering::Acquire)
    }
}
