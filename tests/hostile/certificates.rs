//! Client certificates that are no SPIFFE identity, against a listener that demands one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::common::DEADLINE;
use super::common::backend::Backend;
use super::common::issuer::in_seconds;
use super::common::world::{Setup, World};

const CALLER: &str = "spiffe://prod.example/ci/deploy";
const REVOKED: u64 = 4_242;

/// A certificate and its key.
struct Held {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, names: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> Held {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf(names);
        change(&mut params);
        Held { chain: vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()], key }
    }

    /// A list on which one certificate stands.
    fn revocations(&self) -> String {
        CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(REVOKED),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }
}

fn leaf(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, CALLER);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = names;
    params
}

fn uri(text: &str) -> Vec<SanType> {
    vec![SanType::URI(text.try_into().unwrap())]
}

fn start(authority: &Authority, more: &str) -> World {
    let server = authority.sign(vec![SanType::IpAddress([127, 0, 0, 1].into())], |_| {});
    let mut setup = Setup::new(Backend::start().address);
    setup.grants = format!(
        "  - {{id: g1, principal: \"{CALLER}\", backend: shop, actions: [allowed.read], resources: [\"allowed/**\"], expires_at: \"{}\"}}\n",
        in_seconds(600)
    );
    setup.listener = format!(
        "    tls: {{certificate: server.pem, key: server.key, client_ca: ca.pem, client_certificate: required{more}}}\n"
    );
    setup.identity = "  spiffe:\n    - {trust_domain: prod.example, bundle: ca.pem}\n".to_owned();
    let pem = |der: &CertificateDer<'_>| {
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    setup.files.extend([
        ("ca.pem".to_owned(), authority.certificate.pem()),
        ("server.pem".to_owned(), pem(&server.chain[0])),
        ("server.key".to_owned(), server.key.serialize_pem()),
        ("ca.crl".to_owned(), authority.revocations()),
    ]);
    World::start(&setup)
}

/// What the first line of the answer is; nothing where the handshake or the connection ended.
fn call(world: &World, authority: &Authority, held: Option<&Held>, tls12: bool) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).unwrap();
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let config = match held {
        None => builder.with_no_client_auth(),
        Some(held) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(held.key.serialize_der()));
            builder.with_client_auth_cert(held.chain.clone(), key).unwrap()
        }
    };
    let name = ServerName::from(world.address.ip());
    let stream = TcpStream::connect(world.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut secure = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
    let host = world.address;
    secure
        .write_all(format!("GET /allowed/a HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = Vec::new();
    let _ = secure.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).lines().next().map(str::to_owned)
}

#[test]
fn one_certificate_is_the_callers_and_every_other_is_nobodys() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("authority"));
    let world = start(&authority, ", client_crl: [ca.crl]");
    let good = authority.sign(uri(CALLER), |_| {});
    assert_eq!(call(&world, &authority, Some(&good), false).as_deref(), Some("HTTP/1.1 200 OK"));
    let own = {
        let key = KeyPair::generate().unwrap();
        Held { chain: vec![leaf(uri(CALLER)).self_signed(&key).unwrap().der().clone()], key }
    };
    let sign = |names: Vec<SanType>| authority.sign(names, |_| {});
    let dns = SanType::DnsName("ci.prod.example".try_into().unwrap());
    let two = [uri(CALLER), uri("spiffe://prod.example/other")].concat();
    let cases = [
        ("BI-TLS-001 none", None),
        ("BI-TLS-005 not yet valid", Some(authority.sign(uri(CALLER), |p| p.not_before = date_time_ymd(2080, 1, 1)))),
        ("over", Some(authority.sign(uri(CALLER), |p| p.not_after = date_time_ymd(2020, 1, 1)))),
        ("BI-TLS-007 signed by itself", Some(own)),
        ("another authority of the same name", Some(stranger.sign(uri(CALLER), |_| {}))),
        ("BI-TLS-008 somebody else, with the name in CN", Some(sign(uri("spiffe://prod.example/other")))),
        ("BI-TLS-009 two URIs", Some(sign(two))),
        ("no URI", Some(sign(vec![dns.clone()]))),
        ("no name at all", Some(sign(vec![]))),
        ("BI-TLS-011 another trust domain", Some(sign(uri("spiffe://evil.example/ci/deploy")))),
        ("a sub-domain", Some(sign(uri("spiffe://x.prod.example/ci/deploy")))),
        ("another scheme", Some(sign(uri("https://prod.example/ci/deploy")))),
        ("a query", Some(sign(uri("spiffe://prod.example/ci/deploy?x=1")))),
        ("a fragment", Some(sign(uri("spiffe://prod.example/ci/deploy#x")))),
        ("a port", Some(sign(uri("spiffe://prod.example:443/ci/deploy")))),
        ("a user", Some(sign(uri("spiffe://a@prod.example/ci/deploy")))),
        ("a dot segment", Some(sign(uri("spiffe://prod.example/x/../ci/deploy")))),
        ("an empty segment", Some(sign(uri("spiffe://prod.example//ci/deploy")))),
        ("a slash at the end", Some(sign(uri("spiffe://prod.example/ci/deploy/")))),
        ("an escape", Some(sign(uri("spiffe://prod.example/ci/%64eploy")))),
        ("no path", Some(sign(uri("spiffe://prod.example")))),
        ("other case", Some(sign(uri("spiffe://prod.example/CI/deploy")))),
        ("an authority", Some(authority.sign(uri(CALLER), |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)))),
        (
            "for servers only",
            Some(authority.sign(uri(CALLER), |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ),
        (
            "BI-TLS-017 revoked",
            Some(authority.sign(uri(CALLER), |p| p.serial_number = Some(SerialNumber::from(REVOKED)))),
        ),
    ];
    for (what, held) in &cases {
        let answer = call(&world, &authority, held.as_ref(), false);
        let refused = answer.as_deref().is_none_or(|line| line.contains(" 401 ") || line.contains(" 403 "));
        assert!(refused, "{what}: {answer:?}");
    }
    assert_eq!(call(&world, &authority, Some(&good), true), None, "TLS 1.2 only where it is configured (BI-TLS-020)");
    assert_eq!(
        call(&world, &authority, Some(&good), false).as_deref(),
        Some("HTTP/1.1 200 OK"),
        "and the good one still"
    );
    let permitted = world.records("call").into_iter().filter(|call| call["decision"] == "permit");
    assert!(permitted.clone().count() >= 1 && permitted.into_iter().all(|call| call["principal"] == CALLER));
}

#[test]
fn an_older_version_is_spoken_where_it_is_configured() {
    let authority = Authority::new("authority");
    let world = start(&authority, ", min_version: \"1.2\"");
    let good = authority.sign(uri(CALLER), |_| {});
    for tls12 in [true, false] {
        assert_eq!(call(&world, &authority, Some(&good), tls12).as_deref(), Some("HTTP/1.1 200 OK"));
    }
}

/// What a caller speaks with: who it is, and what it would resume.
fn caller(authority: &Authority, held: &Held) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(held.key.serialize_der()));
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(held.chain.clone(), key)
        .unwrap()
}

fn secure(world: &World, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let stream = TcpStream::connect(world.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let name = ServerName::from(world.address.ip());
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream)
}

/// One call; the connection stays open.
fn once(world: &World, stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Option<String> {
    let host = world.address;
    stream.write_all(format!("GET /allowed/a HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).ok()?;
    String::from_utf8_lossy(&answer[..read]).lines().next().map(str::to_owned)
}

#[test]
fn no_session_is_resumed_where_certificates_say_who_calls() {
    // BI-TLS-026, -027: what is never resumed outlives neither its trust nor its leaf.
    let authority = Authority::new("authority");
    for more in ["", ", min_version: \"1.2\""] {
        let world = start(&authority, more);
        let mut config = caller(&authority, &authority.sign(uri(CALLER), |_| {}));
        config.resumption = rustls::client::Resumption::in_memory_sessions(16);
        let config = Arc::new(config);
        for _ in 0..3 {
            let mut stream = secure(&world, &config);
            assert_eq!(once(&world, &mut stream).as_deref(), Some("HTTP/1.1 200 OK"));
            assert_eq!(stream.conn.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
        // Another authority from now on: who was known a moment ago is nobody.
        let next = Authority::new("next");
        std::fs::write(world.path("new"), next.certificate.pem()).unwrap();
        std::fs::rename(world.path("new"), world.path("ca.pem")).unwrap();
        super::common::wait_for("the new authority", || {
            let answer = once(&world, &mut secure(&world, &config));
            answer.is_none_or(|line| !line.contains(" 200 ")).then_some(())
        });
    }
}

#[test]
fn an_authority_is_held_to_the_names_it_may_sign() {
    // BI-TLS-016
    let authority = Authority::new("authority");
    let world = start(&authority, "");
    let under = |constraints: Option<rcgen::NameConstraints>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = constraints;
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        let leaf_key = KeyPair::generate().unwrap();
        let names = [uri(CALLER), vec![SanType::DnsName("ci.prod.example".try_into().unwrap())]].concat();
        let signed = leaf(names).signed_by(&leaf_key, &Issuer::new(params, key)).unwrap();
        Held { chain: vec![signed.der().clone(), certificate.der().clone()], key: leaf_key }
    };
    let only = |name: &str| {
        let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName(name.to_owned())];
        Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() })
    };
    let passes = |held: &Held| call(&world, &authority, Some(held), false).is_some_and(|line| line.contains(" 200 "));
    assert!(passes(&under(None)));
    assert!(passes(&under(only("prod.example"))));
    assert!(!passes(&under(only("staging.example"))));
}

#[test]
fn protocols_nobody_knows_end_the_handshake() {
    // BI-TLS-031
    let authority = Authority::new("authority");
    let world = start(&authority, "");
    let mut config = caller(&authority, &authority.sign(uri(CALLER), |_| {}));
    config.alpn_protocols = (0..200).map(|n| format!("x\u{1b}{n}").into_bytes()).collect();
    assert_eq!(once(&world, &mut secure(&world, &Arc::new(config.clone()))), None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert_eq!(once(&world, &mut secure(&world, &Arc::new(config))).as_deref(), Some("HTTP/1.1 200 OK"));
}

#[test]
fn keys_updated_without_end_delay_nobody() {
    // BI-TLS-029
    let authority = Authority::new("authority");
    let world = start(&authority, "");
    let config = Arc::new(caller(&authority, &authority.sign(uri(CALLER), |_| {})));
    let mut flood = secure(&world, &config);
    assert_eq!(once(&world, &mut flood).as_deref(), Some("HTTP/1.1 200 OK"));
    for _ in 0..20_000 {
        if flood
            .conn
            .refresh_traffic_keys()
            .and_then(|()| flood.flush().map_err(|error| rustls::Error::General(error.to_string())))
            .is_err()
        {
            break;
        }
    }
    assert_eq!(once(&world, &mut secure(&world, &config)).as_deref(), Some("HTTP/1.1 200 OK"));
}

#[test]
fn a_backend_with_the_wrong_name_gets_nothing() {
    // BI-TLS-032
    let authority = Authority::new("authority");
    let held = authority.sign(vec![SanType::DnsName("elsewhere.test".try_into().unwrap())], |_| {});
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(held.key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(held.chain.clone(), key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let got = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut secure = StreamOwned::new(rustls::ServerConnection::new(Arc::new(config)).unwrap(), stream);
        let mut got = Vec::new();
        let _ = secure.read_to_end(&mut got);
        got
    });
    let mut setup = Setup::new(address);
    setup.upstream = format!("https://{address}");
    setup.backend = "    upstream_tls: {ca: ca.pem}\n".to_owned();
    setup.files.push(("ca.pem".to_owned(), authority.certificate.pem()));
    let world = World::start(&setup);
    let answer = world.call("GET", "/allowed/a");
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unreachable"));
    assert!(got.join().unwrap().is_empty(), "not a byte of the request");
}
