//! What the control plane's commands cost on a real store, end to end: policy, rows, audit, durable commit.
//!
//! `cargo bench --bench store` prints a table; words narrow it: `quick`, `sqlite`, `postgres`. PostgreSQL 15 is started
//! for it. Nothing is asserted here: a figure is a figure of one machine.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use leasehold::app::clock::SystemClock;
use leasehold::control::catalogue::LOCAL_ADMIN;
use leasehold::control::command::{Ask, Command, Idempotency};
use leasehold::control::document::Document;
use leasehold::control::engine::{Engine, Pace};
use leasehold::control::store::sql::SqlStore;
use leasehold::domain::id::{EntitlementName, GrantId, RequestId};
use leasehold::domain::principal::Principal;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[path = "../tests/store/postgres.rs"]
#[allow(dead_code, unreachable_pub)]
mod postgres;

fn document(kind: &str, name: &str, spec: Value) -> Document {
    let text = json!({"apiVersion": "leasehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(text).unwrap()
}

fn documents() -> Vec<Document> {
    let entitlement = |name: &str, steps: Value| {
        let spec = json!({
            "backend": "shop", "actions": ["item.*"], "resources": ["items/**"], "eligible": ["bots"],
            "duration_max": "15m", "concurrent_max": 1_000_000, "uses_max": 1_000_000, "approval": {"steps": steps},
        });
        document("Entitlement", name, spec)
    };
    let principal = |name: &str, group: &str| {
        let spec = json!({"principal": format!("https://idp.test#{name}*"), "type": "workload", "groups": [group]});
        document("Principal", name, spec)
    };
    let auto = "@id(\"auto\")\npermit(principal, action == Leasehold::Action::\"elevation:auto_approve\", resource == Leasehold::Entitlement::\"auto\");";
    vec![
        document("Backend", "shop", json!({"actions": [{"name": "item.read", "class": "read"}]})),
        principal("bot", "bots"),
        principal("approver", "approvers"),
        entitlement("auto", json!([])),
        entitlement("asked", json!([{"approvers": ["approvers"], "quorum": 1}])),
        document("Policy", "auto", json!({"target": "elevation", "cedar": auto})),
    ]
}

fn who(name: &str) -> Principal {
    Principal::token("https://idp.test", name).unwrap()
}

/// Numbers are never used twice in one store.
static NEXT: AtomicU32 = AtomicU32::new(0);

fn ask(number: u32, entitlement: &str) -> Command {
    let id = RequestId::new(&format!("req_{number:09}")).unwrap();
    let grant = GrantId::new(&format!("grt_{number:09}")).unwrap();
    Command::Ask(Box::new(Ask {
        justification: "a bench".into(),
        idempotency: Some(Idempotency { key: format!("key-{number}"), digest: "body".into() }),
        ..Ask::of(id, grant, EntitlementName::new(entitlement).unwrap())
    }))
}

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Ask,
    Approve,
    Consume,
}

impl Work {
    const ALL: [(Self, &str); 3] =
        [(Self::Ask, "auto-approved"), (Self::Approve, "approvals"), (Self::Consume, "consumes")];

    /// What must be there before number `number` is done.
    fn before(self, number: u32) -> Option<(Principal, Command)> {
        match self {
            Self::Ask => None,
            Self::Approve => Some((who(&format!("bot-{number}")), ask(number, "asked"))),
            Self::Consume => Some((who(&format!("bot-{number}")), ask(number, "auto"))),
        }
    }

    fn command(self, number: u32) -> (Principal, Command) {
        match self {
            Self::Ask => (who(&format!("bot-{}", number % 1_000)), ask(number, "auto")),
            Self::Approve => {
                let request = RequestId::new(&format!("req_{number:09}")).unwrap();
                (who("approver-1"), Command::Approve { request, seen: 1, reason: "a bench".into() })
            }
            Self::Consume => {
                let grant = GrantId::new(&format!("grt_{number:09}")).unwrap();
                (Principal::parse(LOCAL_ADMIN).unwrap(), Command::Consume { grant, use_id: format!("use-{number}") })
            }
        }
    }
}

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

async fn measure(engine: &Engine, work: Work, callers: u32, count: u32) -> Figures {
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    let all: Vec<u32> = (first..first + count).collect();
    for some in all.chunks(256) {
        let mut preparing = tokio::task::JoinSet::new();
        for (actor, command) in some.iter().filter_map(|number| work.before(*number)) {
            let engine = engine.clone();
            preparing.spawn(async move { drop(engine.run(actor, command).await.unwrap()) });
        }
        preparing.join_all().await;
    }
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let engine = engine.clone();
        running.spawn(async move {
            let mut took = Vec::new();
            for number in (first + caller..first + count).step_by(callers as usize) {
                let (actor, command) = work.command(number);
                let began = Instant::now();
                engine.run(actor, command).await.unwrap();
                took.push(began.elapsed());
            }
            took
        });
    }
    let mut took: Vec<Duration> = running.join_all().await.into_iter().flatten().collect();
    let per_second = f64::from(count) / began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
    Figures { per_second, p50: at(50), p99: at(99) }
}

async fn bench(name: &str, url: &str, batch_max: usize, count: u32) {
    let store = Arc::new(SqlStore::open(url).await.unwrap());
    let (clock, stop) = (Arc::new(SystemClock::new()), CancellationToken::new());
    let pace = Pace { batch_max, ..Pace::default() };
    let (engine, task) =
        Engine::start_at(Arc::clone(&store), clock, pace, &Registry::new(), stop.clone()).await.unwrap();
    engine.run(Principal::parse(LOCAL_ADMIN).unwrap(), Command::Apply(documents())).await.unwrap();
    let grouped = if batch_max == 1 { "no" } else { "yes" };
    for (work, what) in Work::ALL {
        for callers in [1, 8, 32, 64] {
            // Alone a caller waits for each commit.
            let count = if callers == 1 || batch_max == 1 { count / 4 } else { count };
            let figures = measure(&engine, work, callers, count).await;
            let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
            println!(
                "| {name} | {grouped} | {what} | {callers} | {:.0} | {:.1} | {:.1} |",
                figures.per_second,
                millis(figures.p50),
                millis(figures.p99)
            );
        }
    }
    stop.cancel();
    let _ = task.await;
    store.close().await;
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let said = |word: &str| words.iter().any(|said| said == word);
    let count = if said("quick") { 2_000 } else { 20_000 };
    let only = said("sqlite") || said("postgres");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("| store | group commit | commands | callers | per second | p50 ms | p99 ms |");
    println!("|---|---|---|---|---|---|---|");
    for batch_max in [Pace::default().batch_max, 1] {
        if said("sqlite") || !only {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", folder.path().join("leasehold.db").display());
            runtime.block_on(bench("SQLite", &url, batch_max, count));
        }
        if said("postgres") || !only {
            let server = postgres::Server::start();
            runtime.block_on(bench("PostgreSQL 15", &server.database(), batch_max, count));
        }
    }
}
