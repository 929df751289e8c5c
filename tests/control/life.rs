//! The life of an elevation.

use serde_json::{Value, json};

use crate::plane::{Plane, is_problem};

#[test]
fn asked_agreed_used_and_given_back() {
    let plane = Plane::start();
    let request = plane.ask("bot", "read", &json!({"task": "jira:OPS-17", "justification": "the queue is stuck"}));
    assert_eq!(
        (request["state"].as_str(), request["subject"].as_str()),
        (Some("pending"), Some("https://idp.test#bot"))
    );
    assert_eq!(request["ruling"]["verdict"], "ask");
    let id = request["id"].as_str().unwrap();
    let target = format!("/v1/requests/{id}");

    // An agreement is to what was seen.
    plane.refused("bob", "POST", &format!("{target}/approve"), &json!({}), 428, "unconditional");
    let stale = plane.call_with("bob", "POST", &format!("{target}/approve"), "if-match: \"7\"\r\n", &json!({}));
    is_problem(&stale, 412, "changed", "a version that nobody saw");
    let approved = plane.approve("bob", &request).json();
    assert_eq!(approved["state"], "approved");
    let grant = approved["grant_id"].as_str().unwrap().to_owned();

    let shown = plane.done("bot", "GET", &format!("/v1/grants/{grant}"), &Value::Null);
    assert_eq!((shown["state"].as_str(), shown["task"].as_str()), (Some("active"), Some("jira:OPS-17")));
    let released = plane.done("bot", "POST", &format!("/v1/grants/{grant}/release"), &json!({}));
    assert_eq!(
        (released["state"].as_str(), released["ended"]["reason"].as_str()),
        (Some("released"), Some("released"))
    );

    // What ended stays ended, and each transition has one entry.
    plane.refused("bob", "POST", &format!("{target}/deny"), &json!({"reason": "late"}), 409, "already_decided");
    for (event, subject) in [
        ("request.pending", id),
        ("request.approved", id),
        ("grant.active", &grant),
        ("grant.released", &grant),
        ("task.mentioned", "jira:OPS-17"),
        ("login", "https://idp.test#bob"),
    ] {
        assert_eq!(plane.count(event, subject), 1, "{event}");
    }
    let timeline: Vec<Value> =
        plane.done("local", "GET", &target, &Value::Null)["timeline"].as_array().unwrap().clone();
    let events: Vec<&str> = timeline.iter().map(|moment| moment["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["asked", "agreed", "approved"]);
}

/// BI-API-001, -002.
#[test]
fn nobody_approves_their_own() {
    let plane = Plane::start();
    let own = plane.ask("bot", "read", &json!({}));
    is_problem(&plane.approve("alice", &own), 403, "approver_not_owner", "the owner of the bot");
    let other = plane.ask("agent-7", "read", &json!({}));
    assert_eq!(plane.approve("alice", &other).status, 200, "an owner who may");
    // Who asks for what they answer for is a requester like any other.
    let asked = plane.ask("alice", "read", &json!({"subject": "https://idp.test#agent-8"}));
    is_problem(&plane.approve("alice", &asked), 403, "self_approval", "who asked for another");
    is_problem(&plane.approve("agent-8", &asked), 403, "self_approval", "who is to hold it");
    is_problem(&plane.approve("dave", &asked), 404, "not_found", "who is in no group of the step");
    let pending = plane.done("local", "GET", &format!("/v1/requests/{}", asked["id"].as_str().unwrap()), &Value::Null);
    assert_eq!((pending["state"].as_str(), pending["version"].as_u64()), (Some("pending"), Some(1)), "nothing changed");
    plane.refused(
        "bob",
        "POST",
        "/v1/requests",
        &json!({"entitlement": "read", "subject": "https://idp.test#bot"}),
        403,
        "not_the_owner",
    );
}

/// BI-API-003.
#[test]
fn steps_and_quorums() {
    let plane = Plane::start();
    let body = json!({"entitlement": "delicate", "justification": "drop the old index"});
    plane.refused("bot", "POST", "/v1/requests", &body, 400, "task_required");
    plane.refused(
        "bot",
        "POST",
        "/v1/requests",
        &json!({"entitlement": "delicate", "task": "jira:A-1"}),
        400,
        "justification_required",
    );
    let request = plane.ask("bot", "delicate", &json!({"task": "jira:A-1", "justification": "drop the old index"}));
    is_problem(&plane.approve("dave", &request), 403, "not_an_approver", "the second step is not reached");
    assert_eq!(plane.approve("bob", &request).json()["state"], "pending");
    let again = plane.approve("bob", &request);
    assert_eq!(
        (again.status, again.json()["approvals"].as_array().unwrap().len()),
        (200, 1),
        "one approver counts once"
    );
    assert_eq!(plane.approve("carol", &request).json()["state"], "pending");
    let waiting = plane.done("dave", "GET", "/v1/requests?relation=can_approve", &Value::Null);
    assert_eq!(waiting["items"][0]["id"], request["id"], "it is in the inbox of the second step");
    let approved = plane.approve("dave", &request).json();
    assert_eq!((approved["state"].as_str(), approved["approvals"].as_array().unwrap().len()), (Some("approved"), 3));
}

#[test]
fn any_approver_may_say_no_and_the_requester_may_take_it_back() {
    let plane = Plane::start();
    let request = plane.ask("bot", "read", &json!({}));
    let target = format!("/v1/requests/{}", request["id"].as_str().unwrap());
    plane.refused("dave", "POST", &format!("{target}/deny"), &json!({"reason": "no"}), 404, "not_found");
    let denied = plane.done("carol", "POST", &format!("{target}/deny"), &json!({"reason": "not today"}));
    assert_eq!((denied["state"].as_str(), denied["reason"].as_str()), (Some("denied"), Some("not today")));
    is_problem(&plane.approve("bob", &request), 409, "already_decided", "it was denied");

    let request = plane.ask("bot", "read", &json!({}));
    let target = format!("/v1/requests/{}", request["id"].as_str().unwrap());
    plane.refused("bob", "POST", &format!("{target}/cancel"), &json!({}), 404, "not_found");
    assert_eq!(plane.done("bot", "POST", &format!("{target}/cancel"), &json!({}))["state"], "cancelled");
    plane.refused("bot", "POST", &format!("{target}/cancel"), &json!({}), 409, "already_decided");
}

#[test]
fn what_was_good_when_asked_is_asked_again_at_approval() {
    let plane = Plane::start();
    let closed = plane.ask("bot", "delicate", &json!({"task": "jira:A-2", "justification": "x"}));
    let over = plane.done("local", "POST", "/v1/tasks/jira:A-2/close", &json!({}));
    assert_eq!(over["task"]["open"], false);
    let shown = plane.done("bot", "GET", &format!("/v1/requests/{}", closed["id"].as_str().unwrap()), &Value::Null);
    assert_eq!((shown["state"].as_str(), shown["reason"].as_str()), (Some("cancelled"), Some("its task was closed")));
    plane.refused(
        "bot",
        "POST",
        "/v1/requests",
        &json!({"entitlement": "delicate", "task": "jira:A-2", "justification": "x"}),
        403,
        "task_closed",
    );

    let locked = plane.ask("bot", "read", &json!({}));
    let lock =
        plane.done("root", "POST", "/v1/locks", &json!({"principal": "https://idp.test#bot", "message": "offboarded"}));
    let denied = plane.approve("bob", &locked).json();
    assert_eq!(denied["state"], "denied");
    assert!(denied["reason"].as_str().unwrap().contains("offboarded"), "{denied}");
    plane.refused("bot", "POST", "/v1/requests", &json!({"entitlement": "read"}), 403, "lock");
    assert_eq!(
        plane.call("root", "DELETE", &format!("/v1/locks/{}", lock["id"].as_str().unwrap()), &Value::Null).status,
        204
    );

    let forbidden = plane.ask("bot", "read", &json!({}));
    let policy = json!({"documents": [{"apiVersion": "leasehold/v1", "kind": "Policy", "metadata": {"name": "freeze"}, "spec": {
        "target": "elevation", "cedar": "@id(\"freeze\") @reason(\"change freeze until Monday\") forbid(principal, action == Leasehold::Action::\"elevation:request\", resource);"}}]});
    plane.done("root", "POST", "/v1/apply", &policy);
    let denied = plane.approve("bob", &forbidden).json();
    assert_eq!(denied["reason"], "policy changed: change freeze until Monday");
    let refused = plane.ask("bot", "watch", &json!({}));
    assert_eq!(
        (refused["state"].as_str(), refused["ruling"]["determining"][0].as_str()),
        (Some("denied"), Some("freeze"))
    );
}

#[test]
fn a_grant_only_shrinks() {
    let plane = Plane::start();
    let request = plane.ask("bot", "read", &json!({"duration_seconds": 600}));
    let grant = plane.approve("bob", &request).json()["grant_id"].as_str().unwrap().to_owned();
    let target = format!("/v1/grants/{grant}");
    let shown = plane.done("bot", "GET", &target, &Value::Null);
    let reduce = format!("{target}/reduce");
    for (body, code) in [
        (json!({}), "would_widen"),
        (json!({"expires_at": "2099-01-01T00:00:00Z"}), "would_widen"),
        (json!({"resources": ["**"]}), "would_widen"),
        (json!({"actions": ["admin"]}), "would_widen"),
        (json!({"expires_at": "2001-01-01T00:00:00Z"}), "would_widen"),
    ] {
        plane.refused("bot", "POST", &reduce, &body, 400, code);
    }
    plane.refused("carol", "POST", &reduce, &json!({"resources": ["allowed/a"]}), 404, "not_found");
    assert_eq!(plane.done("bot", "GET", &target, &Value::Null), shown, "nothing changed");
    let narrower = plane.done("bot", "POST", &reduce, &json!({"resources": ["allowed/a"]}));
    assert_eq!(
        (narrower["narrowed_from"].as_str(), narrower["resources"][0].as_str()),
        (Some(&*grant), Some("allowed/a"))
    );
    assert_eq!(plane.done("bot", "GET", &target, &Value::Null)["ended"]["reason"], "superseded");
    assert_eq!(narrower["expires_at"], shown["expires_at"]);
}

#[test]
fn a_counted_grant_is_used_as_often_as_it_says_and_a_use_said_again_counts_once() {
    let plane = Plane::start();
    let grant = plane.ask("bot", "once", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let target = format!("/v1/grants/{grant}/consume");
    plane.refused("bot", "POST", &target, &json!({"use_id": "u1"}), 403, "not_an_admin");
    for _ in 0..2 {
        let used = plane.done("local", "POST", &target, &json!({"use_id": "u1"}));
        assert_eq!((used["state"].as_str(), used["uses"].as_u64()), (Some("exhausted"), Some(1)));
    }
    plane.refused("local", "POST", &target, &json!({"use_id": "u2"}), 409, "ended");
    plane.refused("local", "POST", &target, &json!({"use_id": ""}), 400, "use_id");
}

#[test]
fn break_glass_is_recorded_as_such_and_waits_for_a_review_by_another() {
    let plane = Plane::start();
    plane.refused("bot", "POST", "/v1/requests", &json!({"entitlement": "break-glass"}), 400, "justification_required");
    let request = plane.ask("bot", "break-glass", &json!({"justification": "the site is down"}));
    let grant = request["grant_id"].as_str().unwrap().to_owned();
    assert_eq!(request["emergency"], true);
    let open = plane.done("root", "GET", "/v1/grants?review=open", &Value::Null);
    assert_eq!(open["items"][0]["id"], json!(grant));
    let findings = plane.done("root", "GET", "/v1/doctor", &Value::Null);
    assert!(
        findings["findings"].as_array().unwrap().iter().any(|finding| finding["code"] == "review_open"),
        "{findings}"
    );
    let target = format!("/v1/grants/{grant}/review");
    plane.refused("bot", "POST", &target, &json!({"note": "fine"}), 403, "self_review");
    plane.refused("bob", "POST", &target, &json!({"note": "fine"}), 404, "not_found");
    plane.refused("root", "POST", &target, &json!({"note": " "}), 400, "note");
    let reviewed = plane.done("root", "POST", &target, &json!({"note": "a real outage"}));
    assert_eq!(
        (reviewed["review"]["state"].as_str(), reviewed["review"]["by"].as_str()),
        (Some("done"), Some("https://idp.test#root"))
    );
    plane.refused("root", "POST", &target, &json!({"note": "again"}), 409, "reviewed");
}

/// BI-API-035.
#[test]
fn the_same_key_is_the_same_request() {
    let plane = Plane::start();
    let key = "idempotency-key: k-1\r\n";
    let ask = |body: &Value| plane.call_with("bot", "POST", "/v1/requests", key, body);
    let first = ask(&json!({"entitlement": "read", "duration_seconds": 60}));
    assert_eq!(first.status, 202);
    // The order of keys and the space between them say nothing.
    let text = "{ \"duration_seconds\" : 60, \"entitlement\" : \"read\" }";
    let fields = format!("authorization: Bearer {}\r\n{key}", plane.token("bot"));
    let again = plane.send("POST", "/v1/requests", &fields, text.as_bytes());
    assert_eq!((again.status, &again.json()["id"]), (202, &first.json()["id"]));
    is_problem(
        &ask(&json!({"entitlement": "read", "duration_seconds": 61})),
        409,
        "idempotency_key_reused",
        "another body",
    );
    let other = plane.call_with(
        "agent-1",
        "POST",
        "/v1/requests",
        key,
        &json!({"entitlement": "read", "duration_seconds": 60}),
    );
    assert_ne!(other.json()["id"], first.json()["id"], "another caller's key is another key");
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(plane.count("request.pending", &id), 1);
    for bad in ["idempotency-key: \r\n", "idempotency-key: a\r\nidempotency-key: a\r\n"] {
        let answer = plane.call_with("bot", "POST", "/v1/requests", bad, &json!({"entitlement": "read"}));
        is_problem(&answer, 400, "idempotency_key", bad);
    }
}

#[test]
fn limits_of_what_one_may_hold() {
    let plane = Plane::start();
    for _ in 0..3 {
        plane.ask("bot", "read", &json!({}));
    }
    let answer = plane.call("bot", "POST", "/v1/requests", &json!({"entitlement": "read"}));
    is_problem(&answer, 429, "too_many", "a fourth");
    let problem = answer.json();
    assert_eq!(problem["retryable"], false, "nothing changes by itself: {problem}");
    assert_eq!(answer.header("retry-after"), None);
    assert!(problem["hint"].as_str().unwrap().starts_with("release one of these grants"), "{problem}");
    plane.ask("agent-1", "read", &json!({}));
}

#[test]
fn trying_out_changes_nothing() {
    let plane = Plane::start();
    let before = plane.record().len();
    let tried = plane.done("bot", "POST", "/v1/requests?dry_run=true", &json!({"entitlement": "watch"}));
    assert_eq!((tried["state"].as_str(), tried["ruling"]["verdict"].as_str()), (Some("approved"), Some("approve")));
    plane.done("local", "POST", "/v1/locks?dry_run=true", &json!({"message": "all", "all": true}));
    plane.done("local", "POST", "/v1/tasks/jira:X-1/close?dry_run=true", &json!({}));
    let document = json!({"apiVersion": "leasehold/v1", "kind": "Principal", "metadata": {"name": "eve"}, "spec": {"principal": "https://idp.test#eve", "type": "user"}});
    let applied = plane.done("local", "POST", "/v1/apply?dry_run=true", &json!({"documents": [document]}));
    assert_eq!(
        (applied["results"][0]["result"].as_str(), applied["results"][0]["after"]["type"].as_str()),
        (Some("created"), Some("user"))
    );
    plane.refused("local", "GET", "/v1/principals/eve", &Value::Null, 404, "not_found");
    assert_eq!(plane.record().len(), before);
    assert_eq!(plane.done("local", "GET", "/v1/locks", &Value::Null)["items"], json!([]));
}

#[test]
fn waiting_answers_when_it_is_decided() {
    let plane = Plane::start();
    let request = plane.ask("bot", "read", &json!({}));
    let target = format!("/v1/requests/{}?wait=30s", request["id"].as_str().unwrap());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| plane.done("bot", "GET", &target, &Value::Null));
        plane.approve("bob", &request);
        assert_eq!(waiting.join().unwrap()["state"], "approved");
    });
    let short = plane.ask("bot", "read", &json!({}));
    let target = format!("/v1/requests/{}?wait=0s", short["id"].as_str().unwrap());
    assert_eq!(plane.done("bot", "GET", &target, &Value::Null)["state"], "pending");
    for bad in ["61s", "-1s", "1m", "x", ""] {
        let target = format!("/v1/requests/{}?wait={bad}", short["id"].as_str().unwrap());
        plane.refused("bot", "GET", &target, &Value::Null, 400, "wait");
    }
}

#[test]
fn a_grant_ends_with_its_entitlement_and_its_principal() {
    let plane = Plane::start();
    let watch = plane.ask("bot", "watch", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    let once = plane.ask("agent-1", "once", &json!({}))["grant_id"].as_str().unwrap().to_owned();
    assert_eq!(plane.call("root", "DELETE", "/v1/entitlements/watch", &Value::Null).status, 204);
    let ended = plane.done("local", "GET", &format!("/v1/grants/{watch}"), &Value::Null);
    assert_eq!(ended["ended"]["reason"], "entitlement_deleted");
    let agent = plane.done("root", "GET", "/v1/principals/agent", &Value::Null);
    let mut disabled = agent.clone();
    disabled["spec"]["disabled"] = json!(true);
    let changed = plane.done("root", "PUT", "/v1/principals/agent", &disabled);
    assert_eq!((changed["result"].as_str(), changed["before"]["disabled"].as_bool()), (Some("changed"), None));
    let ended = plane.done("local", "GET", &format!("/v1/grants/{once}"), &Value::Null);
    assert_eq!(ended["ended"]["reason"], "principal_disabled");
    plane.refused("agent-1", "GET", "/v1/grants", &Value::Null, 403, "unknown_principal");
}

/// BI-API-032.
#[test]
fn of_an_agreement_and_a_denial_at_once_one_wins() {
    let plane = Plane::start();
    for round in 0..8 {
        let request = plane.ask(&format!("agent-{round}"), "read", &json!({}));
        let deny = format!("/v1/requests/{}/deny", request["id"].as_str().unwrap());
        let (approved, denied) = std::thread::scope(|scope| {
            let approved = scope.spawn(|| plane.approve("bob", &request));
            let denied = scope.spawn(|| plane.call("carol", "POST", &deny, &json!({"reason": "no"})));
            (approved.join().unwrap(), denied.join().unwrap())
        });
        let statuses = [approved.status, denied.status];
        assert!(statuses.contains(&200) && (statuses.contains(&409) || statuses.contains(&412)), "{statuses:?}");
        let shown =
            plane.done("local", "GET", &format!("/v1/requests/{}", request["id"].as_str().unwrap()), &Value::Null);
        assert_eq!(shown["state"], if approved.status == 200 { "approved" } else { "denied" });
    }
}

/// BI-GRT-029.
#[test]
fn a_renewal_takes_the_place_of_what_it_renews_and_lasts_no_longer_than_the_whole_may() {
    let plane = Plane::start();
    let first = plane.ask("bot", "watch", &json!({"duration_seconds": 300}));
    let first = plane.done("bot", "GET", &format!("/v1/grants/{}", first["grant_id"].as_str().unwrap()), &Value::Null);
    let id = first["id"].as_str().unwrap();
    plane.refused("agent-1", "POST", "/v1/requests", &json!({"entitlement": "watch", "renews": id}), 404, "not_found");
    plane.refused("bot", "POST", "/v1/requests", &json!({"entitlement": "once", "renews": id}), 404, "not_found");
    plane.refused("bot", "POST", "/v1/requests", &json!({"entitlement": "watch", "renews": "grt_x"}), 404, "not_found");
    let second = plane.ask("bot", "watch", &json!({"renews": id, "duration_seconds": 600}));
    assert_eq!(plane.done("bot", "GET", &format!("/v1/grants/{id}"), &Value::Null)["ended"]["reason"], "superseded");
    let second =
        plane.done("bot", "GET", &format!("/v1/grants/{}", second["grant_id"].as_str().unwrap()), &Value::Null);
    assert_eq!((second["began_at"].as_str(), second["state"].as_str()), (first["began_at"].as_str(), Some("active")));
    let at = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    // Ten minutes are all that the entitlement allows, from when the first began.
    assert_eq!(at(&second["expires_at"]).duration_since(at(&first["began_at"])).as_secs(), 600);
    plane.refused("bot", "POST", "/v1/requests", &json!({"entitlement": "watch", "renews": id}), 409, "ended");
}

#[test]
fn a_renewal_of_what_ended_meanwhile_is_denied() {
    let plane = Plane::start();
    let request = plane.ask("bot", "read", &json!({}));
    let grant = plane.approve("bob", &request).json()["grant_id"].as_str().unwrap().to_owned();
    let renewal = plane.ask("bot", "read", &json!({"renews": grant}));
    plane.done("root", "POST", &format!("/v1/grants/{grant}/revoke"), &json!({}));
    let denied = plane.approve("bob", &renewal).json();
    assert_eq!(
        (denied["state"].as_str(), denied["reason"].as_str()),
        (Some("denied"), Some("the grant that it renews is revoked"))
    );
}
