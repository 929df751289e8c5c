//! Several control planes on one store say the same of all sidecars.

use leasehold::wire::v1;
use leasehold::wire::v1::consume_reply::Outcome;
use serde_json::{Value, json};

use crate::common::wait_for;
use crate::follower::{Follower, ended, subscribe};
use crate::postgres;
use crate::world::World;

fn two() -> (World, World) {
    let store = format!("  store: {}\n", postgres::shared().database());
    let one = World::start_with(&store, None);
    let two = World::start_with(&store, Some(&one));
    (one, two)
}

/// A sidecar that follows `world`, by the certificates of `signer`, and has evidence.
fn following(world: &World, signer: &World, name: &str, subscribe: v1::Subscribe) -> Follower {
    let shown = signer.authority.shown(name);
    world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), &signer.authority.der, Some(shown)).await.unwrap();
        follower.follow(subscribe).await.unwrap();
        let (revision, _) = follower.snapshot().await;
        follower.ack(revision).await;
        follower.ping().await;
        follower
    })
}

fn enforcement(world: &World, revoked: &Value, wait: &str) -> Value {
    let target = format!("/v1/revocations/{}?wait={wait}", revoked["revision"]);
    world.done("local", "GET", &target, &Value::Null)["enforcement"].clone()
}

#[test]
fn each_reports_the_sidecars_of_the_other() {
    let (one, two) = two();
    let grant = one.grant("shop-read");
    let mut here = following(&one, &one, "shop-1", subscribe(&["shop"]));
    let mut there = following(&two, &one, "shop-2", subscribe(&["shop"]));
    for world in [&one, &two] {
        let listed = world.done("local", "GET", "/v1/sidecars", &Value::Null);
        assert_eq!(listed["items"].as_array().unwrap().len(), 2, "{listed}");
    }
    let revoked = one.done("local", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    one.runtime.block_on(async {
        let revision = here.change(ended(&grant)).await;
        here.ack(revision).await;
    });
    let said = enforcement(&one, &revoked, "0s");
    assert_eq!((said["state"].as_str(), said["sidecars"].as_u64()), (Some("pending"), Some(2)), "{said}");
    assert_eq!(said["pending"][0]["sidecar"], "spiffe://prod.test/sidecar/shop-2", "{said}");
    two.runtime.block_on(async {
        let revision = there.change(ended(&grant)).await;
        there.ack(revision).await;
    });
    for world in [&one, &two] {
        let said = enforcement(world, &revoked, "10s");
        assert_eq!((said["state"].as_str(), said["enforced"].as_u64()), (Some("enforced"), Some(2)), "{said}");
    }
}

#[test]
fn the_sidecars_of_a_control_plane_that_died_are_waited_for() {
    let (one, mut two) = two();
    let grant = one.grant("shop-read");
    let mut there = following(&two, &one, "shop-2", v1::Subscribe { staleness_max_ms: 1_000, ..subscribe(&["shop"]) });
    wait_for("it to be heard of", || {
        let listed = one.done("local", "GET", "/v1/sidecars", &Value::Null);
        (listed["items"].as_array().unwrap().len() == 1).then_some(())
    });
    // It says no farewell.
    two.runtime.block_on(async { drop(two.control.take()) });
    let revoked = one.done("local", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    let said = enforcement(&one, &revoked, "0s");
    assert_eq!((said["state"].as_str(), said["sidecars"].as_u64()), (Some("pending"), Some(1)), "{said}");
    // The sidecar goes on at the other one, as the same process, and hears of it there.
    there = following_on(&one, there);
    one.runtime.block_on(async {
        let revision = there.change(ended(&grant)).await;
        there.ack(revision).await;
    });
    let said = enforcement(&one, &revoked, "10s");
    assert_eq!((said["state"].as_str(), said["enforced"].as_u64()), (Some("enforced"), Some(1)), "{said}");
}

/// The same process of the sidecar, at another control plane.
fn following_on(world: &World, gone: Follower) -> Follower {
    drop(gone);
    let shown = world.authority.shown("shop-2");
    world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), &world.authority.der, Some(shown)).await.unwrap();
        let resumed = v1::Subscribe { staleness_max_ms: 1_000, resume_revision: Some(1), ..subscribe(&["shop"]) };
        follower.follow(resumed).await.unwrap();
        follower
    })
}

#[test]
fn a_use_is_taken_once_over_all_of_them() {
    let (one, two) = two();
    let grant = one.grant("twice");
    let mut here = following(&one, &one, "shop-1", subscribe(&["shop"]));
    let mut there = following(&two, &one, "shop-2", subscribe(&["shop"]));
    let (first, again) =
        (one.runtime.block_on(here.consume(&grant, "u1")), two.runtime.block_on(there.consume(&grant, "u1")));
    assert_eq!((first.unwrap(), again.unwrap()), (Outcome::Taken, Outcome::Taken));
    let mut taken = Vec::new();
    for use_id in ["u2", "u3"] {
        taken.push(two.runtime.block_on(there.consume(&grant, use_id)).unwrap());
    }
    assert_eq!(taken, [Outcome::Taken, Outcome::Exhausted]);
}
