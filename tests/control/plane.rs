//! A control plane and a sidecar in this process, with people and bots.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use leasehold::app::control::{Up, start_up};
use leasehold::config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common::backend::{Backend, Then};
use crate::common::client::{Answer, Client};
use crate::common::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::common::world::{MAP, lines, text};

/// Who is who: `bot` and `agent` ask, `alice` owns the bot, `bob`, `carol` and `dave` approve, `root` administers.
pub const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bot}
spec: {principal: "https://idp.test#bot", type: ci, groups: [bots], owner: "https://idp.test#alice"}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: agent}
spec: {principal: "https://idp.test#agent-*", type: agent, groups: [bots], owner: "https://idp.test#alice", owner_may_approve: true}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: alice}
spec: {principal: "https://idp.test#alice", type: user, groups: [approvers]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bob}
spec: {principal: "https://idp.test#bob", type: user, groups: [approvers]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: carol}
spec: {principal: "https://idp.test#carol", type: user, groups: [approvers]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: dave}
spec: {principal: "https://idp.test#dave", type: user, groups: [chiefs]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: root}
spec: {principal: "https://idp.test#root", type: user, groups: [leasehold.admins]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: read}
spec:
  backend: shop
  actions: [allowed.read]
  resources: ["allowed/**"]
  eligible: [bots]
  duration_max: 30m
  concurrent_max: 3
  approval: {steps: [{approvers: [approvers], quorum: 1}]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: watch}
spec:
  backend: shop
  actions: [event.watch]
  resources: ["events"]
  eligible: [bots]
  duration_max: 10m
  concurrent_max: 100
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: once}
spec:
  backend: shop
  actions: [upload]
  resources: ["upload"]
  eligible: [bots]
  duration_max: 5m
  uses_max: 1
  concurrent_max: 100
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: delicate}
spec:
  backend: shop
  actions: [admin]
  resources: ["admin"]
  eligible: [bots]
  duration_max: 1h
  task: required
  justification: required
  approval: {steps: [{approvers: [approvers], quorum: 2}, {approvers: [chiefs], quorum: 1}]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: break-glass}
spec:
  backend: shop
  actions: ["*"]
  resources: ["**"]
  eligible: [bots]
  duration_max: 15m
  justification: required
  emergency: true
---
apiVersion: leasehold/v1
kind: Policy
metadata: {name: automatic}
spec:
  target: elevation
  cedar: |
    @id("automatic")
    permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource)
    when { [Leasehold::Entitlement::"watch", Leasehold::Entitlement::"once", Leasehold::Entitlement::"break-glass"].contains(resource) };
"#;

pub struct Plane {
    pub api: SocketAddr,
    pub sidecar: SocketAddr,
    pub issuer: Issuer,
    pub backend: Backend,
    /// The local admin's token.
    pub local: String,
    /// The backend's credential.
    pub secret: String,
    folder: TempDir,
    tokens: Mutex<BTreeMap<String, String>>,
    up: Option<Up>,
    runtime: Runtime,
}

impl Plane {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// With so many calls a second for each principal.
    pub fn start_limited(calls_per_second: u32) -> Self {
        Self::start_at(calls_per_second, "")
    }

    /// With more lines of the section `control`, indented by two.
    pub fn start_with(control: &str) -> Self {
        Self::start_at(1_000_000, control)
    }

    fn start_at(calls_per_second: u32, control: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (issuer, backend) = (Issuer::new("k1"), shop());
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let secret = "canary-of-the-control-plane-tests".to_owned();
        write("keys.json", &issuer.jwks());
        write("secret", &secret);
        write("actions.yaml", MAP);
        write("documents.yaml", DOCUMENTS);
        write("leasehold.yaml", &configuration(&backend, calls_per_second, control));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let up = boot(&runtime, folder.path());
        let (api, sidecar) = (up.control.address(), up.sidecar.address("main").unwrap());
        let local = std::fs::read_to_string(up.control.token_file()).unwrap();
        let tokens = Mutex::default();
        Self { api, sidecar, issuer, backend, local, secret, folder, tokens, up: Some(up), runtime }
    }

    /// Stops everything and starts it again on what was kept.
    pub fn restart(&mut self) {
        let up = self.up.take().unwrap();
        self.runtime.block_on(up.stop()).unwrap();
        let up = boot(&self.runtime, self.folder.path());
        (self.api, self.sidecar) = (up.control.address(), up.sidecar.address("main").unwrap());
        self.up = Some(up);
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What the sidecar measures.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let admin = self.up.as_ref().unwrap().sidecar.admin();
        let mut client = Client::connect(admin);
        client.send(format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes());
        client.answer().expect("metrics").text()
    }

    /// The calls that the sidecar recorded.
    pub fn calls(&self) -> Vec<Value> {
        let lines = lines(&text(&self.path().join("audit")));
        lines.into_iter().filter(|line| line["kind"] == "call").collect()
    }

    /// A good token of somebody.
    pub fn token(&self, who: &str) -> String {
        match who {
            "local" => self.local.clone(),
            who => self.tokens.lock().unwrap().entry(who.to_owned()).or_insert_with(|| self.issuer.token(who)).clone(),
        }
    }

    /// One call to the API by somebody.
    #[track_caller]
    pub fn call(&self, who: &str, method: &str, target: &str, body: &Value) -> Answer {
        self.call_with(who, method, target, "", body)
    }

    /// As [`Plane::call`], with more header lines, each ended by CRLF.
    #[track_caller]
    pub fn call_with(&self, who: &str, method: &str, target: &str, fields: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let fields = format!("authorization: Bearer {}\r\ncontent-type: application/json\r\n{fields}", self.token(who));
        self.send(method, target, &fields, body.as_bytes())
    }

    /// Sends what is given as it is.
    #[track_caller]
    pub fn send(&self, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
        let mut client = Client::connect(self.api);
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\n{fields}content-length: {}\r\nconnection: close\r\n\r\n",
            self.api,
            body.len()
        );
        client.send(head.as_bytes());
        client.send(body);
        client.answer_to(method).unwrap_or_else(|| panic!("no answer to {method} {target}"))
    }

    /// As [`Plane::call`], for what must succeed.
    #[track_caller]
    pub fn done(&self, who: &str, method: &str, target: &str, body: &Value) -> Value {
        let answer = self.call(who, method, target, body);
        assert!((200..300).contains(&answer.status), "{who} {method} {target}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// As [`Plane::call`], for what must be refused with this status and code.
    #[track_caller]
    pub fn refused(&self, who: &str, method: &str, target: &str, body: &Value, status: u16, code: &str) {
        let answer = self.call(who, method, target, body);
        is_problem(&answer, status, code, &format!("{who} {method} {target} {body}"));
    }

    /// Asks for an elevation and gives its request.
    #[track_caller]
    pub fn ask(&self, who: &str, entitlement: &str, more: &Value) -> Value {
        let mut body = json!({"entitlement": entitlement});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.done(who, "POST", "/v1/requests", &body)
    }

    /// Agrees to the newest version of a request.
    #[track_caller]
    pub fn approve(&self, who: &str, request: &Value) -> Answer {
        let id = request["id"].as_str().unwrap();
        let seen = self.done("local", "GET", &format!("/v1/requests/{id}"), &Value::Null);
        let version = format!("if-match: \"{}\"\r\n", seen["version"]);
        self.call_with(who, "POST", &format!("/v1/requests/{id}/approve"), &version, &json!({}))
    }

    /// Every entry of the record, whose chain is checked.
    #[track_caller]
    pub fn record(&self) -> Vec<Value> {
        let mut entries: Vec<Value> = Vec::new();
        loop {
            let from = entries.len() + 1;
            let page = self.done("local", "GET", &format!("/v1/audit/entries?from={from}&page_size=500"), &Value::Null);
            let items = page["items"].as_array().unwrap();
            if items.is_empty() {
                return entries;
            }
            for entry in items {
                assert_eq!(entry["sequence"], json!(entries.len() + 1), "the record is dense");
                if let Some(last) = entries.last() {
                    assert_eq!(entry["previous"], last["hash"], "each entry carries the hash of the one before");
                }
                entries.push(entry.clone());
            }
        }
    }

    /// How many entries of that event there are about that subject.
    pub fn count(&self, event: &str, subject: &str) -> usize {
        self.record().iter().filter(|entry| entry["event"] == event && entry["subject"] == subject).count()
    }

    /// One call through the sidecar.
    #[track_caller]
    pub fn through(&self, who: &str, method: &str, target: &str) -> Answer {
        let mut client = Client::connect(self.sidecar);
        let host = self.sidecar;
        let token = self.token(who);
        client.send(
            format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n")
                .as_bytes(),
        );
        client.answer_to(method).expect("an answer of the sidecar")
    }
}

#[track_caller]
pub fn is_problem(answer: &Answer, status: u16, code: &str, what: &str) {
    let body = answer.text();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{what}: {body}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
    let problem = answer.json();
    assert_eq!(problem["status"], json!(status), "{what}");
    assert_eq!(problem["type"], format!("urn:leasehold:problem:{}", code.replace('_', "-")), "{what}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{what}: {body}");
}

/// A backend that answers, and streams events without end.
fn shop() -> Backend {
    Backend::scripted(|seen, stream| {
        let answer: &[u8] = if seen.line().contains("/events") {
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n"
        };
        let _ = stream.write_all(answer);
        Then::Keep
    })
}

fn boot(runtime: &Runtime, folder: &Path) -> Up {
    let (sidecar, control) =
        config::load_up(&folder.join("leasehold.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    runtime.block_on(start_up(sidecar, &control)).unwrap_or_else(|error| panic!("{error:#}"))
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.up.take());
    }
}

fn configuration(backend: &Backend, calls_per_second: u32, control: &str) -> String {
    format!(
        "listeners:
  - {{name: main, address: '127.0.0.1:0', backends: [shop]}}
identity:
  issuers:
    - {{name: idp, issuer: {ISSUER}, audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}
backends:
  - {{name: shop, upstream: 'http://{}', action_map: actions.yaml, credential: shop-admin}}
credentials:
  - {{name: shop-admin, source: {{file: secret}}, inject: {{bearer: true}}}}
audit: {{directory: audit}}
admin: {{address: '127.0.0.1:0'}}
workers: 1
drain_timeout: 5s
control:
  address: 127.0.0.1:0
  documents: [documents.yaml]
  calls_per_second: {calls_per_second}
{control}
",
        backend.address
    )
}
