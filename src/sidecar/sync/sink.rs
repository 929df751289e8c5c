//! The grant table as a sink of what a source knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::id::{BackendName, Revision};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::time::Uptime;
use crate::domain::view::{Change, Snapshot};
use crate::sidecar::decide::Decider;
use crate::sidecar::decide::table::GRANTS_PER_PRINCIPAL_MAX;
use crate::sync::{Bundle, Sink};

/// Puts what a source knows into a sidecar's table.
#[derive(Debug)]
pub struct TableSink {
    decider: Arc<Decider>,
    locks: Mutex<Vec<Lock>>,
}

impl TableSink {
    /// The table of this decider. It has no other sink.
    pub fn new(decider: Arc<Decider>) -> Self {
        Self { decider, locks: Mutex::default() }
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), String> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut has_locked = false;
        for change in &changes {
            match change {
                Change::Lock(lock) => {
                    locks.retain(|held| held.id != lock.id);
                    locks.push((**lock).clone());
                }
                Change::Unlock(id) => locks.retain(|held| held.id != *id),
                Change::Grant(_) | Change::End { .. } | Change::Other => continue,
            }
            has_locked = true;
        }
        let locks = has_locked.then(|| locks.clone());
        self.decider.change(changes, locks).map_err(|error| error.to_string())
    }
}

impl Sink for TableSink {
    fn replace(&self, mut snapshot: Snapshot) -> Result<(), String> {
        leave_out_too_many(&mut snapshot);
        let locks = snapshot.locks.clone();
        self.decider.apply(snapshot).map_err(|error| error.to_string())?;
        *self.locks.lock().unwrap_or_else(PoisonError::into_inner) = locks;
        Ok(())
    }

    fn advance(&self, to: Revision, changes: Vec<Change>) -> Result<(), String> {
        self.apply(changes)?;
        self.decider.table().advance(to);
        Ok(())
    }

    fn hurry(&self, ahead: Vec<(Revision, Change)>) {
        // Nothing that takes away is refused.
        let _ = self.apply(ahead.into_iter().map(|(_, change)| change).collect());
    }

    fn bundle(&self, _: Bundle) -> Result<(), String> {
        Ok(())
    }

    fn prove(&self, at: Uptime) {
        self.decider.freshness().prove(at);
    }
}

/// Keeps what a holder may have on a backend, the newest first, and says so where that is not all.
fn leave_out_too_many(snapshot: &mut Snapshot) {
    let mut held: HashMap<(Principal, BackendName), usize> = HashMap::new();
    let before = snapshot.grants.len();
    snapshot.grants.reverse();
    snapshot.grants.retain(|stated| {
        let count = held.entry((stated.grant.principal.clone(), stated.grant.backend.clone())).or_default();
        *count += 1;
        *count <= GRANTS_PER_PRINCIPAL_MAX
    });
    let left_out = before - snapshot.grants.len();
    if left_out > 0 {
        tracing::warn!(left_out, most = GRANTS_PER_PRINCIPAL_MAX, "grants of holders of too many are not in force");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::{ActionPattern, Scope};
    use crate::domain::grant::{Grant, GrantState};
    use crate::domain::id::GrantId;
    use crate::domain::resource::ResourcePattern;
    use crate::domain::time::{Timestamp, Window};
    use crate::domain::view::StatedGrant;

    #[test]
    fn a_holder_of_too_many_costs_nobody_else_a_grant() {
        let scope = Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]);
        let grant = |number: usize, who: &str| StatedGrant {
            grant: Grant {
                id: GrantId::new(&format!("g{number}")).unwrap(),
                principal: Principal::token("https://idp.test", who).unwrap(),
                backend: BackendName::new("b").unwrap(),
                scope: Arc::new(scope.clone()),
                window: Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX },
                uses_max: None,
                task: None,
            },
            state: GrantState::Active,
        };
        let many = (0..GRANTS_PER_PRINCIPAL_MAX + 5).map(|number| grant(number, "many"));
        let grants = many.chain([grant(9_999, "other")]).collect();
        let mut snapshot = Snapshot { grants, ..Snapshot::default() };
        leave_out_too_many(&mut snapshot);
        assert_eq!(snapshot.grants.len(), GRANTS_PER_PRINCIPAL_MAX + 1);
        let has = |id: &str| snapshot.grants.iter().any(|stated| stated.grant.id.as_str() == id);
        assert!(has("g9999") && has(&format!("g{}", GRANTS_PER_PRINCIPAL_MAX + 4)) && !has("g0") && !has("g4"));
    }
}
