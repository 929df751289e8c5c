//! OpenID AuthZEN Authorization API 1.0: would this call pass now?
//!
//! `subject.id` is a principal, `action.name` an action, `resource.id` a resource of the backend that `resource.type`, or
//! `resource.properties.backend`, names. `action.properties.arguments` is the digest of the call, for grants that are bound to
//! one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::caller::Caller;
use super::input::Body;
use super::policy::Call;
use super::problem::{Problem, ProblemView};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::id::{ActionName, BackendName};
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(evaluation)).routes(routes!(evaluations)).routes(routes!(configuration))
}

/// Who, or what (AuthZEN 1.0 section 5).
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct Entity {
    /// Its type; of a resource, the backend.
    #[serde(rename = "type")]
    kind: String,
    /// Its id.
    id: String,
    /// What else is known of it.
    #[serde(default)]
    #[schema(value_type = Object)]
    properties: Map<String, Value>,
}

/// What is to be done.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct Action {
    /// The action.
    name: String,
    /// What else is known of it: `arguments`, the digest of the call.
    #[serde(default)]
    #[schema(value_type = Object)]
    properties: Map<String, Value>,
}

/// One question. What AuthZEN allows beside is read and not used.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct Evaluation {
    subject: Entity,
    action: Action,
    resource: Entity,
}

/// Several questions; what one leaves out is taken from the defaults beside them.
#[derive(Debug, Deserialize, ToSchema)]
struct Evaluations {
    subject: Option<Entity>,
    action: Option<Action>,
    resource: Option<Entity>,
    /// The questions.
    #[schema(max_items = 100)]
    evaluations: Vec<Part>,
}

/// A question with what it leaves to the defaults left out.
#[derive(Debug, Deserialize, ToSchema)]
struct Part {
    subject: Option<Entity>,
    action: Option<Action>,
    resource: Option<Entity>,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
struct Decision {
    /// Whether it would pass.
    decision: bool,
    /// Why.
    #[schema(value_type = Object)]
    context: Value,
}

/// The answers, in the order of the questions.
#[derive(Debug, Serialize, ToSchema)]
struct Decisions {
    /// One for each.
    evaluations: Vec<Decision>,
}

impl Api {
    async fn evaluate(&self, caller: &Caller, asked: Evaluation) -> Result<Decision, Problem> {
        let refused = |reason: &str| Decision { decision: false, context: json!({"reason": reason}) };
        let Ok(principal) = Principal::parse(&asked.subject.id) else { return Ok(refused("unknown_principal")) };
        if principal != caller.principal && !caller.administers("admin:read", self.now()) {
            // Whoever may not ask about others learns nothing of them.
            return Ok(refused("no_grant"));
        }
        let named = asked.resource.properties.get("backend").and_then(Value::as_str);
        let backend = BackendName::new(named.unwrap_or(&asked.resource.kind));
        let (Ok(backend), Ok(action)) = (backend, ActionName::new(&asked.action.name)) else {
            return Ok(refused("unmapped_action"));
        };
        // One that cannot be read is that of no grant.
        let arguments = asked.action.properties.get("arguments").and_then(Value::as_str);
        let arguments = arguments.and_then(|text| ArgumentDigest::parse(text).ok());
        let call = Call { principal, backend, action, resource: Resource::exact(asked.resource.id), arguments };
        let foreseen = self.foresee(caller, &call, self.now()).await?;
        let mut context = json!({"reason": foreseen.reason});
        if !foreseen.grants.is_empty() {
            context["grants"] = json!(foreseen.grants);
        }
        if !foreseen.reasons.is_empty() {
            context["reasons"] = json!(foreseen.reasons);
        }
        Ok(Decision { decision: foreseen.decision, context })
    }
}

#[utoipa::path(post, path = "/access/v1/evaluation", tag = "authzen", operation_id = "evaluation", summary = "Would this call pass now?",
    request_body = Evaluation,
    responses(
        (status = 200, description = "The decision", body = Decision),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn evaluation(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(asked): Body<Evaluation>,
) -> Result<Json<Decision>, Problem> {
    caller.known()?;
    api.evaluate(&caller, asked).await.map(Json)
}

#[utoipa::path(post, path = "/access/v1/evaluations", tag = "authzen", operation_id = "evaluations", summary = "Would these calls pass now?",
    request_body = Evaluations,
    responses(
        (status = 200, description = "The decisions", body = Decisions),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn evaluations(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(asked): Body<Evaluations>,
) -> Result<Json<Decisions>, Problem> {
    caller.known()?;
    if asked.evaluations.len() > 100 {
        return Err(Problem::invalid("too_many_evaluations", "ask at most 100 at a time"));
    }
    let mut answers = Vec::with_capacity(asked.evaluations.len());
    for part in asked.evaluations {
        let whole = (
            part.subject.or_else(|| asked.subject.clone()),
            part.action.or_else(|| asked.action.clone()),
            part.resource.or_else(|| asked.resource.clone()),
        );
        let (Some(subject), Some(action), Some(resource)) = whole else {
            let detail = "each evaluation has `subject`, `action` and `resource`, its own or the default";
            return Err(Problem::invalid("incomplete_evaluation", detail));
        };
        answers.push(api.evaluate(&caller, Evaluation { subject, action, resource }).await?);
    }
    Ok(Json(Decisions { evaluations: answers }))
}

#[utoipa::path(get, path = "/.well-known/authzen-configuration", tag = "authzen", operation_id = "authzen_configuration",
    summary = "Where the evaluation API is", security(()),
    responses((status = 200, description = "AuthZEN 1.0 section 9", body = Object)))]
async fn configuration(headers: http::HeaderMap) -> Json<Value> {
    let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let plain =
        host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']'));
    let base = format!("https://{}", if plain { host } else { "localhost" });
    Json(json!({
        "policy_decision_point": base,
        "access_evaluation_endpoint": format!("{base}/access/v1/evaluation"),
        "access_evaluations_endpoint": format!("{base}/access/v1/evaluations"),
    }))
}
