//! A sidecar beside the control plane: what is granted passes, what ends is refused and cut.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::common::client::Client;
use crate::common::wait_for;
use crate::plane::Plane;

#[track_caller]
fn passes(plane: &Plane, who: &str, method: &str, target: &str) {
    wait_for("the call to pass", || (plane.through(who, method, target).status == 200).then_some(()));
}

#[track_caller]
fn denied(plane: &Plane, who: &str, method: &str, target: &str, reason: &str) {
    wait_for(&format!("`{reason}`"), || {
        let answer = plane.through(who, method, target);
        (answer.status == 403 && answer.reason() == reason).then_some(())
    });
}

#[test]
fn a_call_passes_from_the_approval_to_the_end_of_the_grant() {
    let plane = Plane::start();
    denied(&plane, "bot", "GET", "/allowed/a", "no_grant");
    let request = plane.ask("bot", "read", &json!({}));
    assert_eq!(plane.through("bot", "GET", "/allowed/a").status, 403, "pending is not granted");
    let grant = plane.approve("bob", &request).json()["grant_id"].as_str().unwrap().to_owned();
    passes(&plane, "bot", "GET", "/allowed/a");
    let seen = plane.backend.seen();
    assert_eq!(seen.last().unwrap().headers("authorization"), [format!("Bearer {}", plane.secret)]);
    assert_eq!(plane.through("agent-1", "GET", "/allowed/a").status, 403, "it is the bot's grant");
    assert_eq!(plane.through("bot", "GET", "/admin").status, 403, "it covers what was asked");

    let narrower =
        plane.done("bot", "POST", &format!("/v1/grants/{grant}/reduce"), &json!({"resources": ["allowed/a"]}));
    // The wider grant, whose place it took, was given back.
    denied(&plane, "bot", "GET", "/allowed/b", "released");
    passes(&plane, "bot", "GET", "/allowed/a");
    plane.done("bot", "POST", &format!("/v1/grants/{}/release", narrower["id"].as_str().unwrap()), &json!({}));
    denied(&plane, "bot", "GET", "/allowed/a", "released");
}

/// Something that ends a grant.
type End = fn(&Plane, &str);

#[test]
fn every_end_cuts_what_runs() {
    let plane = Plane::start();
    let ends: [(&str, End); 4] = [
        ("revoked", |plane, grant| {
            plane.done("root", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
        }),
        ("released", |plane, grant| {
            plane.done("bot", "POST", &format!("/v1/grants/{grant}/release"), &json!({}));
        }),
        ("revoked", |plane, _| {
            plane.done("root", "POST", "/v1/tasks/pagerduty:P1/close", &json!({}));
        }),
        ("lock", |plane, _| {
            plane.done("root", "POST", "/v1/locks", &json!({"backend": "shop", "message": "stop"}));
        }),
    ];
    for (number, (reason, end)) in ends.into_iter().enumerate() {
        let task = if number == 2 { json!({"task": "pagerduty:P1"}) } else { json!({}) };
        let grant = plane.ask("bot", "watch", &task)["grant_id"].as_str().unwrap().to_owned();
        let mut stream = open_stream(&plane);
        end(&plane, &grant);
        let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
        assert!(rest.contains(&format!("\"reason\":\"{reason}\"")), "{reason}: {rest}");
    }
}

/// A stream of events that runs.
pub fn open_stream(plane: &Plane) -> Client {
    let token = plane.token("bot");
    wait_for("a stream", || {
        let mut client = Client::connect(plane.sidecar);
        let host = plane.sidecar;
        client
            .send(format!("GET /events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n").as_bytes());
        let head = String::from_utf8_lossy(&client.until(b"\r\n\r\n")).into_owned();
        head.starts_with("HTTP/1.1 200").then_some(client)
    })
}

#[test]
fn the_sidecar_beside_it_counts_where_ends_are_enforced() {
    let plane = Plane::start();
    let grant = plane.ask("bot", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let revoked = plane.done("root", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    let target = format!("/v1/revocations/{}?wait=10s", revoked["revision"]);
    let said = plane.done("root", "GET", &target, &Value::Null)["enforcement"].clone();
    assert_eq!((said["state"].as_str(), said["enforced"].as_u64()), (Some("enforced"), Some(1)), "{said}");
    assert_eq!(plane.through("bot", "GET", "/events").status, 403, "it is enforced, and not only said to be");
    let listed = plane.done("root", "GET", "/v1/sidecars", &Value::Null);
    assert_eq!(listed["items"][0]["sidecar"], "urn:leasehold:local#sidecar", "{listed}");
}

#[test]
fn what_was_kept_is_in_force_again_after_a_restart() {
    let mut plane = Plane::start();
    let pending = plane.ask("bot", "read", &json!({}));
    let watch = plane.ask("bot", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let once = plane.ask("bot", "once", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let entries = plane.record().len();
    plane.restart();
    assert_eq!(plane.record().len(), entries + 1, "but for the local admin's login: declared again, nothing changed");
    passes_stream(&plane);
    // How often it was used, the control plane knows: not at all before the restart, and once after it.
    assert_eq!(plane.through("bot", "POST", "/upload").status, 200);
    denied(&plane, "bot", "POST", "/upload", "exhausted");
    for (id, state) in [(watch, "active"), (once, "exhausted")] {
        assert_eq!(plane.done("bot", "GET", &format!("/v1/grants/{id}"), &Value::Null)["state"], state);
    }
    assert_eq!(plane.approve("bob", &pending).json()["state"], "approved");
    passes(&plane, "bot", "GET", "/allowed/a");
}

#[test]
fn a_counted_grant_is_counted_by_the_control_plane_and_never_used_more_often_than_that() {
    let mut plane = Plane::start();
    let once = plane.ask("bot", "once", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    wait_for("the only use", || (plane.through("bot", "POST", "/upload").status == 200).then_some(()));
    assert_eq!(plane.through("bot", "POST", "/upload").reason(), "exhausted", "at once, and not when the news comes");
    let told = plane.done("bot", "GET", &format!("/v1/grants/{once}"), &Value::Null);
    assert_eq!((&told["state"], &told["uses"]), (&json!("exhausted"), &json!(1)), "{told}");
    plane.restart();
    denied(&plane, "bot", "POST", "/upload", "no_grant");
    let sent = plane.backend.seen().into_iter().filter(|seen| seen.line().starts_with("POST /upload")).count();
    assert_eq!(sent, 1);
}

fn passes_stream(plane: &Plane) {
    drop(open_stream(plane));
}

#[test]
fn what_would_pass_is_foretold() {
    let plane = Plane::start();
    plane.ask("bot", "watch", &json!({}));
    let question = |action: &str, resource: &str| json!({"subject": {"type": "ci", "id": "https://idp.test#bot"}, "action": {"name": action}, "resource": {"type": "shop", "id": resource}});
    for (who, action, resource, decision, reason) in [
        ("bot", "event.watch", "events", true, "granted"),
        ("bot", "event.watch", "other", false, "no_grant"),
        ("bot", "allowed.read", "allowed/a", false, "no_grant"),
        ("bot", "no.action", "x", false, "unmapped_action"),
        ("root", "event.watch", "events", true, "granted"),
        // Whoever may not ask about others learns nothing.
        ("agent-1", "event.watch", "events", false, "no_grant"),
    ] {
        let answer = plane.done(who, "POST", "/access/v1/evaluation", &question(action, resource));
        assert_eq!(
            (answer["decision"].as_bool(), answer["context"]["reason"].as_str()),
            (Some(decision), Some(reason)),
            "{who} {action} {resource}"
        );
    }
    let many = plane.done(
        "bot",
        "POST",
        "/access/v1/evaluations",
        &json!({
            "subject": {"type": "ci", "id": "https://idp.test#bot"}, "resource": {"type": "shop", "id": "events"},
            "evaluations": [{"action": {"name": "event.watch"}}, {"action": {"name": "admin"}}],
        }),
    );
    assert_eq!(
        [&many["evaluations"][0]["decision"], &many["evaluations"][1]["decision"]],
        [&json!(true), &json!(false)]
    );
    plane.done("root", "POST", "/v1/locks", &json!({"action": "event.watch", "message": "stop"}));
    let locked = plane.done(
        "bot",
        "POST",
        "/v1/policy-simulations",
        &json!({"principal": "https://idp.test#bot", "backend": "shop", "action": "event.watch", "resource": "events"}),
    );
    assert_eq!((locked["decision"].as_bool(), locked["reason"].as_str()), (Some(false), Some("lock")));
}

#[test]
fn the_local_admins_token_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let plane = Plane::start();
    let file = plane.path().join("leasehold.data/admin.token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(plane.local.len() > 40);
    assert!(TcpStream::connect(plane.api).is_ok());
}
