//! X.509-SVIDs: who a client certificate proves (SPIFFE X509-SVID, sections 2 to 5).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use super::settings::{SettingsError, TrustDomain};
use super::{IdentityError, Method, Verified};
use crate::domain::principal::Principal;
use crate::domain::time::{Now, Timestamp, Window};

/// A trust domain with who signs its certificates.
#[derive(Debug)]
pub(super) struct TrustedDomain {
    name: Arc<str>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl TrustedDomain {
    pub(super) fn open(domain: &TrustDomain) -> Result<Self, SettingsError> {
        let path = &domain.bundle;
        let fail = |error: &dyn ToString| SettingsError::new(path, error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(&error))? {
            let certificate = certificate.map_err(|error| fail(&error))?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| fail(&error))?;
            if !parsed.is_ca() {
                return Err(fail(&"a certificate in it is no authority (CA)"));
            }
            roots.add(certificate.clone()).map_err(|error| fail(&error))?;
        }
        if roots.is_empty() {
            return Err(fail(&"it holds no certificate"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| fail(&error))?;
        Ok(Self { name: domain.name.as_str().into(), verifier })
    }
}

/// Who the leaf of the chain proves.
pub(super) fn verify(
    domains: &[TrustedDomain],
    chain: &[CertificateDer<'_>],
    now: Now,
) -> Result<Verified, IdentityError> {
    let (leaf, intermediates) = chain.split_first().ok_or(IdentityError::BadCertificate)?;
    let (rest, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| IdentityError::BadCertificate)?;
    if !rest.is_empty() {
        return Err(IdentityError::BadCertificate);
    }
    let id = spiffe_id(&parsed)?;
    check_use(&parsed)?;
    let principal = Principal::spiffe(id).map_err(|_| IdentityError::BadCertificate)?;
    let name = id["spiffe://".len()..].split('/').next().unwrap_or_default();
    let domain = domains.iter().find(|domain| *domain.name == *name).ok_or(IdentityError::UnknownTrustDomain)?;
    let seconds = u64::try_from(now.wall.as_seconds()).unwrap_or(0);
    domain
        .verifier
        .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
        .map_err(|_| IdentityError::UntrustedCertificate)?;
    let expires_at = Timestamp::from_seconds(parsed.validity().not_after.timestamp());
    if now.wall >= expires_at {
        return Err(IdentityError::Expired);
    }
    let window = Window { not_before: Timestamp::from_seconds(0), expires_at };
    Ok(Verified {
        principal,
        method: Method::Certificate,
        issuer: Arc::clone(&domain.name),
        attributes: BTreeMap::new(),
        task: None,
        expires: window.anchor(now),
    })
}

/// The one URI among the alternative names; the common name says nothing.
fn spiffe_id<'c>(leaf: &'c X509Certificate<'_>) -> Result<&'c str, IdentityError> {
    let names = leaf.subject_alternative_name().map_err(|_| IdentityError::BadCertificate)?;
    let names = names.ok_or(IdentityError::BadCertificate)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        _ => Err(IdentityError::BadCertificate),
    }
}

/// A leaf signs with its key and is no authority.
fn check_use(leaf: &X509Certificate<'_>) -> Result<(), IdentityError> {
    let usage = leaf.key_usage().map_err(|_| IdentityError::BadCertificate)?;
    let signs = usage
        .is_none_or(|usage| usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign());
    if signs && !leaf.is_ca() { Ok(()) } else { Err(IdentityError::BadCertificate) }
}
