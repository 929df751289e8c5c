//! Changes as they happen, for whoever may see all.

use serde_json::{Value, json};

use crate::common::client::Client;
use crate::world::World;

/// The lines of a stream, read as JSON.
struct Watching(Client);

impl Watching {
    fn start(world: &World, query: &str) -> Self {
        let mut client = Client::connect(world.api());
        let token = world.token("local");
        let head = format!("GET /v1/watch{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
        client.send(head.as_bytes());
        let head = String::from_utf8_lossy(&client.until(b"\r\n\r\n")).into_owned();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/x-ndjson"), "{head}");
        Self(client)
    }

    /// The next change. Bookmarks come when their time has come.
    fn next(&mut self) -> Value {
        loop {
            let line = self.line();
            if line["event"] != "bookmark" {
                return line;
            }
        }
    }

    fn line(&mut self) -> Value {
        loop {
            // A line is a chunk: its length, itself, and an end.
            let text = String::from_utf8_lossy(&self.0.until(b"\n")).into_owned();
            if text.starts_with('{') {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }
}

#[test]
fn changes_come_in_their_order_and_a_bookmark_now_and_then() {
    let world = World::start();
    let first = world.grant("shop-read");
    let mut watching = Watching::start(&world, "");
    world.done("local", "POST", &format!("/v1/grants/{first}/revoke"), &json!({}));
    let ended = watching.next();
    assert_eq!([&ended["event"], &ended["id"], &ended["state"]], [&json!("ended"), &json!(first), &json!("revoked")]);
    let lock = world.done("local", "POST", "/v1/locks", &json!({"backend": "shop", "message": "stop"}));
    let locked = watching.next();
    assert_eq!([&locked["event"], &locked["lock"]["id"]], [&json!("lock"), &lock["id"]]);
    world.call("local", "DELETE", &format!("/v1/locks/{}", lock["id"].as_str().unwrap()), &Value::Null);
    assert_eq!(watching.next()["event"], "unlock");
    let bookmark = watching.line();
    assert_eq!(bookmark["event"], "bookmark");
    assert!(bookmark["revision"].as_u64() > lock["revision"].as_u64(), "{bookmark}");
    // From before, everything again.
    let since = ended["revision"].as_u64().unwrap() - 2;
    let mut again = Watching::start(&world, &format!("?since={since}"));
    let events: Vec<String> = (0..4).map(|_| again.next()["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["grant", "ended", "lock", "unlock"]);
}

#[test]
fn only_who_may_see_all_watches_and_a_stop_ends_it() {
    let mut world = World::start();
    assert_eq!(world.call("bot", "GET", "/v1/watch", &Value::Null).status, 403);
    assert_eq!(world.call("local", "GET", "/v1/watch?since=9999", &Value::Null).status, 400);
    let mut watching = Watching::start(&world, "");
    let control = world.control.take().unwrap();
    world.runtime.block_on(control.stop());
    watching.0.rest();
}
