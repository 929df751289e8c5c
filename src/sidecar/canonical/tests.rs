use super::*;
use http::Request;
use proptest::prelude::*;

fn rules() -> Rules {
    let hosts = Hosts::new(&["db.test".to_owned()], "127.0.0.1:8443".parse().ok()).unwrap();
    Rules::new(Relaxations::default(), 8 * 1024, hosts)
}

fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target).version(Version::HTTP_11);
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", "db.test");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn read(target: &str) -> Result<String, Malformed> {
    canonicalise(head("GET", target, &[]), &rules()).map(|canonical| canonical.path_and_query().to_string())
}

fn with(fields: &[(&str, &str)]) -> Result<Canonical, Malformed> {
    canonicalise(head("POST", "/upload", fields), &rules())
}

#[test]
fn a_canonical_target_stays_as_it_is() {
    for target in ["/", "/a", "/a/b-c_d.e~f", "/a?b=c&d=e", "/a:b@c!$&'()*+,=", "/a%20b", "/x?y=%2F&z=a;b"] {
        assert_eq!(read(target).as_deref(), Ok(target));
    }
}

#[test]
fn one_spelling_is_made_of_several() {
    for (given, canonical) in
        [("/%61llowed/a", "/allowed/a"), ("/a%7eb", "/a~b"), ("/a%c3%a9", "/a%C3%A9"), ("/%41%2d", "/A-")]
    {
        assert_eq!(read(given).as_deref(), Ok(canonical));
    }
}

#[test]
fn a_path_with_two_readings_is_refused() {
    for target in [
        "/allowed/../admin",
        "/allowed/./a",
        "/allowed/%2e%2e/admin",
        "/allowed/.%2e/admin",
        "/allowed/%2E%2E/admin",
        "/allowed/..%2fadmin",
        "/allowed/..%2Fadmin",
        "/allowed/%252e%252e/admin",
        "/allowed/%252fadmin",
        "/allowed/%25%32%65",
        "/allowed/..;/admin",
        "/allowed/a;x=1/b",
        "/allowed//admin",
        "//admin",
        "/allowed/",
        "/allowed/..%5cadmin",
        "/allowed/%00",
        "/allowed/%c0%af",
        "/allowed/%e0%80%af",
        "/allowed/%ef%bc%8f",
        "/allowed/%u002e",
        "/allowed/%2",
        "/allowed/%zz",
        "/allowed/%ff",
    ] {
        assert_eq!(read(target), Err(Malformed::PathNotCanonical), "{target}");
    }
}

#[test]
fn an_encoded_slash_is_kept_only_where_it_is_asked_for() {
    let hosts = Hosts::new(&["db.test".to_owned()], None).unwrap();
    let kept = Rules::new(Relaxations { encoded_slash_keep: true, ..Relaxations::default() }, 8 * 1024, hosts);
    let canonical = canonicalise(head("GET", "/api/queues/%2f/orders", &[]), &kept).unwrap();
    assert_eq!(canonical.path(), "/api/queues/%2F/orders");
    assert_eq!(canonical.segments().collect::<Vec<_>>(), ["api", "queues", "%2F", "orders"]);
    for target in ["/a/..%2fb", "/a/%2e%2e%2fb", "/a/%2f..", "/a/x%2f..%2fy"] {
        assert!(canonicalise(head("GET", target, &[]), &kept).is_err(), "{target}");
    }
}

#[test]
fn framing_has_one_reading() {
    assert_eq!(with(&[]).unwrap().body(), BodyLength::None);
    assert_eq!(with(&[("content-length", "5")]).unwrap().body(), BodyLength::Exact(5));
    assert_eq!(with(&[("transfer-encoding", "cHuNkEd")]).unwrap().body(), BodyLength::Chunked);
    for fields in [
        &[("content-length", "5"), ("content-length", "5")][..],
        &[("content-length", "5, 5")],
        &[("content-length", "+5")],
        &[("content-length", "-1")],
        &[("content-length", "1_0")],
        &[("content-length", "5e0")],
        &[("content-length", "18446744073709551621")],
        &[("content-length", "9999999999999999999")],
        &[("content-length", "")],
        &[("content-length", "5"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "chunked"), ("transfer-encoding", "cow")],
        &[("transfer-encoding", "identity")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked, chunked")],
        &[("transfer-encoding", "chunked;q=1")],
        &[("transfer-encoding", ",chunked")],
        &[("transfer-encoding", "\"chunked\"")],
    ] {
        assert_eq!(with(fields).err(), Some(Malformed::Framing), "{fields:?}");
    }
    let mut old = head("POST", "/upload", &[("transfer-encoding", "chunked")]);
    old.version = Version::HTTP_10;
    assert_eq!(canonicalise(old, &rules()).err(), Some(Malformed::Framing));
}

#[test]
fn there_is_one_authority_and_it_is_ours() {
    for host in ["db.test", "DB.test", "db.test:8443", "127.0.0.1:8443", "localhost:8443"] {
        assert!(with(&[("host", host)]).is_ok(), "{host}");
    }
    for host in
        ["db.test, evil.test", "user@db.test", "db.test evil.test", "db.test:99999", "db.test:", "db.test.", "", "[::1"]
    {
        assert_eq!(with(&[("host", host)]).err(), Some(Malformed::Host), "{host}");
    }
    for host in ["evil.test", "db.test:80", "127.0.0.1", "127.0.0.1:80"] {
        assert_eq!(with(&[("host", host)]).err(), Some(Malformed::Misdirected), "{host}");
    }
    assert_eq!(with(&[("host", "db.test"), ("host", "db.test")]).err(), Some(Malformed::Host));
    let absolute = |target| canonicalise(head("GET", target, &[]), &rules()).err();
    assert_eq!(absolute("http://db.test/a"), None);
    assert_eq!(absolute("http://evil.test/a"), Some(Malformed::Host));
    assert_eq!(absolute("http://user@db.test/a"), Some(Malformed::Host));
}

#[test]
fn methods_that_echo_or_tunnel_are_refused() {
    for method in ["TRACE", "TRACK", "CONNECT"] {
        let head = head(method, "/a", &[]);
        assert_eq!(canonicalise(head, &rules()).err(), Some(Malformed::MethodRefused), "{method}");
    }
    let long = "A".repeat(4_096);
    assert_eq!(canonicalise(head(&long, "/a", &[]), &rules()).err(), Some(Malformed::MethodTooLong));
    for name in ["X-HTTP-Method-Override", "x_http_method", "X-Method-Override"] {
        assert_eq!(with(&[(name, "DELETE")]).err(), Some(Malformed::MethodOverride), "{name}");
    }
}

#[test]
fn fields_cannot_be_doubled_aliased_or_declared_hop_by_hop() {
    assert_eq!(with(&[("authorization", "a"), ("authorization", "b")]).err(), Some(Malformed::DuplicateField));
    assert_eq!(with(&[("content_length", "5")]).err(), Some(Malformed::AliasedField));
    assert_eq!(with(&[("transfer_encoding", "chunked")]).err(), Some(Malformed::AliasedField));
    for named in ["host", "authorization", "x-forwarded-for", "X-Leasehold-Subject", "cookie", "via", "content-length"]
    {
        assert_eq!(with(&[("connection", named)]).err(), Some(Malformed::ConnectionNames), "{named}");
    }
    assert!(with(&[("connection", "close, x-own")]).is_ok());
    for expect in ["200-ok", "y 100-continue", "100-continue, 100-continue"] {
        assert_eq!(with(&[("expect", expect)]).err(), Some(Malformed::Expectation), "{expect}");
    }
    assert!(with(&[("expect", "100-Continue")]).is_ok());
}

#[test]
fn only_a_whole_websocket_upgrade_is_one() {
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let asks = |fields: &[(&str, &str)]| canonicalise(head("GET", "/ws", fields), &rules()).unwrap().upgrade();
    let version = ("sec-websocket-version", "13");
    assert_eq!(asks(&[("connection", "Upgrade"), ("upgrade", "websocket"), key, version]), Some("websocket"));
    assert_eq!(asks(&[("upgrade", "websocket"), key, version]), None);
    assert_eq!(asks(&[("connection", "upgrade"), ("upgrade", "h2c"), key, version]), None);
    assert_eq!(asks(&[("connection", "upgrade"), ("upgrade", "websocket"), version]), None);
}

#[test]
fn limits_hold() {
    let long = format!("/{}", "a".repeat(8 * 1024));
    assert_eq!(read(&long), Err(Malformed::TargetTooLong));
    let many = format!("/a?{}", "b&".repeat(2_000));
    assert_eq!(read(&many), Err(Malformed::QueryNotCanonical));
    assert_eq!(canonicalise(head("GET", "*", &[]), &rules()).err(), Some(Malformed::TargetForm));
    assert!(canonicalise(head("OPTIONS", "*", &[]), &rules()).is_ok());
}

#[test]
fn query_pairs_are_decoded_and_none_is_lost() {
    let canonical = canonicalise(head("GET", "/a?db=public&db=secret&x=%41;y=2&z", &[]), &rules()).unwrap();
    let pairs: Vec<_> = canonical.query().map(|(n, v)| format!("{n}={v}")).collect();
    assert_eq!(pairs, ["db=public", "db=secret", "x=A;y=2", "z="]);
}

proptest! {
    #[test]
    fn canonical_twice_is_canonical_once(text in "/[a-zA-Z0-9%./;\\\\~?&=é-]{0,40}") {
        fuzz(text.as_bytes());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
    }
}
