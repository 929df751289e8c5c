//! From the configuration to what identities are verified by.

use anyhow::anyhow;

use crate::config::{self, Identity};
use crate::identity::{
    IssuerSettings, KeySource, Preset, Settings, TaskTemplate, TokenAlgorithm, TrustDomain, UrlKeys,
};

/// How many failed signatures a second are looked at.
const FAILURES_PER_SECOND_MAX: u32 = 2_000;

pub(super) fn settings(identity: &Identity) -> anyhow::Result<Settings> {
    let spiffe = identity.spiffe.iter();
    let issuers = identity.issuers.iter().map(issuer).collect::<anyhow::Result<_>>()?;
    Ok(Settings {
        spiffe: spiffe.map(|d| TrustDomain { name: d.trust_domain.clone(), bundle: d.bundle.clone() }).collect(),
        issuers,
        token_cache_entries: identity.token_cache,
        failures_per_second_max: FAILURES_PER_SECOND_MAX,
    })
}

fn issuer(given: &config::Issuer) -> anyhow::Result<IssuerSettings> {
    let task = given.task.as_deref().map(TaskTemplate::parse).transpose();
    Ok(IssuerSettings {
        name: given.name.clone(),
        issuer: given.issuer.clone(),
        audience: given.audience.clone(),
        algorithm: algorithm(given.algorithm),
        keys: match &given.keys {
            config::KeySource::File(path) => KeySource::File(path.clone()),
            config::KeySource::Url(url) => KeySource::Url(UrlKeys {
                url: url.url.clone(),
                ca: url.ca.clone(),
                refresh: url.refresh,
                refresh_min: url.refresh_min,
                stale_max: url.stale_max,
                bytes_max: url.bytes_max,
            }),
        },
        preset: match given.preset {
            config::IssuerPreset::None => Preset::None,
            config::IssuerPreset::Kubernetes => Preset::Kubernetes,
        },
        typ: given.typ.clone(),
        leeway: given.leeway,
        lifetime_max: given.lifetime_max,
        attributes: given.attributes.clone(),
        task: task.map_err(|error| anyhow!("issuer `{}`: {error}", given.name))?,
        required_claims: given.required_claims.clone(),
        single_use: given.single_use,
        own_client: None,
    })
}

fn algorithm(given: config::TokenAlgorithm) -> TokenAlgorithm {
    match given {
        config::TokenAlgorithm::RS256 => TokenAlgorithm::Rs256,
        config::TokenAlgorithm::RS384 => TokenAlgorithm::Rs384,
        config::TokenAlgorithm::RS512 => TokenAlgorithm::Rs512,
        config::TokenAlgorithm::PS256 => TokenAlgorithm::Ps256,
        config::TokenAlgorithm::PS384 => TokenAlgorithm::Ps384,
        config::TokenAlgorithm::PS512 => TokenAlgorithm::Ps512,
        config::TokenAlgorithm::ES256 => TokenAlgorithm::Es256,
        config::TokenAlgorithm::ES384 => TokenAlgorithm::Es384,
        config::TokenAlgorithm::EdDSA => TokenAlgorithm::EdDsa,
    }
}
