//! Who gets in, and what a sidecar's certificate is worth.

use tonic::Code;

use crate::common::wait_for;
use crate::follower::{Follower, Shown, subscribe};
use crate::world::{Authority, World};

fn code(world: &World, shown: Option<Shown>, backends: &[&str]) -> Option<Code> {
    world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), &world.authority.der, shown).await.ok()?;
        match follower.follow(subscribe(backends)).await {
            Ok(()) => Some(Code::Ok),
            // The connection was cut, which is no answer of the service's.
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => None,
            Err(status) => Some(status.code()),
        }
    })
}

#[test]
fn only_a_certificate_of_the_trust_domain_opens_the_door() {
    let world = World::start();
    let good = &world.authority;
    assert_eq!(code(&world, Some(good.shown("all")), &["shop", "bank"]), Some(Code::Ok));
    assert_eq!(code(&world, None, &["shop"]), None, "without a certificate");
    assert_eq!(code(&world, Some(Authority::new().shown("all")), &["shop"]), None, "signed by a stranger");
    let other = good.shown_as(&["spiffe://other.test/sidecar/all"]);
    assert_eq!(code(&world, Some(other), &["shop"]), None, "of another trust domain");
    let two = good.shown_as(&["spiffe://prod.test/sidecar/all", "spiffe://prod.test/sidecar/shop-1"]);
    assert_eq!(code(&world, Some(two), &["shop"]), None, "with two names");
    assert_eq!(code(&world, Some(good.shown_as(&[])), &["shop"]), None, "with no name");
}

#[test]
fn a_sidecar_follows_what_names_it_and_nothing_else() {
    let world = World::start();
    let shown = |name: &str| Some(world.authority.shown(name));
    assert_eq!(code(&world, shown("shop-1"), &["shop"]), Some(Code::Ok));
    for (name, backends) in
        [("shop-1", &["shop", "bank"][..]), ("shop-", &["shop"]), ("other", &["shop"]), ("all", &["none"])]
    {
        assert_eq!(code(&world, shown(name), backends), Some(Code::PermissionDenied), "{name} {backends:?}");
    }
    let said = world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), &world.authority.der, shown("other")).await.unwrap();
        follower.follow(subscribe(&["bank"])).await.unwrap_err()
    });
    assert!(said.message().contains("`bank`"), "{said}");
}

#[test]
fn a_stream_ends_when_its_backend_names_the_sidecar_no_more() {
    let world = World::start();
    let mut follower = world.sidecar("shop-1");
    world.runtime.block_on(async {
        follower.follow(subscribe(&["shop"])).await.unwrap();
        follower.snapshot().await;
    });
    world.sidecars(&[]);
    let status = world.runtime.block_on(async {
        loop {
            match follower.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("`shop`"), "{status}");
}

#[test]
fn certificates_change_while_it_runs() {
    let world = World::start();
    let next = Authority::new();
    assert_eq!(code(&world, Some(next.shown("all")), &["shop"]), None);
    std::fs::write(world.path().join("ca.pem"), &next.pem).unwrap();
    wait_for("the new authority", || {
        (code(&world, Some(next.shown("all")), &["shop"]) == Some(Code::Ok)).then_some(())
    });
    assert_eq!(code(&world, Some(world.authority.shown("all")), &["shop"]), None, "signed by the old one");
}

#[test]
fn a_first_frame_that_is_none_and_a_huge_one_are_refused() {
    let world = World::start();
    let mut follower = world.sidecar("all");
    world.runtime.block_on(async {
        let mut huge = subscribe(&["shop"]);
        huge.version = "x".repeat(2 << 20);
        assert_eq!(follower.follow(huge).await.unwrap_err().code(), Code::OutOfRange);
        let mut long = subscribe(&["shop"]);
        long.boot_id = "x".repeat(65);
        assert_eq!(follower.follow(long).await.unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(follower.follow(subscribe(&["a b"])).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(follower.follow(subscribe(&["shop"])).await.map_err(|status| status.code()), Ok(()));
    });
}
