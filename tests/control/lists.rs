//! Lists: pages, filters, and what is not the caller's to see.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::plane::Plane;

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// BI-API-024.
#[test]
fn pages_hold_each_once_and_a_token_is_good_for_its_caller_and_question() {
    let plane = Plane::start();
    let made: BTreeSet<String> = (0..12)
        .map(|n| plane.ask(&format!("agent-{n}"), "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned())
        .collect();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = plane.done("root", "GET", &format!("/v1/grants?page_size=5{token}"), &Value::Null);
        seen.extend(ids(&page));
        let Some(next) = page["next_page_token"].as_str() else { break };
        token = format!("&page_token={next}");
        for (who, target) in [
            ("local", format!("/v1/grants?page_size=5{token}")),
            ("root", format!("/v1/grants?state=active{token}")),
            ("root", format!("/v1/requests?page_size=5{token}")),
            ("root", format!("/v1/grants?page_size=5{token}A")),
        ] {
            plane.refused(who, "GET", &target, &Value::Null, 400, "page_token");
        }
    }
    assert_eq!(seen.len(), 12);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), made);
    for (query, code) in [
        ("page_size=0", "page_size"),
        ("page_size=501", "page_size"),
        ("page_size=-1", "invalid_query"),
        ("page_size=5&page_size=5", "invalid_query"),
        ("cursor=abc", "invalid_query"),
        ("page_token=%00", "page_token"),
        ("relation=all", "invalid_query"),
        ("principal=nobody", "invalid_field"),
    ] {
        plane.refused("root", "GET", &format!("/v1/grants?{query}"), &Value::Null, 400, code);
    }
}

/// BI-API-025.
#[test]
fn a_caller_sees_what_is_theirs() {
    let plane = Plane::start();
    let of_bot = plane.ask("bot", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let of_agent = plane.ask("agent-1", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let list = |who: &str, query: &str| ids(&plane.done(who, "GET", &format!("/v1/grants{query}"), &Value::Null));
    assert_eq!(list("bot", ""), std::slice::from_ref(&of_bot));
    assert_eq!(list("agent-1", ""), [of_agent]);
    assert_eq!(list("agent-2", ""), [""; 0]);
    // The owner answers for both.
    assert_eq!(list("alice", "").len(), 2);
    assert_eq!(list("root", "?relation=mine"), [""; 0]);
    assert_eq!(list("root", "?principal=https://idp.test%23bot"), std::slice::from_ref(&of_bot));
    assert_eq!(list("root", "?entitlement=watch&backend=shop&state=active").len(), 2);
    assert_eq!(list("root", "?backend=other"), [""; 0]);
    for (method, verb, body) in [
        ("GET", "", Value::Null),
        ("POST", "/revoke", json!({})),
        ("POST", "/release", json!({})),
        ("POST", "/reduce", json!({"uses_max": 1})),
    ] {
        plane.refused("agent-2", method, &format!("/v1/grants/{of_bot}{verb}"), &body, 404, "not_found");
    }
    plane.refused("agent-2", "POST", "/v1/revocations", &json!({"grant": of_bot}), 404, "not_found");
    plane.refused(
        "agent-2",
        "POST",
        "/v1/revocations",
        &json!({"principal": "https://idp.test#bot"}),
        403,
        "not_an_admin",
    );
    let request = plane.ask("bot", "read", &json!({}))["id"].as_str().unwrap().to_owned();
    plane.refused("agent-2", "GET", &format!("/v1/requests/{request}"), &Value::Null, 404, "not_found");
    assert_eq!(plane.done("local", "GET", &format!("/v1/grants/{of_bot}"), &Value::Null)["state"], "active");
}

#[test]
fn what_one_may_ask_for_is_listed_and_nothing_else() {
    let plane = Plane::start();
    let names = |who: &str| -> Vec<String> {
        let page = plane.done(who, "GET", "/v1/entitlements", &Value::Null);
        let name = |item: &Value| item["metadata"]["name"].as_str().unwrap().to_owned();
        page["items"].as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(names("bot").len(), 5);
    assert_eq!(names("bob"), [""; 0]);
    assert_eq!(plane.done("bot", "GET", "/v1/policies", &Value::Null)["items"], json!([]));
    plane.refused("bot", "GET", "/v1/entitlements/read", &Value::Null, 403, "not_an_admin");
    assert_eq!(plane.done("root", "GET", "/v1/entitlements/read", &Value::Null)["metadata"]["generation"], 1);
}

#[test]
fn many_are_revoked_at_once() {
    let plane = Plane::start();
    for n in 0..20 {
        plane.ask(&format!("agent-{n}"), "watch", &json!({"task": "pagerduty:P1"}));
    }
    let other = plane.ask("bot", "watch", &json!({"task": "pagerduty:P2"}));
    plane.refused("root", "POST", "/v1/revocations", &json!({}), 400, "empty_selector");
    let ended =
        plane.done("root", "POST", "/v1/revocations", &json!({"task": "pagerduty:P1", "reason": "wrong incident"}));
    assert_eq!(ended["ended"].as_array().unwrap().len(), 20);
    let other = plane.done("bot", "GET", &format!("/v1/grants/{}", other["grant_id"].as_str().unwrap()), &Value::Null);
    assert_eq!(other["state"], "active");
    let said = plane
        .record()
        .iter()
        .filter(|e| e["event"] == "grant.revoked" && e["detail"]["words"] == "wrong incident")
        .count();
    assert_eq!(said, 20);
}

#[test]
fn a_lock_says_which_calls_it_stops() {
    let plane = Plane::start();
    for wrong in [json!({}), json!({"message": "stop"}), json!({"all": true, "backend": "shop"}), json!({"all": false})]
    {
        plane.refused("root", "POST", "/v1/locks", &wrong, 400, "which_calls");
    }
    plane.refused("root", "POST", "/v1/locks", &Value::Null, 400, "malformed_json");
    plane.refused(
        "root",
        "POST",
        "/v1/locks",
        &json!({"all": true, "expires_at": "2001-01-01T00:00:00Z"}),
        400,
        "lock_is_over",
    );
    plane.refused("root", "POST", "/v1/locks", &json!({"all": true, "revision": 3}), 400, "invalid_field");
    plane.refused("bob", "POST", "/v1/locks", &json!({"all": true}), 403, "not_an_admin");
    let mut lock = plane.done("root", "POST", "/v1/locks", &json!({"all": true, "message": "stop"}));
    assert!(lock.as_object_mut().unwrap().remove("revision").is_some_and(|revision| revision.is_u64()));
    assert_eq!(plane.done("root", "GET", "/v1/locks", &Value::Null)["items"], json!([lock]));
}
