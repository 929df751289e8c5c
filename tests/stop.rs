//! Whoever is told to stop during the start stops, whatever the start waits for.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

#[path = "common/mod.rs"]
mod common;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};

use common::issuer::{AUDIENCE, ISSUER, Issuer};
use common::{DEADLINE, wait_for};

/// Somebody who takes connections and says nothing, and what tells of each.
fn silent() -> (SocketAddr, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream);
            if tell.send(()).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn write_files(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).unwrap().pem();
    for (name, text) in [
        ("keys.json", Issuer::new("k1").jwks()),
        ("actions.yaml", "rules:\n  - {action: read, class: read, method: GET, path: /a, resource: a}\n".to_owned()),
        ("secret", "secret".to_owned()),
        ("join-token", format!("lhj_x.{}", "0a".repeat(32))),
        ("own.crt", own.clone()),
        ("own.key", key.serialize_pem()),
        ("ca.pem", own),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

fn sidecar(grants: &str) -> String {
    format!(
        "identity: {{issuers: [{{name: idp, issuer: '{ISSUER}', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}]}}
listeners: [{{name: main, address: '127.0.0.1:0', backends: [shop]}}]
backends: [{{name: shop, upstream: 'http://127.0.0.1:9', action_map: actions.yaml, credential: shop}}]
credentials: [{{name: shop, source: {{file: secret}}, inject: {{bearer: true}}}}]
audit: {{directory: audit}}
admin: {{address: '127.0.0.1:0'}}
{grants}
"
    )
}

fn control(silent: SocketAddr) -> String {
    format!("control: {{address: '127.0.0.1:0', data: data, store: 'postgres://leasehold@{silent}/leasehold'}}\n")
}

fn relay(upstream: &str) -> String {
    format!(
        "admin: {{address: '127.0.0.1:0'}}
relay:
  upstream: {upstream}
  trust_domain: prod.test
  address: 127.0.0.1:0
  tls: {{certificate: own.crt, key: own.key, client_ca: ca.pem}}
  sidecars: ['spiffe://prod.test/sidecar/*']
  backends: [shop]
"
    )
}

/// A process that is killed with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ends(command: &str, signal: Signal, text: impl FnOnce(SocketAddr) -> String) {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path());
    let (address, told) = silent();
    std::fs::write(folder.path().join("leasehold.yaml"), text(address)).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    program.args([command, "-c", "leasehold.yaml"]).current_dir(folder.path());
    let mut process = Process(program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let said = || std::fs::read_to_string(folder.path().join("log")).unwrap();
    told.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{command} asked nobody: {}", said()));
    kill_process(Pid::from_child(&process.0), signal).unwrap();
    let status = wait_for("the end", || process.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{command}: {}", said());
    assert!(said().contains("told to stop before the start was over"), "{command}: {}", said());
}

fn joins(address: SocketAddr) -> String {
    format!("{{addresses: ['https://{address}'], join: {{token: {{file: join-token}}, folder: own}}}}")
}

fn follows(address: SocketAddr) -> String {
    let tls = "tls: {certificate: own.crt, key: own.key, ca: ca.pem}";
    format!("{{addresses: ['https://{address}'], first_view: 5m, {tls}}}")
}

#[test]
fn a_sidecar_that_joins_or_waits_for_a_first_view() {
    ends("proxy", Signal::TERM, |address| sidecar(&format!("grants: {{control: {}}}", joins(address))));
    ends("proxy", Signal::INT, |address| sidecar(&format!("grants: {{control: {}}}", follows(address))));
}

#[test]
fn a_relay_that_joins_or_waits_for_a_first_view() {
    ends("relay", Signal::TERM, |address| relay(&joins(address)));
    ends("relay", Signal::INT, |address| relay(&follows(address)));
}

#[test]
fn a_control_plane_whose_store_does_not_answer() {
    ends("control", Signal::TERM, |address| {
        format!("admin: {{address: '127.0.0.1:0'}}\nidentity: {{}}\n{}", control(address))
    });
    ends("up", Signal::TERM, |address| sidecar("") + &control(address));
}
