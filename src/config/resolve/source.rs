//! Where grants are followed from over the network.

use super::super::files::{self, Purpose, Side};
use super::super::raw::{Field, List, SourceTls as RawSourceTls, Text};
use super::backends::host_and_port;
use super::{Resolver, Spot};
use crate::sync::client::{Address, Servers, TlsSettings};

impl Resolver<'_> {
    /// The servers that say what the grants are, and what is shown to them.
    pub(super) fn servers(
        &mut self,
        at: &Spot,
        addresses: &Field<List<Text>>,
        tls: &Field<RawSourceTls>,
    ) -> Option<Servers> {
        let mut found = Vec::new();
        for (spot, text) in self.texts_required(at, "addresses", addresses, "\"https://control.example:9903\"") {
            found.extend(self.server(&spot, text));
        }
        let tls_at = at.key("tls", tls);
        let Some(raw) = tls.value() else {
            self.fail(&tls_at, "is missing", "add `tls:` with `certificate`, `key` and `ca`");
            return None;
        };
        let tls = self.source_tls(&tls_at, raw);
        (!found.is_empty()).then_some(Servers { addresses: found, tls: Some(tls?) })
    }

    fn server(&mut self, spot: &Spot, text: &str) -> Option<Address> {
        let hint = "write `https://`, a host and a port, such as `https://control.example:9903`";
        let authority = text.strip_prefix("https://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let Some((host, port)) = authority.and_then(|authority| host_and_port(authority, 443)) else {
            self.fail(spot, format_args!("`{text}` is no address of a control plane"), hint);
            return None;
        };
        Some(Address { host, port })
    }

    fn source_tls(&mut self, at: &Spot, raw: &RawSourceTls) -> Option<TlsSettings> {
        let certificate = self.path_required(at, "certificate", &raw.certificate, "sidecar.crt");
        let key = self.path_required(at, "key", &raw.key, "sidecar.key");
        if let (Some(certificate), Some(key)) = (&certificate, &key)
            && let Err((side, message)) = files::key_pair(certificate, key)
        {
            let spot = match side {
                Side::Certificate => at.key("certificate", &raw.certificate),
                Side::Key => at.key("key", &raw.key),
            };
            self.fail(&spot, message, "name PEM files: the certificate first in its chain, and its own key");
        }
        let ca = self.path_required(at, "ca", &raw.ca, "control-ca.pem");
        if let Some(ca) = &ca {
            let result = files::certificates(ca, Purpose::Anchors);
            let hint = "name a PEM file with who signs the control plane's certificate, each block whole";
            self.file_check(&at.key("ca", &raw.ca), result, hint);
        }
        Some(TlsSettings { certificate: certificate?, key: key?, ca: ca? })
    }
}
