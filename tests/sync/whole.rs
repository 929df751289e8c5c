//! A whole sidecar that follows a whole control plane: from the request to the call, and to the end of both.

use rcgen::SanType;
use serde_json::{Value, json};

use crate::common::backend::Backend;
use crate::common::wait_for;
use crate::common::world::{Setup, World as Sidecar};
use crate::world::World;

const MAP: &str = "rules:\n  - {action: read, class: read, method: GET, path: '/{name}', resource: '{name}'}\n";

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
fn call(sidecar: &Sidecar) -> String {
    let mut client = sidecar.connect();
    client.send(&sidecar.request_with("GET", "/x", &sidecar.issuer.token("bot"), "", ""));
    let answer = client.answer_to("GET").unwrap();
    if answer.status == 200 { "passed".to_owned() } else { answer.json()["reason"].as_str().unwrap().to_owned() }
}

#[track_caller]
fn comes(sidecar: &Sidecar, reason: &str) {
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
