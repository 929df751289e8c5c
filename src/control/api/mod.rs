//! HTTP in, commands out. Status codes, problems and paging stand here and nowhere else in the control plane.
//!
//! Every answer is JSON; every refusal is `application/problem+json` (RFC 9457) with a stable `code`. A caller sees what is
//! theirs: their own requests and grants, those they may decide on or answer for, and everything where an admin policy
//! says so. What is not theirs is not there (404).
//!
//! Deliberately absent: cookies, CORS, redirects, any way to widen what was approved, and any GET that changes something.

#![allow(unused_qualifications, reason = "what utoipa makes of `params(…)` is qualified")]

mod act;
mod authzen;
mod caller;
mod documents;
mod grants;
mod input;
mod metrics;
mod openapi;
mod overlay;
mod page;
mod policy;
mod problem;
mod records;
mod requests;
pub mod serve;
mod sidecars;
mod sight;
mod view;
mod watch;
mod watchers;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use http::StatusCode;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::{ContextV7, Uuid};

pub use caller::{LocalToken, Peer};
pub use openapi::document;

use caller::Limits;
use problem::Problem;
use watchers::Watchers;

use super::document::Document;
use super::engine::Engine;
use super::publish::{Enrolment, Reports};
use super::store::sql::SqlStore;
use crate::domain::time::Clock;
use crate::identity::Verifier;

/// Where people log in; the command line asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Login {
    /// The OpenID provider.
    pub issuer: String,
    /// Our public client there.
    pub client_id: String,
    /// What to ask for.
    pub scopes: Vec<String>,
}

/// What the API works with.
#[derive(Debug)]
pub struct Parts {
    /// Where commands are run.
    pub engine: Engine,
    /// Where rows are looked up.
    pub store: Arc<SqlStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whose proofs are good.
    pub verifier: Arc<Verifier>,
    /// The token of the local admin, where there is one.
    pub local: Option<LocalToken>,
    /// How many calls a second each principal may make.
    pub calls_per_second: NonZeroU32,
    /// Where people log in.
    pub login: Option<Login>,
    /// Where ends are enforced.
    pub reports: Arc<Reports>,
    /// Where sidecars join, if we sign for them.
    pub enrolment: Option<Arc<Enrolment>>,
    /// What is wrong with a document that only others can tell: whoever is to use it.
    pub usable: fn(&Document) -> Result<(), String>,
    /// Ends what has no end of its own.
    pub stop: CancellationToken,
    /// Where what is counted of calls is registered.
    pub registry: Registry,
}

/// The API's state.
#[derive(Debug)]
struct Api {
    engine: Engine,
    store: Arc<SqlStore>,
    clock: Arc<dyn Clock>,
    verifier: Arc<Verifier>,
    local: Option<LocalToken>,
    local_was_used: AtomicBool,
    limits: Limits,
    login: Option<Login>,
    ids: std::sync::Mutex<ContextV7>,
    reports: Arc<Reports>,
    enrolment: Option<Arc<Enrolment>>,
    watchers: Watchers,
    usable: fn(&Document) -> Result<(), String>,
    stop: CancellationToken,
}

impl Api {
    /// A new id: 128 bits that grow with time (RFC 9562 version 7).
    fn new_id(&self) -> String {
        let micros = self.clock.now().wall.as_micros().max(0).unsigned_abs();
        let (seconds, nanos) = (micros / 1_000_000, u32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0));
        let context = self.ids.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = uuid::Timestamp::from_unix(&*context, seconds, nanos);
        Uuid::new_v7(at).simple().to_string()
    }
}

/// The whole API.
///
/// # Errors
/// Another one counts in the same registry.
pub fn router(parts: Parts) -> prometheus::Result<Router> {
    let counted = Arc::new(metrics::Counted::new(&parts.registry)?);
    let api = Arc::new(Api {
        engine: parts.engine,
        store: parts.store,
        clock: parts.clock,
        verifier: parts.verifier,
        local: parts.local,
        local_was_used: AtomicBool::new(false),
        limits: Limits::new(parts.calls_per_second),
        login: parts.login,
        ids: std::sync::Mutex::new(ContextV7::new()),
        reports: parts.reports,
        enrolment: parts.enrolment,
        watchers: Watchers::new(),
        usable: parts.usable,
        stop: parts.stop,
    });
    let (router, _) = openapi::routes().split_for_parts();
    let router = router
        .fallback(async || input::nothing_there())
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has no such method")
        })
        .layer(DefaultBodyLimit::max(input::BODY_MAX))
        .layer(from_fn_with_state(counted, metrics::count))
        .with_state(api);
    Ok(router)
}
