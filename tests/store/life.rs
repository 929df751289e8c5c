//! The life of an elevation, by the real commands.

use leasehold::control::command::{Ask, Command, Reply};
use leasehold::control::document::Kind;
use leasehold::control::refusal;
use leasehold::control::store::{EndReason, Review, Selector};
use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::arguments::ArgumentDigest;
use leasehold::domain::entitlement::Narrower;
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{GrantId, LockId, TaskRef};
use leasehold::domain::lock::Lock;
use leasehold::domain::resource::ResourcePattern;
use leasehold::domain::task::TaskEvent;
use leasehold::domain::time::Timestamp;
use serde_json::json;

use super::invariants::check;
use super::place::Place;
use super::world::{BEGINNING, DAY, admin, code, entitlement, key, policy, principal, who, world};

pub async fn asked_again_with_the_same_key_it_is_the_same_request<P: Place>(place: P) {
    let world = world(&place).await;
    let asking = |digest: &str| {
        let mut ask = world.asking("auto");
        ask.idempotency = key("k", digest);
        ask
    };
    let (first, grant) = world.ask(&who("bot"), asking("body")).await.unwrap();
    let (again, same) = world.ask(&who("bot"), asking("body")).await.unwrap();
    assert_eq!((&first, &grant), (&again, &same));
    assert_eq!(code(world.ask(&who("bot"), asking("other body")).await), "idempotency_key_reused");
    let (other, _) = world.ask(&who("bot-2"), asking("other body")).await.unwrap();
    assert_ne!(first.request.id, other.request.id, "a key is its caller's");
    // Said at the same time it is one request too.
    let (bot, mut one, mut two) = (who("bot-3"), asking("body"), asking("body"));
    (one.idempotency, two.idempotency) = (key("both", "body"), key("both", "body"));
    let (one, two) = tokio::join!(world.ask(&bot, one), world.ask(&bot, two));
    assert_eq!(one.unwrap().0.request.id, two.unwrap().0.request.id);
    assert_eq!(check(&*world.store).await.requests.len(), 3);
}

pub async fn policy_approves_and_denies_at_once<P: Place>(place: P) {
    let world = world(&place).await;
    let grant = world.granted(&who("bot"), "auto").await;
    assert_eq!(grant.state, GrantState::Active);
    let (row, none) = world.ask(&who("bot"), world.asking("forbidden")).await.unwrap();
    assert_eq!((row.elevation.state(), none), ("denied", None));
    assert!(row.ruling.reasons.contains(&"not in this shop".to_owned()), "{:?}", row.ruling);
    let (row, _) = world.ask(&who("chief-1"), world.asking("auto")).await.unwrap();
    assert_eq!(row.elevation.state(), "denied", "who is not eligible");
    for (who_asks, entitlement, expected) in [
        (who("stranger"), "auto", "unknown_principal"),
        (who("bot"), "nothing", "not_found"),
        (who("bot"), "tasked", "task_required"),
    ] {
        assert_eq!(code(world.ask(&who_asks, world.asking(entitlement)).await), expected);
    }
    check(&*world.store).await;
}

pub async fn an_approver_agrees_and_nobody_approves_their_own<P: Place>(place: P) {
    let world = world(&place).await;
    let own = world.pending(&who("approver-1"), "asked").await;
    assert_eq!(code(world.approve("approver-1", &own).await), "self_approval");
    let mut ask = world.asking("asked");
    ask.subject = Some(who("agent"));
    let (for_agent, _) = world.ask(&who("approver-owner"), ask).await.unwrap();
    assert_eq!(code(world.approve("approver-owner", &for_agent).await), "self_approval");
    assert_eq!(code(world.approve("agent", &for_agent).await), "self_approval");
    let of_agent = world.pending(&who("agent"), "asked").await;
    assert_eq!(code(world.approve("approver-owner", &of_agent).await), "approver_not_owner");
    assert_eq!(code(world.approve("chief-1", &own).await), "not_an_approver");
    assert_eq!(code(world.approve("stranger", &own).await), "unknown_principal");
    assert_eq!(check(&*world.store).await.grants.len(), 0);
    let (row, grant) = world.approve("approver-2", &own).await.unwrap();
    assert_eq!(row.elevation.state(), "approved");
    assert_eq!(grant.unwrap().grant.principal, who("approver-1"));
    assert_eq!(code(world.approve("approver-3", &row).await), "already_decided");
    check(&*world.store).await;
}

pub async fn steps_need_their_quorum_and_an_approver_counts_once<P: Place>(place: P) {
    let world = world(&place).await;
    let mut row = world.pending(&who("bot"), "steps").await;
    for (approver, state) in [("approver-1", "pending"), ("chief-1", "pending"), ("chief-2", "approved")] {
        let (next, _) = world.approve(approver, &row).await.unwrap();
        assert_eq!(next.elevation.state(), state, "{approver}");
        if state == "pending" {
            let (again, none) = world.approve(approver, &next).await.unwrap();
            assert_eq!((again, none), (next.clone(), None), "said again it changes nothing");
        }
        row = next;
        if approver == "chief-1" {
            assert_eq!(
                code(world.approve("approver-9", &row).await),
                "not_an_approver",
                "the next step is the chiefs'"
            );
        }
    }
    check(&*world.store).await;
}

pub async fn an_approval_is_for_what_was_seen<P: Place>(place: P) {
    let world = world(&place).await;
    let first = world.pending(&who("bot"), "steps").await;
    world.approve("approver-1", &first).await.unwrap();
    let refused = world.approve("approver-2", &first).await.unwrap_err();
    assert_eq!((refused.kind, refused.code), (refusal::Kind::Changed, "changed"));
    check(&*world.store).await;
}

pub async fn what_changed_since_is_asked_again_at_approval<P: Place>(place: P) {
    let world = world(&place).await;
    let mut task = world.asking("asked");
    task.task = Some(TaskRef::new("jira:OPS-1").unwrap());
    let (locked, _) = world.ask(&who("bot-locked"), world.asking("asked")).await.unwrap();
    let (ruled, _) = world.ask(&who("bot-ruled"), world.asking("asked")).await.unwrap();
    let (gone, _) = world.ask(&who("agent"), world.asking("asked")).await.unwrap();
    let lock = Lock { principal: Some(who("bot-locked")), ..lock("l1") };
    world.run(&admin(), Command::Lock(Box::new(lock))).await.unwrap();
    let forbid = policy(
        "stop",
        "forbid(principal == Leasehold::Principal::\"https://idp.test#bot-ruled\", action == Leasehold::Action::\"elevation:request\", resource);",
    );
    let disabled = principal("agent", "agent", json!({"groups": ["bots"], "disabled": true}));
    world.run(&admin(), Command::Apply(vec![forbid, disabled])).await.unwrap();
    for row in [locked, ruled, gone] {
        let (row, grant) = world.approve("approver-1", &row).await.unwrap();
        assert_eq!((row.elevation.state(), grant), ("denied", None), "{row:?}");
    }
    check(&*world.store).await;
}

pub async fn deny_cancel_and_lapse_end_a_request_for_good<P: Place>(place: P) {
    let world = world(&place).await;
    let id = |row: &leasehold::control::store::RequestRow| row.request.id.clone();
    let (denied, cancelled, late) = (
        world.pending(&who("bot-1"), "asked").await,
        world.pending(&who("bot-2"), "asked").await,
        world.pending(&who("bot-3"), "asked").await,
    );
    let deny = |row| Command::Deny { request: id(row), reason: "no".into() };
    let cancel = |row| Command::Cancel { request: id(row), reason: "not needed".into() };
    assert_eq!(code(world.run(&who("bot-1"), deny(&denied)).await), "self_approval");
    world.run(&who("approver-1"), deny(&denied)).await.unwrap();
    assert_eq!(code(world.run(&who("bot-1"), cancel(&cancelled)).await), "not_found", "another's");
    world.run(&who("bot-2"), cancel(&cancelled)).await.unwrap();
    world.clock.forward(DAY);
    assert_eq!(code(world.approve("approver-1", &late).await), "window");
    assert_eq!(world.sweep().await, 1);
    for (row, state) in [(&denied, "denied"), (&cancelled, "cancelled"), (&late, "expired")] {
        let now = world.request(&id(row)).await;
        assert_eq!(now.elevation.state(), state);
        assert_eq!(code(world.approve("approver-2", &now).await), "already_decided");
        assert_eq!(code(world.run(&who("approver-1"), deny(row)).await), "already_decided");
        assert_eq!(code(world.run(&admin(), cancel(row)).await), "already_decided");
        assert_eq!(world.request(&id(row)).await, now, "it changed after its end");
    }
    check(&*world.store).await;
}

pub async fn eight_approvals_at_once_make_one_grant<P: Place>(place: P) {
    let world = world(&place).await;
    let row = world.pending(&who("bot"), "asked").await;
    let mut approvals = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (engine, request, seen) = (world.engine.clone(), row.request.id.clone(), row.version);
        let command = Command::Approve { request, seen, reason: String::new() };
        approvals.spawn(async move { engine.run(who(&format!("approver-{number}")), command).await });
    }
    let answers = approvals.join_all().await;
    let won = answers.iter().filter(|answer| matches!(answer, Ok(Reply::Request(_, Some(_))))).count();
    assert_eq!(won, 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.as_ref().err().is_none_or(|error| error.code == "already_decided")));
    assert_eq!(check(&*world.store).await.grants.len(), 1);
}

pub async fn a_closed_task_ends_what_it_justified<P: Place>(place: P) {
    let world = world(&place).await;
    let asking = |entitlement: &str| {
        let mut ask = world.asking(entitlement);
        ask.task = Some(TaskRef::new("pagerduty:P1").unwrap());
        ask
    };
    world.task("pagerduty:P1", TaskEvent::Opened, 0).await;
    let (_, grant) = world.ask(&who("bot"), asking("tasked")).await.unwrap();
    let (waits, _) = world.ask(&who("bot"), asking("asked")).await.unwrap();
    let other = world.granted(&who("bot"), "auto").await;
    let grant = grant.unwrap();
    assert_eq!(world.task("pagerduty:P1", TaskEvent::Closed, 10).await, std::slice::from_ref(&grant.grant.id));
    let ended = world.grant(&grant.grant.id).await;
    assert_eq!((ended.state, ended.ended.as_ref().unwrap().reason), (GrantState::Revoked, EndReason::TaskClosed));
    assert_eq!(world.request(&waits.request.id).await.elevation.state(), "cancelled");
    assert_eq!(world.grant(&other.grant.id).await.state, GrantState::Active);
    assert_eq!(code(world.ask(&who("bot"), asking("tasked")).await), "task_closed");
    world.task("pagerduty:P1", TaskEvent::Opened, 5).await;
    assert_eq!(code(world.ask(&who("bot"), asking("tasked")).await), "task_closed", "an older opening came late");
    world.task("pagerduty:P1", TaskEvent::Opened, 20).await;
    assert_eq!(world.grant(&grant.grant.id).await, ended, "reopening brought it back");
    assert_eq!(world.request(&waits.request.id).await.elevation.state(), "cancelled");
    assert!(world.ask(&who("bot"), asking("tasked")).await.unwrap().1.is_some());
    check(&*world.store).await;
}

fn lock(id: &str) -> Lock {
    Lock {
        id: LockId::new(id).unwrap(),
        principal: None,
        backend: None,
        action: None,
        resource: None,
        grant: None,
        task: None,
        message: "stop".into(),
        expires_at: None,
    }
}

pub async fn a_lock_stops_requests_until_it_is_lifted<P: Place>(place: P) {
    let world = world(&place).await;
    let put = |lock: Lock| Command::Lock(Box::new(lock));
    assert_eq!(code(world.run(&who("bot"), put(lock("l1"))).await), "not_an_admin");
    world.run(&admin(), put(lock("l1"))).await.unwrap();
    assert_eq!(code(world.ask(&who("bot"), world.asking("auto")).await), "lock");
    let short = Lock { expires_at: Some(Timestamp::from_seconds(BEGINNING + 60)), ..lock("l2") };
    world.run(&admin(), put(short)).await.unwrap();
    world.run(&admin(), Command::Unlock(LockId::new("l1").unwrap())).await.unwrap();
    assert_eq!(code(world.ask(&who("bot"), world.asking("auto")).await), "lock");
    world.clock.forward(std::time::Duration::from_secs(60));
    world.granted(&who("bot"), "auto").await;
    assert_eq!(code(world.run(&admin(), Command::Unlock(LockId::new("l1").unwrap())).await), "not_found");
    check(&*world.store).await;
}

pub async fn documents_end_what_they_no_longer_allow<P: Place>(place: P) {
    let world = world(&place).await;
    let (gone, disabled, stays) = (
        world.granted(&who("bot"), "counted").await,
        world.granted(&who("agent"), "auto").await,
        world.granted(&who("bot"), "auto").await,
    );
    let before = world.engine.catalogue().generation;
    let agent = principal("agent", "agent", json!({"groups": ["bots"], "disabled": true}));
    world.run(&admin(), Command::Apply(vec![agent.clone()])).await.unwrap();
    let Reply::Applied(applied) = world.run(&admin(), Command::Apply(vec![agent])).await.unwrap() else { panic!() };
    assert_eq!(applied[0].result, "unchanged");
    world.run(&admin(), Command::Delete(Kind::Entitlement, "counted".into())).await.unwrap();
    assert_eq!(world.engine.catalogue().generation, before + 2);
    let reason = |row: leasehold::control::store::GrantRow| row.ended.map(|ended| ended.reason);
    assert_eq!(reason(world.grant(&gone.grant.id).await), Some(EndReason::EntitlementDeleted));
    assert_eq!(reason(world.grant(&disabled.grant.id).await), Some(EndReason::PrincipalDisabled));
    assert_eq!(reason(world.grant(&stays.grant.id).await), None);
    assert_eq!(code(world.run(&admin(), Command::Delete(Kind::Entitlement, "counted".into())).await), "not_found");
    let good = entitlement("more", json!({}));
    let bad = entitlement("bad", json!({"backend": "nothing"}));
    assert_eq!(code(world.run(&admin(), Command::Apply(vec![good, bad])).await), "documents");
    assert_eq!(code(world.ask(&who("bot"), world.asking("more")).await), "not_found", "all or none");
    check(&*world.store).await;
}

fn scope(resource: &str) -> Scope {
    Scope::new(vec![ActionPattern::new("item.read").unwrap()], vec![ResourcePattern::new(resource).unwrap()])
}

pub async fn a_grant_only_becomes_narrower<P: Place>(place: P) {
    let world = world(&place).await;
    let bot = who("bot");
    let first = world.granted(&bot, "counted").await;
    let reduce = |id: &GrantId, to: Narrower| Command::Reduce(id.clone(), to);
    let later = Narrower { expires_at: Some(first.grant.window.expires_at.plus(DAY)), ..Narrower::default() };
    assert_eq!(code(world.run(&bot, reduce(&first.grant.id, later)).await), "would_widen");
    let wider = Narrower { scope: Some(scope("**")), ..Narrower::default() };
    assert_eq!(code(world.run(&bot, reduce(&first.grant.id, wider)).await), "would_widen");
    let more = Narrower { uses_max: Some(6), ..Narrower::default() };
    assert_eq!(code(world.run(&bot, reduce(&first.grant.id, more)).await), "would_widen");
    let other = Narrower { uses_max: Some(2), ..Narrower::default() };
    assert_eq!(code(world.run(&who("bot-2"), reduce(&first.grant.id, other)).await), "not_found");
    world.consume(&first.grant.id, "u1").await.unwrap();
    let less = Narrower {
        expires_at: Some(Timestamp::from_seconds(BEGINNING + 60)),
        uses_max: Some(3),
        scope: Some(scope("items/a")),
    };
    let Reply::Grant(next) = world.run(&bot, reduce(&first.grant.id, less)).await.unwrap() else { panic!() };
    assert_eq!(next.narrowed_from.as_ref(), Some(&first.grant.id));
    assert_eq!((next.grant.uses_max, next.grant.window.expires_at), (Some(2), Timestamp::from_seconds(BEGINNING + 60)));
    let before = world.grant(&first.grant.id).await;
    assert_eq!((before.state, before.ended.unwrap().reason), (GrantState::Released, EndReason::Superseded));
    let soon = Narrower { expires_at: Some(Timestamp::from_seconds(BEGINNING + 30)), ..Narrower::default() };
    let Reply::Grant(same) = world.run(&bot, reduce(&next.grant.id, soon)).await.unwrap() else { panic!() };
    assert_eq!(same.grant.id, next.grant.id, "an earlier end needs no new grant");
    let again = Narrower { scope: Some(scope("items/a")), uses_max: Some(1), ..Narrower::default() };
    world.run(&bot, reduce(&same.grant.id, again)).await.unwrap();
    check(&*world.store).await;
}

pub async fn a_grant_for_one_call_is_for_it_whatever_becomes_of_it<P: Place>(place: P) {
    let world = world(&place).await;
    let bot = who("bot");
    let call = |byte| Some(ArgumentDigest::from_bytes([byte; 32]));
    let (row, grant) = world.ask(&bot, Ask { arguments: call(1), ..world.asking("counted") }).await.unwrap();
    let grant = grant.unwrap();
    assert_eq!((row.request.scope.arguments().copied(), grant.grant.scope.arguments().copied()), (call(1), call(1)));
    assert_eq!(world.request(&row.request.id).await.request, row.request);
    assert_eq!(world.grant(&grant.grant.id).await.grant, grant.grant);
    world.consume(&grant.grant.id, "u1").await.unwrap();
    let reduce = |id: &GrantId, scope: Scope| {
        Command::Reduce(id.clone(), Narrower { scope: Some(scope), ..Narrower::default() })
    };
    for wider in [scope("items/a"), scope("items/a").bound_to(call(2))] {
        assert_eq!(code(world.run(&bot, reduce(&grant.grant.id, wider)).await), "would_widen");
    }
    let narrower = reduce(&grant.grant.id, scope("items/a").bound_to(call(1)));
    let Reply::Grant(next) = world.run(&bot, narrower).await.unwrap() else { panic!() };
    assert_eq!(next.grant.scope.arguments().copied(), call(1));
    // What was for any call is for one from then on, under another id.
    let (_, free) = world.ask(&bot, world.asking("auto")).await.unwrap();
    let free = free.unwrap().grant;
    let Reply::Grant(bound) =
        world.run(&bot, reduce(&free.id, free.scope.as_ref().clone().bound_to(call(3)))).await.unwrap()
    else {
        panic!()
    };
    assert_eq!((bound.narrowed_from.as_ref(), bound.grant.scope.arguments().copied()), (Some(&free.id), call(3)));
    // What takes its place is for the same call, whether that is said or not.
    let renewing = |arguments| Ask { renews: Some(bound.grant.id.clone()), arguments, ..world.asking("auto") };
    assert_eq!(code(world.ask(&bot, renewing(call(4))).await), "arguments_differ");
    let (_, renewed) = world.ask(&bot, renewing(None)).await.unwrap();
    assert_eq!(renewed.unwrap().grant.scope, bound.grant.scope);
    let rows = check(&*world.store).await;
    let used = rows.audit.iter().find(|entry| entry.event == "grant.used").unwrap();
    assert_eq!(used.detail["arguments"], json!(call(1)));
}

pub async fn some_entitlements_are_for_single_calls_only<P: Place>(place: P) {
    let world = world(&place).await;
    let bot = who("bot");
    let pending = world.pending(&bot, "asked").await;
    let (bound, _) = {
        let arguments = Some(ArgumentDigest::from_bytes([1; 32]));
        world.ask(&bot, Ask { arguments, ..world.asking("asked") }).await.unwrap()
    };
    let required = entitlement(
        "asked",
        json!({"arguments": "required", "concurrent_max": 100, "approval": {"steps": [{"approvers": ["approvers"], "quorum": 1}]}}),
    );
    world.run(&admin(), Command::Apply(vec![required])).await.unwrap();
    assert_eq!(code(world.ask(&bot, world.asking("asked")).await), "arguments_required");
    let (denied, _) = world.approve("approver-1", &pending).await.unwrap();
    assert_eq!(denied.elevation.state(), "denied", "it asks for any call");
    let (approved, grant) = world.approve("approver-1", &bound).await.unwrap();
    assert_eq!((approved.elevation.state(), grant.unwrap().grant.scope), ("approved", bound.request.scope.into()));
    check(&*world.store).await;
}

pub async fn what_ended_stays_ended<P: Place>(place: P) {
    let world = world(&place).await;
    let bot = who("bot");
    let (released, revoked, expired) =
        (world.granted(&bot, "auto").await, world.granted(&bot, "auto").await, world.granted(&bot, "auto").await);
    world.run(&bot, Command::Release(released.grant.id.clone())).await.unwrap();
    let one = |id: &GrantId| Selector { grant: Some(id.clone()), ..Selector::default() };
    assert_eq!(world.revoke(one(&revoked.grant.id)).await.len(), 1);
    world.clock.forward(DAY);
    world.sweep().await;
    for (row, state) in
        [(released, GrantState::Released), (revoked, GrantState::Revoked), (expired, GrantState::Expired)]
    {
        let id = &row.grant.id;
        let ended = world.grant(id).await;
        assert_eq!(ended.state, state);
        world.run(&bot, Command::Release(id.clone())).await.unwrap();
        assert_eq!(world.revoke(one(id)).await, []);
        assert_eq!(code(world.consume(id, "u").await), "ended");
        let less = Narrower { uses_max: Some(1), ..Narrower::default() };
        assert_eq!(code(world.run(&bot, Command::Reduce(id.clone(), less)).await), "ended");
        assert_eq!(world.sweep().await, 0);
        assert_eq!(world.grant(id).await, ended, "it changed after its end");
    }
    check(&*world.store).await;
}

pub async fn break_glass_is_reviewed_by_somebody_else<P: Place>(place: P) {
    let world = world(&place).await;
    let grant = world.granted(&who("root"), "emergency").await;
    assert_eq!((grant.emergency, &grant.review), (true, &Some(Review::Open)));
    let review = |id: &GrantId| Command::Review { grant: id.clone(), note: "fine".into() };
    assert_eq!(code(world.run(&who("root"), review(&grant.grant.id)).await), "self_review");
    assert_eq!(code(world.run(&who("approver-1"), review(&grant.grant.id)).await), "not_found");
    world.run(&who("root"), Command::Release(grant.grant.id.clone())).await.unwrap();
    world.run(&admin(), review(&grant.grant.id)).await.unwrap();
    assert_eq!(code(world.run(&admin(), review(&grant.grant.id)).await), "reviewed");
    let usual = world.granted(&who("bot"), "auto").await;
    assert_eq!(code(world.run(&admin(), review(&usual.grant.id)).await), "reviewed");
    check(&*world.store).await;
}

pub async fn a_trial_changes_nothing<P: Place>(place: P) {
    let world = world(&place).await;
    let before = check(&*world.store).await;
    let ask = world.asking("auto");
    let reply = world.engine.try_out(who("bot"), Command::Ask(Box::new(ask.clone()))).await.unwrap();
    assert!(matches!(reply, Reply::Request(_, Some(_))));
    let more = Command::Apply(vec![entitlement("more", json!({}))]);
    world.engine.try_out(admin(), more).await.unwrap();
    assert_eq!(check(&*world.store).await, before);
    assert_eq!(code(world.engine.try_out(who("bot"), Command::Ask(Box::new(world.asking("more")))).await), "not_found");
    world.ask(&who("bot"), ask).await.unwrap();
}
