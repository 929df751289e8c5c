//! What happens to a running service: it is stopped, killed, looked into, given new certificates, and its disk fills up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::etcd::certificates;
use super::proxy::{Proxy, Setup, bot, grant};
use super::tools::{DEADLINE, Server, program, run, wait_for};
use backend::{Backend, Then};
use client::Client;

#[path = "../common/backend.rs"]
#[allow(dead_code)]
mod backend;
#[path = "../common/client.rs"]
#[allow(dead_code)]
mod client;

/// In front of a shop, with a grant to read its items.
fn shop(backend: &Backend) -> Setup {
    Setup {
        backends: format!(
            "  - name: shop\n    upstream: http://{}\n    action_map: actions.yaml\n    credential: shop\n",
            backend.address
        ),
        credentials: "  - {name: shop, source: {file: secret}, inject: {bearer: true}}\n".to_owned(),
        files: vec![
            ("secret", "credential-of-the-shop".to_owned()),
            (
                "actions.yaml",
                "rules:\n  - {action: item.read, class: read, method: GET, path: '/items/{item}', resource: 'items/{item}'}\n"
                    .to_owned(),
            ),
        ],
        grants: grant("g1", &bot(), "shop", "item.read", "items/*", 300),
        ..Setup::default()
    }
}

fn request(proxy: &Proxy, item: &str) -> Vec<u8> {
    let (host, token) = (proxy.address, &proxy.token);
    format!("GET /items/{item} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n").into_bytes()
}

#[test]
fn a_call_that_runs_is_finished_and_a_new_one_is_not_taken() {
    let (release, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let backend = Backend::scripted(move |_, stream| {
        gate.lock().unwrap().recv().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate");
        Then::Keep
    });
    let mut proxy = Proxy::start(&shop(&backend));
    let mut caller = Client::connect(proxy.address);
    caller.send(&request(&proxy, "slow"));
    wait_for("the call to be on its way", || (!backend.seen().is_empty()).then_some(()));
    proxy.server.signal(Signal::TERM);
    wait_for("unreadiness", || (proxy.admin("/readyz").status == 503).then_some(()));
    wait_for("the end of listening", || TcpStream::connect(proxy.address).err());
    assert!(!proxy.server.has_ended(), "the call still runs");
    release.send(()).unwrap();
    let answer = caller.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str(), answer.whole), (200, "late", true));
    assert_eq!(proxy.server.ended(), Some(0), "{}", proxy.log());
    let calls: Vec<_> = proxy.records().into_iter().filter(|record| record["kind"] == "call").collect();
    assert_eq!((calls.len(), calls[0]["ended"].as_str()), (1, Some("complete")), "{calls:?}");
}

#[test]
fn a_full_disk_denies_until_there_is_room() {
    let backend = Backend::start();
    let proxy = Proxy::start(&shop(&backend));
    assert_eq!(proxy.call("GET", "/items/1").status, 200);
    let old = proxy.path("audit/audit-00000000.jsonl");
    // As long as `audit.bytes_max`, and nothing in it.
    std::fs::File::create(&old).unwrap().set_len(1 << 30).unwrap();
    let refused = wait_for("the refusal", || Some(proxy.call("GET", "/items/1")).filter(|answer| answer.status != 200));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("\"audit_unavailable\""), "{refused:?}");
    wait_for("unreadiness", || (proxy.admin("/readyz").status == 503).then_some(()));
    backend.forget();
    assert_eq!(proxy.call("GET", "/items/1").status, 503);
    assert!(backend.seen().is_empty(), "what cannot be recorded is not done");
    std::fs::remove_file(&old).unwrap();
    wait_for("room", || (proxy.call("GET", "/items/1").status == 200).then_some(()));
    wait_for("readiness", || (proxy.admin("/readyz").status == 200).then_some(()));
}

type Secure = StreamOwned<ClientConnection, TcpStream>;

fn connect(proxy: &Proxy, authority: &Path) -> Secure {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::from(proxy.address.ip());
    let stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// One call over a connection that stays open.
fn call_over(stream: &mut Secure, proxy: &Proxy) -> String {
    stream.write_all(&request(proxy, "1")).unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"ok\n") {
        let mut piece = [0; 1024];
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "the connection was dropped: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_new_certificate_drops_no_connection_and_a_broken_one_changes_nothing() {
    let backend = Backend::start();
    let mut setup = shop(&backend);
    let (old, new) = (certificates(), certificates());
    setup.files.extend([("old-ca.pem", old.authority), ("new-ca.pem", new.authority)]);
    setup.files.extend([("server.pem", old.server.0), ("server.key", old.server.1)]);
    setup.listener = "    tls: {certificate: server.pem, key: server.key}\n".to_owned();
    let proxy = Proxy::start(&setup);
    let put = |name: &str, content: &str| {
        std::fs::write(proxy.path("fresh"), content).unwrap();
        std::fs::rename(proxy.path("fresh"), proxy.path(name)).unwrap();
    };
    let trusted = |authority: &str| {
        let (authority, url) = (proxy.path(authority), format!("https://{}/items/1", proxy.address));
        let bearer = format!("authorization: Bearer {}", proxy.token);
        let words = ["-s", "-o", "/dev/null", "-m", "20", "-H", &bearer, &url, "--cacert"];
        run(Command::new(program("curl")).args(words).arg(authority)).status.success()
    };
    let mut kept = connect(&proxy, &proxy.path("old-ca.pem"));
    assert_eq!(call_over(&mut kept, &proxy), "HTTP/1.1 200 OK");
    assert!(trusted("old-ca.pem") && !trusted("new-ca.pem"));

    // For a moment the key is not the certificate's.
    put("server.pem", &new.server.0);
    put("server.key", &new.server.1);
    wait_for("the new certificate", || trusted("new-ca.pem").then_some(()));
    assert!(!trusted("old-ca.pem"));
    assert_eq!(call_over(&mut kept, &proxy), "HTTP/1.1 200 OK", "what was open stays open");

    put("server.pem", "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n");
    wait_for("the complaint", || proxy.log().contains("certificates not in force").then_some(()));
    assert!(trusted("new-ca.pem"));
    assert_eq!(call_over(&mut kept, &proxy), "HTTP/1.1 200 OK");
}

/// As a user without privileges: the one who runs the tests, or `nobody` where that is root.
fn as_user(words: &[&str]) -> Command {
    if !rustix::process::getuid().is_root() {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        return command;
    }
    let mut command = Command::new(program("setpriv"));
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]).args(words);
    command
}

const NOBODY: &str = "65534";

#[test]
fn nobody_of_the_same_user_looks_into_it() {
    let mut proxy = Proxy::start(&shop(&Backend::start()));
    proxy.server.signal(Signal::TERM);
    assert_eq!(proxy.server.ended(), Some(0));
    // The same again, and as the user. The program comes along, because its folder may be closed to them.
    let (program_path, config) = (proxy.path("leasehold"), proxy.path("leasehold.yaml"));
    std::fs::copy(env!("CARGO_BIN_EXE_leasehold"), &program_path).unwrap();
    if rustix::process::getuid().is_root() {
        let owner = format!("{NOBODY}:{NOBODY}");
        assert!(run(Command::new("chown").arg("-R").arg(owner).arg(proxy.path(""))).status.success());
    }
    let (program_path, config) = (program_path.display().to_string(), config.display().to_string());
    let quiet = |mut command: Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Server::start(&mut command)
    };
    let ours = quiet(as_user(&[&program_path, "proxy", "--config", &config]));
    let other = quiet(as_user(&["sleep", "600"]));
    wait_for("the proxy", || TcpStream::connect(proxy.admin).ok());
    wait_for("readiness", || (proxy.admin("/readyz").status == 200).then_some(()));
    let reads =
        |server: &Server, name: &str| run(&mut as_user(&["cat", &format!("/proc/{}/{name}", server.id())])).status;
    // What a process that is as every other shows.
    wait_for("the other one", || reads(&other, "environ").success().then_some(()));
    for name in ["environ", "maps", "mem", "auxv"] {
        assert!(!reads(&ours, name).success(), "{name} can be read");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ours.id())).unwrap();
    let core: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "soft and hard");
}

#[test]
fn a_process_out_of_descriptors_serves_again_when_some_are_free() {
    // BI-RES-009
    let backend = Backend::start();
    let proxy = Proxy::start(&Setup { descriptors: Some(64), ..shop(&backend) });
    let mut first = Client::connect(proxy.address);
    first.send(&request(&proxy, "a"));
    assert_eq!(first.answer().unwrap().status, 200);
    // More than there is room for; the kernel takes them and the sidecar cannot yet.
    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(proxy.address).unwrap()).collect();
    wait_for("a connection that was not accepted", || proxy.log().contains("could not be accepted").then_some(()));
    first.send(&request(&proxy, "b"));
    assert_eq!(first.answer().unwrap().status, 200, "who is in is served");
    drop(crowd);
    let mut late = Client::connect(proxy.address);
    late.send(&request(&proxy, "c"));
    assert_eq!(late.answer().unwrap().status, 200);
    assert_eq!(backend.seen().len(), 3);
}
