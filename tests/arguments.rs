//! Grants that are bound to the arguments of one call, through the whole sidecar.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::backend::Backend;
use common::client::Answer;
use common::wait_for;
use common::world::{Setup, World, grant};
use leasehold::app::arguments;
use serde_json::json;

const JSON: &str = "content-type: application/json\r\n";
const BODY: &str = r#"{"delete":["orders"]}"#;
const LIMIT: usize = 64;

fn digest(method: &str, target: &str, kind: Option<&str>, body: &str) -> String {
    arguments::digest(method, target, kind, body.as_bytes()).unwrap().to_string()
}

/// The digest of the call that the tests agree to.
fn agreed() -> String {
    digest("POST", "/upload?dry=0", Some("application/json"), BODY)
}

/// A grant for one call.
fn bound(id: &str, action: &str, resource: &str, digest: &str, more: &str) -> String {
    let grant = grant(id, "ci-bot", action, resource, 3_600);
    grant.replace("task:", &format!("arguments: \"{digest}\", {more}task:"))
}

fn setup(backend: &Backend, grants: String) -> Setup {
    let mut setup = Setup::new(backend.address);
    setup.grants = grants;
    setup.listener = format!("    limits: {{arguments_bytes: {LIMIT}, body_timeout: 2s}}\n");
    setup
}

fn world(grants: String) -> (World, Backend) {
    let backend = Backend::start();
    (World::start(&setup(&backend, grants)), backend)
}

fn send(world: &World, method: &str, target: &str, fields: &str, body: &str) -> Answer {
    let mut client = world.connect();
    client.send(&world.request_with(method, target, &world.token, fields, body));
    client.answer_to(method).expect("an answer")
}

/// A body in chunks of these sizes.
fn chunked(body: &str, sizes: &[usize]) -> String {
    let mut rest = body;
    let mut text = String::new();
    for size in sizes {
        let (chunk, after) = rest.split_at(*size);
        text += &format!("{size:x}\r\n{chunk}\r\n");
        rest = after;
    }
    assert!(rest.is_empty());
    text + "0\r\n\r\n"
}

#[test]
fn the_call_that_was_agreed_to_passes_once_and_no_other_takes_its_use() {
    let (world, backend) = world(bound("g1", "upload", "upload", &agreed(), "uses_max: 1, "));
    for (method, target, fields, body) in [
        ("POST", "/upload?dry=0", JSON, r#"{"delete":["orders"] }"#),
        ("POST", "/upload?dry=0", JSON, ""),
        ("POST", "/upload?dry=1", JSON, BODY),
        ("POST", "/upload", JSON, BODY),
        ("POST", "/upload?dry=0", "", BODY),
        ("POST", "/upload?dry=0", "content-type: application/x-www-form-urlencoded\r\n", BODY),
    ] {
        let refused = send(&world, method, target, fields, body);
        assert_eq!((refused.status, refused.reason().as_str()), (403, "arguments_differ"), "{target} {fields} {body}");
        let kind = fields.split_once(": ").map(|(_, kind)| kind.trim());
        let problem = refused.json();
        assert_eq!(problem["arguments"], digest(method, target, kind, body), "the call's own digest is told");
        assert_eq!((&problem["grant"], problem.pointer("/next/action")), (&json!("g1"), Some(&json!("request"))));
    }
    assert!(backend.seen().is_empty());
    assert_eq!(send(&world, "POST", "/upload?dry=0", JSON, BODY).status, 200);
    assert_eq!(send(&world, "POST", "/upload?dry=0", JSON, BODY).reason(), "exhausted");
    let seen = backend.seen();
    assert_eq!((seen.len(), seen[0].line()), (1, "POST /upload?dry=0 HTTP/1.1"));
    assert_eq!(seen[0].body, BODY.as_bytes(), "what was compared is what was sent");
    let calls = world.calls(8);
    assert_eq!((&calls[6]["grant"], &calls[6]["arguments"]), (&json!("g1"), &json!(agreed())));
    assert_eq!((&calls[6]["decision"], &calls[6]["bytes_in"]), (&json!("permit"), &json!(BODY.len())));
    assert_eq!(calls[1]["arguments"], digest("POST", "/upload?dry=0", Some("application/json"), ""));
}

#[test]
fn a_call_without_a_body_is_one_exact_call_too() {
    let bare = digest("DELETE", "/admin?force=1", None, "");
    let (world, backend) = world(bound("g1", "*", "**", &bare, ""));
    assert_eq!(send(&world, "DELETE", "/admin?force=1", "", "").status, 200);
    for (method, target) in [("DELETE", "/admin"), ("POST", "/admin?force=1"), ("GET", "/allowed/a")] {
        assert_eq!(send(&world, method, target, "", "").reason(), "arguments_differ", "{method} {target}");
    }
    assert_eq!(send(&world, "DELETE", "/admin?force=1", "", "x").reason(), "arguments_differ");
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn a_body_is_read_up_to_the_limit_however_it_comes() {
    let long = "x".repeat(LIMIT);
    let over = "x".repeat(LIMIT + 1);
    let of = |body: &str| digest("POST", "/upload", None, body);
    let (world, backend) =
        world(bound("g1", "upload", "upload", &of(&long), "") + &bound("g2", "upload", "upload", &of(&over), ""));
    assert_eq!(send(&world, "POST", "/upload", "", &long).status, 200);
    let refused = send(&world, "POST", "/upload", "", &over);
    assert_eq!((refused.status, refused.reason().as_str()), (413, "body_too_large"));
    let in_chunks = |body: &str, sizes: &[usize], fields: &str| {
        let mut client = world.connect();
        let fields = format!("transfer-encoding: chunked\r\n{fields}");
        client.send(&world.request_with("POST", "/upload", &world.token, &fields, ""));
        client.send(chunked(body, sizes).as_bytes());
        (client.answer().expect("an answer"), client)
    };
    assert_eq!(in_chunks(&long, &[1, LIMIT - 1], "").0.status, 200);
    assert_eq!(in_chunks(&long, &[LIMIT], "expect: 100-continue\r\n").0.status, 200);
    let (refused, mut client) = in_chunks(&over, &[LIMIT, 1], "");
    assert_eq!((refused.status, refused.reason().as_str()), (413, "body_too_large"));
    assert!(client.rest().is_empty(), "what is left of it is no other call");
    let bodies: Vec<_> = backend.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, vec![long.into_bytes(); 3]);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let (world, backend) = world(bound("g1", "upload", "upload", &agreed(), "uses_max: 1, "));
    let mut client = world.connect();
    let fields = format!("{JSON}content-length: {}\r\n", BODY.len());
    client.send(&world.request_with("POST", "/upload?dry=0", &world.token, &fields, ""));
    client.send(&BODY.as_bytes()[..5]);
    let refused = client.answer().expect("an answer");
    assert_eq!((refused.status, refused.reason().as_str()), (408, "body_timeout"));
    assert!(backend.bytes().is_empty());
    assert_eq!(send(&world, "POST", "/upload?dry=0", JSON, BODY).status, 200, "the use is still there");
}

#[test]
fn where_another_grant_covers_the_call_its_body_goes_through_as_it_comes() {
    let both = bound("g1", "upload", "upload", &agreed(), "") + &grant("g2", "ci-bot", "upload", "upload", 3_600);
    let (world, backend) = world(both);
    let mut client = world.connect();
    let long = LIMIT * 1_000;
    client.send(&world.request_with("POST", "/upload", &world.token, &format!("content-length: {long}\r\n"), ""));
    client.send(b"begun");
    wait_for("the upload to begin", || backend.bytes().ends_with(b"begun").then_some(()));
    client.send(&vec![b'x'; long - 5]);
    assert_eq!(client.answer().expect("an answer").status, 200);
    // The same call under the bound grant alone.
    world.grants(&bound("g1", "upload", "upload", &agreed(), ""));
    assert_eq!(send(&world, "POST", "/upload", "", "begun").reason(), "arguments_differ");
    assert_eq!(send(&world, "POST", "/upload?dry=0", JSON, BODY).status, 200);
    let calls = world.calls(3);
    assert_eq!((&calls[0]["grant"], calls[0].get("arguments")), (&json!("g2"), None));
    assert_eq!(calls[2]["grant"], "g1");
}

#[test]
fn what_has_no_end_or_is_hidden_is_never_the_call_that_was_agreed_to() {
    let socket = digest("GET", "/ws", None, "");
    let packed = digest("POST", "/upload", Some("application/json"), BODY);
    let (world, backend) =
        world(bound("g1", "socket.open", "socket", &socket, "") + &bound("g2", "upload", "upload", &packed, ""));
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let encoded = format!("{JSON}content-encoding: gzip\r\n");
    for (method, target, fields, body) in [
        ("GET", "/ws", upgrade, ""),
        ("POST", "/upload", encoded.as_str(), BODY),
        ("POST", "/upload", "content-type: application/grpc\r\n", BODY),
    ] {
        let mut client = world.connect();
        client.send(&world.request_with(method, target, &world.token, fields, body));
        let refused = client.answer().expect("an answer");
        let told = refused.header("grpc-message").map_or_else(|| refused.reason(), str::to_owned);
        assert!(told.starts_with("body_unreadable"), "{method} {target} {fields}: {told}");
    }
    assert!(backend.seen().is_empty());
    let plain = format!("{JSON}content-encoding: identity\r\n");
    assert_eq!(send(&world, "POST", "/upload", &plain, BODY).status, 200);
}

#[test]
fn where_it_is_only_observed_every_call_passes_and_is_told_apart() {
    let backend = Backend::start();
    let mut setup = setup(&backend, bound("g1", "upload", "upload", &agreed(), ""));
    setup.backend = "    mode: observe\n".to_owned();
    let world = World::start(&setup);
    let over = "x".repeat(LIMIT + 1);
    for (target, body) in [("/upload?dry=0", BODY), ("/upload", BODY), ("/upload", &*over)] {
        assert_eq!(send(&world, "POST", target, JSON, body).status, 200);
    }
    let mut client = world.connect();
    let fields = format!("{JSON}transfer-encoding: chunked\r\n");
    client.send(&world.request_with("POST", "/upload", &world.token, &fields, ""));
    client.send(chunked(&over, &[over.len()]).as_bytes());
    assert_eq!(client.answer().expect("an answer").status, 200);
    let told: Vec<_> = world.calls(4).iter().map(|call| (call["decision"].clone(), call["reason"].clone())).collect();
    let told: Vec<_> = told.iter().map(|(decision, reason)| (decision.as_str(), reason.as_str())).collect();
    let would = |reason| (Some("would_deny"), Some(reason));
    let expected = [(Some("permit"), Some("granted")), would("arguments_differ"), would("body_too_large")];
    assert_eq!(told[..3], expected);
    assert_eq!(told[3], would("body_too_large"), "it is not begun where it could not be passed on then");
    assert_eq!(backend.seen().iter().map(|seen| seen.body.len()).collect::<Vec<_>>(), [21, 21, LIMIT + 1, LIMIT + 1]);
}

#[test]
fn an_explanation_says_what_it_depends_on() {
    let (world, _backend) = world(bound("g1", "upload", "upload", &agreed(), "uses_max: 1, "));
    let explain = |target: &str, body: &str| {
        let encode =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, body);
        let (who, target, body) = (encode("https://idp.test#ci-bot"), encode(target), encode(&body));
        let call = format!("method=POST&target={target}&header=content-type:application/json&body_base64={body}");
        world.admin(&format!("/explain?principal={who}&{call}")).json()
    };
    let right = explain("/upload?dry=0", BODY);
    assert_eq!((&right["decision"], &right["grant"]), (&json!("permit"), &json!("g1")), "{right}");
    assert_eq!((&right["depends_on"], &right["arguments"]), (&json!("arguments"), &json!(agreed())));
    let wrong = explain("/upload?dry=0", "");
    assert_eq!((&wrong["decision"], &wrong["reason"]), (&json!("deny"), &json!("arguments_differ")), "{wrong}");
    assert_eq!(wrong["depends_on"], "arguments");
    let over = explain("/upload?dry=0", &"x".repeat(LIMIT + 1));
    assert_eq!(over["reason"], "body_too_large", "{over}");
    let grants = world.admin("/grants").json();
    assert_eq!(grants["grants"][0]["arguments"], agreed());
    assert_eq!(send(&world, "POST", "/upload?dry=0", JSON, BODY).status, 200, "asking took no use");
}
