//! The control plane as an authority: it signs the certificates of sidecars, and its own towards them.
//!
//! For where nobody else does (SPIRE, cert-manager). A certificate lives a day and names the sidecar, and for a relay the hosts
//! by which others follow it; of a request nothing is taken but its key, whose owner signed it.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use crate::domain::principal::Principal;
use crate::domain::time::Timestamp;

/// How long the certificate of a sidecar is good for, in seconds, unless something else is said.
const SIDECAR_SECONDS: i64 = 24 * 3_600;

/// How long that of a server is, in seconds; it is made anew at half of it.
pub const SERVER_SECONDS: i64 = 30 * 24 * 3_600;

/// How long the authority itself is, in seconds.
const AUTHORITY_SECONDS: i64 = 20 * 365 * 24 * 3_600;

/// How far clocks may be behind ours, in seconds.
const BEHIND_SECONDS: i64 = 300;

/// Largest request for a certificate, in bytes.
const REQUEST_MAX: usize = 16 * 1024;

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// What was asked says nothing that can be signed.
    #[error("the request for a certificate is not one: {0}")]
    Request(String),
    /// The authority itself does not work.
    #[error("the authority cannot sign: {0}")]
    Ours(String),
}

fn ours(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Ours(error.to_string())
}

/// A key and its certificate, with its issuer where that is another, PEM.
#[derive(Debug)]
pub struct Pair {
    /// The private key.
    pub key: zeroize::Zeroizing<String>,
    /// The certificate.
    pub certificate: String,
}

/// Signs for one trust domain.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    trust_domain: String,
    sidecar_seconds: i64,
}

fn validity(params: &mut CertificateParams, now: Timestamp, seconds: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| epoch + Duration::from_secs(seconds.max(0).unsigned_abs());
    params.not_before = at(now.as_seconds() - BEHIND_SECONDS);
    params.not_after = at(now.as_seconds() + seconds);
}

fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| ours("the system has no random bytes"))?;
    // A serial number is positive (RFC 5280, section 4.1.2.2).
    random[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&random))
}

impl Authority {
    /// A new one, as it is to be kept.
    ///
    /// # Errors
    /// [`AuthorityError::Ours`].
    pub fn make(trust_domain: &str, now: Timestamp) -> Result<Pair, AuthorityError> {
        let key = KeyPair::generate().map_err(ours)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Leasehold sidecars of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        validity(&mut params, now, AUTHORITY_SECONDS);
        let certificate = params.self_signed(&key).map_err(ours)?.pem();
        Ok(Pair { key: key.serialize_pem().into(), certificate })
    }

    /// The one that was kept.
    ///
    /// # Errors
    /// [`AuthorityError::Ours`]: what was kept is not one.
    pub fn open(kept: &Pair, trust_domain: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&kept.key).map_err(ours)?;
        let certificate = CertificateDer::from_pem_slice(kept.certificate.as_bytes()).map_err(ours)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(ours)?;
        let pem = kept.certificate.clone();
        let trust_domain = trust_domain.to_owned();
        Ok(Self { issuer, certificate, pem, trust_domain, sidecar_seconds: SIDECAR_SECONDS })
    }

    /// The same, which signs for sidecars for so long.
    #[must_use]
    pub fn signing_for(self, lives: Duration) -> Self {
        Self { sidecar_seconds: i64::try_from(lives.as_secs()).unwrap_or(SIDECAR_SECONDS), ..self }
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> Bytes {
        Bytes::copy_from_slice(&self.certificate)
    }

    /// The SHA-256 of its certificate, in hex, for whoever has nothing else to know it by.
    pub fn digest(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.certificate);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What a sidecar of that name is called.
    ///
    /// # Errors
    /// [`AuthorityError::Request`]: nothing can be called so.
    pub fn sidecar(&self, name: &str) -> Result<Principal, AuthorityError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) || name.bytes().all(|byte| byte == b'.') {
            let said = "a sidecar's name has 1 to 128 ASCII letters, digits, `.`, `_` and `-`";
            return Err(AuthorityError::Request(said.to_owned()));
        }
        let id = format!("spiffe://{}/sidecar/{name}", self.trust_domain);
        Principal::spiffe(&id).map_err(|error| AuthorityError::Request(error.to_string()))
    }

    /// Signs the key of a request for that sidecar: its certificate and issuers, leaf first, and the serial number. One
    /// that `serves` others by these names and addresses may show the same certificate to them.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn sign(
        &self,
        sidecar: &Principal,
        serves: &[String],
        csr: &[u8],
        now: Timestamp,
    ) -> Result<(Vec<Bytes>, String), AuthorityError> {
        let wrong = |error: &dyn std::fmt::Display| AuthorityError::Request(error.to_string());
        if csr.len() > REQUEST_MAX {
            return Err(wrong(&"it is larger than 16 KiB"));
        }
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(|error| wrong(&error))?;
        let name = sidecar.as_str().try_into().map_err(|error| wrong(&error))?;
        let mut params = CertificateParams::new(serves.to_vec()).map_err(|error| wrong(&error))?;
        params.subject_alt_names.insert(0, SanType::URI(name));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !serves.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let number = serial()?;
        let shown = number.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        params.serial_number = Some(number);
        validity(&mut params, now, self.sidecar_seconds);
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(ours)?;
        Ok((vec![Bytes::copy_from_slice(certificate.der()), self.certificate()], shown))
    }

    /// What a server shows that sidecars connect to by these names and addresses.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn server(&self, names: &[String], now: Timestamp) -> Result<Pair, AuthorityError> {
        let key = KeyPair::generate().map_err(ours)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(ours)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        validity(&mut params, now, SERVER_SECONDS);
        let certificate = params.signed_by(&key, &self.issuer).map_err(ours)?;
        // Whoever joins knows the authority by its digest alone, and finds it here.
        let chain = certificate.pem() + &self.pem;
        Ok(Pair { key: key.serialize_pem().into(), certificate: chain })
    }
}

/// The names and addresses by which whoever shows this certificate, DER, serves others.
pub fn serves(certificate: &[u8]) -> Vec<String> {
    let Ok((_, leaf)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
    };
    let names = names.value.general_names.iter();
    let serves = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    serves.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Authority {
        let pair = Authority::make("prod.test", Timestamp::from_seconds(1_800_000_000)).expect("made");
        Authority::open(&pair, "prod.test").expect("opened")
    }

    #[test]
    fn of_a_request_nothing_but_the_key_is_taken() {
        let (authority, key) = (authority(), KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::new(vec!["evil.test".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, "root");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = params.serialize_request(&key).expect("a request");
        let sidecar = authority.sidecar("shop-1").expect("a name");
        let now = Timestamp::from_seconds(1_800_000_000);
        let (chain, _) = authority.sign(&sidecar, &[], request.der(), now).expect("signed");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
        let names = leaf.subject_alternative_name().expect("names").expect("names").value;
        assert_eq!(format!("{:?}", names.general_names), "[URI(\"spiffe://prod.test/sidecar/shop-1\")]");
        assert!(!leaf.is_ca() && !leaf.key_usage().expect("usage").expect("usage").value.key_cert_sign());
        assert_eq!(leaf.validity().not_after.timestamp(), now.as_seconds() + SIDECAR_SECONDS);
        assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
        assert_eq!(chain[1], authority.certificate());
    }

    #[test]
    fn who_serves_is_named_after_what_it_is_and_serves_by_these_names_alone() {
        let (authority, key) = (authority(), KeyPair::generate().expect("a key"));
        let request = CertificateParams::default().serialize_request(&key).expect("a request");
        let sidecar = authority.sidecar("relay-1").expect("a name");
        let now = Timestamp::from_seconds(1_800_000_000);
        let names = ["relay-1.prod.test", "10.0.0.7", "fd00::7"].map(str::to_owned);
        let (chain, _) = authority.sign(&sidecar, &names, request.der(), now).expect("signed");
        assert_eq!(serves(&chain[0]), names);
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
        let usage = leaf.extended_key_usage().expect("usage").expect("usage").value;
        assert!(usage.client_auth && usage.server_auth);
        let shown = leaf.subject_alternative_name().expect("names").expect("names").value;
        assert!(matches!(shown.general_names[0], GeneralName::URI("spiffe://prod.test/sidecar/relay-1")));
        let (chain, _) = authority.sign(&sidecar, &[], request.der(), now).expect("signed");
        assert!(serves(&chain[0]).is_empty() && serves(b"x").is_empty());
    }

    #[test]
    fn what_is_no_request_and_what_is_no_name_is_refused() {
        let authority = authority();
        let sidecar = authority.sidecar("a").expect("a name");
        let request = CertificateParams::default().serialize_request(&KeyPair::generate().expect("a key"));
        let mut spoiled = request.expect("a request").der().to_vec();
        if let Some(last) = spoiled.last_mut() {
            *last ^= 1;
        }
        for bad in [&b""[..], b"x", &spoiled, &[0; 20_000]] {
            let refused = authority.sign(&sidecar, &[], bad, Timestamp::from_seconds(0));
            assert!(matches!(refused, Err(AuthorityError::Request(_))), "{refused:?}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "\u{e4}", &"x".repeat(129)] {
            assert!(authority.sidecar(bad).is_err(), "`{bad}`");
        }
    }
}
