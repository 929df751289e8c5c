//! A running `leasehold proxy` with everything it needs in a folder of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::issuer::{AUDIENCE, ISSUER, Issuer, in_seconds};
use super::tools::{Curled, Server, curl, free, wait_for};

pub struct Proxy {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub token: String,
    pub server: Server,
    folder: TempDir,
}

/// What differs from one test to the next: texts of YAML, and files beside them.
#[derive(Default)]
pub struct Setup {
    pub backends: String,
    pub credentials: String,
    pub listener: String,
    pub identity: String,
    pub grants: String,
    pub more: String,
    pub files: Vec<(&'static str, String)>,
    /// How many descriptors the process may have open.
    pub descriptors: Option<u32>,
}

/// An entry of the grants file.
pub fn grant(id: &str, principal: &str, backend: &str, action: &str, resource: &str, seconds: i64) -> String {
    format!(
        "  - {{id: {id}, principal: \"{principal}\", backend: {backend}, actions: [\"{action}\"], resources: [\"{resource}\"], expires_at: \"{}\", task: \"jira:OPS-1\"}}\n",
        in_seconds(seconds)
    )
}

/// `ci-bot` as grants name it.
pub fn bot() -> String {
    format!("{ISSUER}#ci-bot")
}

impl Proxy {
    pub fn start(setup: &Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::new("k1");
        let (address, admin) = (free(), free());
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("keys.json", &issuer.jwks());
        write("grants.yaml", &format!("revision: 1\ngrants:\n{}", setup.grants));
        for (name, content) in &setup.files {
            write(name, content);
        }
        let names: Vec<&str> =
            setup.backends.lines().filter_map(|line| line.strip_prefix("  - name: ")).map(str::trim).collect();
        write(
            "leasehold.yaml",
            &format!(
                "listeners:
  - name: main
    address: '{address}'
    backends: [{names}]
{listener}
identity:
  issuers:
    - {{name: idp, issuer: {ISSUER}, audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}
{identity}
backends:
{backends}
credentials:
{credentials}
grants: {{file: grants.yaml, poll: 20ms}}
audit: {{directory: audit}}
admin: {{address: '{admin}'}}
drain_timeout: 10s
{more}
",
                names = names.join(", "),
                listener = setup.listener,
                identity = setup.identity,
                backends = setup.backends,
                credentials = setup.credentials,
                more = setup.more,
            ),
        );
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let limit = setup.descriptors.map_or_else(String::new, |most| format!("ulimit -n {most}; "));
        let server = Server::start(
            Command::new("sh")
                .args(["-c", &format!("{limit}exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_leasehold")])
                .args(["proxy", "--log-level", "debug", "--log-format", "json", "--config"])
                .arg(folder.path().join("leasehold.yaml"))
                .stdout(Stdio::from(log.try_clone().unwrap()))
                .stderr(Stdio::from(log)),
        );
        let token = issuer.token("ci-bot");
        let mut proxy = Self { address, admin, token, server, folder };
        wait_for("the proxy", || {
            assert!(!proxy.server.has_ended(), "{}", proxy.log());
            std::net::TcpStream::connect(admin).ok()
        });
        wait_for("readiness", || (proxy.admin("/readyz").status == 200).then_some(()));
        proxy
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// One call of `ci-bot`.
    #[track_caller]
    pub fn call(&self, method: &str, path: &str) -> Curled {
        self.call_with(method, path, &[])
    }

    #[track_caller]
    pub fn call_with(&self, method: &str, path: &str, more: &[&str]) -> Curled {
        let (bearer, url) = (format!("authorization: Bearer {}", self.token), self.url(path));
        let mut words = vec!["-X", method, "-H", &bearer, &url];
        words.extend(more);
        curl(&words)
    }

    pub fn admin(&self, path: &str) -> Curled {
        curl(&[&format!("http://{}{path}", self.admin)])
    }

    fn revision(&self) -> u64 {
        let status: serde_json::Value = serde_json::from_str(&self.admin("/status").body).unwrap();
        status["grants"]["revision"].as_u64().or(status["revision"].as_u64()).unwrap_or_else(|| panic!("{status}"))
    }

    /// Puts grants (and what follows them) in force.
    #[track_caller]
    pub fn grants(&self, entries: &str) {
        let revision = self.revision() + 1;
        let entries = if entries.is_empty() { " []\n".to_owned() } else { format!("\n{entries}") };
        std::fs::write(self.path("new"), format!("revision: {revision}\ngrants:{entries}")).unwrap();
        std::fs::rename(self.path("new"), self.path("grants.yaml")).unwrap();
        wait_for("the new grants", || (self.revision() >= revision).then_some(()));
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Everything recorded so far.
    pub fn record(&self) -> String {
        let mut files: Vec<_> =
            std::fs::read_dir(self.path("audit")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
    }

    pub fn records(&self) -> Vec<serde_json::Value> {
        let text = self.record();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
