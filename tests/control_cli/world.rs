//! `leasehold up` with a shop behind it, and people who type.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::tools::{Server, curl, wait_for};

/// What the shop does, and who is who.
pub const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bot}
spec: {principal: "https://idp.test#bot", type: ci, groups: [deployers], owner: "https://idp.test#alice"}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: alice}
spec: {principal: "https://idp.test#alice", type: user, groups: [shopkeepers, leads]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bob}
spec: {principal: "https://idp.test#bob", type: user, groups: [shopkeepers, leads]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: carol}
spec: {principal: "https://idp.test#carol", type: user, groups: [shopkeepers, leads]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: clean-up}
spec:
  backend: shop
  actions: ["order.*"]
  resources: ["orders/**"]
  eligible: [deployers]
  duration_max: 30m
  approval: {steps: [{approvers: [shopkeepers], quorum: 1}]}
  concurrent_max: 5
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: migration}
spec:
  backend: shop
  actions: ["order.*"]
  resources: ["orders/**"]
  eligible: [deployers]
  duration_max: 1h
  approval: {steps: [{approvers: [leads], quorum: 2}]}
  concurrent_max: 5
---
apiVersion: leasehold/v1
kind: Policy
metadata: {name: incidents}
spec:
  target: elevation
  cedar: |
    @id("auto-on-incident") @max_ttl("15m")
    permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource)
    when { context has task && context.task.kind == "incident" && context.task.open && context.task.verified };
"#;

/// A running `leasehold up`, with everything it needs.
pub struct World {
    folder: tempfile::TempDir,
    issuer: Issuer,
    pub url: String,
    pub sidecar: String,
    pub admin: String,
    _server: Server,
}

impl World {
    /// Nothing is declared yet but the shop, by the sidecar's own map.
    pub fn empty() -> Self {
        Self::mapped_by("actions.yaml")
    }

    /// With what the shop's calls do from there.
    pub fn mapped_by(action_map: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::new("people");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("keys.json", &issuer.jwks());
        write("secret", "shop-secret");
        write(
            "actions.yaml",
            "rules:\n  - {action: order.read, class: read, method: GET, path: '/orders/{id}', resource: 'orders/{id}'}\n  - {action: order.delete, class: write, method: DELETE, path: '/orders/{id}', resource: 'orders/{id}'}\n",
        );
        write(
            "leasehold.yaml",
            &format!(
                "control: {{address: 127.0.0.1:0}}\nadmin: {{address: 127.0.0.1:0}}\nlisteners: [{{name: shop, address: 127.0.0.1:0, backends: [shop]}}]\nidentity: {{issuers: [{{name: people, issuer: '{ISSUER}', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}]}}\nbackends: [{{name: shop, upstream: 'http://{}', action_map: {action_map}, credential: shop}}]\ncredentials: [{{name: shop, source: {{file: secret}}, inject: {{bearer: true}}}}]\naudit: {{directory: audit}}\n",
                shop()
            ),
        );
        let (server, addresses) = serve("up", folder.path(), 3);
        let of = |word: &str| {
            let found = addresses.iter().find(|(message, _)| message.contains(word));
            found.unwrap_or_else(|| panic!("{word}: {addresses:?}")).1.clone()
        };
        let (url, admin) = (of("control plane"), of("admin"));
        let sidecar = addresses.values().find(|address| **address != url && **address != admin).unwrap().clone();
        Self { folder, issuer, url, sidecar, admin, _server: server }
    }

    /// The shop's documents are declared.
    pub fn new() -> Self {
        let world = Self::empty();
        world.write("documents.yaml", DOCUMENTS);
        world.admin().ok(&["apply", "-f", "documents.yaml"]);
        world
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder().join(name), text).unwrap();
    }

    /// Whoever started it: in its folder lies the token of the local admin.
    pub fn admin(&self) -> Person {
        Person { folder: self.folder().to_owned(), variables: vec![("LEASEHOLD_SERVER", self.url.clone())] }
    }

    /// Somebody with a token of the issuer.
    pub fn person(&self, name: &str) -> Person {
        let variables = vec![("LEASEHOLD_SERVER", self.url.clone()), ("LEASEHOLD_TOKEN", self.issuer.token(name))];
        Person { folder: self.folder().to_owned(), variables }
    }

    /// A call to the shop through the sidecar; its status.
    pub fn call(&self, name: &str, method: &str, path: &str) -> u16 {
        let token = format!("authorization: Bearer {}", self.issuer.token(name));
        curl(&["-X", method, "-H", &token, &format!("{}{path}", self.sidecar)]).status
    }
}

/// A running `leasehold control`.
pub struct Control {
    folder: tempfile::TempDir,
    pub url: String,
    pub admin: String,
    listeners: usize,
    server: Option<Server>,
}

impl Control {
    /// With `more` at the end of its configuration, and `inside` at the end of its `control`.
    pub fn start(more: &str, inside: &str) -> Self {
        Self::start_with(&[], more, inside)
    }

    /// The same, with these files beside the configuration.
    pub fn start_with(files: &[(&str, &str)], more: &str, inside: &str) -> Self {
        Self::start_on(2, files, more, inside)
    }

    /// The same, where it listens on so many addresses.
    pub fn start_on(listeners: usize, files: &[(&str, &str)], more: &str, inside: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let config = format!("control: {{address: 127.0.0.1:0{inside}}}\nadmin: {{address: 127.0.0.1:0}}\n{more}");
        std::fs::write(folder.path().join("leasehold.yaml"), config).unwrap();
        let mut control = Self { folder, listeners, url: String::new(), admin: String::new(), server: None };
        control.start_again();
        control
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        drop(self.server.take());
    }

    /// Starts it on what is in its folder, at addresses of its own.
    pub fn start_again(&mut self) {
        let (server, addresses) = serve("control", self.folder.path(), self.listeners);
        let of = |word: &str| addresses.iter().find(|(message, _)| message.contains(word)).unwrap().1.clone();
        (self.url, self.admin, self.server) = (of("control plane"), of("admin"), Some(server));
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder().join(name), text).unwrap();
    }

    /// Whoever started it.
    pub fn admin(&self) -> Person {
        Person::at(self.folder()).with("LEASEHOLD_SERVER", &self.url)
    }
}

/// Starts the program with the configuration in `folder`, and waits until it listens on so many addresses.
pub fn serve(command: &str, folder: &Path, listeners: usize) -> (Server, BTreeMap<String, String>) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    program.args([command, "-c", "leasehold.yaml", "--log-format", "json"]).current_dir(folder);
    program.stdout(Stdio::null()).stderr(std::fs::File::create(folder.join("log")).unwrap());
    let mut server = Server::start(&mut program);
    let addresses = wait_for("the addresses", || {
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        assert!(!server.has_ended(), "it ended: {log}");
        let found = addresses(&log);
        (found.len() == listeners).then_some(found)
    });
    (server, addresses)
}

/// What is said to listen, and where.
fn addresses(log: &str) -> BTreeMap<String, String> {
    let read = |line: &str| {
        let said: Value = serde_json::from_str(line).ok()?;
        let fields = said.get("fields").unwrap_or(&said);
        Some((fields["message"].as_str()?.to_owned(), format!("http://{}", fields["address"].as_str()?)))
    };
    log.lines().filter_map(read).collect()
}

/// Who types, where, and what their environment says.
pub struct Person {
    pub folder: PathBuf,
    pub variables: Vec<(&'static str, String)>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Person {
    /// Somebody with a home and nothing else.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), variables: Vec::new() }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command.current_dir(&self.folder).env_clear().env("HOME", &self.folder).stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    pub fn says(&self, words: &[&str]) -> Said {
        let output = self.command().args(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let said = Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        let token = self.variables.iter().find(|(name, _)| *name == "LEASEHOLD_TOKEN");
        if let Some((_, token)) = token {
            assert!(!said.out.contains(token) && !said.err.contains(token), "the token was shown");
        }
        assert!(!said.out.contains('\u{1b}') && !said.err.contains('\u{1b}'), "colours without a terminal");
        said
    }

    /// Succeeds; what it printed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let said = self.says(words);
        assert_eq!(said.code, Some(0), "{words:?}: {said:?}");
        said.out
    }

    /// Succeeds; what it answered.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let said = self.says(&[words, &["-o", "json"]].concat());
        assert_eq!(said.code, Some(0), "{words:?}: {said:?}");
        said.json()
    }

    /// Ends with this code, and says this on standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str], in_err: &str) -> Said {
        let said = self.says(words);
        assert_eq!(said.code, Some(code), "{words:?}: {said:?}");
        assert!(said.err.contains(in_err), "{words:?}: `{in_err}` is not in {said:?}");
        said
    }

    /// Asks for something that approvers decide on; the request's id.
    #[track_caller]
    pub fn asks(&self, words: &[&str]) -> String {
        let said = self.says(&[&["request"], words, &["-o", "json"]].concat());
        assert_eq!(said.code, Some(3), "{words:?}: {said:?}");
        said.json()["id"].as_str().unwrap().to_owned()
    }
}

/// An upstream that says yes to everything; its address.
fn shop() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone");
                    }
                }
            });
        }
    });
    address
}
