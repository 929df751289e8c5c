//! What is refused, where, and what is said about it.

mod source;

use std::path::{Path, PathBuf};

use super::*;
use crate::domain::id::BackendName;
use crate::domain::principal::Principal;

/// A folder with everything that the sample names.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        let (authority, leaf) = certificates();
        folder.write("ca.pem", &authority);
        folder.write("tls.crt", &leaf.0);
        folder.write("tls.key", &leaf.1);
        folder.write("other.key", &certificates().1.1);
        folder.write("empty.pem", "");
        folder.write("half.pem", &format!("{authority}{}", &authority[..authority.len() / 2]));
        folder.write("damaged.pem", &format!("{authority}{}", authority.replace("MI", "!!")));
        folder.write("mixed.pem", &format!("{authority}{}", leaf.1));
        folder.write("jwks.json", r#"{"keys":[{"kty":"EC","crv":"P-256","x":"a","y":"b"}]}"#);
        folder.write("private.json", r#"{"keys":[{"kty":"EC","crv":"P-256","x":"a","y":"b","d":"c"}]}"#);
        folder.write("grants.yaml", "grants: []\n");
        folder.write("secret", "hunter2\n");
        folder.write("lines", "one\ntwo\n");
        folder.write("map.yaml", "requires: {encoded_slash: true}\nrules:\n  - {action: a.read, class: read, method: GET, path: /a, resource: a}\n");
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("a written file");
    }

    fn parse(&self, text: &str) -> Result<Config, ConfigErrors> {
        let environment = |name: &str| match name {
            "TOKEN" => Some("lhj_x".to_owned()),
            "SECRET" => Some("hunter2".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        parse_with(text, &self.0.path().join("leasehold.yaml"), &environment)
    }
}

fn certificates() -> (String, (String, String)) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate");
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["db.test".to_owned()]).expect("names");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    (authority.pem(), (leaf.pem(), key.serialize_pem()))
}

const SAMPLE: &str = "\
listeners:
  - name: main
    address: 127.0.0.1:8443
    backends: [rabbitmq]
    tls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem, client_certificate: required}
    limits: {head_timeout: 10s, head_bytes: 16KiB}
identity:
  spiffe: [{trust_domain: example.test, bundle: ca.pem}]
  issuers:
    - name: idp
      issuer: https://idp.test
      audience: [leasehold]
      algorithm: ES256
      keys: {file: jwks.json}
      task: \"github:{/repository}:run:{/run_id}\"
      attributes: {repository: /repository}
      required_claims: {/environment: prod, /verified: true}
backends:
  - name: rabbitmq
    upstream: http://127.0.0.1:15672
    action_map: builtin:etcd
    credential: rabbit-admin
    baseline:
      - {principals: [\"https://idp.test#ci\"], actions: [overview.read], resources: [\"**\"], credential: rabbit-admin}
credentials:
  - name: rabbit-admin
    source: {file: secret}
    inject: {basic: {username: admin}}
grants: {file: grants.yaml}
admin: {address: 127.0.0.1:9901}
";

/// The sample with one text replaced by another must give exactly these errors (each a part of its line's text).
#[track_caller]
fn check(from: &str, to: &str, expected: &[&str]) {
    let folder = Folder::new();
    assert!(from.is_empty() || SAMPLE.contains(from), "`{from}` is not in the sample");
    let text = if from.is_empty() { format!("{SAMPLE}{to}\n") } else { SAMPLE.replacen(from, to, 1) };
    let errors = match folder.parse(&text) {
        Ok(_) => ConfigErrors(Vec::new()),
        Err(errors) => errors,
    };
    let shown: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    let all = shown.join("\n");
    assert_eq!(shown.len(), expected.len(), "`{from}` -> `{to}` gave:\n{all}");
    for (line, part) in shown.iter().zip(expected) {
        assert!(line.contains(part), "`{from}` -> `{to}`: expected `{part}` in:\n{line}");
        assert!(!line.contains("hunter"), "a secret is shown: {line}");
    }
}

#[test]
fn the_sample_is_valid() {
    let config = Folder::new().parse(SAMPLE).expect("valid");
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.listeners[0].limits.head_bytes, 16 << 10);
    assert!(config.workers > 0);
    assert!(config.relaxations().is_empty(), "{:?}", config.relaxations());
    let warnings: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("long-lived"), "{warnings:?}");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn the_shape_is_strict() {
    // BI-CFG-007: a misspelt key.
    check(
        "client_certificate:",
        "client_certifciate:",
        &["yaml:5:66: client_certifciate: there is no such key here; did you mean `client_certificate`?"],
    );
    check("", "requier_mtls: true", &["requier_mtls: there is no such key here"]);
    // BI-CFG-016: there is nothing that makes allowing the default.
    check("", "default: allow", &["default: there is no such key here"]);
    check(
        "    backends: [rabbitmq]",
        "    backends: [rabbitmq]\n    client_ca: ca.pem",
        &["it exists as `listeners[].tls.client_ca`"],
    );
    // BI-CFG-009: a text is not a boolean.
    check("", "grants2: 1", &["did you mean `grants`?"]);
    check("admin: {", "admin: {danger_admin_address: \"false\", ", &["write `true` or `false` without quotes"]);
    check("admin: {", "admin: {danger_admin_address: no, ", &["write `true` or `false` without quotes"]);
    check("admin: {", "admin: {danger_admin_address: 0, ", &["write `true` or `false` without quotes"]);
    check("", "workers: \"4\"", &["workers: a string cannot stand here; write a whole number"]);
    check("", "workers: -1", &["workers"]);
    check("", "drain_timeout:", &["drain_timeout: the key has nothing after its colon"]);
    check(
        "    tls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem, client_certificate: required}",
        "    tls:",
        &["tls: keys and values are expected here"],
    );
    check("", "workers: 1\nworkers: 2", &["workers: the key is written twice"]);
    check("", "<<: {workers: 1}", &["merge keys"]);
    check("", "---\na: b", &["several documents"]);
    check("[leasehold]", "leasehold", &["audience: a list is expected here"]);
    check("", "  bad indentation: [", &["leasehold.yaml:"]);
}

#[test]
fn serving_while_stale_is_named_as_a_relaxation() {
    let text = SAMPLE.replace("    action_map:", "    on_stale: serve_until_expiry\n    action_map:");
    let relaxed = Folder::new().parse(&text).expect("valid").relaxations();
    assert_eq!(relaxed.len(), 1, "{relaxed:?}");
    assert!(relaxed[0].to_string().contains("backends[rabbitmq].on_stale: while the view is stale"), "{}", relaxed[0]);
}

#[test]
fn an_alias_bomb_is_stopped() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let inside = vec![format!("*a{}", n - 1); 8].join(", ");
        text.push_str(&format!("a{n}: &a{n} [{inside}]\n"));
    }
    // The shape refuses the first key; a known key of the same kind meets the budget.
    assert!(Folder::new().parse(&text).is_err());
    let nested: Result<serde_json::Value, _> = yaml(&text);
    assert!(nested.is_err());
    let deep: Result<serde_json::Value, _> = yaml(&"[".repeat(10_000));
    assert!(deep.is_err());
}

#[test]
fn all_mistakes_are_reported_in_order() {
    let text = SAMPLE
        .replace("head_timeout: 10s", "head_timeout: 10")
        .replace("credential: rabbit-admin\n", "credential: rabbit-amdin\n")
        .replace("grants.yaml", "nowhere.yaml");
    let errors = Folder::new().parse(&text).expect_err("invalid").0;
    let lines: Vec<_> = errors.iter().map(|e| (e.line, e.field.as_str())).collect();
    assert_eq!(
        lines,
        [
            (Some(6), "listeners[0].limits.head_timeout"),
            (Some(22), "backends[0].credential"),
            (Some(29), "grants.file")
        ]
    );
    assert_eq!(errors[1].hint.as_deref(), Some("did you mean `rabbit-admin`?"));
}

#[test]
fn what_is_missing_is_named() {
    let errors = Folder::new().parse("").expect_err("empty").to_string();
    for field in ["listeners: is missing", "backends: is missing", "identity: names nobody", "grants: is missing"] {
        assert!(errors.contains(field), "`{field}` is not in:\n{errors}");
    }
    check("      algorithm: ES256\n", "", &["identity.issuers[0].algorithm: is missing; write `algorithm: ES256`"]);
    check("[leasehold]", "[]", &["audience: is missing or empty"]);
    check("      keys: {file: jwks.json}\n", "", &["keys: is missing"]);
    check("    upstream: http://127.0.0.1:15672\n", "", &["backends[0].upstream: is missing"]);
    check("    inject: {basic: {username: admin}}\n", "", &["inject: is missing"]);
    check("inject: {basic: {username: admin}}", "inject: []", &["inject: is missing or empty"]);
}

#[test]
fn listeners_are_checked() {
    let tls = "    tls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem, client_certificate: required}\n";
    check(tls, "", &[]);
    check("127.0.0.1:8443", "0.0.0.0:8443", &[]);
    check(
        &format!("127.0.0.1:8443\n    backends: [rabbitmq]\n{tls}"),
        "0.0.0.0:8443\n    backends: [rabbitmq]\n",
        &["danger_plain_listener"],
    );
    check(
        &format!("127.0.0.1:8443\n    backends: [rabbitmq]\n{tls}"),
        "0.0.0.0:8443\n    backends: [rabbitmq]\n    danger_plain_listener: true\n",
        &[],
    );
    check(
        &format!("127.0.0.1:8443\n    backends: [rabbitmq]\n{tls}"),
        "unix:run/main.sock\n    backends: [rabbitmq]\n",
        &[],
    );
    check("127.0.0.1:8443", ":8443", &["`:8443` is not an address"]);
    check("127.0.0.1:8443", "db.test:8443", &["is not an address"]);
    check("backends: [rabbitmq]", "backends: [rabitmq]", &["did you mean `rabbitmq`?"]);
    check("backends: [rabbitmq]", "backends: [rabbitmq, rabbitmq]", &["written twice"]);
    check("name: main", "name: a b", &["`a b` is not a name"]);
    check("client_ca: ca.pem, ", "", &["client_certificate: asks for certificates that nobody is named to sign"]);
    check(", client_certificate: required", "", &["no certificate is asked for"]);
    check("key: tls.key", "key: other.key", &["other.key` is not the key of the certificate in"]);
    check("head_bytes: 16KiB", "head_bytes: 16kb", &["is not a size"]);
    check("head_bytes: 16KiB", "head_bytes: 16GiB", &["write 8KiB to 1MiB"]);
    check("head_timeout: 10s", "head_timeout: 0s", &["write 100ms to 5m"]);
    check("limits: {", "limits: {connections: 0, ", &["connections: 0 is out of range"]);
}

#[test]
fn files_are_what_they_claim() {
    // BI-CFG-001, -002, -003.
    check(
        "client_ca: ca.pem",
        "client_ca: /nonexistent",
        &["tls.client_ca: `/nonexistent` cannot be read: there is no such file"],
    );
    check("client_ca: ca.pem", "client_ca: empty.pem", &["empty.pem` has no certificate"]);
    check("client_ca: ca.pem", "client_ca: half.pem", &["half.pem` holds a damaged block"]);
    check("client_ca: ca.pem", "client_ca: damaged.pem", &["damaged"]);
    check("client_ca: ca.pem", "client_ca: mixed.pem", &["holds a block that is no `CERTIFICATE`"]);
    check("client_ca: ca.pem", "client_ca: tls.crt", &["is not that of an authority"]);
    check("client_ca: ca.pem", "client_ca: tls.key", &["holds a block that is no"]);
    check("client_ca: ca.pem", "client_ca: .", &["is not a file"]);
    check("bundle: ca.pem", "bundle: half.pem", &["identity.spiffe[0].bundle"]);
    check("jwks.json", "grants.yaml", &["is not JSON"]);
    check("jwks.json", "private.json", &["is a private or a shared one"]);
    check("{file: secret}", "{file: empty.pem}", &["is empty"]);
    check("{file: secret}", "{file: lines}", &["holds more than one line"]);
    check("grants.yaml", "grants.txt", &["of no known kind", "no such file"]);
}

#[test]
fn identities_are_checked() {
    check("algorithm: ES256", "algorithm: HS256", &["lets anybody who can verify a token make one"]);
    check("algorithm: ES256", "algorithm: none", &["lets anybody"]);
    check("algorithm: ES256", "algorithm: ES265", &["did you mean `ES256`?"]);
    check("[leasehold]", "[\"*\"]", &["is a pattern"]);
    check("issuer: https://idp.test", "issuer: https://*.test", &["is not an issuer"]);
    check("{file: jwks.json}", "{url: https://idp.test/jwks}", &["add `ca: ca.pem` beside it"]);
    check("{file: jwks.json}", "{url: https://idp.test/jwks, ca: ca.pem}", &[]);
    check("{file: jwks.json}", "{url: http://idp.test/jwks}", &["in the clear"]);
    check("{file: jwks.json}", "{url: http://127.0.0.1:80/jwks}", &[]);
    check("{file: jwks.json}", "{url: https://u:p@idp.test/jwks, ca: ca.pem}", &["is not a URL"]);
    check("{file: jwks.json}", "{file: jwks.json, refresh: 5m}", &["is about a `url`"]);
    check("{file: jwks.json}", "{}", &["names no source"]);
    check("github:{/repository}", "{/repository}", &["does not make a task"]);
    check("{/run_id}", "{run_id}", &["not a pointer"]);
    check("{/run_id}", "{/run_id", &["without its"]);
    check("trust_domain: example.test", "trust_domain: spiffe://example.test", &["not a trust domain"]);
    check("trust_domain: example.test", "trust_domain: example.test/x", &["not a trust domain"]);
}

#[test]
fn backends_are_checked() {
    check("http://127.0.0.1:15672", "http://rabbit.test:15672", &["sends a credential to `rabbit.test` in the clear"]);
    check("http://127.0.0.1:15672", "http://rabbit.test:15672\n    danger_plain_upstream: true", &[]);
    check("http://127.0.0.1:15672", "https://rabbit.test", &["names nobody to believe"]);
    check("http://127.0.0.1:15672", "https://rabbit.test\n    upstream_tls: {ca: ca.pem}", &[]);
    check(
        "http://127.0.0.1:15672",
        "h2://rabbit.test\n    upstream_tls: {ca: ca.pem, client_key: tls.key}",
        &["client_certificate: is missing"],
    );
    check("http://127.0.0.1:15672", "http://127.0.0.1/api", &["has a path"]);
    check("http://127.0.0.1:15672", "http://admin:hunter2@127.0.0.1", &["has a user in it"]);
    check("http://127.0.0.1:15672", "ftp://127.0.0.1", &["`ftp` is not a known scheme"]);
    check("http://127.0.0.1:15672", "127.0.0.1:15672", &["names no scheme"]);
    check("http://127.0.0.1:15672", "http://127.0.0.1:0", &["is not a host and a port"]);
    check("http://127.0.0.1:15672", "http://[::1]:1", &[]);
    check("http://127.0.0.1:15672", "unix+h2c:run/x.sock", &[]);
    check("builtin:etcd", "builtin:rabitmq", &["did you mean `rabbitmq`?"]);
    check("builtin:etcd", "map.yaml", &["add `canonical: {encoded_slash: keep}`"]);
    check("builtin:etcd", "map.yaml\n    canonical: {encoded_slash: keep}", &[]);
    check("builtin:etcd", "nowhere.yaml", &["there is no such file"]);
    check("builtin:etcd", "builtin:etcd\n    mode: obsreve", &["did you mean `observe`?"]);
    check("builtin:etcd", "builtin:etcd\n    hosts: [\"*.test\"]", &["is not a host"]);
    check("builtin:etcd", "builtin:etcd\n    response: {trailers: [content-length]}", &["cannot be a trailer"]);
    check("[\"https://idp.test#ci\"]", "[ci]", &["principal `ci` is not valid"]);
    check("[\"**\"]", "[\"a**\"]", &["resource pattern"]);
}

#[test]
fn two_backends_of_a_listener_need_hosts() {
    let second = "  - {name: etcd, upstream: \"h2c://127.0.0.1:2379\", action_map: \"builtin:etcd\", hosts: [etcd.test]}\ncredentials:";
    let text = SAMPLE.replace("credentials:", second).replace("backends: [rabbitmq]", "backends: [rabbitmq, etcd]");
    let errors = Folder::new().parse(&text).expect_err("ambiguous").to_string();
    assert!(errors.contains("`rabbitmq` has no `hosts`"), "{errors}");
    let named = text.replacen("builtin:etcd", "builtin:etcd\n    hosts: [rabbit.test]", 1);
    assert!(Folder::new().parse(&named).is_ok());
    let same = text.replacen("builtin:etcd", "builtin:etcd\n    hosts: [ETCD.test]", 1);
    let errors = Folder::new().parse(&same).expect_err("ambiguous").to_string();
    assert!(errors.contains("belongs to two backends"), "{errors}");
}

#[test]
fn secrets_are_only_referred_to() {
    // BI-CFG-005.
    check("{file: secret}", "{env: UNSET}", &["the variable `UNSET` is not set"]);
    check("{file: secret}", "{env: EMPTY}", &["the variable `EMPTY` is empty"]);
    check("{file: secret}", "{env: SECRET}", &[]);
    check("{file: secret}", "env:UNSET", &["write `source: {env: …}`"]);
    check("{file: secret}", "hunter2", &["a secret is never written in this file"]);
    check("{file: secret}", "{value: hunter2}", &["a secret is never written in this file"]);
    check("{file: secret}", "{env: \"hunter-2\"}", &["is not the name of a variable"]);
    check("{file: secret}", "{}", &["names not exactly one source"]);
    check("{file: secret}", "{file: secret, env: SECRET}", &["names not exactly one source"]);
    check("{file: secret}", "{jwt: {key: tls.key, algorithm: ES256, issuer: l, audience: a}}", &[]);
    check("{file: secret}", "{jwt: {key: tls.crt, algorithm: ES256, issuer: l, audience: a}}", &["has no private key"]);
    check(
        "{file: secret}",
        "{jwt: {key: tls.key, algorithm: RS256, issuer: l, audience: a, lifetime: 2h}}",
        &["`RS256`", "1s to 1h"],
    );
    check(
        "{file: secret}",
        "{jwt: {key: tls.key, algorithm: ES256, issuer: l, audience: a, claims: {sub: x}}}",
        &["is set for each grant"],
    );
}

#[test]
fn nothing_is_substituted() {
    let inject = "{basic: {username: admin}}";
    // BI-CFG-017.
    check(
        inject,
        "{header: {name: X-Key, value: \"${HOME}{file./etc/passwd}\"}}",
        &["has a `${`, and nothing is ever substituted"],
    );
    check(inject, "{header: {name: X-Key, value: \"{secret}{file./etc/passwd}\"}}", &["has another brace"]);
    check(inject, "{header: {name: X-Key, value: \"{secret}{secret}\"}}", &["has another brace"]);
    check(inject, "{header: {name: X-Key, value: plain}}", &["has no `{secret}`"]);
    check(inject, "{header: {name: X-Key, value: \"Key {secret}\"}}", &[]);
    check(inject, "{header: {name: Host, value: \"{secret}\"}}", &["sets itself"]);
    check(inject, "{header: {name: X_Key, value: \"{secret}\\r\\nX: y\"}}", &["control"]);
    check(inject, "{bearer: false}", &["is off"]);
    check(inject, "[{bearer: true}, {basic: {username: a}}]", &["inject[1]: writes to a place"]);
    check(inject, "[{bearer: true}, {query: {name: token}}]", &[]);
    check(inject, "{bearer: true, query: {name: token}}", &["not exactly one place"]);
    check(inject, "{basic: {username: \"a:b\"}}", &["ends a user's name"]);
    check("trust_domain: example.test", "trust_domain: \"${DOMAIN}\"", &["nothing is ever substituted"]);
}

#[test]
fn the_process_is_checked() {
    check("127.0.0.1:9901", "0.0.0.0:9901", &["danger_admin_address"]);
    check("127.0.0.1:9901", "0.0.0.0:9901, danger_admin_address: true", &[]);
    check("{file: grants.yaml}", "{file: grants.yaml, staleness_max: 10m}", &["danger_staleness_max"]);
    check("{file: grants.yaml}", "{file: grants.yaml, staleness_max: 10m, danger_staleness_max: true}", &[]);
    check("{file: grants.yaml}", "{file: grants.yaml, staleness_max: 1s, poll: 1s}", &["less than twice `poll`"]);
    check("", "audit: {segment_bytes: 1GiB, bytes_max: 1GiB}", &["fewer than two segments"]);
    check("", "audit: {directory: secret}", &["is not a folder"]);
    check("", "audit: {intent: sometimes}", &["write `each_call` or `batched`"]);
    check("", "access_log: true", &["`true` is not known"]);
    check("", "workers: 100000", &["write 0 to 1024"]);
}

#[test]
fn relaxations_are_named() {
    let text = SAMPLE
        .replace("client_certificate: required", "client_certificate: required, min_version: 1.2")
        .replace("http://127.0.0.1:15672", "http://rabbit.test\n    danger_plain_upstream: true\n    mode: observe\n    canonical: {encoded_slash: keep, path_params: keep, method_override: keep}\n    response: {set_cookie: keep, leak_guard: off}")
        .replace("{file: grants.yaml}", "{file: grants.yaml, staleness_max: 6m, danger_staleness_max: true}")
        .replace("127.0.0.1:9901", "0.0.0.0:9901, danger_admin_address: true")
        + "audit: {intent: batched}\n";
    let config = Folder::new().parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let fields: Vec<String> = config.relaxations().into_iter().map(|n| n.field).collect();
    assert_eq!(
        fields,
        [
            "listeners[main].tls.min_version",
            "backends[rabbitmq].mode",
            "backends[rabbitmq].canonical.encoded_slash",
            "backends[rabbitmq].canonical.path_params",
            "backends[rabbitmq].canonical.method_override",
            "backends[rabbitmq].response.set_cookie",
            "backends[rabbitmq].response.leak_guard",
            "backends[rabbitmq].danger_plain_upstream",
            "grants.danger_staleness_max",
            "audit.intent",
            "admin.danger_admin_address",
        ]
    );
}

#[test]
fn a_file_that_is_not_there_is_said_so() {
    let errors = load(Path::new("/nonexistent/leasehold.yaml")).expect_err("no file");
    assert_eq!(errors.0[0].origin, PathBuf::from("/nonexistent/leasehold.yaml"));
    assert!(errors.to_string().contains("there is no such file"), "{errors}");
}

proptest::proptest! {
    /// Whatever is cut out of a valid file, reading it ends in a value or in errors, never in a panic.
    #[test]
    fn nothing_panics(from in 0usize..1200, length in 0usize..40, with in "[ -~\n]{0,6}") {
        let environment = |_: &str| None;
        let cut = |at: usize| (0..=at.min(SAMPLE.len())).rev().find(|at| SAMPLE.is_char_boundary(*at)).unwrap_or(0);
        let text = format!("{}{with}{}", &SAMPLE[..cut(from)], &SAMPLE[cut(from + length)..]);
        if let Err(errors) = parse_with(&text, Path::new("/nonexistent/x.yaml"), &environment) {
            proptest::prop_assert!(!errors.0.is_empty());
        }
    }
}
