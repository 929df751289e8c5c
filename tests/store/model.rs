//! Any commands in any order: the same answers and the same rows everywhere, and what holds always, holds.
//!
//! The model takes one command a transaction. The engines take as many as they please, so that what a transaction keeps
//! to itself until its end is held to the same meaning.

use std::sync::Arc;
use std::time::Duration;

use leasehold::control::catalogue::Catalogue;
use leasehold::control::command::{Command, Failed, Reply, TaskSaid, execute};
use leasehold::control::document::{Document, Kind};
use leasehold::control::store::memory::MemoryStore;
use leasehold::control::store::{Rows, Selector, Store, Transaction, Wanted};
use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::entitlement::Narrower;
use leasehold::domain::id::{GrantId, LockId, RequestId, TaskRef};
use leasehold::domain::lock::Lock;
use leasehold::domain::principal::Principal;
use leasehold::domain::resource::ResourcePattern;
use leasehold::domain::task::TaskEvent;
use leasehold::domain::time::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::invariants::{check, everything, same};
use super::place::{Place, Postgres, Sqlite};
use super::world::{BEGINNING, admin, asking, documents, entitlement, key, principal, revoking, who};

/// What somebody does, and when.
#[derive(Debug, Clone)]
struct Act {
    actor: Principal,
    command: Command,
    at: Timestamp,
    /// Whether a new transaction begins before it.
    apart: bool,
}

fn request(number: u32) -> RequestId {
    RequestId::new(&format!("req_{number:06}")).unwrap()
}

/// Of the first requests, and of grants that took their place.
fn grant(number: u32, successor: u32) -> GrantId {
    let stem = format!("grt_{number:06}");
    GrantId::new(&if successor == 0 { stem } else { format!("{stem}.{successor}") }).unwrap()
}

fn task(number: u32) -> TaskRef {
    TaskRef::new(&format!("jira:T-{number}")).unwrap()
}

fn any_actor() -> impl Strategy<Value = Principal> {
    prop_oneof![
        4 => prop::sample::select(vec!["bot-1", "bot-2", "agent"]).prop_map(who),
        3 => prop::sample::select(vec!["approver-1", "approver-2", "approver-owner", "chief-1", "chief-2"]).prop_map(who),
        2 => Just(admin()),
    ]
}

fn any_documents() -> impl Strategy<Value = Command> {
    let one = prop_oneof![
        (1u32..4).prop_map(|most| principal("bots", "bo*", json!({"groups": ["bots"], "grants_max": most}))),
        any::<bool>().prop_map(|disabled| principal(
            "agent",
            "agent",
            json!({"groups": ["bots"], "disabled": disabled})
        )),
        (1u32..3).prop_map(|most| entitlement("one", json!({"concurrent_max": most}))),
        Just(entitlement("counted", json!({"uses_max": 3}))),
        Just(entitlement("broken", json!({"backend": "nothing"}))),
    ];
    let apply = prop::collection::vec(one, 1..3).prop_map(Command::Apply);
    let delete = prop::sample::select(vec!["one", "counted", "nothing"]);
    prop_oneof![3 => apply, 1 => delete.prop_map(|name| Command::Delete(Kind::Entitlement, name.into()))]
}

fn any_ask(numbers: std::ops::Range<u32>) -> impl Strategy<Value = Command> {
    let entitlement = prop::sample::select(vec![
        "auto",
        "counted",
        "once",
        "one",
        "tasked",
        "emergency",
        "idle",
        "asked",
        "steps",
        "forbidden",
    ]);
    let with = (
        prop::option::of(0u32..3),
        prop::option::of((0u32..3, 0u32..2)),
        prop::option::of(60u64..900),
        prop::option::weighted(0.2, (0u32..12).prop_map(|number| grant(number, 0))),
    );
    (numbers, entitlement, with, any::<bool>()).prop_map(
        |(number, entitlement, (of, said, duration, renews), owned)| {
            let mut ask = asking(number, entitlement);
            ask.task = of.map(task);
            ask.duration_seconds = duration;
            ask.renews = renews;
            ask.idempotency = said.and_then(|(name, digest)| key(&format!("k{name}"), &format!("d{digest}")));
            ask.subject = owned.then(|| who("agent")).filter(|_| number % 5 == 0);
            Command::Ask(Box::new(ask))
        },
    )
}

fn any_narrower() -> impl Strategy<Value = Narrower> {
    let scope = prop::sample::select(vec!["items/a", "items/**", "**"]).prop_map(|resource| {
        Scope::new(vec![ActionPattern::new("item.read").unwrap()], vec![ResourcePattern::new(resource).unwrap()])
    });
    let end = (30i64..600).prop_map(|seconds| Timestamp::from_seconds(BEGINNING + seconds));
    (prop::option::of(end), prop::option::of(1u32..4), prop::option::of(scope))
        .prop_map(|(expires_at, uses_max, scope)| Narrower { expires_at, uses_max, scope })
}

fn any_selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        (0u32..12, 0u32..2).prop_map(|(n, s)| Selector { grant: Some(grant(n, s)), ..Selector::default() }),
        Just(Selector { principal: Some(who("bot-1")), ..Selector::default() }),
        Just(Selector { entitlement: Some("auto".parse().unwrap()), ..Selector::default() }),
        (0u32..3).prop_map(|number| Selector { task: Some(task(number)), ..Selector::default() }),
        Just(Selector { backend: Some("shop".parse().unwrap()), principal: Some(who("agent")), ..Selector::default() }),
    ]
}

fn any_lock() -> impl Strategy<Value = Command> {
    (0u32..2, prop::option::of(Just(who("bot-2"))), any::<bool>()).prop_map(|(number, principal, lifted)| {
        let id = LockId::new(&format!("l{number}")).unwrap();
        if lifted || principal.is_none() {
            return Command::Unlock(id);
        }
        Command::Lock(Box::new(Lock {
            id,
            principal,
            backend: None,
            action: None,
            resource: None,
            grant: None,
            task: None,
            message: "stop".into(),
            expires_at: None,
        }))
    })
}

fn any_task() -> impl Strategy<Value = Command> {
    (0u32..3, any::<bool>(), 0i64..900, prop::option::of(1i64..900)).prop_map(|(number, open, at, until)| {
        let event = if open { TaskEvent::Opened } else { TaskEvent::Closed };
        let moment = |seconds| Timestamp::from_seconds(BEGINNING + seconds);
        let (kind, until) = (String::new(), until.map(moment));
        Command::Task(TaskSaid { task: task(number), event, at: moment(at), kind, until })
    })
}

fn any_command(numbers: std::ops::Range<u32>) -> impl Strategy<Value = Command> {
    let n = 0u32..12;
    prop_oneof![
        8 => any_ask(numbers),
        4 => (n.clone(), 1u64..4).prop_map(|(n, seen)| Command::Approve { request: request(n), seen, reason: "ok".into() }),
        1 => n.clone().prop_map(|n| Command::Deny { request: request(n), reason: "no".into() }),
        1 => n.clone().prop_map(|n| Command::Cancel { request: request(n), reason: "no".into() }),
        1 => (n.clone(), 0u32..2).prop_map(|(n, s)| Command::Release(grant(n, s))),
        4 => (n.clone(), 0u32..2, 0u32..4).prop_map(|(n, s, u)| Command::Consume { grant: grant(n, s), use_id: format!("u{u}") }),
        3 => (n.clone(), 0u32..2, any_narrower()).prop_map(|(n, s, to)| Command::Reduce(grant(n, s), to)),
        1 => n.prop_map(|n| Command::Review { grant: grant(n, 0), note: "fine".into() }),
        2 => any_selector().prop_map(revoking),
        2 => any_lock(),
        2 => any_task(),
        1 => any_documents(),
        1 => any::<bool>().prop_map(|idle| Command::Sweep { idle }),
    ]
}

fn any_acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (any_actor(), any_command(0..12), 0u64..40, any::<bool>(), prop::bool::weighted(0.7));
    prop::collection::vec(act, 20..90).prop_map(|acts| {
        let mut now = Timestamp::from_seconds(BEGINNING);
        let mut all = Vec::new();
        for (actor, command, seconds, apart, by_admin) in acts {
            now = now.plus(Duration::from_secs(seconds));
            let administers = !matches!(
                command,
                Command::Ask(_)
                    | Command::Approve { .. }
                    | Command::Deny { .. }
                    | Command::Cancel { .. }
                    | Command::Release(_)
            );
            let actor = if administers && by_admin { admin() } else { actor };
            all.push(Act { actor, command, at: now, apart });
        }
        all
    })
}

async fn follow<R: Rows>(rows: &mut R, catalogue: &mut Arc<Catalogue>) {
    let generation = rows.head().await.unwrap().generation;
    if generation != catalogue.generation {
        *catalogue = Arc::new(Catalogue::read(&rows.documents().await.unwrap(), generation).unwrap());
    }
}

/// Does it all, and returns what each was told.
async fn act<S: Store>(store: &S, acts: &[Act], together: bool) -> Vec<String> {
    let mut told = Vec::new();
    let mut catalogue = Arc::new(Catalogue::read(&[], 0).unwrap());
    let mut rest = acts;
    while !rest.is_empty() {
        let length = if together { rest.iter().skip(1).take_while(|act| !act.apart).count() + 1 } else { 1 };
        let (batch, later) = rest.split_at(length);
        rest = later;
        let mut transaction = store.begin().await.unwrap();
        let mut wanted = Wanted::default();
        batch.iter().for_each(|act| act.command.want(&act.actor, &mut wanted));
        if together {
            transaction.prefetch(wanted).await.unwrap();
        }
        for act in batch {
            follow(&mut transaction, &mut catalogue).await;
            match execute(&mut transaction, &catalogue, &act.actor, &act.command, act.at).await {
                Ok((reply, writes)) => {
                    transaction.apply(writes).await.unwrap();
                    as_it_is_kept(&mut transaction, &reply).await;
                    told.push(format!("{reply:?}"));
                }
                Err(Failed::Refused(refusal)) => told.push(format!("{refusal:?}")),
                Err(Failed::Store(error)) => panic!("{act:?}: {error}"),
            }
        }
        transaction.commit().await.unwrap();
    }
    told
}

/// Whoever asked is told what is kept, and nothing else.
async fn as_it_is_kept<R: Rows>(rows: &mut R, reply: &Reply) {
    let grants = match reply {
        Reply::Request(row, grant) => {
            assert_eq!(rows.request(&row.request.id).await.unwrap().as_ref(), Some(&**row));
            grant.as_ref()
        }
        Reply::Grant(grant) => Some(grant),
        _ => None,
    };
    if let Some(grant) = grants {
        assert_eq!(rows.grant(&grant.grant.id).await.unwrap().as_ref(), Some(&**grant));
    }
}

/// An id that is used twice is no history: whoever receives a request makes it.
fn with_ids_of_their_own(acts: Vec<Act>, documents: Vec<Document>) -> Vec<Act> {
    let mut next = 0;
    let at = Timestamp::from_seconds(BEGINNING);
    let first = Act { actor: admin(), command: Command::Apply(documents), at, apart: true };
    let rest = acts.into_iter().map(|mut act| {
        if let Command::Ask(ask) = &mut act.command {
            (ask.id, ask.grant) = (request(next), grant(next, 0));
            next += 1;
        }
        act
    });
    std::iter::once(first).chain(rest).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_same_commands_give_the_same_rows_everywhere(acts in any_acts()) {
        let acts = with_ids_of_their_own(acts, documents());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (memory, sqlite, postgres) = (MemoryStore::default(), Sqlite::new(), Postgres::new());
            let told = act(&memory, &acts, false).await;
            let expected = check(&memory).await;
            for store in [sqlite.open().await, postgres.open().await] {
                for (here, there) in act(&*store, &acts, true).await.iter().zip(&told) {
                    assert_eq!(here, there);
                }
                same(&everything(&*store).await, &expected);
                store.close().await;
            }
        });
    }
}
