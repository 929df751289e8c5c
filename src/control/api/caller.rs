//! Who calls the API: the same proofs as at a sidecar, or the token that the first start wrote.

use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::FromRequestParts;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use rustls::pki_types::CertificateDer;

use super::Api;
use super::problem::Problem;
use crate::control::catalogue::{Catalogue, Known, LOCAL_ADMIN};
use crate::control::command::Command;
use crate::control::document::PrincipalKind;
use crate::domain::id::TaskRef;
use crate::domain::principal::Principal;
use crate::identity::{IdentityError, Verified};

/// Where a call comes from; the listener puts it beside each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The host, without its port.
    pub host: Arc<str>,
    /// What it showed in the TLS handshake, leaf first.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// The token of the local admin. Only its digest is kept.
#[derive(Debug, Clone, Copy)]
pub struct LocalToken([u8; 32]);

impl LocalToken {
    /// From the token itself.
    pub fn new(token: &str) -> Self {
        Self(sha256(token.as_bytes()))
    }

    fn is(self, token: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, &sha256(token)).is_ok()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// How many calls a second each principal may make.
#[derive(Debug)]
pub(super) struct Limits {
    by_principal: DefaultKeyedRateLimiter<Principal>,
}

/// From so many principals on those that called long ago are forgotten.
const REMEMBERED_MAX: usize = 10_000;

impl Limits {
    pub(super) fn new(calls_per_second: NonZeroU32) -> Self {
        Self { by_principal: RateLimiter::keyed(Quota::per_second(calls_per_second)) }
    }

    fn take(&self, principal: &Principal) -> Result<(), Problem> {
        if self.by_principal.len() > REMEMBERED_MAX {
            self.by_principal.retain_recent();
        }
        self.by_principal.check_key(principal).map_err(|_| {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_calls", "you call too often: wait a second")
        })
    }
}

/// Somebody who proved who they are.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Who.
    pub(super) principal: Principal,
    /// The task that the proof itself names.
    pub(super) task: Option<TaskRef>,
    /// What is declared of them; nothing of a stranger.
    pub(super) known: Option<Known>,
    /// The documents in force when they called.
    pub(super) catalogue: Arc<Catalogue>,
}

impl Caller {
    /// What is declared of them.
    ///
    /// # Errors
    /// Strangers and the disabled get nothing.
    pub(super) fn known(&self) -> Result<&Known, Problem> {
        self.known.as_ref().filter(|known| !known.disabled).ok_or_else(|| {
            let detail = format!("`{}` is no Principal here, or a disabled one: ask an admin", self.principal);
            Problem::new(StatusCode::FORBIDDEN, "unknown_principal", detail)
        })
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let proof = prove(parts, api).await?;
        let principal = proof.principal;
        api.limits.take(&principal)?;
        let catalogue = api.engine.catalogue();
        let known = catalogue.know(&principal);
        let person = known.as_ref().is_some_and(|known| known.kind == PrincipalKind::User && !known.disabled);
        if proof.is_new && person {
            // A person's first call with a new token is their login.
            api.engine.run(principal.clone(), Command::LogIn { by: proof.by }).await?;
        }
        Ok(Self { principal, task: proof.task, known, catalogue })
    }
}

struct Proof {
    principal: Principal,
    task: Option<TaskRef>,
    by: &'static str,
    is_new: bool,
}

impl Proof {
    fn of(verified: &Verified, is_new: bool) -> Self {
        Self {
            principal: verified.principal().clone(),
            task: verified.task().cloned(),
            by: verified.method().as_str(),
            is_new,
        }
    }
}

async fn prove(parts: &Parts, api: &Api) -> Result<Proof, Problem> {
    let mut fields = parts.headers.get_all(header::AUTHORIZATION).iter();
    let peer = parts.extensions.get::<Peer>();
    let now = api.clock.now();
    match (fields.next(), fields.next()) {
        (Some(field), None) => {
            let token = bearer(field).ok_or_else(Problem::unauthenticated)?;
            if api.local.is_some_and(|local| local.is(token.as_bytes())) {
                let principal = Principal::parse(LOCAL_ADMIN).map_err(|_| Problem::unauthenticated())?;
                let is_new = !api.local_was_used.swap(true, std::sync::atomic::Ordering::Relaxed);
                return Ok(Proof { principal, task: None, by: "local_token", is_new });
            }
            if let Some(verified) = api.verifier.remembered(token.as_bytes(), now) {
                return Ok(Proof::of(&verified, false));
            }
            let host = peer.map_or("", |peer| &*peer.host);
            let verified = api.verifier.token(token, host, now).await.map_err(|error| refuse(&error))?;
            Ok(Proof::of(&verified, true))
        }
        (None, _) => {
            let chain = peer.map(|peer| &*peer.certificates).filter(|chain| !chain.is_empty());
            let chain = chain.ok_or_else(Problem::unauthenticated)?;
            let verified = api.verifier.certificate(chain, now).map_err(|error| refuse(&error))?;
            Ok(Proof::of(&verified, false))
        }
        (Some(_), Some(_)) => Err(Problem::unauthenticated()),
    }
}

fn refuse(error: &IdentityError) -> Problem {
    if error.is_ours() {
        let detail = "the keys of the token's issuer cannot be had now, or too many proofs failed: try again";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable", detail);
    }
    tracing::debug!(reason = error.reason(), "a call to the API without a good proof");
    Problem::unauthenticated()
}

/// The token of an `Authorization: Bearer` field (RFC 6750 section 2.1).
fn bearer(field: &HeaderValue) -> Option<&str> {
    let (scheme, token) = field.to_str().ok()?.split_once(' ')?;
    let plain = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && plain).then_some(token)
}
