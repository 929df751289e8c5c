//! Callers as people use them: requests, httpx, websockets, curl, h2load.

use std::io::{BufRead, Read};
use std::process::Command;

use super::etcd::certificates;
use super::proxy::{Proxy, Setup, bot, grant};
use super::rabbitmq::rabbit;
use super::tools::{Server, curl, free, program, run, venv, wait_for};

fn script(name: &str) -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/").to_owned() + name
}

/// A sidecar with a second listener for TLS and a third on a Unix socket.
fn start() -> (Proxy, String, String) {
    let made = certificates();
    let tls = free();
    let mut setup = rabbit().setup("");
    setup.grants = grant("g1", &bot(), "rabbitmq", "overview.read", "**", 300);
    setup.files.extend([("ca.pem", made.authority), ("server.pem", made.server.0), ("server.key", made.server.1)]);
    setup.listener = format!(
        "  - name: tls\n    address: '{tls}'\n    backends: [rabbitmq]\n    tls: {{certificate: server.pem, key: server.key}}\n  - name: unix\n    address: 'unix:sidecar.sock'\n    backends: [rabbitmq]\n"
    );
    let proxy = Proxy::start(&setup);
    let authority = proxy.path("ca.pem").display().to_string();
    (proxy, format!("https://{tls}"), authority)
}

#[test]
fn python_calls_over_both_versions() {
    let (proxy, tls, authority) = start();
    let output = run(Command::new(venv()).arg(script("callers.py")).args([
        &format!("http://{}", proxy.address),
        &tls,
        &authority,
        &proxy.token,
        "/api/overview",
    ]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        said,
        "requests 200 3\nrequests 403 out_of_scope\nhttpx HTTP/1.1 200\nhttpx 403\nhttpx 401\nhttpx HTTP/2 200\nhttpx 403\nhttpx 401\n"
    );
}

#[test]
fn curl_calls_over_every_transport() {
    let (proxy, tls, authority) = start();
    let bearer = format!("authorization: Bearer {}", proxy.token);
    let plain = proxy.url("/api/overview");
    let over_tls = format!("{tls}/api/overview");
    let socket = proxy.path("sidecar.sock").display().to_string();
    let named = "http://localhost/api/overview".to_owned();
    for words in [
        vec!["--http1.1", &plain],
        vec!["--http2-prior-knowledge", &plain],
        vec!["--http1.1", "--cacert", &authority, &over_tls],
        vec!["--http2", "--cacert", &authority, &over_tls],
        vec!["--unix-socket", &socket, &named],
    ] {
        let mut all = vec!["-H", &bearer];
        all.extend(&words);
        let answer = curl(&all);
        assert_eq!(answer.status, 200, "{words:?}: {answer:?}");
        assert!(answer.body.contains("rabbitmq_version"), "{words:?}");
        assert_eq!(curl(&words).status, 401, "{words:?} without a token");
    }
}

#[test]
fn many_streams_are_all_served() {
    let (proxy, _, _) = start();
    let output = run(Command::new(program("h2load"))
        .args(["-n", "600", "-c", "4", "-m", "20", "-H", &format!("authorization: Bearer {}", proxy.token)])
        .arg(proxy.url("/api/whoami").replace("whoami", "overview")));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("600 succeeded, 0 failed") && said.contains("600 2xx"), "{said}");
}

#[test]
fn a_websocket_is_closed_with_its_reason_when_its_grant_ends() {
    const SECRET: &str = "socket-credential-of-the-test";
    let (_server, mut lines) = Server::script("echo.py", &[SECRET]);
    let mut port = String::new();
    lines.read_line(&mut port).unwrap();
    let setup = Setup {
        backends: format!(
            "  - name: chat\n    upstream: http://127.0.0.1:{}\n    action_map: actions.yaml\n    credential: chat\n",
            port.trim()
        ),
        credentials: "  - {name: chat, source: {file: secret}, inject: {bearer: true}}\n".to_owned(),
        files: vec![
            ("secret", SECRET.to_owned()),
            (
                "actions.yaml",
                "rules:\n  - {action: socket.open, class: write, method: GET, path: /, upgrade: websocket, resource: socket, streaming: true}\n"
                    .to_owned(),
            ),
        ],
        grants: grant("g1", &bot(), "chat", "socket.open", "socket", 300),
        ..Setup::default()
    };
    let proxy = Proxy::start(&setup);
    let url = format!("ws://{}/", proxy.address);
    let (mut caller, mut said) = Server::script("websocket.py", &[&url, &proxy.token]);
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n", "{}", proxy.log());
    caller.say("\n");
    proxy.grants("");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "1008 revoked\n");
    let (mut refused, _) = Server::script("websocket.py", &[&url, &proxy.token]);
    assert_ne!(refused.ended(), Some(0));
    let cut = wait_for("the record", || proxy.records().into_iter().find(|record| record["ended"] == "cut"));
    assert!(cut["bytes_in"].as_u64() > Some(70_000) && cut["bytes_out"].as_u64() > Some(70_000), "{cut}");
}
