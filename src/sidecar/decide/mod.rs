//! Step `decide`: whether this call may go through, and on whose account.
//!
//! Lock → freshness → baseline → grant state, time, scope, uses. In memory, without I/O. The only maker of a [`Permit`]:
//! its fields are private and it is not `Clone`, so no other step can let a call through. A [`Denial`] names every reason.
//!
//! Deliberately absent: anything that waits, anything that reads a clock of its own, and any path from an error to a
//! permit.

pub mod freshness;
pub mod live;
pub mod table;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;

use crate::domain::action::Scope;
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, GrantId, TaskRef};
use crate::domain::lock::{Lock, LockSubject};
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;
use crate::domain::time::{Anchored, Clock, Now, Position, Uptime};
use crate::sidecar::reason::Reason;
use crate::sidecar::resolve::ActionSpec;

use freshness::Freshness;
use live::{LiveCall, LiveCalls, Registered, Watcher, WorkerCalls};
use table::{Entry, Refused, Snapshot, Table};

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

/// A call that runs: what has to stay true for it.
#[derive(Debug)]
pub struct Subject {
    principal: Principal,
    identity: Anchored,
    backend: Arc<BackendRules>,
    action: Option<Arc<ActionSpec>>,
    resource: Resource,
    task: Option<TaskRef>,
    basis: Basis,
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
    /// What the lock that stops the call says.
    pub message: Option<String>,
}

impl Denial {
    fn of(reason: Reason) -> Self {
        Self { reason, reasons: SmallVec::from_slice(&[reason]), grant: None, message: None }
    }
}

/// The proof, for one call, that a named grant (or the baseline) allows it, for as long as it does.
///
/// It is registered with the running calls until it is dropped, so whatever ends the grant ends the call.
#[derive(Debug)]
pub struct Permit {
    registered: Registered<Subject>,
    decider: Arc<Decider>,
}

impl Permit {
    fn subject(&self) -> &Subject {
        self.registered.call().subject()
    }

    /// What it rests on.
    pub fn basis(&self) -> &Basis {
        &self.subject().basis
    }

    /// The grant it names, unless it rests on a baseline or on nothing.
    pub fn grant(&self) -> Option<&Arc<Entry>> {
        self.subject().grant()
    }

    /// Who it is for.
    pub fn principal(&self) -> &Principal {
        &self.subject().principal
    }

    /// What it allows.
    pub fn action(&self) -> Option<&Arc<ActionSpec>> {
        self.subject().action.as_ref()
    }

    /// On what.
    pub fn resource(&self) -> &Resource {
        &self.subject().resource
    }

    /// The task of the grant, or else of the caller.
    pub fn task(&self) -> Option<&TaskRef> {
        self.subject().task()
    }

    /// What the call is to be done with.
    pub fn credential(&self) -> Option<CredentialSlot> {
        let subject = self.subject();
        match subject.basis {
            Basis::Baseline(place) => subject.backend.baselines.get(place).and_then(|b| b.credential),
            Basis::Grant(_) | Basis::Observed(_) => subject.backend.credential,
        }
    }

    /// How long it can last at most.
    pub fn remaining(&self, now: Now) -> Duration {
        let identity = self.subject().identity.remaining(now);
        self.grant().map_or(identity, |entry| entry.window().remaining(now).min(identity))
    }

    /// Decides again, now: what the permit rests on must still hold.
    ///
    /// # Errors
    /// The reason for which the call must not go on.
    pub fn confirm(&self) -> Result<(), Reason> {
        if let Some(reason) = self.registered.call().ended() {
            return Err(reason);
        }
        let now = self.decider.clock.now();
        self.decider.verdict(self.subject(), &self.decider.table.locks(), now).map(|_| ())
    }

    /// Why the call must end; if it need not yet, wakes `waker` when it must.
    pub fn poll_ended(&self, watcher: Watcher, waker: &Waker) -> Option<Reason> {
        self.registered.call().poll_ended(watcher, waker)
    }

    /// Returns the reason when the call must end. Dropping the future loses nothing.
    pub async fn ended(&self, watcher: Watcher) -> Reason {
        std::future::poll_fn(|cx| match self.poll_ended(watcher, cx.waker()) {
            Some(reason) => std::task::Poll::Ready(reason),
            None => std::task::Poll::Pending,
        })
        .await
    }

    /// A handle by which another part of the call sees its end.
    pub fn watch(&self) -> Arc<LiveCall<Subject>> {
        Arc::clone(self.registered.call())
    }

    /// The other side must be heard from within `patience`, or the call ends with `upstream_timeout`.
    pub fn wait_at_most(&self, patience: Duration) {
        self.registered.wait_until(self.decider.clock.now().uptime.plus(patience));
    }

    /// The other side may be silent as long as the permit lasts.
    pub fn wait_for_ever(&self) {
        self.registered.wait_for_ever();
    }
}

impl Subject {
    /// Who it is for.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What it reaches.
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// The grant it names, unless it rests on a baseline or on nothing.
    pub fn grant(&self) -> Option<&Arc<Entry>> {
        match &self.basis {
            Basis::Grant(entry) => Some(entry),
            Basis::Baseline(_) | Basis::Observed(_) => None,
        }
    }

    /// The task of the grant, or else of the caller.
    pub fn task(&self) -> Option<&TaskRef> {
        self.grant_task().or(self.task.as_ref())
    }

    fn grant_task(&self) -> Option<&TaskRef> {
        self.grant().and_then(|entry| entry.task())
    }
}

/// The grants, the locks, how fresh they are, and the calls that run under them.
#[derive(Debug)]
pub struct Decider {
    table: Table,
    freshness: Freshness,
    calls: LiveCalls<Subject>,
    clock: Arc<dyn Clock>,
}

/// The running calls of one worker.
pub type Worker = WorkerCalls<Subject>;

impl Decider {
    /// A decider that permits nothing until a source states grants.
    pub fn new(clock: Arc<dyn Clock>, staleness_max: Duration, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(),
            freshness: Freshness::new(staleness_max),
            calls: LiveCalls::new(workers),
            clock,
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

    /// The calls that run.
    pub fn calls(&self) -> &LiveCalls<Subject> {
        &self.calls
    }

    /// The clocks that decisions are made by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
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
        self.table.apply(snapshot, self.clock.now())?;
        self.recheck();
        Ok(())
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

    /// Looks at every running call again and ends those that may not go on.
    pub fn recheck(&self) {
        let now = self.clock.now();
        let locks = self.table.locks();
        self.calls.recheck(now, |subject| self.verdict(subject, &locks, now));
    }

    /// Ends running calls when their deadlines come, and those that a step of the clocks or the age of the view ended.
    /// Runs until `stop`. Dropping the future stops the watch.
    pub async fn watch(&self, stop: CancellationToken) {
        const LOOK_EVERY: Duration = Duration::from_secs(1);
        const SWEEP_EVERY: u32 = 60;
        let mut until_sweep = SWEEP_EVERY;
        loop {
            let now = self.clock.now();
            let pause = self.calls.next_deadline().since(now.uptime).min(LOOK_EVERY);
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.calls.deadline_moved() => false,
                () = tokio::time::sleep(pause) => true,
            };
            if !looked {
                continue;
            }
            if !self.calls.is_empty() {
                self.recheck();
            }
            if pause == LOOK_EVERY {
                until_sweep -= 1;
                if until_sweep == 0 {
                    until_sweep = SWEEP_EVERY;
                    self.table.sweep(self.clock.now());
                }
            }
        }
    }

    /// Why a running call may not go on, or until when it may without another look.
    fn verdict(&self, subject: &Subject, locks: &[Lock], now: Now) -> Result<Uptime, Reason> {
        let locked = LockSubject {
            principal: &subject.principal,
            backend: &subject.backend.name,
            action: subject.action.as_ref().map(|action| &action.name),
            resource: &subject.resource,
            grant: subject.grant().map(|entry| entry.id()),
            task: subject.task(),
        };
        if locks.iter().any(|lock| lock.stops(locked, now.wall)) {
            return Err(Reason::Lock);
        }
        let identity = subject.identity.remaining(now);
        if identity.is_zero() {
            return Err(Reason::IdentityExpired);
        }
        let mut until = now.uptime.plus(identity);
        if matches!(subject.basis, Basis::Observed(_)) {
            return Ok(until);
        }
        if !self.freshness.is_fresh(now) {
            return Err(Reason::StaleSource);
        }
        until = until.min(self.freshness.stale_from());
        if let Basis::Grant(entry) = &subject.basis {
            match entry.state(now) {
                // A call that took the last use may finish.
                GrantState::Active | GrantState::Exhausted => {}
                GrantState::Expired => return Err(Reason::Expired),
                GrantState::Released => return Err(Reason::Released),
                GrantState::Revoked => return Err(Reason::Revoked),
            }
            until = until.min(now.uptime.plus(entry.window().remaining(now)));
        }
        Ok(until)
    }

    /// Decides one call. Takes a use of a counted grant; it is never given back.
    ///
    /// # Errors
    /// A [`Denial`] with every reason that was met.
    pub fn decide(self: &Arc<Self>, worker: &Worker, question: Question<'_>) -> Result<Permit, Denial> {
        let now = self.clock.now();
        let basis = match self.basis_of(&question, now, true) {
            Ok(basis) => basis,
            Err(denial) if question.backend.mode == Mode::Observe && denial.reason != Reason::Lock => {
                Basis::Observed(denial)
            }
            Err(denial) => return Err(denial),
        };
        let deadline = self.deadline(&basis, question.identity, now);
        let subject = Subject {
            principal: question.principal.clone(),
            identity: question.identity,
            backend: Arc::clone(question.backend),
            action: question.action.cloned(),
            resource: question.resource.clone(),
            task: question.task.cloned(),
            basis,
        };
        let permit = Permit { registered: worker.register(subject, deadline), decider: Arc::clone(self) };
        // INVARIANT: register, then check, then act. From here on every change finds the call.
        permit.confirm().map_err(Denial::of)?;
        Ok(permit)
    }

    /// What would be decided, without taking a use and without letting anything through.
    ///
    /// # Errors
    /// The [`Denial`] that the call would meet.
    pub fn foresee(&self, question: &Question<'_>) -> Result<Basis, Denial> {
        self.basis_of(question, self.clock.now(), false)
    }

    fn deadline(&self, basis: &Basis, identity: Anchored, now: Now) -> Uptime {
        let until = now.uptime.plus(identity.remaining(now));
        match basis {
            Basis::Observed(_) => until,
            Basis::Baseline(_) => until.min(self.freshness.stale_from()),
            Basis::Grant(entry) => {
                until.min(self.freshness.stale_from()).min(now.uptime.plus(entry.window().remaining(now)))
            }
        }
    }

    fn basis_of(&self, question: &Question<'_>, now: Now, take: bool) -> Result<Basis, Denial> {
        let locks = self.table.locks();
        let subject = LockSubject {
            principal: question.principal,
            backend: &question.backend.name,
            action: question.action.map(|action| &action.name),
            resource: question.resource,
            grant: None,
            task: question.task,
        };
        if let Some(lock) = locks.iter().find(|lock| lock.stops(subject, now.wall)) {
            return Err(Denial { message: Some(lock.message.clone()), ..Denial::of(Reason::Lock) });
        }
        let Some(action) = question.action else { return Err(Denial::of(Reason::UnmappedAction)) };
        if !self.freshness.is_fresh(now) {
            return Err(Denial::of(Reason::StaleSource));
        }
        for (place, baseline) in question.backend.baselines.iter().enumerate() {
            if baseline.principals.contains(question.principal)
                && baseline.scope.covers(&action.name, question.resource)
            {
                return Ok(Basis::Baseline(place));
            }
        }
        loop {
            let search = self.search(question, action, subject, &locks, now);
            match search.best {
                None => return Err(search.into_denial()),
                Some(entry) if !take || entry.take_use() => return Ok(Basis::Grant(entry)),
                // Another call took the last use in between; whatever else covers the call may still do.
                Some(_) => {}
            }
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
                        LockSubject { grant: Some(entry.id()), task: entry.task().or(question.task), ..subject };
                    match locks.iter().find(|lock| lock.stops(subject, now.wall)) {
                        Some(lock) => {
                            search.message = Some(lock.message.clone());
                            Reason::Lock
                        }
                        None => return search.consider(entry),
                    }
                }
            };
            search.refuse(reason, entry);
        });
        search
    }
}

/// What a look at a principal's grants found.
#[derive(Debug, Default)]
struct Search {
    best: Option<Arc<Entry>>,
    holds_other: bool,
    reasons: SmallVec<[Reason; 4]>,
    closest: Option<(u8, GrantId)>,
    message: Option<String>,
}

impl Search {
    /// Prefers a grant that is not counted, then the one that lasts longest, then the one known longest.
    fn consider(&mut self, entry: &Arc<Entry>) {
        let rank = |e: &Entry| (!e.is_counted(), e.window().window().expires_at, std::cmp::Reverse(e.serial()));
        if self.best.as_ref().is_none_or(|best| rank(entry) > rank(best)) {
            self.best = Some(Arc::clone(entry));
        }
    }

    fn refuse(&mut self, reason: Reason, entry: &Entry) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
        let weight = weight(reason);
        if self.closest.as_ref().is_none_or(|(closest, _)| weight < *closest) {
            self.closest = Some((weight, entry.id().clone()));
        }
    }

    fn into_denial(mut self) -> Denial {
        if self.reasons.is_empty() {
            self.reasons.push(if self.holds_other { Reason::OutOfScope } else { Reason::NoGrant });
        }
        self.reasons.sort_by_key(|reason| weight(*reason));
        let reason = self.reasons[0];
        Denial { reason, reasons: self.reasons, grant: self.closest.map(|(_, id)| id), message: self.message }
    }
}

/// Which of several reasons the caller is told first: the one that says most about what to do next.
fn weight(reason: Reason) -> u8 {
    match reason {
        Reason::Lock => 0,
        Reason::NotYet => 1,
        Reason::Exhausted => 2,
        Reason::Revoked => 3,
        Reason::Released => 4,
        Reason::Expired => 5,
        _ => 6,
    }
}
