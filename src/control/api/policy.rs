//! What would happen, and why, without its happening.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::caller::Caller;
use super::input::{Body, Params};
use super::problem::{Problem, ProblemView};
use crate::control::route;
use crate::control::store::{GrantRow, Page, Rows, Store};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::grant::GrantState;
use crate::domain::id::{ActionName, BackendName};
use crate::domain::lock::LockSubject;
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;
use crate::domain::time::Timestamp;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(simulate))
}

/// A call that is not made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SimulatedCall {
    /// Who would call.
    principal: String,
    /// Which backend.
    backend: String,
    /// Which action.
    action: String,
    /// On which resource.
    resource: String,
    /// The digest of the call, `sha256:` and 64 digits; without it no grant that is bound to one covers it.
    arguments: Option<String>,
}

/// What would come of a call.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Foreseen {
    /// Whether it would pass.
    pub(super) decision: bool,
    /// Why, as a stable word: `granted`, `no_grant`, `arguments_differ`, `lock`, `guardrail`, `unknown_principal` or `unmapped_action`.
    pub(super) reason: String,
    /// The grants that cover it.
    pub(super) grants: Vec<String>,
    /// The guardrails that would stop it.
    pub(super) guardrails: Vec<String>,
    /// Guardrails in shadow that would have stopped it.
    pub(super) shadow: Vec<String>,
    /// Sentences for people.
    pub(super) reasons: Vec<String>,
}

impl Foreseen {
    fn refused(reason: &str, reasons: Vec<String>) -> Self {
        let (grants, guardrails, shadow) = (Vec::new(), Vec::new(), Vec::new());
        Self { decision: false, reason: reason.to_owned(), grants, guardrails, shadow, reasons }
    }
}

/// A call as the control plane sees it.
pub(super) struct Call {
    pub(super) principal: Principal,
    pub(super) backend: BackendName,
    pub(super) action: ActionName,
    pub(super) resource: Resource,
    pub(super) arguments: Option<ArgumentDigest>,
}

/// Most grants of one principal that are looked at.
const GRANTS_MAX: u32 = 2_000;

impl Api {
    /// Whether a call would pass now: as a sidecar would decide with what is committed.
    pub(super) async fn foresee(&self, caller: &Caller, call: &Call, now: Timestamp) -> Result<Foreseen, Problem> {
        let catalogue = &caller.catalogue;
        let Some(known) = catalogue.know(&call.principal).filter(|known| !known.disabled) else {
            return Ok(Foreseen::refused("unknown_principal", vec!["no Principal of that name, or disabled".into()]));
        };
        let mapped = catalogue
            .backends
            .get(&call.backend)
            .is_some_and(|actions| actions.iter().any(|(action, _)| *action == call.action));
        if !mapped {
            let reason = format!("backend `{}` has no action `{}`", call.backend, call.action);
            return Ok(Foreseen::refused("unmapped_action", vec![reason]));
        }
        let mut rows = self.store.view().await?;
        let subject = LockSubject {
            principal: &call.principal,
            backend: &call.backend,
            action: Some(&call.action),
            resource: &call.resource,
            grant: None,
            task: None,
        };
        if let Some(lock) = rows.locks().await?.into_iter().find(|lock| lock.stops(subject, now)) {
            return Ok(Foreseen::refused("lock", vec![format!("lock `{}`: {}", lock.id, lock.message)]));
        }
        let page = Page {
            state: Some(GrantState::Active.as_str().to_owned()),
            principal: Some(call.principal.clone()),
            after: None,
            limit: GRANTS_MAX,
        };
        let grants = rows.grants(&page).await?;
        let (covering, other): (Vec<&GrantRow>, Vec<&GrantRow>) = grants
            .iter()
            .filter(|row| {
                row.grant.backend == call.backend
                    && row.grant.window.not_before <= now
                    && now < row.grant.window.expires_at
                    && row.grant.scope.covers(&call.action, &call.resource)
            })
            .partition(|row| row.grant.scope.arguments().is_none_or(|bound| Some(*bound) == call.arguments));
        let covering: Vec<String> = covering.iter().map(|row| row.grant.id.to_string()).collect();
        let asked = route::Call { backend: &call.backend, action: &call.action, resource: call.resource.text() };
        let guardrails = catalogue.policies.guardrails(known.actor(), asked, now);
        let stopped = guardrails.determining.clone();
        // One that cannot be evaluated stops the call too, and none is determining then.
        let reason = match (covering.is_empty(), guardrails.allowed) {
            (true, _) if !other.is_empty() => "arguments_differ",
            (true, _) => "no_grant",
            (false, false) => "guardrail",
            (false, true) => "granted",
        };
        Ok(Foreseen {
            decision: reason == "granted",
            reason: reason.to_owned(),
            grants: covering,
            guardrails: stopped,
            shadow: guardrails.shadow,
            reasons: guardrails.reasons,
        })
    }
}

/// Nothing to say in the query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[utoipa::path(post, path = "/v1/policy-simulations", tag = "policy", operation_id = "simulate", summary = "Say what would come of a call",
    description = "For what would come of a request, send it with `dry_run` to `/v1/requests`.",
    request_body = SimulatedCall,
    responses(
        (status = 200, description = "What would come of it, and why", body = Foreseen),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn simulate(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(Nothing {}): Params<Nothing>,
    Body(said): Body<SimulatedCall>,
) -> Result<Json<Foreseen>, Problem> {
    let bad = |error: &dyn std::fmt::Display| Problem::invalid("invalid_field", error);
    let now = api.now();
    let principal = Principal::parse(&said.principal).map_err(|e| bad(&e))?;
    if principal != caller.principal {
        caller.must_administer("admin:read", now)?;
    }
    let call = Call {
        principal,
        backend: BackendName::new(&said.backend).map_err(|e| bad(&e))?,
        action: ActionName::new(&said.action).map_err(|e| bad(&e))?,
        resource: Resource::exact(said.resource),
        arguments: said.arguments.as_deref().map(ArgumentDigest::parse).transpose().map_err(|e| bad(&e))?,
    };
    Ok(Json(api.foresee(&caller, &call, now).await?))
}
