//! A control plane in this process that sidecars with certificates follow.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leasehold::app::clock::SystemClock;
use leasehold::app::control::{RunningControl, start_control_at};
use leasehold::config::{self, ControlConfig};
use leasehold::domain::time::{Clock, Now};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common::client::{Answer, Client};
use crate::common::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::follower::{Follower, Shown};

const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Backend
metadata: {name: shop}
spec: {actions: [{name: read, class: read}], sidecars: ["spiffe://prod.test/sidecar/shop-*", "spiffe://prod.test/sidecar/all"]}
---
apiVersion: leasehold/v1
kind: Backend
metadata: {name: bank}
spec: {actions: [{name: read, class: read}], sidecars: ["spiffe://prod.test/sidecar/all"]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bot}
spec: {principal: "https://idp.test#bot", type: ci, groups: [bots]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: shop-read}
spec: {backend: shop, actions: [read], resources: ["**"], eligible: [bots], duration_max: 10m, concurrent_max: 100}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: bank-read}
spec: {backend: bank, actions: [read], resources: ["**"], eligible: [bots], duration_max: 10m, concurrent_max: 100}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: twice}
spec: {backend: shop, actions: [read], resources: ["**"], eligible: [bots], duration_max: 10m, uses_max: 2, concurrent_max: 100}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: while-used}
spec: {backend: shop, actions: [read], resources: ["**"], eligible: [bots], duration_max: 1h, idle_timeout: 1m, concurrent_max: 100}
---
apiVersion: leasehold/v1
kind: Policy
metadata: {name: automatic}
spec:
  target: elevation
  cedar: |
    @id("automatic")
    permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource)
    when { [Leasehold::Entitlement::"shop-read", Leasehold::Entitlement::"bank-read", Leasehold::Entitlement::"twice", Leasehold::Entitlement::"while-used"].contains(resource) };
"#;

/// Who signs certificates.
pub struct Authority {
    pub pem: String,
    pub der: rustls::pki_types::CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: rcgen::Issuer::new(params, key) }
    }

    pub fn sign(&self, names: Vec<SanType>) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names;
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// What a sidecar of that name shows.
    pub fn shown(&self, name: &str) -> Shown {
        self.shown_as(&[&format!("spiffe://prod.test/sidecar/{name}")])
    }

    pub fn shown_as(&self, ids: &[&str]) -> Shown {
        let names = ids.iter().map(|id| SanType::URI((*id).try_into().unwrap())).collect();
        let (certificate, key) = self.sign(names);
        Shown { chain: vec![certificate.der().clone()], key: key.serialize_der() }
    }
}

/// The machine's clock, but for what it is moved forward.
#[derive(Debug)]
pub struct Stepped {
    clock: SystemClock,
    seconds: AtomicU64,
}

impl Stepped {
    pub fn forward(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Stepped {
    fn now(&self) -> Now {
        let (now, by) = (self.clock.now(), Duration::from_secs(self.seconds.load(Ordering::SeqCst)));
        Now { wall: now.wall.plus(by), uptime: now.uptime.plus(by) }
    }
}

pub struct World {
    pub authority: Authority,
    pub issuer: Issuer,
    pub control: Option<RunningControl>,
    pub runtime: Runtime,
    pub clock: Arc<Stepped>,
    folder: TempDir,
    local: String,
}

impl World {
    pub fn start() -> Self {
        Self::start_with("", None)
    }

    /// With more lines of `control`, and with the certificates of another.
    pub fn start_with(control: &str, beside: Option<&World>) -> Self {
        Self::start_so(control, beside, |_| {})
    }

    /// With what no file can say.
    pub fn start_so(control: &str, beside: Option<&World>, change: impl FnOnce(&mut ControlConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let authority = Authority::new();
        let issuer = Issuer::new("k1");
        let (server, key) = authority.sign(vec![SanType::IpAddress([127, 0, 0, 1].into())]);
        let copy = |name: &str| std::fs::copy(beside.unwrap().folder.path().join(name), folder.path().join(name));
        if beside.is_some() {
            for name in ["ca.pem", "server.pem", "server.key", "keys.json"] {
                copy(name).unwrap();
            }
        } else {
            write("ca.pem", &authority.pem);
            write("server.pem", &server.pem());
            write("server.key", &key.serialize_pem());
            write("keys.json", &issuer.jwks());
        }
        write("documents.yaml", DOCUMENTS);
        write("leasehold.yaml", &configuration(control));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let clock = Arc::new(Stepped { clock: SystemClock::new(), seconds: AtomicU64::new(0) });
        let control = boot(&runtime, folder.path(), &clock, change);
        let local = std::fs::read_to_string(control.token_file()).unwrap();
        Self { authority, issuer, control: Some(control), runtime, clock, folder, local }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn sync(&self) -> SocketAddr {
        self.control.as_ref().unwrap().sync().unwrap()
    }

    pub fn api(&self) -> SocketAddr {
        self.control.as_ref().unwrap().address()
    }

    /// A sidecar of that name that is connected.
    pub fn sidecar(&self, name: &str) -> Follower {
        let shown = self.authority.shown(name);
        self.runtime.block_on(Follower::connect(self.sync(), &self.authority.der, Some(shown))).unwrap()
    }

    pub fn token(&self, who: &str) -> String {
        if who == "local" { self.local.clone() } else { self.issuer.token(who) }
    }

    #[track_caller]
    pub fn call(&self, who: &str, method: &str, target: &str, body: &Value) -> Answer {
        let token = self.token(who);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut client = Client::connect(self.api());
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.api(),
            body.len()
        );
        client.send(head.as_bytes());
        client.answer_to(method).unwrap_or_else(|| panic!("no answer to {method} {target}"))
    }

    #[track_caller]
    pub fn done(&self, who: &str, method: &str, target: &str, body: &Value) -> Value {
        let answer = self.call(who, method, target, body);
        assert!((200..300).contains(&answer.status), "{who} {method} {target}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// Has these follow the backend `shop` from now on, and nobody else.
    #[track_caller]
    pub fn sidecars(&self, names: &[&str]) {
        let spec = json!({"actions": [{"name": "read", "class": "read"}], "sidecars": names});
        let shop = json!({"apiVersion": "leasehold/v1", "kind": "Backend", "metadata": {"name": "shop"}, "spec": spec});
        self.done("local", "PUT", "/v1/backends/shop", &shop);
    }

    /// A grant of the bot's under that entitlement.
    #[track_caller]
    pub fn grant(&self, entitlement: &str) -> String {
        let request = self.done("bot", "POST", "/v1/requests", &json!({"entitlement": entitlement}));
        request["grant_id"].as_str().unwrap_or_else(|| panic!("{request}")).to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.control.take());
    }
}

fn boot(
    runtime: &Runtime,
    folder: &Path,
    clock: &Arc<Stepped>,
    change: impl FnOnce(&mut ControlConfig),
) -> RunningControl {
    let mut config = config::load_control(&folder.join("leasehold.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    change(&mut config);
    runtime
        .block_on(start_control_at(&config, Arc::clone(clock) as Arc<dyn Clock>))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

fn configuration(control: &str) -> String {
    let sync = if control.contains("  sync:") {
        ""
    } else {
        "  sync: {address: '127.0.0.1:0', trust_domain: prod.test, tls: {certificate: server.pem, key: server.key, client_ca: ca.pem}}\n"
    };
    format!(
        "identity:
  spiffe: [{{trust_domain: prod.test, bundle: ca.pem}}]
  issuers:
    - {{name: idp, issuer: {ISSUER}, audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}
admin: {{address: '127.0.0.1:0'}}
drain_timeout: 5s
control:
  address: 127.0.0.1:0
  documents: [documents.yaml]
  calls_per_second: 1000000
{sync}{control}
"
    )
}
