//! The file with everything resolved: real types, defaults filled in, references checked.
//!
//! Nothing here knows that there was a file, apart from [`Config::origin`] for messages.

mod backend;
mod control;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use backend::{ActionMapSource, Backend, Baseline, OnStale, Upstream, UpstreamAddress, UpstreamTls};
pub use control::{Control, ControlConfig, ControlSync, Login, StoreAddress, SyncSigner};

use super::join::Join;
use crate::domain::id::BackendName;
use crate::identity;
use crate::sidecar::accept::listen::ListenAddress;
use crate::sidecar::accept::tls::TlsSettings;
use crate::sidecar::credential;
use crate::sidecar::record::{AccessLog, IntentMode};
use crate::sync::client::Servers;

/// The whole configuration of one process.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where callers connect; at least one.
    pub listeners: Vec<Listener>,
    /// Whose proofs are accepted.
    pub identity: identity::Settings,
    /// What is protected; at least one.
    pub backends: Vec<Backend>,
    /// What makes backends accept a call.
    pub credentials: Vec<credential::Settings>,
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
    pub tls: Option<TlsSettings>,
    /// What it bears.
    pub limits: Limits,
    /// Plain HTTP beyond this machine was asked for by name.
    pub danger_plain_listener: bool,
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
    pub intent: IntentMode,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where.
    pub address: SocketAddr,
    /// Beyond loopback was asked for by name.
    pub danger_admin_address: bool,
}
