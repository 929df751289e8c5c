//! The section `control`, and what else of a file a control plane needs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;

use http::Uri;
use secrecy::SecretString;

use super::super::files;
use super::super::raw::{Control as RawControl, Field, File, Login as RawLogin, Password, Text};
use super::super::resolved::{Control, ControlConfig, Login, StoreAddress};
use super::{Resolver, Spot};

impl Resolver<'_> {
    pub(super) fn control_file(&mut self, file: &File) -> Option<ControlConfig> {
        let root = Spot::root();
        let control = self.control(&root.key("control", &file.control), file.control.value());
        let identity = self.identity(&root.key("identity", &file.identity), file.identity.value());
        self.login_is_believed(&root, file);
        let admin = self.admin(&root.key("admin", &file.admin), file.admin.value());
        let drain_timeout = self.duration(&root, "drain_timeout", &file.drain_timeout, "30s", "0s", "1h");
        Some(ControlConfig {
            control: control?,
            identity: identity?,
            admin,
            drain_timeout,
            origin: self.origin.to_owned(),
        })
    }

    fn control(&mut self, spot: &Spot, raw: Option<&RawControl>) -> Option<Control> {
        let none = RawControl::default();
        let raw = raw.unwrap_or(&none);
        let tls = raw.tls.value().map(|tls| self.tls(&spot.key("tls", &raw.tls), tls));
        let danger_plain_control = self.flag(&raw.danger_plain_control);
        let address = self.control_address(spot, &raw.address, tls.is_none() && !danger_plain_control);
        let data = self.path(spot, "data", &raw.data).unwrap_or_else(|| self.directory.join("leasehold.data"));
        if data.exists() && !data.is_dir() {
            let message = format!("`{}` is not a folder", data.display());
            self.fail(&spot.key("data", &raw.data), message, "name a folder; it is created if it is not there");
        }
        let store = self.store(spot, raw, &data);
        let documents = self.documents(spot, raw);
        let per_second = self.count(spot, "calls_per_second", &raw.calls_per_second, 200, 1, 1_000_000);
        let login = raw.login.value().map(|login| self.login(&spot.key("login", &raw.login), login));
        let sync = raw.sync.value().map(|sync| self.sync(&spot.key("sync", &raw.sync), sync, &data));
        Some(Control {
            address,
            tls: match tls {
                Some(tls) => Some(tls?),
                None => None,
            },
            danger_plain_control,
            data,
            store: store?,
            documents,
            calls_per_second: NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN),
            login: match login {
                Some(login) => Some(login?),
                None => None,
            },
            sync: match sync {
                Some(sync) => Some(sync?),
                None => None,
            },
        })
    }

    fn control_address(&mut self, spot: &Spot, field: &Field<Text>, is_plain: bool) -> SocketAddr {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9902);
        let at = spot.key("address", field);
        let address = match self.text(spot, "address", field) {
            Some(text) => self.socket_address(&at, text).unwrap_or(default),
            None => default,
        };
        if is_plain && !address.ip().is_loopback() {
            let message =
                format!("`{address}` is open to other machines and has no TLS, so tokens would cross in the clear");
            let hint =
                "add `tls:` with `certificate` and `key`, listen on 127.0.0.1, or write `danger_plain_control: true`";
            self.fail(&at, message, hint);
        }
        address
    }

    fn store(&mut self, spot: &Spot, raw: &RawControl, data: &std::path::Path) -> Option<StoreAddress> {
        let password = match raw.store_password.value() {
            Some(password) => self.password(&spot.key("store_password", &raw.store_password), password),
            None => None,
        };
        let Some(text) = self.text(spot, "store", &raw.store) else {
            if raw.store_password.value().is_some() {
                let at = spot.key("store_password", &raw.store_password);
                self.fail(&at, "is not used by SQLite", "write `store: postgres://…`, or remove it");
            }
            return raw.store.value().is_none().then(|| StoreAddress::Sqlite(data.join("control.db")));
        };
        let at = spot.key("store", &raw.store);
        if let Some(path) = text.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
            if raw.store_password.value().is_some() {
                let at = spot.key("store_password", &raw.store_password);
                self.fail(&at, "is not used by SQLite", "remove it; the file's own rights protect it");
            }
            return Some(StoreAddress::Sqlite(self.directory.join(path)));
        }
        let parsed = text.parse::<Uri>().ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("postgres" | "postgresql")) && uri.host().is_some() && uri.path().len() > 1
        });
        let Some(uri) = parsed else {
            let hint = "write `sqlite:control.db` or `postgres://user@host:5432/leasehold`";
            self.fail(&at, "is no address of a store", hint);
            return None;
        };
        let user = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@')).map(|(user, _)| user);
        if user.is_some_and(|user| user.contains(':')) {
            // The password itself is not repeated.
            self.fail(&at, "holds a password", "remove it, and write `store_password: {file: …}` or `{env: …}`");
            return None;
        }
        Some(StoreAddress::Postgres { url: text.to_owned(), password })
    }

    fn password(&mut self, at: &Spot, raw: &Password) -> Option<SecretString> {
        match (raw.file.value(), raw.env.value()) {
            (Some(_), None) => {
                let file = self.path(at, "file", &raw.file)?;
                let spot = at.key("file", &raw.file);
                let hint = "put the password there, alone on one line";
                self.file_check(&spot, files::secret(&file), hint)?;
                let text = self.file_check(&spot, files::text(&file), hint)?;
                Some(SecretString::from(text.trim_end_matches(['\n', '\r']).to_owned()))
            }
            (None, Some(_)) => {
                let name = self.text(at, "env", &raw.env)?;
                let spot = at.key("env", &raw.env);
                match (self.environment)(name).filter(|password| !password.is_empty()) {
                    Some(password) => Some(SecretString::from(password)),
                    None => {
                        self.fail(
                            &spot,
                            "names no variable that is set",
                            "set it before the start, for this process alone",
                        );
                        None
                    }
                }
            }
            _ => {
                self.fail(at, "names not exactly one source", "write `{file: password}` or `{env: PGPASSWORD}`");
                None
            }
        }
    }

    fn documents(&mut self, spot: &Spot, raw: &RawControl) -> Vec<PathBuf> {
        let mut documents = Vec::new();
        for (at, text) in self.texts(spot, "documents", &raw.documents) {
            let path = self.directory.join(text);
            if !path.exists() {
                let message = format!("`{}` is not there", path.display());
                self.fail(&at, message, "name a YAML file of documents, or a folder of them");
            }
            documents.push(path);
        }
        documents
    }

    /// Whoever logs in must be somebody to this control plane: the issuer of the login is one of `identity` too.
    fn login_is_believed(&mut self, root: &Spot, file: &File) {
        let Some(control) = file.control.value() else { return };
        let Some(login) = control.login.value() else { return };
        let Some(issuer) = login.issuer.value() else { return };
        let issuers = file.identity.value().and_then(|identity| identity.issuers.value()).into_iter().flatten();
        // As they are written: a mistake elsewhere in one is reported there.
        if issuers.filter_map(|item| item.value()?.issuer.value()).any(|other| other == issuer) {
            return;
        }
        let at = root.key("control", &file.control).key("login", &control.login).key("issuer", &login.issuer);
        let client = login.client_id.value().map_or("leasehold-cli", String::as_str);
        let hint = format!(
            "add `{{name: people, issuer: {issuer}, audience: [{client}], algorithm: …, keys: …}}` to `identity.issuers`"
        );
        self.fail(
            &at,
            format_args!("`{issuer}` is no issuer of `identity`, so nobody who logs in there is known"),
            hint,
        );
    }

    fn login(&mut self, at: &Spot, raw: &RawLogin) -> Option<Login> {
        let issuer = self.required(at, "issuer", &raw.issuer, "https://idp.example");
        let client_id = self.required(at, "client_id", &raw.client_id, "leasehold-cli");
        let scopes: Vec<String> =
            self.texts(at, "scopes", &raw.scopes).into_iter().map(|(_, scope)| scope.to_owned()).collect();
        let scopes = if raw.scopes.value().is_some() { scopes } else { vec!["openid".to_owned()] };
        Some(Login { issuer: issuer?.to_owned(), client_id: client_id?.to_owned(), scopes })
    }
}
