//! Grants from a feed: one snapshot, then every change after it, in the order of revisions; and the guardrails over them.
//!
//! The view is proved current whenever the feed was asked and everything up to its answer is in force. A feed that does
//! not answer, or whose change cannot be applied, proves nothing: the view ages, and then everything is denied.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Changed, GrantSource, Work};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::id::{BackendName, GrantId, LockId, Revision};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::guardrail::GuardrailBundle;
use crate::sidecar::decide::Decider;
use crate::sidecar::decide::stated::{Refused, Snapshot, StatedGrant};
use crate::sidecar::decide::table::GRANTS_PER_PRINCIPAL_MAX;

/// One change of what is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A grant began, or became narrower.
    Grant(Box<Grant>),
    /// A grant ended.
    End(GrantId, GrantState),
    /// A lock is in force.
    Lock(Box<Lock>),
    /// A lock was lifted.
    Unlock(LockId),
    /// What is declared changed, and the guardrails with it or not.
    Declared,
    /// Nothing that matters here.
    Other,
}

/// What came after a revision.
#[derive(Debug)]
pub enum Changes {
    /// All changes up to the head, or the first of them; none where there are none.
    Next(Vec<(Revision, Change)>),
    /// They are kept no more: begin with a snapshot.
    Compacted,
}

/// Something that knows all grants and says what changes.
pub trait Feed: Send + Sync + 'static {
    /// All that is in force, at one moment.
    fn snapshot(&self) -> Work<'_, Result<Snapshot, String>>;
    /// The guardrails of this moment or a later one.
    fn guardrails(&self) -> Work<'_, Result<GuardrailBundle, String>>;
    /// What changed after that revision.
    fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>>;
    /// Returns when something may have changed since it was last asked, and at once if that is not known.
    fn moved(&mut self) -> Work<'_, ()>;
}

/// How often a quiet feed is asked, so that the view stays proved; a fraction of any sensible limit of staleness.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A source that follows a feed.
pub struct FeedSource<F> {
    feed: F,
    decider: Arc<Decider>,
    revision: Revision,
    locks: Vec<Lock>,
}

impl<F: Feed> FeedSource<F> {
    /// A source that has not been asked.
    pub fn new(feed: F, decider: Arc<Decider>) -> Self {
        Self { feed, decider, revision: Revision(0), locks: Vec::new() }
    }

    async fn begin(&mut self) -> Result<(), String> {
        let before = self.decider.clock().now().uptime;
        let mut snapshot = self.feed.snapshot().await?;
        // First what forbids, then what permits; asked for later, it is no older.
        self.guard().await?;
        leave_out_too_many(&mut snapshot);
        let (revision, locks) = (snapshot.revision, snapshot.locks.clone());
        tokio::task::block_in_place(|| self.decider.apply(snapshot)).map_err(|error| error.to_string())?;
        (self.revision, self.locks) = (revision, locks);
        self.decider.freshness().prove(before);
        Ok(())
    }

    /// Puts the guardrails of this moment in force. Those that cannot be used are not an error of the view: the last good ones
    /// hold.
    async fn guard(&self) -> Result<(), String> {
        let bundle = self.feed.guardrails().await?;
        match tokio::task::block_in_place(|| self.decider.set_guardrails(&bundle)) {
            Ok(true) => {
                tracing::info!(policies = bundle.policies.len(), digest = bundle.digest(), "guardrails changed")
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "guardrails not in force; the last good ones stay"),
        }
        Ok(())
    }

    /// Takes in what changed; returns whether anything did.
    async fn catch_up(&mut self) -> Result<bool, String> {
        let mut changed = false;
        loop {
            let before = self.decider.clock().now().uptime;
            match self.feed.changes(self.revision).await? {
                Changes::Compacted => {
                    self.begin().await?;
                    return Ok(true);
                }
                Changes::Next(changes) if changes.is_empty() => {
                    self.decider.freshness().prove(before);
                    return Ok(changed);
                }
                Changes::Next(changes) => {
                    let mut guarded = false;
                    for (revision, change) in changes {
                        // Before what comes after it: a later grant may rest on a guardrail that is new. What is read now
                        // is no older than any of these changes, so once is enough.
                        if change == Change::Declared && !guarded {
                            self.guard().await?;
                            guarded = true;
                        }
                        self.take(revision, change)?;
                    }
                    changed = true;
                }
            }
        }
    }

    fn take(&mut self, revision: Revision, change: Change) -> Result<(), String> {
        if revision.0 != self.revision.0 + 1 {
            // Dense by promise: what is missing could be an end.
            return Err(format!("revision {revision} came after {}", self.revision));
        }
        match change {
            Change::Grant(grant) => {
                let stated = StatedGrant { grant: *grant, state: GrantState::Active };
                match self.decider.state(stated) {
                    // One holder of very many must not cost all others their view: this grant is not in force.
                    Err(error @ Refused::TooMany { .. }) => tracing::warn!(%error, "a grant is not in force"),
                    other => other.map_err(|error| error.to_string())?,
                }
            }
            Change::End(id, state) => {
                self.decider.end(&id, state);
            }
            Change::Lock(lock) => {
                self.locks.retain(|held| held.id != lock.id);
                self.locks.push(*lock);
                self.decider.set_locks(self.locks.clone());
            }
            Change::Unlock(id) => {
                self.locks.retain(|held| held.id != id);
                self.decider.set_locks(self.locks.clone());
            }
            Change::Declared | Change::Other => {}
        }
        self.revision = revision;
        self.decider.table().advance(revision);
        Ok(())
    }

    async fn run(mut self, stop: CancellationToken, changed: Changed) {
        let mut said = String::new();
        let mut lost = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.feed.moved() => {}
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            let outcome = if lost { self.begin().await.map(|()| true) } else { self.catch_up().await };
            match outcome {
                Ok(moved) => {
                    (lost, said) = (false, String::new());
                    if moved {
                        changed();
                    }
                }
                Err(error) => {
                    // A change that could not be applied leaves a hole, which only a snapshot closes.
                    lost = true;
                    if error != said {
                        tracing::error!(%error, "the grants are not current; they hold until the view is stale");
                        said = error;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
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

impl<F: Feed> GrantSource for FeedSource<F> {
    fn first(&mut self) -> Work<'_, Result<(), String>> {
        Box::pin(self.begin())
    }

    fn follow(self: Box<Self>, stop: CancellationToken, changed: Changed) -> Work<'static, ()> {
        Box::pin(self.run(stop, changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::{ActionPattern, Scope};
    use crate::domain::resource::ResourcePattern;
    use crate::domain::time::{Clock, Now, Timestamp, Uptime, Window};
    use crate::guardrail::{GuardrailDocument, Mode};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Now {
            Now { wall: Timestamp::from_seconds(1_000), uptime: Uptime::from_micros(1) }
        }
    }

    /// A feed that says what a test puts in it, and counts how often it is asked for guardrails.
    #[derive(Default)]
    struct Scripted {
        bundle: Mutex<GuardrailBundle>,
        changes: Mutex<Vec<(Revision, Change)>>,
        asked: AtomicUsize,
    }

    impl Feed for Arc<Scripted> {
        fn snapshot(&self) -> Work<'_, Result<Snapshot, String>> {
            Box::pin(async { Ok(Snapshot::default()) })
        }

        fn guardrails(&self) -> Work<'_, Result<GuardrailBundle, String>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let bundle = self.bundle.lock().unwrap().clone();
            Box::pin(async { Ok(bundle) })
        }

        fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>> {
            let mut changes = self.changes.lock().unwrap().clone();
            changes.retain(|(revision, _)| *revision > after);
            Box::pin(async { Ok(Changes::Next(changes)) })
        }

        fn moved(&mut self) -> Work<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn bundle(cedar: &str) -> GuardrailBundle {
        let backends = serde_json::json!([{"name": "b", "actions": [{"name": "x.y", "class": "read"}]}]);
        GuardrailBundle {
            policies: vec![GuardrailDocument { name: "d".to_owned(), mode: Mode::Enforce, cedar: cedar.to_owned() }],
            backends: serde_json::from_value(backends).unwrap(),
            principals: Vec::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn guardrails_come_first_and_follow_what_is_declared() {
        let feed = Arc::new(Scripted::default());
        let decider = Decider::new(Arc::new(Still), Duration::from_secs(30), 1);
        let mut source = FeedSource::new(Arc::clone(&feed), Arc::clone(&decider));
        let good = bundle(r#"@id("a") forbid(principal, action, resource in Leasehold::Backend::"b");"#);
        *feed.bundle.lock().unwrap() = good.clone();
        source.first().await.unwrap();
        assert_eq!(decider.guardrails().digest(), good.digest());
        // However many documents changed at once, it is asked once; and not for what is none.
        let declared = (1..=3).map(|n| (Revision(n), Change::Declared));
        *feed.changes.lock().unwrap() = declared.chain([(Revision(4), Change::Other)]).collect();
        *feed.bundle.lock().unwrap() = bundle("forbid(");
        let asked = feed.asked.load(Ordering::SeqCst);
        assert_eq!(source.catch_up().await, Ok(true));
        assert_eq!(feed.asked.load(Ordering::SeqCst), asked + 1);
        // What cannot be used costs nobody their view.
        assert!(decider.guardrails_are_broken() && decider.freshness().is_fresh(Still.now()));
        assert_eq!((decider.guardrails().digest(), decider.table().revision()), (&*good.digest(), Revision(4)));
        feed.changes.lock().unwrap().push((Revision(5), Change::Declared));
        *feed.bundle.lock().unwrap() = GuardrailBundle::default();
        assert_eq!(source.catch_up().await, Ok(true));
        assert!(decider.guardrails().is_empty() && !decider.guardrails_are_broken());
    }

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
