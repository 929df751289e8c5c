//! Too much, too slow, too many at once: it is bounded, and others are served.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::common::backend::{Backend, Then};
use super::common::issuer::{AUDIENCE, Issuer, now};
use super::common::wait_for;
use super::common::world::{Setup, World, grant};

#[test]
fn every_running_call_is_cut_by_one_revocation() {
    // BI-GRT-005
    const CALLS: usize = 200;
    let backend = Backend::scripted(|_, stream| {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 9\r\n\r\nbegun");
        Then::Keep
    });
    let world = World::start(&Setup::new(backend.address));
    let mut callers: Vec<_> = (0..CALLS)
        .map(|_| {
            let mut client = world.connect();
            client.send(&world.request("GET", "/allowed/a"));
            client
        })
        .collect();
    for client in &mut callers {
        client.until(b"begun");
    }
    world.grants("");
    assert_eq!(world.call("GET", "/allowed/a").status, 403);
    for mut client in callers {
        assert!(client.rest().len() < 4, "it is not whole");
    }
    let cut = wait_for("the records", || {
        let cut = world.records("call").into_iter().filter(|call| call["cut_by"] == "revoked").count();
        (cut >= CALLS).then_some(cut)
    });
    assert_eq!(cut, CALLS);
}

#[test]
fn a_grant_on_one_backend_is_none_on_another() {
    // BI-GRT-023
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.grants = grant("g1", "ci-bot", "allowed.read", "allowed/**", 60).replace("backend: shop", "backend: other");
    let world = World::start(&setup);
    assert_eq!(world.call("GET", "/allowed/a").reason(), "no_grant");
    assert!(backend.seen().is_empty());
}

#[test]
fn who_is_too_slow_is_cut_and_others_are_served() {
    // BI-RES-005, BI-RES-007
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.listener = "    limits: {connections: 40, head_timeout: 1s, body_timeout: 1s, idle_timeout: 1s}\n".to_owned();
    let world = World::start(&setup);
    let mut slow = Vec::new();
    for number in 0..40 {
        let mut client = world.connect();
        match number % 3 {
            0 => client.send(b"GET /allowed/a HTTP/1.1\r\nhost: x\r\n"),
            1 => client.send(&world.request_with("POST", "/upload", &world.token, "content-length: 9\r\n", "")),
            _ => {}
        }
        slow.push(client);
    }
    // It waits for a place until the slow ones are gone.
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    for (number, mut client) in slow.into_iter().enumerate() {
        let said = String::from_utf8_lossy(&client.rest()).into_owned();
        if number % 3 == 1 {
            assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
        }
    }
    assert!(backend.seen().iter().all(|seen| seen.line().starts_with("GET ")), "no upload was completed");
}

#[test]
fn a_reader_that_does_not_read_holds_back_the_backend() {
    // BI-RES-006
    let held_back = Arc::new(std::sync::Mutex::new(None));
    let seen = Arc::clone(&held_back);
    let backend = Backend::scripted(move |_, stream: &mut TcpStream| {
        let _ = stream.set_write_timeout(Some(std::time::Duration::from_millis(500)));
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 1073741824\r\n\r\n",
        );
        let mut sent = 0;
        while let Ok(written) = stream.write(&[0; 64 * 1024]) {
            sent += written;
        }
        *seen.lock().unwrap() = Some(sent);
        Then::Close
    });
    let world = World::start(&Setup::new(backend.address));
    let mut client = world.connect();
    client.send(&world.request("GET", "/allowed/a"));
    let sent = wait_for("the backend to be held back", || *held_back.lock().unwrap());
    assert!(sent > 0 && sent < 64 << 20, "what nobody reads is not taken in: {sent} bytes");
}

#[test]
fn a_body_that_hides_what_it_does_is_refused() {
    // BI-RES-014
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.map = "rules:\n  - {action: thing.act, class: write, method: POST, path: /act, body: {name: {pointer: /name}}, resource: 'things/{name}'}\n".to_owned();
    setup.grants = grant("g1", "ci-bot", "*", "**", 60);
    let world = World::start(&setup);
    let call = |fields: &str, body: &str| {
        let mut client = world.connect();
        client.send(&world.request_with("POST", "/act", &world.token, fields, body));
        client.answer().unwrap().status
    };
    let json = "content-type: application/json\r\n";
    assert_eq!(call(json, r#"{"name": "a"}"#), 200);
    assert_eq!(call(&format!("{json}content-encoding: gzip\r\n"), "\u{1f}"), 415);
    assert_eq!(call("content-type: text/plain\r\n", r#"{"name": "a"}"#), 415);
    for body in [r#"{"name": "a", "name": "b"}"#, r#"{"name": ["a"]}"#, "{", r#"{"other": 1}"#] {
        assert!(matches!(call(json, body), 400 | 403 | 415), "{body}");
    }
    assert_eq!(call(json, &format!(r#"{{"name": "{}"}}"#, "a".repeat(70_000))), 413);
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn a_flood_of_forged_tokens_takes_nothing_from_who_is_known() {
    // BI-RES-015
    let backend = Backend::start();
    let world = World::start(&Setup::new(backend.address));
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    let forger = Issuer::new("k1");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = world.connect();
                while !stop.load(Ordering::Relaxed) {
                    client.send(&world.request_with("GET", "/allowed/a", &forger.token("ci-bot"), "", ""));
                    // Past the limit of its source nothing is looked at any more.
                    assert!(matches!(client.answer().unwrap().status, 401 | 503));
                }
            });
        }
        let mut client = world.connect();
        for _ in 0..300 {
            client.send(&world.request("GET", "/allowed/a"));
            assert_eq!(client.answer().unwrap().status, 200);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn keys_by_url_are_fetched_so_often_and_no_more() {
    // BI-JWK-001, BI-JWK-002, BI-JWK-005, BI-JWK-007
    const FAR: &str = "https://far.test";
    let far = Issuer::new("f1");
    let answer = Arc::new(std::sync::Mutex::new(None::<String>));
    let given = Arc::clone(&answer);
    let keys = Backend::scripted(move |_, stream| {
        match &*given.lock().unwrap() {
            None => drop(stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")),
            Some(text) => drop(write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )),
        }
        Then::Close
    });
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.identity = format!(
        "    - {{name: far, issuer: '{FAR}', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{url: 'http://{}/jwks', refresh: 5s, refresh_min: 1s}}}}\n",
        keys.address
    );
    setup.grants = grant("g1", "ci-bot", "allowed.read", "allowed/**", 60).replace("https://idp.test", FAR);
    let world = World::start(&setup);
    let claims = |number: usize| json!({"iss": FAR, "aud": AUDIENCE, "sub": "ci-bot", "iat": now(), "exp": now() + 300, "jti": number.to_string()});
    let call = |token: &str| {
        let mut client = world.connect();
        client.send(&world.request_with("GET", "/allowed/a", token, "", ""));
        client.answer().unwrap()
    };
    let token = far.sign(&claims(0));
    let refused = call(&token);
    assert!(matches!(refused.status, 401 | 503), "without keys nobody is known: {refused:?}");
    assert_eq!(world.admin("/readyz").status, 503);

    *answer.lock().unwrap() = Some(far.jwks());
    wait_for("the keys", || (call(&token).status == 200).then_some(()));
    let before = keys.seen().len();
    for number in 0..2_000 {
        let header = format!(r#"{{"alg":"EdDSA","kid":"random-{number}"}}"#);
        if number % 100 == 0 {
            assert_eq!(call(&far.sign_text(&header, &claims(number).to_string())).status, 401);
        }
    }
    let fetched = keys.seen().len() - before;
    assert!(fetched <= 5, "unknown keys made it fetch {fetched} times");

    for bad in ["{\"keys\":[]}".to_owned(), "<html>".to_owned(), "x".repeat(3 << 20)] {
        *answer.lock().unwrap() = Some(bad);
        let seen = keys.seen().len();
        wait_for("another fetch", || {
            // A key that is not known is a reason to look.
            call(&far.sign_text(r#"{"alg":"EdDSA","kid":"f2"}"#, &claims(1).to_string()));
            (keys.seen().len() > seen).then_some(())
        });
        assert_eq!(call(&far.sign(&claims(seen))).status, 200, "the last good keys serve");
    }
}
