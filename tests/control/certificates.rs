//! The API over TLS, with callers who show certificates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use leasehold::app::control::start_control;
use leasehold::config;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::common::DEADLINE;

struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        Self { certificate, pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: SanType) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![name];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// Asks who it is, with a certificate of that name; what came back, or nothing where there was no connection.
fn whoami(to: SocketAddr, trusted: &Authority, shown: Option<(&Authority, &str)>) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        Some((authority, name)) => {
            let (certificate, key) = authority.sign(SanType::URI(name.try_into().unwrap()));
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::IpAddress(to.ip().into());
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
    tls.write_all(format!("GET /v1/whoami HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    // The end without a farewell is an end too.
    let _ = tls.read_to_end(&mut answer);
    (!answer.is_empty()).then(|| String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn a_spiffe_certificate_is_a_proof_at_the_api_too() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (server, key) = authority.sign(SanType::IpAddress([127, 0, 0, 1].into()));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", &authority.pem);
    write("server.pem", &server.pem());
    write("server.key", &key.serialize_pem());
    write(
        "leasehold.yaml",
        "identity: {spiffe: [{trust_domain: prod.example, bundle: ca.pem}]}
admin: {address: '127.0.0.1:0'}
control:
  address: 127.0.0.1:0
  tls: {certificate: server.pem, key: server.key, client_ca: ca.pem, client_certificate: optional}
",
    );
    let config = config::load_control(&folder.path().join("leasehold.yaml")).unwrap_or_else(|e| panic!("{e}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let control = runtime.block_on(start_control(&config)).unwrap();
    let to = control.address();
    let name = "spiffe://prod.example/ci/deploy";
    let known = whoami(to, &authority, Some((&authority, name))).unwrap();
    assert!(known.starts_with("HTTP/1.1 200") && known.contains(name), "{known}");
    let nobody = whoami(to, &authority, None).unwrap();
    assert!(nobody.starts_with("HTTP/1.1 401"), "{nobody}");
    let other = whoami(to, &authority, Some((&authority, "spiffe://other.example/ci/deploy"))).unwrap();
    assert!(other.starts_with("HTTP/1.1 401"), "{other}");
    assert_eq!(whoami(to, &authority, Some((&stranger, name))), None, "signed by a stranger");
    runtime.block_on(control.stop());
}
