//! Where grants come from.

use super::*;

#[test]
fn grants_come_from_one_place() {
    const FILE: &str = "grants: {file: grants.yaml}";
    const TLS: &str = "tls: {certificate: tls.crt, key: tls.key, ca: ca.pem}";
    let control = |inside: &str| format!("grants: {{control: {{{inside}}}}}");
    let one = format!("addresses: [\"https://c.test:9903\"], {TLS}");
    check(FILE, &control(&one), &[]);
    let config = Folder::new().parse(&SAMPLE.replace(FILE, &control(&one))).expect("valid");
    let GrantSource::Remote { servers, first_view, join: None } = config.grants.source else {
        panic!("another source")
    };
    assert_eq!((servers.addresses[0].to_string(), first_view.as_secs()), ("c.test:9903".to_owned(), 5));

    check(FILE, &control("addresses: [\"https://c.test:9903\"]"), &["grants.control.tls: is missing"]);
    check(FILE, &control(TLS), &["grants.control.addresses: is missing or empty"]);
    check(
        FILE,
        &control(&format!("addresses: [\"http://c.test:9903\"], {TLS}")),
        &["is no address of a control plane"],
    );
    check(FILE, &control(&format!("addresses: [\"https://c.test/x\"], {TLS}")), &["is no address of a control plane"]);
    check(FILE, &control(&one.replace("ca.pem", "empty.pem")), &["grants.control.tls.ca: ", "has no certificate"][..1]);
    check(FILE, &control(&one.replace("tls.key", "other.key")), &["is not the key of the certificate"]);
    check(
        FILE,
        &format!("{}, file: grants.yaml}}", control(&one).trim_end_matches('}').to_owned() + "}}"),
        &["grants.file: is not used"],
    );
    check(
        FILE,
        &format!("{}, staleness_max: 2s}}", control(&one).trim_end_matches('}').to_owned() + "}}"),
        &["write 3s or more"],
    );
    check("    action_map:", "    on_stale: serve\n    action_map:", &["backends[0].on_stale: `serve` is not known"]);
}

#[test]
fn an_action_map_comes_from_a_control_plane_only_with_the_grants() {
    const OWN: &str = "action_map: builtin:etcd";
    let control = "grants: {control: {addresses: [\"https://c.test:9903\"], tls: {certificate: tls.crt, key: tls.key, ca: ca.pem}}}";
    check(
        OWN,
        "action_map: control",
        &["yaml:21:17: backends[0].action_map: is to come from a control plane, and grants come from a file"],
    );
    let folder = Folder::new();
    let text = SAMPLE.replace("grants: {file: grants.yaml}", control).replace(OWN, "action_map: control");
    assert_eq!(folder.parse(&text).expect("valid").backends[0].action_map, ActionMapSource::Control);
    // A file of that name is written as a path.
    folder.write("control", "rules:\n  - {action: a.read, class: read, method: GET, path: /a, resource: a}\n");
    let config = folder.parse(&SAMPLE.replace(OWN, "action_map: ./control")).expect("valid");
    assert!(matches!(config.backends[0].action_map, ActionMapSource::Written { .. }));
}

#[test]
fn what_is_shown_to_a_control_plane_comes_from_files_or_by_joining() {
    const FILE: &str = "grants: {file: grants.yaml}";
    let control = |more: &str| format!("grants: {{control: {{addresses: [\"https://c.test:9903\"], {more}}}}}");
    let folder = Folder::new();
    for (token, is_there) in [("file: nothing-yet", false), ("env: NOT_SET", false), ("env: TOKEN", true)] {
        let text = SAMPLE.replace(FILE, &control(&format!("join: {{token: {{{token}}}, folder: own}}")));
        let config = folder.parse(&text).expect("valid");
        let GrantSource::Remote { servers, join: Some(join), .. } = config.grants.source else { panic!("no join") };
        assert_eq!(servers.tls, Some(join.files()));
        assert!(join.folder.ends_with("own") && join.folder.is_absolute());
        assert_eq!(matches!(join.token, JoinTokenSource::Env { token: Some(_), .. }), is_there);
    }
    check(FILE, &control("join: {folder: own}"), &["grants.control.join.token: names not exactly one source"]);
    check(FILE, &control("join: {token: {file: a, env: B}, folder: own}"), &["names not exactly one source"]);
    check(FILE, &control("join: {token: {env: lhj_a.b}, folder: own}"), &["is not the name of a variable"]);
    check(FILE, &control("join: {token: {file: a}}"), &["grants.control.join.folder: is missing"]);
    check(FILE, &control("join: {token: {file: a}, folder: tls.crt}"), &["is not a folder"]);
    check(
        FILE,
        &control("tls: {certificate: tls.crt, key: tls.key, ca: ca.pem}, join: {token: {file: a}, folder: own}"),
        &["grants.control.join: is not used with `tls`"],
    );
    let text = SAMPLE.replace(FILE, &control("join: {token: lhj_secret.abc, folder: own}"));
    let errors = folder.parse(&text).expect_err("a token in the file").to_string();
    assert!(!errors.contains("lhj_secret"), "{errors}");
}

const RELAY: &str = "\
relay:
  upstream: {addresses: [\"https://c.test:9903\"], tls: {certificate: tls.crt, key: tls.key, ca: ca.pem}}
  trust_domain: prod.test
  tls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem}
  backends: [shop]
  sidecars: [\"spiffe://prod.test/sidecar/*\"]
";

#[test]
fn a_relay_is_checked() {
    let folder = Folder::new();
    let parse = |text: &str| parse_relay_with(text, &folder.0.path().join("leasehold.yaml"), &|_| None);
    let relay = parse(RELAY).expect("valid");
    let (who, shop) = (Principal::parse("spiffe://prod.test/sidecar/1").unwrap(), BackendName::new("shop").unwrap());
    assert!(relay.may_follow(&who, &shop));
    assert!(!relay.may_follow(&who, &BackendName::new("other").unwrap()));
    assert!(!relay.may_follow(&Principal::parse("spiffe://prod.test/else").unwrap(), &shop));
    let joining =
        RELAY.replace("tls: {certificate: tls.crt, key: tls.key, ca: ca.pem}", "join: {token: {env: T}, folder: own}");
    assert!(!parse(&joining).expect("valid").shows_what_it_joined_with());
    let own_tls = "  tls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem}\n";
    assert!(parse(&joining.replace(own_tls, "")).expect("valid").shows_what_it_joined_with());
    for (from, to, expected) in [
        (own_tls, "", "relay.tls.certificate: is missing"),
        ("backends: [shop]", "backends: []", "relay.backends: is missing or empty"),
        ("  trust_domain: prod.test\n", "", "relay.trust_domain: is missing"),
        ("prod.test\n", "prod.test/x\n", "is not a trust domain"),
        ("sidecar/*", "side*", "names no sidecar"),
        ("client_ca: ca.pem", "client_ca: tls.crt", "is not that of an authority"),
        (", tls: {certificate: tls.crt, key: tls.key, ca: ca.pem}", "", "relay.upstream.tls: is missing"),
        ("relay:\n", "relay:\n  staleness_max: 1s\n", "write 3s to 5m"),
        (RELAY, "workers: 1\n", "relay: is missing"),
    ] {
        let errors = parse(&RELAY.replace(from, to)).expect_err(expected).to_string();
        assert!(errors.contains(expected), "`{expected}` is not in:\n{errors}");
    }
}
