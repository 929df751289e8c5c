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
use leasehold::domain::principal::{Principal, PrincipalKind};
use leasehold::domain::resource::{Resource, ResourcePattern};
use leasehold::domain::time::{Clock, Timestamp, Window};
use leasehold::domain::view::{Snapshot, StatedGrant};
use leasehold::guardrail::{Actor, Backends, Call, GuardrailBundle, GuardrailDocument, Guardrails, Mode as Counts};
use leasehold::sidecar::decide::{Arguments, BackendRules, Decider, Mode, Question};
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

/// No guardrails, one that looks at who calls, one that looks at the time too, and as many as an action can have.
fn guardrails() -> [(&'static str, Vec<String>); 4] {
    let one = |n: usize, condition: &str| {
        format!(
            "@id(\"g{n}\") forbid(principal, action, resource in Leasehold::Backend::\"rabbitmq\") when {{ {condition} }};"
        )
    };
    let late = "context.now < datetime(\"2000-01-01T00:00:00Z\")";
    [
        ("none", Vec::new()),
        ("one, of whom", vec![one(0, "principal.kind == \"agent\"")]),
        ("one, of when", vec![one(0, &format!("principal.kind == \"agent\" || {late}"))]),
        ("32, of when", (0..32).map(|n| one(n, &format!("principal.kind == \"agent\" || {late}"))).collect()),
    ]
}

/// The bundle of these texts; every caller is known by one pattern.
fn bundle(texts: &[String]) -> GuardrailBundle {
    let documents: Vec<GuardrailDocument> = texts
        .iter()
        .enumerate()
        .map(|(n, cedar)| GuardrailDocument { name: format!("d{n}"), mode: Counts::Enforce, cedar: cedar.clone() })
        .collect();
    let actions = vec![(ActionName::new("queue.delete").unwrap(), ActionClass::Write)];
    let backends: Backends = [(BackendName::new("rabbitmq").unwrap(), actions)].into();
    let guardrails = Guardrails::compile(&documents, &backends).unwrap();
    let people = [("https://idp.example#*", PrincipalKind::Ci, &[][..], None)].into_iter();
    GuardrailBundle::new(&documents, &backends, guardrails.needs(), people)
}

/// What it costs to ask Cedar, which a call does whose answer is not remembered: nanoseconds, median.
fn anew(bundle: &GuardrailBundle) -> u64 {
    let guardrails = Guardrails::load(bundle).unwrap();
    let (caller, resource) = (principal(1), Resource::exact("vhosts/prod/queues/q0"));
    let (backend, action) = (BackendName::new("rabbitmq").unwrap(), ActionName::new("queue.delete").unwrap());
    let call = Call { principal: &caller, backend: &backend, action: &action, resource: &resource };
    let actor = Actor { principal: &caller, kind: PrincipalKind::Ci, groups: &[], owner: None };
    let mut nanos: Vec<u64> = (0..2_000)
        .map(|second| {
            let began = Instant::now();
            black_box(guardrails.explain(actor, call, Timestamp::from_seconds(1_767_614_400 + second)));
            u64::try_from(began.elapsed().as_nanos()).unwrap()
        })
        .collect();
    nanos.sort_unstable();
    nanos[nanos.len() / 2]
}

fn measure(grants: usize, with_writer: bool, guarded: &GuardrailBundle) -> Row {
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
    decider.set_guardrails(guarded).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let writer = with_writer.then(|| {
        let (decider, stop, clock) = (Arc::clone(&decider), Arc::clone(&stop), Arc::clone(&clock));
        std::thread::spawn(move || {
            let mut n = grants;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..WRITES_PER_SECOND / 100 {
                    decider.table().upsert(source.grant(n).view(), clock.now()).unwrap();
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
        serve_stale: false,
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
            arguments: &Arguments::Unread,
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
    let sizes: &[usize] =
        if std::env::args().any(|a| a == "guardrails") { &[] } else { &[1, 1_000, 100_000, 1_000_000] };
    for grants in sizes.iter().copied() {
        for with_writer in [false, true] {
            let row = measure(grants, with_writer, &GuardrailBundle::default());
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
    println!();
    println!("the same with guardrails, at 1,000 grants; anew: what a call pays whose answer is not remembered");
    println!("{:>14}  {:>8}  {:>8}  {:>6}  {:>9}", "guardrails", "median", "p99", "ratio", "anew");
    let mut bare = None;
    for (what, texts) in guardrails() {
        let bundle = bundle(&texts);
        // The best of three: what is compared differs by less than the machine does.
        let row = (0..3).map(|_| measure(1_000, false, &bundle)).min_by_key(|row| row.median).unwrap();
        let ratio = row.median as f64 / *bare.get_or_insert(row.median) as f64;
        let anew = if texts.is_empty() { "-".to_owned() } else { format!("{} ns", anew(&bundle)) };
        println!("{what:>14}  {:>5} ns  {:>5} ns  {ratio:>6.2}  {anew:>9}", row.median, row.p99);
    }
}
