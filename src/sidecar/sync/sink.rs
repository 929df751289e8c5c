//! The grant table as a sink of what a source knows.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::id::{BackendName, Revision};
use crate::domain::lock::Lock;
use crate::domain::time::Uptime;
use crate::domain::view::{Change, Snapshot};
use crate::sidecar::decide::Decider;
use crate::sidecar::decide::table::GRANTS_PER_PRINCIPAL_MAX;
use crate::sidecar::plane::given::GivenMaps;
use crate::sync::{Bundle, GUARDRAILS, Sink};

/// Puts what a source knows into a sidecar's table.
#[derive(Debug)]
pub struct TableSink {
    decider: Arc<Decider>,
    maps: Option<Arc<GivenMaps>>,
    locks: Mutex<Vec<Lock>>,
}

impl TableSink {
    /// The table of this decider. It has no other sink.
    pub fn new(decider: Arc<Decider>) -> Self {
        Self { decider, maps: None, locks: Mutex::default() }
    }

    /// The same, which puts action maps in force too.
    #[must_use]
    pub fn mapping(self, maps: Arc<GivenMaps>) -> Self {
        Self { maps: Some(maps), ..self }
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
                Change::Grant(_) | Change::End { .. } | Change::Declared => continue,
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

    fn bundle(&self, bundle: Bundle) -> Result<(), String> {
        if let Some(backend) = bundle.backend() {
            let taken = self.maps.as_ref().map_or(Ok(false), |maps| maps.take(&bundle))?;
            if taken {
                tracing::info!(backend, digest = %bundle.digest, "action map changed");
            }
            return Ok(());
        }
        if &*bundle.name != GUARDRAILS {
            // Of a later version, which does without our knowing it.
            return Ok(());
        }
        self.decider.read_guardrails(&bundle.content).map(|changed| {
            if changed {
                tracing::info!(digest = %bundle.digest, "guardrails changed");
            }
        })
    }

    fn prove(&self, at: Uptime) {
        self.decider.freshness().prove(at);
    }

    fn ahead(&self, by: Duration) {
        self.decider.ahead(by);
    }
}

/// Keeps what a holder may have on a backend, the newest first, and says so where that is not all.
fn leave_out_too_many(snapshot: &mut Snapshot) {
    let mut held: HashMap<(&str, &BackendName), usize, ahash::RandomState> = HashMap::default();
    let newest_first = snapshot.grants.iter().enumerate().rev();
    let too_many = newest_first.filter_map(|(place, stated)| {
        let count = held.entry((stated.principal.as_str(), stated.backend)).or_default();
        *count += 1;
        (*count > GRANTS_PER_PRINCIPAL_MAX).then_some(place)
    });
    let too_many: HashSet<usize> = too_many.collect();
    let left_out = too_many.len();
    if left_out > 0 {
        snapshot.grants.retain(|place| !too_many.contains(&place));
        tracing::warn!(left_out, most = GRANTS_PER_PRINCIPAL_MAX, "grants of holders of too many are not in force");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::domain::action::{ActionPattern, Scope};
    use crate::domain::grant::{Grant, GrantState};
    use crate::domain::id::GrantId;
    use crate::domain::principal::Principal;
    use crate::domain::resource::ResourcePattern;
    use crate::domain::time::{Clock, Now};
    use crate::domain::time::{Timestamp, Window};
    use crate::domain::view::StatedGrant;
    use crate::guardrail::{GuardrailBundle, GuardrailDocument, Mode};
    use crate::sync::feed::{Changes, Feed, FeedSource};
    use crate::sync::{GrantSource, Work};

    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Now {
            Now { wall: Timestamp::from_seconds(1_000), uptime: Uptime::from_micros(1) }
        }
    }

    /// A feed that says what a test puts in it, and counts how often it is asked for bundles.
    #[derive(Default)]
    struct Scripted {
        bundle: Mutex<GuardrailBundle>,
        changes: Mutex<Vec<(Revision, Change)>>,
        asked: AtomicUsize,
        stirred: tokio::sync::Notify,
    }

    impl Feed for Arc<Scripted> {
        fn snapshot(&self) -> Work<'_, Result<Snapshot, String>> {
            Box::pin(async { Ok(Snapshot::default()) })
        }

        fn bundles(&self, revision: Revision) -> Work<'_, Result<Vec<Bundle>, String>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let bundle = self.bundle.lock().unwrap().clone();
            let content = serde_json::to_vec(&bundle).unwrap().into();
            let bundle = Bundle { name: GUARDRAILS.into(), digest: bundle.digest().into(), revision, content };
            Box::pin(async { Ok(vec![bundle]) })
        }

        fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>> {
            let mut changes = self.changes.lock().unwrap().clone();
            changes.retain(|(revision, _)| *revision > after);
            Box::pin(async { Ok(Changes::Next(changes)) })
        }

        fn moved(&mut self) -> Work<'_, ()> {
            Box::pin(self.stirred.notified())
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
        let sink = Arc::new(TableSink::new(Arc::clone(&decider)));
        let mut source = FeedSource::new(Arc::clone(&feed), sink, Arc::new(Still));
        let good = bundle(r#"@id("a") forbid(principal, action, resource in Leasehold::Backend::"b");"#);
        *feed.bundle.lock().unwrap() = good.clone();
        source.first().await.unwrap();
        assert_eq!(decider.guardrails().digest(), good.digest());
        let (changed, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let stop = tokio_util::sync::CancellationToken::new();
        let following = Box::new(source).follow(
            stop.clone(),
            Box::new(move || {
                let _ = changed.send(());
            }),
        );
        let following = tokio::spawn(following);
        // However many documents changed at once, it is asked once.
        let asked = feed.asked.load(Ordering::SeqCst);
        *feed.bundle.lock().unwrap() = bundle("forbid(");
        *feed.changes.lock().unwrap() = (1..=3).map(|n| (Revision(n), Change::Declared)).collect();
        feed.stirred.notify_one();
        seen.recv().await.unwrap();
        assert_eq!(feed.asked.load(Ordering::SeqCst), asked + 1);
        // What cannot be used costs nobody their view.
        assert!(decider.guardrails_are_broken() && decider.freshness().is_fresh(Still.now()));
        assert_eq!((decider.guardrails().digest(), decider.table().revision()), (&*good.digest(), Revision(3)));
        *feed.bundle.lock().unwrap() = GuardrailBundle::default();
        feed.changes.lock().unwrap().push((Revision(4), Change::Declared));
        feed.stirred.notify_one();
        seen.recv().await.unwrap();
        assert!(decider.guardrails().is_empty() && !decider.guardrails_are_broken());
        stop.cancel();
        following.await.unwrap();
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
        let has = |id: &str| snapshot.grants.iter().any(|stated| stated.id.as_str() == id);
        assert!(has("g9999") && has(&format!("g{}", GRANTS_PER_PRINCIPAL_MAX + 4)) && !has("g0") && !has("g4"));
    }
}
