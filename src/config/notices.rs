//! What an operator should know of a configuration that is valid: what it relaxes, and what deserves a look.

use std::fmt;

use super::resolved::{Backend, Config, ControlConfig, OnStale, UpstreamAddress};
use crate::identity::KeySource;
use crate::sidecar::accept::tls::ClientCertificate;
use crate::sidecar::credential::SourceSettings;
use crate::sidecar::decide::Mode;
use crate::sidecar::record::IntentMode;

/// Something an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The key it is about, such as `backends[rabbitmq].canonical.encoded_slash`.
    pub field: String,
    /// What follows from it.
    pub message: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn note(list: &mut Vec<Notice>, on: bool, field: impl Into<String>, message: impl Into<String>) {
    if on {
        list.push(Notice { field: field.into(), message: message.into() });
    }
}

impl ControlConfig {
    /// Every place where this configuration is laxer than the defaults.
    pub fn relaxations(&self) -> Vec<Notice> {
        let mut list = Vec::new();
        let plain = self.control.danger_plain_control && self.control.tls.is_none();
        note(&mut list, plain, "control.danger_plain_control", "tokens cross the network in the clear");
        list
    }
}

impl Config {
    /// Every place where this configuration is laxer than the defaults.
    pub fn relaxations(&self) -> Vec<Notice> {
        let mut list = Vec::new();
        for listener in &self.listeners {
            let at = format!("listeners[{}]", listener.name);
            let plain = listener.danger_plain_listener && listener.tls.is_none();
            note(
                &mut list,
                plain,
                format!("{at}.danger_plain_listener"),
                "callers' tokens cross the network in the clear",
            );
            if let Some(tls) = &listener.tls {
                note(
                    &mut list,
                    tls.tls12,
                    format!("{at}.tls.min_version"),
                    "TLS 1.2 is spoken with callers that ask for it",
                );
            }
            let unpaced = listener.limits.body_rate_min == 0;
            note(
                &mut list,
                unpaced,
                format!("{at}.limits.body_rate_min"),
                "a request body may trickle in as slowly as it likes",
            );
        }
        for backend in &self.backends {
            backend_relaxations(&mut list, backend);
        }
        let stale = self.grants.staleness_max.as_secs() > 300;
        note(&mut list, stale, "grants.danger_staleness_max", "a revocation may go unseen for more than 5 minutes");
        let batched = self.audit.intent == IntentMode::Batched;
        note(&mut list, batched, "audit.intent", "a crash may lose the records of the last calls that went through");
        let open = !self.admin.address.ip().is_loopback();
        note(
            &mut list,
            open,
            "admin.danger_admin_address",
            "who reaches this address sees every grant, and is asked nothing",
        );
        list
    }

    /// What is no relaxation and still deserves a look.
    pub fn warnings(&self) -> Vec<Notice> {
        let mut list = Vec::new();
        for credential in &self.credentials {
            let at = format!("credentials[{}].source", credential.name);
            let kind = match credential.source {
                SourceSettings::File(_) => "file",
                SourceSettings::Env { .. } => "env",
                SourceSettings::Mint(_) => continue,
            };
            let message =
                "long-lived: it is the same for every grant and outlives each; prefer `jwt` where the backend takes it";
            note(&mut list, true, format!("{at}.{kind}"), message);
        }
        for credential in &self.credentials {
            let used = self.backends.iter().any(|b| {
                b.credential.as_ref() == Some(&credential.name)
                    || b.baseline.iter().any(|l| l.credential.as_ref() == Some(&credential.name))
            });
            note(&mut list, !used, format!("credentials[{}]", credential.name), "no backend uses it");
        }
        for backend in &self.backends {
            let at = format!("backends[{}]", backend.name);
            let reached = self.listeners.iter().any(|l| l.backends.contains(&backend.name));
            note(&mut list, !reached, at.as_str(), "no listener leads to it");
            let bare = backend.credential.is_none();
            note(
                &mut list,
                bare,
                format!("{at}.credential"),
                "nothing is injected: the backend accepts calls without a credential, or denies them",
            );
        }
        let asked = self.listeners.iter().filter_map(|l| l.tls.as_ref());
        let asked = asked.filter(|tls| tls.client_certificate != ClientCertificate::None).count() > 0;
        let unused = !self.identity.spiffe.is_empty() && !asked;
        note(&mut list, unused, "identity.spiffe", "no listener asks for client certificates");
        let idle = asked && self.identity.spiffe.is_empty();
        note(&mut list, idle, "identity.spiffe", "client certificates are asked for, and none makes a principal");
        for issuer in &self.identity.issuers {
            if let KeySource::Url(url) = &issuer.keys {
                let plain = url.url.scheme_str() == Some("http");
                note(
                    &mut list,
                    plain,
                    format!("identity.issuers[{}].keys.url", issuer.name),
                    "keys are fetched without TLS, on loopback",
                );
            }
        }
        list
    }
}

fn backend_relaxations(list: &mut Vec<Notice>, backend: &Backend) {
    let at = format!("backends[{}]", backend.name);
    let observed = backend.mode == Mode::Observe;
    note(list, observed, format!("{at}.mode"), "nothing is refused: what would be is only recorded");
    note(
        list,
        backend.on_stale == OnStale::ServeUntilExpiry,
        format!("{at}.on_stale"),
        "while the view is stale, calls go on under grants that may have been revoked: no revocation has a bound",
    );
    let canonical = backend.canonical;
    let at_canonical = format!("{at}.canonical");
    note(
        list,
        canonical.encoded_slash_keep,
        format!("{at_canonical}.encoded_slash"),
        "`%2F` stays inside its segment; the backend must read it so too",
    );
    note(
        list,
        canonical.path_params_keep,
        format!("{at_canonical}.path_params"),
        "`;` stays in its segment; the backend must not cut there",
    );
    note(
        list,
        canonical.method_override_allow,
        format!("{at_canonical}.method_override"),
        "method-override fields reach the backend, which may do another thing than was decided",
    );
    note(
        list,
        backend.response.set_cookie_keep,
        format!("{at}.response.set_cookie"),
        "a session that the backend opens for the credential reaches the caller",
    );
    note(
        list,
        !backend.response.leak_guard,
        format!("{at}.response.leak_guard"),
        "an answer that repeats the credential reaches the caller",
    );
    let plain = matches!(&backend.upstream.address, UpstreamAddress::Tcp { .. }) && backend.danger_plain_upstream;
    let plain = plain && backend.upstream.tls.is_none();
    note(list, plain, format!("{at}.danger_plain_upstream"), "the credential crosses the network in the clear");
}
