//! Where grants are followed from over the network.

use secrecy::SecretString;

use super::super::files::{self, Purpose};
use super::super::join::{Join, JoinTokenSource};
use super::super::raw::{GrantsControl as RawControl, Join as RawJoin, Password, SourceTls as RawSourceTls};
use super::backends::host_and_port;
use super::{Resolver, Spot};
use crate::sync::client::{Address, Servers, TlsSettings};

impl Resolver<'_> {
    /// The servers that say what the grants are, and what is shown to them.
    pub(super) fn servers(&mut self, at: &Spot, raw: &RawControl) -> Option<(Servers, Option<Join>)> {
        let mut found = Vec::new();
        for (spot, text) in self.texts_required(at, "addresses", &raw.addresses, "\"https://control.example:9903\"") {
            found.extend(self.server(&spot, text));
        }
        let (tls_at, join_at) = (at.key("tls", &raw.tls), at.key("join", &raw.join));
        let shown = match (raw.tls.value(), raw.join.value()) {
            (Some(tls), None) => self.source_tls(&tls_at, tls).map(|tls| (tls, None)),
            (None, Some(join)) => self.join(&join_at, join).map(|join| (join.files(), Some(join))),
            (None, None) => {
                let hint = "add `tls:` with `certificate`, `key` and `ca`, or `join:` with `token` and `folder`";
                self.fail(&tls_at, "is missing", hint);
                None
            }
            (Some(_), Some(_)) => {
                let hint = "keep `tls` where somebody else signs, or `join` where the control plane does";
                self.fail(&join_at, "is not used with `tls`", hint);
                None
            }
        };
        let (tls, join) = shown?;
        (!found.is_empty()).then_some((Servers { addresses: found, tls: Some(tls) }, join))
    }

    fn join(&mut self, at: &Spot, raw: &RawJoin) -> Option<Join> {
        let token_at = at.key("token", &raw.token);
        let none = Password::default();
        let token = self.join_token(&token_at, raw.token.value().unwrap_or(&none));
        let folder = self.path_required(at, "folder", &raw.folder, "/var/lib/leasehold/identity")?;
        if folder.exists() && !folder.is_dir() {
            let message = format!("`{}` is not a folder", folder.display());
            self.fail(&at.key("folder", &raw.folder), message, "name a folder; it is made if it is not there");
            return None;
        }
        Some(Join { token: token?, folder })
    }

    /// Where the token is. It need not be there: whoever joined does not need it any more.
    fn join_token(&mut self, at: &Spot, raw: &Password) -> Option<JoinTokenSource> {
        match (raw.file.value(), raw.env.value()) {
            (Some(_), None) => self.path(at, "file", &raw.file).map(JoinTokenSource::File),
            (None, Some(_)) => {
                let name = self.text(at, "env", &raw.env)?;
                if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    // Somebody may have written the token itself here.
                    let hint = "write the name alone, such as `LEASEHOLD_JOIN_TOKEN`";
                    self.fail(&at.key("env", &raw.env), "is not the name of a variable", hint);
                    return None;
                }
                let token = (self.environment)(name).filter(|token| !token.is_empty()).map(SecretString::from);
                Some(JoinTokenSource::Env { name: name.to_owned(), token })
            }
            _ => {
                let hint = "write `{file: /run/secrets/join-token}` or `{env: LEASEHOLD_JOIN_TOKEN}`";
                self.fail(at, "names not exactly one source", hint);
                None
            }
        }
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
        let (certificate, key) = self.key_pair(at, (&raw.certificate, "sidecar.crt"), (&raw.key, "sidecar.key"));
        let ca = self.path_required(at, "ca", &raw.ca, "control-ca.pem");
        if let Some(ca) = &ca {
            let result = files::certificates(ca, Purpose::Anchors);
            let hint = "name a PEM file with who signs the control plane's certificate, each block whole";
            self.file_check(&at.key("ca", &raw.ca), result, hint);
        }
        Some(TlsSettings { certificate: certificate?, key: key?, ca: ca? })
    }
}
