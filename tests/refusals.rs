//! Every reason there is, met through the whole sidecar, and what its caller is told; and who may do what, as one matrix.
//!
//! The golden files in `tests/snapshots` are the contract that agents and dashboards depend on: read a change of them as a
//! change of the product.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;

use common::backend::{Backend, Then};
use common::client::Answer;
use common::issuer::{AUDIENCE, ISSUER, in_seconds, now};
use common::wait_for;
use common::world::{Setup, World, grant, grant_until, minting};
use leasehold::guardrail::GuardrailBundle;
use leasehold::sidecar::reason::Reason;
use serde_json::json;

/// Reasons that no request meets by itself, with the tests that show them.
const ELSEWHERE: &[(Reason, &str)] = &[
    (Reason::HeadTooLarge, "tests/hostile: a head that cannot be read whole is answered by its status alone"),
    (Reason::AuditUnavailable, "tests/real/service.rs fills the disk"),
    (Reason::UseUnconfirmed, "tests/sync_client/counted.rs has no control plane that answers"),
    (Reason::Draining, "tests/path.rs and tests/real/service.rs stop it"),
    (Reason::CallerGone, "tests/path.rs goes away: there is nobody to answer"),
    (Reason::UpstreamTruncated, "tests/path.rs: the answer had begun"),
    (Reason::Internal, "a fault of ours that is known is mended instead"),
];

const BRIEF: &str = "https://brief.test";

fn setup() -> Setup {
    let mut setup = Setup::new(Backend::start().address);
    setup.map += "  - {action: order.place, class: write, method: POST, path: /orders, body: {item: {pointer: /item}}, resource: 'orders/{item}'}\n";
    setup.listener =
        "    limits: {body_bytes: 1KiB, body_timeout: 200ms, target_bytes: 256, head_bytes: 8KiB}\n".to_owned();
    setup
}

fn world() -> World {
    World::start(&setup())
}

/// One answer to a request as it is written.
fn raw(world: &World, method: &str, target: &str, host: Option<&str>, fields: &str) -> Answer {
    let mut client = world.connect();
    let host = host.map_or_else(|| world.address.to_string(), str::to_owned);
    let token = &world.token;
    client.send(
        format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{fields}\r\n")
            .as_bytes(),
    );
    client.answer_to(method).expect("an answer")
}

fn granted(change: impl Fn(String) -> String) -> Answer {
    let mut setup = setup();
    setup.grants = change(setup.grants);
    World::start(&setup).call("GET", "/allowed/a")
}

fn upstream(answer: &'static [u8]) -> Answer {
    let backend = Backend::scripted(move |_, stream| {
        let _ = std::io::Write::write_all(stream, answer);
        Then::Close
    });
    let mut setup = setup();
    setup.upstream = format!("http://{}", backend.address);
    World::start(&setup).call("GET", "/allowed/a")
}

fn silent_backend(more: &str, token_seconds: u64) -> Answer {
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let backend = Backend::scripted(move |_, _| {
        let _ = gate.lock().unwrap().recv();
        Then::Close
    });
    let mut setup = setup();
    setup.upstream = format!("http://{}", backend.address);
    setup.backend = more.to_owned();
    // An issuer whose tokens are over when they say so.
    setup.identity = format!(
        "    - {{name: brief, issuer: '{BRIEF}', audience: ['{AUDIENCE}'], algorithm: EdDSA, leeway: 0s, keys: {{file: keys.json}}}}\n"
    );
    setup.grants = setup.grants.replace(ISSUER, BRIEF);
    let world = World::start(&setup);
    let claims = json!({"iss": BRIEF, "aud": AUDIENCE, "sub": "ci-bot", "iat": now(), "exp": now() + token_seconds});
    let mut client = world.connect();
    client.send(&world.request_with("GET", "/allowed/a", &world.issuer.sign(&claims), "", ""));
    let answer = client.answer().expect("an answer");
    drop(release);
    answer
}

fn malformed() -> Vec<(Reason, Answer)> {
    let world = world();
    let long = "x".repeat(300);
    let post = |target: &str, fields: &str, body: &str| {
        let mut client = world.connect();
        client.send(&world.request_with("POST", target, &world.token, fields, body));
        client.answer().expect("an answer")
    };
    vec![
        (Reason::Malformed, raw(&world, "GET", "/allowed/%zz", None, "")),
        (Reason::MethodRefused, raw(&world, "TRACE", "/allowed/a", None, "")),
        (Reason::TargetTooLong, raw(&world, "GET", &format!("/allowed/{long}"), None, "")),
        (Reason::Misdirected, raw(&world, "GET", "/allowed/a", Some("other.test"), "")),
        (Reason::ExpectationRefused, raw(&world, "GET", "/allowed/a", None, "expect: a-pony\r\n")),
        (Reason::BodyTooLarge, post("/upload", "", &"x".repeat(2_000))),
        (
            Reason::BodyTimeout,
            raw(&world, "POST", "/orders", None, "content-type: application/json\r\ncontent-length: 9\r\n"),
        ),
        (Reason::BodyUnreadable, post("/orders", "content-type: text/plain\r\n", "item=1")),
    ]
}

fn unknown() -> Vec<(Reason, Answer)> {
    let world = world();
    let nobody = {
        let mut client = world.connect();
        client.send(&world.request_with("GET", "/allowed/a", "not.a.token", "", ""));
        client.answer().expect("an answer")
    };
    let keyless = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut setup = setup();
        setup.identity += &format!(
            "    - {{name: gone, issuer: 'https://gone.test', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{url: 'http://{closed}/'}}}}\n"
        );
        let world = World::start(&setup);
        let claims = json!({"iss": "https://gone.test", "aud": AUDIENCE, "sub": "x", "iat": now(), "exp": now() + 60});
        let mut client = world.connect();
        client.send(&world.request_with("GET", "/allowed/a", &world.issuer.sign(&claims), "", ""));
        client.answer().expect("an answer")
    };
    vec![
        (Reason::Unauthenticated, nobody),
        (Reason::KeysUnavailable, keyless),
        (Reason::IdentityExpired, silent_backend("", 2)),
    ]
}

fn guardrails() -> GuardrailBundle {
    let cedar = r#"@id("no-reads") @reason("nobody reads today") forbid(principal, action in Leasehold::Action::"call:read", resource);"#;
    let bundle = json!({
        "policies": [{"name": "reads", "mode": "enforce", "cedar": cedar}],
        "backends": [{"name": "shop", "actions": [{"name": "allowed.read", "class": "read"}]}],
        "principals": [],
    });
    serde_json::from_value(bundle).unwrap()
}

fn not_granted() -> Vec<(Reason, Answer)> {
    let world = world();
    let with = |more: &'static str| granted(move |grants| grants.replacen("task:", &format!("{more}, task:"), 1));
    let later = granted(|grants| {
        let until = grants.split('"').nth(7).unwrap().to_owned();
        grants
            .replace(&until, &in_seconds(600))
            .replace("task:", &format!("not_before: \"{}\", task:", in_seconds(300)))
    });
    let past = in_seconds(-60);
    let stale = {
        let world = World::start_with(&setup(), "grants: {file: grants.yaml, poll: 10ms, staleness_max: 100ms}");
        std::fs::remove_file(world.path("grants.yaml")).unwrap();
        wait_for("a stale view", || Some(world.call("GET", "/allowed/a")).filter(|answer| answer.status == 503))
    };
    let exhausted = {
        let mut setup = setup();
        setup.grants = setup.grants.replacen("task:", "uses_max: 1, task:", 1);
        let world = World::start(&setup);
        assert_eq!(world.call("GET", "/allowed/a").status, 200);
        world.call("GET", "/allowed/a")
    };
    let locked =
        granted(|grants| format!("{grants}locks: [{{id: l1, backend: shop, message: \"stop: see OPS-9\"}}]\n"));
    let guarded = {
        let world = World::start(&setup());
        world.running().decider().set_guardrails(&guardrails()).unwrap();
        let answer = world.call("GET", "/allowed/a");
        assert_eq!(answer.json()["policies"], json!([{"document": "reads", "id": "no-reads"}]));
        assert_eq!(answer.json()["detail"], "nobody reads today");
        let record = world.calls(1).remove(0);
        assert_eq!((&record["guardrails"], &record["grant"]), (&json!(["reads/no-reads"]), &json!("g1")));
        answer
    };
    vec![
        (Reason::Guardrail, guarded),
        (Reason::UnmappedAction, world.call("DELETE", "/nowhere")),
        (Reason::NoGrant, granted(|_| grant("g1", "other-bot", "*", "**", 60))),
        (Reason::NotYet, later),
        (Reason::Expired, granted(|grants| grants.replace(grants.split('"').nth(7).unwrap(), &past))),
        (Reason::Exhausted, exhausted),
        (Reason::Released, with("state: released")),
        (Reason::Revoked, with("state: revoked")),
        (Reason::OutOfScope, world.call("POST", "/admin")),
        (Reason::ArgumentsDiffer, with(OTHER_CALL)),
        (Reason::Lock, locked),
        (Reason::StaleSource, stale),
    ]
}

fn not_carried_out() -> Vec<(Reason, Answer)> {
    let unreachable = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut setup = setup();
        setup.upstream = format!("http://{closed}");
        World::start(&setup).call("GET", "/allowed/a")
    };
    let leaking = {
        let mut setup = setup();
        let backend = Backend::scripted(|seen, stream| {
            let said = seen.headers("authorization").join("");
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-said: {said}\r\n\r\n");
            let _ = std::io::Write::write_all(stream, head.as_bytes());
            Then::Close
        });
        setup.upstream = format!("http://{}", backend.address);
        World::start(&setup).call("GET", "/allowed/a")
    };
    vec![
        (Reason::CredentialUnavailable, too_late_to_mint()),
        (Reason::UpstreamUnreachable, unreachable),
        (Reason::UpstreamTimeout, silent_backend("    timeouts: {first_byte: 200ms}\n", 600)),
        (Reason::UpstreamInvalid, upstream(b"HTTP/1.1 what\r\n\r\n")),
        (Reason::UpstreamAuthFailed, upstream(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")),
        (Reason::LeakGuard, leaking),
    ]
}

/// In its last part of a second a grant leaves no whole second that a token could say.
fn too_late_to_mint() -> Answer {
    // A machine that stood still for that second met the end instead, and tries again.
    wait_for("a call in a grant's last part of a second", || {
        let mut setup = setup();
        let (source, key) = minting("1h");
        setup.source = source;
        setup.files.push(key);
        let end = i64::try_from(now()).unwrap() * 1_000 + 2_900;
        let end = jiff::Timestamp::from_millisecond(end).unwrap().to_string();
        setup.grants = grant_until("g1", "ci-bot", "allowed.read", "allowed/*", &end);
        let world = World::start(&setup);
        let refused = wait_for("the grant's last second", || {
            Some(world.call("GET", "/allowed/a")).filter(|answer| answer.status != 200)
        });
        Some(refused).filter(|answer| answer.json()["reason"] == "credential_unavailable")
    })
}

#[test]
fn every_reason_is_met_and_says_what_to_do_next() {
    let met = [malformed(), unknown(), not_granted(), not_carried_out()].into_iter().flatten().collect::<Vec<_>>();
    let mut table = String::new();
    for (reason, answer) in &met {
        assert_eq!(answer.status, reason.status().as_u16(), "{reason}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{reason}: {answer:?}");
        let problem = answer.json();
        assert_eq!(problem["reason"], reason.as_str(), "{problem}");
        let fields = ["allow", "www-authenticate", "retry-after", "connection", "cache-control"];
        let fields: Vec<_> =
            fields.iter().filter_map(|f| answer.header(f).map(|value| format!("{f}: {value}"))).collect();
        let next = problem.pointer("/next/action").map_or("-", |next| next.as_str().unwrap());
        writeln!(table, "{reason} · {} · {} · next: {next} · {}", answer.status, problem["type"], fields.join(", "))
            .unwrap();
    }
    for reason in Reason::ALL.iter().filter(|reason| !matches!(reason, Reason::Granted | Reason::Baseline)) {
        let here = met.iter().any(|(met, _)| met == reason);
        let elsewhere = ELSEWHERE.iter().any(|(other, _)| other == reason);
        assert!(here != elsewhere, "{reason} is met by no test, or by one that is named elsewhere too");
    }
    insta::assert_snapshot!("refusals", table);
}

/// What binds a grant to `GET /allowed/a` with the type `none`.
const OTHER_CALL: &str = "arguments: 'sha256:0a7697aa589f78c2d5bd52f6ab11392ee9535024aae893c50aa2e57b29c72787'";

/// Who asks, with the grants that each holds.
const HOLDERS: &[(&str, &str)] = &[
    ("nobody", ""),
    ("reader", "actions: [allowed.read], resources: ['allowed/*']"),
    ("one-item", "actions: [allowed.read], resources: ['allowed/a']"),
    ("deep", "actions: ['*.read'], resources: ['**']"),
    ("writer", "actions: [upload, admin], resources: [upload, admin]"),
    ("all-of-one", "actions: ['*'], resources: ['allowed/**']"),
    ("ended", "actions: ['*'], resources: ['**'], state: revoked"),
    ("later", "actions: ['*'], resources: ['**'], not_before: '2090-01-01T00:00:00Z'"),
    ("locked", "actions: ['*'], resources: ['**']"),
    // The digest is that of `GET /allowed/a`.
    (
        "one-call",
        "actions: ['*'], resources: ['allowed/**'], arguments: 'sha256:141a71a90b0ca10987fc7397d11a452aa511beba3ba1b01755932db87534ef6c'",
    ),
];

/// What is asked.
const CALLS: &[(&str, &str)] = &[
    ("GET", "/allowed/a"),
    ("GET", "/allowed/b"),
    ("GET", "/allowed/a/b"),
    ("GET", "/allowed/secret/x"),
    ("GET", "/allowed/%61"),
    ("GET", "/allowed/a%2Fb"),
    ("GET", "/allowed/../admin"),
    ("GET", "//allowed/a"),
    ("HEAD", "/allowed/a"),
    ("POST", "/allowed/a"),
    ("POST", "/upload"),
    ("POST", "/admin"),
    ("DELETE", "/admin"),
    ("PATCH", "/admin"),
    ("GET", "/"),
    ("GET", "/events"),
];

#[test]
fn who_may_do_what() {
    let mut setup = Setup::new(Backend::start().address);
    setup.grants = String::new();
    for (holder, terms) in HOLDERS.iter().filter(|(_, terms)| !terms.is_empty()) {
        writeln!(
            setup.grants,
            "  - {{id: {holder}, principal: \"{ISSUER}#{holder}\", backend: shop, {terms}, expires_at: \"2091-01-01T00:00:00Z\"}}"
        )
        .unwrap();
    }
    setup.grants += &format!("locks: [{{id: l1, principal: \"{ISSUER}#locked\", action: '*.read', message: stop}}]\n");
    setup.backend = format!(
        "    baseline:\n      - {{principals: [\"{ISSUER}#nobody\"], actions: [event.watch], resources: [events], credential: shop-admin}}\n"
    );
    let world = World::start(&setup);
    let mut matrix = String::new();
    let mut counts = BTreeMap::new();
    for (holder, terms) in HOLDERS {
        let token = world.issuer.token(holder);
        writeln!(matrix, "{holder}: {}", if terms.is_empty() { "holds nothing" } else { terms }).unwrap();
        for (method, target) in CALLS {
            let mut client = world.connect();
            client.send(&world.request_with(method, target, &token, "", ""));
            let answer = client.answer_to(method).expect("an answer");
            *counts.entry(answer.status).or_insert(0) += 1;
            writeln!(matrix, "  {method:6} {target:20} {}", answer.status).unwrap();
        }
    }
    let asked = HOLDERS.len() * CALLS.len();
    let said = world.calls(asked);
    for (line, call) in matrix.clone().lines().filter(|line| line.starts_with(' ')).zip(&said) {
        let words = format!("{line} {} {}", call["reason"].as_str().unwrap(), call["grant"].as_str().unwrap_or("-"));
        matrix = matrix.replacen(&format!("{line}\n"), &format!("\u{1}{words}\n"), 1);
    }
    insta::assert_snapshot!("matrix", matrix.replace('\u{1}', ""));
    assert!(counts[&200] > 0 && counts[&403] > counts[&200], "{counts:?}");
}
