//! A control plane on a store: its documents, its people, its clock.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use leasehold::control::catalogue::LOCAL_ADMIN;
use leasehold::control::command::{Ask, Command, Idempotency, Reply, TaskSaid};
use leasehold::control::document::Document;
use leasehold::control::engine::{Engine, Pace};
use leasehold::control::refusal::Refusal;
use leasehold::control::store::{GrantRow, RequestRow, Rows, Selector, Store};
use leasehold::domain::id::{EntitlementName, GrantId, RequestId, TaskRef};
use leasehold::domain::principal::Principal;
use leasehold::domain::task::TaskEvent;
use leasehold::domain::time::{Clock, Now, Timestamp, Uptime};
use prometheus::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::place::Place;

/// When everything begins.
pub const BEGINNING: i64 = 1_800_000_000;

/// A clock that stands until it is moved.
#[derive(Debug)]
pub struct TestClock(AtomicI64);

impl Default for TestClock {
    fn default() -> Self {
        Self(AtomicI64::new(BEGINNING * 1_000_000))
    }
}

impl TestClock {
    pub fn forward(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        let micros = self.0.load(Ordering::SeqCst);
        Now { wall: Timestamp::from_micros(micros), uptime: Uptime::from_micros(micros) }
    }
}

pub const HOUR: Duration = Duration::from_secs(3_600);
pub const DAY: Duration = Duration::from_secs(86_400);

pub fn who(name: &str) -> Principal {
    Principal::token("https://idp.test", name).unwrap()
}

pub fn admin() -> Principal {
    Principal::parse(LOCAL_ADMIN).unwrap()
}

fn document(kind: &str, name: &str, spec: Value) -> Document {
    serde_json::from_value(json!({
        "apiVersion": "leasehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

/// An entitlement to read items, with what is not as usual.
pub fn entitlement(name: &str, rest: Value) -> Document {
    let mut spec = json!({
        "backend": "shop", "actions": ["item.*"], "resources": ["items/**"], "eligible": ["bots"],
        "duration_max": "15m", "concurrent_max": 1000,
    });
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    document("Entitlement", name, spec)
}

pub fn principal(name: &str, pattern: &str, spec: Value) -> Document {
    let mut all =
        json!({"principal": format!("https://idp.test#{pattern}"), "type": "workload", "grants_max": 100_000});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    document("Principal", name, all)
}

pub fn policy(name: &str, cedar: &str) -> Document {
    document("Policy", name, json!({"target": "elevation", "cedar": format!("@id(\"{name}\")\n{cedar}")}))
}

/// What is declared at first.
pub fn documents() -> Vec<Document> {
    let approvers = json!({"steps": [{"approvers": ["approvers"], "quorum": 1}]});
    let auto = ["auto", "counted", "once", "one", "tasked", "emergency", "idle"]
        .map(|name| format!("resource == Leasehold::Entitlement::\"{name}\""))
        .join(" || ");
    vec![
        document(
            "Backend",
            "shop",
            json!({"actions": [{"name": "item.read", "class": "read"}, {"name": "item.write", "class": "write"}]}),
        ),
        principal("bots", "bo*", json!({"groups": ["bots"]})),
        principal(
            "agent",
            "agent",
            json!({"type": "agent", "groups": ["bots"], "owner": "https://idp.test#approver-owner"}),
        ),
        principal("approvers", "approver-*", json!({"type": "user", "groups": ["approvers", "bots"]})),
        principal("chiefs", "chief-*", json!({"type": "user", "groups": ["chiefs"]})),
        principal("root", "root", json!({"type": "user", "groups": ["leasehold.admins", "bots"]})),
        entitlement("auto", json!({})),
        entitlement("counted", json!({"uses_max": 5})),
        entitlement("once", json!({"uses_max": 1})),
        entitlement("one", json!({"concurrent_max": 1})),
        entitlement("tasked", json!({"task": "required"})),
        entitlement("emergency", json!({"emergency": true, "justification": "required"})),
        entitlement("idle", json!({"idle_timeout": "1m"})),
        entitlement("asked", json!({"approval": approvers})),
        entitlement(
            "steps",
            json!({"approval": {"steps": [
                {"approvers": ["approvers", "chiefs"], "quorum": 2}, {"approvers": ["chiefs"], "quorum": 1},
            ]}}),
        ),
        entitlement("forbidden", json!({"approval": approvers})),
        policy(
            "auto",
            &format!(
                "permit(principal, action == Leasehold::Action::\"elevation:auto_approve\", resource) when {{ {auto} }};"
            ),
        ),
        policy(
            "never",
            "@reason(\"not in this shop\")\nforbid(principal, action == Leasehold::Action::\"elevation:request\", resource == Leasehold::Entitlement::\"forbidden\");",
        ),
    ]
}

/// An engine that does nothing by itself.
pub fn quiet() -> Pace {
    let never = Duration::from_secs(1_000_000);
    Pace { sweep_every: never, compact_every: never, ..Pace::default() }
}

pub struct World<S> {
    pub store: Arc<S>,
    pub engine: Engine,
    pub clock: Arc<TestClock>,
    registry: Registry,
    stop: CancellationToken,
    count: AtomicU32,
}

impl<S> Drop for World<S> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A world with everything declared.
pub async fn world<P: Place>(place: &P) -> World<P::Store> {
    let world = World::on(place.open().await, quiet()).await;
    world.run(&admin(), Command::Apply(documents())).await.unwrap();
    world
}

impl<S: Store> World<S> {
    /// Another control plane on a store.
    pub async fn on(store: Arc<S>, pace: Pace) -> Self {
        let (clock, registry, stop) = (Arc::new(TestClock::default()), Registry::new(), CancellationToken::new());
        let time = clock.clone() as Arc<dyn Clock>;
        let (engine, _) = Engine::start_at(Arc::clone(&store), time, pace, &registry, stop.clone()).await.unwrap();
        Self { store, engine, clock, registry, stop, count: AtomicU32::new(0) }
    }

    /// How many entries of the record were counted.
    pub fn counted(&self) -> f64 {
        let all = self.registry.gather();
        let events = all.iter().filter(|family| family.name() == "leasehold_control_events_total");
        events.flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum()
    }

    pub async fn run(&self, actor: &Principal, command: Command) -> Result<Reply, Refusal> {
        self.engine.run(actor.clone(), command).await
    }

    /// What asks for an entitlement, with ids of its own.
    pub fn asking(&self, entitlement: &str) -> Ask {
        asking(self.count.fetch_add(1, Ordering::Relaxed), entitlement)
    }

    pub async fn ask(&self, actor: &Principal, ask: Ask) -> Result<(RequestRow, Option<GrantRow>), Refusal> {
        request(self.run(actor, Command::Ask(Box::new(ask))).await)
    }

    /// A grant that policy approved.
    pub async fn granted(&self, actor: &Principal, entitlement: &str) -> GrantRow {
        let (row, grant) = self.ask(actor, self.asking(entitlement)).await.unwrap();
        grant.unwrap_or_else(|| panic!("{row:?}"))
    }

    /// A request that waits for approvers.
    pub async fn pending(&self, actor: &Principal, entitlement: &str) -> RequestRow {
        let (row, _) = self.ask(actor, self.asking(entitlement)).await.unwrap();
        assert!(row.elevation.is_pending(), "{row:?}");
        row
    }

    pub async fn approve(&self, approver: &str, row: &RequestRow) -> Result<(RequestRow, Option<GrantRow>), Refusal> {
        let command = Command::Approve { request: row.request.id.clone(), seen: row.version, reason: "ok".into() };
        request(self.run(&who(approver), command).await)
    }

    pub fn clock_now(&self) -> Timestamp {
        self.clock.now().wall
    }

    pub async fn sweep(&self) -> usize {
        match self.run(&admin(), Command::Sweep { idle: true }).await.unwrap() {
            Reply::Swept(swept) => swept,
            other => panic!("{other:?}"),
        }
    }

    pub async fn revoke(&self, selector: Selector) -> Vec<GrantId> {
        match self.run(&admin(), revoking(selector)).await.unwrap() {
            Reply::Ended(ids) => ids,
            other => panic!("{other:?}"),
        }
    }

    /// What the source of a task says, `seconds` after the beginning.
    pub async fn task(&self, task: &str, event: TaskEvent, seconds: i64) -> Vec<GrantId> {
        let at = Timestamp::from_seconds(BEGINNING + seconds);
        let said = TaskSaid { task: TaskRef::new(task).unwrap(), event, at, kind: "incident".into(), until: None };
        match self.run(&admin(), Command::Task(said)).await.unwrap() {
            Reply::Task(_, ended) => ended,
            other => panic!("{other:?}"),
        }
    }

    pub async fn consume(&self, grant: &GrantId, use_id: &str) -> Result<GrantRow, Refusal> {
        let command = Command::Consume { grant: grant.clone(), use_id: use_id.to_owned() };
        match self.run(&admin(), command).await? {
            Reply::Grant(row) => Ok(*row),
            other => panic!("{other:?}"),
        }
    }

    pub async fn grant(&self, id: &GrantId) -> GrantRow {
        self.store.view().await.unwrap().grant(id).await.unwrap().unwrap()
    }

    pub async fn request(&self, id: &RequestId) -> RequestRow {
        self.store.view().await.unwrap().request(id).await.unwrap().unwrap()
    }
}

/// What asks for an entitlement, with the ids of this number.
pub fn asking(number: u32, entitlement: &str) -> Ask {
    let id = RequestId::new(&format!("req_{number:06}")).unwrap();
    let grant = GrantId::new(&format!("grt_{number:06}")).unwrap();
    let justification = "because".into();
    Ask { justification, ..Ask::of(id, grant, EntitlementName::new(entitlement).unwrap()) }
}

/// What takes grants away.
pub fn revoking(selector: Selector) -> Command {
    Command::Revoke { selector, reason: "not any more".into() }
}

pub fn key(key: &str, digest: &str) -> Option<Idempotency> {
    Some(Idempotency { key: key.into(), digest: digest.into() })
}

fn request(reply: Result<Reply, Refusal>) -> Result<(RequestRow, Option<GrantRow>), Refusal> {
    match reply? {
        Reply::Request(row, grant) => Ok((*row, grant.map(|grant| *grant))),
        other => panic!("{other:?}"),
    }
}

/// The code of a refusal.
#[track_caller]
pub fn code<T: Debug>(answer: Result<T, Refusal>) -> &'static str {
    answer.unwrap_err().code
}
