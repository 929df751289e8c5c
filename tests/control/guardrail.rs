//! Guardrails beside the control plane: what is applied is enforced at the next call, and on what runs.

use serde_json::{Value, json};

use crate::beside::open_stream;
use crate::common::wait_for;
use crate::plane::Plane;

const NO_EVENTS: &str = r#"@id("no-events") @reason("the shop is closed")
    forbid(principal in Leasehold::Group::"bots", action == Leasehold::Action::"event.watch", resource in Leasehold::Backend::"shop");"#;

fn policy(mode: &str, cedar: &str) -> Value {
    json!({
        "apiVersion": "leasehold/v1", "kind": "Policy", "metadata": {"name": "closed"},
        "spec": {"target": "guardrail", "mode": mode, "cedar": cedar},
    })
}

#[track_caller]
fn apply(plane: &Plane, mode: &str, cedar: &str) {
    plane.done("root", "POST", "/v1/apply", &json!({"documents": [policy(mode, cedar)]}));
}

/// A problem of the sidecar's, once a guardrail stops the call.
#[track_caller]
fn stopped(plane: &Plane, who: &str, target: &str) -> Value {
    wait_for("a guardrail", || {
        let answer = plane.through(who, "GET", target);
        (answer.status == 403 && answer.reason() == "guardrail").then(|| answer.json())
    })
}

/// Waits for a call that ended for this reason, or was cut by it.
#[track_caller]
fn recorded(plane: &Plane, field: &str, value: &str) -> Value {
    wait_for("the record", || plane.calls().into_iter().find(|call| call[field] == value))
}

#[test]
fn a_guardrail_stops_the_next_call_and_cuts_what_runs() {
    let plane = Plane::start();
    let grant = plane.ask("bot", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let mut stream = open_stream(&plane);
    apply(&plane, "enforce", NO_EVENTS);
    let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
    assert!(rest.contains("\"reason\":\"guardrail\""), "{rest}");
    let problem = stopped(&plane, "bot", "/events");
    assert_eq!(problem["type"], "urn:leasehold:problem:guardrail");
    assert_eq!(problem["policies"], json!([{"document": "closed", "id": "no-events"}]));
    assert_eq!((&problem["detail"], &problem["grant"]), (&json!("the shop is closed"), &json!(grant)));
    assert_eq!(problem["next"]["action"], "none");
    for (field, value) in [("cut_by", "guardrail"), ("reason", "guardrail")] {
        let call = recorded(&plane, field, value);
        assert_eq!((&call["guardrails"], &call["grant"]), (&json!(["closed/no-events"]), &json!(grant)), "{call}");
    }
    // The grant lives on, and what would come of a call is foretold as it is.
    assert_eq!(plane.done("bot", "GET", &format!("/v1/grants/{grant}"), &Value::Null)["state"], "active");
    let call =
        json!({"principal": "https://idp.test#bot", "backend": "shop", "action": "event.watch", "resource": "events"});
    let foretold = plane.done("bot", "POST", "/v1/policy-simulations", &call);
    assert_eq!((&foretold["reason"], &foretold["guardrails"]), (&json!("guardrail"), &json!(["no-events"])));
    assert_eq!(plane.call("root", "DELETE", "/v1/policies/closed", &Value::Null).status, 204);
    drop(open_stream(&plane));
    assert!(plane.metrics().contains("leasehold_guardrails_broken 0"));
}

#[test]
fn a_guardrail_is_in_force_again_after_a_restart() {
    let mut plane = Plane::start();
    plane.ask("bot", "watch", &json!({}));
    drop(open_stream(&plane));
    apply(&plane, "enforce", NO_EVENTS);
    plane.restart();
    // From the first call on: there was no moment without it.
    assert_eq!(plane.through("bot", "GET", "/events").reason(), "guardrail");
}

#[test]
fn who_is_in_a_group_is_followed() {
    let plane = Plane::start();
    plane.ask("bot", "watch", &json!({}));
    apply(&plane, "enforce", &NO_EVENTS.replace("\"bots\"", "\"suspects\""));
    let mut stream = open_stream(&plane);
    let bot = json!({
        "apiVersion": "leasehold/v1", "kind": "Principal", "metadata": {"name": "bot"},
        "spec": {"principal": "https://idp.test#bot", "type": "ci", "groups": ["bots", "suspects"], "owner": "https://idp.test#alice"},
    });
    plane.done("root", "PUT", "/v1/principals/bot", &bot);
    let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
    assert!(rest.contains("\"reason\":\"guardrail\""), "{rest}");
    stopped(&plane, "bot", "/events");
}

#[test]
fn in_shadow_it_is_counted_and_lets_pass() {
    let plane = Plane::start();
    plane.ask("bot", "watch", &json!({}));
    let before = open_stream(&plane);
    apply(&plane, "shadow", NO_EVENTS);
    let shadow = wait_for("a call that shadow speaks of", || {
        drop(open_stream(&plane));
        plane.calls().into_iter().find(|call| call["shadow"] == json!(["closed/no-events"]))
    });
    assert_eq!((&shadow["decision"], &shadow["reason"]), (&json!("permit"), &json!("granted")));
    let metrics = plane.metrics();
    let counted = metrics.lines().find(|line| line.starts_with("leasehold_guardrail_shadow_denies_total"));
    let line = counted.unwrap_or_else(|| panic!("{metrics}"));
    assert!(line.contains("{policy=\"no-events\"} ") && !line.ends_with(" 0"), "{line}");
    drop(before);
    assert!(!plane.calls().iter().any(|call| call["cut_by"] == "guardrail"));
}

#[test]
fn a_broken_one_is_refused_and_the_last_good_one_stays() {
    let plane = Plane::start();
    plane.ask("bot", "watch", &json!({}));
    apply(&plane, "enforce", NO_EVENTS);
    stopped(&plane, "bot", "/events");
    for bad in [
        format!("{NO_EVENTS} forbid("),
        NO_EVENTS.replace("event.watch", "event.wach"),
        NO_EVENTS.replacen("forbid", "permit", 1),
        NO_EVENTS.replace("@reason", "@because"),
        NO_EVENTS.replace("\"shop\"", "\"shoe\""),
    ] {
        let sent = json!({"documents": [policy("enforce", &bad)]});
        plane.refused("root", "POST", "/v1/apply", &sent, 400, "documents");
    }
    assert_eq!(plane.through("bot", "GET", "/events").reason(), "guardrail");
    assert!(plane.metrics().contains("leasehold_guardrails_broken 0"));
}
