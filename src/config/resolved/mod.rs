//! The file with everything resolved: real types, defaults filled in, references checked.
//!
//! Nothing here knows that there was a file, apart from [`Config::origin`] for messages.

mod backend;
mod control;
mod credential;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

pub use backend::{
    ActionMapSource, Backend, Baseline, Canonical, Mode, OnStale, Response, Timeouts, Upstream, UpstreamAddress,
    UpstreamTls,
};
pub use control::{Control, ControlConfig, ControlSync, Login, StoreAddress, SyncSigner};
pub use credential::{Credential, CredentialSource, Injection, JwtSource, MintAlgorithm};

use super::join::Join;
use crate::domain::id::BackendName;
use crate::sync::client::Servers;

/// The whole configuration of one process.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where callers connect; at least one.
    pub listeners: Vec<Listener>,
    /// Whose proofs are accepted.
    pub identity: Identity,
    /// What is protected; at least one.
    pub backends: Vec<Backend>,
    /// What makes backends accept a call.
    pub credentials: Vec<Credential>,
    /// Where the grants come from.
    pub grants: Grants,
    /// The durable record.
    pub audit: Audit,
    /// The line for each call beside the durable record.
    pub access_log: AccessLog,
    /// The listener for operators.
    pub admin: Admin,
    /// Worker threads; never zero here.
    pub workers: usize,
    /// How long calls that run may go on when the process is told to stop.
    pub drain_timeout: Duration,
    /// The file all of this came from.
    pub origin: PathBuf,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where callers connect.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name in logs and metrics; unique.
    pub name: String,
    /// Where it listens.
    pub address: ListenAddress,
    /// The backends behind it; at least one, and with several each has hosts of its own.
    pub backends: Vec<BackendName>,
    /// TLS towards callers; absent on loopback, a Unix socket, or where the danger was named.
    pub tls: Option<Tls>,
    /// What it bears.
    pub limits: Limits,
    /// Plain HTTP beyond this machine was asked for by name.
    pub danger_plain_listener: bool,
}

/// TLS towards callers.
#[derive(Debug, Clone)]
pub struct Tls {
    /// PEM: the certificate, then its intermediates.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: who may sign client certificates; present unless none are asked for.
    pub client_ca: Option<PathBuf>,
    /// Whether callers show a certificate.
    pub client_certificate: ClientCertificate,
    /// PEM: certificates taken back.
    pub client_crl: Vec<PathBuf>,
    /// The oldest version spoken.
    pub min_version: TlsVersion,
}

/// Whether callers show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// None is asked for.
    None,
    /// One is asked for, and verified when shown.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// What one listener bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// From accepted to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// A connection without a call.
    pub idle_timeout: Duration,
    /// The longest pause between two pieces of a request body.
    pub body_timeout: Duration,
    /// Bytes a second that a request body keeps on average; zero is no demand.
    pub body_rate_min: u64,
    /// Size of a request head.
    pub head_bytes: usize,
    /// Fields in a request head.
    pub headers: usize,
    /// Size of a request target.
    pub target_bytes: usize,
    /// Concurrent HTTP/2 streams of a connection.
    pub streams: u32,
    /// Size of a request body.
    pub body_bytes: u64,
    /// Size of a request body that is read whole, because only a grant that is bound to arguments may cover the call.
    pub arguments_bytes: usize,
}

/// Whose proofs are accepted.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Verified tokens remembered.
    pub token_cache: usize,
    /// Trust domains of client certificates.
    pub spiffe: Vec<TrustDomain>,
    /// Issuers of tokens.
    pub issuers: Vec<Issuer>,
}

/// A SPIFFE trust domain.
#[derive(Debug, Clone)]
pub struct TrustDomain {
    /// Its name, such as `prod.example`.
    pub trust_domain: String,
    /// PEM: its own authorities, and nobody else's.
    pub bundle: PathBuf,
}

/// A token issuer.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Its name in logs and metrics; unique.
    pub name: String,
    /// The exact `iss`.
    pub issuer: String,
    /// A token's `aud` holds one of these, exactly; at least one.
    pub audience: Vec<String>,
    /// The one algorithm its tokens are signed with.
    pub algorithm: TokenAlgorithm,
    /// Where its keys come from.
    pub keys: KeySource,
    /// What else is known of its tokens.
    pub preset: IssuerPreset,
    /// The `typ` its tokens must have.
    pub typ: Option<String>,
    /// How far its clock may be from ours.
    pub leeway: Duration,
    /// The longest `exp` − `iat`.
    pub lifetime_max: Duration,
    /// Attribute of the principal → JSON pointer into the claims.
    pub attributes: BTreeMap<Arc<str>, String>,
    /// The task, as a template over claims: `github:{/repository}:run:{/run_id}`.
    pub task: Option<String>,
    /// JSON pointer → the value the claim must have.
    pub required_claims: BTreeMap<String, serde_json::Value>,
    /// Whether a token, known by its `jti`, is good for one call only.
    pub single_use: bool,
}

/// An asymmetric signature algorithm; symmetric ones and `none` cannot be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum TokenAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A JWKS file, read again when it changes.
    File(PathBuf),
    /// A JWKS URL.
    Url(KeyUrl),
}

/// A JWKS URL and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUrl {
    /// `https://`, or `http://` on loopback.
    pub url: Uri,
    /// PEM: who may sign its certificate; absent means nobody, and then the URL is plain.
    pub ca: Option<PathBuf>,
    /// How often it is asked.
    pub refresh: Duration,
    /// The shortest time between two attempts, whatever tokens claim.
    pub refresh_min: Duration,
    /// How long the last good keys serve when it does not answer.
    pub stale_max: Duration,
    /// The largest answer.
    pub bytes_max: usize,
}

/// What is known of an issuer's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IssuerPreset {
    /// Nothing else.
    None,
    /// Kubernetes service-account tokens.
    Kubernetes,
}

/// Where the grants come from, and how old a view of them may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    /// Where they come from.
    pub source: GrantSource,
    /// Older than this, a view of the grants denies.
    pub staleness_max: Duration,
    /// More than five minutes was asked for by name.
    pub danger_staleness_max: bool,
}

/// Where the grants come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantSource {
    /// A file.
    File {
        /// The file, read again when it changes.
        file: PathBuf,
        /// How often it is looked at.
        poll: Duration,
    },
    /// The control plane in this process.
    Control,
    /// Control planes, or relays, elsewhere.
    Remote {
        /// Where, and how that is made sure of.
        servers: Servers,
        /// How it joins, where the certificate that is shown to them is its own care.
        join: Option<Join>,
        /// How long the start waits for a first view.
        first_view: Duration,
    },
}

/// The durable record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Where its segments lie.
    pub directory: PathBuf,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Size of all; full means that calls are denied.
    pub bytes_max: u64,
    /// When the intent is on disk.
    pub intent: AuditIntent,
}

/// When the intent of a call is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditIntent {
    /// Before the call leaves.
    EachCall,
    /// Together with its neighbours', a moment later.
    Batched,
}

/// The line for each call beside the durable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// On standard output.
    Stdout,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where.
    pub address: SocketAddr,
    /// Beyond loopback was asked for by name.
    pub danger_admin_address: bool,
}
