//! Step `decide`: whether this call may go through, and on whose account.
//!
//! Lock → freshness → baseline → grant state, time, scope, uses → guardrails. In memory, without I/O. The only maker of a [`Permit`]:
//! its fields are private and it is not `Clone`, so no other step can let a call through. A [`Denial`] names every reason.
//!
//! Deliberately absent: anything that waits, anything that reads a clock of its own, and any path from an error to a
//! permit.

mod bound;
pub mod entry;
pub mod freshness;
mod index;
mod judged;
pub mod live;
mod permit;
mod recheck;
pub mod refused;
mod search;
pub mod table;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use crate::domain::action::Scope;
use crate::domain::arguments::ArgumentDigest;
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, Borrowed, GrantId, TaskRef};
use crate::domain::lock::{Lock, LockSubject};
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;
use crate::domain::time::{Anchored, Clock, Now, Position, Uptime};
use crate::guardrail::{Guardrails, Said};
use crate::sidecar::reason::Reason;
use crate::sidecar::resolve::ActionSpec;

use bound::Unmet;
use freshness::Freshness;
use live::{LiveCalls, WorkerCalls};
use search::Search;

use crate::domain::view::{Change, Snapshot, StatedGrant};
pub use bound::Arguments;
use entry::Entry;
use judged::Judged;
pub use permit::{Permit, Subject};
use refused::Refused;
use table::Table;

/// Whether a backend's denials are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What is not permitted is refused.
    Enforce,
    /// What is not permitted is recorded as `would_deny` and let pass. Locks are carried out all the same.
    Observe,
}

/// Which configured credential a call is to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialSlot(pub usize);

/// Actions that need no elevation.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// Whose.
    pub principals: HashSet<Principal>,
    /// Which actions on which resources.
    pub scope: Scope,
    /// What they are done with.
    pub credential: Option<CredentialSlot>,
}

/// What of a backend's configuration matters to a decision.
#[derive(Debug, Clone)]
pub struct BackendRules {
    /// The backend.
    pub name: BackendName,
    /// Whether denials are carried out.
    pub mode: Mode,
    /// What needs no elevation.
    pub baselines: Vec<Baseline>,
    /// What granted calls are done with.
    pub credential: Option<CredentialSlot>,
    /// Whether grants hold until their own ends though the view of them is stale.
    pub serve_stale: bool,
}

/// What is to be decided.
#[derive(Debug)]
pub struct Question<'a> {
    /// Who calls.
    pub principal: &'a Principal,
    /// Until when that is proved.
    pub identity: Anchored,
    /// For which task, where the proof of identity says so (a CI job's token).
    pub task: Option<&'a TaskRef>,
    /// Which backend.
    pub backend: &'a Arc<BackendRules>,
    /// Which action; none if no rule of the action map names it.
    pub action: Option<&'a Arc<ActionSpec>>,
    /// On what.
    pub resource: &'a Resource,
    /// With which arguments.
    pub arguments: &'a Arguments,
}

/// What a permit rests on.
#[derive(Debug)]
pub enum Basis {
    /// A grant.
    Grant(Arc<Entry>),
    /// The baseline of that place in the backend's list.
    Baseline(usize),
    /// Nothing: the backend is only observed, and enforcing it would have refused the call.
    Observed(Denial),
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The reason that the caller is told first.
    pub reason: Reason,
    /// Every reason that was met.
    pub reasons: SmallVec<[Reason; 4]>,
    /// The grant that came closest to covering the call.
    pub grant: Option<GrantId>,
    /// What the lock or the guardrail that stops the call says.
    pub message: Option<String>,
    /// The guardrails that stop it.
    pub guardrail: Option<Arc<Said>>,
    /// The digest of the call, where a grant is bound to another.
    pub arguments: Option<Box<ArgumentDigest>>,
    open: bool,
}

impl Denial {
    fn of(reason: Reason) -> Self {
        let reasons = SmallVec::from_slice(&[reason]);
        Self { reason, reasons, grant: None, message: None, guardrail: None, arguments: None, open: false }
    }

    /// Whether it may be decided otherwise once the arguments of the call are known.
    pub fn is_open(&self) -> bool {
        self.open
    }
}

/// The grants, the locks, the guardrails, how fresh they are, and the calls that run under them.
#[derive(Debug)]
pub struct Decider {
    table: Table,
    freshness: Freshness,
    guardrails: ArcSwap<Guardrails>,
    /// Whether any that came could be used.
    guardrails_known: AtomicBool,
    /// Whether the last that came could not.
    guardrails_broken: AtomicBool,
    calls: LiveCalls<Subject>,
    clock: Arc<dyn Clock>,
    /// How far the clock by which grants are decided is ahead of this machine's at most, in microseconds.
    ahead: AtomicI64,
    /// Whether uses are counted here.
    counts: bool,
}

/// A smaller difference of the clocks is not worth a walk over all grants.
const AHEAD_STEP_MICROS: u64 = 100_000;

/// The running calls of one worker.
pub type Worker = WorkerCalls<Subject>;

impl Decider {
    /// A decider that permits nothing until a source states grants. It counts the uses of counted grants itself.
    pub fn new(clock: Arc<dyn Clock>, staleness_max: Duration, workers: usize) -> Arc<Self> {
        Self::counting(clock, staleness_max, workers, true)
    }

    /// As [`Decider::new`]; where it does not count, a permit on a counted grant needs a use that somebody else counts.
    pub fn counting(clock: Arc<dyn Clock>, staleness_max: Duration, workers: usize, counts: bool) -> Arc<Self> {
        Arc::new(Self {
            counts,
            table: Table::new(),
            freshness: Freshness::new(staleness_max),
            guardrails: ArcSwap::from_pointee(Guardrails::none()),
            guardrails_known: AtomicBool::new(false),
            guardrails_broken: AtomicBool::new(false),
            calls: LiveCalls::new(workers),
            clock,
            ahead: AtomicI64::new(0),
        })
    }

    /// The grant table, to read.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// How fresh the view is.
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Whether the uses of counted grants are counted here.
    pub fn counts(&self) -> bool {
        self.counts
    }

    /// The calls that run.
    pub fn calls(&self) -> &LiveCalls<Subject> {
        &self.calls
    }

    /// The grants under which calls run.
    pub fn grants_running(&self) -> HashSet<GrantId> {
        let mut grants = HashSet::new();
        self.calls.look(|subject| grants.extend(subject.grant().map(|entry| entry.id().to_owned())));
        grants
    }

    /// The clocks that decisions are made by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The clock by which grants are decided is ahead of this machine's by so much at most: grants end by the later one.
    pub fn ahead(&self, by: Duration) {
        let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        let before = self.ahead.load(Ordering::Acquire);
        if by.abs_diff(before) <= AHEAD_STEP_MICROS {
            return;
        }
        self.ahead.store(by, Ordering::Release);
        if by > before {
            // What was stated before this was known would end too late.
            self.table.anchor_again(self.now_at_source());
            self.recheck();
        }
    }

    /// Now, with the wall clock of the source where that is ahead.
    fn now_at_source(&self) -> Now {
        let now = self.clock.now();
        let ahead = Duration::from_micros(self.ahead.load(Ordering::Acquire).unsigned_abs());
        Now { wall: now.wall.plus(ahead), ..now }
    }

    /// The registry of the next worker.
    pub fn worker(&self) -> Worker {
        self.calls.worker()
    }

    /// Puts what a source states in force, and ends what may not go on.
    ///
    /// # Errors
    /// [`Refused`]; everything is as it was.
    pub fn apply(&self, snapshot: Snapshot) -> Result<(), Refused> {
        self.table.apply(snapshot, self.now_at_source())?;
        self.recheck();
        Ok(())
    }

    /// Adds one grant, or narrows the one of that id and ends what it no longer covers.
    ///
    /// # Errors
    /// [`Refused`]; everything is as it was.
    pub fn state(&self, stated: StatedGrant) -> Result<(), Refused> {
        self.table.upsert(stated.view(), self.now_at_source())?;
        self.recheck();
        Ok(())
    }

    /// Puts changes in force in their order, with the locks there are then if those changed, and looks once at what runs.
    ///
    /// # Errors
    /// [`Refused`]; what came before the refused change is in force.
    pub fn change(&self, changes: Vec<Change>, locks: Option<Vec<Lock>>) -> Result<(), Refused> {
        if let Some(locks) = locks {
            self.table.set_locks(locks);
        }
        let now = self.now_at_source();
        let applied = changes.into_iter().try_for_each(|change| match change {
            Change::Grant(grant) => {
                match self.table.upsert(StatedGrant::active(*grant).view(), now) {
                    // One holder of very many must not cost all others their view: this grant is not in force.
                    Err(error @ Refused::TooMany { .. }) => {
                        tracing::warn!(%error, "a grant is not in force");
                        Ok(())
                    }
                    other => other,
                }
            }
            Change::End { id, state, .. } => {
                self.table.end(&id, state);
                Ok(())
            }
            Change::Lock(_) | Change::Unlock(_) | Change::Declared => Ok(()),
        });
        self.recheck();
        applied
    }

    /// Ends one grant and what runs under it. Returns whether it was there and active.
    pub fn end(&self, id: &GrantId, state: GrantState) -> bool {
        let ended = self.table.end(id, state);
        if ended {
            self.recheck();
        }
        ended
    }

    /// Replaces the locks and ends what they stop.
    pub fn set_locks(&self, locks: Vec<Lock>) {
        self.table.set_locks(locks);
        self.recheck();
    }

    /// Decides one call. Takes a use of a counted grant, where these are counted here; it is never given back.
    ///
    /// # Errors
    /// A [`Denial`] with every reason that was met; an open one where it depends on arguments that are not known.
    pub fn decide(self: &Arc<Self>, worker: &Worker, question: Question<'_>) -> Result<Permit, Denial> {
        let now = self.clock.now();
        let (basis, judged) = match self.basis_of(&question, now, true) {
            Ok(found) => found,
            Err(denial) => (observed(&question, denial)?, Judged::default()),
        };
        self.permit(worker, question, (basis, judged), now)
    }

    /// Decides a call that no grant may carry for a reason met after the decision: it is denied, or let pass where the
    /// backend is only observed.
    ///
    /// # Errors
    /// The [`Denial`].
    pub fn decide_without(
        self: &Arc<Self>,
        worker: &Worker,
        question: Question<'_>,
        reason: Reason,
        grant: Option<&GrantId>,
    ) -> Result<Permit, Denial> {
        let denial = Denial { grant: grant.cloned(), ..Denial::of(reason) };
        let basis = observed(&question, denial)?;
        self.permit(worker, question, (basis, Judged::default()), self.clock.now())
    }

    fn permit(
        self: &Arc<Self>,
        worker: &Worker,
        question: Question<'_>,
        (basis, judged): (Basis, Judged),
        now: Now,
    ) -> Result<Permit, Denial> {
        let deadline = self.deadline(&basis, question.identity, now);
        let subject = Subject {
            principal: question.principal.clone(),
            identity: question.identity,
            backend: Arc::clone(question.backend),
            action: question.action.cloned(),
            resource: question.resource.clone(),
            task: question.task.cloned(),
            basis,
            judged,
            stale: AtomicBool::new(false),
        };
        let permit = Permit { registered: worker.register(subject, deadline), decider: Arc::clone(self) };
        // INVARIANT: register, then check, then act. From here on every change finds the call.
        match permit.confirm_at(now) {
            Ok(()) => Ok(permit),
            // Something changed in between; what it was is told as it would have been told a moment later.
            Err(reason) => {
                Err(self.foresee(&question).err().filter(|d| d.reason == reason).unwrap_or(Denial::of(reason)))
            }
        }
    }

    /// What would be decided, without taking a use and without letting anything through.
    ///
    /// # Errors
    /// The [`Denial`] that the call would meet.
    pub fn foresee(&self, question: &Question<'_>) -> Result<Basis, Denial> {
        self.basis_of(question, self.clock.now(), false).map(|(basis, _)| basis)
    }

    fn deadline(&self, basis: &Basis, identity: Anchored, now: Now) -> Uptime {
        let until = now.uptime.plus(identity.remaining(now));
        match basis {
            Basis::Observed(_) => until,
            Basis::Baseline(_) => until.min(self.freshness.stale_from()),
            Basis::Grant(entry) => {
                let until = until.min(now.uptime.plus(entry.window().remaining(now)));
                // Already stale, and let pass all the same: there is nothing to come before the grant's own end.
                if self.freshness.is_fresh(now) { until.min(self.freshness.stale_from()) } else { until }
            }
        }
    }

    fn basis_of(&self, question: &Question<'_>, now: Now, take: bool) -> Result<(Basis, Judged), Denial> {
        let locks = self.table.locks();
        let subject = LockSubject {
            principal: question.principal,
            backend: &question.backend.name,
            action: question.action.map(|action| &action.name),
            resource: question.resource,
            grant: None,
            task: question.task.map(Borrowed::from),
        };
        if let Some(lock) = locks.iter().find(|lock| lock.stops(subject, now.wall)) {
            return Err(Denial { message: Some(lock.message.clone()), ..Denial::of(Reason::Lock) });
        }
        let Some(action) = question.action else { return Err(Denial::of(Reason::UnmappedAction)) };
        let is_fresh = self.freshness.is_fresh(now);
        if !is_fresh && !question.backend.serve_stale {
            return Err(Denial::of(Reason::StaleSource));
        }
        for (place, baseline) in question.backend.baselines.iter().enumerate().filter(|_| is_fresh) {
            if baseline.principals.contains(question.principal)
                && baseline.scope.covers(&action.name, question.resource)
            {
                return Ok((Basis::Baseline(place), self.guard(question, action, None, now)?));
            }
        }
        loop {
            let search = self.search(question, action, subject, &locks, now);
            let Some(entry) = search.best.clone() else {
                let denial = search.denial(question.arguments);
                return Err(if is_fresh || denial.open { denial } else { Denial::of(Reason::StaleSource) });
            };
            // Before a use is taken: what is forbidden uses nothing up.
            let judged = self.guard(question, action, Some(&entry), now)?;
            if !take || !self.counts || entry.take_use() {
                return Ok((Basis::Grant(entry), judged));
            }
            // Another call took the last use in between; whatever else covers the call may still do.
        }
    }

    fn search(
        &self,
        question: &Question<'_>,
        action: &Arc<ActionSpec>,
        subject: LockSubject<'_>,
        locks: &[Lock],
        now: Now,
    ) -> Search {
        let mut search = Search::default();
        self.table.each(question.principal, &question.backend.name, |entry| {
            let state = entry.state(now);
            if !entry.scope().covers(&action.name, question.resource) {
                search.holds_other |= state == GrantState::Active && entry.window().position(now) == Position::Inside;
                return;
            }
            let reason = match state {
                GrantState::Expired => Reason::Expired,
                GrantState::Exhausted => Reason::Exhausted,
                GrantState::Released => Reason::Released,
                GrantState::Revoked => Reason::Revoked,
                GrantState::Active if entry.window().position(now) == Position::Before => Reason::NotYet,
                GrantState::Active if !entry.has_use() => Reason::Exhausted,
                GrantState::Active => {
                    let subject =
                        LockSubject { grant: Some(entry.id()), task: entry.task().or(subject.task), ..subject };
                    match locks.iter().find(|lock| lock.stops(subject, now.wall)) {
                        Some(lock) => {
                            search.message = Some(lock.message.clone());
                            Reason::Lock
                        }
                        None => match question.arguments.meet(entry.scope()) {
                            Ok(()) => return search.consider(entry),
                            Err(Unmet::For(reason)) => reason,
                            Err(Unmet::Unread) => {
                                search.unread = true;
                                return;
                            }
                        },
                    }
                }
            };
            search.refuse(reason, entry);
        });
        search
    }
}

/// What is only observed is let pass, unless a lock stops it, or it is not decided yet.
fn observed(question: &Question<'_>, denial: Denial) -> Result<Basis, Denial> {
    if question.backend.mode == Mode::Observe && denial.reason != Reason::Lock && !denial.open {
        Ok(Basis::Observed(denial))
    } else {
        Err(denial)
    }
}
