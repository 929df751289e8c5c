//! What a sidecar is told, and what it asks for.

use leasehold::wire::v1;
use leasehold::wire::v1::client_frame::Frame as Said;
use leasehold::wire::v1::consume_reply::Outcome;
use leasehold::wire::v1::server_frame::Frame;
use serde_json::{Value, json};
use tonic::Code;

use crate::common::wait_for;
use crate::follower::{ended, subscribe};
use crate::world::World;

#[test]
fn everything_first_then_every_change_of_its_backends() {
    let world = World::start();
    let first = world.grant("shop-read");
    let foreign = world.grant("bank-read");
    let mut follower = world.sidecar("shop-1");
    let revision = world.runtime.block_on(async {
        follower.follow(subscribe(&["shop"])).await.unwrap();
        let (revision, grants) = follower.snapshot().await;
        assert_eq!(grants.iter().map(|grant| grant.id.as_str()).collect::<Vec<_>>(), [first.as_str()]);
        let (as_of, _) = follower.ping().await;
        assert!(as_of >= revision);
        revision
    });
    let second = world.grant("shop-read");
    world.done("local", "POST", &format!("/v1/grants/{foreign}/revoke"), &json!({}));
    world.done("local", "POST", &format!("/v1/grants/{first}/revoke"), &json!({}));
    world.runtime.block_on(async {
        let begun =
            |change: &v1::change::Change| matches!(change, v1::change::Change::Grant(grant) if grant.id == second);
        assert!(follower.change(begun).await > revision);
        let to = follower.change(ended(&first)).await;
        follower.ack(to).await;
        let (as_of, _) = follower.ping().await;
        assert!(as_of >= to);
    });
    // Resumed, it hears only what it missed.
    drop(follower);
    world.done("local", "POST", &format!("/v1/grants/{second}/revoke"), &json!({}));
    let mut follower = world.sidecar("shop-1");
    world.runtime.block_on(async {
        follower.follow(v1::Subscribe { resume_revision: Some(revision), ..subscribe(&["shop"]) }).await.unwrap();
        let Some(Frame::Delta(delta)) = follower.next().await.unwrap() else { panic!("no delta came") };
        assert_eq!((delta.from, delta.changes.len()), (revision, 3), "{delta:?}");
    });
}

#[test]
fn a_use_is_taken_once_however_often_it_is_asked_for() {
    let world = World::start();
    let grant = world.grant("twice");
    let (mut one, mut two, mut foreign) = (world.sidecar("shop-1"), world.sidecar("shop-2"), world.sidecar("other"));
    world.runtime.block_on(async {
        for _ in 0..3 {
            assert_eq!(one.consume(&grant, "u1").await.unwrap(), Outcome::Taken);
        }
        assert_eq!(foreign.consume(&grant, "u2").await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(one.consume("grt_none", "u2").await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(one.consume(&grant, "").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(two.consume(&grant, "u2").await.unwrap(), Outcome::Taken);
        assert_eq!(one.consume(&grant, "u3").await.unwrap(), Outcome::Exhausted);
        assert_eq!(one.consume(&grant, "u1").await.unwrap(), Outcome::Taken, "it is the same use");
    });
    let shown = world.done("local", "GET", &format!("/v1/grants/{grant}"), &Value::Null);
    assert_eq!((shown["uses"].as_u64(), shown["state"].as_str()), (Some(2), Some("exhausted")), "{shown}");
    let revoked = world.grant("twice");
    world.done("local", "POST", &format!("/v1/grants/{revoked}/revoke"), &json!({}));
    let outcome = world.runtime.block_on(one.consume(&revoked, "u1")).unwrap();
    assert_eq!(outcome, Outcome::Ended);
}

#[test]
fn contenders_for_the_last_use_do_not_share_it() {
    let world = World::start();
    let grant = world.grant("twice");
    let follower = world.sidecar("shop-1");
    let taken = world.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..16 {
            let (mut client, grant) = (follower.client.clone(), grant.clone());
            tasks.spawn(async move {
                let request = v1::ConsumeRequest { grant, use_id: format!("u{number}") };
                client.consume(request).await.unwrap().into_inner().outcome()
            });
        }
        tasks.join_all().await.into_iter().filter(|outcome| *outcome == Outcome::Taken).count()
    });
    assert_eq!(taken, 2);
}

#[test]
fn a_stopping_server_says_farewell() {
    let mut world = World::start();
    let mut follower = world.sidecar("all");
    world.runtime.block_on(async {
        follower.follow(subscribe(&["shop"])).await.unwrap();
        follower.snapshot().await;
        follower.say(Said::Ping(v1::Ping { nonce: 7 })).await;
    });
    let control = world.control.take().unwrap();
    let stopping = world.runtime.spawn(control.stop());
    world.runtime.block_on(async {
        loop {
            match follower.next().await.unwrap() {
                Some(Frame::GoAway(away)) => break assert!(!away.reason.is_empty()),
                Some(_) => {}
                None => panic!("it left without a word"),
            }
        }
        stopping.await.unwrap();
    });
}

#[test]
fn what_sidecars_say_of_use_is_shown() {
    let world = World::start();
    let (grant, foreign) = (world.grant("shop-read"), world.grant("bank-read"));
    let (mut one, mut two) = (world.sidecar("shop-1"), world.sidecar("shop-2"));
    let at = 1_700_000_000_000_000;
    let used = |grant: &str, last_used, calls| v1::GrantActivity { grant: grant.to_owned(), last_used, calls };
    world.runtime.block_on(async {
        one.follow(subscribe(&["shop"])).await.unwrap();
        two.follow(subscribe(&["shop"])).await.unwrap();
        let grants = vec![used(&grant, at, 3), used(&foreign, at, 7), used("grt_none", at, 1)];
        one.say(Said::Activity(v1::Activity { grants })).await;
        two.say(Said::Activity(v1::Activity { grants: vec![used(&grant, at + 1_000_000, 2)] })).await;
    });
    let shown = |grant: &str| world.done("local", "GET", &format!("/v1/grants/{grant}"), &Value::Null);
    let seen = wait_for("both to be written", || Some(shown(&grant)).filter(|shown| shown["calls"] == 5));
    assert_eq!(seen["last_used"], "2023-11-14T22:13:21Z");
    let ahead = vec![used(&grant, i64::MAX, 1)];
    world.runtime.block_on(one.say(Said::Activity(v1::Activity { grants: ahead })));
    let seen = wait_for("the next", || Some(shown(&grant)).filter(|shown| shown["calls"] == 6));
    let last: jiff::Timestamp = seen["last_used"].as_str().unwrap().parse().unwrap();
    assert!(last <= jiff::Timestamp::now(), "a clock that is ahead makes nothing younger");
    assert_eq!(shown(&foreign).get("calls"), None, "it is not theirs to say");
    let listed = world.done("local", "GET", "/v1/grants", &Value::Null);
    assert!(listed["items"].as_array().unwrap().iter().any(|listed| listed["calls"] == 6), "{listed}");
}

#[test]
fn a_grant_for_one_call_covers_nothing_to_whoever_does_not_know_of_that() {
    let world = World::start();
    let digest = format!("sha256:{}", "07".repeat(32));
    let asked = json!({"entitlement": "shop-read", "arguments": digest});
    let granted = || world.done("bot", "POST", "/v1/requests", &asked)["grant_id"].as_str().unwrap().to_owned();
    let is_bound = |grant: &v1::Grant| {
        let bound = grant.bound.as_ref().unwrap();
        grant.actions.is_empty() && bound.actions == ["read"] && bound.arguments[..] == [7; 32]
    };
    let first = granted();
    let mut follower = world.sidecar("shop-1");
    world.runtime.block_on(async {
        follower.follow(subscribe(&["shop"])).await.unwrap();
        let (_, grants) = follower.snapshot().await;
        assert!(grants[0].id == first && is_bound(&grants[0]), "{grants:?}");
    });
    let second = granted();
    world.runtime.block_on(async {
        let told = |change: &v1::change::Change| matches!(change, v1::change::Change::Grant(grant) if grant.id == second && is_bound(grant));
        follower.change(told).await;
    });
}
