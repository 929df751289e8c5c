//! The section `credentials`.

use std::collections::BTreeMap;

use http::header::{self, HeaderName, HeaderValue};
use secrecy::SecretString;

use super::super::files;
use super::super::raw::{
    Credential as RawCredential, Field, Header as RawHeader, Inject as RawInject, Jwt as RawJwt, List,
    Source as RawSource, SourceOrText, Text,
};
use super::{Resolver, Spot};
use crate::domain::id::CredentialName;
use crate::sidecar::credential::{Injection, MintAlgorithm, MintSettings, Settings, SourceSettings};

const SOURCES: &str = "write `{file: /run/secrets/name}`, `{env: NAME}` or `{jwt: …}`";
const PLACEHOLDER: &str = "{secret}";

impl Resolver<'_> {
    pub(super) fn credentials(&mut self, spot: &Spot, field: &Field<List<RawCredential>>) -> Vec<Settings> {
        let mut found: Vec<Settings> = Vec::new();
        for (index, item) in field.value().into_iter().flatten().enumerate() {
            let at = spot.item(index, item);
            let Some(credential) = item.value().and_then(|raw| self.credential(&at, raw)) else { continue };
            if found.iter().any(|other| other.name == credential.name) {
                self.fail(&at, format_args!("the name `{}` is taken", credential.name), "give each credential its own");
            }
            found.push(credential);
        }
        found
    }

    fn credential(&mut self, at: &Spot, raw: &RawCredential) -> Option<Settings> {
        let name = self.required(at, "name", &raw.name, "rabbit-admin");
        let name = name
            .and_then(|text| CredentialName::new(text).map_err(|e| self.fail(&at.key("name", &raw.name), e, "")).ok());
        let source_at = at.key("source", &raw.source);
        let source = match raw.source.value() {
            Some(SourceOrText::Source(source)) => self.source(&source_at, source),
            Some(SourceOrText::Text(text)) => {
                self.inline_secret(&source_at, text);
                None
            }
            None => {
                self.fail(&source_at, "is missing", SOURCES);
                None
            }
        };
        let inject_at = at.key("inject", &raw.inject);
        let inject = raw.inject.value().map(|inject| self.injections(&inject_at, &inject.0));
        if inject.as_ref().is_none_or(|(written, _)| *written == 0) {
            self.fail(&inject_at, "is missing or empty", "write `inject: {bearer: true}`");
        }
        Some(Settings { name: name?, source: source?, injections: inject?.1 })
    }

    /// A text where a reference belongs. It may be the secret itself, so no message shows more of it than its scheme.
    fn inline_secret(&mut self, at: &Spot, text: &str) {
        match text.split_once(':') {
            Some((scheme @ ("file" | "env"), _)) => {
                let hint = format!("write `source: {{{scheme}: …}}`");
                self.fail(at, "is a text, and a reference has a key", hint);
            }
            _ => self.fail(at, "is a text, and a secret is never written in this file", SOURCES),
        }
    }

    fn source(&mut self, at: &Spot, raw: &RawSource) -> Option<SourceSettings> {
        let written = [raw.file.value().is_some(), raw.env.value().is_some(), raw.jwt.value().is_some()];
        if written.iter().filter(|w| **w).count() != 1 {
            self.fail(at, "names not exactly one source", SOURCES);
            return None;
        }
        if let Some(jwt) = raw.jwt.value() {
            return self.jwt(&at.key("jwt", &raw.jwt), jwt).map(SourceSettings::Mint);
        }
        if raw.file.value().is_some() {
            let file = self.path(at, "file", &raw.file)?;
            self.file_check(
                &at.key("file", &raw.file),
                files::secret(&file),
                "put the secret there, alone on one line",
            );
            return Some(SourceSettings::File(file));
        }
        let name = self.text(at, "env", &raw.env)?;
        let spot = at.key("env", &raw.env);
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            // Somebody may have written the secret itself here.
            self.fail(&spot, "is not the name of a variable", "write the name alone, such as `RABBIT_PASSWORD`");
            return None;
        }
        let hint = "set it before the start, for this process alone";
        let environment = self.environment;
        match environment(name) {
            None => self.fail(&spot, format_args!("the variable `{name}` is not set"), hint),
            Some(secret) if secret.is_empty() => self.fail(&spot, format_args!("the variable `{name}` is empty"), hint),
            Some(secret) if secret.chars().any(char::is_control) => {
                self.fail(
                    &spot,
                    format_args!("the variable `{name}` holds a control character"),
                    "set it without a line end",
                );
            }
            Some(secret) => {
                return Some(SourceSettings::Env { variable: name.to_owned(), secret: SecretString::from(secret) });
            }
        }
        None
    }

    fn jwt(&mut self, at: &Spot, raw: &RawJwt) -> Option<MintSettings> {
        let key = self.path_required(at, "key", &raw.key, "key.pem");
        if let Some(key) = &key {
            self.file_check(
                &at.key("key", &raw.key),
                files::private_key(key),
                "name a PEM file with one PKCS #8 private key",
            );
        }
        let algorithms = [("ES256", MintAlgorithm::Es256), ("EdDSA", MintAlgorithm::EdDsa)];
        let algorithm = self.choice_required(at, "algorithm", &raw.algorithm, &algorithms);
        let key_id = self.text(at, "key_id", &raw.key_id).map(str::to_owned);
        let issuer = self.required(at, "issuer", &raw.issuer, "https://leasehold.example");
        let audience = self.required(at, "audience", &raw.audience, "rabbitmq");
        let lifetime = self.duration(at, "lifetime", &raw.lifetime, "5m", "1s", "1h");
        let list = at.key("claims", &raw.claims);
        let mut claims = BTreeMap::new();
        for (name, item) in raw.claims.value().into_iter().flatten() {
            const OURS: [&str; 9] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "act", "grant"];
            if OURS.contains(&name.as_str()) {
                self.fail(&list.key(name, item), "is set for each grant", "remove it");
            } else if let Some(text) = self.text(&list, name, item) {
                claims.insert(name.clone(), text.to_owned());
            }
        }
        let (issuer, audience) = (issuer?.to_owned(), audience?.to_owned());
        Some(MintSettings { key: key?, algorithm: algorithm?, key_id, issuer, audience, lifetime, claims })
    }

    /// How many are written, and those that are good.
    fn injections(&mut self, at: &Spot, list: &List<RawInject>) -> (usize, Vec<Injection>) {
        let mut found: Vec<Injection> = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let spot = if list.len() == 1 && item.place().is_none() { at.clone() } else { at.item(index, item) };
            let Some(injection) = item.value().and_then(|raw| self.injection(&spot, raw)) else { continue };
            if found.iter().any(|other| same_place(other, &injection)) {
                self.fail(&spot, "writes to a place that is written already", "keep one of them");
            }
            found.push(injection);
        }
        (list.len(), found)
    }

    fn injection(&mut self, at: &Spot, raw: &RawInject) -> Option<Injection> {
        const HINT: &str =
            "write `{bearer: true}`, `{basic: {username: …}}`, `{header: {name: …, value: …}}` or `{query: {name: …}}`";
        let written = [
            raw.bearer.value().is_some(),
            raw.basic.value().is_some(),
            raw.header.value().is_some(),
            raw.query.value().is_some(),
        ];
        if written.iter().filter(|w| **w).count() != 1 {
            self.fail(at, "names not exactly one place", HINT);
            return None;
        }
        if let Some(flag) = raw.bearer.value() {
            if !flag.0 {
                self.fail(&at.key("bearer", &raw.bearer), "is off, so the secret would go nowhere", HINT);
            }
            return Some(Injection::Bearer);
        }
        if let Some(basic) = raw.basic.value() {
            let basic_at = at.key("basic", &raw.basic);
            let username = self.required(&basic_at, "username", &basic.username, "admin")?;
            if username.contains(':') {
                let spot = basic_at.key("username", &basic.username);
                self.fail(
                    &spot,
                    "has a `:`, which ends a user's name in HTTP Basic",
                    "write the name alone; the secret is the password",
                );
            }
            return Some(Injection::Basic { username: username.to_owned() });
        }
        if let Some(header) = raw.header.value() {
            return self.header(&at.key("header", &raw.header), header);
        }
        let query = raw.query.value()?;
        let query_at = at.key("query", &raw.query);
        let name = self.required(&query_at, "name", &query.name, "token")?;
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'~')) {
            let spot = query_at.key("name", &query.name);
            self.fail(
                &spot,
                format_args!("`{name}` is not a parameter name"),
                "use letters, digits, `.`, `_`, `-` and `~`",
            );
        }
        Some(Injection::Query { name: name.to_owned() })
    }

    fn header(&mut self, at: &Spot, raw: &RawHeader) -> Option<Injection> {
        let name = self.header_name(at, &raw.name);
        let text = self.required(at, "value", &raw.value, "\"{secret}\"")?;
        let spot = at.key("value", &raw.value);
        let hint = "write the text of the field with `{secret}` where the secret goes, once";
        let Some((prefix, suffix)) = text.split_once(PLACEHOLDER) else {
            self.fail(&spot, "has no `{secret}`, so the secret would go nowhere", hint);
            return None;
        };
        if prefix.contains(['{', '}']) || suffix.contains(['{', '}']) {
            self.fail(&spot, "has another brace than those of one `{secret}`", hint);
            return None;
        }
        let visible = |part: &str| part.bytes().all(|b| (0x20..0x7f).contains(&b));
        if HeaderValue::from_str(text).is_err() || !visible(prefix) || !visible(suffix) {
            self.fail(&spot, "has a character that a header field cannot have", hint);
            return None;
        }
        Some(Injection::Header { name: name?, prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }

    fn header_name(&mut self, at: &Spot, field: &Field<Text>) -> Option<HeaderName> {
        let text = self.required(at, "name", field, "X-Api-Key")?;
        let spot = at.key("name", field);
        let Ok(name) = text.parse::<HeaderName>() else {
            self.fail(&spot, format_args!("`{text}` is not a field name"), "use letters, digits and `-`");
            return None;
        };
        if is_structural(&name) || name.as_str().starts_with("x-leasehold-") {
            self.fail(&spot, format_args!("`{text}` is a field that this program sets itself"), "name another");
            return None;
        }
        Some(name)
    }
}

/// Fields that say how a message is framed, routed or kept, and never carry a credential.
pub(super) fn is_structural(name: &HeaderName) -> bool {
    const STRUCTURAL: [HeaderName; 12] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::CONNECTION,
        header::UPGRADE,
        header::EXPECT,
        header::PROXY_AUTHENTICATE,
        header::SET_COOKIE,
    ];
    STRUCTURAL.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Whether two injections write to the same place of a call.
fn same_place(one: &Injection, other: &Injection) -> bool {
    let field = |injection: &Injection| match injection {
        Injection::Bearer | Injection::Basic { .. } => Some(header::AUTHORIZATION),
        Injection::Header { name, .. } => Some(name.clone()),
        Injection::Query { .. } => None,
    };
    match (one, other) {
        (Injection::Query { name }, Injection::Query { name: other }) => name == other,
        _ => field(one).is_some() && field(one) == field(other),
    }
}
