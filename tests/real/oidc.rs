//! Tokens of a real OpenID provider, whose keys change.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::issuer::{AUDIENCE, Issuer, now};
use super::proxy::{Proxy, grant};
use super::rabbitmq::rabbit;
use super::tools::{Server, curl, free, program, wait_for};
use serde_json::json;

/// The provider with a key of this id; ready when this returns.
fn provider(port: u16, key: &str) -> Server {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node");
    assert!(
        folder.join("node_modules/oidc-provider").exists(),
        "oidc-provider is not installed; run scripts/test once, it installs what the tests need"
    );
    // Where it stands, so that it finds its modules.
    let script = folder.join("issuer.mjs");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/issuer.mjs"), &script).unwrap();
    let mut command = Command::new(program("node"));
    command.arg(script).args([&port.to_string(), key]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Server::start(&mut command);
    let mut line = String::new();
    BufReader::new(server.stdout()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    server
}

fn token(port: u16) -> String {
    let answer = curl(&[
        "-u",
        "ci-bot:client-secret-of-the-test",
        "-d",
        "grant_type=client_credentials&scope=call&resource=https://leasehold.test",
        &format!("http://127.0.0.1:{port}/token"),
    ]);
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["access_token"].as_str().unwrap().to_owned()
}

#[test]
fn keys_change_without_a_restart() {
    let port = free().port();
    let issuer = format!("http://127.0.0.1:{port}");
    let first = provider(port, "first");
    let mut setup = rabbit().setup("");
    setup.identity = format!(
        "    - name: provider\n      issuer: {issuer}\n      audience: ['https://leasehold.test']\n      algorithm: ES256\n      typ: at+jwt\n      keys: {{url: '{issuer}/jwks', refresh: 5s, refresh_min: 1s}}\n"
    );
    setup.grants = grant("g1", &format!("{issuer}#ci-bot"), "rabbitmq", "overview.read", "**", 300);
    let proxy = Proxy::start(&setup);
    let call =
        |token: &str| curl(&["-H", &format!("authorization: Bearer {token}"), &proxy.url("/api/overview")]).status;
    let old = token(port);
    assert_eq!(call(&old), 200, "{}", proxy.log());

    drop(first);
    let unused = old.clone();
    assert_eq!(call(&unused), 200, "with the provider away the last good keys serve");

    let second = provider(port, "second");
    let new = token(port);
    wait_for("the new key", || (call(&new) == 200).then_some(()));
    wait_for("the end of the old key", || (call(&old) == 401).then_some(()));
    assert_eq!(call(&new), 200);
    drop(second);
}

#[test]
fn service_account_tokens_are_believed_where_they_agree_with_themselves() {
    let cluster = Issuer::new("cluster");
    let mut setup = rabbit().setup("");
    setup.identity = format!(
        "    - {{name: cluster, issuer: 'https://kubernetes.default.svc', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: cluster.json}}, preset: kubernetes}}\n"
    );
    setup.files.push(("cluster.json", cluster.jwks()));
    let principal = "https://kubernetes.default.svc#system:serviceaccount:ci:deployer";
    setup.grants = grant("g1", principal, "rabbitmq", "overview.read", "**", 300);
    let proxy = Proxy::start(&setup);
    let token = |namespace: &str, audience: &str| {
        let now = now();
        cluster.sign(&json!({
            "iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:ci:deployer", "aud": [audience],
            "iat": now, "nbf": now, "exp": now + 3_607,
            "kubernetes.io": {
                "namespace": namespace, "serviceaccount": {"name": "deployer", "uid": "1"},
                "pod": {"name": "job-1", "uid": "2"}, "warnafter": now + 3_000,
            },
        }))
    };
    let call =
        |token: &str| curl(&["-H", &format!("authorization: Bearer {token}"), &proxy.url("/api/overview")]).status;
    assert_eq!(call(&token("ci", AUDIENCE)), 200, "{}", proxy.log());
    assert_eq!(call(&token("other", AUDIENCE)), 401);
    assert_eq!(call(&token("ci", "https://kubernetes.default.svc")), 401);
}
