//! A sidecar in this process, with everything it needs in a folder of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use leasehold::app::{Running, start};
use leasehold::config;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::client::{Answer, Client};
use super::issuer::{AUDIENCE, ISSUER, Issuer, in_seconds};
use super::wait_for;

/// What differs from one test to the next. Texts are YAML, indented as they stand in the file.
pub struct Setup {
    /// Where the backend is, as `upstream` has it.
    pub upstream: String,
    /// Where the action map comes from, as `action_map` has it.
    pub action_map: String,
    /// The action map in `actions.yaml`.
    pub map: String,
    /// The entries of `grants:`, each beginning with `  - `.
    pub grants: String,
    /// More lines of the listener, indented by four.
    pub listener: String,
    /// More issuers, indented by four.
    pub identity: String,
    /// More lines of the backend, indented by four.
    pub backend: String,
    /// The credential's source.
    pub source: String,
    /// How the credential goes in.
    pub inject: String,
    /// More lines at the top level.
    pub more: String,
    /// More files: name and content.
    pub files: Vec<(String, String)>,
}

pub const MAP: &str = "rules:
  - {action: secret.read, class: admin, method: GET, path: '/allowed/secret/{name...}', resource: 'secret/{name...}'}
  - {action: allowed.read, class: read, method: GET, path: '/allowed/{name}', resource: 'allowed/{name}'}
  - {action: allowed.read, class: read, method: GET, path: '/allowed/{name}/{part}', resource: 'allowed/{name}/{part}'}
  - {action: upload, class: write, method: POST, path: /upload, resource: upload}
  - {action: admin, class: admin, method: [GET, POST, DELETE], path: /admin, resource: admin}
  - {action: socket.open, class: write, method: GET, path: /ws, upgrade: websocket, resource: socket, streaming: true}
  - {action: event.watch, class: read, method: GET, path: /events, resource: events, streaming: true}
";

impl Setup {
    /// The common one: `ci-bot` may read `/allowed/…` and post to `/upload`, for an hour.
    pub fn new(upstream: SocketAddr) -> Self {
        Self {
            upstream: format!("http://{upstream}"),
            action_map: "actions.yaml".to_owned(),
            map: MAP.to_owned(),
            grants: grant("g1", "ci-bot", "allowed.read", "allowed/**", 3_600)
                + &grant("g2", "ci-bot", "upload", "upload", 3_600),
            listener: String::new(),
            identity: String::new(),
            backend: String::new(),
            source: "{file: secret}".to_owned(),
            inject: "{bearer: true}".to_owned(),
            more: String::new(),
            files: Vec::new(),
        }
    }
}

/// An entry of the grants file.
pub fn grant(id: &str, subject: &str, action: &str, resource: &str, seconds: i64) -> String {
    grant_until(id, subject, action, resource, &in_seconds(seconds))
}

pub fn grant_until(id: &str, subject: &str, action: &str, resource: &str, until: &str) -> String {
    format!(
        "  - {{id: {id}, principal: \"{ISSUER}#{subject}\", backend: shop, actions: [\"{action}\"], resources: [\"{resource}\"], expires_at: \"{until}\", task: \"jira:OPS-17\"}}\n"
    )
}

/// A credential source that mints with an Ed25519 key, and the key's file.
pub fn minting(lifetime: &str) -> (String, (String, String)) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
    let settings = format!(
        "{{jwt: {{key: mint.pem, algorithm: EdDSA, key_id: m1, issuer: 'https://leasehold.test', audience: shop, lifetime: {lifetime}}}}}"
    );
    (settings, ("mint.pem".to_owned(), key))
}

pub struct World {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub issuer: Issuer,
    /// The backend's credential, which no caller may ever see.
    pub secret: String,
    /// A good token of `ci-bot`.
    pub token: String,
    folder: TempDir,
    running: Option<Running>,
    runtime: Runtime,
}

impl World {
    pub fn start(setup: &Setup) -> Self {
        Self::start_with(setup, "grants: {file: grants.yaml, poll: 10ms}")
    }

    /// With another line for where the grants come from.
    pub fn start_with(setup: &Setup, grants: &str) -> Self {
        Self::try_start_with(setup, grants).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`World::start`], for what may not start: then it says why.
    pub fn try_start(setup: &Setup) -> Result<Self, String> {
        Self::try_start_with(setup, "grants: {file: grants.yaml, poll: 10ms}")
    }

    /// As [`World::start_with`], for what may not start: then it says why.
    pub fn try_start_with(setup: &Setup, grants: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::new("k1");
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let secret = format!("canary-{}", random.iter().map(|b| format!("{b:02x}")).collect::<String>());
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("keys.json", &issuer.jwks());
        write("secret", &secret);
        write("actions.yaml", &setup.map);
        write("grants.yaml", &format!("revision: 1\ngrants:\n{}", setup.grants));
        for (name, content) in &setup.files {
            write(name, content);
        }
        write("leasehold.yaml", &configuration(setup, grants));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = config::load(&folder.path().join("leasehold.yaml")).map_err(|errors| errors.to_string())?;
        let running = runtime.block_on(start(config)).map_err(|error| format!("{error:#}"))?;
        let (address, admin) = (running.address("main").unwrap(), running.admin());
        let token = issuer.token("ci-bot");
        Ok(Self { address, admin, issuer, secret, token, folder, running: Some(running), runtime })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// A request of `ci-bot` without a body.
    pub fn request(&self, method: &str, target: &str) -> Vec<u8> {
        self.request_with(method, target, &self.token, "", "")
    }

    pub fn request_with(&self, method: &str, target: &str, token: &str, fields: &str, body: &str) -> Vec<u8> {
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let host = self.address;
        format!(
            "{method} {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{fields}{length}\r\n{body}"
        )
        .into_bytes()
    }

    /// One call of `ci-bot` over a connection of its own.
    #[track_caller]
    pub fn call(&self, method: &str, target: &str) -> Answer {
        let mut client = self.connect();
        client.send(&self.request(method, target));
        client.answer_to(method).expect("an answer")
    }

    /// Puts a grants file in force: its entries, its revision.
    pub fn grants(&self, entries: &str) {
        let before = self.revision();
        self.state(&format!(
            "revision: {}\ngrants:{}\n",
            before + 1,
            if entries.is_empty() { " []".to_owned() } else { format!("\n{entries}") }
        ));
        wait_for("the new grants", || (self.revision() > before).then_some(()));
    }

    /// Replaces the grants file at once, as a careful writer does.
    pub fn state(&self, text: &str) {
        std::fs::write(self.path("grants.new"), text).unwrap();
        std::fs::rename(self.path("grants.new"), self.path("grants.yaml")).unwrap();
    }

    pub fn revision(&self) -> u64 {
        self.running().decider().table().revision().0
    }

    /// What the admin listener answers.
    pub fn admin(&self, target: &str) -> Answer {
        let mut client = Client::connect(self.admin);
        client.send(format!("GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin).as_bytes());
        client.answer().expect("an answer of the admin listener")
    }

    /// The lines of the record so far, of this kind.
    pub fn records(&self, kind: &str) -> Vec<Value> {
        lines(&text(&self.path("audit"))).into_iter().filter(|line| line["kind"] == kind).collect()
    }

    /// Waits until there are so many records of calls.
    #[track_caller]
    pub fn calls(&self, count: usize) -> Vec<Value> {
        wait_for(&format!("{count} records"), || Some(self.records("call")).filter(|calls| calls.len() >= count))
    }

    /// Stops it as a signal would, and returns everything that it recorded.
    pub fn stop(mut self) -> String {
        let running = self.running.take().unwrap();
        self.runtime.block_on(running.stop()).unwrap();
        text(&self.path("audit"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.running.take());
    }
}

/// What all record files hold, in order.
pub fn text(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else { return String::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// Every whole line of a record.
pub fn lines(text: &str) -> Vec<Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn configuration(setup: &Setup, grants: &str) -> String {
    let Setup { upstream, action_map, listener, identity, backend, source, inject, more, .. } = setup;
    format!(
        "listeners:
  - name: main
    address: '127.0.0.1:0'
    backends: [shop]
{listener}
identity:
  issuers:
    - {{name: idp, issuer: {ISSUER}, audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}
{identity}
backends:
  - name: shop
    upstream: {upstream}
    hosts: [db.test]
    action_map: {action_map}
    credential: shop-admin
{backend}
credentials:
  - name: shop-admin
    source: {source}
    inject: {inject}
{grants}
audit: {{directory: audit}}
admin: {{address: '127.0.0.1:0'}}
workers: 1
drain_timeout: 5s
{more}
"
    )
}
