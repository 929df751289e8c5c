//! Several control planes on one PostgreSQL, and a PostgreSQL that goes away.

use std::time::Duration;

use leasehold::control::command::Command;
use leasehold::control::engine::Pace;
use leasehold::control::refusal::Kind;
use leasehold::control::store::sql::SqlStore;
use leasehold::control::store::{Rows, Store};
use leasehold::domain::grant::GrantState;
use rustix::process::Signal;

use super::invariants::check;
use super::place::{Place, Postgres};
use super::postgres::Server;
use super::world::{DAY, World, admin, asking, code, documents, entitlement, policy, quiet, who};

const LONG: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, coming).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

async fn three(place: &Postgres) -> [World<SqlStore>; 3] {
    let first = World::on(place.open().await, quiet()).await;
    first.run(&admin(), Command::Apply(documents())).await.unwrap();
    [first, World::on(place.open().await, quiet()).await, World::on(place.open().await, quiet()).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hears_of_what_the_others_write() {
    let [one, two, three] = three(&Postgres::new()).await;
    let (mut head, before) = (two.engine.head(), two.engine.catalogue().generation);
    let grant = one.granted(&who("bot"), "auto").await;
    let wanted = one.engine.head().borrow().clone();
    within("the head", head.wait_for(|head| *head == wanted)).await.unwrap();
    assert_eq!(two.grant(&grant.grant.id).await, grant);
    let more = vec![
        entitlement("more", serde_json::json!({})),
        policy(
            "more",
            "permit(principal, action == Leasehold::Action::\"elevation:auto_approve\", resource == Leasehold::Entitlement::\"more\");",
        ),
    ];
    three.run(&admin(), Command::Apply(more)).await.unwrap();
    within("the documents", head.wait_for(|head| head.generation == before + 1)).await.unwrap();
    assert_eq!(two.engine.catalogue().generation, before + 1, "whoever hears of the head finds the documents");
    two.ask(&who("bot"), asking(900, "more")).await.unwrap().1.unwrap();
    check(&*one.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_over_three_they_win_once() {
    let worlds = three(&Postgres::new()).await;
    let row = worlds[0].pending(&who("bot"), "asked").await;
    let once = worlds[0].granted(&who("bot"), "once").await.grant.id;
    let (mut approvals, mut uses) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for number in 0..24 {
        let engine = worlds[number % 3].engine.clone();
        let command = Command::Approve { request: row.request.id.clone(), seen: row.version, reason: String::new() };
        let approver = who(&format!("approver-{number}"));
        approvals.spawn({
            let engine = engine.clone();
            async move { engine.run(approver, command).await }
        });
        let command = Command::Consume { grant: once.clone(), use_id: format!("u{number}") };
        uses.spawn(async move { engine.run(admin(), command).await });
    }
    assert_eq!(approvals.join_all().await.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(uses.join_all().await.iter().filter(|answer| answer.is_ok()).count(), 1);
    let all = check(&*worlds[1].store).await;
    assert_eq!(all.grants.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sweeps_and_another_takes_over() {
    let place = Postgres::new();
    let pace = Pace { sweep_every: Duration::from_millis(20), ..quiet() };
    let first = World::on(place.open().await, pace.clone()).await;
    first.run(&admin(), Command::Apply(documents())).await.unwrap();
    let second = World::on(place.open().await, pace).await;
    let expire = async |by: &World<SqlStore>, number: u32| {
        let (_, grant) = by.ask(&who("bot"), asking(number, "auto")).await.unwrap();
        let grant = grant.unwrap().grant.id;
        // Both clocks, as if time had passed.
        first.clock.forward(DAY);
        second.clock.forward(DAY);
        let mut head = by.engine.head();
        within("the end", async {
            while by.grant(&grant).await.state == GrantState::Active {
                head.changed().await.unwrap();
            }
        })
        .await;
    };
    expire(&first, 901).await;
    expire(&second, 902).await;
    let all = check(&*first.store).await;
    assert_eq!(all.audit.iter().filter(|entry| entry.event == "grant.expired").count(), 2);
    let store = place.open().await;
    let soon = first.clock_now();
    assert_eq!(store.lease("sweeper", "a stranger", soon, LONG).await, Ok(false), "somebody holds it");
    assert_eq!(store.lease("sweeper", "a stranger", soon.plus(LONG), LONG).await, Ok(true), "nobody who is gone does");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_comes_back_after_the_server_was_restarted() {
    let server = Server::start();
    let place = Postgres { url: server.database() };
    let [one, two, _] = three(&place).await;
    one.granted(&who("bot"), "auto").await;
    server.control(&["stop", "-m", "immediate"]);
    let refused = within("a refusal", one.ask(&who("bot"), asking(900, "auto"))).await.unwrap_err();
    assert_eq!((refused.kind, refused.code), (Kind::Unavailable, "store"));
    server.control(&["start"]);
    let until = tokio::time::Instant::now() + LONG;
    while one.ask(&who("bot"), asking(901, "auto")).await.is_err() {
        assert!(tokio::time::Instant::now() < until, "it did not come back");
    }
    let wanted = one.engine.head().borrow().sequence;
    within("the head", two.engine.head().wait_for(|head| head.sequence >= wanted)).await.unwrap();
    two.ask(&who("bot"), asking(902, "auto")).await.unwrap();
    // Hints too: they are listened for again.
    assert_eq!(check(&*two.store).await.grants.len(), 3);
    server.control(&["stop", "-m", "immediate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_dying_server_did_not_confirm_is_settled() {
    let server = Server::start();
    let place = Postgres { url: server.database() };
    let [one, _, _] = three(&place).await;
    let mut next = 0;
    for _ in 0..5 {
        let mut asks = tokio::task::JoinSet::new();
        for number in next..next + 40 {
            let engine = one.engine.clone();
            asks.spawn(async move {
                (number, engine.run(who("bot"), Command::Ask(Box::new(asking(number, "auto")))).await)
            });
        }
        next += 40;
        asks.join_next().await.unwrap().unwrap().1.unwrap();
        server.control(&["restart", "-m", "immediate"]);
        for (number, answer) in asks.join_all().await {
            let id = asking(number, "auto").id;
            match answer {
                Ok(_) => drop(one.request(&id).await),
                Err(refusal) if refusal.code == "unconfirmed" => {}
                Err(refusal) => {
                    assert_eq!(refusal.kind, Kind::Unavailable, "{refusal:?}");
                    let row = one.store.view().await.unwrap().request(&id).await.unwrap();
                    assert_eq!(row, None, "it was said not to be done");
                }
            }
        }
    }
    check(&*one.store).await;
    server.control(&["stop", "-m", "immediate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_unavailable_and_then_works_again() {
    let server = Server::start();
    let place = Postgres { url: server.database() };
    let [one, _, _] = three(&place).await;
    let backends = server.sql(
        "postgres",
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    );
    let all: Vec<_> = backends
        .lines()
        .map(|pid| rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap())
        .chain([server.pid()])
        .collect();
    let signal = |signal: Signal| {
        for pid in &all {
            let _ = rustix::process::kill_process(*pid, signal);
        }
    };
    signal(Signal::STOP);
    let answer = within("an answer", one.ask(&who("bot"), asking(900, "auto"))).await;
    signal(Signal::CONT);
    let refused = answer.unwrap_err();
    assert_eq!(refused.kind, Kind::Unavailable, "{refused:?}");
    let until = tokio::time::Instant::now() + LONG;
    let mut number = 901;
    while one.ask(&who("bot"), asking(number, "auto")).await.is_err() {
        number += 1;
        assert!(tokio::time::Instant::now() < until, "it did not come back");
    }
    check(&*one.store).await;
    server.control(&["stop", "-m", "immediate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_only_one_engine_refuses_harms_nobody_else() {
    // A key is asked for before anything is judged; a digest is written with the rest.
    for (key, digest) in [("a\0b", "body"), ("k", "a\0b")] {
        let [one, _, _] = three(&Postgres::new()).await;
        let mut all = tokio::task::JoinSet::new();
        for number in 0..160 {
            let (engine, mut ask) = (one.engine.clone(), asking(number, "auto"));
            let (key, digest) = if number == 5 { (key, digest) } else { ("k", "body") };
            ask.idempotency = super::world::key(key, digest);
            all.spawn(async move { engine.run(who(&format!("bot-{number}")), Command::Ask(Box::new(ask))).await });
        }
        let answers = all.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 159);
        assert_eq!(code(answers.into_iter().find(Result::is_err).unwrap()), "store");
        check(&*one.store).await;
    }
}
