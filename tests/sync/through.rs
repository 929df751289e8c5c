//! Sidecars that join and renew through a relay: it passes on what they signed, and is believed nothing.

use std::time::Duration;

use leasehold::app::relay::{RunningRelay, start_relay};
use leasehold::config;
use leasehold::domain::time::{Clock, Timestamp};
use leasehold::sync::renewal::SignedRenewal;
use leasehold::wire::v1;
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::json;
use tonic::{Code, Status};

use crate::common::backend::Backend;
use crate::common::wait_for;
use crate::enrol::{enroll, own, token, token_of_relay};
use crate::follower::{Follower, Shown};
use crate::join::{entries, events, signing_for, start_at};
use crate::signer::{Held, Signer};
use crate::whole::comes;
use crate::world::World;

fn request() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

/// A renewal of the certificate of `of`, signed by the key of `by`.
fn signed(of: &Held, by: &Held, at: Timestamp) -> SignedRenewal {
    let chain = of.chain.iter().map(|der| der.to_vec().into()).collect();
    SignedRenewal::make(request().into(), chain, at, |message| by.key.sign(message)).unwrap()
}

/// Passes it on, as a relay that shows this certificate.
fn pass(world: &World, relay: &Shown, renewal: Option<v1::Renewal>) -> Result<v1::EnrollReply, Status> {
    let root = Signer::of(world).certificate;
    world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), &root, Some(relay.clone())).await.unwrap();
        let request = v1::EnrollRequest { renewal, ..v1::EnrollRequest::default() };
        Ok(follower.client.enroll(request).await?.into_inner())
    })
}

/// For whom a certificate is.
fn name(certificate: &[u8]) -> String {
    let (_, leaf) = x509_parser::parse_x509_certificate(certificate).unwrap();
    format!("{:?}", leaf.subject_alternative_name().unwrap().unwrap().value.general_names)
}

const HOUR: i64 = 3_600;

#[test]
fn a_renewal_that_is_passed_on_is_good_for_the_one_who_signed_it_alone() {
    let (world, root) = own();
    let (relay, _) = enroll(&world, &root, &token(&world, "shop-relay"), None).unwrap();
    let (other, _) = enroll(&world, &root, &token(&world, "other"), None).unwrap();
    let (ours, stranger) = (Signer::of(&world), Signer::another());
    let (child, sibling) = (ours.sidecar("shop-1", HOUR), ours.sidecar("shop-2", HOUR));
    let now = world.clock.now().wall;
    let good = signed(&child, &child, now);
    let reply = pass(&world, &relay, Some(good.clone().into())).unwrap();
    assert_eq!(name(&reply.certificates[0]), "[URI(\"spiffe://prod.test/sidecar/shop-1\")]");
    let entry = entries(&world, "shop-1").pop().unwrap();
    assert_eq!(
        (&entry["event"], &entry["detail"]["through"]),
        (&"sidecar.renewed".into(), &"spiffe://prod.test/sidecar/shop-relay".into()),
    );
    let refused = |relay: &Shown, renewal: SignedRenewal| {
        let status = pass(&world, relay, Some(renewal.into())).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        status.message().to_owned()
    };
    let minutes = |many: u64| now.plus(Duration::from_secs(60 * many));
    let not_signed = "not signed by the key of its certificate";
    for (renewal, says) in [
        (signed(&sibling, &child, now), not_signed),
        (SignedRenewal { csr: request().into(), ..good.clone() }, not_signed),
        (SignedRenewal { signed_at: minutes(1), ..good.clone() }, not_signed),
        (signed(&child, &child, minutes(6)), "one of the two clocks is wrong"),
        (signed(&ours.sidecar("shop-1", -HOUR), &child, now), "the certificate that is to be renewed is not good"),
        (signed(&stranger.sidecar("shop-1", HOUR), &child, now), "the certificate that is to be renewed is not good"),
        (signed(&ours.sidecar("elsewhere", HOUR), &child, now), not_signed),
    ] {
        let said = refused(&relay, renewal);
        assert!(said.contains(says), "{said}");
    }
    let unnamed = ours.sidecar("elsewhere", HOUR);
    assert!(refused(&relay, signed(&unnamed, &unnamed, now)).contains("its certificate is not renewed"));
    assert!(refused(&other, good.clone()).contains("may not pass on renewals"));
    world.clock.forward(301);
    assert!(refused(&relay, good).contains("kept for too long"), "what was good once");
    // As a control plane reads it that knows of no renewals that are passed on.
    assert_eq!(pass(&world, &relay, None).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(events(&world, "shop-1").len(), 1, "nothing else was signed");
}

#[test]
fn what_is_renewed_was_taken_away_from_nobody_and_the_own_connection_proves_enough() {
    let (world, root) = own();
    let (relay, _) = enroll(&world, &root, &token(&world, "shop-relay"), None).unwrap();
    let child = Signer::of(&world).sidecar("shop-1", HOUR);
    let shown = Shown { chain: child.chain.clone(), key: child.key.serialize_der() };
    let old = signed(&child, &child, Timestamp::from_seconds(0));
    let reply = pass(&world, &shown, Some(old.into())).unwrap();
    assert_eq!(name(&reply.certificates[0]), "[URI(\"spiffe://prod.test/sidecar/shop-1\")]");
    assert!(entries(&world, "shop-1").pop().unwrap()["detail"]["through"].is_null());
    world.sidecars(&["spiffe://prod.test/sidecar/shop-relay"]);
    let status = pass(&world, &relay, Some(signed(&child, &child, world.clock.now().wall).into())).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("its certificate is not renewed"), "{status}");
}

/// A relay that joins with this token, and shows those who follow what it joined with.
fn relay(world: &World, token: &str) -> anyhow::Result<RunningRelay> {
    let write = |name: &str, text: &str| std::fs::write(world.path().join(name), text).unwrap();
    write("join-token", token);
    let text = format!(
        "relay:
  upstream: {{addresses: ['https://{}'], join: {{token: {{file: join-token}}, folder: relay}}}}
  trust_domain: prod.test
  address: 127.0.0.1:0
  sidecars: ['spiffe://prod.test/sidecar/*']
  backends: [shop]
",
        world.sync()
    );
    write("relay.yaml", &text);
    let config = config::load_relay(&world.path().join("relay.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    world.runtime.block_on(start_relay(&config))
}

#[test]
fn a_sidecar_that_knows_of_a_relay_alone_joins_and_renews_through_it() {
    let (backend, world) = (Backend::start(), signing_for(Duration::from_secs(120)));
    let relay = relay(&world, &token_of_relay(&world, "shop-relay")).unwrap_or_else(|error| panic!("{error:#}"));
    let folder = world.path().join("sidecar/identity");
    let sidecar = start_at(relay.address(), &backend, Some(&token(&world, "shop-1")), &folder).unwrap();
    world.grant("shop-read");
    comes(&sidecar, "passed");
    for name in ["shop-1", "shop-relay"] {
        wait_for("a renewal", || events(&world, name).contains(&"sidecar.renewed".to_owned()).then_some(()));
    }
    let own = entries(&world, "shop-relay");
    for event in ["sidecar.token_made", "sidecar.joined", "sidecar.renewed"] {
        let entry = own.iter().find(|entry| entry["event"] == event).unwrap();
        assert_eq!(entry["detail"]["serves"], json!(["127.0.0.1", "relay.prod.test"]), "{event}");
    }
    let renewed = entries(&world, "shop-1").into_iter().find(|entry| entry["event"] == "sidecar.renewed").unwrap();
    assert_eq!(renewed["detail"]["through"], "spiffe://prod.test/sidecar/shop-relay");
    comes(&sidecar, "passed");
    drop(sidecar);
    // With what it was given.
    let again = start_at(relay.address(), &backend, None, &folder).unwrap();
    comes(&again, "passed");
    drop(again);
    world.runtime.block_on(relay.stop());
}

#[test]
fn a_relay_whose_certificate_names_no_host_says_how_to_get_one_that_does() {
    let world = signing_for(Duration::from_secs(120));
    let error = relay(&world, &token(&world, "shop-relay")).err().unwrap();
    assert!(format!("{error:#}").contains("join-token NAME --serves HOST"), "{error:#}");
}

#[test]
fn a_token_is_for_names_that_can_be_connected_to() {
    let names = "names: [127.0.0.1, control.prod.test, 'fd00::1']";
    let world =
        World::start_with(&format!("  sync: {{address: '127.0.0.1:0', trust_domain: prod.test, {names}}}\n"), None);
    let many: Vec<_> = (0..17).map(|number| format!("relay-{number}.prod.test")).collect();
    for (serves, says) in [
        (json!(["*.prod.test"]), "no host name"),
        (json!(["relay.prod.test", "a b"]), "no host name"),
        (json!([""]), "no host name"),
        (json!(["https://relay.prod.test"]), "no host name"),
        (json!(["Control.PROD.test."]), "a name of the control plane"),
        (json!(["relay.prod.test", "fd00:0::1"]), "a name of the control plane"),
        (json!(many), "more than 16"),
    ] {
        let asked = json!({"name": "shop-relay", "serves": serves});
        let answer = world.call("local", "POST", "/v1/sidecars/join-tokens", &asked);
        assert_eq!(answer.status, 400, "{serves}");
        assert!(answer.text().contains(says), "{}", answer.text());
    }
    assert!(events(&world, "shop-relay").is_empty(), "nothing was made");
}
