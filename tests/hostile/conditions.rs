//! Rules with conditions: a value that could be read in two ways satisfies none.

use super::common::backend::Backend;
use super::common::world::{Setup, World, grant};

const MAP: &str = "rules:
  - {action: public.read, class: read, method: GET, path: /query, query: {db: {equals: public}}, resource: query}
  - {action: tier.read, class: read, method: GET, path: /tier, headers: {x-tier: {equals: read}}, resource: tier}
  - {action: upload, class: write, method: POST, path: /upload, resource: upload}
  - {action: allowed.read, class: read, method: GET, path: '/allowed/{name}', resource: 'allowed/{name}'}
";

fn world() -> (World, Backend) {
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.map = MAP.to_owned();
    setup.grants = grant("g1", "ci-bot", "*", "**", 3_600);
    (World::start(&setup), backend)
}

#[test]
fn every_occurrence_must_satisfy_a_condition() {
    // BI-PTH-056, BI-HDR-031, BI-HDR-032, BI-H1S-017
    let (world, backend) = world();
    for (target, fields) in [
        ("/query?db=public;db=secret", ""),
        ("/query?db=public&db=secret", ""),
        ("/query?db=secret&db=public", ""),
        ("/query?DB=public", ""),
        ("/query?db=public%20", ""),
        ("/query", ""),
        ("/tier", ""),
        ("/tier", "x-tier: read\r\nx-tier: admin\r\n"),
        ("/tier", "x-tier: admin\r\nx-tier: read\r\n"),
        ("/tier", "x-tier: read,admin\r\n"),
        ("/tier", "x-tier: read\u{ff}\r\n"),
        ("/tier", "x_tier: read\r\n"),
    ] {
        let mut client = world.connect();
        let request = world.request_with("GET", target, &world.token, fields, "");
        client.send(&request);
        let status = client.answer().unwrap().status;
        assert!(matches!(status, 400 | 403), "{target} {fields:?}: {status}");
    }
    assert!(backend.seen().is_empty());
    for (target, fields) in [("/query?db=public", ""), ("/query?a=1&d%62=public", ""), ("/tier", "x-tier: read\r\n")] {
        let mut client = world.connect();
        client.send(&world.request_with("GET", target, &world.token, fields, ""));
        assert_eq!(client.answer().unwrap().status, 200, "{target} {fields:?}");
    }
}

#[test]
fn a_method_in_a_field_or_the_query_is_no_other_method() {
    // BI-MTH-005
    let (world, backend) = world();
    for fields in
        ["x-http-method-override: DELETE\r\n", "x-http-method: DELETE\r\n", "x_http_method_override: DELETE\r\n"]
    {
        let mut client = world.connect();
        client.send(&world.request_with(
            "POST",
            "/upload",
            &world.token,
            &format!("{fields}content-length: 0\r\n"),
            "",
        ));
        assert_eq!(client.answer().unwrap().status, 400, "{fields}");
    }
    let mut client = world.connect();
    client.send(&world.request_with("POST", "/upload?_method=DELETE", &world.token, "content-length: 0\r\n", ""));
    let answer = client.answer().unwrap();
    assert!(matches!(answer.status, 200 | 400 | 403), "{answer:?}");
    assert!(backend.seen().iter().all(|seen| seen.line().starts_with("POST ")));
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    // BI-RES-010
    let (world, backend) = world();
    let mut client = world.connect();
    client.send(&world.request_with("POST", "/upload", &world.token, "content-length: 1073741825\r\n", ""));
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.reason().as_str()), (413, "body_too_large"));
    assert!(client.rest().is_empty(), "and the connection is closed");
    assert!(backend.seen().is_empty());
}
