//! What a decision costs as the table grows, with a writer running, and what a grant costs in memory.
//!
//! `cargo bench --bench decide` prints one row for each size; ratios are what counts, the machine is noisy.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use leasehold::app::clock::SystemClock;
use leasehold::domain::action::{ActionClass, ActionPattern, Scope};
use leasehold::domain::grant::{Grant, GrantState};
use leasehold::domain::id::{ActionName, BackendName, GrantId, Revision};
use leasehold::domain::principal::Principal;
use leasehold::domain::resource::{Resource, ResourcePattern};
use leasehold::domain::time::{Clock, Timestamp, Window};
use leasehold::domain::view::{Snapshot, StatedGrant};
use leasehold::sidecar::decide::{BackendRules, Decider, Mode, Question};
use leasehold::sidecar::resolve::ActionSpec;

const DECISIONS: usize = 200_000;
const WRITES_PER_SECOND: u32 = 10_000;

fn principal(n: usize) -> Principal {
    Principal::token("https://idp.example", &format!("ci-bot-{n:07}")).unwrap()
}

/// Grants as a source makes them: what many say alike is shared.
struct Source {
    backend: BackendName,
    scope: Arc<Scope>,
    end: Timestamp,
}

impl Source {
    fn new(end: Timestamp) -> Self {
        let resource = ResourcePattern::new("vhosts/prod/queues/q0").unwrap();
        let scope = Scope::new(vec![ActionPattern::new("queue.delete").unwrap()], vec![resource]);
        Self { backend: BackendName::new("rabbitmq").unwrap(), scope: Arc::new(scope), end }
    }

    /// Each principal holds one grant, as a CI job or an agent does.
    fn grant(&self, n: usize) -> StatedGrant {
        let grant = Grant {
            id: GrantId::new(&format!("grt_{n:020}")).unwrap(),
            principal: principal(n),
            backend: self.backend.clone(),
            scope: Arc::clone(&self.scope),
            window: Window { not_before: Timestamp::from_seconds(0), expires_at: self.end },
            uses_max: None,
            task: None,
        };
        StatedGrant { grant, state: GrantState::Active }
    }
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = status.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

struct Row {
    grants: usize,
    median: u64,
    p99: u64,
    bytes: usize,
    load: Duration,
}

fn measure(grants: usize, with_writer: bool) -> Row {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let decider = Decider::new(Arc::clone(&clock), Duration::from_secs(3_600), 1);
    let end = clock.now().wall.plus(Duration::from_secs(3_600));
    let before = resident_bytes();
    let began = Instant::now();
    let source = Source::new(end);
    let stated = (0..grants).map(|n| source.grant(n)).collect();
    decider.apply(Snapshot { revision: Revision(1), grants: stated, locks: Vec::new() }).unwrap();
    let load = began.elapsed();
    let bytes = resident_bytes().saturating_sub(before);
    decider.freshness().prove(clock.now().uptime);

    let stop = Arc::new(AtomicBool::new(false));
    let writer = with_writer.then(|| {
        let (decider, stop, clock) = (Arc::clone(&decider), Arc::clone(&stop), Arc::clone(&clock));
        std::thread::spawn(move || {
            let mut n = grants;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..WRITES_PER_SECOND / 100 {
                    decider.table().upsert(source.grant(n), clock.now()).unwrap();
                    decider.table().end(&GrantId::new(&format!("grt_{n:020}")).unwrap(), GrantState::Revoked);
                    n += 1;
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
        })
    });

    let rules = Arc::new(BackendRules {
        name: BackendName::new("rabbitmq").unwrap(),
        mode: Mode::Enforce,
        baselines: Vec::new(),
        credential: None,
    });
    let action = Arc::new(ActionSpec {
        name: ActionName::new("queue.delete").unwrap(),
        class: ActionClass::Write,
        index: 0,
        streaming: false,
        upgrade: None,
    });
    let always = Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX }.anchor(clock.now());
    // Callers in an order that no cache can foresee, but for the smallest tables.
    let callers: Vec<Principal> = (0..grants.min(20_000)).map(|n| principal(n.wrapping_mul(7_919) % grants)).collect();
    let resource = Resource::exact("vhosts/prod/queues/q0");
    let worker = decider.worker();
    let mut nanos = Vec::with_capacity(DECISIONS);
    for n in 0..DECISIONS {
        let question = Question {
            principal: &callers[n % callers.len()],
            identity: always,
            task: None,
            backend: &rules,
            action: Some(&action),
            resource: &resource,
        };
        let began = Instant::now();
        let permit = decider.decide(&worker, question);
        nanos.push(u64::try_from(began.elapsed().as_nanos()).unwrap());
        assert!(black_box(permit).is_ok());
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(writer) = writer {
        writer.join().unwrap();
    }
    nanos.sort_unstable();
    Row { grants, median: nanos[nanos.len() / 2], p99: nanos[nanos.len() * 99 / 100], bytes, load }
}

fn main() {
    println!("a whole decision: clock, locks, freshness, lookup, scope, registration, second check, and its end");
    println!("{:>9}  {:>10}  {:>8}  {:>8}  {:>9}  {:>9}", "grants", "writer", "median", "p99", "B/grant", "load");
    for grants in [1, 1_000, 100_000, 1_000_000] {
        for with_writer in [false, true] {
            let row = measure(grants, with_writer);
            let writer = if with_writer { "10k/s" } else { "-" };
            println!(
                "{:>9}  {:>10}  {:>5} ns  {:>5} ns  {:>9}  {:>6} ms",
                row.grants,
                writer,
                row.median,
                row.p99,
                if row.grants >= 100_000 { (row.bytes / row.grants).to_string() } else { "-".to_owned() },
                row.load.as_millis(),
            );
        }
    }
}
