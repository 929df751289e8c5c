//! The section `listeners`.

use super::super::files::{self, Purpose};
use super::super::raw::{Field, Limits as RawLimits, List, Listener as RawListener, Text, Tls as RawTls};
use super::super::resolved::{Backend, Limits, Listener};
use super::{Resolver, Spot, is_name};
use crate::domain::id::BackendName;
use crate::sidecar::accept::listen::ListenAddress;
use crate::sidecar::accept::tls::{ClientCertificate, TlsSettings};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

impl Resolver<'_> {
    pub(super) fn listeners(
        &mut self,
        spot: &Spot,
        field: &Field<List<RawListener>>,
        backends: &[Backend],
    ) -> Vec<Listener> {
        let list = field.value().map_or(&[][..], Vec::as_slice);
        if list.is_empty() {
            self.fail(spot, "is missing or empty", "write at least one, with `name`, `address` and `backends`");
        }
        let mut found: Vec<Listener> = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let at = spot.item(index, item);
            let Some(listener) = item.value().and_then(|raw| self.listener(&at, raw, backends)) else { continue };
            if found.iter().any(|other| other.name == listener.name) {
                self.fail(&at, format_args!("the name `{}` is taken", listener.name), "give each listener its own");
            }
            let any_port = matches!(listener.address, ListenAddress::Tcp(address) if address.port() == 0);
            if !any_port && found.iter().any(|other| other.address == listener.address) {
                self.fail(
                    &at,
                    format_args!("the address `{}` is taken", listener.address),
                    "give each listener its own",
                );
            }
            found.push(listener);
        }
        found
    }

    fn listener(&mut self, at: &Spot, raw: &RawListener, backends: &[Backend]) -> Option<Listener> {
        let name = self.required(at, "name", &raw.name, "main");
        if let Some(name) = name.filter(|name| !is_name(name)) {
            let spot = at.key("name", &raw.name);
            self.fail(&spot, format_args!("`{name}` is not a name"), "use up to 128 letters, digits, `.`, `_` and `-`");
        }
        let danger_plain_listener = self.flag(&raw.danger_plain_listener);
        let address = self.listen_address(at, &raw.address);
        let tls = raw.tls.value().map(|tls| self.tls(&at.key("tls", &raw.tls), tls));
        let limits = self.limits(&at.key("limits", &raw.limits), raw.limits.value());
        let names = self.listener_backends(at, &raw.backends, backends);
        if let Some(ListenAddress::Tcp(address)) = &address
            && tls.is_none()
            && !address.ip().is_loopback()
            && !danger_plain_listener
        {
            let message =
                format!("`{address}` is open to other machines and has no TLS, so tokens would cross in the clear");
            let hint = "add `tls:` with `certificate` and `key`, listen on 127.0.0.1 or a Unix socket, or write `danger_plain_listener: true`";
            self.fail(&at.key("address", &raw.address), message, hint);
        }
        let tls = match tls {
            Some(tls) => Some(tls?),
            None => None,
        };
        let name = name?.to_owned();
        Some(Listener { name, address: address?, backends: names, tls, limits, danger_plain_listener })
    }

    fn listen_address(&mut self, at: &Spot, field: &Field<Text>) -> Option<ListenAddress> {
        let text = self.required(at, "address", field, "127.0.0.1:8443")?;
        let spot = at.key("address", field);
        let Some(path) = text.strip_prefix("unix:") else {
            return self.socket_address(&spot, text).map(ListenAddress::Tcp);
        };
        let path = self.socket_path(&spot, path)?;
        Some(ListenAddress::Unix(path))
    }

    /// The path of a Unix socket, which the system limits to 107 bytes.
    pub(super) fn socket_path(&mut self, spot: &Spot, path: &str) -> Option<std::path::PathBuf> {
        let resolved = self.directory.join(path);
        if path.is_empty() || resolved.as_os_str().len() > 107 {
            self.fail(spot, "the path of a Unix socket has 1 to 107 bytes", "write `unix:/run/leasehold/main.sock`");
            return None;
        }
        Some(resolved)
    }

    fn listener_backends(&mut self, at: &Spot, field: &Field<List<Text>>, backends: &[Backend]) -> Vec<BackendName> {
        let mut found: Vec<&Backend> = Vec::new();
        let texts = self.texts_required(at, "backends", field, "rabbitmq");
        for (spot, text) in &texts {
            match backends.iter().find(|b| b.name.as_str() == *text) {
                Some(backend) => found.push(backend),
                None if self.written.backends.iter().any(|written| written == text) => {}
                None => {
                    let known: Vec<&str> = backends.iter().map(|b| b.name.as_str()).collect();
                    let hint = super::backends::reference_hint(text, &known, "backends");
                    self.fail(spot, format_args!("there is no backend `{text}`"), hint);
                }
            }
        }
        if texts.len() > 1 {
            let spot = at.key("backends", field);
            for (index, backend) in found.iter().enumerate() {
                if backend.hosts.is_empty() {
                    let message =
                        format!("several backends share this listener, and `{}` has no `hosts`", backend.name);
                    self.fail(&spot, message, "give each its own `hosts`, or a listener of its own");
                }
                let taken = backend.hosts.iter().find(|h| found[..index].iter().any(|other| other.hosts.contains(h)));
                if let Some(host) = taken {
                    let message = format!("the host `{host}` belongs to two backends of this listener");
                    self.fail(&spot, message, "give each host to one backend");
                }
            }
        }
        found.into_iter().map(|b| b.name.clone()).collect()
    }

    pub(super) fn tls(&mut self, at: &Spot, raw: &RawTls) -> Option<TlsSettings> {
        let (certificate, key) = self.key_pair(at, (&raw.certificate, "tls.crt"), (&raw.key, "tls.key"));
        let choices = [
            ("none", ClientCertificate::None),
            ("optional", ClientCertificate::Optional),
            ("required", ClientCertificate::Required),
        ];
        let client_certificate = self.choice(at, "client_certificate", &raw.client_certificate, &choices);
        let client_ca = self.path(at, "client_ca", &raw.client_ca);
        if let Some(ca) = &client_ca {
            let result = files::certificates(ca, Purpose::Authorities);
            self.file_check(
                &at.key("client_ca", &raw.client_ca),
                result,
                "name a PEM file with your authorities, each block whole",
            );
        }
        match (client_certificate, raw.client_ca.value()) {
            (ClientCertificate::Optional | ClientCertificate::Required, None) => {
                let spot = at.key("client_certificate", &raw.client_certificate);
                self.fail(&spot, "asks for certificates that nobody is named to sign", "add `client_ca: ca.pem`");
            }
            (ClientCertificate::None, Some(_)) => {
                let spot = at.key("client_ca", &raw.client_ca);
                self.fail(
                    &spot,
                    "is there, and no certificate is asked for",
                    "add `client_certificate: required`, or remove it",
                );
            }
            _ => {}
        }
        let mut client_crl = Vec::new();
        for (spot, text) in self.texts(at, "client_crl", &raw.client_crl) {
            let path = self.directory.join(text);
            self.file_check(&spot, files::revocation_lists(&path), "name a PEM file of `X509 CRL` blocks");
            if client_certificate == ClientCertificate::None {
                self.fail(
                    &spot,
                    "is there, and no certificate is asked for",
                    "add `client_certificate: required`, or remove it",
                );
            }
            client_crl.push(path);
        }
        let versions = [("1.3", false), ("1.2", true)];
        let tls12 = self.choice(at, "min_version", &raw.min_version, &versions);
        Some(TlsSettings { certificate: certificate?, key: key?, client_ca, client_certificate, client_crl, tls12 })
    }

    fn limits(&mut self, at: &Spot, raw: Option<&RawLimits>) -> Limits {
        let none = RawLimits::default();
        let raw = raw.unwrap_or(&none);
        Limits {
            connections: self.count(at, "connections", &raw.connections, 10_000, 1, 1_000_000) as usize,
            handshake_timeout: self.duration(at, "handshake_timeout", &raw.handshake_timeout, "5s", "100ms", "1m"),
            head_timeout: self.duration(at, "head_timeout", &raw.head_timeout, "10s", "100ms", "5m"),
            idle_timeout: self.duration(at, "idle_timeout", &raw.idle_timeout, "60s", "1s", "24h"),
            body_timeout: self.duration(at, "body_timeout", &raw.body_timeout, "30s", "100ms", "1h"),
            body_rate_min: self.size(at, "body_rate_min", &raw.body_rate_min, 100, 0, GIB),
            head_bytes: self.memory(at, "head_bytes", &raw.head_bytes, 16 * KIB, 8 * KIB, 1024 * KIB),
            headers: self.count(at, "headers", &raw.headers, 100, 8, 100) as usize,
            target_bytes: self.memory(at, "target_bytes", &raw.target_bytes, 8 * KIB, 256, 64 * KIB),
            streams: self.count(at, "streams", &raw.streams, 100, 1, 10_000),
            body_bytes: self.size(at, "body_bytes", &raw.body_bytes, GIB, 0, 16384 * GIB),
            arguments_bytes: self.memory(at, "arguments_bytes", &raw.arguments_bytes, 1024 * KIB, 0, 64 * 1024 * KIB),
        }
    }
}
