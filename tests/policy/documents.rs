//! What documents must be.

use leasehold::control::catalogue::Catalogue;
use leasehold::control::document::{Kind, duration, read_yaml};
use leasehold::domain::id::EntitlementName;
use serde_json::{Value, json};

use crate::{ALICE, base, document, refused, who, world};

fn entitlement(change: Value) -> Value {
    let mut spec = json!({
        "backend": "db", "actions": ["pg.vacuum"], "resources": ["**"], "eligible": ["dba"], "duration_max": "30m",
    });
    for (field, value) in change.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

#[test]
fn an_entitlement_names_its_field_when_it_is_refused() {
    for (change, words) in [
        (json!({"colour": "red"}), &["spec", "unknown field `colour`"][..]),
        (json!({"duration_max": "30"}), &["spec.duration_max: `30` is not a duration"]),
        (json!({"duration_max": 30}), &["spec.duration_max: invalid type"]),
        (json!({"duration_max": "0s"}), &["spec.duration_max: from `1s` to `24h`"]),
        (json!({"duration_max": "25h"}), &["spec.duration_max: from `1s` to `24h`"]),
        (json!({"emergency": true, "duration_max": "61m"}), &["spec.duration_max: at most `1h`"]),
        (json!({"uses_max": 0}), &["spec.uses_max: at least 1"]),
        (json!({"uses_max": -1}), &["spec.uses_max"]),
        (json!({"idle_timeout": "59s"}), &["spec.idle_timeout: from `1m` to `duration_max`"]),
        (json!({"idle_timeout": "20m", "duration_max": "19m"}), &["spec.idle_timeout: from `1m` to `duration_max`"]),
        (json!({"idle_timeout": null}), &["spec.idle_timeout: invalid type"]),
        (json!({"concurrent_max": 0}), &["spec.concurrent_max: at least 1"]),
        (json!({"actions": []}), &["spec.actions: name from 1"]),
        (json!({"resources": []}), &["spec.resources: name from 1"]),
        (json!({"eligible": []}), &["spec.eligible: name from 1"]),
        (json!({"eligible": ["DBA"]}), &["spec.eligible: group `DBA`"]),
        (json!({"eligible": ["dbа"]}), &["spec.eligible: group"]),
        (json!({"eligible": [""]}), &["spec.eligible: group ``"]),
        (json!({"actions": ["a b"]}), &["spec.actions[0]: action pattern"]),
        (json!({"actions": ["pg.vacuum", "pg.truncate"]}), &["no action of `db` is `pg.truncate`"]),
        (json!({"resources": ["a/**/b"]}), &["spec.resources[0]"]),
        (json!({"backend": "bd"}), &["there is no Backend `bd`"]),
        (json!({"task": "sometimes"}), &["spec.task: unknown variant `sometimes`", "verified"]),
        (json!({"justification": true}), &["spec.justification"]),
        (json!({"approval": {"window": "1x"}}), &["spec.approval.window: `1x` is not a duration"]),
        (json!({"approval": {"window": "31d"}}), &["spec.approval.window: from `1s` to `30d`"]),
        (json!({"approval": {"step": []}}), &["spec.approval", "unknown field `step`"]),
        (json!({"approval": {"steps": [{"approvers": [], "quorum": 1}]}}), &["spec.approval.steps[0].approvers"]),
        (json!({"approval": {"steps": [{"approvers": ["a"], "quorum": 0}]}}), &["spec.approval.steps[0].quorum"]),
        (json!({"approval": {"steps": [{"approvers": ["a"], "quorum": 17}]}}), &["spec.approval.steps[0].quorum"]),
        (json!({"approval": {"steps": [{"approvers": ["A"], "quorum": 1}]}}), &["spec.approval.steps[0].approvers"]),
        (json!({"approval": {"steps": [{"approvers": ["a"], "quorum": 1, "x": 1}]}}), &["unknown field `x`"]),
    ] {
        let expected: Vec<&str> = words.iter().copied().chain(["Entitlement `e`"]).collect();
        refused([document("Entitlement", "e", entitlement(change))], &expected);
    }
    let nine: Vec<Value> = (0..9).map(|_| json!({"approvers": ["a"], "quorum": 1})).collect();
    refused([document("Entitlement", "e", entitlement(json!({"approval": {"steps": nine}})))], &["steps: at most 8"]);
    refused(
        [document("Entitlement", "e", entitlement(json!({"actions": ["*"]})))],
        &["every action on everything needs approvers"],
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let catalogue = world([document("Entitlement", "e", entitlement(json!({})))]);
    let read = &catalogue.entitlements[&EntitlementName::new("e").unwrap()];
    assert_eq!((read.uses_max, read.concurrent_max, read.emergency), (None, 1, false));
    assert_eq!(read.idle_timeout, None);
    assert_eq!((read.window.as_secs(), read.justification_required, read.steps.len()), (86_400, false, 0));
    let known = catalogue.know(&who(ALICE)).unwrap();
    assert_eq!((known.grants_max, known.disabled, known.owner_may_approve, known.owner), (100, false, false, None));
    let all = json!({
        "uses_max": 3, "concurrent_max": 2, "emergency": true, "justification": "required", "task": "verified",
        "idle_timeout": "1h", "duration_max": "1h", "approval": {"window": "90s", "steps": [{"approvers": ["oncall"], "quorum": 2}]},
    });
    let catalogue = world([document("Entitlement", "e", entitlement(all))]);
    let read = &catalogue.entitlements[&EntitlementName::new("e").unwrap()];
    assert_eq!((read.uses_max, read.concurrent_max, read.emergency), (Some(3), 2, true));
    assert_eq!(read.idle_timeout, Some(read.duration_max));
    assert_eq!((read.window.as_secs(), read.justification_required, read.steps.len()), (90, true, 1));
}

#[test]
fn principals_are_named_in_full_and_in_plain_ascii() {
    let spec = |name: &str| document("Principal", "x", json!({"principal": name, "type": "ci"}));
    for good in
        ["spiffe://prod.example/ci", "spiffe://prod.example/ci/*", "https://ci.example#a:*", "https://ci.example#*"]
    {
        world([spec(good)]);
    }
    for bad in [
        "",
        "*",
        "ci",
        "https://ci.example",
        "https://ci.example*",
        "https://ci.example#",
        "spiffe://*",
        "spiffe://prod*",
        "spiffe://prod.example*",
        "spiffe://prod.example/*/x",
        "spiffe://prod.example/**",
        "https://ci.example#a*b",
        "spiffe://Prod.example/ci",
        "https://ci.example#аlice",
        "https://ci.example#a\u{200b}",
    ] {
        refused([spec(bad)], &["Principal `x`: spec.principal:"]);
    }
    for (change, words) in [
        (json!({"type": "robot"}), &["spec.type: unknown variant `robot`"][..]),
        (json!({"groups": ["Dba"]}), &["spec.groups: group `Dba`"]),
        (json!({"owner": "alice"}), &["spec.owner:"]),
        (json!({"owner": "https://idp.example#*"}), &["spec.owner:"]),
        (json!({"owner_may_approve": true}), &["spec.owner_may_approve: there is no `owner`"]),
        (json!({"grants_max": 0}), &["spec.grants_max: from 1 to 1000000"]),
        (json!({"grants_max": 1_000_001}), &["spec.grants_max: from 1 to 1000000"]),
        (json!({"secret": "x"}), &["unknown field `secret`"]),
    ] {
        let mut spec = json!({"principal": "spiffe://prod.example/x", "type": "ci"});
        for (field, value) in change.as_object().unwrap() {
            spec[field] = value.clone();
        }
        refused([document("Principal", "x", spec)], words);
    }
}

#[test]
fn names_that_one_could_take_for_another_are_refused() {
    let principal = |name: &str, text: &str| document("Principal", name, json!({"principal": text, "type": "user"}));
    refused([principal("x", ALICE)], &["two Principals say who `https://idp.example#alice` is"]);
    refused([principal("x", "https://idp.example#Alice")], &["differ in nothing but case"]);
    refused(
        [principal("ALICE", "https://idp.example#zoe")],
        &["Principal `alice` and `ALICE` differ in nothing but case"],
    );
    refused([principal("alice", "https://idp.example#zoe")], &["Principal `alice` is declared twice"]);
    refused([principal("аlice", "https://idp.example#zoe")], &["metadata.name"]);
    refused(
        [document("Backend", "DB", json!({"actions": [{"name": "x", "class": "read"}]}))],
        &["in nothing but case"],
    );
    let actions = json!({"actions": [{"name": "x.y", "class": "read"}, {"name": "X.y", "class": "read"}]});
    refused([document("Backend", "other", actions)], &["Backend `other`: spec.actions", "differ in nothing but case"]);
}

#[test]
fn an_exact_name_beats_a_pattern_and_a_longer_pattern_a_shorter_one() {
    let principal = |name: &str, text: &str, kind: &str| {
        document("Principal", name, json!({"principal": text, "type": kind, "groups": [name]}))
    };
    let catalogue = world([
        principal("all", "https://ci.example#*", "ci"),
        principal("org", "https://ci.example#repo:org/*", "ci"),
        principal("app", "https://ci.example#repo:org/app:*", "ci"),
        principal("main", "https://ci.example#repo:org/app:main", "user"),
        principal("spiffe", "spiffe://prod.example/ci/*", "ci"),
    ]);
    for (name, group) in [
        ("https://ci.example#repo:org/app:main", Some("main")),
        ("https://ci.example#repo:org/app:main2", Some("app")),
        ("https://ci.example#repo:org/app:Main", Some("app")),
        ("https://ci.example#repo:org/app", Some("org")),
        ("https://ci.example#repo:organic", Some("all")),
        ("https://ci.example2#repo:org/app:main", None),
        ("spiffe://prod.example/ci/x", Some("spiffe")),
        ("spiffe://prod.example/ci", None),
        ("spiffe://prod.example.evil/ci/x", None),
    ] {
        let groups = catalogue.know(&who(name)).map(|known| known.groups);
        assert_eq!(groups, group.map(|group| vec![group.to_owned()]), "{name}");
    }
}

#[test]
fn a_backend_lists_its_actions_or_names_an_action_map() {
    let map = |rules: Value| document("ActionMap", "m", json!({"rules": rules}));
    let mapped = document("Backend", "b", json!({"action_map": "m"}));
    let rules = json!([
        {"action": "x.get", "class": "read", "method": "GET", "path": "/x", "resource": "x"},
        {"action": "x.set", "class": "write", "method": "PUT", "path": "/x", "resource": "x"},
        {"action": "x.set", "class": "admin", "method": "POST", "path": "/x", "resource": "x",
         "headers": {}, "query": {}, "upgrade": "websocket", "streaming": true, "body": {}, "body_bytes_max": 1,
         "range": {"from": "a", "to": "b"}, "grpc": "a.B/C"},
    ]);
    let catalogue = world([map(rules), mapped.clone()]);
    let (_, actions) = catalogue.backends.iter().find(|(name, _)| name.as_str() == "b").unwrap();
    // Several rules may make one action; the gravest class counts.
    let actions: Vec<_> = actions.iter().map(|(name, class)| (name.as_str(), class.as_str())).collect();
    assert_eq!(actions, [("x.get", "read"), ("x.set", "admin")]);
    refused([mapped.clone()], &["Backend `b`: spec.action_map: there is no ActionMap `m`"]);
    for (spec, words) in [
        (json!({}), "one of the two"),
        (json!({"action_map": "m", "actions": [{"name": "x", "class": "read"}]}), "one of the two"),
        (json!({"actions": []}), "from 1 to 2000"),
        (json!({"actions": [{"name": "x"}]}), "spec.actions[0]: missing field `class`"),
        (json!({"actions": [{"name": "x", "class": "root"}]}), "spec.actions[0].class: unknown variant"),
        (json!({"actions": [{"name": "x", "class": "read", "y": 1}]}), "unknown field `y`"),
        (json!({"actions": [{"name": "x", "class": "read"}, {"name": "x", "class": "read"}]}), "`x` is there twice"),
        (json!({"actions": [{"name": "a/b", "class": "read"}]}), "action name `a/b`"),
        (json!({"upstream": "https://x"}), "unknown field `upstream`"),
    ] {
        refused([document("Backend", "b", spec)], &["Backend `b`: spec", words]);
    }
    for (rules, words) in [
        (json!([]), "from 1 to 2000"),
        (json!([{"action": "x", "class": "read", "verb": "GET"}]), "spec.rules[0].verb: unknown field `verb`"),
        (json!([{"action": "call:any", "class": "read", "resource": "x"}]), "spec.rules[0]: action name"),
        (json!([{"action": "x", "class": "read"}]), "spec.rules[0]: missing field `resource`"),
        (json!([{"class": "read"}]), "spec.rules[0]: missing field `action`"),
    ] {
        refused([map(rules)], &["ActionMap `m`: spec.rules", words]);
    }
    let rule =
        |size| json!({"action": "x", "class": "read", "method": "GET", "path": "/x", "resource": "x".repeat(size)});
    refused([map(json!(vec![rule(1); 2_001]))], &["ActionMap `m`: spec.rules: at most 2000"]);
    refused([map(json!(vec![rule(600); 2_000]))], &["ActionMap `m`: spec: at most 1 MiB"]);
}

#[test]
fn the_envelope_is_strict() {
    let bad = |change: Value| {
        let mut text = json!({"apiVersion": "leasehold/v1", "kind": "Policy", "metadata": {"name": "x"}, "spec": {}});
        for (field, value) in change.as_object().unwrap() {
            text[field] = value.clone();
        }
        serde_json::from_value::<leasehold::control::document::Document>(text)
    };
    assert!(bad(json!({"status": {}})).is_err());
    assert!(bad(json!({"kind": "Secret"})).is_err());
    assert!(bad(json!({"metadata": {"name": "x", "namespace": "y"}})).is_err());
    let refuse = |change: Value, word: &str| {
        let error = bad(change).unwrap().read().unwrap_err();
        assert!(error.contains(word), "`{word}` is not in {error}");
    };
    refuse(json!({"apiVersion": "leasehold/v2"}), "write `apiVersion: leasehold/v1`");
    refuse(json!({"metadata": {"name": "a b"}}), "metadata.name");
    refuse(json!({"metadata": {"name": ""}}), "metadata.name");
    refuse(json!({"metadata": {"name": "x", "labels": {"a": "b\n"}}}), "metadata.labels");
    refuse(json!({"spec": []}), "spec: fields and values");
    refuse(json!({"spec": {"target": "everything", "cedar": ""}}), "spec.target: unknown variant `everything`");
    refuse(json!({"spec": {"target": "admin", "cedar": "", "mode": "loud"}}), "spec.mode: unknown variant");
    refuse(json!({"spec": {"target": "admin"}}), "spec: missing field `cedar`");
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(kind.as_str()));
    }
}

#[test]
fn durations_are_a_number_and_a_unit() {
    for (text, seconds) in [("90s", 90), ("15m", 900), ("4h", 14_400), ("1d", 86_400), ("0s", 0)] {
        assert_eq!(duration(text).map(|d| d.as_secs()), Ok(seconds));
    }
    for bad in
        ["", "s", "15", "1.5h", "-1s", "+1s", " 1s", "1 s", "1S", "1w", "1h30m", "٣s", "99999999999999999999s", "m15"]
    {
        assert!(duration(bad).is_err(), "`{bad}` was accepted");
    }
}

#[test]
fn yaml_has_several_documents_and_lines() {
    let one = "apiVersion: leasehold/v1\nkind: Principal\nmetadata: {name: a}\nspec: {principal: 'https://i#a', type: user}\n";
    let two = one.replace("name: a", "name: b").replace("#a", "#b");
    let read = read_yaml(&format!("# a comment\n---\n{one}---\n---\n{two}")).unwrap();
    assert_eq!(read.iter().map(|d| d.metadata.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    // As JSON it is the same.
    let json = serde_json::to_string(&read[0]).unwrap();
    assert_eq!(read_yaml(&json).unwrap(), read[..1]);
    assert_eq!(read_yaml("").unwrap(), []);
    for (text, line, word) in [
        (format!("{one}---\n{}", two.replace("type: user", "type: robot")), 6, "spec.type"),
        (format!("{one}---\n{}", two.replace("kind", "kinds")), 7, "kinds"),
        (format!("{one}---\n{}metadata: {{name: x}}\n", two), 10, "metadata"),
        (format!("{one}spec: {{}}\n"), 5, "spec"),
        (one.replace("type: user", "type: user, type: ci"), 4, "type"),
        (one.replace("name: a", "name: [a"), 3, ""),
        (one.replace("name: a", "name: !!python/object a"), 3, ""),
        (format!("{one}<<: {{a: 1}}\n"), 5, ""),
        ("- a\n".to_owned(), 1, ""),
    ] {
        let errors = read_yaml(&text).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].message.contains(word), "`{word}` is not in {errors:?}");
        assert_eq!(errors[0].line, Some(line), "{text}: {errors:?}");
    }
    let nested = format!("{}a{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(read_yaml(&nested).is_err());
    let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    assert!(read_yaml(laughs).is_err());
}

#[test]
fn what_is_probably_not_meant_is_noticed() {
    let spec = entitlement(json!({
        "eligible": ["ghosts", "dba"], "approval": {"steps": [{"approvers": ["oncall"], "quorum": 3}]},
    }));
    let notices = world([document("Entitlement", "e", spec)]).notices();
    for word in [
        "Entitlement `e`: eligible: nobody is in `ghosts`",
        "Entitlement `e`: approval.steps[0] wants 3 approvers, and there are 2",
        "Backend `db`: no entitlement covers `pg.read`, `pg.drop`",
    ] {
        assert!(notices.iter().any(|notice| notice == word), "`{word}` is not in {notices:#?}");
    }
    assert_eq!(notices.len(), 3, "{notices:#?}");
    assert!(Catalogue::read(&[], 0).unwrap().notices().is_empty());
    assert_eq!(base().len(), 8);
}
