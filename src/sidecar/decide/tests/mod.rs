//! Tests of the decision: a table of cases, and properties over any order of events.

mod bound;
mod revival;
mod source;

use std::sync::Mutex;

use proptest::prelude::*;

use super::live::Watcher;
use super::*;
use crate::domain::action::{ActionClass, ActionPattern};
use crate::domain::grant::Grant;
use crate::domain::id::{ActionName, LockId, Revision};
use crate::domain::resource::ResourcePattern;
use crate::domain::time::{Timestamp, Window};
use crate::domain::view::{Snapshot, StatedGrant};

/// A clock that a test steps.
#[derive(Debug)]
pub(super) struct TestClock(Mutex<Now>);

impl TestClock {
    fn at(seconds: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Now {
            wall: Timestamp::from_seconds(seconds),
            uptime: Uptime::from_micros(seconds * 1_000_000),
        })))
    }

    pub(super) fn pass(&self, seconds: i64) {
        self.step_wall(seconds);
        let mut now = self.0.lock().unwrap();
        now.uptime = Uptime::from_micros(now.uptime.as_micros() + seconds * 1_000_000);
    }

    fn step_wall(&self, seconds: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall = Timestamp::from_micros(now.wall.as_micros() + seconds * 1_000_000);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

pub(super) fn principal(name: &str) -> Principal {
    Principal::token("https://idp.test", name).unwrap()
}

pub(super) fn scope(action: &str, resource: &str) -> Scope {
    Scope::new(vec![ActionPattern::new(action).unwrap()], vec![ResourcePattern::new(resource).unwrap()])
}

pub(super) fn grant(id: &str, action: &str, resource: &str, from: i64, to: i64) -> StatedGrant {
    StatedGrant {
        grant: Grant {
            id: GrantId::new(id).unwrap(),
            principal: principal("bot"),
            backend: BackendName::new("rabbitmq").unwrap(),
            scope: scope(action, resource).into(),
            window: Window { not_before: Timestamp::from_seconds(from), expires_at: Timestamp::from_seconds(to) },
            uses_max: None,
            task: None,
        },
        state: GrantState::Active,
    }
}

pub(super) fn counted(mut stated: StatedGrant, uses: u32) -> StatedGrant {
    stated.grant.uses_max = Some(uses);
    stated
}

pub(super) fn lock(id: &str) -> Lock {
    Lock {
        id: LockId::new(id).unwrap(),
        principal: None,
        backend: None,
        action: None,
        resource: None,
        grant: None,
        task: None,
        message: "stop".to_owned(),
        expires_at: None,
    }
}

pub(super) struct Bench {
    pub(super) clock: Arc<TestClock>,
    pub(super) decider: Arc<Decider>,
    worker: Worker,
    pub(super) rules: Arc<BackendRules>,
    revision: u64,
}

impl Bench {
    pub(super) fn new() -> Self {
        let clock = TestClock::at(1_000);
        let decider = Decider::new(Arc::<TestClock>::clone(&clock), Duration::from_secs(30), 1);
        decider.freshness().prove(clock.now().uptime);
        let worker = decider.worker();
        let rules = BackendRules {
            name: BackendName::new("rabbitmq").unwrap(),
            mode: Mode::Enforce,
            baselines: Vec::new(),
            credential: None,
            serve_stale: false,
        };
        Self { clock, decider, worker, rules: Arc::new(rules), revision: 0 }
    }

    pub(super) fn state(&mut self, grants: Vec<StatedGrant>) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let grants = grants.into_iter().collect();
        self.decider.apply(Snapshot { revision, grants, locks: Vec::new() }).unwrap();
        self.decider.freshness().prove(self.clock.now().uptime);
    }

    pub(super) fn ask_as(&self, who: &Principal, action: &str, resource: &str) -> Result<Permit, Denial> {
        self.ask_with(who, action, resource, Arguments::Unread)
    }

    fn ask_with(&self, who: &Principal, action: &str, resource: &str, arguments: Arguments) -> Result<Permit, Denial> {
        let action = Arc::new(ActionSpec {
            name: ActionName::new(action).unwrap(),
            class: ActionClass::Write,
            index: 0,
            streaming: false,
            upgrade: None,
        });
        let always = Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX };
        let question = Question {
            principal: who,
            identity: always.anchor(self.clock.now()),
            task: None,
            backend: &self.rules,
            action: Some(&action),
            resource: &Resource::exact(resource),
            arguments: &arguments,
        };
        self.decider.decide(&self.worker, question)
    }

    pub(super) fn ask(&self, action: &str, resource: &str) -> Result<Permit, Reason> {
        self.ask_as(&principal("bot"), action, resource).map_err(|denial| denial.reason)
    }
}

pub(super) const ORDERS: &str = "vhosts/prod/queues/orders";

#[test]
fn nothing_is_permitted_without_a_grant() {
    let bench = Bench::new();
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::NoGrant);
}

#[test]
fn a_view_never_proved_permits_nothing() {
    let clock = TestClock::at(1);
    let decider = Decider::new(clock, Duration::from_secs(30), 1);
    let bench = Bench { worker: decider.worker(), decider, ..Bench::new() };
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::StaleSource);
}

#[test]
fn a_grant_permits_its_scope_inside_its_window() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "queue.delete", ORDERS, 1_010, 1_020)]);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::NotYet);
    bench.clock.pass(10);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap().grant().unwrap().id().as_str(), "g1");
    assert_eq!(bench.ask("queue.delete", "vhosts/prod/queues/other").unwrap_err(), Reason::OutOfScope);
    assert_eq!(bench.ask("queue.purge", ORDERS).unwrap_err(), Reason::OutOfScope);
    assert_eq!(bench.ask_as(&principal("eve"), "queue.delete", ORDERS).unwrap_err().reason, Reason::NoGrant);
    bench.clock.pass(10);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Expired);
}

#[test]
fn a_grant_of_one_backend_is_none_of_another() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    let other = BackendRules { name: BackendName::new("etcd").unwrap(), ..(*bench.rules).clone() };
    bench.rules = Arc::new(other);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::NoGrant);
}

#[test]
fn overlapping_grants_are_a_union_and_the_end_of_one_leaves_the_other() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "queue.*", ORDERS, 0, 3_000), grant("g2", "queue.delete", "**", 0, 2_000)]);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap().grant().unwrap().id().as_str(), "g1");
    assert!(bench.decider.end(&GrantId::new("g1").unwrap(), GrantState::Revoked));
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap().grant().unwrap().id().as_str(), "g2");
    assert!(bench.decider.end(&GrantId::new("g2").unwrap(), GrantState::Released));
    let denial = bench.ask_as(&principal("bot"), "queue.delete", ORDERS).unwrap_err();
    assert_eq!(denial.reasons.as_slice(), [Reason::Revoked, Reason::Released]);
}

#[test]
fn a_counted_grant_is_used_as_often_as_it_says_by_however_many_at_once() {
    let mut bench = Bench::new();
    bench.state(vec![counted(grant("g1", "*", "**", 0, 2_000), 100)]);
    let permitted: usize = std::thread::scope(|scope| {
        let bench = &bench;
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(move || (0..100).filter(|_| bench.ask("queue.delete", ORDERS).is_ok()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(permitted, 100);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Exhausted);
}

#[test]
fn a_counted_grant_is_spared_while_another_covers_the_call() {
    let mut bench = Bench::new();
    bench.state(vec![counted(grant("g1", "*", "**", 0, 3_000), 1), grant("g2", "*", "**", 0, 2_000)]);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap().grant().unwrap().id().as_str(), "g2");
}

#[test]
fn locks_come_first_and_end_what_runs() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    let running = bench.ask("queue.delete", ORDERS).unwrap();
    bench.decider.set_locks(vec![Lock { grant: Some(GrantId::new("g1").unwrap()), ..lock("l1") }]);
    assert_eq!(running.confirm(), Err(Reason::Lock));
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Lock);
    bench.decider.set_locks(Vec::new());
    assert_eq!(running.confirm(), Err(Reason::Lock), "lifting a lock revives nothing");
    assert!(bench.ask("queue.delete", ORDERS).is_ok());
}

#[test]
fn a_stale_view_denies_and_ends_what_runs() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    let running = bench.ask("queue.delete", ORDERS).unwrap();
    bench.clock.pass(31);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::StaleSource);
    bench.decider.recheck();
    assert_eq!(running.confirm(), Err(Reason::StaleSource));
}

#[test]
fn what_left_the_source_is_revoked_and_does_not_come_back() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    let running = bench.ask("queue.delete", ORDERS).unwrap();
    bench.state(Vec::new());
    assert_eq!(running.confirm(), Err(Reason::Revoked));
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Revoked);
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Revoked);
    bench.state(vec![grant("g2", "*", "**", 0, 2_000)]);
    assert!(bench.ask("queue.delete", ORDERS).is_ok());
}

#[test]
fn a_wall_clock_that_jumps_ahead_and_back_revives_nothing() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    bench.clock.step_wall(86_400);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Expired);
    bench.decider.table().sweep(bench.clock.now());
    bench.clock.step_wall(-86_400);
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Expired);
}

#[test]
fn a_wall_clock_set_back_and_a_sleep_give_no_longer_life() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 1_010)]);
    bench.clock.pass(10);
    bench.clock.step_wall(-3_600);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Expired);
}

#[test]
fn an_older_snapshot_is_refused_whole() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    bench.state(vec![grant("g1", "*", "**", 0, 2_000)]);
    let old = Snapshot { revision: Revision(1), ..Snapshot::default() };
    let refused = bench.decider.apply(old).unwrap_err();
    assert_eq!(refused, Refused::Older { given: Revision(1), held: Revision(2) });
    assert!(bench.ask("queue.delete", ORDERS).is_ok());
}

#[test]
fn a_grant_is_never_widened_and_never_prolonged() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "queue.delete", ORDERS, 0, 1_010)]);
    let grants = [grant("g1", "*", "**", 0, 1_010)].into_iter().collect();
    let wider = Snapshot { revision: Revision(9), grants, locks: Vec::new() };
    assert!(matches!(bench.decider.apply(wider), Err(Refused::Changed { what: "scope", .. })));
    bench.state(vec![grant("g1", "queue.delete", ORDERS, 0, 5_000)]);
    bench.clock.pass(10);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Expired);
}

#[test]
fn a_sweep_forgets_what_is_over_and_nothing_else() {
    let mut bench = Bench::new();
    let of = |n: usize, to| {
        let mut stated = grant(&format!("g{n}"), "*", "**", 0, to);
        stated.grant.principal = principal(&format!("bot-{}", n / 2));
        stated
    };
    // Two grants a principal; nine of ten are over soon, so the indexes also shrink.
    bench.state((0..10_000).map(|n| of(n, if n % 10 == 0 { 2_000 } else { 1_005 })).collect());
    bench.clock.pass(6);
    bench.decider.table().sweep(bench.clock.now());
    bench.decider.freshness().prove(bench.clock.now().uptime);
    for n in 0..10_000 {
        let lives = n % 10 == 0;
        assert_eq!(bench.decider.table().find(&GrantId::new(&format!("g{n}")).unwrap()).is_some(), lives, "{n}");
        if n % 2 == 0 {
            assert_eq!(bench.ask_as(&principal(&format!("bot-{}", n / 2)), "queue.read", ORDERS).is_ok(), lives, "{n}");
        }
    }
    assert_eq!(bench.decider.table().entries().len(), 1_000);
}

#[test]
fn equal_grants_are_put_in_one_order_everywhere() {
    for ids in [["g1", "g2"], ["g2", "g1"]] {
        let mut bench = Bench::new();
        bench.state(ids.iter().map(|id| grant(id, "*", "**", 0, 2_000)).collect());
        let permit = bench.ask("queue.delete", ORDERS).unwrap();
        assert_eq!(permit.grant().unwrap().id().as_str(), "g1");
    }
}

#[test]
fn one_id_twice_refuses_the_whole() {
    // Few are put in by one thread, many by two.
    for many in [0, 10_000] {
        let bench = Bench::new();
        let other = |n| {
            let mut other = grant(&format!("other{n}"), "*", "**", 0, 2_000);
            other.grant.principal = principal(&format!("other{n}"));
            other
        };
        let state = |last| {
            let grants =
                (0..many).map(other).chain([grant("g1", "*", "**", 0, 2_000), grant(last, "*", "**", 0, 2_000)]);
            bench.decider.apply(Snapshot { revision: Revision(1), grants: grants.collect(), locks: Vec::new() })
        };
        assert!(matches!(state("g1"), Err(Refused::Twice(_))));
        assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::NoGrant);
        state("g2").unwrap();
        assert!(bench.ask("queue.delete", ORDERS).is_ok());
        assert_eq!(bench.decider.table().entries().len(), many + 2);
    }
}

#[test]
fn a_baseline_needs_no_grant_and_has_its_own_credential() {
    let mut bench = Bench::new();
    let baseline = Baseline {
        principals: HashSet::from([principal("bot")]),
        scope: scope("overview.read", "**"),
        credential: Some(CredentialSlot(7)),
    };
    bench.rules = Arc::new(BackendRules { baselines: vec![baseline], ..(*bench.rules).clone() });
    let permit = bench.ask("overview.read", "overview").unwrap();
    assert_eq!(permit.credential(), Some(CredentialSlot(7)));
    assert!(permit.grant().is_none());
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::NoGrant);
    assert_eq!(bench.ask_as(&principal("eve"), "overview.read", "overview").unwrap_err().reason, Reason::NoGrant);
}

#[test]
fn observing_lets_pass_what_it_would_deny_but_never_what_a_lock_stops() {
    let mut bench = Bench::new();
    bench.rules = Arc::new(BackendRules { mode: Mode::Observe, ..(*bench.rules).clone() });
    let permit = bench.ask("queue.delete", ORDERS).unwrap();
    assert!(matches!(permit.basis(), Basis::Observed(denial) if denial.reason == Reason::NoGrant));
    bench.decider.set_locks(vec![lock("l1")]);
    assert_eq!(permit.confirm(), Err(Reason::Lock));
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Lock);
}

#[test]
fn an_identity_that_ran_out_ends_the_call() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "*", "**", 0, 9_000)]);
    let action = Arc::new(ActionSpec {
        name: ActionName::new("a").unwrap(),
        class: ActionClass::Read,
        index: 0,
        streaming: false,
        upgrade: None,
    });
    let short = Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::from_seconds(1_005) };
    let question = Question {
        principal: &principal("bot"),
        identity: short.anchor(bench.clock.now()),
        task: None,
        backend: &bench.rules,
        action: Some(&action),
        resource: &Resource::exact("x"),
        arguments: &Arguments::Unread,
    };
    let permit = bench.decider.decide(&bench.worker, question).unwrap();
    assert_eq!(permit.remaining(bench.clock.now()), Duration::from_secs(5));
    bench.clock.pass(5);
    assert_eq!(permit.confirm(), Err(Reason::IdentityExpired));
}

#[tokio::test(start_paused = true)]
async fn the_watch_ends_a_call_at_its_deadline() {
    #[derive(Debug)]
    struct Paused(tokio::time::Instant);
    impl Clock for Paused {
        fn now(&self) -> Now {
            let micros = i64::try_from(self.0.elapsed().as_micros()).unwrap();
            Now { wall: Timestamp::from_micros(micros), uptime: Uptime::from_micros(micros) }
        }
    }
    let clock = Arc::new(Paused(tokio::time::Instant::now()));
    let decider = Decider::new(Arc::<Paused>::clone(&clock), Duration::from_secs(30), 1);
    decider.freshness().prove(clock.now().uptime);
    decider
        .apply(Snapshot {
            revision: Revision(1),
            grants: [grant("g1", "*", "**", 0, 10)].into_iter().collect(),
            locks: Vec::new(),
        })
        .unwrap();
    let bench = Bench { worker: decider.worker(), decider: Arc::clone(&decider), ..Bench::new() };
    let stop = tokio_util::sync::CancellationToken::new();
    let watch = tokio::spawn({
        let (decider, stop) = (Arc::clone(&decider), stop.clone());
        async move { decider.watch(stop).await }
    });
    let permit = bench.ask("queue.delete", ORDERS).unwrap();
    assert_eq!(permit.ended(Watcher::Head).await, Reason::Expired);
    let late = clock.now().uptime.since(Uptime::from_micros(10_000_000));
    assert!(late <= Duration::from_millis(5), "ended {late:?} late");
    stop.cancel();
    watch.await.unwrap();
}
