//! The proof that a call may go through, for as long as it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use super::entry::Entry;
use super::judged::Judged;
use super::live::{LiveCall, Registered, Watcher};
use super::{BackendRules, Basis, CredentialSlot, Decider};
use crate::domain::id::{Borrowed, TaskRef};
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;
use crate::domain::time::{Anchored, Now};
use crate::sidecar::reason::Reason;
use crate::sidecar::resolve::ActionSpec;

/// The proof, for one call, that a named grant (or the baseline) allows it, for as long as it does.
///
/// It is registered with the running calls until it is dropped, so whatever ends the grant ends the call.
#[derive(Debug)]
pub struct Permit {
    pub(super) registered: Registered<Subject>,
    pub(super) decider: Arc<Decider>,
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
    pub fn task(&self) -> Option<Borrowed<'_, TaskRef>> {
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
        self.confirm_at(self.decider.clock.now())
    }

    /// As [`Permit::confirm`], with a reading of the clocks that was made for it.
    pub(super) fn confirm_at(&self, now: Now) -> Result<(), Reason> {
        if let Some(reason) = self.registered.call().ended() {
            return Err(reason);
        }
        let decider = &self.decider;
        decider.verdict(self.subject(), &decider.table.locks(), &decider.guardrails.load(), now).map(|_| ())
    }

    /// [`Permit::confirm`] and then [`Permit::wait_at_most`].
    ///
    /// # Errors
    /// The reason for which the call must not go on.
    pub fn confirm_and_wait(&self, patience: Duration) -> Result<(), Reason> {
        let now = self.decider.clock.now();
        self.confirm_at(now)?;
        self.registered.wait_until(now.uptime.plus(patience));
        Ok(())
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

    /// Whether the call went on although the view of the grants was stale.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// The task of the grant, or else of the caller.
    pub fn task(&self) -> Option<Borrowed<'_, TaskRef>> {
        self.grant_task().or(self.task.as_ref().map(Borrowed::from))
    }

    fn grant_task(&self) -> Option<Borrowed<'_, TaskRef>> {
        self.grant().and_then(|entry| entry.task())
    }
}

/// A call that runs: what has to stay true for it.
#[derive(Debug)]
pub struct Subject {
    pub(super) principal: Principal,
    pub(super) identity: Anchored,
    pub(super) backend: Arc<BackendRules>,
    pub(super) action: Option<Arc<ActionSpec>>,
    pub(super) resource: Resource,
    pub(super) task: Option<TaskRef>,
    pub(super) basis: Basis,
    pub(super) judged: Judged,
    /// Set once the call was let go on although the view was stale.
    pub(super) stale: AtomicBool,
}
