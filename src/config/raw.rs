//! The file's shape, exactly as written: every key, where its value stands, and nothing resolved.
//!
//! Every key is optional here, so that the second stage can say what is missing, where and why, for the whole file at
//! once. An unknown key, a key twice, a key with nothing after it and a value of another type stop the reading.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// What a key holds and where. Unlike an `Option`, it refuses a key with nothing after it: `tls:` alone must not mean
/// "no TLS".
#[derive(Debug)]
pub(super) struct Field<T>(pub(super) Option<Spanned<T>>);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

impl<T> Field<T> {
    /// The value, if the key is there.
    pub(super) fn value(&self) -> Option<&T> {
        self.0.as_ref().map(|s| &s.value)
    }

    /// Line and column of the value as it is used.
    pub(super) fn place(&self) -> Option<(u32, u32)> {
        let location = self.0.as_ref()?.referenced;
        let (line, column) = (u32::try_from(location.line()).ok()?, u32::try_from(location.column()).ok()?);
        (line > 0).then_some((line, column))
    }
}

/// Which keys a type brings to the file.
pub(super) trait Shape {
    /// Appends the keys below `prefix`, such as `listeners[].tls.key`.
    fn keys(_prefix: &str, _out: &mut Vec<String>) {}
}

/// A text, a duration, a size, a choice: the second stage reads it.
pub(super) type Text = String;
impl Shape for Text {}

/// `true` or `false`, and not the text `"false"`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag(pub(super) bool);
impl Shape for Flag {}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagVisitor;
        impl Visitor<'_> for FlagVisitor {
            type Value = Flag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true` or `false` without quotes")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }
        }
        deserializer.deserialize_any(FlagVisitor)
    }
}

/// A whole number from zero up, and not a text of digits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count(pub(super) u64);
impl Shape for Count {}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;
        impl Visitor<'_> for CountVisitor {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0 up, without quotes")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Count, E> {
                Ok(Count(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Count, E> {
                u64::try_from(value)
                    .map(Count)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &"a whole number from 0 up"))
            }
        }
        deserializer.deserialize_any(CountVisitor)
    }
}

/// A text, a whole number or a boolean, kept as what it is.
#[derive(Debug, Clone)]
pub(super) struct Scalar(pub(super) serde_json::Value);
impl Shape for Scalar {}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a whole number, `true` or `false`")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// A list.
pub(super) type List<T> = Vec<Field<T>>;
impl<T: Shape> Shape for List<T> {
    fn keys(prefix: &str, out: &mut Vec<String>) {
        T::keys(&format!("{prefix}[]"), out);
    }
}

/// Names of the writer's choice.
pub(super) type Named<T> = BTreeMap<String, Field<T>>;
impl<T> Shape for Named<T> {}

/// One, or a list of several.
#[derive(Debug)]
pub(super) struct OneOrMany<T>(pub(super) List<T>);
impl<T: Shape> Shape for OneOrMany<T> {
    fn keys(prefix: &str, out: &mut Vec<String>) {
        T::keys(prefix, out);
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping, or a list of mappings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(seq)).map(OneOrMany)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = T::deserialize(MapAccessDeserializer::new(map))?;
                let unknown = serde_saphyr::Location::UNKNOWN;
                Ok(OneOrMany(vec![Field(Some(Spanned::new(one, unknown, unknown)))]))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// Where a secret comes from; the text form exists only to be refused with what to write instead.
#[derive(Debug)]
pub(super) enum SourceOrText {
    /// `source: {file: …}`
    Source(Box<Source>),
    /// `source: hunter2`, or `source: env:NAME`. The text is kept for its scheme alone and is never shown.
    Text(Text),
}

impl Shape for SourceOrText {
    fn keys(prefix: &str, out: &mut Vec<String>) {
        Source::keys(prefix, out);
    }
}

impl<'de> Deserialize<'de> for SourceOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SourceOrText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a source such as `{file: /run/secrets/name}`")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(text.to_owned()))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Source::deserialize(MapAccessDeserializer::new(map)).map(Box::new).map(SourceOrText::Source)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $key: Field<$type>,)*
        }

        impl Shape for $name {
            fn keys(prefix: &str, out: &mut Vec<String>) {
                $(
                    let path = if prefix.is_empty() {
                        stringify!($key).to_owned()
                    } else {
                        format!("{prefix}.{}", stringify!($key))
                    };
                    out.push(path.clone());
                    <$type as Shape>::keys(&path, out);
                )*
            }
        }
    )*};
}

sections! {
    /// The whole file.
    File {
        listeners: List<Listener>,
        identity: Identity,
        backends: List<Backend>,
        credentials: List<Credential>,
        grants: Grants,
        audit: Audit,
        access_log: Text,
        admin: Admin,
        workers: Count,
        drain_timeout: Text,
        control: Control,
        relay: Relay,
    }

    /// Between control planes and very many sidecars.
    Relay {
        upstream: GrantsControl,
        staleness_max: Text,
        address: Text,
        trust_domain: Text,
        tls: RelayTls,
        backends: List<Text>,
        sidecars: List<Text>,
    }

    /// TLS towards those who follow a relay.
    RelayTls {
        certificate: Text,
        key: Text,
        client_ca: Text,
    }

    /// The control plane.
    Control {
        address: Text,
        tls: Tls,
        danger_plain_control: Flag,
        data: Text,
        store: Text,
        store_password: Password,
        documents: List<Text>,
        calls_per_second: Count,
        login: Login,
        sync: Sync,
    }

    /// Where sidecars follow the control plane.
    Sync {
        address: Text,
        trust_domain: Text,
        tls: SyncTls,
        authority: Text,
        names: List<Text>,
    }

    /// TLS towards sidecars.
    SyncTls {
        certificate: Text,
        key: Text,
        client_ca: Text,
        client_crl: List<Text>,
    }

    /// Where a password, or a token, is.
    Password {
        file: Text,
        env: Text,
    }

    /// Where people log in.
    Login {
        issuer: Text,
        client_id: Text,
        scopes: List<Text>,
    }

    /// Where callers connect.
    Listener {
        name: Text,
        address: Text,
        backends: List<Text>,
        tls: Tls,
        limits: Limits,
        danger_plain_listener: Flag,
    }

    /// TLS towards callers.
    Tls {
        certificate: Text,
        key: Text,
        client_ca: Text,
        client_certificate: Text,
        client_crl: List<Text>,
        min_version: Text,
    }

    /// What one listener bears.
    Limits {
        connections: Count,
        handshake_timeout: Text,
        head_timeout: Text,
        idle_timeout: Text,
        body_timeout: Text,
        body_rate_min: Text,
        head_bytes: Text,
        headers: Count,
        target_bytes: Text,
        streams: Count,
        body_bytes: Text,
        arguments_bytes: Text,
    }

    /// Whose proofs are accepted.
    Identity {
        token_cache: Count,
        spiffe: List<TrustDomain>,
        issuers: List<Issuer>,
    }

    /// A SPIFFE trust domain and its own authorities.
    TrustDomain {
        trust_domain: Text,
        bundle: Text,
    }

    /// A token issuer.
    Issuer {
        name: Text,
        issuer: Text,
        audience: List<Text>,
        algorithm: Text,
        keys: Keys,
        preset: Text,
        typ: Text,
        leeway: Text,
        lifetime_max: Text,
        attributes: Named<Text>,
        task: Text,
        required_claims: Named<Scalar>,
        single_use: Flag,
    }

    /// Where an issuer's keys come from.
    Keys {
        file: Text,
        url: Text,
        ca: Text,
        refresh: Text,
        refresh_min: Text,
        stale_max: Text,
        bytes_max: Text,
    }

    /// A protected API.
    Backend {
        name: Text,
        upstream: Text,
        upstream_tls: UpstreamTls,
        hosts: List<Text>,
        action_map: Text,
        mode: Text,
        on_stale: Text,
        credential: Text,
        baseline: List<Baseline>,
        canonical: Canonical,
        response: Response,
        timeouts: Timeouts,
        pool: Pool,
        danger_plain_upstream: Flag,
    }

    /// TLS towards the backend.
    UpstreamTls {
        ca: Text,
        server_name: Text,
        client_certificate: Text,
        client_key: Text,
    }

    /// What needs no elevation.
    Baseline {
        principals: List<Text>,
        actions: List<Text>,
        resources: List<Text>,
        credential: Text,
    }

    /// The relaxations of the one canonical reading.
    Canonical {
        encoded_slash: Text,
        path_params: Text,
        method_override: Text,
    }

    /// What happens to the backend's answer.
    Response {
        set_cookie: Text,
        leak_guard: Text,
        trailers: List<Text>,
    }

    /// How long to wait for the backend.
    Timeouts {
        connect: Text,
        first_byte: Text,
        idle_upstream: Text,
    }

    /// Kept connections.
    Pool {
        idle_per_worker: Count,
    }

    /// What makes a backend accept a call.
    Credential {
        name: Text,
        source: SourceOrText,
        inject: OneOrMany<Inject>,
    }

    /// Where a secret comes from: one of these.
    Source {
        file: Text,
        env: Text,
        jwt: Jwt,
    }

    /// A token minted for each grant.
    Jwt {
        key: Text,
        algorithm: Text,
        key_id: Text,
        issuer: Text,
        audience: Text,
        lifetime: Text,
        claims: Named<Text>,
    }

    /// Where in the call the secret goes: one of these.
    Inject {
        bearer: Flag,
        basic: Basic,
        header: Header,
        query: Query,
    }

    /// HTTP Basic; the secret is the password.
    Basic {
        username: Text,
    }

    /// A header of any name.
    Header {
        name: Text,
        value: Text,
    }

    /// A query parameter.
    Query {
        name: Text,
    }

    /// Where the grants come from.
    Grants {
        file: Text,
        poll: Text,
        control: GrantsControl,
        staleness_max: Text,
        danger_staleness_max: Flag,
    }

    /// Control planes, or relays, that say what the grants are.
    GrantsControl {
        addresses: List<Text>,
        tls: SourceTls,
        join: Join,
        first_view: Text,
    }

    /// TLS towards whoever says what the grants are.
    SourceTls {
        certificate: Text,
        key: Text,
        ca: Text,
    }

    /// Joining by a token.
    Join {
        token: Password,
        folder: Text,
    }

    /// The durable record.
    Audit {
        directory: Text,
        segment_bytes: Text,
        bytes_max: Text,
        intent: Text,
    }

    /// The listener for operators.
    Admin {
        address: Text,
        danger_admin_address: Flag,
    }
}
