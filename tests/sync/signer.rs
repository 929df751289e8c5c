//! Certificates as the authority of a control plane signs them, and as it does not.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use leasehold::app::clock::SystemClock;
use leasehold::domain::time::Clock;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::world::World;

/// Whoever signs for that control plane.
pub struct Signer {
    pub certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    pub fn of(world: &World) -> Self {
        let text = std::fs::read_to_string(world.path().join("leasehold.data/authority/authority.pem")).unwrap();
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::from_pem(&text).unwrap()).unwrap();
        Self { certificate, issuer }
    }

    pub fn another() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn params(name: SanType) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params
    }

    /// A certificate of that sidecar, good until so many seconds from now.
    pub fn sidecar(&self, name: &str, seconds: i64) -> Held {
        let key = KeyPair::generate().unwrap();
        let id = format!("spiffe://prod.test/sidecar/{name}");
        let mut params = Self::params(SanType::URI(id.as_str().try_into().unwrap()));
        let until = SystemClock::new().now().wall.as_seconds() + seconds;
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(until.unsigned_abs());
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Held { chain: vec![leaf, self.certificate.clone()], key }
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// A certificate with its key.
pub struct Held {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

impl Held {
    /// Keeps it where a sidecar keeps its own.
    pub fn keep(&self, folder: &Path) {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
        let chain: String = self.chain.iter().map(|der| pem(der)).collect();
        let own = folder.join("identity.pem");
        std::fs::write(&own, self.key.serialize_pem() + &chain).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(folder.join("ca.pem"), pem(self.chain.last().unwrap())).unwrap();
    }
}
