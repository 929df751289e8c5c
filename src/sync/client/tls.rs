//! How a source is verified and what is shown to it: files, read again for each connection.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::domain::time::Timestamp;

/// Where the certificate, its key and the authorities are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM: what is shown, the certificate first.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: who signs the certificates of the servers.
    pub ca: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct TlsError {
    path: String,
    reason: String,
}

impl TlsError {
    fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// What the files said when they were read.
#[derive(Debug, Clone)]
struct Read {
    contents: Vec<Vec<u8>>,
    config: Arc<ClientConfig>,
    lifetime: (Timestamp, Timestamp),
    changes: u64,
}

/// TLS towards servers, as the files have it.
#[derive(Debug)]
pub(super) struct ClientTls {
    settings: TlsSettings,
    read: Mutex<Read>,
    said: Mutex<String>,
}

impl ClientTls {
    /// Reads the files.
    pub(super) fn open(settings: TlsSettings) -> Result<Self, TlsError> {
        let read = read(&settings, contents(&settings)?)?;
        Ok(Self { settings, read: Mutex::new(read), said: Mutex::default() })
    }

    /// What the next connection uses: the files as they are, or as they last were good.
    pub(super) fn current(&self) -> Arc<ClientConfig> {
        self.reload();
        Arc::clone(&self.held().config)
    }

    /// How often the files changed.
    pub(super) fn changes(&self) -> u64 {
        self.held().changes
    }

    /// Looks at the files. Warns, once, of a certificate whose last fifth has begun: whoever renews it should have done so.
    pub(super) fn look(&self, now: Timestamp) {
        self.reload();
        let (from, until) = self.held().lifetime;
        if until.since(now) < until.since(from) / 5 {
            let file = self.settings.certificate.display();
            self.say(format!("the certificate {file} ends {until}; without a new one the source will refuse us"));
        }
    }

    fn held(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self) {
        let mut held = self.held();
        let now = contents(&self.settings)
            .and_then(|now| if now == held.contents { Ok(None) } else { read(&self.settings, now).map(Some) });
        match now {
            Ok(Some(now)) => {
                tracing::info!(file = %self.settings.certificate.display(), "what is shown to the source changed");
                *held = Read { changes: held.changes + 1, ..now };
            }
            Ok(None) => {}
            Err(error) => self.say(format!("the last good certificate towards the source stays: {error}")),
        }
    }

    /// Says something that is wrong once, until something else is.
    fn say(&self, what: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if what != *said {
            if !what.is_empty() {
                tracing::warn!("{what}");
            }
            *said = what;
        }
    }
}

fn contents(settings: &TlsSettings) -> Result<Vec<Vec<u8>>, TlsError> {
    use aws_lc_rs::digest::{SHA256, digest};
    let files = [&settings.certificate, &settings.key, &settings.ca].into_iter();
    files
        .map(|path| {
            let bytes = zeroize::Zeroizing::new(std::fs::read(path).map_err(|error| TlsError::new(path, error))?);
            Ok(digest(&SHA256, &bytes).as_ref().to_vec())
        })
        .collect()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| TlsError::new(path, error))?;
    if all.is_empty() { Err(TlsError::new(path, "it holds no certificate")) } else { Ok(all) }
}

fn read(settings: &TlsSettings, contents: Vec<Vec<u8>>) -> Result<Read, TlsError> {
    let TlsSettings { certificate, key, ca } = settings;
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).map_err(|error| TlsError::new(ca, error))?;
    }
    let chain = certificates(certificate)?;
    let lifetime = lifetime(&chain[0]).ok_or_else(|| TlsError::new(certificate, "its certificate cannot be read"))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::new(key, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::new(certificate, error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, private)
        .map_err(|error| TlsError::new(certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is resumed would be one of the old certificate.
    config.resumption = Resumption::disabled();
    Ok(Read { contents, config: Arc::new(config), lifetime, changes: 0 })
}

fn lifetime(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_seconds(time.timestamp());
    Some((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// How often the certificate's age is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, names: [&str; 3], until: i32) -> TlsSettings {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["sidecar.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.self_signed(&key).unwrap().pem();
        let [first, second, third] = names.map(|name| folder.join(name));
        std::fs::write(&first, &certificate).unwrap();
        std::fs::write(&second, key.serialize_pem()).unwrap();
        std::fs::write(&third, &certificate).unwrap();
        TlsSettings { certificate: first, key: second, ca: third }
    }

    fn said(tls: &ClientTls) -> String {
        tls.said.lock().unwrap().clone()
    }

    #[test]
    fn files_that_change_are_used_files_that_are_broken_are_not_and_an_end_is_foretold() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a.crt", "a.key", "ca.crt"];
        let tls = ClientTls::open(write(folder.path(), names, 2030)).unwrap();
        let now = Timestamp::parse("2027-01-01T00:00:00Z").unwrap();
        let first = tls.current();
        tls.look(now);
        assert!(tls.changes() == 0 && Arc::ptr_eq(&first, &tls.current()));
        write(folder.path(), names, 2040);
        tls.look(now);
        assert_eq!(tls.changes(), 1, "streams that began with the old one are to begin anew");
        let second = tls.current();
        assert!(!Arc::ptr_eq(&first, &second) && said(&tls).is_empty());
        std::fs::write(folder.path().join("a.key"), "nonsense").unwrap();
        tls.look(now);
        assert!(tls.changes() == 1 && Arc::ptr_eq(&second, &tls.current()));
        assert!(said(&tls).contains("a.key"), "{}", said(&tls));
        write(folder.path(), names, 2028);
        tls.look(Timestamp::parse("2027-11-01T00:00:00Z").unwrap());
        assert!(said(&tls).contains("a.crt ends 2028-01-01"), "{}", said(&tls));
    }
}
