//! The configuration of a relay, resolved.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::join::Join;
use super::resolved::Admin;
use crate::domain::id::BackendName;
use crate::domain::principal::Principal;
use crate::sync::client::Servers;

/// The configuration of a relay.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Whom it follows.
    pub servers: Servers,
    /// How it joins, where the certificate that is shown to them is its own care.
    pub join: Option<Join>,
    /// How long the start waits for a first view.
    pub first_view: Duration,
    /// How old its evidence may be, and that of anybody behind it.
    pub staleness_max: Duration,
    /// Where it is followed.
    pub address: SocketAddr,
    /// The SPIFFE trust domain of everybody who follows.
    pub trust_domain: String,
    /// TLS towards them.
    pub tls: RelayTls,
    /// What can be followed; at least one.
    pub backends: BTreeSet<BackendName>,
    /// Who may follow; at least one.
    pub sidecars: Vec<PrincipalPattern>,
    /// The listener for operators.
    pub admin: Admin,
    /// How long streams may go on when the process is told to stop.
    pub drain_timeout: Duration,
    /// The file all of this came from.
    pub origin: PathBuf,
}

/// TLS towards those who follow a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTls {
    /// PEM: the certificate, then its intermediates.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: who signs the certificates of those who follow.
    pub client_ca: PathBuf,
}

impl RelayTls {
    /// What is shown to control planes is shown to those who follow too.
    pub(super) fn of(join: &Join) -> Self {
        let files = join.files();
        Self { certificate: files.certificate, key: files.key, client_ca: files.ca }
    }
}

/// One principal, or all whose names begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalPattern {
    /// One.
    Exact(Principal),
    /// All that begin so.
    Prefix(String),
}

impl PrincipalPattern {
    /// Reads a SPIFFE ID, or the beginning of several and `*` after a `/`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if !text.starts_with("spiffe://") {
            return None;
        }
        match text.strip_suffix('*') {
            None => Principal::parse(text).ok().map(Self::Exact),
            // A domain cut short would be the beginning of others.
            Some(prefix) => {
                let is_whole = prefix.ends_with('/') && Principal::parse(&format!("{prefix}x")).is_ok();
                is_whole.then(|| Self::Prefix(prefix.to_owned()))
            }
        }
    }

    /// Whether it means this principal.
    pub fn matches(&self, principal: &Principal) -> bool {
        match self {
            Self::Exact(exact) => exact == principal,
            Self::Prefix(prefix) => principal.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl RelayConfig {
    /// Whether it shows those who follow the certificate that it joined with.
    pub fn shows_what_it_joined_with(&self) -> bool {
        self.join.as_ref().is_some_and(|join| RelayTls::of(join) == self.tls)
    }

    /// Whether somebody may follow a backend here.
    pub fn may_follow(&self, sidecar: &Principal, backend: &BackendName) -> bool {
        self.backends.contains(backend) && self.sidecars.iter().any(|pattern| pattern.matches(sidecar))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_whole_names_or_whole_steps_of_them() {
        let who = |text: &str| Principal::parse(text).unwrap();
        let pattern = |text: &str| PrincipalPattern::parse(text).unwrap();
        assert!(pattern("spiffe://a.example/sidecar/*").matches(&who("spiffe://a.example/sidecar/eu/1")));
        assert!(!pattern("spiffe://a.example/sidecar/*").matches(&who("spiffe://a.example/sidecars/1")));
        assert!(pattern("spiffe://a.example/s").matches(&who("spiffe://a.example/s")));
        assert!(!pattern("spiffe://a.example/s").matches(&who("spiffe://a.example/s/1")));
        for bad in
            ["*", "spiffe://*", "spiffe://a.exam*", "spiffe://a.example/s*", "https://idp.test#x", "", "spiffe://"]
        {
            assert_eq!(PrincipalPattern::parse(bad), None, "{bad}");
        }
    }
}
