//! Elevation requests: asked, looked at, decided, taken back.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::act::{Act, Because, Trial, Wait};
use super::caller::Caller;
use super::input::{Exact, Named, Params, Spoken, nothing_there};
use super::page::{self, Listed, scan};
use super::problem::{Problem, ProblemView};
use super::sight::{unexpected, with_version};
use super::view::RequestView;
use crate::control::command::{Ask, Command, Idempotency, Reply};
use crate::control::store::{Page, RequestRow, Rows, Store};
use crate::domain::action::ActionPattern;
use crate::domain::arguments::ArgumentDigest;
use crate::domain::id::{EntitlementName, GrantId, RequestId, TaskRef};
use crate::domain::json;
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(ask, list))
        .routes(routes!(show))
        .routes(routes!(approve))
        .routes(routes!(deny))
        .routes(routes!(cancel))
}

/// What is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRequest {
    /// For what.
    entitlement: String,
    /// For whom; without it for oneself.
    subject: Option<String>,
    /// Fewer actions than the entitlement has.
    actions: Option<Vec<String>>,
    /// Fewer resources than the entitlement has.
    resources: Option<Vec<String>>,
    /// Only the one call of that digest: `sha256:` and 64 digits.
    arguments: Option<String>,
    /// For how long; without it as long as the entitlement allows.
    #[schema(minimum = 1, maximum = 86_400)]
    duration_seconds: Option<u64>,
    /// For how many calls.
    #[schema(minimum = 1)]
    uses: Option<u32>,
    /// The grant whose place it takes when it is approved; it lasts no longer than the entitlement allows from when the
    /// first of such a chain began.
    renews: Option<String>,
    /// What justifies it, such as `jira:OPS-17`; without it the task that the caller's token names.
    task: Option<String>,
    /// Why, in the requester's words.
    #[schema(max_length = 2_000)]
    justification: Option<String>,
}

impl NewRequest {
    fn read(self, api: &Api, caller: &Caller) -> Result<Ask, Problem> {
        let id = api.new_id();
        let bad = |field: &'static str| {
            move |error: &dyn std::fmt::Display| Problem::invalid("invalid_field", format!("`{field}`: {error}"))
        };
        let list = |field, texts: Option<Vec<String>>| {
            texts.map(|texts| texts.into_iter().map(|text| (field, text)).collect::<Vec<_>>())
        };
        let actions = list("actions", self.actions)
            .map(|texts| texts.iter().map(|(f, t)| ActionPattern::new(t).map_err(|e| bad(f)(&e))).collect())
            .transpose()?;
        let resources = list("resources", self.resources)
            .map(|texts| texts.iter().map(|(f, t)| ResourcePattern::new(t).map_err(|e| bad(f)(&e))).collect())
            .transpose()?;
        let named = self.task.map(|task| TaskRef::new(&task).map_err(|e| bad("task")(&e))).transpose()?;
        let proven = caller.task.is_some() && (named.is_none() || named == caller.task);
        Ok(Ask {
            id: RequestId::new(&format!("req_{id}")).map_err(|e| bad("id")(&e))?,
            grant: GrantId::new(&format!("grt_{id}")).map_err(|e| bad("id")(&e))?,
            subject: self.subject.map(|p| Principal::parse(&p).map_err(|e| bad("subject")(&e))).transpose()?,
            entitlement: EntitlementName::new(&self.entitlement).map_err(|e| bad("entitlement")(&e))?,
            actions,
            resources,
            arguments: self
                .arguments
                .map(|text| ArgumentDigest::parse(&text).map_err(|e| bad("arguments")(&e)))
                .transpose()?,
            duration_seconds: self.duration_seconds,
            uses: self.uses,
            renews: self.renews.map(|id| GrantId::new(&id).map_err(|e| bad("renews")(&e))).transpose()?,
            task: named.or_else(|| caller.task.clone()),
            task_is_proven: proven,
            justification: self.justification.unwrap_or_default(),
            idempotency: None,
        })
    }
}

/// The caller's key for "the same request again", and the hash of what was sent under it.
fn idempotency(headers: &HeaderMap, body: &serde_json::Value) -> Result<Option<Idempotency>, Problem> {
    let mut fields = headers.get_all("idempotency-key").iter();
    let Some(field) = fields.next() else { return Ok(None) };
    let key = field.to_str().ok().filter(|key| (1..=128).contains(&key.len()) && fields.next().is_none());
    let key = key.ok_or_else(|| {
        Problem::invalid("idempotency_key", "`Idempotency-Key` is there once, with 1 to 128 visible ASCII characters")
    })?;
    Ok(Some(Idempotency { key: key.to_owned(), digest: json::digest(body) }))
}

#[utoipa::path(post, path = "/v1/requests", tag = "requests", operation_id = "ask",
    summary = "Ask for an elevation",
    description = "Policy approves at once, hands it to approvers or denies it. With an `Idempotency-Key` it can be sent again safely.",
    params(Trial, ("Idempotency-Key" = Option<String>, Header, description = "Sent again with the same key and body, it is the same request")),
    request_body = NewRequest,
    responses(
        (status = 201, description = "Decided at once", body = RequestView),
        (status = 202, description = "Approvers decide", body = RequestView),
        (status = "4XX", description = "Refused; nothing was changed", body = ProblemView, content_type = "application/problem+json"),
        (status = "5XX", description = "Not now", body = ProblemView, content_type = "application/problem+json")))]
async fn ask(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(trial): Params<Trial>,
    headers: HeaderMap,
    Exact(body, raw): Exact<NewRequest>,
) -> Result<Response, Problem> {
    let ask = Ask { idempotency: idempotency(&headers, &raw)?, ..body.read(&api, &caller)? };
    let reply = api.run(&caller, Command::Ask(Box::new(ask)), trial.dry_run).await?;
    let Reply::Request(row, _) = reply else { return Err(unexpected()) };
    let status = if row.elevation.is_pending() { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    Ok(with_version(status, row.version, RequestView::from(&*row)))
}

/// Which requests are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only in this state.
    state: Option<String>,
    /// Only those this principal asked for, or is to hold.
    principal: Option<String>,
    /// Only on this backend.
    backend: Option<String>,
    /// Only for this entitlement.
    entitlement: Option<String>,
    /// Only those of the caller (`mine`), that wait for the caller (`can_approve`), or that the caller decided (`approved`).
    relation: Option<Relation>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 500)]
    page_size: Option<u32>,
    /// The page after the one that gave it.
    page_token: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Relation {
    Mine,
    CanApprove,
    Approved,
}

#[utoipa::path(get, path = "/v1/requests", tag = "requests", operation_id = "list_requests", summary = "List requests",
    params(Wanted),
    responses(
        (status = 200, description = "A page of them, oldest first", body = Listed<RequestView>),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Listed<RequestView>>, Problem> {
    caller.known()?;
    let now = api.now();
    let size = page::size(wanted.page_size)?;
    let question = format!(
        "requests {:?} {:?} {:?} {:?} {:?}",
        wanted.state, wanted.principal, wanted.backend, wanted.entitlement, wanted.relation
    );
    let principal = wanted.principal.as_deref().map(Principal::parse).transpose();
    let query = Page {
        state: wanted.state,
        principal: principal.map_err(|error| Problem::invalid("invalid_field", error))?,
        after: page::after(&caller.principal, &question, wanted.page_token.as_deref())?,
        limit: size,
    };
    let sees_all = caller.administers("admin:read", now);
    let mut rows = api.store.view().await?;
    let keep = |row: &RequestRow| {
        wanted.backend.as_ref().is_none_or(|name| row.request.backend.as_str() == name)
            && wanted.entitlement.as_ref().is_none_or(|name| row.request.entitlement.as_str() == name)
            && match wanted.relation {
                Some(Relation::Mine) => caller.is_party_to(row),
                Some(Relation::CanApprove) => caller.can_approve(row, now),
                Some(Relation::Approved) => caller.approved(row),
                None => sees_all || caller.sees_request(row, now),
            }
    };
    let (found, next) = scan(&mut rows, query, size, keep).await?;
    Ok(Json(Listed {
        items: found.iter().map(RequestView::from).collect(),
        next_page_token: next.map(|id| page::token(&caller.principal, &question, &id)),
    }))
}

#[utoipa::path(get, path = "/v1/requests/{id}", tag = "requests", operation_id = "show_request", summary = "Show a request",
    params(("id" = String, Path), Wait),
    responses(
        (status = 200, description = "The request; its version is the ETag", body = RequestView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn show(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Named,
    Params(wait): Params<Wait>,
) -> Result<Response, Problem> {
    let id = name.id(RequestId::new)?;
    let row = api.watch(&wait, || api.visible(&caller, &id), |row| !row.elevation.is_pending()).await?;
    Ok(with_version(StatusCode::OK, row.version, RequestView::from(&row)))
}

impl Api {
    /// A request that is the caller's to see.
    pub(super) async fn visible(&self, caller: &Caller, id: &RequestId) -> Result<RequestRow, Problem> {
        caller.known()?;
        let row = self.store.view().await?.request(id).await?;
        row.filter(|row| caller.sees_request(row, self.now())).ok_or_else(nothing_there)
    }
}

/// The version that the caller saw.
fn seen(headers: &HeaderMap) -> Result<u64, Problem> {
    let mut fields = headers.get_all(header::IF_MATCH).iter();
    let Some(field) = fields.next() else {
        let detail = "send the version you saw as `If-Match`: it is the ETag of the request";
        return Err(Problem::new(StatusCode::PRECONDITION_REQUIRED, "unconditional", detail));
    };
    let text = field.to_str().unwrap_or_default();
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
    version
        .filter(|_| fields.next().is_none())
        .ok_or_else(|| Problem::invalid("if_match", "`If-Match` is one ETag of the request, such as `\"1\"`"))
}

#[utoipa::path(post, path = "/v1/requests/{id}/approve", tag = "requests", operation_id = "approve", summary = "Agree to a request",
    description = "Policy, locks, the principal and the task are asked again. Nobody approves their own.",
    params(("id" = String, Path), Trial, ("If-Match" = String, Header, description = "The ETag of the request that you saw")),
    request_body = Because,
    responses(
        (status = 200, description = "Where it stands now", body = RequestView),
        (status = 412, description = "It is not what you saw", body = ProblemView, content_type = "application/problem+json"),
        (status = 428, description = "`If-Match` is missing", body = ProblemView, content_type = "application/problem+json"),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn approve(act: Act, headers: HeaderMap, Spoken(because): Spoken<Because>) -> Result<Response, Problem> {
    let request = act.request().await?;
    act.decided(Command::Approve { request, seen: seen(&headers)?, reason: because.read()? }).await
}

#[utoipa::path(post, path = "/v1/requests/{id}/deny", tag = "requests", operation_id = "deny", summary = "Say no to a request",
    params(("id" = String, Path), Trial), request_body = Because,
    responses(
        (status = 200, description = "Where it stands now", body = RequestView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn deny(act: Act, Spoken(because): Spoken<Because>) -> Result<Response, Problem> {
    let request = act.request().await?;
    act.decided(Command::Deny { request, reason: because.read()? }).await
}

#[utoipa::path(post, path = "/v1/requests/{id}/cancel", tag = "requests", operation_id = "cancel", summary = "Take a request back",
    params(("id" = String, Path), Trial), request_body = Because,
    responses(
        (status = 200, description = "Where it stands now", body = RequestView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn cancel(act: Act, Spoken(because): Spoken<Because>) -> Result<Response, Problem> {
    let request = act.request().await?;
    act.decided(Command::Cancel { request, reason: because.read()? }).await
}

impl Act {
    /// The request that is named, if it is the caller's to see.
    async fn request(&self) -> Result<RequestId, Problem> {
        let id = self.name.id(RequestId::new)?;
        self.api.visible(&self.caller, &id).await?;
        Ok(id)
    }

    async fn decided(&self, command: Command) -> Result<Response, Problem> {
        let Reply::Request(row, _) = self.run(command).await? else { return Err(unexpected()) };
        Ok(with_version(StatusCode::OK, row.version, RequestView::from(&*row)))
    }
}
