//! A call's path through the whole sidecar, seen from its caller, its backend and its record.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;

use common::backend::{Backend, Seen, Then};
use common::client::Client;
use common::issuer::{AUDIENCE, ISSUER, in_millis, now};
use common::wait_for;
use common::world::{Setup, World, grant, grant_until, minting};
use serde_json::json;

fn plain() -> (World, Backend) {
    let backend = Backend::start();
    (World::start(&Setup::new(backend.address)), backend)
}

#[test]
fn a_granted_call_reaches_the_backend_with_our_credential_and_not_the_callers() {
    let (world, backend) = plain();
    let answer = world.call("GET", "/allowed/a");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
    let seen = backend.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line(), "GET /allowed/a HTTP/1.1");
    assert_eq!(seen[0].headers("authorization"), [format!("Bearer {}", world.secret)]);
    assert_eq!(seen[0].headers("host"), [backend.address.to_string()]);
    let calls = world.calls(1);
    let intents = world.records("intent");
    assert_eq!(
        (&calls[0]["id"], &calls[0]["grant"], &calls[0]["task"]),
        (&intents[0]["id"], &intents[0]["grant"], &intents[0]["task"])
    );
    for (key, value) in [("decision", "permit"), ("reason", "granted"), ("grant", "g1"), ("ended", "complete")] {
        assert_eq!(calls[0][key], value);
    }
}

#[test]
fn a_refusal_says_what_would_cover_the_call() {
    let (world, backend) = plain();
    let answer = world.call("POST", "/admin");
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    for (pointer, value) in [
        ("/type", "urn:leasehold:problem:elevation-required"),
        ("/reason", "out_of_scope"),
        ("/action", "admin"),
        ("/resource", "admin"),
        ("/backend", "shop"),
        ("/next/action", "request"),
        ("/decision/context/reason", "out_of_scope"),
    ] {
        assert_eq!(problem.pointer(pointer), Some(&json!(value)), "{pointer} of {problem}");
    }
    assert_eq!(problem["instance"], world.calls(1)[0]["id"]);
    assert_eq!(world.call("DELETE", "/nowhere").reason(), "unmapped_action");
    assert!(backend.seen().is_empty());
}

#[test]
fn whoever_is_not_known_learns_nothing() {
    let (world, backend) = plain();
    let now = now();
    let claims = |more: serde_json::Value| {
        let mut claims = json!({"iss": ISSUER, "sub": "ci-bot", "aud": AUDIENCE, "iat": now, "exp": now + 60});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let good = world.issuer.sign(&claims(json!({})));
    let stranger = common::issuer::Issuer::new("k1");
    let tokens = [
        String::new(),
        "not a token".to_owned(),
        world.issuer.sign(&claims(json!({"exp": now - 31}))),
        world.issuer.sign(&claims(json!({"aud": "somebody"}))),
        world.issuer.sign(&claims(json!({"iss": "https://evil.test"}))),
        stranger.token("ci-bot"),
        format!("{good}x"),
        good.rsplit_once('.').unwrap().0.to_owned() + ".",
    ];
    let mut bodies = Vec::new();
    for token in tokens {
        for target in ["/allowed/a", "/admin", "/nowhere"] {
            let mut client = world.connect();
            client.send(&world.request_with("GET", target, &token, "", ""));
            let answer = client.answer().unwrap();
            assert_eq!(answer.status, 401, "{token}");
            assert!(answer.header("www-authenticate").is_some_and(|given| given.starts_with("Bearer")));
            bodies.push(answer.text());
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "all are told the same: {bodies:?}");
    assert!(backend.seen().is_empty());
}

#[test]
fn a_grant_is_its_holders_alone() {
    // BI-GRT-022, BI-GRT-024
    let (world, backend) = plain();
    world.grants(
        &(grant("g1", "ci-bot", "allowed.read", "allowed/**", 60) + &grant("g9", "other", "admin", "admin", 60)),
    );
    let other = world.issuer.token("other");
    let mut client = world.connect();
    client.send(&world.request_with("GET", "/allowed/a", &other, "x-leasehold-grant: g1\r\n", ""));
    assert_eq!(client.answer().unwrap().status, 403);
    client.send(&world.request_with("GET", "/admin", &other, "", ""));
    assert_eq!(client.answer().unwrap().status, 200, "one connection carries several callers, each decided on its own");
    client.send(&world.request("GET", "/allowed/a"));
    assert_eq!(client.answer().unwrap().status, 200);
    let seen = backend.seen();
    assert_ne!(seen[0].connection, seen[1].connection, "two principals never share a connection to the backend");
}

#[test]
fn a_grant_ends_at_its_end_and_not_later() {
    // BI-GRT-001, BI-GRT-014
    let (world, _backend) = plain();
    world.grants(&grant_until("g3", "ci-bot", "admin", "admin", &in_millis(700)));
    assert_eq!(world.call("GET", "/admin").status, 200);
    let refused = wait_for("the end of the grant", || {
        let answer = world.call("GET", "/admin");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!((refused.status, refused.reason().as_str()), (403, "expired"));
    let calls = world.records("call");
    let grants = world.admin("/grants").json();
    assert!(
        calls
            .iter()
            .all(|call| call["decision"] != "permit" || call["grant"] != "g3" || call["at"].as_str() < Some("9"))
    );
    assert!(grants.to_string().contains("expired"), "{grants}");
}

#[test]
fn a_counted_grant_is_used_so_often_and_no_more() {
    // BI-GRT-006, within one sidecar
    let (world, backend) = plain();
    let entry = grant("g3", "ci-bot", "admin", "admin", 60).replace("task:", "uses_max: 5, task:");
    world.grants(&entry);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..64).map(|_| scope.spawn(|| world.call("GET", "/admin").status)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 5);
    assert_eq!(statuses.iter().filter(|status| **status == 403).count(), 59);
    assert_eq!(backend.seen().len(), 5);
    assert_eq!(world.call("GET", "/admin").reason(), "exhausted");
    // Stated again, it is as used up as before.
    world.grants(&entry);
    assert_eq!(world.call("GET", "/admin").reason(), "exhausted");
}

#[test]
fn a_lock_stops_what_a_grant_permits() {
    let (world, _backend) = plain();
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    let grants = grant("g1", "ci-bot", "allowed.read", "allowed/**", 60);
    world.state(&format!("revision: 2\ngrants:\n{grants}locks:\n  - {{id: l1, backend: shop, message: incident 7}}\n"));
    wait_for("the lock", || (world.call("GET", "/allowed/a").status == 403).then_some(()));
    let refused = world.call("GET", "/allowed/a");
    assert_eq!((refused.reason().as_str(), refused.json()["detail"].as_str()), ("lock", Some("incident 7")));
    world.state(&format!("revision: 3\ngrants:\n{grants}"));
    wait_for("the end of the lock", || (world.call("GET", "/allowed/a").status == 200).then_some(()));
}

#[test]
fn a_view_that_cannot_be_proved_recent_permits_nothing() {
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.more = String::new();
    let world = World::start_with(&setup, "grants: {file: grants.yaml, poll: 10ms, staleness_max: 300ms}");
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    std::fs::remove_file(world.path("grants.yaml")).unwrap();
    let refused = wait_for("staleness", || {
        let answer = world.call("GET", "/allowed/a");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!((refused.status, refused.reason().as_str()), (503, "stale_source"));
    wait_for("unreadiness", || (world.admin("/readyz").status == 503).then_some(()));
    world.state(&format!("revision: 2\ngrants:\n{}", grant("g1", "ci-bot", "allowed.read", "allowed/**", 60)));
    wait_for("a fresh view", || (world.call("GET", "/allowed/a").status == 200).then_some(()));
}

#[test]
fn a_grants_file_that_cannot_be_read_keeps_the_last_good() {
    let (world, _backend) = plain();
    let before = world.revision();
    world.state("revision: 9\ngrants:\n  - {id: g1, principal: nobody}\n");
    wait_for("the source to say so", || world.admin("/status").text().contains("grants").then_some(()));
    assert_eq!(world.revision(), before);
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
}

/// A backend that begins a stream and says no more; to anything else it answers plainly.
fn streaming() -> Backend {
    Backend::scripted(|seen: &Seen, stream: &mut TcpStream| {
        let _ = match seen.line() {
            "GET /events HTTP/1.1" => stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nd\r\ndata: begun\n\n\r\n",
            ),
            "GET /ws HTTP/1.1" => stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05begun",
            ),
            "GET /allowed/long HTTP/1.1" => stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 1000000\r\n\r\nbegun",
            ),
            _ => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"),
        };
        Then::Keep
    })
}

fn stream_grants(until: &str) -> String {
    grant_until("g1", "ci-bot", "allowed.read", "allowed/**", until)
        + &grant_until("g2", "ci-bot", "event.watch", "events", until)
        + &grant_until("g3", "ci-bot", "socket.open", "socket", until)
        + &grant_until("g4", "ci-bot", "upload", "upload", until)
}

/// Opens one stream of each kind; each is returned where it said `begun`.
fn open_streams(world: &World) -> Vec<(&'static str, Client)> {
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut streams = Vec::new();
    for (kind, target, fields) in [("events", "/events", ""), ("socket", "/ws", upgrade), ("body", "/allowed/long", "")]
    {
        let mut client = world.connect();
        client.send(&world.request_with("GET", target, &world.token, fields, ""));
        let head = client.until(b"begun");
        assert!(!String::from_utf8_lossy(&head).contains(" 403 "), "{kind}");
        streams.push((kind, client));
    }
    streams
}

#[track_caller]
fn are_cut(world: &World, streams: Vec<(&'static str, Client)>, reason: &str) {
    let many = streams.len();
    for (kind, mut client) in streams {
        let rest = client.rest();
        let text = String::from_utf8_lossy(&rest).into_owned();
        match kind {
            "events" => {
                assert!(text.contains("event: leasehold.ended") && text.contains(reason), "{text:?}");
                assert!(!text.contains("\r\n0\r\n\r\n"), "a stream that was cut does not end as if it were whole");
            }
            "socket" => {
                let close = rest.iter().position(|byte| *byte == 0x88).expect("a close frame");
                assert_eq!(rest[close + 2..close + 4], 1008u16.to_be_bytes(), "{rest:?}");
                assert!(text.contains(reason), "{text:?}");
            }
            _ => assert!(rest.len() < 1_000_000),
        }
    }
    let calls = wait_for("the records of what was cut", || {
        let cut: Vec<_> = world.records("call").into_iter().filter(|call| call["ended"] == "cut").collect();
        (cut.len() >= many).then_some(cut)
    });
    for call in calls {
        assert_eq!((&call["cut_by"], &call["decision"]), (&json!(reason), &json!("permit")), "{call}");
    }
}

#[test]
fn open_streams_are_cut_when_their_grants_end() {
    // BI-GRT-003, BI-UPG-009
    let backend = streaming();
    let mut setup = Setup::new(backend.address);
    setup.grants = stream_grants(&in_millis(60_000));
    let world = World::start(&setup);
    let streams = open_streams(&world);
    world.grants("");
    are_cut(&world, streams, "revoked");
}

#[test]
fn open_streams_are_cut_when_their_grants_expire() {
    let backend = streaming();
    let mut setup = Setup::new(backend.address);
    setup.grants = stream_grants(&in_millis(1_500));
    let world = World::start(&setup);
    let streams = open_streams(&world);
    are_cut(&world, streams, "expired");
}

#[test]
fn open_streams_are_cut_by_a_lock() {
    let backend = streaming();
    let mut setup = Setup::new(backend.address);
    setup.grants = stream_grants(&in_millis(60_000));
    let world = World::start(&setup);
    let streams = open_streams(&world);
    world.state(&format!("revision: 2\ngrants:\n{}locks:\n  - {{id: l1, message: stop}}\n", setup.grants));
    are_cut(&world, streams, "lock");
}

#[test]
fn an_upload_that_outlives_its_grant_is_never_completed() {
    // BI-GRT-004
    let backend = streaming();
    let mut setup = Setup::new(backend.address);
    setup.grants = stream_grants(&in_millis(60_000));
    let world = World::start(&setup);
    let mut client = world.connect();
    client.send(&world.request_with("POST", "/upload", &world.token, "content-length: 1000\r\n", ""));
    client.send(b"begun");
    wait_for("the upload to begin", || backend.bytes().ends_with(b"begun").then_some(()));
    world.grants("");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.reason().as_str()), (403, "revoked"));
    client.send(&[b'x'; 995]);
    assert!(client.rest().is_empty());
    assert!(backend.seen().is_empty(), "the backend never has a whole request");
}

#[test]
fn nothing_leaves_once_the_grant_is_over() {
    // BI-GRT-002: the backend takes its time to accept the connection.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut setup = Setup::new(address);
    setup.upstream = format!("https://{address}");
    setup.backend = "    upstream_tls: {ca: ca.pem}\n    timeouts: {connect: 5s}\n".to_owned();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    setup.files.push(("ca.pem".to_owned(), authority.self_signed(&key).unwrap().pem()));
    let world = World::start(&setup);
    world.grants(&grant_until("g1", "ci-bot", "allowed.read", "allowed/**", &in_millis(700)));
    let answer = world.call("GET", "/allowed/a");
    assert_eq!((answer.status, answer.reason().as_str()), (403, "expired"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut sent = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut sent).unwrap();
    assert!(common::client::find(&sent, world.secret.as_bytes()).is_none());
}

#[test]
fn a_record_is_one_line_whatever_a_caller_writes() {
    // BI-AUD-008, BI-AUD-009, BI-AUD-015
    let (world, _backend) = plain();
    for (number, (target, fields)) in [
        ("/allowed/%0d%0a%7b%22a%22:1%7d", ""),
        ("/allowed/%22%7d%0a%7b%22kind%22:%22call%22", ""),
        ("/allowed/a", "user-agent: \u{1b}]0;pwn\u{7}\r\n"),
        ("/allowed/%e2%80%a8x", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = world.connect();
        client.send(&world.request_with("GET", target, &world.token, fields, ""));
        client.answer();
        let records = world.calls(number + 1);
        assert_eq!(records.len(), number + 1);
    }
    assert_eq!(world.records("call")[3]["trace"], "0af7651916cd43dd8448eb211c80319c");
    let metrics = world.admin("/metrics").text();
    let counted: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("leasehold_calls_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!((counted - 4.0).abs() < 0.5, "{metrics}");
}

#[test]
fn metrics_have_the_names_of_the_configuration_and_no_others() {
    // BI-AUD-012
    let (world, _backend) = plain();
    let series = |world: &World| world.admin("/metrics").text().lines().filter(|line| !line.starts_with('#')).count();
    world.call("GET", "/allowed/a");
    world.call("GET", "/nowhere");
    world.calls(2);
    let before = series(&world);
    let mut client = world.connect();
    for number in 0..300 {
        client.send(&world.request_with(
            "GET",
            &format!("/random-{number}"),
            &world.token,
            &format!("x-{number}: y\r\n"),
            "",
        ));
        assert_eq!(client.answer().unwrap().status, 403);
    }
    world.calls(302);
    assert!(series(&world) <= before + 2);
}

#[test]
fn a_sidecar_that_is_told_to_stop_lets_calls_finish() {
    let gate = std::sync::Arc::new(std::sync::Barrier::new(2));
    let opened = std::sync::Arc::clone(&gate);
    let backend = Backend::scripted(move |_, stream| {
        opened.wait();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate");
        Then::Keep
    });
    let world = World::start(&Setup::new(backend.address));
    let mut client = world.connect();
    client.send(&world.request("GET", "/allowed/a"));
    wait_for("the call to be on its way", || (!backend.seen().is_empty()).then_some(()));
    let stopping = std::thread::spawn(move || world.stop());
    gate.wait();
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
    assert!(client.rest().is_empty());
    let lines = common::world::lines(&stopping.join().unwrap());
    assert!(lines.iter().any(|line| line["kind"] == "call" && line["ended"] == "complete"), "{lines:?}");
}

#[test]
fn records_that_cannot_be_written_deny() {
    let (world, backend) = plain();
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    std::fs::remove_dir_all(world.path("audit")).unwrap();
    std::fs::write(world.path("audit"), "in the way").unwrap();
    let refused = wait_for("the failure to be seen", || {
        let answer = world.call("GET", "/allowed/a");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!((refused.status, refused.reason().as_str()), (503, "audit_unavailable"));
    wait_for("unreadiness", || (world.admin("/readyz").status == 503).then_some(()));
    backend.forget();
    assert_eq!(world.call("GET", "/allowed/a").status, 503);
    assert!(backend.seen().is_empty());
}

#[test]
fn a_minted_credential_is_for_one_grant_and_never_outlives_it() {
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    let (source, key) = minting("1h");
    setup.source = source;
    setup.files.push(key);
    setup.grants =
        grant("g1", "ci-bot", "allowed.read", "allowed/*", 60) + &grant("g2", "ci-bot", "upload", "upload", 60);
    let world = World::start(&setup);
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    assert_eq!(world.call("GET", "/allowed/b").status, 200);
    assert_eq!(world.call("POST", "/upload").status, 200);
    let tokens: Vec<_> = backend.seen().iter().map(|seen| seen.headers("authorization").join("")).collect();
    assert_eq!(tokens[0], tokens[1], "calls of one grant share an issue");
    assert_ne!(tokens[1], tokens[2], "another grant has its own");
    let claims = |token: &str| -> serde_json::Value {
        let middle = token.strip_prefix("Bearer ").unwrap().split('.').nth(1).unwrap();
        serde_json::from_slice(
            &base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, middle).unwrap(),
        )
        .unwrap()
    };
    let (first, second) = (claims(&tokens[0]), claims(&tokens[2]));
    assert_eq!((&first["sub"], &first["aud"]), (&json!(format!("{ISSUER}#ci-bot")), &json!("shop")));
    assert_eq!((&first["leasehold_grant"], &second["leasehold_grant"]), (&json!("g1"), &json!("g2")));
    assert_eq!(first["leasehold_task"], "jira:OPS-17");
    assert!(first["exp"].as_u64().unwrap() <= now() + 60, "an hour is allowed and the grant has a minute: {first}");
    assert_eq!(world.calls(3)[0]["lease"], first["jti"]);
    world.grants("");
    assert_eq!(world.call("GET", "/allowed/a").reason(), "revoked");
}
