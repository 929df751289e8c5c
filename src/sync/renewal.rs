//! A renewal that the sidecar signed itself, so that whoever passes it on need not be believed.
//!
//! Behind a relay the control plane sees the relay's certificate, and not the one that is to be renewed. What proves that
//! one is a signature by its key, over the certificate, the request for the next one and the moment. It is good for no
//! other certificate and no other request, and for five minutes; who says it again gets a certificate for the same name
//! and the same key, which is of use to nobody but the key's owner.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use bytes::Bytes;

use crate::domain::time::Timestamp;
use crate::wire::{Unreadable, v1};

/// How far from the moment of the signature it is good, to both sides: clocks differ.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// Most certificates of a chain, and bytes of each and of a request.
const CERTIFICATES_MAX: usize = 4;
const BYTES_MAX: usize = 16 * 1024;

/// What every signature of this kind begins with, so that no other is taken for one.
const CONTEXT: &[u8] = b"leasehold renewal v1\0";

/// Where a renewal that is passed on comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRenewal {
    /// The request (PKCS #10, DER) for the next certificate.
    pub csr: Bytes,
    /// The certificate that is to be renewed and its issuers, DER, leaf first.
    pub certificates: Vec<Bytes>,
    /// When it was signed, by the clock of whoever did.
    pub signed_at: Timestamp,
    /// By the key of the first certificate (ECDSA on P-256 with SHA-256, DER).
    pub signature: Bytes,
}

impl SignedRenewal {
    /// One that `sign` signs, with the key of the first of the certificates.
    ///
    /// # Errors
    /// That of `sign`.
    pub fn make<E>(
        csr: Bytes,
        certificates: Vec<Bytes>,
        signed_at: Timestamp,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let unsigned = Self { csr, certificates, signed_at, signature: Bytes::new() };
        let signature = sign(&unsigned.message())?.into();
        Ok(Self { signature, ..unsigned })
    }

    fn message(&self) -> Vec<u8> {
        let leaf = self.certificates.first().map_or(&[][..], |leaf| leaf);
        let mut message = CONTEXT.to_vec();
        message.extend(self.signed_at.as_micros().to_be_bytes());
        message.extend(digest(&SHA256, leaf).as_ref());
        message.extend(digest(&SHA256, &self.csr).as_ref());
        message
    }

    /// Whether this key (SEC 1, uncompressed) signed it.
    pub fn is_signed_by(&self, key: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
        key.verify(&self.message(), &self.signature).is_ok()
    }

    /// Whether it was signed a moment ago.
    pub fn is_recent(&self, now: Timestamp) -> bool {
        // Of the two differences one is nothing.
        now.since(self.signed_at).max(self.signed_at.since(now)) <= GOOD_FOR
    }
}

impl From<SignedRenewal> for v1::Renewal {
    fn from(signed: SignedRenewal) -> Self {
        let SignedRenewal { csr, certificates, signed_at, signature } = signed;
        Self { csr, certificates, signed_at: signed_at.as_micros(), signature }
    }
}

impl TryFrom<v1::Renewal> for SignedRenewal {
    type Error = Unreadable;

    fn try_from(said: v1::Renewal) -> Result<Self, Unreadable> {
        let v1::Renewal { csr, certificates, signed_at, signature } = said;
        if certificates.is_empty() || certificates.len() > CERTIFICATES_MAX {
            return Err(Unreadable::new("certificates", format_args!("there are 1 to {CERTIFICATES_MAX}")));
        }
        if certificates.iter().chain([&csr, &signature]).any(|bytes| bytes.is_empty() || bytes.len() > BYTES_MAX) {
            return Err(Unreadable::new("renewal", "something in it is empty, or larger than 16 KiB"));
        }
        Ok(Self { csr, certificates, signed_at: Timestamp::from_micros(signed_at), signature })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PublicKeyData, SigningKey};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_signature_is_of_one_key_certificate_request_and_moment() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let made = |csr: &'static str, leaf: &'static str, seconds| {
            SignedRenewal::make(csr.into(), vec![leaf.into()], at(seconds), |message| key.sign(message)).unwrap()
        };
        let good = made("csr", "leaf", 1_000);
        assert!(good.is_signed_by(key.der_bytes()) && !good.is_signed_by(other.der_bytes()));
        for bad in [
            SignedRenewal { csr: "other".into(), ..good.clone() },
            SignedRenewal { certificates: vec!["other".into()], ..good.clone() },
            SignedRenewal { signed_at: at(1_001), ..good.clone() },
            SignedRenewal { signature: made("csr", "other", 1_000).signature, ..good.clone() },
            SignedRenewal { signature: Bytes::new(), ..good.clone() },
        ] {
            assert!(!bad.is_signed_by(key.der_bytes()), "{bad:?}");
        }
        assert!(!good.is_signed_by(b"") && !good.is_signed_by(&[4; 65]));
        for (now, is_recent) in [(1_000, true), (1_300, true), (1_301, false), (700, true), (699, false)] {
            assert_eq!(good.is_recent(at(now)), is_recent, "{now}");
        }
    }

    #[test]
    fn what_is_said_is_read_as_it_was_and_what_is_too_much_is_not() {
        let good = SignedRenewal {
            csr: "csr".into(),
            certificates: vec!["leaf".into(), "root".into()],
            signed_at: at(5),
            signature: "signature".into(),
        };
        let said = v1::Renewal::from(good.clone());
        assert_eq!(SignedRenewal::try_from(said.clone()), Ok(good));
        let large = Bytes::from(vec![0; BYTES_MAX + 1]);
        for bad in [
            v1::Renewal::default(),
            v1::Renewal { csr: large, ..said.clone() },
            v1::Renewal { csr: Bytes::new(), ..said.clone() },
            v1::Renewal { signature: Bytes::new(), ..said.clone() },
            v1::Renewal { certificates: Vec::new(), ..said.clone() },
            v1::Renewal { certificates: vec![Bytes::new()], ..said.clone() },
            v1::Renewal { certificates: vec!["leaf".into(); CERTIFICATES_MAX + 1], ..said },
        ] {
            assert!(SignedRenewal::try_from(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
