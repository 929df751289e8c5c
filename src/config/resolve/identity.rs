//! The section `identity`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::files::{self, Purpose};
use super::super::raw::{
    Field, Identity as RawIdentity, Issuer as RawIssuer, Keys as RawKeys, List, Named, Scalar, Text,
    TrustDomain as RawTrustDomain,
};
use super::{Resolver, Role, Spot, is_name};
use crate::domain::id::TaskRef;
use crate::domain::principal::Principal;
use crate::identity::{
    IssuerSettings, KeySource, Preset, Settings, TaskTemplate, TokenAlgorithm, TrustDomain, UrlKeys,
};

/// How many failed signatures a second are looked at from one source.
const FAILURES_PER_SECOND_MAX: u32 = 2_000;

const ALGORITHMS: [(&str, TokenAlgorithm); 9] = [
    ("ES256", TokenAlgorithm::Es256),
    ("ES384", TokenAlgorithm::Es384),
    ("EdDSA", TokenAlgorithm::EdDsa),
    ("PS256", TokenAlgorithm::Ps256),
    ("PS384", TokenAlgorithm::Ps384),
    ("PS512", TokenAlgorithm::Ps512),
    ("RS256", TokenAlgorithm::Rs256),
    ("RS384", TokenAlgorithm::Rs384),
    ("RS512", TokenAlgorithm::Rs512),
];

impl Resolver<'_> {
    pub(super) fn identity(&mut self, spot: &Spot, raw: Option<&RawIdentity>) -> Option<Settings> {
        let none = RawIdentity::default();
        let raw = raw.unwrap_or(&none);
        let token_cache_entries = self.count(spot, "token_cache", &raw.token_cache, 10_000, 1, 1_000_000) as usize;
        let spiffe = self.trust_domains(&spot.key("spiffe", &raw.spiffe), &raw.spiffe);
        let issuers = self.issuers(&spot.key("issuers", &raw.issuers), &raw.issuers);
        let empty = |list: Option<usize>| list.unwrap_or(0) == 0;
        // The local admin's token is enough to begin with at a control plane.
        if self.role != Role::Control
            && empty(raw.spiffe.value().map(Vec::len))
            && empty(raw.issuers.value().map(Vec::len))
        {
            self.fail(spot, "names nobody whose proofs are accepted", "add an entry to `spiffe` or to `issuers`");
            return None;
        }
        let failures_per_second_max = FAILURES_PER_SECOND_MAX;
        Some(Settings { spiffe, issuers, token_cache_entries, failures_per_second_max })
    }

    fn trust_domains(&mut self, spot: &Spot, field: &Field<List<RawTrustDomain>>) -> Vec<TrustDomain> {
        let mut found: Vec<TrustDomain> = Vec::new();
        for (index, item) in field.value().into_iter().flatten().enumerate() {
            let at = spot.item(index, item);
            let Some(raw) = item.value() else { continue };
            let name = self.required(&at, "trust_domain", &raw.trust_domain, "prod.example");
            let name_at = at.key("trust_domain", &raw.trust_domain);
            if let Some(name) = name {
                if Principal::spiffe(&format!("spiffe://{name}/x")).is_err() || name.contains('/') {
                    let hint = "write the name alone, such as `prod.example`, in lower case";
                    self.fail(&name_at, format_args!("`{name}` is not a trust domain"), hint);
                } else if found.iter().any(|other| other.name == name) {
                    self.fail(
                        &name_at,
                        format_args!("`{name}` is written twice"),
                        "put all its authorities in one bundle",
                    );
                }
            }
            let bundle = self.path_required(&at, "bundle", &raw.bundle, "ca.pem");
            if let Some(bundle) = &bundle {
                let result = files::certificates(bundle, Purpose::Authorities);
                self.file_check(
                    &at.key("bundle", &raw.bundle),
                    result,
                    "name a PEM file with the domain's authorities, each block whole",
                );
            }
            if let (Some(name), Some(bundle)) = (name, bundle) {
                found.push(TrustDomain { name: name.to_owned(), bundle });
            }
        }
        found
    }

    fn issuers(&mut self, spot: &Spot, field: &Field<List<RawIssuer>>) -> Vec<IssuerSettings> {
        let mut found: Vec<IssuerSettings> = Vec::new();
        for (index, item) in field.value().into_iter().flatten().enumerate() {
            let at = spot.item(index, item);
            let Some(issuer) = item.value().and_then(|raw| self.issuer(&at, raw)) else { continue };
            if found.iter().any(|other| other.name == issuer.name) {
                self.fail(&at, format_args!("the name `{}` is taken", issuer.name), "give each issuer its own");
            }
            if found.iter().any(|other| other.issuer == issuer.issuer) {
                let message = format!("the issuer `{}` is written twice", issuer.issuer);
                self.fail(&at, message, "keep one; its `audience` may list several");
            }
            found.push(issuer);
        }
        found
    }

    fn issuer(&mut self, at: &Spot, raw: &RawIssuer) -> Option<IssuerSettings> {
        let name = self.required(at, "name", &raw.name, "idp");
        if let Some(name) = name.filter(|name| !is_name(name)) {
            let spot = at.key("name", &raw.name);
            self.fail(&spot, format_args!("`{name}` is not a name"), "use up to 128 letters, digits, `.`, `_` and `-`");
        }
        let issuer = self.required(at, "issuer", &raw.issuer, "https://idp.example");
        if let Some(text) = issuer.filter(|text| text.contains(['*', ' ']) || Principal::token(text, "x").is_err()) {
            let hint = "write the exact text of the `iss` claim";
            self.fail(&at.key("issuer", &raw.issuer), format_args!("`{text}` is not an issuer"), hint);
        }
        let audience = self.texts_required(at, "audience", &raw.audience, "leasehold://db-admin");
        for (spot, text) in &audience {
            if text.contains('*') {
                self.fail(spot, format_args!("`{text}` is a pattern"), "write the exact text of the `aud` claim");
            }
        }
        let algorithm = self.algorithm(at, &raw.algorithm);
        let keys_at = at.key("keys", &raw.keys);
        let keys = match raw.keys.value() {
            Some(keys) => self.keys(&keys_at, keys),
            None => {
                self.fail(
                    &keys_at,
                    "is missing",
                    "write `keys: {file: jwks.json}` or `keys: {url: https://idp.example/jwks, ca: ca.pem}`",
                );
                None
            }
        };
        let presets = [("none", Preset::None), ("kubernetes", Preset::Kubernetes)];
        let preset = self.choice(at, "preset", &raw.preset, &presets);
        let typ = self.text(at, "typ", &raw.typ).map(str::to_owned);
        let leeway = self.duration(at, "leeway", &raw.leeway, "30s", "0s", "5m");
        let lifetime_max = self.duration(at, "lifetime_max", &raw.lifetime_max, "24h", "1s", "8760h");
        let attributes = self.attributes(at, &raw.attributes);
        let task = self.task(at, &raw.task);
        let required_claims = self.required_claims(at, &raw.required_claims);
        let single_use = self.flag(&raw.single_use);
        Some(IssuerSettings {
            name: name?.to_owned(),
            issuer: issuer?.to_owned(),
            audience: audience.into_iter().map(|(_, text)| text.to_owned()).collect(),
            algorithm: algorithm?,
            keys: keys?,
            preset,
            typ,
            leeway,
            lifetime_max,
            attributes,
            task,
            required_claims,
            single_use,
            own_client: None,
        })
    }

    fn algorithm(&mut self, at: &Spot, field: &Field<Text>) -> Option<TokenAlgorithm> {
        if let Some(text) = field.value()
            && (text.starts_with("HS") || text.eq_ignore_ascii_case("none"))
        {
            let hint = "write the asymmetric algorithm that the issuer signs with, such as `ES256`";
            self.fail(
                &at.key("algorithm", field),
                format_args!("`{text}` lets anybody who can verify a token make one"),
                hint,
            );
            return None;
        }
        self.choice_required(at, "algorithm", field, &ALGORITHMS)
    }

    fn keys(&mut self, at: &Spot, raw: &RawKeys) -> Option<KeySource> {
        let refresh = self.duration(at, "refresh", &raw.refresh, "5m", "1s", "24h");
        let refresh_min = self.duration(at, "refresh_min", &raw.refresh_min, "10s", "100ms", "1h");
        let stale_max = self.duration(at, "stale_max", &raw.stale_max, "1h", "1s", "168h");
        let bytes_max = self.memory(at, "bytes_max", &raw.bytes_max, 1 << 20, 256, 16 << 20);
        let ca = self.path(at, "ca", &raw.ca);
        match (raw.file.value(), raw.url.value()) {
            (Some(_), None) => {
                for (name, written) in [
                    ("ca", raw.ca.place()),
                    ("refresh", raw.refresh.place()),
                    ("refresh_min", raw.refresh_min.place()),
                    ("stale_max", raw.stale_max.place()),
                    ("bytes_max", raw.bytes_max.place()),
                ] {
                    if written.is_some() {
                        let spot = Spot { path: format!("{}.{name}", at.path), place: written };
                        self.fail(&spot, "is about a `url`, and the keys come from a file", "remove it");
                    }
                }
                let file = self.path(at, "file", &raw.file)?;
                self.file_check(
                    &at.key("file", &raw.file),
                    files::key_set(&file),
                    "name a JWKS file with the issuer's public keys",
                );
                Some(KeySource::File(file))
            }
            (None, Some(_)) => {
                if refresh_min > refresh {
                    self.fail(
                        &at.key("refresh_min", &raw.refresh_min),
                        "is longer than `refresh`",
                        "lower it, or raise `refresh`",
                    );
                }
                if stale_max < refresh {
                    self.fail(
                        &at.key("stale_max", &raw.stale_max),
                        "is shorter than `refresh`",
                        "raise it, or lower `refresh`",
                    );
                }
                let url = self.key_url(at, &raw.url, ca.is_some());
                if let Some(ca) = &ca {
                    let result = files::certificates(ca, Purpose::Anchors);
                    self.file_check(
                        &at.key("ca", &raw.ca),
                        result,
                        "name a PEM file with the authorities of the issuer's server",
                    );
                }
                Some(KeySource::Url(UrlKeys { url: url?, ca, refresh, refresh_min, stale_max, bytes_max }))
            }
            (Some(_), Some(_)) => {
                self.fail(at, "names both a file and a URL", "keep one of them");
                None
            }
            (None, None) => {
                self.fail(
                    at,
                    "names no source",
                    "write `{file: jwks.json}` or `{url: https://idp.example/jwks, ca: ca.pem}`",
                );
                None
            }
        }
    }

    fn key_url(&mut self, at: &Spot, field: &Field<Text>, has_ca: bool) -> Option<http::Uri> {
        let text = self.text(at, "url", field)?;
        let spot = at.key("url", field);
        let parsed: Option<http::Uri> = text.parse().ok();
        let parsed = parsed.filter(|uri| {
            uri.authority().is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty()) && !text.contains('#')
        });
        let Some(uri) = parsed else {
            self.fail(&spot, "is not a URL", "write `https://host/path`, without a user or a fragment");
            return None;
        };
        match uri.scheme_str() {
            Some("https") if !has_ca => {
                self.fail(&spot, "names nobody to sign the server's certificate", "add `ca: ca.pem` beside it");
                None
            }
            Some("https") => Some(uri),
            Some("http") if super::backends::is_loopback(uri.host().unwrap_or_default()) => Some(uri),
            _ => {
                self.fail(&spot, "would fetch keys in the clear", "write `https://` (`http://` is for loopback only)");
                None
            }
        }
    }

    fn attributes(&mut self, at: &Spot, field: &Field<Named<Text>>) -> BTreeMap<Arc<str>, String> {
        let list = at.key("attributes", field);
        let mut found = BTreeMap::new();
        for (name, item) in field.value().into_iter().flatten() {
            let spot = list.key(name, item);
            if !is_name(name) {
                self.fail(
                    &spot,
                    format_args!("`{}` is not a name", name.escape_debug()),
                    "use letters, digits, `.`, `_` and `-`",
                );
            }
            if let Some(pointer) = self.text(&list, name, item).and_then(|text| self.pointer(&spot, text)) {
                found.insert(Arc::from(name.as_str()), pointer);
            }
        }
        found
    }

    fn required_claims(&mut self, at: &Spot, field: &Field<Named<Scalar>>) -> BTreeMap<String, serde_json::Value> {
        let list = at.key("required_claims", field);
        let mut found = BTreeMap::new();
        for (name, item) in field.value().into_iter().flatten() {
            let spot = list.key(name, item);
            if let (Some(pointer), Some(value)) = (self.pointer(&spot, name), item.value()) {
                if let Some(text) = value.0.as_str()
                    && !self.check_text(&spot, text)
                {
                    continue;
                }
                found.insert(pointer, value.0.clone());
            }
        }
        found
    }

    /// A task template: literal text and `{/pointer}`, with a literal source in front.
    fn task(&mut self, at: &Spot, field: &Field<Text>) -> Option<TaskTemplate> {
        let text = self.text(at, "task", field)?;
        let spot = at.key("task", field);
        let hint = "write `source:` and pointers in braces, such as `github:{/repository}:run:{/run_id}`";
        let mut sample = String::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            let Some((pointer, after)) = after.split_once('}') else {
                self.fail(&spot, format_args!("`{text}` has a `{{` without its `}}`"), hint);
                return None;
            };
            self.pointer(&spot, pointer)?;
            sample.push_str(literal);
            sample.push('x');
            rest = after;
        }
        sample.push_str(rest);
        let source_is_literal = text.split_once(':').is_some_and(|(source, _)| !source.contains('{'));
        if sample.contains(['{', '}']) || !source_is_literal || TaskRef::new(&sample).is_err() {
            self.fail(&spot, format_args!("`{text}` does not make a task"), hint);
            return None;
        }
        TaskTemplate::parse(text).map_err(|error| self.fail(&spot, error, hint)).ok()
    }
}
