//! What a network does: nobody there, a stranger, half an answer, an answer that is lost.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use crate::world::{Control, Person};

/// Answers one connection after another with what `answers` has, and returns the heads of what was asked. Nothing is
/// sent for an empty answer: the connection is lost.
fn serve(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            asked.push(request(&mut stream));
            let _ = stream.write_all(answer.as_bytes());
        }
        asked
    });
    (url, thread)
}

/// Reads a request, its body included.
pub fn request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

pub fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn somebody() -> (tempfile::TempDir, Person) {
    let folder = tempfile::tempdir().unwrap();
    let person = Person::at(folder.path()).with("LEASEHOLD_TOKEN", "t0ken");
    (folder, person)
}

const REQUEST: &str = r#"{"id":"req_1","state":"approved","grant_id":"grt_1"}"#;

#[test]
fn nobody_there_is_four_and_says_what_to_do() {
    // Bound and not listened to for longer than it takes to learn the number.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("http://127.0.0.1:{port}");
    let (_folder, person) = somebody();
    for words in [&["whoami"][..], &["grants"], &["requests"], &["locks"], &["doctor"], &["documents"]] {
        person.fails(4, &[words, &["--server", &server]].concat(), "is `leasehold up` running");
    }
    person.fails(4, &["request", "x", "--server", &server], "connection refused");
}

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_key() {
    let (url, server) = serve(vec![String::new(), "HTTP/1.1 201 Cre".into(), answer("201 Created", REQUEST)]);
    let (_folder, person) = somebody();
    person.ok(&["request", "clean-up", "--server", &url]);
    let asked = server.join().unwrap();
    let key = |text: &str| text.lines().find_map(|line| line.strip_prefix("idempotency-key: ").map(str::to_owned));
    assert_eq!(key(&asked[0]).map(|key| key.len()), Some(32));
    assert!(asked.iter().all(|text| key(text) == key(&asked[0])), "{asked:?}");
    assert!(asked[2].ends_with(r#"{"entitlement":"clean-up"}"#), "{asked:?}");

    let (url, server) = serve(vec![answer("201 Created", REQUEST)]);
    person.ok(&["request", "clean-up", "--server", &url]);
    let again = server.join().unwrap();
    assert_ne!(key(&again[0]), key(&asked[0]), "another invocation asks for another request");
}

#[test]
fn what_may_be_repeated_waits_for_a_store_that_is_away() {
    let away = answer("503 Service Unavailable", r#"{"detail":"the store cannot answer now","code":"store"}"#);
    let (_folder, person) = somebody();
    let (url, _server) = serve(vec![away.clone(), away.clone(), answer("201 Created", REQUEST)]);
    person.ok(&["request", "clean-up", "--server", &url]);
    let (url, server) = serve(vec![away.clone(); 5]);
    person.fails(1, &["locks", "--server", &url], "the store cannot answer now (store)");
    assert_eq!(server.join().unwrap().len(), 5);
    let (url, server) = serve(vec![away]);
    person.fails(1, &["release", "grt_1", "--server", &url], "the store cannot answer now (store)");
    assert_eq!(server.join().unwrap().len(), 1);
}

#[test]
fn a_token_that_was_replaced_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let replaced = file.clone();
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for reply in [answer("401 Unauthorized", "{}"), answer("200 OK", r#"{"principal":"a#b"}"#)] {
            let (mut stream, _) = listener.accept().unwrap();
            asked.push(request(&mut stream));
            std::fs::write(&replaced, "second").unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
        }
        asked
    });
    let person = Person::at(folder.path());
    person.ok(&["whoami", "--server", &url, "--token-file", "token"]);
    let asked = server.join().unwrap();
    assert!(asked[0].contains("Bearer first\r\n") && asked[1].contains("Bearer second\r\n"), "{asked:?}");
}

#[test]
fn what_cannot_be_repeated_is_not() {
    let (url, server) = serve(vec![String::new()]);
    let (_folder, person) = somebody();
    person.fails(4, &["release", "grt_1", "--server", &url], "may have been done: look before you say it again");
    assert_eq!(server.join().unwrap().len(), 1);
}

#[test]
fn half_an_answer_is_none() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"items\":[".to_owned();
    let (url, server) = serve(vec![half; 5]);
    let (_folder, person) = somebody();
    person.fails(4, &["locks", "--server", &url], "broke off");
    assert_eq!(server.join().unwrap().len(), 5);
    let (url, _server) = serve(vec!["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n".to_owned() + REQUEST]);
    person.fails(4, &["release", "grt_1", "--server", &url], "broke off");
}

#[test]
fn a_stranger_is_told_from_a_control_plane() {
    let (_folder, person) = somebody();
    for (status, body) in [
        ("200 OK", "<html>Welcome to nginx"),
        ("404 Not Found", "<html>"),
        ("302 Found", ""),
        ("502 Bad Gateway", "<html>"),
        ("200 OK", r#"{"hello":"world"}"#),
    ] {
        let (url, _server) = serve(vec![answer(status, body)]);
        person.fails(4, &["locks", "--server", &url], "is no control plane");
    }
}

#[test]
fn a_refusal_says_why_and_what_to_do() {
    let (_folder, person) = somebody();
    let body = r#"{"type":"urn:leasehold:problem:task-closed","title":"Forbidden","status":403,"detail":"task `jira:A-1` is closed\u001b[2J","code":"task_closed","retryable":false,"hint":"open it"}"#;
    let (url, _server) = serve(vec![answer("403 Forbidden", body)]);
    let said = person.fails(1, &["request", "x", "--server", &url], "task `jira:A-1` is closed");
    assert!(said.err.contains("(task_closed)\n  open it") && !said.err.contains('\u{1b}'), "{said:?}");
    let (url, _server) = serve(vec![answer("401 Unauthorized", r#"{"detail":"who are you?"}"#)]);
    person.fails(1, &["grants", "--server", &url], "log in with `leasehold login`");
}

#[test]
fn a_token_leaves_over_tls_or_to_loopback_only() {
    let (_folder, person) = somebody();
    for server in ["http://leasehold.example", "http://192.0.2.1:9902"] {
        person.fails(2, &["whoami", "--server", server], "plain http");
    }
    person.fails(2, &["whoami", "--server", "ftp://x"], "neither");
    person.fails(4, &["whoami", "--server", "https://127.0.0.1:1", "--ca", "/nonexistent"], "cannot be reached");
    let (url, server) = serve(vec![answer("200 OK", r#"{"principal":"a#b"}"#)]);
    person.ok(&["whoami", "--server", &url]);
    assert!(server.join().unwrap()[0].contains("authorization: Bearer t0ken\r\n"));
}

#[test]
fn over_tls_the_servers_authority_counts() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let inside = format!(", tls: {{certificate: '{}', key: '{}'}}", at("tls.crt"), at("tls.key"));
    let control = Control::start("identity: {spiffe: []}\n", &inside);
    let url = control.url.replace("http://", "https://");
    let token = control.folder().join("leasehold.data/admin.token").display().to_string();
    let person = Person::at(folder.path()).with("LEASEHOLD_SERVER", &url).with("LEASEHOLD_TOKEN_FILE", &token);
    assert!(person.ok(&["whoami", "--ca", "tls.crt"]).starts_with("urn:leasehold:local#admin\n"));
    person.fails(4, &["whoami"], "name it with `--ca FILE`");
    person.fails(4, &["whoami", "--ca", "tls.crt", "--server", &url.replace("127.0.0.1", "localhost")], "localhost");
    person.fails(4, &["whoami", "--server", &control.url], "http://127.0.0.1");
}

#[test]
fn pages_are_turned() {
    let page = |token: &str, ids: &[&str]| {
        let items: Vec<String> = ids.iter().map(|id| format!(r#"{{"id":"{id}","state":"active"}}"#)).collect();
        let next = if token.is_empty() { String::new() } else { format!(r#","next_page_token":"{token}""#) };
        answer("200 OK", &format!(r#"{{"items":[{}]{next}}}"#, items.join(",")))
    };
    let (_folder, person) = somebody();
    let (url, server) = serve(vec![page("a+b", &["grt_1", "grt_2"]), page("", &["grt_3"])]);
    let said = person.json(&["grants", "--server", &url]);
    assert_eq!(said.as_array().unwrap().len(), 3);
    assert!(server.join().unwrap()[1].starts_with("GET /v1/grants?page_size=98&page_token=a%2Bb HTTP/1.1"));
    let (url, _server) = serve(vec![page("x", &["grt_1", "grt_2"])]);
    let said = person.says(&["grants", "--limit", "2", "--server", &url]);
    assert!(said.code == Some(0) && said.err.contains("more than 2"), "{said:?}");
}

#[test]
fn an_answer_is_a_table_json_or_yaml() {
    let (_folder, person) = somebody();
    let body = r#"{"items":[{"id":"grt_1","state":"active","actions":["a","b"],"expires_at":"2020-01-01T00:00:00Z"}]}"#;
    for (output, expected) in [
        ("table", "grt_1  expired  -          -        a, b"),
        ("json", "\"expires_at\": \"2020-01-01T00:00:00Z\""),
        ("yaml", "- id: grt_1\n  state: active\n"),
    ] {
        let (url, _server) = serve(vec![answer("200 OK", body)]);
        let said = person.ok(&["grants", "--server", &url, "-o", output]);
        assert!(said.contains(expected), "{output}: {said}");
    }
}
