//! What a control plane needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::Admin;
use crate::identity;
use crate::sidecar::accept::tls::TlsSettings;

/// The configuration of a control plane.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The control plane itself.
    pub control: Control,
    /// Whose proofs are accepted.
    pub identity: identity::Settings,
    /// The listener for operators.
    pub admin: Admin,
    /// How long running calls may go on when the process is told to stop.
    pub drain_timeout: Duration,
    /// The file all of this came from.
    pub origin: PathBuf,
}

/// The control plane.
#[derive(Debug, Clone)]
pub struct Control {
    /// Where its API listens.
    pub address: SocketAddr,
    /// TLS of the API; absent on loopback, or where the danger was named.
    pub tls: Option<TlsSettings>,
    /// Plain HTTP beyond this machine was asked for by name.
    pub danger_plain_control: bool,
    /// Where it keeps what is its own: the local admin's token, and the store where none is named.
    pub data: PathBuf,
    /// Where elevations are kept.
    pub store: StoreAddress,
    /// Files and folders of documents that are declared at the start.
    pub documents: Vec<PathBuf>,
    /// How many calls a second each principal may make.
    pub calls_per_second: std::num::NonZeroU32,
    /// Where people log in.
    pub login: Option<Login>,
    /// Where sidecars on other machines follow; absent, none do.
    pub sync: Option<ControlSync>,
}

/// Where sidecars follow a control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSync {
    /// Where it listens.
    pub address: SocketAddr,
    /// The SPIFFE trust domain of every sidecar.
    pub trust_domain: String,
    /// Who signs.
    pub signer: SyncSigner,
}

/// Who signs the certificates of both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncSigner {
    /// Somebody else, who leaves them in files.
    Files {
        /// PEM: the server's certificate, then its intermediates.
        certificate: PathBuf,
        /// PEM: its private key.
        key: PathBuf,
        /// PEM: who signs the sidecars' certificates.
        client_ca: PathBuf,
        /// PEM: certificates taken back.
        client_crl: Vec<PathBuf>,
    },
    /// The control plane itself.
    Own {
        /// The folder where its key is.
        folder: PathBuf,
        /// By which names and addresses sidecars connect.
        names: Vec<String>,
        /// How long the certificates of sidecars are good for, if not a day. No file says so; tests are not patient.
        lives: Option<Duration>,
    },
}

/// Where elevations are kept.
#[derive(Debug, Clone)]
pub enum StoreAddress {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// PostgreSQL, by its URL without a password.
    Postgres {
        /// `postgres://user@host:port/database`.
        url: String,
        /// The user's password.
        password: Option<SecretString>,
    },
}

/// Where people log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The OpenID provider; also an issuer of `identity`.
    pub issuer: String,
    /// Our public client there.
    pub client_id: String,
    /// What to ask for.
    pub scopes: Vec<String>,
}
