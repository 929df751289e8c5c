//! The section `control.sync`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use rustls::pki_types::ServerName;

use super::super::files::{self, Purpose};
use super::super::raw::{Sync as RawSync, SyncTls as RawSyncTls};
use super::super::resolved::{ControlSync, SyncSigner};
use super::{Resolver, Spot};
use crate::domain::principal::Principal;

impl Resolver<'_> {
    pub(super) fn sync(&mut self, at: &Spot, raw: &RawSync, data: &Path) -> Option<ControlSync> {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9903);
        let address = match self.text(at, "address", &raw.address) {
            Some(text) => self.socket_address(&at.key("address", &raw.address), text),
            None => Some(default),
        };
        let trust_domain = self.required(at, "trust_domain", &raw.trust_domain, "prod.example");
        if let Some(name) = trust_domain
            && (Principal::spiffe(&format!("spiffe://{name}/x")).is_err() || name.contains('/'))
        {
            let hint = "write the name alone, such as `prod.example`, in lower case";
            let spot = at.key("trust_domain", &raw.trust_domain);
            self.fail(&spot, format_args!("`{name}` is not a trust domain"), hint);
        }
        let signer = match raw.tls.value() {
            Some(tls) => {
                self.not_with_tls(at, raw);
                self.sync_tls(&at.key("tls", &raw.tls), tls)
            }
            None => self.own_authority(at, raw, address, data),
        };
        Some(ControlSync { address: address?, trust_domain: trust_domain?.to_owned(), signer: signer? })
    }

    fn not_with_tls(&mut self, at: &Spot, raw: &RawSync) {
        let others = [
            (raw.authority.value().is_some(), at.key("authority", &raw.authority)),
            (raw.names.value().is_some(), at.key("names", &raw.names)),
        ];
        for (_, spot) in others.iter().filter(|(is_there, _)| *is_there) {
            self.fail(spot, "is not used with `tls`, where somebody else signs", "remove it, or remove `tls`");
        }
    }

    fn own_authority(
        &mut self,
        at: &Spot,
        raw: &RawSync,
        address: Option<SocketAddr>,
        data: &Path,
    ) -> Option<SyncSigner> {
        let folder = self.path(at, "authority", &raw.authority).unwrap_or_else(|| data.join("authority"));
        if folder.exists() && !folder.is_dir() {
            let message = format!("`{}` is not a folder", folder.display());
            self.fail(&at.key("authority", &raw.authority), message, "name a folder; it is made if it is not there");
        }
        let mut names = Vec::new();
        for (spot, text) in self.texts(at, "names", &raw.names) {
            if ServerName::try_from(text).is_err() {
                self.fail(
                    &spot,
                    format_args!("`{text}` is no name or address"),
                    "write `control.example` or `10.0.0.5`",
                );
            }
            names.push(text.to_owned());
        }
        let address = address?;
        if names.is_empty() && address.ip().is_unspecified() {
            let spot = at.key("names", &raw.names);
            self.fail(
                &spot,
                "is missing: sidecars check by which name they connect",
                "write `names: [control.example]`",
            );
        } else if names.is_empty() {
            names.push(address.ip().to_string());
        }
        Some(SyncSigner::Own { folder, names, lives: None })
    }

    fn sync_tls(&mut self, at: &Spot, raw: &RawSyncTls) -> Option<SyncSigner> {
        let (certificate, key) = self.key_pair(at, (&raw.certificate, "tls.crt"), (&raw.key, "tls.key"));
        let client_ca = self.path_required(at, "client_ca", &raw.client_ca, "ca.pem");
        if let Some(ca) = &client_ca {
            let spot = at.key("client_ca", &raw.client_ca);
            let hint = "name a PEM file with who signs the sidecars' certificates, each block whole";
            self.file_check(&spot, files::certificates(ca, Purpose::Authorities), hint);
        }
        let mut client_crl = Vec::new();
        for (spot, text) in self.texts(at, "client_crl", &raw.client_crl) {
            let path = self.directory.join(text);
            self.file_check(&spot, files::revocation_lists(&path), "name a PEM file of `X509 CRL` blocks");
            client_crl.push(path);
        }
        Some(SyncSigner::Files { certificate: certificate?, key: key?, client_ca: client_ca?, client_crl })
    }
}
