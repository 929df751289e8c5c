//! An issuer of tokens that signs with Ed25519.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub const ISSUER: &str = "https://idp.test";
pub const AUDIENCE: &str = "leasehold://db-admin";

pub struct Issuer {
    key: Ed25519KeyPair,
    id: &'static str,
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A moment so many seconds from now, as grants files have it.
pub fn in_seconds(seconds: i64) -> String {
    jiff::Timestamp::from_second(i64::try_from(now()).unwrap() + seconds).unwrap().to_string()
}

/// A moment so many milliseconds from now, as grants files have it.
pub fn in_millis(millis: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    jiff::Timestamp::from_millisecond(i64::try_from(now).unwrap() + millis).unwrap().to_string()
}

impl Issuer {
    pub fn new(id: &'static str) -> Self {
        Self { key: Ed25519KeyPair::generate().unwrap(), id }
    }

    pub fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.id, "x": x}]})
            .to_string()
    }

    /// A good token of `subject`.
    pub fn token(&self, subject: &str) -> String {
        let now = now();
        self.sign(&json!({"iss": ISSUER, "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + 3_600}))
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_text(&json!({"alg": "EdDSA", "typ": "JWT", "kid": self.id}).to_string(), &claims.to_string())
    }

    /// Signs a header and claims as they are written.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
