//! A whole sidecar that follows a whole control plane: from the request to the call, and to the end of both.

use std::io::Write;

use leasehold::domain::time::{Clock, Timestamp};
use rcgen::SanType;
use serde_json::{Value, json};

use crate::common::backend::{Backend, Then};
use crate::common::wait_for;
use crate::common::world::{Setup, World as Sidecar};
use crate::world::World;

pub const MAP: &str = "rules:\n  - {action: read, class: read, method: GET, path: '/{name}', resource: '{name}'}\n";

fn sidecar(world: &World, backend: &Backend) -> Sidecar {
    let name = SanType::URI("spiffe://prod.test/sidecar/shop-1".try_into().unwrap());
    let (certificate, key) = world.authority.sign(vec![name]);
    let mut setup = Setup::new(backend.address);
    setup.map = MAP.to_owned();
    setup.files.extend([
        ("sidecar.crt".to_owned(), certificate.pem()),
        ("sidecar.key".to_owned(), key.serialize_pem()),
        ("control-ca.pem".to_owned(), world.authority.pem.clone()),
    ]);
    let grants = format!(
        "grants: {{control: {{addresses: ['https://{}'], tls: {{certificate: sidecar.crt, key: sidecar.key, ca: control-ca.pem}}}}}}",
        world.sync()
    );
    Sidecar::start_with(&setup, &grants)
}

/// The reason for which the bot's call is refused; `passed` where it is not.
pub fn call(sidecar: &Sidecar) -> String {
    let mut client = sidecar.connect();
    client.send(&sidecar.request_with("GET", "/x", &sidecar.issuer.token("bot"), "", ""));
    let answer = client.answer_to("GET").unwrap();
    if answer.status == 200 { "passed".to_owned() } else { answer.json()["reason"].as_str().unwrap().to_owned() }
}

#[track_caller]
pub fn comes(sidecar: &Sidecar, reason: &str) {
    wait_for(reason, || (call(sidecar) == reason).then_some(()));
}

#[test]
fn what_is_granted_passes_what_is_revoked_is_reported_and_denied() {
    let (world, backend) = (World::start(), Backend::start());
    let sidecar = sidecar(&world, &backend);
    assert_eq!(call(&sidecar), "no_grant");
    let grant = world.grant("shop-read");
    comes(&sidecar, "passed");
    let ended = world.done("local", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    let revision = ended["revision"].as_u64().unwrap_or_else(|| panic!("{ended}"));
    let report = world.done("local", "GET", &format!("/v1/revocations/{revision}?wait=60s"), &Value::Null);
    assert_eq!(report["enforcement"]["state"], "enforced", "{report}");
    assert_eq!(report["enforcement"]["enforced"], 1, "{report}");
    assert_eq!(call(&sidecar), "revoked", "what is called enforced is");
    world.done("local", "POST", "/v1/locks", &json!({"backend": "shop", "message": "stop"}));
    comes(&sidecar, "lock");
}

#[test]
fn a_counted_grant_is_good_for_as_many_calls_as_it_says() {
    let (world, backend) = (World::start(), Backend::start());
    let both = [sidecar(&world, &backend), sidecar(&world, &backend)];
    let grant = world.grant("twice");
    both.iter().for_each(|sidecar| {
        wait_for("the grant", || sidecar.running().decider().table().find(&grant.parse().unwrap()));
    });
    let answers: Vec<_> = [0, 1, 0, 1].into_iter().map(|number: usize| call(&both[number])).collect();
    assert_eq!(answers, ["passed", "passed", "exhausted", "exhausted"]);
    let told = world.done("bot", "GET", &format!("/v1/grants/{grant}"), &Value::Null);
    assert_eq!((&told["state"], &told["uses"]), (&json!("exhausted"), &json!(2)), "{told}");
    assert_eq!(backend.seen().len(), 2);
}

#[test]
fn a_grant_that_nobody_uses_ends_and_one_whose_call_runs_does_not() {
    let backend = Backend::scripted(|seen, stream| {
        let events = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
        let plain = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
        let _ = stream.write_all(if seen.line().contains("/events") { &events[..] } else { plain });
        Then::Keep
    });
    let world = World::start();
    let sidecar = sidecar(&world, &backend);
    let show = |grant: &str| world.done("bot", "GET", &format!("/v1/grants/{grant}"), &Value::Null);
    let used = world.grant("while-used");
    comes(&sidecar, "passed");
    let mut stream = sidecar.connect();
    stream.send(&sidecar.request_with("GET", "/events", &sidecar.issuer.token("bot"), "", ""));
    stream.until(b"data: 1");
    // It is used no more often, but for the call that runs: another covers what comes now.
    let unused = world.grant("while-used");
    world.clock.forward(40);
    let now = world.clock.now().wall;
    wait_for("the call that runs to be told", || {
        let last = Timestamp::parse(show(&used)["last_used"].as_str()?).unwrap();
        (last > now).then_some(())
    });
    assert_eq!(show(&unused)["state"], "active");
    world.clock.forward(40);
    let ended = wait_for("the end", || Some(show(&unused)).filter(|grant| grant["state"] == "revoked"));
    assert_eq!((&ended["ended"]["reason"], &ended["idle_timeout_seconds"]), (&json!("idle"), &json!(60)), "{ended}");
    assert!(ended["ended"]["by"].is_null() && ended["idle_at"].is_null(), "{ended}");
    let runs = show(&used);
    assert!(runs["state"] == "active" && runs["idle_at"].is_string(), "{runs}");
    assert_eq!(call(&sidecar), "passed");
    drop(stream);
    // What was noted before a step may be told after it.
    let mut last = Value::Null;
    let ended = wait_for("the end of the other", || {
        let grant = show(&used);
        if grant["last_used"] != last {
            last = grant["last_used"].clone();
            world.clock.forward(80);
        }
        (grant["state"] != "active").then_some(grant)
    });
    assert_eq!(ended["ended"]["reason"], "idle", "{ended}");
    comes(&sidecar, "revoked");
}
