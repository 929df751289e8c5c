//! All of it: PostgreSQL, a backend, and the processes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer as Signer, KeyPair, SanType};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::backend::{Backend, Then};
use crate::etcd::Etcd;
use crate::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::partition::Network;
use crate::postgres;
use crate::tools::Server;
use crate::wait_for;

pub const CONTROL_PLANES: usize = 3;
pub const SIDECARS: usize = 20;
pub const STALENESS_MAX: Duration = Duration::from_secs(3);

const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Backend
metadata: {name: shop}
spec: {actions: [{name: order.read, class: read}, {name: order.talk, class: read}], sidecars: ["spiffe://prod.test/sidecar/*"]}
---
apiVersion: leasehold/v1
kind: Backend
metadata: {name: etcd}
spec: {actions: [{name: watch, class: read}], sidecars: ["spiffe://prod.test/sidecar/*"]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bot}
spec: {principal: "https://idp.test#bot*", type: ci, groups: [bots], grants_max: 100000}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: read}
spec: {backend: shop, actions: [order.*], resources: ["**"], eligible: [bots], duration_max: 1h, concurrent_max: 100}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: watch}
spec: {backend: etcd, actions: [watch], resources: ["**"], eligible: [bots], duration_max: 1h}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: once}
spec: {backend: shop, actions: [order.read], resources: ["**"], eligible: [bots], duration_max: 1h, uses_max: 1, concurrent_max: 1000}
---
apiVersion: leasehold/v1
kind: Policy
metadata: {name: automatic}
spec:
  target: elevation
  cedar: |
    @id("automatic")
    permit(principal in Leasehold::Group::"bots", action == Leasehold::Action::"elevation:auto_approve", resource);
"#;

const ACTIONS: &str = "rules:
  - {action: order.read, class: read, method: GET, path: '/orders/{id}', resource: 'orders/{id}', streaming: true}
  - {action: order.talk, class: read, method: GET, path: /socket, upgrade: websocket, resource: orders, streaming: true}
";

/// Whose calls are made where nobody is named.
pub const BOT: &str = "bot-main";

/// Where the end of what runs at the sidecars is said; the first of them does not know it.
pub const ELSEWHERE: usize = 1;

/// Addresses that no other test has: of loopback's sixteen million, by the number of this process and of the house.
#[derive(Clone, Copy)]
struct Street(usize);

impl Street {
    fn address(self, host: usize) -> String {
        let id = std::process::id();
        format!("127.{}.{}.{}", 64 + (id >> 8) % 64, id % 256, self.0 * 100 + host + 1)
    }

    fn sidecar(self, place: usize) -> String {
        self.address(20 + place)
    }

    fn relay(self) -> String {
        self.address(10)
    }
}

/// The houses of this process.
static HOUSES: AtomicUsize = AtomicUsize::new(0);

pub struct House {
    street: Street,
    folder: tempfile::TempDir,
    issuer: Issuer,
    controls: Vec<Option<Server>>,
    relay: Option<Server>,
    sidecars: Vec<Server>,
    backend: Backend,
    etcd: Option<Etcd>,
    _postgres: postgres::Server,
}

impl House {
    /// With so many sidecars, every other behind the relay.
    pub fn build(sidecars: usize) -> Self {
        Self::build_with(sidecars, &[], None)
    }

    /// The same, in front of an etcd too.
    pub fn build_before_etcd(sidecars: usize) -> Self {
        Self::build_with(sidecars, &[], Some(Etcd::start()))
    }

    /// With a sidecar that will run inside a network of its own, and not yet does.
    pub fn build_for(network: &Network) -> Self {
        let control = network.control();
        let house = Self::build_with(0, &[control.split(':').next().unwrap()], None);
        let addresses = format!("'https://{control}'");
        let text = proxy(0, &network.sidecar(), "127.0.0.1:9901", &format!("http://{}", network.backend()), &addresses);
        // The cables are ours alone.
        let text = text
            .replace("backends: [shop]}]", "backends: [shop], danger_plain_listener: true}]")
            .replace("credential: shop}]", "credential: shop, danger_plain_upstream: true}]");
        std::fs::write(house.folder.path().join("sidecar-0.yaml"), text).unwrap();
        house
    }

    fn build_with(sidecars: usize, names: &[&str], etcd: Option<Etcd>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::new("k1");
        let postgres = postgres::Server::start();
        let street = Street(HOUSES.fetch_add(1, Ordering::Relaxed));
        // One more than there are, for one that is started apart.
        write_certificates(folder.path(), street, sidecars + 1, names);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("keys.json", &issuer.jwks());
        write("documents.yaml", DOCUMENTS);
        write("secret", "shop-secret");
        write("actions.yaml", ACTIONS);
        let url = postgres.database();
        for place in 0..CONTROL_PLANES {
            write(&format!("control-{place}.yaml"), &control(street, place, &url));
        }
        write("relay.yaml", &relay(street));
        let backend = backend();
        for place in 0..sidecars {
            let mut text = sidecar(street, place, backend.address);
            if let Some(etcd) = &etcd {
                write("etcd-token", &etcd.token);
                text = before_etcd(&text, etcd.client);
            }
            write(&format!("sidecar-{place}.yaml"), &text);
        }
        let mut house = Self {
            street,
            folder,
            issuer,
            controls: (0..CONTROL_PLANES).map(|_| None).collect(),
            relay: None,
            sidecars: Vec::new(),
            backend,
            etcd,
            _postgres: postgres,
        };
        for place in 0..CONTROL_PLANES {
            house.start_control(place);
        }
        house.start_relay();
        house.sidecars = (0..sidecars).map(|place| house.process("proxy", &format!("sidecar-{place}.yaml"))).collect();
        house
    }

    fn process(&self, command: &str, file: &str) -> Server {
        let log =
            std::fs::File::options().create(true).append(true).open(self.folder.path().join(format!("{file}.log")));
        let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        program.args([command, "-c", file, "--log-format", "json"]).current_dir(self.folder.path());
        Server::start(program.stdout(Stdio::null()).stderr(log.unwrap()))
    }

    /// Starts a control plane and waits until it answers.
    pub fn start_control(&mut self, place: usize) {
        self.controls[place] = Some(self.process("control", &format!("control-{place}.yaml")));
        wait_for("a control plane that answers", || {
            if self.controls[place].as_mut().unwrap().has_ended() {
                let log = self.folder.path().join(format!("control-{place}.yaml.log"));
                panic!("control plane {place} ended: {}", std::fs::read_to_string(log).unwrap());
            }
            let token = self.folder.path().join(format!("data-{place}/admin.token"));
            std::fs::read_to_string(token).ok()?;
            self.try_as_admin(place, &Asked::get("/v1/grants"))
        });
    }

    pub fn kill_control(&mut self, place: usize) {
        drop(self.controls[place].take());
    }

    pub fn signal_control(&self, place: usize, signal: Signal) {
        self.controls[place].as_ref().unwrap().signal(signal);
    }

    pub fn start_relay(&mut self) {
        self.relay = Some(self.process("relay", "relay.yaml"));
    }

    pub fn kill_relay(&mut self) {
        drop(self.relay.take());
    }

    /// Where a control plane is followed.
    pub fn sync(&self, place: usize) -> String {
        format!("{}:9903", self.street.address(place))
    }

    pub fn backend(&self) -> String {
        self.backend.address.to_string()
    }

    /// Starts the sidecar of [`House::build_for`].
    pub fn start_inside(&mut self, network: &Network) {
        let log = std::fs::File::create(self.folder.path().join("inside.log")).unwrap();
        let mut program = Command::new("ip");
        program.args(["netns", "exec", network.name(), env!("CARGO_BIN_EXE_leasehold")]);
        program.args(["proxy", "-c", "sidecar-0.yaml"]).current_dir(self.folder.path());
        self.sidecars.push(Server::start(program.stdout(Stdio::null()).stderr(log)));
    }

    pub fn signal_relay(&self, signal: Signal) {
        self.relay.as_ref().unwrap().signal(signal);
    }

    /// Whether a sidecar has the grant in its table.
    pub fn knows(&self, sidecar: usize, grant: &str) -> bool {
        let host = self.street.sidecar(sidecar);
        let head = format!("GET /grants HTTP/1.1\r\nhost: {host}:9901\r\nconnection: close\r\n\r\n");
        exchange(&format!("{host}:9901"), &head).is_ok_and(|answer| answer.contains(grant))
    }

    pub fn signal_sidecar(&self, place: usize, signal: Signal) {
        self.sidecars[place].signal(signal);
    }

    /// The status of a call through a sidecar; none where nobody answers in time.
    pub fn call(&self, sidecar: usize) -> Option<u16> {
        self.call_as(BOT, sidecar)
    }

    /// The same for somebody else.
    pub fn call_as(&self, who: &str, sidecar: usize) -> Option<u16> {
        self.call_at(who, &format!("{}:8000", self.street.sidecar(sidecar)))
    }

    /// The same at an address.
    pub fn call_at(&self, who: &str, address: &str) -> Option<u16> {
        let head = format!(
            "GET /orders/7 HTTP/1.1\r\nhost: shop.test\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            self.issuer.token(who)
        );
        let answer = exchange(address, &head).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Where callers reach a sidecar, and with which token.
    pub fn door(&self, sidecar: usize) -> (SocketAddr, String) {
        (format!("{}:8000", self.street.sidecar(sidecar)).parse().unwrap(), self.issuer.token(BOT))
    }

    /// What a control plane answers; nothing where it gives no answer, or one that says to ask again: so long as another
    /// sleeps with the store's lock in its hands, nobody can write.
    fn try_api(&self, place: usize, token: &str, asked: &Asked) -> Option<Value> {
        let Asked { method, path, body, key } = asked;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nidempotency-key: {key}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        let answer = exchange(&format!("{}:9900", self.street.address(place)), &head).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        if head.starts_with("HTTP/1.1 503") {
            return None;
        }
        assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        Some(serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
    }

    /// As the local admin of that control plane; each has one of its own.
    fn try_as_admin(&self, place: usize, asked: &Asked) -> Option<Value> {
        let token = std::fs::read_to_string(self.folder.path().join(format!("data-{place}/admin.token"))).unwrap();
        self.try_api(place, token.trim(), asked)
    }

    /// A grant, asked for at that control plane.
    pub fn grant(&self, place: usize, who: &str, entitlement: &str) -> String {
        let asked = Asked::post("/v1/requests", json!({"entitlement": entitlement}));
        let token = self.issuer.token(who);
        let request = wait_for("an answer to a request", || self.try_api(place, &token, &asked));
        request["grant_id"].as_str().unwrap_or_else(|| panic!("{request}")).to_owned()
    }

    /// Revokes a grant; the revision from which on it is over.
    pub fn revoke(&self, place: usize, grant: &str) -> u64 {
        self.revoke_all(place, &json!({"grant": grant}))
    }

    /// Revokes the grants that are meant; the revision from which on they are over.
    pub fn revoke_all(&self, place: usize, which: &Value) -> u64 {
        let asked = Asked::post("/v1/revocations", which.clone());
        let revoked = wait_for("an answer to a revocation", || self.try_as_admin(place, &asked));
        revoked["revision"].as_u64().unwrap_or_else(|| panic!("{revoked}"))
    }

    /// What a control plane says of the enforcement of a revision.
    pub fn report(&self, place: usize, revision: u64) -> Option<Value> {
        self.try_as_admin(place, &Asked::get(&format!("/v1/revocations/{revision}")))
    }
}

/// What a control plane is asked; asked again under the same key, it is done once.
struct Asked {
    method: &'static str,
    path: String,
    body: Value,
    key: usize,
}

impl Asked {
    fn get(path: &str) -> Self {
        Self::new("GET", path, Value::Null)
    }

    fn post(path: &str, body: Value) -> Self {
        Self::new("POST", path, body)
    }

    fn new(method: &'static str, path: &str, body: Value) -> Self {
        static KEYS: AtomicUsize = AtomicUsize::new(0);
        Self { method, path: path.to_owned(), body, key: KEYS.fetch_add(1, Ordering::Relaxed) }
    }
}

fn exchange(address: &str, head: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Answers at once, on one path for ever, and on another with a WebSocket.
fn backend() -> Backend {
    Backend::scripted(|seen, stream| {
        if seen.line().contains("/orders/stream") {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut open = stream.write_all(head).is_ok();
            while open {
                open = stream.write_all(b"8\r\ndata: 1\n\r\n").is_ok();
                std::thread::park_timeout(Duration::from_millis(20));
            }
            return Then::Close;
        }
        let answer: &[u8] = match seen.line().contains("/socket") {
            true => b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05begun",
            false => b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n",
        };
        let _ = stream.write_all(answer);
        Then::Keep
    })
}

fn write_certificates(folder: &Path, street: Street, sidecars: usize, names: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let signer = Signer::new(params, key);
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    let write = |name: &str, names: Vec<SanType>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &signer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    let uri = |name: &str| SanType::URI(format!("spiffe://prod.test/sidecar/{name}").as_str().try_into().unwrap());
    let ip = |host: String| SanType::IpAddress(host.parse().unwrap());
    let hosts = (0..CONTROL_PLANES).map(|place| street.address(place));
    write("server", hosts.chain(names.iter().map(ToString::to_string)).map(ip).collect());
    write("relay", vec![uri("relay")]);
    write("relay-server", vec![ip(street.relay())]);
    for place in 0..sidecars {
        write(&format!("sidecar-{place}"), vec![uri(&place.to_string())]);
    }
}

fn identity() -> String {
    format!(
        "identity: {{spiffe: [{{trust_domain: prod.test, bundle: ca.pem}}], issuers: [{{name: idp, issuer: '{ISSUER}', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}]}}\n"
    )
}

fn control(street: Street, place: usize, url: &str) -> String {
    let host = street.address(place);
    format!(
        "{}admin: {{address: '{host}:9901'}}
control:
  address: {host}:9900
  data: data-{place}
  store: {url}
  documents: [documents.yaml]
  calls_per_second: 1000000
  sync: {{address: '{host}:9903', trust_domain: prod.test, tls: {{certificate: server.pem, key: server.key, client_ca: ca.pem}}}}
",
        identity()
    )
}

fn upstreams(street: Street, places: impl Iterator<Item = usize>) -> String {
    let all: Vec<String> = places.map(|place| format!("'https://{}:9903'", street.address(place))).collect();
    all.join(", ")
}

fn relay(street: Street) -> String {
    let host = street.relay();
    format!(
        "admin: {{address: '{host}:9901'}}
relay:
  address: {host}:9903
  trust_domain: prod.test
  staleness_max: 3s
  backends: [shop, etcd]
  sidecars: ['spiffe://prod.test/sidecar/*']
  tls: {{certificate: relay-server.pem, key: relay-server.key, client_ca: ca.pem}}
  upstream: {{addresses: [{}], tls: {{certificate: relay.pem, key: relay.key, ca: ca.pem}}}}
",
        upstreams(street, 0..CONTROL_PLANES)
    )
}

fn sidecar(street: Street, place: usize, backend: SocketAddr) -> String {
    let host = street.sidecar(place);
    let addresses = match place {
        0 => upstreams(street, (0..CONTROL_PLANES).filter(|control| *control != ELSEWHERE)),
        place if place.is_multiple_of(2) => upstreams(street, 0..CONTROL_PLANES),
        _ => format!("'https://{}:9903'", street.relay()),
    };
    let at = [format!("{host}:8000"), format!("{host}:9901"), format!("http://{backend}")];
    proxy(place, &at[0], &at[1], &at[2], &addresses)
}

fn proxy(place: usize, listens: &str, admin: &str, backend: &str, addresses: &str) -> String {
    format!(
        "{}admin: {{address: '{admin}'}}
listeners: [{{name: shop, address: '{listens}', backends: [shop]}}]
backends: [{{name: shop, hosts: [shop.test], upstream: '{backend}', action_map: actions.yaml, credential: shop}}]
credentials: [{{name: shop, source: {{file: secret}}, inject: {{bearer: true}}}}]
audit: {{directory: audit-{place}}}
grants:
  staleness_max: 3s
  control:
    addresses: [{addresses}]
    tls: {{certificate: sidecar-{place}.pem, key: sidecar-{place}.key, ca: ca.pem}}
",
        identity()
    )
}

/// A sidecar's configuration with an etcd as a second backend.
fn before_etcd(text: &str, etcd: SocketAddr) -> String {
    let add = |text: &str, list: &str, more: &str| {
        let (line, end) = text.split_once(list).unwrap_or_else(|| panic!("{text}"));
        let (inside, after) = end.split_once("]\n").unwrap();
        format!("{line}{list}{inside}, {more}]\n{after}")
    };
    let text = text.replace("backends: [shop]", "backends: [shop, etcd]");
    let backend = format!(
        "{{name: etcd, hosts: [etcd.test], upstream: 'h2c://{etcd}', action_map: builtin:etcd, credential: etcd}}"
    );
    let text = add(&text, "\nbackends: [", &backend);
    let inject = "{header: {name: authorization, value: '{secret}'}}";
    add(&text, "\ncredentials: [", &format!("{{name: etcd, source: {{file: etcd-token}}, inject: {inject}}}"))
}
