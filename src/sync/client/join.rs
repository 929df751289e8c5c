//! Joins: a certificate for a token that is good once, from a server that is known by a digest alone.
//!
//! The token is shown to nobody for whom its authority did not sign: the server's chain must end at a certificate of the
//! token's digest, and every signature of it is verified, before anything is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tonic::Code;

use super::super::renewal::SignedRenewal;
use super::super::server::Enrolled;
use super::connect::{self, Address, Upstreams};
use super::fraction;
use crate::wire::v1;

/// How long one server is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The pause after a first failure; it doubles from one to the next.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A join token: what is shown once, and by what the authority is known.
#[derive(Debug, Clone)]
pub struct JoinToken {
    whole: SecretString,
    pin: [u8; 32],
}

/// Why nobody joined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// What was given is no token.
    #[error("it is no join token: one begins with `lhj_`, and ends with a dot and 64 hex digits")]
    Token,
    /// Somebody else answered.
    #[error(
        "{0} shows another authority than the join token names, so the token was not sent: it is of another control plane, or somebody stands in between"
    )]
    Another(String),
    /// The server does not want it.
    #[error("{0}")]
    Refused(String),
    /// Nobody said anything for too long.
    #[error("no control plane could be joined: {0}")]
    Unreachable(String),
}

impl JoinToken {
    /// Reads one as it was shown.
    ///
    /// # Errors
    /// [`JoinError::Token`].
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let (secret, hex) = text.rsplit_once('.').ok_or(JoinError::Token)?;
        if !secret.starts_with("lhj_") || hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(JoinError::Token);
        }
        let mut pin = [0; 32];
        for (byte, place) in pin.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&hex[place..place + 2], 16).map_err(|_| JoinError::Token)?;
        }
        Ok(Self { whole: SecretString::from(text), pin })
    }

    /// Whether both are the same token.
    pub fn is(&self, other: &Self) -> bool {
        self.whole.expose_secret() == other.whole.expose_secret()
    }

    /// Whether this is the certificate, DER, of the authority that it names.
    pub fn names(&self, certificate: &[u8]) -> bool {
        digest(&SHA256, certificate).as_ref() == self.pin
    }
}

/// Has the key of a request (PKCS #10, DER) signed by the control plane that made the token. Whoever cannot be reached is
/// asked again, and others, for so long; dropping the future may lose the token.
///
/// # Errors
/// [`JoinError`].
pub async fn join(
    addresses: &[Address],
    token: &JoinToken,
    csr: Bytes,
    within: Duration,
) -> Result<Enrolled, JoinError> {
    let until = Instant::now() + within;
    let (mut place, mut most) = (usize::try_from(connect::random()).unwrap_or(0), PAUSE_MIN);
    loop {
        let address = &addresses[place % addresses.len()];
        let lost = match ask(address, token, &csr).await {
            Err(JoinError::Unreachable(why)) => JoinError::Unreachable(format!("{address}: {why}")),
            answered => return answered,
        };
        let pause = most.mul_f64(fraction());
        if Instant::now() + pause >= until {
            return Err(lost);
        }
        tracing::warn!(error = %lost, "joining is tried again");
        tokio::time::sleep(pause).await;
        (place, most) = (place.wrapping_add(1), (most * 2).min(PAUSE_MAX));
    }
}

async fn ask(address: &Address, token: &JoinToken, csr: &Bytes) -> Result<Enrolled, JoinError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let another = AtomicBool::new(false);
    let pinned = Arc::new(Pinned { token: token.clone(), provider: Arc::clone(&provider), another });
    let unreachable = |error: &dyn std::fmt::Display| JoinError::Unreachable(error.to_string());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unreachable(&error))?
        // Not the system's authorities, nor any: the one that the token names.
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Pinned>::clone(&pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    let connected = connect::connect(address, Some(Arc::new(config))).await;
    let mut client = connected.map_err(|error| match pinned.another.load(Ordering::Relaxed) {
        true => JoinError::Another(address.to_string()),
        false => unreachable(&error),
    })?;
    let join_token = token.whole.expose_secret().to_owned();
    let asking = client.enroll(v1::EnrollRequest { csr: csr.clone(), join_token, renewal: None });
    let answer = tokio::time::timeout(ANSWER_WITHIN, asking).await;
    match answer.map_err(|_| unreachable(&"it did not answer in time"))? {
        Ok(reply) => {
            let v1::EnrollReply { certificates, roots } = reply.into_inner();
            Ok(Enrolled { certificates, roots })
        }
        Err(status) => Err(match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
                JoinError::Refused(status.message().to_owned())
            }
            code => unreachable(&format!("{code:?}: {}", status.message())),
        }),
    }
}

impl Upstreams {
    /// Has our own certificate renewed by the first server that does; a relay passes on what was signed.
    ///
    /// # Errors
    /// What each of them said.
    pub async fn renew(&self, signed: &SignedRenewal) -> Result<Enrolled, String> {
        let mut said = Vec::new();
        for address in self.addresses() {
            // Over a connection of its own: one that is kept may have begun with an older certificate.
            let asking = async {
                let mut client = self.connect(address).await?;
                let (csr, renewal) = (signed.csr.clone(), Some(signed.clone().into()));
                let asked = v1::EnrollRequest { csr, join_token: String::new(), renewal };
                let reply = client.enroll(asked).await;
                reply.map_err(|status| format!("{:?}: {}", status.code(), status.message()))
            };
            let answer = tokio::time::timeout(ANSWER_WITHIN, asking).await;
            match answer.unwrap_or_else(|_| Err("it did not answer in time".to_owned())) {
                Ok(reply) => {
                    let v1::EnrollReply { certificates, roots } = reply.into_inner();
                    return Ok(Enrolled { certificates, roots });
                }
                Err(why) => said.push(format!("{address}: {why}")),
            }
        }
        Err(said.join("; "))
    }
}

/// Believes whoever the authority of the token's digest signed for, and nobody else.
#[derive(Debug)]
struct Pinned {
    token: JoinToken,
    provider: Arc<CryptoProvider>,
    /// Whether another authority was shown.
    another: AtomicBool,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((root, between)) = issuers.split_last().filter(|(root, _)| self.token.names(root)) else {
            self.another.store(true, Ordering::Relaxed);
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        // That it is shown proves nothing, since anybody can: it must have signed.
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider)).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, between, name, ocsp, now).inspect_err(|error| {
            if matches!(
                error,
                Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
            ) {
                self.another.store(true, Ordering::Relaxed);
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_secret_and_a_digest() {
        let hex = "0a".repeat(32);
        let token = JoinToken::parse(&format!("lhj_secret.{hex}")).expect("a token");
        assert_eq!(token.pin, [10; 32]);
        assert!(!format!("{token:?}").contains("secret."), "{token:?}");
        for bad in [
            "",
            "lhj_x",
            &format!("x.{hex}"),
            "lhj_x.0a",
            &format!("lhj_x.{hex}0"),
            &format!("lhj_x.{}", "é".repeat(32)),
        ] {
            assert_eq!(JoinToken::parse(bad).unwrap_err(), JoinError::Token, "`{bad}`");
        }
    }

    #[test]
    fn to_show_an_authority_is_not_to_be_signed_by_it() {
        let make = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
            let own = params.self_signed(&key).unwrap().der().clone();
            (own, rcgen::Issuer::new(params, key))
        };
        let leaf = |issuer: &rcgen::Issuer<'_, rcgen::KeyPair>, name: &str| {
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.signed_by(&rcgen::KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
        };
        let ((ours, issuer), (other, stranger)) = (make(), make());
        let hex: String = digest(&SHA256, &ours).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let check = |leaf: CertificateDer<'_>, issuers: &[CertificateDer<'_>]| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let token = JoinToken::parse(&format!("lhj_x.{hex}")).unwrap();
            let pinned = Pinned { token, provider, another: AtomicBool::new(false) };
            let (name, now) = (ServerName::try_from("c.test").unwrap(), UnixTime::now());
            let is_good = pinned.verify_server_cert(&leaf, issuers, &name, &[], now).is_ok();
            (is_good, pinned.another.load(Ordering::Relaxed))
        };
        let good = leaf(&issuer, "c.test");
        assert_eq!(check(good.clone(), std::slice::from_ref(&ours)), (true, false));
        assert_eq!(check(leaf(&issuer, "d.test"), std::slice::from_ref(&ours)), (false, false), "another name");
        assert_eq!(check(good.clone(), &[]), (false, true), "nothing to hold to the digest");
        assert_eq!(check(good, std::slice::from_ref(&other)), (false, true));
        assert_eq!(check(leaf(&stranger, "c.test"), &[other]), (false, true));
        assert_eq!(
            check(leaf(&stranger, "c.test"), std::slice::from_ref(&ours)),
            (false, true),
            "shown, not signed by"
        );
        assert_eq!(check(ours.clone(), &[]), (false, true), "the authority itself is no server");
    }
}
