//! TLS of a listener: certificate, key and trust, changed together and without dropping a connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Whether a caller shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// It is not asked.
    None,
    /// It is asked and may do without.
    Optional,
    /// It must.
    Required,
}

/// Where a listener's TLS comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who signs the callers' certificates, PEM.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists, PEM.
    pub client_crl: Vec<PathBuf>,
    /// Whether a caller shows a certificate.
    pub client_certificate: ClientCertificate,
    /// Whether TLS 1.2 is spoken too.
    pub tls12: bool,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct TlsError {
    path: String,
    reason: String,
}

impl TlsError {
    fn new(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// A listener's TLS as it stands, and where it came from.
#[derive(Debug)]
pub struct Tls {
    settings: TlsSettings,
    current: ArcSwap<ServerConfig>,
    seen: std::sync::Mutex<Vec<Vec<u8>>>,
}

impl Tls {
    /// Reads everything.
    ///
    /// # Errors
    /// [`TlsError`] naming the first file that is missing, empty or not what it should be.
    pub fn open(settings: TlsSettings) -> Result<Self, TlsError> {
        let seen = contents(&settings)?;
        let config = server_config(&settings)?;
        Ok(Self { settings, current: ArcSwap::from_pointee(config), seen: std::sync::Mutex::new(seen) })
    }

    /// What the next handshake uses. Session tickets of an older one are of no use with it, so a resumed session cannot
    /// outlive the trust it was made under.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again and, if any changed, puts all in force at once. Returns whether something changed.
    ///
    /// # Errors
    /// [`TlsError`]; what was in force stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let now = contents(&self.settings)?;
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *seen == now {
            return Ok(false);
        }
        self.current.store(Arc::new(server_config(&self.settings)?));
        *seen = now;
        Ok(true)
    }
}

fn contents(settings: &TlsSettings) -> Result<Vec<Vec<u8>>, TlsError> {
    use aws_lc_rs::digest::{SHA256, digest};
    let files = [&settings.certificate, &settings.key]
        .into_iter()
        .chain(settings.client_ca.iter())
        .chain(settings.client_crl.iter());
    files
        .map(|path| {
            let bytes = zeroize::Zeroizing::new(std::fs::read(path).map_err(|error| TlsError::new(path, error))?);
            Ok(digest(&SHA256, &bytes).as_ref().to_vec())
        })
        .collect()
}

/// Every certificate of a PEM file; a file without one, or with one that is broken, is refused.
///
/// # Errors
/// [`TlsError`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path)
        .map_err(|error| TlsError::new(path, error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::new(path, error))?;
    if all.is_empty() {
        return Err(TlsError::new(path, "it holds no certificate"));
    }
    Ok(all)
}

/// The private key of a PEM file.
///
/// # Errors
/// [`TlsError`].
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::new(path, error))
}

/// The authorities of a PEM file, to trust.
///
/// # Errors
/// [`TlsError`].
pub fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        if !is_authority(&certificate) {
            return Err(TlsError::new(path, "a certificate in it is no authority (CA) and cannot be trusted to sign"));
        }
        roots.add(certificate).map_err(|error| TlsError::new(path, error))?;
    }
    Ok(roots)
}

fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}

fn server_config(settings: &TlsSettings) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if settings.tls12 { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::new(&settings.certificate, error))?;
    let builder = match (&settings.client_ca, settings.client_certificate) {
        (_, ClientCertificate::None) => builder.with_no_client_auth(),
        (None, _) => {
            return Err(TlsError::new(
                &settings.certificate,
                "client certificates are asked for and `client_ca` is missing",
            ));
        }
        (Some(ca), wanted) => {
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider);
            for path in &settings.client_crl {
                let list =
                    CertificateRevocationListDer::from_pem_file(path).map_err(|error| TlsError::new(path, error))?;
                verifier = verifier.with_crls([list]);
            }
            if wanted == ClientCertificate::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|error| TlsError::new(ca, error))?)
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&settings.certificate)?, private_key(&settings.key)?)
        .map_err(|error| TlsError::new(&settings.certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    if settings.client_certificate != ClientCertificate::None {
        // A resumed session would skip the look at the caller's certificate and at the revocation lists.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    }
    Ok(config)
}
