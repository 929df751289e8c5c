//! What runs is looked at again: whenever something changed, and when a deadline comes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Basis, Decider, Subject};
use crate::domain::grant::GrantState;
use crate::domain::lock::{Lock, LockSubject};
use crate::domain::time::{Now, Uptime};
use crate::guardrail::Guardrails;
use crate::sidecar::reason::Reason;

impl Decider {
    /// Looks at every running call again and ends those that may not go on.
    pub fn recheck(&self) {
        let now = self.clock.now();
        let (locks, guardrails) = (self.table.locks(), self.guardrails.load());
        self.calls.recheck(now, |subject| self.verdict(subject, &locks, &guardrails, now));
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
    pub(super) fn verdict(
        &self,
        subject: &Subject,
        locks: &[Lock],
        guardrails: &Guardrails,
        now: Now,
    ) -> Result<Uptime, Reason> {
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
        if self.freshness.is_fresh(now) {
            until = until.min(self.freshness.stale_from());
        } else if subject.backend.serve_stale && subject.grant().is_some() {
            subject.stale.store(true, Ordering::Relaxed);
        } else {
            return Err(Reason::StaleSource);
        }
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
        if !subject.is_let_by(guardrails, now) {
            return Err(Reason::Guardrail);
        }
        Ok(until)
    }
}
