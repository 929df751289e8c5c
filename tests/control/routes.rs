//! Every route refuses: whoever shows nothing, whoever is nobody here, and whatever says what it should not.

use leasehold::control::api::document;
use serde_json::{Value, json};

use crate::plane::{Plane, is_problem};

/// Routes that answer whoever asks.
const OPEN: &[&str] = &["/v1/login", "/v1/openapi.json", "/.well-known/authzen-configuration"];

/// Routes that also answer who is nobody here.
const FOR_STRANGERS: &[&str] = &["/v1/whoami"];

fn routes() -> Vec<(String, String, Value)> {
    let described = serde_json::to_value(document()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in described["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if ["get", "post", "put", "delete"].contains(&method.as_str()) {
                routes.push((path.clone(), method.to_uppercase(), operation.clone()));
            }
        }
    }
    assert!(routes.len() >= 30, "only {} routes are described", routes.len());
    routes
}

fn target(path: &str) -> String {
    path.replace("{kinds}", "principals")
        .replace("{name}", "bot")
        .replace("{reference}", "jira:OPS-1")
        .replace("{id}", "xyz_1")
}

#[test]
fn every_route_has_its_refusals() {
    let plane = Plane::start();
    let before = plane.record().len();
    for (path, method, operation) in routes() {
        let target = target(&path);
        let what = format!("{method} {path}");
        if OPEN.contains(&path.as_str()) {
            continue;
        }
        is_problem(&plane.send(&method, &target, "", b""), 401, "unauthenticated", &what);
        if !FOR_STRANGERS.contains(&path.as_str()) {
            let answer = plane.call("stranger", &method, &target, &valid(&path, &method));
            assert!([403, 404].contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
            is_problem(&answer, answer.status, answer.json()["code"].as_str().unwrap(), &what);
        }
        if operation["requestBody"].is_object() && !path.starts_with("/access/") {
            plane.refused("local", &method, &target, &json!({"nobody": "knows this"}), 400, "invalid_body");
            let typed = format!("authorization: Bearer {}\r\ncontent-type: text/xml\r\n", plane.local);
            is_problem(&plane.send(&method, &target, &typed, b"<a/>"), 415, "unsupported_media_type", &what);
        }
        let queried = plane.call("local", &method, &format!("{target}?nobody=knows"), &valid(&path, &method));
        if operation["parameters"].as_array().is_some_and(|list| list.iter().any(|p| p["in"] == "query")) {
            is_problem(&queried, 400, "invalid_query", &what);
        }
        for other in ["PATCH", "TRACE"] {
            let answer = plane.call("local", other, &target, &Value::Null);
            is_problem(&answer, 405, "method_not_allowed", &format!("{other} {path}"));
        }
    }
    let changed: Vec<Value> = plane.record().drain(before..).filter(|entry| entry["event"] != "login").collect();
    assert_eq!(changed, [Value::Null; 0], "nothing was changed");
}

/// A body that is refused for who sends it and not for what it says.
fn valid(path: &str, method: &str) -> Value {
    match (method, path) {
        ("POST", "/v1/apply") => json!({"documents": []}),
        ("POST", "/v1/requests") => json!({"entitlement": "read"}),
        ("POST", "/v1/grants/{id}/consume") => json!({"use_id": "u"}),
        ("POST", "/v1/grants/{id}/review") => json!({"note": "n"}),
        ("POST", "/v1/locks") => json!({"all": true}),
        ("POST", "/v1/sidecars/join-tokens") => json!({"name": "a"}),
        ("POST", "/v1/revocations") => json!({"task": "jira:OPS-1"}),
        ("POST", "/v1/policy-simulations") => {
            json!({"principal": "https://idp.test#bot", "backend": "shop", "action": "admin", "resource": "admin"})
        }
        ("PUT", _) => {
            json!({"apiVersion": "leasehold/v1", "kind": "Principal", "metadata": {"name": "bot"}, "spec": {"principal": "https://idp.test#bot", "type": "ci"}})
        }
        ("POST", path) if path.starts_with("/access/v1/evaluations") => json!({"evaluations": []}),
        ("POST", path) if path.starts_with("/access/") => {
            json!({"subject": {"type": "bot", "id": "x#y"}, "action": {"name": "a"}, "resource": {"type": "shop", "id": "b"}})
        }
        ("POST", _) => json!({}),
        _ => Value::Null,
    }
}

#[test]
fn what_is_not_there_is_a_problem_too() {
    let plane = Plane::start();
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v2/grants",
        "/v1/grants/",
        "/debug/pprof",
        "/v1/grants/a/b/c",
        "/%2e%2e/v1",
    ] {
        plane.refused("local", "GET", path, &Value::Null, 404, "not_found");
    }
    for id in ["x y", "%ff", "..", "%00", &"x".repeat(300)] {
        let target = format!("/v1/grants/{}", id.replace(' ', "%20"));
        plane.refused("local", "GET", &target, &Value::Null, 404, "not_found");
    }
}
