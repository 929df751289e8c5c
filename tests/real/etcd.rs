//! In front of etcd: gRPC with `etcdctl` and grpcio, and its JSON gateway.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::etcd_server::Etcd;
use super::proxy::{Proxy, Setup, bot, grant};
use super::tools::{Server, program, run, wait_for};

impl Etcd {
    fn setup(&self, upstream: &str, grants: String) -> Setup {
        Setup {
            backends: format!(
                "  - name: etcd\n    upstream: {upstream}://{}\n    action_map: builtin:etcd\n    credential: etcd-root\n",
                self.client
            ),
            credentials: "  - {name: etcd-root, source: {file: token}, inject: {header: {name: authorization, value: '{secret}'}}}\n".to_owned(),
            files: vec![("token", self.token.clone())],
            grants,
            ..Setup::default()
        }
    }
}

/// A caller's certificates: an authority, the listener's, and one with a SPIFFE id.
pub struct Certificates {
    pub authority: String,
    pub server: (String, String),
    pub client: (String, String),
}

const CALLER: &str = "spiffe://prod.example/ci/deploy";

pub fn certificates() -> Certificates {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = authority.self_signed(&key).unwrap();
    let issuer = Issuer::new(authority, key);
    let sign = |name: SanType| {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        leaf.subject_alt_names = vec![name];
        (leaf.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    Certificates {
        authority: certificate.pem(),
        server: sign(SanType::IpAddress([127, 0, 0, 1].into())),
        client: sign(SanType::URI(CALLER.try_into().unwrap())),
    }
}

/// `etcdctl` as a caller with a SPIFFE certificate.
fn etcdctl(proxy: &Proxy, words: &[&str]) -> Command {
    let mut command = Command::new(program("etcdctl"));
    let path = |name: &str| proxy.path(name).display().to_string();
    command
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &format!("https://{}", proxy.address), "--cacert", &path("ca.pem")])
        .args(["--cert", &path("client.pem"), "--key", &path("client.key")])
        .args(["--dial-timeout", "20s", "--command-timeout", "20s"])
        .args(words);
    command
}

fn with_certificates(etcd: &Etcd, grants: String) -> Proxy {
    let made = certificates();
    let mut setup = etcd.setup("h2c", grants);
    setup.files.extend([
        ("ca.pem", made.authority),
        ("server.pem", made.server.0),
        ("server.key", made.server.1),
        ("client.pem", made.client.0),
        ("client.key", made.client.1),
    ]);
    setup.listener =
        "    tls: {certificate: server.pem, key: server.key, client_ca: ca.pem, client_certificate: required}\n"
            .to_owned();
    setup.identity = "  spiffe:\n    - {trust_domain: prod.example, bundle: ca.pem}\n".to_owned();
    Proxy::start(&setup)
}

#[test]
fn etcdctl_does_what_its_certificate_was_granted() {
    let etcd = Etcd::start();
    let keys = |id, action| grant(id, CALLER, "etcd", action, "keys/**", 300);
    let proxy = with_certificates(&etcd, keys("g1", "kv.put") + &keys("g2", "kv.range") + &keys("g3", "watch"));
    let put = run(&mut etcdctl(&proxy, &["put", "app/a", "one"]));
    assert!(put.status.success(), "{put:?}\n{}", proxy.log());
    let get = run(&mut etcdctl(&proxy, &["get", "--print-value-only", "app/a"]));
    assert_eq!(String::from_utf8_lossy(&get.stdout), "one\n", "{get:?}");
    for words in
        [&["del", "app/a"][..], &["user", "list"], &["snapshot", "save", "/dev/null"], &["lease", "grant", "60"]]
    {
        let refused = run(&mut etcdctl(&proxy, words));
        assert!(!refused.status.success(), "{words:?}: {refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("PermissionDenied") || said.contains("permission denied"), "{words:?}: {said}");
    }

    let mut watch = etcdctl(&proxy, &["watch", "app/a"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let (seen, first) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in lines.by_ref() {
            let _ = seen.send(line.unwrap());
        }
    });
    wait_for("the watch to see a change", || {
        assert!(run(&mut etcdctl(&proxy, &["put", "app/a", "two"])).status.success());
        first.try_recv().ok()
    });
    proxy.grants(&(keys("g1", "kv.put") + &keys("g2", "kv.range")));
    let ended = wait_for("the end of the watch", || watch.try_wait().unwrap());
    reading.join().unwrap();
    let mut said = String::new();
    watch.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!ended.success() || said.contains("canceled"), "{ended:?} {said}");
    assert!(run(&mut etcdctl(&proxy, &["put", "app/a", "three"])).status.success());
    let cut = wait_for("the record of the cut", || proxy.records().into_iter().find(|record| record["ended"] == "cut"));
    assert_eq!((cut["cut_by"].as_str(), cut["action"].as_str()), (Some("revoked"), Some("watch")));
    assert_eq!((cut["principal"].as_str(), cut["identity"].as_str()), (Some(CALLER), Some("certificate")));
}

#[test]
fn a_watch_is_cut_when_it_expires_and_its_siblings_live() {
    let etcd = Etcd::start();
    let keys = |id, action| grant(id, &bot(), "etcd", action, "keys/**", 300);
    let proxy = Proxy::start(&etcd.setup("h2c", keys("g1", "kv.range") + &keys("g2", "watch")));
    let (mut child, mut lines) = Server::script("siblings.py", &[&proxy.address.to_string(), &proxy.token]);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    proxy.grants(&(keys("g1", "kv.range") + &grant("g2", &bot(), "etcd", "watch", "keys/**", 1)));
    child.say("\n");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "PERMISSION_DENIED expired\nthe sibling lives\n");
    assert_eq!(child.ended(), Some(0));
}

#[test]
fn the_json_gateway_is_decided_by_key() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.setup("http", grant("g1", &bot(), "etcd", "kv.*", "keys/app/**", 300)));
    let b = |text: &str| STANDARD.encode(text);
    let post = |path: &str, body: String| {
        proxy.call_with("POST", path, &["-H", "content-type: application/json", "-d", &body])
    };
    let put = post("/v3/kv/put", format!(r#"{{"key": "{}", "value": "{}"}}"#, b("app/x"), b("1")));
    assert_eq!(put.status, 200, "{put:?}");
    let inside = format!(r#"{{"key": "{}", "range_end": "{}"}}"#, b("app/"), b("app0"));
    let read = post("/v3/kv/range", inside.clone());
    assert!(read.status == 200 && read.body.contains(&b("app/x")), "{read:?}");
    assert_eq!(post("/v3beta/kv/range", inside).status, 200, "the alias is decided in the same way");
    for (path, body) in [
        ("/v3/kv/range", format!(r#"{{"key": "{}"}}"#, b("other"))),
        ("/v3/kv/range", format!(r#"{{"key": "{}", "range_end": "{}"}}"#, b("app/"), b("apq"))),
        ("/v3/kv/range", format!(r#"{{"key": "{}", "range_end": "AA=="}}"#, b("app/"))),
        ("/v3/kv/range", r#"{"key": "AA==", "range_end": "AA=="}"#.to_owned()),
        ("/v3/kv/range", format!(r#"{{"key": "{}", "rangeEnd": "AA=="}}"#, b("app/"))),
        ("/v3/kv/range", format!(r#"{{"key": "{}", "key": "{}"}}"#, b("app/x"), b("other"))),
        ("/v3/kv/range", format!(r#"{{"key": "{}", "range_end": "", "rangeEnd": "AA=="}}"#, b("app/"))),
        ("/v3beta/kv/range", format!(r#"{{"key": "{}"}}"#, b("other"))),
        ("/v3/kv%2frange", format!(r#"{{"key": "{}"}}"#, b("app/x"))),
        ("/v3/kv/txn", r#"{"success": []}"#.to_owned()),
        ("/v3/auth/disable", "{}".to_owned()),
        ("/v3/kv/deleterange", format!(r#"{{"key": "{}", "range_end": "{}"}}"#, b("a"), b("z"))),
    ] {
        let refused = post(path, body.clone());
        assert!(matches!(refused.status, 400 | 403), "{path} {body}: {refused:?}");
    }
    let deleted = post("/v3/kv/deleterange", format!(r#"{{"key": "{}"}}"#, b("app/x")));
    assert!(deleted.status == 200 && deleted.body.contains("deleted"), "{deleted:?}");
}
