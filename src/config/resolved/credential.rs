//! What makes backends accept calls.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use secrecy::SecretString;

use crate::domain::id::CredentialName;

/// What makes a backend accept a call.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its name; unique.
    pub name: CredentialName,
    /// Where the secret comes from.
    pub source: CredentialSource,
    /// Where in the call it goes; at least one.
    pub inject: Vec<Injection>,
}

/// Where a secret comes from.
#[derive(Debug, Clone)]
pub enum CredentialSource {
    /// A file, read again when it changes; one trailing line end is not part of the secret.
    File(PathBuf),
    /// The environment of the process, read once.
    Env {
        /// Which variable.
        name: String,
        /// What it held.
        secret: SecretString,
    },
    /// A token minted for each grant.
    Jwt(Box<JwtSource>),
}

/// A token minted for each grant.
#[derive(Debug, Clone)]
pub struct JwtSource {
    /// PEM: the private key, PKCS #8.
    pub key: PathBuf,
    /// What it signs with.
    pub algorithm: MintAlgorithm,
    /// `kid`.
    pub key_id: Option<String>,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// The longest lifetime; a grant that ends earlier makes it shorter.
    pub lifetime: Duration,
    /// Further claims, with fixed texts.
    pub claims: BTreeMap<String, String>,
}

/// What minted tokens are signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum MintAlgorithm {
    ES256,
    EdDSA,
}

/// Where in a call a secret goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// `Authorization: Bearer …`
    Bearer,
    /// `Authorization: Basic …`; the secret is the password.
    Basic {
        /// The user.
        username: String,
    },
    /// A header.
    Header {
        /// Its name.
        name: HeaderName,
        /// What stands before the secret.
        prefix: String,
        /// What stands after it.
        suffix: String,
    },
    /// A query parameter.
    Query {
        /// Its name.
        name: String,
    },
}
