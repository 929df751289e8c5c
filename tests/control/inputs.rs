//! What nobody should send: a clear problem, nothing changed, nothing leaked.

use serde_json::{Value, json};

use crate::plane::{Plane, is_problem};

/// BI-API-018, -019, -020, -021.
#[test]
fn bodies_that_have_no_one_reading() {
    let plane = Plane::start();
    let before = plane.record().len();
    let fields = format!("authorization: Bearer {}\r\ncontent-type: application/json\r\n", plane.token("bot"));
    let send = |body: &[u8]| plane.send("POST", "/v1/requests", &fields, body);
    for (body, code) in [
        (&br#"{"entitlement":"read","Entitlement":"break-glass"}"#[..], "invalid_body"),
        (br#"{"entitlement":"read","entitlement":"break-glass"}"#, "malformed_json"),
        (br#"{"entitlement":"read"} {}"#, "malformed_json"),
        (br#"["read"]"#, "malformed_json"),
        (br#"{"entitlement":"read""#, "malformed_json"),
        (b"\xff\xfe{}", "malformed_json"),
        (br#"{"entitlement":"read","duration_seconds":1e9}"#, "invalid_body"),
        (br#"{"entitlement":"read","duration_seconds":60.5}"#, "invalid_body"),
        (br#"{"entitlement":"read","duration_seconds":"60"}"#, "invalid_body"),
        (br#"{"entitlement":"read","duration_seconds":-1}"#, "invalid_body"),
        (br#"{"entitlement":"read","duration_seconds":0}"#, "duration"),
        (br#"{"entitlement":"read","duration_seconds":1000000000}"#, "duration"),
        (br#"{"entitlement":"read","uses":0}"#, "uses"),
        (br#"{"entitlement":"read","uses":4294967296}"#, "invalid_body"),
        (br#"{"entitlement":"read","approver":"x"}"#, "invalid_body"),
        (br#"{"entitlement":"r e a d"}"#, "invalid_field"),
        ("{\"entitlement\":\"re\u{430}d\"}".as_bytes(), "invalid_field"),
        (br#"{"entitlement":"read","task":"no source"}"#, "invalid_field"),
        (br#"{"entitlement":"read","subject":"bot"}"#, "invalid_field"),
        (br#"{"entitlement":"read","actions":[]}"#, "empty_scope"),
        (br#"{}"#, "invalid_body"),
        (b"", "malformed_json"),
    ] {
        is_problem(&send(body), 400, code, &String::from_utf8_lossy(body));
    }
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    is_problem(&send(deep.as_bytes()), 400, "malformed_json", "very deep");
    let deep = format!("{{\"entitlement\":{}1{}}}", "[".repeat(80), "]".repeat(80));
    is_problem(&send(deep.as_bytes()), 400, "malformed_json", "too deep");
    let large = format!("{{\"entitlement\":\"read\",\"justification\":\"{}\"}}", "x".repeat(300_000));
    is_problem(&send(large.as_bytes()), 413, "body_too_large", "too large");
    let long = format!("{{\"entitlement\":\"read\",\"justification\":\"{}\"}}", "x".repeat(2_001));
    is_problem(&send(long.as_bytes()), 400, "justification_too_long", "too long");
    let other = format!("authorization: Bearer {}\r\ncontent-type: text/plain\r\n", plane.token("bot"));
    let answer = plane.send("POST", "/v1/requests", &other, b"{\"entitlement\":\"read\"}");
    is_problem(&answer, 415, "unsupported_media_type", "text");
    assert_eq!(plane.record().len(), before, "nothing was changed");
}

/// BI-API-006, -012.
#[test]
fn a_scope_is_within_the_entitlements() {
    let plane = Plane::start();
    for more in [
        json!({"resources": ["**"]}),
        json!({"resources": ["allowed/a", "admin"]}),
        json!({"actions": ["*"]}),
        json!({"actions": ["admin"]}),
    ] {
        let mut body = json!({"entitlement": "read"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        plane.refused("bot", "POST", "/v1/requests", &body, 403, "scope_too_wide");
    }
    plane.refused("bot", "POST", "/v1/requests", &json!({"entitlement": "nothing"}), 404, "not_found");
    let refused = plane.ask("bob", "watch", &json!({}));
    assert_eq!(
        (refused["state"].as_str(), refused["ruling"]["verdict"].as_str()),
        (Some("denied"), Some("deny")),
        "not eligible"
    );
    // What was asked never changes.
    let request = plane.ask("bot", "read", &json!({}))["id"].as_str().unwrap().to_owned();
    for method in ["PATCH", "PUT", "DELETE"] {
        let answer = plane.call("bot", method, &format!("/v1/requests/{request}"), &json!({"resources": ["**"]}));
        is_problem(&answer, 405, "method_not_allowed", method);
    }
}

fn declared(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "leasehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Documents that are each wrong in one way. BI-API-022, -033, -034.
fn wrong_documents() -> Vec<Value> {
    let document = declared;
    let principal = |principal: &str| json!({"principal": principal, "type": "user"});
    let policy = |cedar: &str| json!({"target": "elevation", "cedar": cedar});
    vec![
        document("Principal", "x", json!({"principal": "https://idp.test#*evil*", "type": "user"})),
        document(
            "Principal",
            "x",
            json!({"principal": "https://idp.test#x", "type": "user", "groups": ["\u{430}dmins"]}),
        ),
        document("Principal", "x", json!({"principal": "https://idp.test#x", "type": "user", "admin": true})),
        document("Principal", "n\u{430}me", principal("https://idp.test#x")),
        document("Principal", "other-bot", principal("https://idp.test#bot")),
        document(
            "Entitlement",
            "e",
            json!({"backend": "nothing", "actions": ["a"], "resources": ["b"], "eligible": ["bots"], "duration_max": "5m"}),
        ),
        document(
            "Entitlement",
            "e",
            json!({"backend": "shop", "actions": ["no.action"], "resources": ["b"], "eligible": ["bots"], "duration_max": "5m"}),
        ),
        document(
            "Entitlement",
            "e",
            json!({"backend": "shop", "actions": ["admin"], "resources": ["admin"], "eligible": ["bots"], "duration_max": "48h"}),
        ),
        document(
            "Entitlement",
            "e",
            json!({"backend": "shop", "actions": ["*"], "resources": ["**"], "eligible": ["bots"], "duration_max": "5m"}),
        ),
        document("Policy", "p", policy("permit(principal, action, resource);")),
        document("Policy", "p", policy("@id(\"all\") permit(principal, action, resource);")),
        document(
            "Policy",
            "p",
            policy(
                "@id(\"x\") @colour(\"red\") forbid(principal, action == Leasehold::Action::\"elevation:request\", resource);",
            ),
        ),
        document(
            "Policy",
            "p",
            policy(
                "@id(\"automatic\") forbid(principal, action == Leasehold::Action::\"elevation:request\", resource);",
            ),
        ),
        document(
            "Policy",
            "p",
            policy("@id(\"x\") forbid(principal, action == Leasehold::Action::\"nobody:does\", resource);"),
        ),
        document(
            "Policy",
            "p",
            policy(
                "@id(\"x\") forbid(principal, action == Leasehold::Action::\"elevation:request\", resource) when { context.nothing };",
            ),
        ),
        json!({"apiVersion": "leasehold/v2", "kind": "Principal", "metadata": {"name": "x"}, "spec": principal("https://idp.test#x")}),
    ]
}

#[test]
fn documents_come_into_force_all_or_none() {
    let plane = Plane::start();
    let principal = json!({"principal": "https://idp.test#eve", "type": "user"});
    let good = declared("Principal", "eve", principal);
    for bad in wrong_documents() {
        plane.refused("root", "POST", "/v1/apply", &json!({"documents": [good, bad]}), 400, "documents");
        plane.refused("root", "GET", "/v1/principals/eve", &Value::Null, 404, "not_found");
    }
    for bad in [json!({"documents": [{"kind": "Secret"}]}), json!({"documents": {}}), json!({"documents": [good, 1]})] {
        plane.refused("root", "POST", "/v1/apply", &bad, 400, "invalid_body");
    }
    plane.refused("root", "POST", "/v1/apply", &json!({"documents": [good, good]}), 400, "twice");
    plane.refused("bob", "POST", "/v1/apply", &json!({"documents": [good]}), 403, "not_an_admin");
    plane.refused("root", "PUT", "/v1/principals/other", &good, 400, "another_document");
    plane.refused("root", "GET", "/v1/secrets/x", &Value::Null, 404, "not_found");
    assert_eq!(
        plane.done("root", "POST", "/v1/apply", &json!({"documents": [good]}))["results"][0]["result"],
        "created"
    );
    assert_eq!(
        plane.done("root", "POST", "/v1/apply", &json!({"documents": [good]}))["results"][0]["result"],
        "unchanged"
    );
}

#[test]
fn proofs_that_are_none() {
    let plane = Plane::start();
    let good = plane.token("bot");
    let (signed, _) = good.rsplit_once('.').unwrap();
    let first = plane.send("GET", "/v1/grants", "", b"");
    is_problem(&first, 401, "unauthenticated", "nothing shown");
    assert_eq!(first.header("www-authenticate"), Some("Bearer"));
    for fields in [
        "authorization: Bearer \r\n".to_owned(),
        "authorization: Basic YTpi\r\n".to_owned(),
        format!("authorization: Bearer {signed}.AAAA\r\n"),
        format!("authorization: Bearer {good}\r\nauthorization: Bearer {good}\r\n"),
        format!("authorization: Bearer {}x\r\n", plane.local),
        format!("authorization: Bearer {}\r\n", &plane.local[..plane.local.len() - 1]),
        "authorization: Bearer lha_\r\n".to_owned(),
        "x-leasehold-principal: https://idp.test#root\r\n".to_owned(),
    ] {
        let answer = plane.send("GET", "/v1/grants", &fields, b"");
        is_problem(&answer, 401, "unauthenticated", &fields);
        assert_eq!(answer.body, first.body, "the same for every cause");
    }
    plane.refused("stranger", "GET", "/v1/grants", &Value::Null, 403, "unknown_principal");
    let who = plane.done("stranger", "GET", "/v1/whoami", &Value::Null);
    assert_eq!((who["principal"].as_str(), who["admin"].as_bool()), (Some("https://idp.test#stranger"), Some(false)));
}

#[test]
fn a_caller_has_so_many_calls_a_second() {
    let plane = Plane::start_with("  login: {issuer: 'https://idp.test', client_id: cli}");
    let login = plane.send("GET", "/v1/login", "", b"").json();
    assert_eq!(login, json!({"issuer": "https://idp.test", "client_id": "cli", "scopes": ["openid"]}));
    drop(plane);
    let limited = Plane::start_limited(2);
    let answers: Vec<u16> = (0..20).map(|_| limited.call("bot", "GET", "/v1/whoami", &Value::Null).status).collect();
    assert!(answers.contains(&429) && answers[0] == 200, "{answers:?}");
    let answer = (0..20).map(|_| limited.call("bot", "GET", "/v1/whoami", &Value::Null)).find(|a| a.status == 429);
    let answer = answer.unwrap();
    is_problem(&answer, 429, "too_many_calls", "a flood");
    assert_eq!((answer.header("retry-after"), &answer.json()["retryable"]), (Some("1"), &json!(true)));
    assert_eq!(limited.call("bob", "GET", "/v1/whoami", &Value::Null).status, 200, "nobody else's");
}
