//! What a backend may answer, and what of it a caller gets.

use std::io::Write;
use std::net::TcpStream;

use super::common::backend::{Backend, Seen, Then};
use super::common::client::{Answer, find};
use super::common::world::{Setup, World};

/// A backend that answers these bytes once to each request for `/allowed/a`, and plainly to every other.
fn start(bytes: impl Fn(&str) -> String + Send + Sync + 'static) -> (World, Backend) {
    let answer = move |seen: &Seen, stream: &mut TcpStream| {
        let credential = seen.headers("authorization").concat();
        let text = if seen.line().contains("/allowed/a") || seen.line().starts_with("POST") {
            bytes(credential.trim_start_matches("Bearer "))
        } else {
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n".to_owned()
        };
        let _ = stream.write_all(text.as_bytes());
        if text.contains("half") { Then::Close } else { Then::Keep }
    };
    let backend = Backend::scripted(answer);
    let mut setup = Setup::new(backend.address);
    setup.backend = "    timeouts: {first_byte: 1s}\n".to_owned();
    (World::start(&setup), backend)
}

/// One call to what answers these bytes; then another caller's, over whatever connection is kept.
#[track_caller]
fn answer(bytes: &'static str) -> (Answer, World, Backend) {
    let (world, backend) = start(move |credential| bytes.replace("${CRED}", credential));
    let answer = world.call("GET", "/allowed/a");
    let seen = [answer.head.as_bytes(), &answer.body].concat();
    assert!(find(&seen, world.secret.as_bytes()).is_none(), "the caller sees the credential: {answer:?}");
    let next = world.call("GET", "/allowed/next");
    assert_eq!((next.status, next.text().as_str()), (200, "ok\n"), "after {bytes:?}");
    let metrics = world.admin("/metrics").text();
    assert!(!metrics.contains(&world.secret));
    (answer, world, backend)
}

#[track_caller]
fn is_refused(bytes: &'static str, status: u16, reason: &str) {
    let (answer, world, _) = answer(bytes);
    assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{bytes:?}");
    let records = world.calls(2);
    assert_eq!(records[0]["reason"], reason, "{bytes:?}");
    assert_ne!(records[0]["decision"], "deny", "the caller did nothing wrong");
}

#[test]
fn an_answer_with_the_credential_is_stopped() {
    // BI-UPR-001, BI-UPR-002
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 39\r\n\r\n${CRED}",
        "HTTP/1.1 200 OK\r\nContent-Length: 39\r\n\r\n${CRED}",
        "HTTP/1.1 200 OK\r\nX-Debug: Bearer ${CRED}\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: https://evil.test/?token=${CRED}\r\nContent-Length: 0\r\n\r\n",
    ] {
        is_refused(bytes, 502, "leak_guard");
    }
    // In pieces of a body that began already, it can only be cut.
    let (answer, world, _) = answer(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n27\r\n${CRED}\r\n0\r\n\r\n",
    );
    assert!(!answer.whole);
    assert_eq!(world.calls(2)[0]["cut_by"], "leak_guard");
}

#[test]
fn an_answer_that_breaks_the_protocol_is_a_bad_gateway() {
    // BI-UPR-006, -007, -011, BI-UPG-002
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npwnd",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "half an answer and then nothing",
    ] {
        is_refused(bytes, 502, "upstream_invalid");
    }
}

#[test]
fn a_refused_credential_is_ours_to_mend() {
    // BI-UPR-004, BI-UPR-017
    for bytes in [
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"internal\", error_description=\"${CRED} expired\"\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    ] {
        is_refused(bytes, 502, "upstream_auth_failed");
        let (answer, _, _) = answer(bytes);
        assert_eq!(answer.header("www-authenticate"), None);
        assert_eq!(answer.header("proxy-authenticate"), None);
    }
    let (_, _, backend) = answer("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n");
    let seen = backend.seen();
    assert_ne!(seen[0].connection, seen[1].connection, "a connection that authenticates is nobody else's");
}

#[test]
fn what_is_the_backends_and_ours_stays_between_us() {
    // BI-UPR-003, -005, -012, -018, BI-UPG-003
    let (answer, _, backend) = answer("HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((answer.status, answer.header("location")), (302, Some("http://evil.test/")));
    assert_eq!(backend.seen().len(), 2, "a redirect is passed on and never followed");

    let (answer, _, _) = self::answer(
        "HTTP/1.1 200 OK\r\nSet-Cookie: sid=backend-session\r\nKeep-Alive: timeout=5\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n",
    );
    for name in ["set-cookie", "keep-alive", "x-hop"] {
        assert_eq!(answer.header(name), None, "{name}");
    }

    let (answer, _, _) =
        self::answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n0\r\nX-T: ${CRED}\r\n\r\n");
    assert_eq!(answer.status, 200);
    let (answer, _, _) = self::answer("HTTP/1.1 999 \u{1b}[2J\r\nContent-Length: 0\r\n\r\n");
    assert!(!answer.head.contains('\u{1b}'), "{answer:?}");
    let (answer, _, _) =
        self::answer("HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("upgrade")), (200, "abc", None));
}

#[test]
fn bytes_that_nobody_asked_for_end_the_connection() {
    // BI-UPR-008
    let (answer, _, backend) =
        answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npwnd");
    assert_eq!(answer.text(), "ok");
    let seen = backend.seen();
    assert_ne!(seen[0].connection, seen[1].connection);
}

#[test]
fn informational_answers_do_not_reach_the_caller_for_ever() {
    // BI-UPR-010
    let (world, _backend) = start(|_| {
        "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(1_000) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    });
    let answer = world.call("GET", "/allowed/a");
    assert!(matches!(answer.status, 200 | 502), "{answer:?}");
    assert!(answer.head.len() < 1_000);
}

#[test]
fn a_body_that_ends_too_soon_does_not_look_whole() {
    // BI-UPR-015
    let (answer, world, _) =
        answer("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\nhalf");
    assert_eq!((answer.status, answer.whole), (200, false));
    assert_eq!(world.calls(2)[0]["ended"], "upstream_truncated");
    // A short text is looked at before it is passed on, so it can still be refused.
    is_refused("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", 502, "upstream_truncated");
}

#[test]
fn a_backend_that_says_nothing_is_waited_for_no_longer_than_configured() {
    // BI-UPR-016
    is_refused("", 504, "upstream_timeout");
}

#[test]
fn a_body_that_the_backend_did_not_wait_for_ends_both_connections() {
    // BI-PIP-004
    let (world, backend) = start(|_| "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned());
    let mut client = world.connect();
    let body = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    client.send(&world.request_with("POST", "/upload", &world.token, "expect: 100-continue\r\n", body));
    assert_eq!(client.answer().unwrap().status, 502);
    assert_eq!(world.call("GET", "/allowed/next").text(), "ok\n");
    assert!(backend.seen().iter().all(|seen| !seen.line().contains("smuggled")));
}
