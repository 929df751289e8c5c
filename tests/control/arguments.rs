//! Elevations for one exact call, from asking for one to making it.

use leasehold::app::arguments;
use serde_json::{Value, json};

use crate::common::client::{Answer, Client};
use crate::common::wait_for;
use crate::plane::{Plane, is_problem};

const BODY: &str = r#"{"q":"4711"}"#;

fn digest(target: &str, body: &str) -> String {
    arguments::digest("POST", target, Some("application/json"), body.as_bytes()).unwrap().to_string()
}

/// A call of the bot's through the sidecar, with a body.
fn post(plane: &Plane, target: &str, body: &str) -> Answer {
    let mut client = Client::connect(plane.sidecar);
    let (host, token, length) = (plane.sidecar, plane.token("bot"), body.len());
    let fields = format!("content-type: application/json\r\ncontent-length: {length}\r\n");
    let head = format!("POST {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{fields}\r\n");
    client.send(format!("{head}{body}").as_bytes());
    client.answer_to("POST").expect("an answer of the sidecar")
}

#[test]
fn one_call_is_asked_for_made_once_and_recorded() {
    let plane = Plane::start();
    let call = digest("/upload?limit=1", BODY);
    let request = plane.ask("bot", "once", &json!({"arguments": call}));
    assert_eq!((&request["arguments"], &request["state"]), (&json!(call), &json!("approved")));
    let grant = request["grant_id"].as_str().unwrap().to_owned();
    let target = format!("/v1/grants/{grant}");
    assert_eq!(plane.done("bot", "GET", &target, &Value::Null)["arguments"], json!(call));
    let other = wait_for("the grant at the sidecar", || {
        Some(post(&plane, "/upload?limit=2", BODY)).filter(|answer| answer.reason() == "arguments_differ")
    });
    assert_eq!(other.json()["arguments"], json!(digest("/upload?limit=2", BODY)));
    assert_eq!(post(&plane, "/upload?limit=1", r#"{"q":"4712"}"#).reason(), "arguments_differ");
    assert_eq!(plane.done("bot", "GET", &target, &Value::Null)["uses"], 0);
    assert_eq!(post(&plane, "/upload?limit=1", BODY).status, 200);
    assert_eq!(post(&plane, "/upload?limit=1", BODY).reason(), "exhausted");
    assert_eq!(plane.backend.seen().len(), 1);
    let entries = plane.record();
    let of = |event: &str| entries.iter().find(|entry| entry["event"] == event).unwrap();
    assert_eq!(of("request.approved")["detail"]["request"]["scope"]["arguments"], json!(call));
    assert_eq!(of("grant.active")["detail"]["grant"]["scope"]["arguments"], json!(call));
    let calls = wait_for("the records", || Some(plane.calls()).filter(|calls| calls.len() >= 4));
    assert!(calls.iter().any(|told| told["decision"] == "permit" && told["arguments"] == json!(call)), "{calls:?}");
}

#[test]
fn what_an_approver_sees_is_what_was_asked_for_and_never_changes() {
    let plane = Plane::start();
    let read = arguments::digest("GET", "/allowed/a", None, b"").unwrap().to_string();
    let key = "idempotency-key: k-1\r\n";
    let ask = |body: &Value| plane.call_with("bot", "POST", "/v1/requests", key, body);
    let asked = ask(&json!({"entitlement": "read", "arguments": read})).json();
    is_problem(&ask(&json!({"entitlement": "read"})), 409, "idempotency_key_reused", "the same for any call");
    let inbox = plane.done("bob", "GET", "/v1/requests?relation=can_approve", &Value::Null);
    assert_eq!(inbox["items"][0]["arguments"], json!(read));
    let grant = plane.approve("bob", &asked).json()["grant_id"].as_str().unwrap().to_owned();
    let reduce = format!("/v1/grants/{grant}/reduce");
    let other = digest("/a", "");
    for body in [json!({"arguments": other}), json!({"arguments": other, "resources": ["allowed/a"]})] {
        plane.refused("bot", "POST", &reduce, &body, 400, "would_widen");
    }
    let narrower = plane.done("bot", "POST", &reduce, &json!({"resources": ["allowed/*"]}));
    assert_eq!((&narrower["arguments"], &narrower["narrowed_from"]), (&json!(read), &json!(grant)));
    wait_for("the grant at the sidecar", || (plane.through("bot", "GET", "/allowed/a").status == 200).then_some(()));
    assert_eq!(plane.through("bot", "GET", "/allowed/b").reason(), "arguments_differ");

    let free = plane.ask("bot", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let bound = plane.done("bot", "POST", &format!("/v1/grants/{free}/reduce"), &json!({"arguments": read}));
    assert_eq!((&bound["arguments"], &bound["narrowed_from"]), (&json!(read), &json!(free)));
    let renewed = plane.ask("bot", "watch", &json!({"renews": bound["id"]}));
    assert_eq!(renewed["arguments"], json!(read));
}

#[test]
fn a_digest_that_is_none_is_refused_with_what_to_write() {
    let plane = Plane::start();
    for bad in ["", "4711", "sha256:", "sha512:00", &digest("/a", "").to_uppercase()] {
        let answer = plane.call("bot", "POST", "/v1/requests", &json!({"entitlement": "once", "arguments": bad}));
        is_problem(&answer, 400, "invalid_field", bad);
        assert!(answer.text().contains("sha256:"), "{}", answer.text());
    }
}

#[test]
fn whoever_asks_what_would_pass_says_with_which_arguments() {
    let plane = Plane::start();
    let call = digest("/upload", BODY);
    let grant = plane.ask("bot", "once", &json!({"arguments": call}))["grant_id"].clone();
    let simulated = |arguments: Option<&str>| {
        let mut call =
            json!({"principal": "https://idp.test#bot", "backend": "shop", "action": "upload", "resource": "upload"});
        if let Some(arguments) = arguments {
            call["arguments"] = json!(arguments);
        }
        plane.done("bot", "POST", "/v1/policy-simulations", &call)
    };
    let evaluated = |properties: Value| {
        let asked = json!({
            "subject": {"type": "principal", "id": "https://idp.test#bot"},
            "action": {"name": "upload", "properties": properties},
            "resource": {"type": "shop", "id": "upload"},
        });
        plane.done("bot", "POST", "/access/v1/evaluation", &asked)
    };
    let other = digest("/upload", "");
    for told in [simulated(None), simulated(Some(&other)), evaluated(json!({})), evaluated(json!({"arguments": other}))]
    {
        assert_eq!(told["decision"], false, "{told}");
        let reason = told.get("reason").or(told.pointer("/context/reason"));
        assert_eq!(reason, Some(&json!("arguments_differ")), "{told}");
    }
    assert_eq!(evaluated(json!({"arguments": 7}))["decision"], false);
    let passes = simulated(Some(&call));
    assert_eq!((&passes["decision"], &passes["grants"][0]), (&json!(true), &grant));
    assert_eq!(evaluated(json!({"arguments": call}))["decision"], true);
}
