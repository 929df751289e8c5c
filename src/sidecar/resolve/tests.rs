use std::collections::BTreeSet;

use http::{Method, Request, Version};

use super::*;
use crate::sidecar::canonical::{self, Canonical, Hosts, Relaxations};

fn call(method: &str, target: &str, fields: &[(&str, &str)]) -> Canonical {
    let hosts = Hosts::new(&["db.test".to_owned()], None).unwrap();
    let keep = Relaxations { encoded_slash_keep: true, ..Relaxations::default() };
    let version = if fields.iter().any(|(_, value)| value.starts_with("application/grpc")) {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    };
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(target);
    request = request.version(version).header("host", "db.test");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let head = request.body(()).unwrap().into_parts().0;
    canonical::canonicalise(head, &canonical::Rules::new(keep, 8 * 1024, hosts)).unwrap()
}

fn map(name: &str) -> ActionMap {
    ActionMap::from_yaml(builtin(name).unwrap()).unwrap()
}

/// What a call is, written as `action resource`.
fn said(map: &ActionMap, call: &Canonical, body: &[u8]) -> String {
    let resolved = match map.resolve(call) {
        Match::Action(resolved) => Some(resolved),
        Match::Unmapped => None,
        Match::NeedsBody(rules) => match rules.resolve(call, body) {
            Ok(resolved) => resolved,
            Err(refused) => return format!("refused: {}", refused.reason()),
        },
    };
    resolved.map_or("unmapped".to_owned(), |resolved| format!("{} {}", resolved.action.name, resolved.resource))
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json"), ("content-length", "2")];

#[test]
fn rabbitmq_calls_are_what_they_do() {
    let map = map("rabbitmq");
    for (method, target, expected) in [
        ("GET", "/api/overview", "overview.read cluster"),
        ("HEAD", "/api/overview", "overview.read cluster"),
        ("GET", "/api/queues", "queue.read vhosts/**"),
        ("GET", "/api/queues/%2F", "queue.read vhosts/%2F/queues/**"),
        ("DELETE", "/api/queues/%2F/orders", "queue.delete vhosts/%2F/queues/orders"),
        ("DELETE", "/api/queues/%2F/a%2Fb", "queue.delete vhosts/%2F/queues/a%2Fb"),
        ("DELETE", "/api/queues/prod/orders/contents", "queue.purge vhosts/prod/queues/orders"),
        ("GET", "/api/definitions", "definitions.export cluster"),
        ("DELETE", "/api/queues/%2F", "unmapped"),
        ("POST", "/api/overview", "unmapped"),
        ("GET", "/API/overview", "unmapped"),
        ("GET", "/api/Overview", "unmapped"),
        ("GET", "/api/overview.", "unmapped"),
        ("GET", "/api", "unmapped"),
        ("GET", "/", "unmapped"),
    ] {
        assert_eq!(said(&map, &call(method, target, &[]), b""), expected, "{method} {target}");
    }
}

#[test]
fn etcd_calls_are_what_they_reach() {
    let map = map("etcd");
    // base64 of `app/x`, `app/`, `app0` and `other`
    for (target, body, expected) in [
        ("/v3/kv/range", r#"{"key":"YXBwL3g="}"#, "kv.range keys/app/x"),
        ("/v3/kv/range", r#"{"key":"YXBwLw==","range_end":"YXBwMA=="}"#, "kv.range keys/app/**"),
        ("/v3/kv/range", r#"{"key":"YXBwLw==","rangeEnd":"YXBwMA=="}"#, "kv.range keys/app/**"),
        ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#, "kv.range keys/**"),
        ("/v3/kv/range", r#"{"key":"YXBwLw==","range_end":"AA=="}"#, "kv.range keys/**"),
        ("/v3beta/kv/put", r#"{"key":"YXBwL3g=","value":"MQ=="}"#, "kv.put keys/app/x"),
        ("/v3/kv/deleterange", r#"{"key":"b3RoZXI="}"#, "kv.delete keys/other"),
        ("/v3/watch", r#"{"create_request":{"key":"YXBwL3g="}}"#, "watch keys/app/x"),
        ("/v3/kv/txn", "{}", "kv.txn keys/**"),
        ("/v3/auth/disable", "{}", "auth.change auth"),
        ("/v3/unknown", "{}", "unmapped"),
    ] {
        assert_eq!(said(&map, &call("POST", target, JSON), body.as_bytes()), expected, "{target} {body}");
    }
    for body in [
        "",
        "{}",
        "[]",
        r#"{"key":1}"#,
        r#"{"key":"*"}"#,
        r#"{"key":"YXBwL3g"}"#,
        r#"{"key":"YXBwL3g=","key":"b3RoZXI="}"#,
        r#"{"key":"YXBwLw==","range_end":"","rangeEnd":"AA=="}"#,
        r#"{"key":"YXBwMA==","range_end":"YXBwLw=="}"#,
        r#"{"key":"YXBwL3g="} {"key":"b3RoZXI="}"#,
    ] {
        let said = said(&map, &call("POST", "/v3/kv/range", JSON), body.as_bytes());
        assert!(said.starts_with("refused: "), "{body}: {said}");
    }
    let grpc = [("content-type", "application/grpc")];
    let range = call("POST", "http://db.test/etcdserverpb.KV/Range", &grpc);
    assert_eq!(said(&map, &range, b""), "kv.range keys/**");
    let unknown = call("POST", "http://db.test/etcdserverpb.KV/Unknown", &grpc);
    assert_eq!(said(&map, &unknown, b""), "unmapped");
}

#[test]
fn rules_that_could_not_both_be_meant_are_refused_with_their_numbers() {
    let rule = |action: &str, method: &str, path: &str, more: &str| {
        format!("  - {{action: {action}, class: read, method: {method}, path: '{path}', resource: x{more}}}\n")
    };
    let refused = |rules: &[String]| {
        let errors = ActionMap::from_yaml(&format!("rules:\n{}", rules.concat())).expect_err("an error");
        errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    for rules in [
        [rule("a", "GET", "/a/{x}", ""), rule("b", "GET", "/a/b", "")],
        [rule("a", "GET", "/a/{x...}", ""), rule("b", "GET", "/a/b/c", "")],
        [rule("a", "GET", "/a", ""), rule("b", "GET", "/a", "")],
        [rule("a", "GET", "/{x}/b", ""), rule("b", "GET", "/a/{y}", "")],
        [rule("a", "GET", "/a", ""), rule("b", "GET", "/a", ", query: {q: {equals: x}}")],
    ] {
        let said = refused(&rules);
        assert!(said.contains("rules["), "{rules:?}: {said}");
    }
    // Settled by a rule for what both match, and told apart by what they match.
    for rules in [
        [rule("c", "GET", "/a/b", ""), rule("a", "GET", "/{x}/b", ""), rule("b", "GET", "/a/{y}", "")].concat(),
        [rule("a", "GET", "/{x:int}/b", ""), rule("b", "GET", "/a/{y}", "")].concat(),
        [rule("a", "GET", "/a/secret/{x...}", ""), rule("b", "GET", "/a/{y}/{z}", "")].concat(),
        [rule("b", "GET", "/a/{y}", ""), rule("a", "GET", "/{x}/b", "")].concat(),
        [rule("a", "GET", "/{x}/b", ""), rule("b", "POST", "/a/{y}", "")].concat(),
        [rule("a", "GET", "/a/{x...}", ""), rule("b", "GET", "/{x}", "")].concat(),
    ] {
        ActionMap::from_yaml(&format!("rules:\n{rules}")).unwrap();
    }
    for rule in [
        rule("a b", "GET", "/a", ""),
        rule("a", "get", "/a", ""),
        rule("a", "TRACE", "/a", ""),
        rule("a", "GET", "a", ""),
        rule("a", "GET", "/a//b", ""),
        rule("a", "GET", "/a/../b", ""),
        rule("a", "GET", "/{x...}/b", ""),
        rule("a", "GET", "/{x}/{x}", ""),
        rule("a", "GET", "/a", ", nonsense: 1"),
    ] {
        assert!(!refused(std::slice::from_ref(&rule)).is_empty(), "{rule}");
    }
}

#[test]
fn a_name_of_an_action_stands_once_in_the_list_of_a_map() {
    for name in ["rabbitmq", "etcd"] {
        let map = map(name);
        let names: BTreeSet<_> = map.actions().iter().map(|action| action.name.as_str().to_owned()).collect();
        assert_eq!(names.len(), map.actions().len(), "{name}");
        for (place, action) in map.actions().iter().enumerate() {
            assert_eq!(action.index, place, "{name}: {}", action.name);
        }
    }
}
