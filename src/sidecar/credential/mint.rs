//! Tokens signed here, one for each grant: a JWT (RFC 7519) whose life ends with the grant's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::SecretString;
use serde::Serialize;

use super::{CredentialError, Issued};
use crate::domain::id::CredentialName;
use crate::domain::time::{Now, Timestamp, Window};
use crate::sidecar::decide::Permit;

/// How a minted token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MintAlgorithm {
    /// ECDSA on P-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// How tokens are minted.
#[derive(Debug, Clone)]
pub struct MintSettings {
    /// The private key, PKCS #8 in PEM.
    pub key: PathBuf,
    /// How it signs.
    pub algorithm: MintAlgorithm,
    /// `kid` of the header.
    pub key_id: Option<String>,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// How long a token is good for; never longer than its grant.
    pub lifetime: Duration,
    /// Further claims, the same in every token.
    pub claims: BTreeMap<String, String>,
}

pub(super) struct Mint {
    settings: MintSettings,
    key: EncodingKey,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: &'a str,
    /// Who acts for the subject (RFC 8693 section 4.1): this sidecar, in the name its tokens are issued under.
    act: Actor<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leasehold_grant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leasehold_task: Option<&'a str>,
    #[serde(flatten)]
    further: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Actor<'a> {
    sub: &'a str,
}

impl Mint {
    pub(super) fn open(name: &CredentialName, settings: &MintSettings) -> Result<Self, CredentialError> {
        let refuse = |reason: String| CredentialError::Key {
            name: name.clone(),
            path: settings.key.display().to_string(),
            reason,
        };
        let pem = zeroize::Zeroizing::new(std::fs::read(&settings.key).map_err(|error| refuse(error.to_string()))?);
        let key = match settings.algorithm {
            MintAlgorithm::Es256 => EncodingKey::from_ec_pem(&pem),
            MintAlgorithm::EdDsa => EncodingKey::from_ed_pem(&pem),
        };
        let key = key.map_err(|_| refuse("it is no PKCS #8 PEM key of that algorithm".to_owned()))?;
        let mint = Self { settings: settings.clone(), key };
        // A key that cannot sign is a configuration error, not the first caller's.
        jsonwebtoken::encode(&mint.header(), &serde_json::json!({}), &mint.key)
            .map_err(|_| refuse("it cannot sign".to_owned()))?;
        Ok(mint)
    }

    fn header(&self) -> Header {
        let algorithm = match self.settings.algorithm {
            MintAlgorithm::Es256 => Algorithm::ES256,
            MintAlgorithm::EdDsa => Algorithm::EdDSA,
        };
        Header { kid: self.settings.key_id.clone(), ..Header::new(algorithm) }
    }

    pub(super) fn issue(&self, name: &CredentialName, permit: &Permit, now: Now) -> Result<Issued, CredentialError> {
        let life = self.settings.lifetime.min(permit.remaining(now));
        // Whole seconds, rounded down: the token never outlives the grant.
        let expires = Timestamp::from_seconds(now.wall.plus(life).as_seconds());
        if expires <= now.wall {
            return Err(CredentialError::TooLate(name.clone()));
        }
        let id = format!("jwt:{name}:{}", random_id());
        let claims = Claims {
            iss: &self.settings.issuer,
            sub: permit.principal().as_str(),
            aud: &self.settings.audience,
            iat: now.wall.as_seconds(),
            nbf: now.wall.as_seconds(),
            exp: expires.as_seconds(),
            jti: &id,
            act: Actor { sub: &self.settings.issuer },
            leasehold_grant: permit.grant().map(|entry| entry.id().as_str()),
            leasehold_task: permit.task().map(|task| task.as_str()),
            further: &self.settings.claims,
        };
        let token = jsonwebtoken::encode(&self.header(), &claims, &self.key).map_err(|_| CredentialError::Key {
            name: name.clone(),
            path: self.settings.key.display().to_string(),
            reason: "it cannot sign".to_owned(),
        })?;
        let window = Window { not_before: now.wall, expires_at: expires };
        Ok(Issued { secret: SecretString::from(token), id, expires: Some(window.anchor(now)) })
    }
}

fn random_id() -> String {
    use base64::Engine;
    let mut bytes = [0u8; 12];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers, or nothing here is safe to do");
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
