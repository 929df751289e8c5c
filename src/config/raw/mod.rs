//! The file's shape, exactly as written: every key, where its value stands, and nothing resolved.
//!
//! Every key is optional here, so that the second stage can say what is missing, where and why, for the whole file at
//! once. An unknown key, a key twice, a key with nothing after it and a value of another type stop the reading.

mod value;

use serde::Deserialize;

pub(super) use value::{Count, Field, Flag, List, Named, OneOrMany, Scalar, Shape, SourceOrText, Text};

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
