//! What is protected, and how it is called.

use std::path::PathBuf;

use crate::domain::action::Scope;
use crate::domain::id::{BackendName, CredentialName};
use crate::domain::principal::Principal;
use crate::sidecar::canonical::Relaxations;
use crate::sidecar::decide::Mode;
use crate::sidecar::forward::response::ResponseRules;
use crate::sidecar::forward::upstream::Timeouts;

/// A protected API.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its name in grants, logs and metrics; unique.
    pub name: BackendName,
    /// Where and how it is reached.
    pub upstream: Upstream,
    /// Names callers may use, lower case, with a port where one is meant.
    pub hosts: Vec<String>,
    /// How a call becomes an action and a resource.
    pub action_map: ActionMapSource,
    /// Whether refusals are carried out.
    pub mode: Mode,
    /// What becomes of granted calls while the view of the grants is stale.
    pub on_stale: OnStale,
    /// What is injected for a grant.
    pub credential: Option<CredentialName>,
    /// What needs no elevation.
    pub baseline: Vec<Baseline>,
    /// Relaxations of the one canonical reading.
    pub canonical: Relaxations,
    /// What happens to its answers.
    pub response: ResponseRules,
    /// How long to wait for it.
    pub timeouts: Timeouts,
    /// Kept connections for each worker.
    pub pool_idle_per_worker: usize,
    /// A credential over plain HTTP beyond this machine was asked for by name.
    pub danger_plain_upstream: bool,
}

/// Where and how a backend is reached.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where.
    pub address: UpstreamAddress,
    /// HTTP/2 (with prior knowledge, or over TLS) rather than HTTP/1.1.
    pub http2: bool,
    /// TLS, and whom to believe.
    pub tls: Option<UpstreamTls>,
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A host name or address, and a port.
    Tcp {
        /// Name or address, lower case, an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// TLS towards a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// PEM: who may sign its certificate.
    pub ca: PathBuf,
    /// The name its certificate must have.
    pub server_name: String,
    /// PEM: our certificate.
    pub client_certificate: Option<PathBuf>,
    /// PEM: its key; present exactly when the certificate is.
    pub client_key: Option<PathBuf>,
}

/// Where an action map comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionMapSource {
    /// It is here; `sidecar::resolve` compiles it.
    Written {
        /// `builtin:rabbitmq`, or the file.
        origin: String,
        /// Its text.
        text: String,
    },
    /// The control plane says it: the map of its Backend of this name.
    Control,
}

/// What becomes of granted calls while the view of the grants is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStale {
    /// They are denied.
    Deny,
    /// They pass until their grants' own ends.
    ServeUntilExpiry,
}

/// What needs no elevation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// Exactly these.
    pub principals: Vec<Principal>,
    /// What they may do.
    pub scope: Scope,
    /// What is injected for it.
    pub credential: Option<CredentialName>,
}
