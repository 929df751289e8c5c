//! Uses, quotas and bounds.

use std::time::Duration;

use leasehold::control::command::{Command, Reply, TaskSaid};
use leasehold::control::store::{Activity, EndReason, GrantRow, Rows, Selector};
use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::entitlement::Narrower;
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{EntitlementName, GrantId, TaskRef};
use leasehold::domain::resource::ResourcePattern;
use leasehold::domain::task::TaskEvent;
use leasehold::domain::time::Timestamp;
use proptest::strategy::{Strategy, ValueTree};
use serde_json::json;

use super::invariants::check;
use super::place::{Memory, Place};
use super::world::{BEGINNING, HOUR, World, admin, code, documents, entitlement, policy, quiet, revoking, who, world};
use leasehold::control::engine::Pace;
use leasehold::control::store::Store;

async fn contend<S: Store>(
    world: &World<S>,
    grant: &GrantId,
    contenders: usize,
    id: impl Fn(usize) -> String,
) -> usize {
    let mut all = tokio::task::JoinSet::new();
    for number in 0..contenders {
        let command = Command::Consume { grant: grant.clone(), use_id: id(number) };
        let engine = world.engine.clone();
        all.spawn(async move { engine.run(admin(), command).await });
    }
    all.join_all().await.iter().filter(|answer| answer.is_ok()).count()
}

pub async fn sixteen_contend_for_one_use<P: Place>(place: P) {
    let world = world(&place).await;
    let grant = world.granted(&who("bot"), "once").await.grant.id;
    assert_eq!(contend(&world, &grant, 16, |number| format!("u{number}")).await, 1);
    let row = world.grant(&grant).await;
    assert_eq!((row.state, row.uses, row.ended.unwrap().reason), (GrantState::Exhausted, 1, EndReason::Exhausted));
    check(&*world.store).await;
}

pub async fn a_use_said_again_counts_once<P: Place>(place: P) {
    let world = world(&place).await;
    let grant = world.granted(&who("bot"), "once").await.grant.id;
    assert_eq!(contend(&world, &grant, 8, |_| "the same".into()).await, 8);
    assert_eq!(world.grant(&grant).await.uses, 1);
    assert_eq!(world.consume(&grant, "the same").await.unwrap().uses, 1, "after it is used up too");
    assert_eq!(code(world.consume(&grant, "another").await), "ended");
    assert_eq!(code(world.consume(&grant, "").await), "use_id");
    let refused = world.run(&who("bot"), Command::Consume { grant, use_id: "x".into() }).await;
    assert_eq!(code(refused), "not_an_admin");
    check(&*world.store).await;
}

pub async fn counted_uses_run_out<P: Place>(place: P) {
    let world = world(&place).await;
    let grant = world.granted(&who("bot"), "counted").await.grant.id;
    assert_eq!(contend(&world, &grant, 12, |number| format!("u{}", number / 2)).await, 10);
    assert_eq!(world.grant(&grant).await.state, GrantState::Exhausted);
    let all = check(&*world.store).await;
    assert_eq!(all.audit.iter().filter(|entry| entry.event == "grant.used").count(), 4);
}

pub async fn quotas_hold_under_concurrency<P: Place>(place: P) {
    let world = world(&place).await;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (engine, ask) = (world.engine.clone(), world.asking("one"));
        all.spawn(async move { engine.run(who("bot"), Command::Ask(Box::new(ask))).await });
    }
    let answers = all.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(answers.into_iter().filter(Result::is_err).all(|answer| code(answer) == "too_many"));
    world.granted(&who("bot-2"), "one").await;
    let mine = Selector { principal: Some(who("bot")), ..Selector::default() };
    assert_eq!(world.revoke(mine).await.len(), 1);
    world.granted(&who("bot"), "one").await;
    check(&*world.store).await;
}

/// I3: whatever bounds a grant, it ends at the earliest of them.
pub async fn no_grant_outlives_any_of_its_bounds<P: Place>(place: P) {
    let world = world(&place).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let bounds = (1u64..900, 60u64..900, proptest::option::of(1u64..900), proptest::option::of(1i64..900));
    for round in 0..20 {
        let (requested, most, ttl, until) = bounds.new_tree(&mut runner).unwrap().current();
        let name = format!("bound-{round}");
        let ttl_text = ttl.map_or(String::new(), |ttl| format!("@max_ttl(\"{ttl}s\")\n"));
        let cedar = format!(
            "{ttl_text}permit(principal, action == Leasehold::Action::\"elevation:auto_approve\", resource == Leasehold::Entitlement::\"{name}\");"
        );
        let limits = entitlement(&name, json!({"duration_max": format!("{most}s")}));
        world.run(&admin(), Command::Apply(vec![limits, policy(&name, &cedar)])).await.unwrap();
        let mut ask = world.asking(&name);
        ask.duration_seconds = Some(requested.min(most));
        let now = BEGINNING;
        let task = TaskRef::new(&format!("jira:T-{round}")).unwrap();
        let until = until.map(|seconds| Timestamp::from_seconds(now + seconds));
        let (event, at) = (TaskEvent::Opened, Timestamp::from_seconds(now));
        let said = TaskSaid { task: task.clone(), event, at, kind: String::new(), until };
        world.run(&admin(), Command::Task(said)).await.unwrap();
        ask.task = Some(task);
        let (_, grant) = world.ask(&who("bot"), ask).await.unwrap();
        let end = grant.unwrap().grant.window.expires_at;
        let by_time = [Some(requested), Some(most), ttl].into_iter().flatten().min().unwrap();
        let by_time = Timestamp::from_seconds(now).plus(Duration::from_secs(by_time));
        assert_eq!(end, until.map_or(by_time, |until| until.min(by_time)), "{requested} {most} {ttl:?} {until:?}");
    }
    check(&*world.store).await;
}

pub async fn time_ends_what_is_over_and_nothing_else<P: Place>(place: P) {
    let world = world(&place).await;
    let mut short = world.asking("auto");
    short.duration_seconds = Some(60);
    let (_, short) = world.ask(&who("bot"), short).await.unwrap();
    let long = world.granted(&who("bot"), "auto").await;
    assert_eq!(world.sweep().await, 0);
    world.clock.forward(Duration::from_secs(60));
    let short = short.unwrap().grant.id;
    assert_eq!(code(world.consume(&short, "late").await), "ended", "before any sweep");
    assert_eq!(world.sweep().await, 1);
    let row = world.grant(&short).await;
    assert_eq!((row.state, row.ended.as_ref().unwrap().by.clone()), (GrantState::Expired, None));
    assert_eq!(world.grant(&long.grant.id).await.state, GrantState::Active);
    world.clock.forward(HOUR);
    assert_eq!((world.sweep().await, world.sweep().await), (1, 0));
    check(&*world.store).await;
}

pub async fn what_goes_unused_ends_and_what_is_used_does_not<P: Place>(place: P) {
    let world = world(&place).await;
    let seconds = |seconds| world.clock.forward(Duration::from_secs(seconds));
    let use_at = async |row: &GrantRow, last_used| {
        let used = Activity { last_used, calls: 1 };
        world.store.used([(row.grant.id.clone(), used)].into()).await.unwrap();
    };
    let began = world.clock_now();
    let (used, unused) = (world.granted(&who("bot"), "idle").await, world.granted(&who("bot"), "idle").await);
    let endless = world.granted(&who("bot"), "auto").await;
    // The timeout is a minute, and uses are heard of a quarter of it late at most.
    seconds(74);
    assert_eq!(world.sweep().await, 0);
    use_at(&used, began.plus(Duration::from_secs(59))).await;
    seconds(1);
    let listening = world.run(&admin(), Command::Sweep { idle: false }).await.unwrap();
    assert!(matches!(listening, Reply::Swept(0)), "who used it may not have said so yet: {listening:?}");
    assert_eq!((world.sweep().await, world.sweep().await), (1, 0));
    let row = world.grant(&unused.grant.id).await;
    let ended = row.ended.unwrap();
    assert_eq!((row.state, ended.reason, ended.by), (GrantState::Revoked, EndReason::Idle, None));
    // What is heard late or twice makes nothing older.
    use_at(&used, began.plus(Duration::from_secs(70))).await;
    use_at(&used, began).await;
    seconds(69);
    assert_eq!(world.sweep().await, 0);
    assert_eq!(world.grant(&used.grant.id).await.state, GrantState::Active);
    // A narrower one in its place begins as if it was used.
    let scope =
        Scope::new(vec![ActionPattern::new("item.read").unwrap()], vec![ResourcePattern::new("items/a").unwrap()]);
    let to = Narrower { scope: Some(scope), ..Narrower::default() };
    let Reply::Grant(narrow) = world.run(&admin(), Command::Reduce(used.grant.id.clone(), to)).await.unwrap() else {
        panic!("it is not narrower")
    };
    seconds(74);
    assert_eq!(world.sweep().await, 0);
    seconds(1);
    assert_eq!(world.sweep().await, 1);
    assert_eq!(world.grant(&narrow.grant.id).await.ended.unwrap().reason, EndReason::Idle);
    assert_eq!(world.grant(&endless.grant.id).await.state, GrantState::Active);
    let calls = world.store.view().await.unwrap().activity(std::slice::from_ref(&used.grant.id)).await.unwrap();
    assert_eq!(calls[&used.grant.id], Activity { last_used: began.plus(Duration::from_secs(70)), calls: 3 });
    // What time ended is said to be over, and not idle.
    let last = world.granted(&who("bot"), "idle").await;
    seconds(HOUR.as_secs());
    assert_eq!(world.sweep().await, 2);
    assert_eq!(world.grant(&last.grant.id).await.ended.unwrap().reason, EndReason::Expired);
    check(&*world.store).await;
}

/// Whoever used it before a control plane started cannot have told it of that yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_idle_before_it_could_be_heard_of() {
    let every = Duration::from_millis(5);
    let pace = Pace { sweep_every: every, listen_first: Duration::from_secs(200), ..quiet() };
    let world = World::on(Memory::default().open().await, pace).await;
    world.run(&admin(), Command::Apply(documents())).await.unwrap();
    let unused = world.granted(&who("bot"), "idle").await;
    let mut short = world.asking("auto");
    short.duration_seconds = Some(60);
    let (_, short) = world.ask(&who("bot"), short).await.unwrap();
    let ends = async |id: &GrantId| {
        let mut head = world.engine.head();
        while world.grant(id).await.state == GrantState::Active {
            head.changed().await.unwrap();
        }
        world.grant(id).await.ended.unwrap().reason
    };
    world.clock.forward(Duration::from_secs(199));
    assert_eq!(ends(&short.unwrap().grant.id).await, EndReason::Expired);
    assert_eq!(world.grant(&unused.grant.id).await.state, GrantState::Active);
    world.clock.forward(Duration::from_secs(1));
    assert_eq!(ends(&unused.grant.id).await, EndReason::Idle);
}

pub async fn a_selector_means_all_that_it_names<P: Place>(place: P) {
    let world = world(&place).await;
    let bots = [who("bot-1"), who("bot-2")];
    for bot in &bots {
        for entitlement in ["auto", "counted"] {
            world.granted(bot, entitlement).await;
        }
    }
    let nothing = world.run(&admin(), revoking(Selector::default())).await;
    assert_eq!(code(nothing), "empty_selector");
    let auto = Some(EntitlementName::new("auto").unwrap());
    let one = Selector { principal: Some(bots[0].clone()), entitlement: auto, ..Selector::default() };
    assert_eq!(code(world.run(&who("bot-1"), revoking(one.clone())).await), "not_an_admin");
    assert_eq!(world.revoke(one.clone()).await.len(), 1);
    assert_eq!(world.revoke(one).await.len(), 0);
    let task = Selector { task: Some(TaskRef::new("jira:X-1").unwrap()), ..Selector::default() };
    assert_eq!(world.revoke(task).await.len(), 0);
    let backend = Selector { backend: Some("shop".parse().unwrap()), ..Selector::default() };
    assert_eq!(world.revoke(backend).await.len(), 3);
    check(&*world.store).await;
}
