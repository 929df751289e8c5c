//! Whether an end is enforced, as it is said to whoever ended it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use leasehold::wire::v1;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::common::DEADLINE;
use crate::follower::{Follower, ended, subscribe};
use crate::world::World;

/// A sidecar that follows and has evidence.
fn following(world: &World, name: &str, subscribe: v1::Subscribe) -> Follower {
    let mut follower = world.sidecar(name);
    world.runtime.block_on(async {
        follower.follow(subscribe).await.unwrap();
        let (revision, _) = follower.snapshot().await;
        follower.ack(revision).await;
        follower.ping().await;
    });
    follower
}

#[track_caller]
fn enforcement(world: &World, revoked: &Value, wait: &str) -> Value {
    let (revision, from) = (&revoked["revision"], revoked.get("from").unwrap_or(&revoked["revision"]));
    let target = format!("/v1/revocations/{revision}?from={from}&wait={wait}");
    world.done("local", "GET", &target, &Value::Null)["enforcement"].clone()
}

#[test]
fn an_end_is_enforced_when_everybody_said_so() {
    let world = World::start();
    let (first, second) = (world.grant("shop-read"), world.grant("shop-read"));
    let mut one = following(&world, "shop-1", subscribe(&["shop"]));
    let two = following(&world, "all", subscribe(&["shop", "bank"]));
    let _foreign = following(&world, "all", v1::Subscribe { boot_id: "b2".to_owned(), ..subscribe(&["bank"]) });
    let revoked = world.done("local", "POST", "/v1/revocations", &json!({"backend": "shop"}));
    assert_eq!(revoked["ended"].as_array().unwrap().len(), 2);
    let revision = revoked["revision"].as_u64().unwrap();
    assert_eq!(revoked["from"].as_u64(), Some(revision - 1));
    world.runtime.block_on(async {
        one.change(ended(&second)).await;
        one.ack(revision).await;
    });
    let said = enforcement(&world, &revoked, "0s");
    assert_eq!(
        [&said["state"], &said["sidecars"], &said["lapsed"]],
        [&json!("pending"), &json!(2), &json!(0)],
        "{first}: {said}"
    );
    let pending = said["pending"].as_array().unwrap();
    assert!(pending.iter().any(|who| who["sidecar"] == "spiffe://prod.test/sidecar/all" && who["connected"] == true));
    let by = jiff::Timestamp::from_microsecond(
        said["deny_by"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond(),
    );
    let left = by.unwrap().duration_since(jiff::Timestamp::now()).as_secs();
    assert!((30..=61).contains(&left), "{left} s are left");
    // Nobody can say that they enforce what they were not told.
    let mut two = two;
    world.runtime.block_on(async {
        two.change(ended(&second)).await;
        two.ack(revision).await;
    });
    let said = enforcement(&world, &revoked, "60s");
    assert_eq!([&said["state"], &said["enforced"], &said["pending"]], [&json!("enforced"), &json!(2), &json!([])]);
    assert!(said["took_ms"].as_u64().is_some(), "{said}");
    for who in ["bot", "local"] {
        let target = format!("/v1/revocations/{}", revision + 100);
        assert_eq!(world.call(who, "GET", &target, &Value::Null).status, 404);
    }
    let names = world.done("bot", "GET", &format!("/v1/revocations/{revision}"), &Value::Null);
    assert_eq!(names["enforcement"]["pending"], json!([]), "names are for admins");
}

#[test]
fn who_is_cut_off_is_pending_until_it_must_deny() {
    let world = World::start();
    let grant = world.grant("shop-read");
    let short = v1::Subscribe { staleness_max_ms: 1_500, ..subscribe(&["shop"]) };
    let silent = following(&world, "shop-1", short);
    let unbounded = following(&world, "shop-2", v1::Subscribe { staleness_max_ms: 0, ..subscribe(&["shop"]) });
    drop(silent);
    let revoked = world.done("local", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    let said = enforcement(&world, &revoked, "0s");
    assert_eq!((said["state"].as_str(), said["deny_by"].as_str()), (Some("unbounded"), None), "{said}");
    let mut unbounded = unbounded;
    world.runtime.block_on(async {
        let revision = unbounded.change(ended(&grant)).await;
        unbounded.ack(revision).await;
    });
    let said = enforcement(&world, &revoked, "60s");
    assert_eq!(
        [&said["state"], &said["enforced"], &said["lapsed"], &said["sidecars"]],
        [&json!("enforced"), &json!(1), &json!(1), &json!(2)],
        "{said}"
    );
}

#[test]
fn a_lock_without_a_backend_is_for_everybody() {
    let world = World::start();
    let mut one = following(&world, "shop-1", subscribe(&["shop"]));
    let mut two = following(&world, "all", subscribe(&["bank"]));
    let lock = world.done("local", "POST", "/v1/locks", &json!({"all": true, "message": "stop"}));
    let locked = |change: &v1::change::Change| matches!(change, v1::change::Change::Lock(_));
    world.runtime.block_on(async {
        let revision = one.change(locked).await;
        one.ack(revision).await;
    });
    let said = enforcement(&world, &lock, "0s");
    assert_eq!((said["state"].as_str(), said["sidecars"].as_u64()), (Some("pending"), Some(2)), "{said}");
    world.runtime.block_on(async {
        let revision = two.change(locked).await;
        two.ack(revision).await;
    });
    assert_eq!(enforcement(&world, &lock, "60s")["state"], "enforced");
}

#[test]
fn sidecars_are_listed_to_admins() {
    let world = World::start();
    let _one = following(&world, "shop-1", subscribe(&["shop"]));
    let listed = world.done("local", "GET", "/v1/sidecars", &Value::Null);
    let [sidecar] = listed["items"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!(sidecar["sidecar"], "spiffe://prod.test/sidecar/shop-1");
    assert_eq!(
        [&sidecar["backends"], &sidecar["connected"], &sidecar["behind"]],
        [&json!(["shop"]), &json!(true), &json!(0)]
    );
    assert!(sidecar["age_ms"].is_u64() && sidecar["fresh_until"].is_string(), "{sidecar}");
    assert_eq!(world.call("bot", "GET", "/v1/sidecars", &Value::Null).status, 403);
}

#[test]
fn a_stolen_certificate_of_a_sidecar_is_worth_nothing_at_the_api() {
    let world = World::start_with(
        "  tls: {certificate: server.pem, key: server.key, client_ca: ca.pem, client_certificate: optional}\n",
        None,
    );
    let shown = world.authority.shown("all");
    for (method, target, body) in [
        ("GET", "/v1/grants", ""),
        ("POST", "/v1/requests", r#"{"entitlement": "shop-read"}"#),
        ("POST", "/v1/revocations", r#"{"backend": "shop"}"#),
        ("POST", "/v1/locks", r#"{"all": true, "message": "x"}"#),
        ("POST", "/v1/grants/grt_1/consume", r#"{"use_id": "u"}"#),
        ("GET", "/v1/sidecars", ""),
    ] {
        let mut roots = RootCertStore::empty();
        roots.add(world.authority.der.clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key.clone()));
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(shown.chain.clone(), key)
            .unwrap();
        let to = world.api();
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let name = ServerName::IpAddress(to.ip().into());
        let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        tls.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = tls.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 403"), "{method} {target}: {answer}");
    }
}
