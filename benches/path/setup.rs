//! The proxies that are measured, with what they need in a folder.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::load;
use super::process::Process;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_leasehold");

const ISSUER: &str = "https://idp.bench";

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Who is granted what.
pub struct Grants {
    callers: usize,
    others: usize,
}

impl Grants {
    /// One for each of so many callers.
    pub fn of(callers: usize) -> Self {
        Self { callers, others: 0 }
    }

    /// And so many in all, the rest for principals that never call.
    pub fn padded(self, all: usize) -> Self {
        Self { others: all.saturating_sub(self.callers), ..self }
    }

    fn lines(&self) -> String {
        let mut text = String::from("{\"revision\":1}\n");
        let mut line = |number: usize, subject: &str| {
            let _ = writeln!(
                text,
                "{{\"grant\":{{\"id\":\"grt_{number:020}\",\"principal\":\"{ISSUER}#{subject}\",\"backend\":\"shop\",\"actions\":[\"thing.read\"],\"resources\":[\"things/*\"],\"expires_at\":\"2099-01-01T00:00:00Z\",\"task\":\"jira:OPS-{number}\"}}}}"
            );
        };
        for number in 0..self.callers {
            line(number, &format!("bot-{number}"));
        }
        for number in 0..self.others {
            line(self.callers + number, &format!("other-{number}"));
        }
        text
    }
}

/// A running `leasehold proxy`.
pub struct Proxied {
    pub address: SocketAddr,
    pub process: Process,
    pub tokens: Vec<String>,
    /// From its start to the first call it served.
    pub started: Duration,
}

impl Proxied {
    pub fn start(folder: &Folder, name: &str, backend: SocketAddr, grants: &Grants) -> Self {
        Self::start_of(PROGRAM, folder, name, backend, grants)
    }

    /// As [`Proxied::start`], of another build of the program.
    pub fn start_of(program: &str, folder: &Folder, name: &str, backend: SocketAddr, grants: &Grants) -> Self {
        Self::with(program, folder, name, &format!("http://{backend}"), grants)
    }

    pub fn start_unix(folder: &Folder, name: &str, grants: &Grants) -> Self {
        Self::with(PROGRAM, folder, name, &format!("unix:{}", folder.path("backend.sock").display()), grants)
    }

    fn with(program: &str, folder: &Folder, name: &str, upstream: &str, grants: &Grants) -> Self {
        let home = folder.path(name);
        std::fs::create_dir(&home).unwrap();
        let key = Ed25519KeyPair::generate().unwrap();
        let address = free();
        write(&home, "keys.json", &keys(&key));
        write(&home, "secret", "a-credential-of-thirty-two-bytes");
        write(&home, "grants.jsonl", &grants.lines());
        write(
            &home,
            "actions.yaml",
            "rules:\n  - {action: thing.read, class: read, method: GET, path: '/things/{name}', resource: 'things/{name}'}\n  - {action: other.read, class: read, method: GET, path: '/other/{name}', resource: 'other/{name}'}\n",
        );
        write(&home, "leasehold.yaml", &configuration(address, upstream));
        let tokens: Vec<String> = (0..grants.callers).map(|number| token(&key, &format!("bot-{number}"))).collect();
        // A file of grants that somebody may still be writing is waited for; here nobody is.
        std::thread::sleep(Duration::from_millis(30));
        let mut command = Command::new(program);
        command.args(["proxy", "--log-level", "warn", "--config", home.join("leasehold.yaml").to_str().unwrap()]);
        let began = Instant::now();
        let process = Process::start(&command);
        let mut proxied = Self { address, process, tokens, started: Duration::ZERO };
        while TcpStream::connect(address).ok().and_then(|mut stream| load::one(&mut stream, &proxied)).is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "the proxy does not serve");
            std::thread::sleep(Duration::from_millis(1));
        }
        proxied.started = began.elapsed();
        proxied
    }
}

/// A port that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn write(home: &Path, name: &str, text: &str) {
    std::fs::write(home.join(name), text).unwrap();
}

fn configuration(address: SocketAddr, upstream: &str) -> String {
    format!(
        "listeners:
  - {{name: main, address: '{address}', backends: [shop]}}
identity:
  issuers:
    - {{name: idp, issuer: {ISSUER}, audience: [bench], algorithm: EdDSA, keys: {{file: keys.json}}}}
backends:
  - {{name: shop, upstream: '{upstream}', action_map: actions.yaml, credential: shop-admin}}
credentials:
  - {{name: shop-admin, source: {{file: secret}}, inject: {{bearer: true}}}}
grants: {{file: grants.jsonl}}
audit: {{directory: audit, bytes_max: 8GiB}}
admin: {{address: '{admin}'}}
workers: 1
",
        admin = free()
    )
}

fn keys(key: &Ed25519KeyPair) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"k","x":"{x}"}}]}}"#)
}

fn token(key: &Ed25519KeyPair, subject: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = format!(r#"{{"iss":"{ISSUER}","sub":"{subject}","aud":"bench","iat":{now},"exp":{}}}"#, now + 36_000);
    let signed =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"k"}"#), URL_SAFE_NO_PAD.encode(claims));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).as_ref()))
}

/// Something that was started and where it listens.
pub struct Started {
    pub address: SocketAddr,
    pub process: Process,
}

/// nginx as a plain proxy with one worker and kept connections; nothing where it is not installed.
pub fn nginx(folder: &Folder, backend: SocketAddr) -> Option<Started> {
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists())?;
    let home = folder.path("nginx");
    std::fs::create_dir(&home).unwrap();
    let address = free();
    let configuration = format!(
        "daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c; uwsgi_temp_path {home}/d; scgi_temp_path {home}/e;
  upstream backend {{ server {backend}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen {address};
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Authorization \"Bearer a-credential-of-thirty-two-bytes\"; }}
  }}
}}
",
        home = home.display()
    );
    write(&home, "nginx.conf", &configuration);
    let mut command = Command::new(program);
    command.args(["-p", home.to_str().unwrap(), "-c", home.join("nginx.conf").to_str().unwrap()]);
    let process = Process::start(&command);
    wait(address);
    Some(Started { address, process })
}

/// Waits until somebody listens there.
pub fn wait(address: SocketAddr) {
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The configuration of a sidecar in this process, with very many grants and two for each round of revocations.
pub fn in_process(
    folder: &Folder,
    backend: SocketAddr,
    plan: &super::revoke::Plan,
) -> (leasehold::config::Config, String) {
    let home = folder.path("here");
    std::fs::create_dir(&home).unwrap();
    let key = Ed25519KeyPair::generate().unwrap();
    let mut grants = Grants::of(0).padded(plan.grants).lines();
    for round in 0..plan.rounds {
        for (id, action, resource) in [("stream", "event.watch", "events"), ("call", "thing.read", "things")] {
            let _ = writeln!(
                grants,
                "{{\"grant\":{{\"id\":\"grt_{id}_{round}\",\"principal\":\"{ISSUER}#bot\",\"backend\":\"shop\",\"actions\":[\"{action}\"],\"resources\":[\"{resource}/{round}\"],\"expires_at\":\"2099-01-01T00:00:00Z\"}}}}"
            );
        }
    }
    write(&home, "keys.json", &keys(&key));
    write(&home, "secret", "a-credential-of-thirty-two-bytes");
    write(&home, "grants.jsonl", &grants);
    write(
        &home,
        "actions.yaml",
        "rules:\n  - {action: thing.read, class: read, method: GET, path: '/things/{name}', resource: 'things/{name}'}\n  - {action: event.watch, class: read, method: GET, path: '/events/{name}', resource: 'events/{name}', streaming: true}\n",
    );
    write(&home, "leasehold.yaml", &configuration("127.0.0.1:0".parse().unwrap(), &format!("http://{backend}")));
    let config = leasehold::config::load(&home.join("leasehold.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    (config, token(&key, "bot"))
}
