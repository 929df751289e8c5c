//! From the configuration to what calls are handled by.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use http::HeaderValue;
use rustls::pki_types::ServerName;

use crate::config::{self, ActionMapSource, Config};
use crate::domain::id::{BackendName, CredentialName};
use crate::domain::time::Clock;
use crate::identity::Verifier;
use crate::sidecar::accept::Limits;
use crate::sidecar::accept::tls::{Tls, certificates, private_key, roots};
use crate::sidecar::canonical;
use crate::sidecar::credential::Credentials;
use crate::sidecar::decide::{BackendRules, Baseline, CredentialSlot};
use crate::sidecar::forward::body::BodyLimits;
use crate::sidecar::forward::connect::{Endpoint, Protocol, Target};
use crate::sidecar::forward::response::ResponseRules;
use crate::sidecar::forward::upstream::Upstream;
use crate::sidecar::plane::{Backend, Offer, Plane};
use crate::sidecar::resolve::ActionMap;

/// What of a backend is the same on every listener.
struct Common {
    rules: Arc<BackendRules>,
    actions: Option<Arc<ActionMap>>,
    upstream: Arc<Upstream>,
    response: ResponseRules,
}

/// Builds everything that calls are handled by. `addresses` are what the listeners are really bound to, in the order of
/// the configuration; a Unix socket has none.
pub(super) async fn plane(
    config: &Config,
    addresses: &[Option<SocketAddr>],
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Plane> {
    let verifier = Verifier::new(config.identity.clone(), Arc::clone(&clock)).await?;
    let credentials = Credentials::open(config.credentials.clone(), clock)?;
    let common: Vec<Common> = config.backends.iter().map(|b| common(config, b)).collect::<anyhow::Result<_>>()?;
    let mut offers = Vec::new();
    for (listener, address) in config.listeners.iter().zip(addresses) {
        let mut backends = Vec::new();
        for name in &listener.backends {
            let index = config
                .backends
                .iter()
                .position(|b| b.name == *name)
                .ok_or_else(|| anyhow!("listener `{}` names no backend `{name}`", listener.name))?;
            backends.push(Arc::new(backend(index, &config.backends[index], &common[index], listener, *address)?));
        }
        let tls = listener.tls.clone().map(Tls::open).transpose()?;
        offers.push(Arc::new(Offer {
            name: listener.name.as_str().into(),
            limits: limits(&listener.limits),
            tls: tls.map(Arc::new),
            backends,
        }));
    }
    Ok(Plane { verifier: Arc::new(verifier), credentials: Arc::new(credentials), offers })
}

/// The names of all backends, in the order of the configuration.
pub(super) fn names(config: &Config) -> Vec<BackendName> {
    config.backends.iter().map(|backend| backend.name.clone()).collect()
}

/// The backends whose action maps the control plane says.
pub(super) fn mapped_by_control(config: &Config) -> impl Iterator<Item = BackendName> {
    let backends = config.backends.iter().filter(|backend| backend.action_map == ActionMapSource::Control);
    backends.map(|backend| backend.name.clone())
}

/// What the calls of a backend do; none where the control plane says it.
pub(super) fn action_map(backend: &config::Backend) -> anyhow::Result<Option<ActionMap>> {
    let ActionMapSource::Written { origin, text } = &backend.action_map else { return Ok(None) };
    ActionMap::from_yaml(text).map(Some).map_err(|errors| anyhow!("action map {origin}: {errors}"))
}

fn backend(
    index: usize,
    backend: &config::Backend,
    common: &Common,
    listener: &config::Listener,
    address: Option<SocketAddr>,
) -> anyhow::Result<Backend> {
    let limits = &listener.limits;
    let canonical = canonical::Rules::new(
        backend.canonical,
        limits.target_bytes,
        canonical::Hosts::new(&backend.hosts, address)
            .map_err(|error| anyhow!("backend `{}`: {error}", backend.name))?,
    );
    Ok(Backend {
        index,
        rules: Arc::clone(&common.rules),
        canonical,
        actions: common.actions.clone(),
        upstream: Arc::clone(&common.upstream),
        response: common.response.clone(),
        body: BodyLimits {
            bytes_max: limits.body_bytes,
            arguments_max: limits.arguments_bytes.min(usize::try_from(limits.body_bytes).unwrap_or(usize::MAX)),
            pause_max: limits.body_timeout,
            rate_min: limits.body_rate_min,
            answer_within: backend.timeouts.first_byte,
        },
    })
}

fn common(config: &Config, backend: &config::Backend) -> anyhow::Result<Common> {
    let place = |name: &CredentialName| -> anyhow::Result<CredentialSlot> {
        let found = config.credentials.iter().position(|c| c.name == *name);
        Ok(CredentialSlot(found.ok_or_else(|| anyhow!("backend `{}` names no credential `{name}`", backend.name))?))
    };
    let mut baselines = Vec::new();
    for baseline in &backend.baseline {
        baselines.push(Baseline {
            principals: baseline.principals.iter().cloned().collect::<HashSet<_>>(),
            scope: baseline.scope.clone(),
            credential: baseline.credential.as_ref().map(place).transpose()?,
        });
    }
    let rules = BackendRules {
        name: backend.name.clone(),
        mode: backend.mode,
        baselines,
        credential: backend.credential.as_ref().map(place).transpose()?,
        serve_stale: backend.on_stale == config::OnStale::ServeUntilExpiry,
    };
    let actions = action_map(backend)?;
    Ok(Common {
        rules: Arc::new(rules),
        actions: actions.map(Arc::new),
        upstream: Arc::new(Upstream::new(target(backend)?, backend.timeouts)),
        response: backend.response.clone(),
    })
}

fn target(backend: &config::Backend) -> anyhow::Result<Target> {
    let upstream = &backend.upstream;
    let protocol = if upstream.http2 { Protocol::Http2 } else { Protocol::Http1 };
    let tls = upstream.tls.as_ref().map(|tls| client_tls(tls, protocol)).transpose()?;
    let (endpoint, authority) = match &upstream.address {
        config::UpstreamAddress::Unix(path) => (Endpoint::Unix(path.clone()), "localhost".to_owned()),
        config::UpstreamAddress::Tcp { host, port } => {
            let name = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let default = if tls.is_some() { 443 } else { 80 };
            let authority = if *port == default { name } else { format!("{name}:{port}") };
            (Endpoint::Tcp { host: host.clone(), port: *port }, authority)
        }
    };
    let authority = HeaderValue::from_str(&authority).context("the backend's name cannot stand in a header")?;
    Ok(Target { endpoint, protocol, tls, authority })
}

fn client_tls(
    tls: &config::UpstreamTls,
    protocol: Protocol,
) -> anyhow::Result<(Arc<rustls::ClientConfig>, ServerName<'static>)> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::new(roots(&tls.ca)?));
    let mut client = match (&tls.client_certificate, &tls.client_key) {
        (Some(certificate), Some(key)) => {
            builder.with_client_auth_cert(certificates(certificate)?, private_key(key)?)?
        }
        _ => builder.with_no_client_auth(),
    };
    client.alpn_protocols = match protocol {
        Protocol::Http1 => vec![b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"h2".to_vec()],
    };
    let name = ServerName::try_from(tls.server_name.clone())
        .with_context(|| format!("`{}` is no server name", tls.server_name))?;
    Ok((Arc::new(client), name))
}

fn limits(limits: &config::Limits) -> Limits {
    Limits {
        connections: limits.connections,
        handshake: limits.handshake_timeout,
        head: limits.head_timeout,
        idle: limits.idle_timeout,
        head_bytes: limits.head_bytes,
        headers: limits.headers,
        streams: limits.streams,
    }
}
