//! Changes as they happen: all of them, or those of the grants that are the caller's.

use serde_json::{Value, json};

use crate::common::client::Client;
use crate::world::World;

/// The lines of a stream, read as JSON.
struct Watching(Client);

impl Watching {
    fn start(world: &World, query: &str) -> Self {
        Self::start_as("local", world, query)
    }

    fn start_as(who: &str, world: &World, query: &str) -> Self {
        let mut client = Client::connect(world.api());
        let token = world.token(who);
        let more = format!("authorization: Bearer {token}\r\nconnection: close");
        let head = format!("GET /v1/watch{query} HTTP/1.1\r\nhost: x\r\n{more}\r\n\r\n");
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

/// Somebody else who asks, and whom `alice` answers for as she does for the bot.
fn declare_others(world: &World) {
    for (name, kind, groups, owner) in [
        ("alice", "user", json!([]), Value::Null),
        ("bot", "ci", json!(["bots"]), json!("https://idp.test#alice")),
        ("other", "ci", json!(["bots"]), Value::Null),
    ] {
        declare(world, name, &json!({"type": kind, "groups": groups, "owner": owner}));
    }
}

fn declare(world: &World, name: &str, more: &Value) {
    let mut spec = more.clone();
    spec["principal"] = json!(format!("https://idp.test#{name}"));
    if spec["owner"].is_null() {
        spec.as_object_mut().unwrap().remove("owner");
    }
    let document = json!({"apiVersion": "leasehold/v1", "kind": "Principal", "metadata": {"name": name}, "spec": spec});
    world.done("local", "PUT", &format!("/v1/principals/{name}"), &document);
}

#[test]
fn whoever_is_no_admin_watches_the_grants_they_hold_or_answer_for() {
    let world = World::start();
    declare_others(&world);
    let before = world.grant("shop-read");
    let mut watching = ["bot", "alice", "other"].map(|who| Watching::start_as(who, &world, ""));
    // Locks, documents and the grants of others are not theirs.
    let lock = world.done("local", "POST", "/v1/locks", &json!({"backend": "bank", "message": "stop"}));
    world.call("local", "DELETE", &format!("/v1/locks/{}", lock["id"].as_str().unwrap()), &Value::Null);
    declare(&world, "new", &json!({"type": "ci"}));
    let of = |who: &str| {
        let request = world.done(who, "POST", "/v1/requests", &json!({"entitlement": "shop-read"}));
        request["grant_id"].as_str().unwrap().to_owned()
    };
    let (bots, others) = (of("bot"), of("other"));
    for grant in [&before, &others, &bots] {
        world.done("local", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    }
    let mut told = |place: usize, many: usize| -> Vec<(String, String)> {
        let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        let lines = (0..many).map(|_| watching[place].next());
        lines.map(|line| (text(&line, "event"), text(&line, "id"))).collect()
    };
    let line = |event: &str, id: &str| (event.to_owned(), id.to_owned());
    let theirs = vec![line("grant", &bots), line("ended", &before), line("ended", &bots)];
    assert_eq!(told(0, 3), theirs);
    assert_eq!(told(1, 3), theirs, "she answers for the bot");
    assert_eq!(told(2, 2), [line("grant", &others), line("ended", &others)]);
    // From the beginning, the same and what came before; and to a bookmark nothing else.
    let mut again = Watching::start_as("bot", &world, "?since=0");
    let events: Vec<_> = (0..4).map(|_| again.line()["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["grant", "grant", "ended", "ended"]);
    assert_eq!(again.line()["event"], "bookmark");
}

#[test]
fn who_is_nobody_watches_nothing_and_who_is_it_no_more_is_told_no_more() {
    let world = World::start();
    declare_others(&world);
    let refused = world.call("nobody", "GET", "/v1/watch", &Value::Null);
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("unknown_principal")));
    assert_eq!(world.call("bot", "GET", "/v1/watch?since=9999", &Value::Null).status, 400);
    let mut watching: Vec<_> = (0..4).map(|_| Watching::start_as("bot", &world, "")).collect();
    let refused = world.call("bot", "GET", "/v1/watch", &Value::Null);
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("too_many_watchers")));
    let others = Watching::start_as("other", &world, "");
    // Whom nobody knows any more is not told that what they held ended.
    let held = world.grant("shop-read");
    assert_eq!(watching[0].next()["id"], held.as_str());
    declare(&world, "bot", &json!({"type": "ci", "groups": ["bots"], "disabled": true}));
    let rest = String::from_utf8_lossy(&watching[0].0.rest()).into_owned();
    assert!(!rest.contains("ended"), "{rest}");
    assert_eq!(world.call("bot", "GET", "/v1/watch", &Value::Null).status, 403);
    drop(others);
}

#[test]
fn what_is_too_far_is_refused_and_a_stop_ends_it() {
    let mut world = World::start();
    assert_eq!(world.call("local", "GET", "/v1/watch?since=9999", &Value::Null).status, 400);
    let mut watching = Watching::start(&world, "");
    let control = world.control.take().unwrap();
    world.runtime.block_on(control.stop());
    watching.0.rest();
}
