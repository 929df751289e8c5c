//! The section `backends`.

use std::net::{IpAddr, Ipv6Addr};

use http::HeaderName;
use http::uri::Authority;

use super::super::error::nearest;
use super::super::files::{self, Purpose, Side};
use super::super::raw::{
    Backend as RawBackend, Baseline as RawBaseline, Canonical as RawCanonical, Field, List, Response as RawResponse,
    Text, Timeouts as RawTimeouts, UpstreamTls as RawUpstreamTls,
};
use super::super::resolved::{Backend, Baseline, OnStale, Upstream, UpstreamAddress, UpstreamTls};
use super::super::{ActionMapSource, action_map};
use super::{Resolver, Spot};
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::id::{BackendName, CredentialName};
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::sidecar::canonical::Relaxations;
use crate::sidecar::credential::Settings as Credential;
use crate::sidecar::decide::Mode;
use crate::sidecar::forward::response::ResponseRules;
use crate::sidecar::forward::upstream::Timeouts;

const RELAXATION: [(&str, bool); 2] = [("refuse", false), ("keep", true)];

/// An action map that the control plane says; a file of that name is `./control`.
const CONTROL: &str = "control";

impl Resolver<'_> {
    pub(super) fn backends(
        &mut self,
        spot: &Spot,
        field: &Field<List<RawBackend>>,
        credentials: &[Credential],
    ) -> Vec<Backend> {
        let list = field.value().map_or(&[][..], Vec::as_slice);
        if list.is_empty() {
            self.fail(spot, "is missing or empty", "write at least one, with `name`, `upstream` and `action_map`");
        }
        let mut found: Vec<Backend> = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let at = spot.item(index, item);
            let Some(backend) = item.value().and_then(|raw| self.backend(&at, raw, credentials)) else { continue };
            if found.iter().any(|other| other.name == backend.name) {
                self.fail(&at, format_args!("the name `{}` is taken", backend.name), "give each backend its own");
            }
            found.push(backend);
        }
        found
    }

    fn backend(&mut self, at: &Spot, raw: &RawBackend, credentials: &[Credential]) -> Option<Backend> {
        let name = self.required(at, "name", &raw.name, "rabbitmq");
        let name = name.and_then(|text| self.parsed(&at.key("name", &raw.name), BackendName::new(text)));
        let upstream = self.upstream(at, raw);
        let hosts = self.hosts(at, &raw.hosts);
        let canonical = self.canonical(&at.key("canonical", &raw.canonical), raw.canonical.value());
        let action_map = self.action_map(at, &raw.action_map, canonical);
        let mode = self.choice(at, "mode", &raw.mode, &[("enforce", Mode::Enforce), ("observe", Mode::Observe)]);
        let choices = [("deny", OnStale::Deny), ("serve_until_expiry", OnStale::ServeUntilExpiry)];
        let on_stale = self.choice(at, "on_stale", &raw.on_stale, &choices);
        let credential = self.credential_reference(at, "credential", &raw.credential, credentials);
        let baseline = self.baseline(&at.key("baseline", &raw.baseline), &raw.baseline, credentials);
        let response = self.response(&at.key("response", &raw.response), raw.response.value());
        let timeouts = self.timeouts(&at.key("timeouts", &raw.timeouts), raw.timeouts.value());
        let pool_at = at.key("pool", &raw.pool);
        let pool_idle_per_worker = match raw.pool.value() {
            Some(pool) => self.count(&pool_at, "idle_per_worker", &pool.idle_per_worker, 1024, 0, 65_536),
            None => 1024,
        };
        let danger_plain_upstream = self.flag(&raw.danger_plain_upstream);
        let injects = credential.is_some() || baseline.iter().any(|b| b.credential.is_some());
        if let Some(Upstream { address: UpstreamAddress::Tcp { host, .. }, tls: None, .. }) = &upstream
            && injects
            && !is_loopback(host)
            && !danger_plain_upstream
        {
            let message = format!("sends a credential to `{host}` in the clear");
            let hint = "write `https://` or `h2://` with `upstream_tls`, or `danger_plain_upstream: true`";
            self.fail(&at.key("upstream", &raw.upstream), message, hint);
        }
        Some(Backend {
            name: name?,
            upstream: upstream?,
            hosts,
            action_map: action_map?,
            mode,
            on_stale,
            credential,
            baseline,
            canonical,
            response,
            timeouts,
            pool_idle_per_worker: pool_idle_per_worker as usize,
            danger_plain_upstream,
        })
    }

    /// The value, or the reason why it is none.
    fn parsed<T, E: std::fmt::Display>(&mut self, spot: &Spot, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.fail(spot, e, "")).ok()
    }

    fn upstream(&mut self, at: &Spot, raw: &RawBackend) -> Option<Upstream> {
        let text = self.required(at, "upstream", &raw.upstream, "http://127.0.0.1:15672")?;
        let spot = at.key("upstream", &raw.upstream);
        let tls_at = at.key("upstream_tls", &raw.upstream_tls);
        for (scheme, http2) in [("unix:", false), ("unix+h2c:", true)] {
            let Some(path) = text.strip_prefix(scheme) else { continue };
            if raw.upstream_tls.value().is_some() {
                self.fail(&tls_at, "is there, and a Unix socket has no TLS", "remove it");
            }
            let path = self.socket_path(&spot, path)?;
            return Some(Upstream { address: UpstreamAddress::Unix(path), http2, tls: None });
        }
        let hint = "write `http://`, `https://`, `h2c://` or `h2://` with a host and a port, or `unix:/path`";
        let Some((scheme, rest)) = text.split_once("://") else {
            self.fail(&spot, format_args!("`{text}` names no scheme"), hint);
            return None;
        };
        let (tls, http2, port) = match scheme {
            "http" => (false, false, 80),
            "https" => (true, false, 443),
            "h2c" => (false, true, 80),
            "h2" => (true, true, 443),
            _ => {
                self.fail(&spot, format_args!("`{scheme}` is not a known scheme"), hint);
                return None;
            }
        };
        if rest.contains('@') {
            // What stands before the `@` may be a secret, so it is not shown.
            self.fail(&spot, "has a user in it", "remove it, and write a `credential` that injects `basic`");
            return None;
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            self.fail(
                &spot,
                format_args!("`{text}` has a path"),
                "write only scheme, host and port; paths come from the calls",
            );
            return None;
        }
        let Some((host, port)) = host_and_port(authority, port) else {
            self.fail(&spot, format_args!("`{authority}` is not a host and a port"), hint);
            return None;
        };
        let tls = match (tls, raw.upstream_tls.value()) {
            (true, Some(raw)) => Some(self.upstream_tls(&tls_at, raw, &host)?),
            (true, None) => {
                self.fail(
                    &spot,
                    "asks for TLS and names nobody to believe",
                    "add `upstream_tls: {ca: backend-ca.pem}`",
                );
                return None;
            }
            (false, Some(_)) => {
                self.fail(
                    &tls_at,
                    format_args!("is there, and `{scheme}://` has no TLS"),
                    "write `https://` or `h2://`, or remove it",
                );
                return None;
            }
            (false, None) => None,
        };
        Some(Upstream { address: UpstreamAddress::Tcp { host, port }, http2, tls })
    }

    fn upstream_tls(&mut self, at: &Spot, raw: &RawUpstreamTls, host: &str) -> Option<UpstreamTls> {
        let ca = self.path_required(at, "ca", &raw.ca, "backend-ca.pem");
        if let Some(ca) = &ca {
            let result = files::certificates(ca, Purpose::Anchors);
            self.file_check(
                &at.key("ca", &raw.ca),
                result,
                "name a PEM file with the backend's authorities, each block whole",
            );
        }
        let server_name = self.text(at, "server_name", &raw.server_name).unwrap_or(host);
        if rustls::pki_types::ServerName::try_from(server_name).is_err() {
            let hint = "write the name in the backend's certificate";
            self.fail(
                &at.key("server_name", &raw.server_name),
                format_args!("`{server_name}` is not a host name"),
                hint,
            );
        }
        let client_certificate = self.path(at, "client_certificate", &raw.client_certificate);
        let client_key = self.path(at, "client_key", &raw.client_key);
        match (&client_certificate, &client_key) {
            (Some(certificate), Some(key)) => {
                if let Err((side, message)) = files::key_pair(certificate, key) {
                    let spot = match side {
                        Side::Certificate => at.key("client_certificate", &raw.client_certificate),
                        Side::Key => at.key("client_key", &raw.client_key),
                    };
                    self.fail(&spot, message, "name PEM files: the certificate first in its chain, and its own key");
                }
            }
            (Some(_), None) => {
                self.fail(&at.key("client_key", &raw.client_key), "is missing", "write the key of `client_certificate`")
            }
            (None, Some(_)) => {
                self.fail(
                    &at.key("client_certificate", &raw.client_certificate),
                    "is missing",
                    "write the certificate of `client_key`",
                );
            }
            (None, None) => {}
        }
        Some(UpstreamTls { ca: ca?, server_name: server_name.to_owned(), client_certificate, client_key })
    }

    fn hosts(&mut self, at: &Spot, field: &Field<List<Text>>) -> Vec<String> {
        let mut found = Vec::new();
        for (spot, text) in self.texts(at, "hosts", field) {
            let lower = text.to_ascii_lowercase();
            let plain = lower.parse::<Authority>().is_ok_and(|a| !a.as_str().contains('@') && !a.host().is_empty());
            if !plain || text.contains(['*', '/']) || lower.ends_with(['.', ':']) {
                let hint = "write a name as callers put it in `Host`, such as `db.example` or `db.example:8443`";
                self.fail(&spot, format_args!("`{text}` is not a host"), hint);
                continue;
            }
            found.push(lower);
        }
        found
    }

    fn action_map(&mut self, at: &Spot, field: &Field<Text>, canonical: Relaxations) -> Option<ActionMapSource> {
        let text = self.required(at, "action_map", field, "builtin:rabbitmq")?;
        let spot = at.key("action_map", field);
        if text == CONTROL {
            if !self.follows_control {
                let hint = "name `builtin:…` or a file, or take grants from a control plane: `grants: {control: …}`";
                self.fail(&spot, "is to come from a control plane, and grants come from a file", hint);
                return None;
            }
            return Some(ActionMapSource::Control);
        }
        let (origin, text) = match text.strip_prefix("builtin:") {
            Some(name) => match action_map::builtin_action_map(name) {
                Some(text) => (format!("builtin:{name}"), text.to_owned()),
                None => {
                    let hint = reference_hint(name, action_map::BUILTIN_ACTION_MAPS, "the program");
                    self.fail(&spot, format_args!("there is no action map `{name}` in the program"), hint);
                    return None;
                }
            },
            None => {
                let path = self.directory.join(text);
                let hint = "name an action map, such as `builtin:rabbitmq` or a file of your own, or `control`";
                let text = self.file_check(&spot, files::text(&path), hint)?;
                (path.display().to_string(), text)
            }
        };
        for (message, hint) in action_map::check_action_map(&origin, &text, canonical) {
            self.fail(&spot, message, hint);
        }
        Some(ActionMapSource::Written { origin, text })
    }

    fn credential_reference(
        &mut self,
        at: &Spot,
        name: &str,
        field: &Field<Text>,
        credentials: &[Credential],
    ) -> Option<CredentialName> {
        let text = self.text(at, name, field)?;
        if let Some(credential) = credentials.iter().find(|c| c.name.as_str() == text) {
            return Some(credential.name.clone());
        }
        if self.written.credentials.iter().any(|written| written == text) {
            return CredentialName::new(text).ok();
        }
        let known: Vec<&str> = credentials.iter().map(|c| c.name.as_str()).collect();
        let hint = reference_hint(text, &known, "credentials");
        self.fail(&at.key(name, field), format_args!("there is no credential `{text}`"), hint);
        None
    }

    fn baseline(&mut self, spot: &Spot, field: &Field<List<RawBaseline>>, credentials: &[Credential]) -> Vec<Baseline> {
        let mut found = Vec::new();
        for (index, item) in field.value().into_iter().flatten().enumerate() {
            let at = spot.item(index, item);
            let Some(raw) = item.value() else { continue };
            let principals = self.texts_required(&at, "principals", &raw.principals, "\"https://idp.example#ci-bot\"");
            let actions = self.texts_required(&at, "actions", &raw.actions, "overview.read");
            let resources = self.texts_required(&at, "resources", &raw.resources, "\"**\"");
            let principals = principals.into_iter().filter_map(|(s, t)| self.parsed(&s, Principal::parse(t))).collect();
            let actions = actions.into_iter().filter_map(|(s, t)| self.parsed(&s, ActionPattern::new(t))).collect();
            let resources =
                resources.into_iter().filter_map(|(s, t)| self.parsed(&s, ResourcePattern::new(t))).collect();
            let credential = self.credential_reference(&at, "credential", &raw.credential, credentials);
            found.push(Baseline { principals, scope: Scope::new(actions, resources), credential });
        }
        found
    }

    fn canonical(&mut self, at: &Spot, raw: Option<&RawCanonical>) -> Relaxations {
        let none = RawCanonical::default();
        let raw = raw.unwrap_or(&none);
        Relaxations {
            encoded_slash_keep: self.choice(at, "encoded_slash", &raw.encoded_slash, &RELAXATION),
            path_params_keep: self.choice(at, "path_params", &raw.path_params, &RELAXATION),
            method_override_allow: self.choice(at, "method_override", &raw.method_override, &RELAXATION),
        }
    }

    fn response(&mut self, at: &Spot, raw: Option<&RawResponse>) -> ResponseRules {
        let none = RawResponse::default();
        let raw = raw.unwrap_or(&none);
        let set_cookie_keep = self.choice(at, "set_cookie", &raw.set_cookie, &[("drop", false), ("keep", true)]);
        let leak_guard = self.choice(at, "leak_guard", &raw.leak_guard, &[("block", true), ("off", false)]);
        let mut trailers = Vec::new();
        for (spot, text) in self.texts(at, "trailers", &raw.trailers) {
            match text.parse::<HeaderName>() {
                Ok(name) if !super::credentials::is_structural(&name) => trailers.push(name),
                _ => {
                    let hint = "write the name of a field that may come after a body";
                    self.fail(&spot, format_args!("`{text}` cannot be a trailer"), hint);
                }
            }
        }
        ResponseRules { set_cookie_keep, leak_guard, trailers }
    }

    fn timeouts(&mut self, at: &Spot, raw: Option<&RawTimeouts>) -> Timeouts {
        let none = RawTimeouts::default();
        let raw = raw.unwrap_or(&none);
        Timeouts {
            connect: self.duration(at, "connect", &raw.connect, "5s", "10ms", "5m"),
            first_byte: self.duration(at, "first_byte", &raw.first_byte, "60s", "10ms", "1h"),
            idle: self.duration(at, "idle_upstream", &raw.idle_upstream, "60s", "1s", "1h"),
        }
    }
}

/// Host in lower case without brackets, and port.
pub(super) fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let plain = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            (host, plain.then(|| port.parse().ok()).flatten().filter(|port| *port > 0)?)
        }
        _ => (text, default),
    };
    if let Some(address) = host.strip_prefix('[') {
        let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
        return Some((address.to_string(), port));
    }
    let host = host.to_ascii_lowercase();
    let named = rustls::pki_types::ServerName::try_from(host.as_str()).is_ok() && !host.contains(':');
    (named && !host.ends_with('.')).then_some((host, port))
}

/// Whether a host is this machine by definition and not by what a resolver says.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().map_or(bare == "localhost", |address| address.is_loopback())
}

/// What somebody who named a thing that is not there should write.
pub(super) fn reference_hint(word: &str, known: &[&str], place: &str) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("add it to `{place}`, or correct what is wrong with it there"),
        None => format!(
            "add it to `{place}`; there are {}",
            known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}
