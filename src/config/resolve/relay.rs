//! The section `relay`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::super::files::{self, Purpose};
use super::super::raw::{File, Relay as RawRelay, RelayTls as RawRelayTls};
use super::super::relay::{PrincipalPattern, RelayConfig, RelayTls};
use super::{Resolver, Spot};
use crate::domain::id::BackendName;
use crate::domain::principal::Principal;

impl Resolver<'_> {
    pub(super) fn relay_file(&mut self, file: &File) -> Option<RelayConfig> {
        let root = Spot::root();
        let at = root.key("relay", &file.relay);
        let admin = self.admin(&root.key("admin", &file.admin), file.admin.value());
        let drain_timeout = self.duration(&root, "drain_timeout", &file.drain_timeout, "30s", "0s", "1h");
        let Some(raw) = file.relay.value() else {
            self.fail(&at, "is missing", "write it, with `upstream`, `trust_domain`, `tls`, `backends` and `sidecars`");
            return None;
        };
        let from = at.key("upstream", &raw.upstream);
        let upstream = match raw.upstream.value() {
            Some(upstream) => {
                let servers = self.servers(&from, upstream);
                let first_view = self.duration(&from, "first_view", &upstream.first_view, "5s", "0s", "5m");
                servers.map(|servers| (servers, first_view))
            }
            None => {
                self.fail(&from, "is missing", "write `upstream:` with `addresses`, and `tls` or `join`");
                None
            }
        };
        let staleness_max = self.duration(&at, "staleness_max", &raw.staleness_max, "30s", "3s", "5m");
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9903);
        let address = match self.text(&at, "address", &raw.address) {
            Some(text) => self.socket_address(&at.key("address", &raw.address), text),
            None => Some(default),
        };
        let trust_domain = self.relay_trust_domain(&at, raw);
        let joins = upstream.as_ref().and_then(|((_, join), _)| join.as_ref());
        let tls = match joins.filter(|_| raw.tls.value().is_none()) {
            Some(join) => Some(RelayTls::of(join)),
            None => self.relay_tls(&at, raw),
        };
        let backends = self.relay_backends(&at, raw);
        let sidecars = self.relay_sidecars(&at, raw);
        let ((servers, join), first_view) = upstream?;
        Some(RelayConfig {
            servers,
            join,
            first_view,
            staleness_max,
            address: address?,
            trust_domain: trust_domain?,
            tls: tls?,
            backends,
            sidecars,
            admin,
            drain_timeout,
            origin: self.origin.to_owned(),
        })
    }

    fn relay_trust_domain(&mut self, at: &Spot, raw: &RawRelay) -> Option<String> {
        let name = self.required(at, "trust_domain", &raw.trust_domain, "prod.example")?;
        if Principal::spiffe(&format!("spiffe://{name}/x")).is_err() || name.contains('/') {
            let hint = "write the name alone, such as `prod.example`, in lower case";
            self.fail(&at.key("trust_domain", &raw.trust_domain), format_args!("`{name}` is not a trust domain"), hint);
            return None;
        }
        Some(name.to_owned())
    }

    fn relay_tls(&mut self, at: &Spot, raw: &RawRelay) -> Option<RelayTls> {
        let spot = at.key("tls", &raw.tls);
        let none = RawRelayTls::default();
        let raw = raw.tls.value().unwrap_or(&none);
        let (certificate, key) = self.key_pair(&spot, (&raw.certificate, "tls.crt"), (&raw.key, "tls.key"));
        let client_ca = self.path_required(&spot, "client_ca", &raw.client_ca, "ca.pem");
        if let Some(ca) = &client_ca {
            let hint = "name a PEM file with who signs the sidecars' certificates, each block whole";
            let result = files::certificates(ca, Purpose::Authorities);
            self.file_check(&spot.key("client_ca", &raw.client_ca), result, hint);
        }
        Some(RelayTls { certificate: certificate?, key: key?, client_ca: client_ca? })
    }

    fn relay_backends(&mut self, at: &Spot, raw: &RawRelay) -> BTreeSet<BackendName> {
        let mut backends = BTreeSet::new();
        for (spot, text) in self.texts_required(at, "backends", &raw.backends, "rabbitmq") {
            match BackendName::new(text) {
                Ok(name) => drop(backends.insert(name)),
                Err(error) => self.fail(&spot, error, ""),
            }
        }
        backends
    }

    fn relay_sidecars(&mut self, at: &Spot, raw: &RawRelay) -> Vec<PrincipalPattern> {
        let example = "\"spiffe://prod.example/sidecar/*\"";
        let texts = self.texts_required(at, "sidecars", &raw.sidecars, example);
        let mut sidecars = Vec::new();
        for (spot, text) in texts {
            match PrincipalPattern::parse(text) {
                Some(pattern) => sidecars.push(pattern),
                None => {
                    let hint = format!("write a SPIFFE ID, or the beginning of several and `*`, such as {example}");
                    self.fail(&spot, format_args!("`{text}` names no sidecar"), hint);
                }
            }
        }
        sidecars
    }
}
