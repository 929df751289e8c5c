//! Grants: looked at, narrowed, given back, taken away, used up, reviewed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::act::{Act, Because, Trial, Wait};
use super::caller::Caller;
use super::input::{Body, Named, Params, Spoken, nothing_there};
use super::page::{self, Listed, scan};
use super::problem::{Problem, ProblemView};
use super::sight::unexpected;
use super::view::GrantView;
use crate::control::command::{Command, Reply};
use crate::control::store::{GrantRow, Page, Rows, Selector, Store};
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::entitlement::Narrower;
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, EntitlementName, GrantId, NameError, TaskRef};
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::domain::time::Timestamp;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(revoke))
        .routes(routes!(release))
        .routes(routes!(reduce))
        .routes(routes!(consume))
        .routes(routes!(review))
        .routes(routes!(revoke_selected))
}

/// Which grants are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only in this state.
    state: Option<String>,
    /// Only of this principal.
    principal: Option<String>,
    /// Only on this backend.
    backend: Option<String>,
    /// Only under this entitlement.
    entitlement: Option<String>,
    /// Only for this task.
    task: Option<String>,
    /// Only those with an `open` or a `done` review.
    review: Option<String>,
    /// Only the caller's own.
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
}

#[utoipa::path(get, path = "/v1/grants", tag = "grants", operation_id = "list_grants", summary = "List grants",
    params(Wanted),
    responses(
        (status = 200, description = "A page of them, oldest first", body = Listed<GrantView>),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Listed<GrantView>>, Problem> {
    caller.known()?;
    let now = api.now();
    let size = page::size(wanted.page_size)?;
    let question = format!("grants {:?}", Wanted { page_token: None, page_size: None, ..wanted.reference() });
    let principal = wanted.principal.as_deref().map(Principal::parse).transpose();
    let query = Page {
        state: wanted.state.clone(),
        principal: principal.map_err(|error| Problem::invalid("invalid_field", error))?,
        after: page::after(&caller.principal, &question, wanted.page_token.as_deref())?,
        limit: size,
    };
    let sees_all = caller.administers("admin:read", now) && wanted.relation.is_none();
    let keep = |row: &GrantRow| (sees_all || caller.holds(&row.grant)) && wanted.selects(row);
    let mut rows = api.store.view().await?;
    let (found, next) = scan(&mut rows, query, size, keep).await?;
    let ids: Vec<GrantId> = found.iter().map(|row| row.grant.id.clone()).collect();
    let used = rows.activity(&ids).await?;
    Ok(Json(Listed {
        items: found.iter().map(|row| GrantView::of(row, used.get(&row.grant.id))).collect(),
        next_page_token: next.map(|id| page::token(&caller.principal, &question, &id)),
    }))
}

impl Wanted {
    fn reference(&self) -> Self {
        Self {
            state: self.state.clone(),
            principal: self.principal.clone(),
            backend: self.backend.clone(),
            entitlement: self.entitlement.clone(),
            task: self.task.clone(),
            review: self.review.clone(),
            relation: self.relation,
            page_size: None,
            page_token: None,
        }
    }

    fn selects(&self, row: &GrantRow) -> bool {
        let same = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        same(&self.backend, row.grant.backend.as_str())
            && same(&self.entitlement, row.entitlement.as_str())
            && same(&self.task, row.grant.task.as_ref().map_or("", TaskRef::as_str))
            && same(&self.review, row.review.as_ref().map_or("", |review| review.state()))
    }
}

#[utoipa::path(get, path = "/v1/grants/{id}", tag = "grants", operation_id = "show_grant", summary = "Show a grant",
    params(("id" = String, Path), Wait),
    responses(
        (status = 200, description = "The grant", body = GrantView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn show(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Named,
    Params(wait): Params<Wait>,
) -> Result<Json<GrantView>, Problem> {
    let id = name.id(GrantId::new)?;
    let row = api.watch(&wait, || api.visible_grant(&caller, &id), |row| row.state != GrantState::Active).await?;
    let used = api.store.view().await?.activity(std::slice::from_ref(&id)).await?;
    Ok(Json(GrantView::of(&row, used.get(&id))))
}

impl Api {
    /// A grant that is the caller's to see: theirs, one they approved, or any for an admin.
    async fn visible_grant(&self, caller: &Caller, id: &GrantId) -> Result<GrantRow, Problem> {
        caller.known()?;
        let mut rows = self.store.view().await?;
        let row = rows.grant(id).await?.ok_or_else(nothing_there)?;
        if caller.holds(&row.grant) || caller.administers("admin:read", self.now()) {
            return Ok(row);
        }
        let request = rows.request(&row.request).await?;
        if request.is_some_and(|request| caller.approved(&request)) { Ok(row) } else { Err(nothing_there()) }
    }
}

impl Act {
    fn grant_id(&self) -> Result<GrantId, Problem> {
        self.name.id(GrantId::new)
    }

    /// The grant that is named, if it is the caller's to see.
    async fn grant(&self) -> Result<GrantRow, Problem> {
        self.api.visible_grant(&self.caller, &self.grant_id()?).await
    }

    async fn changed(&self, command: Command) -> Result<Json<GrantView>, Problem> {
        let Reply::Grant(row) = self.run(command).await? else { return Err(unexpected()) };
        Ok(Json(GrantView::of(&row, None)))
    }

    /// Runs what ends a grant, and shows it as it is then.
    async fn ended(&self, id: &GrantId, command: Command) -> Result<Json<GrantView>, Problem> {
        self.run(command).await?;
        let row = self.api.store.view().await?.grant(id).await?.ok_or_else(nothing_there)?;
        Ok(Json(GrantView::of(&row, None)))
    }
}

#[utoipa::path(post, path = "/v1/grants/{id}/revoke", tag = "grants", operation_id = "revoke", summary = "Take a grant away",
    params(("id" = String, Path), Trial), request_body = Because,
    responses(
        (status = 200, description = "The grant as it is now", body = GrantView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn revoke(act: Act, Spoken(because): Spoken<Because>) -> Result<Json<GrantView>, Problem> {
    let id = act.grant().await?.grant.id;
    let selector = Selector { grant: Some(id.clone()), ..Selector::default() };
    act.ended(&id, Command::Revoke { selector, reason: because.read()? }).await
}

#[utoipa::path(post, path = "/v1/grants/{id}/release", tag = "grants", operation_id = "release", summary = "Give a grant back",
    params(("id" = String, Path), Trial), request_body = Because,
    responses(
        (status = 200, description = "The grant as it is now", body = GrantView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn release(act: Act, Spoken(because): Spoken<Because>) -> Result<Json<GrantView>, Problem> {
    because.read()?;
    let id = act.grant().await?.grant.id;
    act.ended(&id, Command::Release(id.clone())).await
}

/// What a grant is narrowed to; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reduce {
    /// An earlier end.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Fewer calls in all.
    #[schema(minimum = 1)]
    uses_max: Option<u32>,
    /// Fewer actions.
    actions: Option<Vec<String>>,
    /// Fewer resources.
    resources: Option<Vec<String>>,
    /// Only the one call of that digest, `sha256:` and 64 digits; a grant that is bound stays bound to what it is.
    arguments: Option<String>,
}

impl Reduce {
    /// The smaller scope, where one is wanted: with all that stays of what is `held`.
    fn scope(&self, held: &Scope) -> Result<Option<Scope>, NameError> {
        if self.actions.is_none() && self.resources.is_none() && self.arguments.is_none() {
            return Ok(None);
        }
        let actions = match &self.actions {
            Some(texts) => texts.iter().map(|text| ActionPattern::new(text)).collect::<Result<_, _>>()?,
            None => held.actions().to_vec(),
        };
        let resources = match &self.resources {
            Some(texts) => texts.iter().map(|text| ResourcePattern::new(text)).collect::<Result<_, _>>()?,
            None => held.resources().to_vec(),
        };
        let asked = self.arguments.as_deref().map(ArgumentDigest::parse).transpose()?;
        Ok(Some(Scope::new(actions, resources).bound_to(held.arguments().copied()).bound_to(asked)))
    }
}

#[utoipa::path(post, path = "/v1/grants/{id}/reduce", tag = "grants", operation_id = "reduce", summary = "Narrow a grant",
    description = "A grant only ever shrinks. One with a smaller scope takes the wider one's place under an id of its own.",
    params(("id" = String, Path), Trial), request_body = Reduce,
    responses(
        (status = 200, description = "The grant as it is now, or the one that took its place", body = GrantView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn reduce(act: Act, Body(to): Body<Reduce>) -> Result<Json<GrantView>, Problem> {
    let row = act.grant().await?;
    let bad = |error: &dyn std::fmt::Display| Problem::invalid("invalid_field", error);
    let scope = to.scope(&row.grant.scope).map_err(|error| bad(&error))?;
    let expires_at = to.expires_at.as_deref().map(Timestamp::parse).transpose().map_err(|e| bad(&e))?;
    let narrower = Narrower { expires_at, uses_max: to.uses_max, scope };
    act.changed(Command::Reduce(row.grant.id, narrower)).await
}

/// One use of a counted grant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Use {
    /// Said again, it is the same use.
    #[schema(min_length = 1, max_length = 128)]
    use_id: String,
}

#[utoipa::path(post, path = "/v1/grants/{id}/consume", tag = "grants", operation_id = "consume", summary = "Take a use of a counted grant",
    description = "For sidecars, before they forward: a lost answer loses the use.",
    params(("id" = String, Path), Trial), request_body = Use,
    responses(
        (status = 200, description = "The use was taken", body = GrantView),
        (status = "4XX", description = "Refused; no use was taken", body = ProblemView, content_type = "application/problem+json")))]
async fn consume(act: Act, Body(said): Body<Use>) -> Result<Json<GrantView>, Problem> {
    act.changed(Command::Consume { grant: act.grant_id()?, use_id: said.use_id }).await
}

/// What was found about a break-glass grant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Found {
    /// What was found.
    #[schema(min_length = 1, max_length = 2_000)]
    note: String,
}

#[utoipa::path(post, path = "/v1/grants/{id}/review", tag = "grants", operation_id = "review", summary = "Close the review of a break-glass grant",
    params(("id" = String, Path), Trial), request_body = Found,
    responses(
        (status = 200, description = "The grant with its review", body = GrantView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn review(act: Act, Body(found): Body<Found>) -> Result<Json<GrantView>, Problem> {
    let grant = act.grant_id()?;
    if found.note.trim().is_empty() || found.note.len() > 2_000 {
        return Err(Problem::invalid("note", "`note` has 1 to 2,000 bytes"));
    }
    act.changed(Command::Review { grant, note: found.note }).await
}

/// Which grants are meant: all criteria that are given must hold.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// This one.
    grant: Option<String>,
    /// Those of this principal.
    principal: Option<String>,
    /// Those on this backend.
    backend: Option<String>,
    /// Those under this entitlement.
    entitlement: Option<String>,
    /// Those for this task.
    task: Option<String>,
    /// Why.
    #[serde(default)]
    #[schema(max_length = 2_000)]
    reason: String,
}

/// The grants that ended.
#[derive(Debug, Serialize, ToSchema)]
struct EndedGrants {
    /// Their ids.
    ended: Vec<String>,
    /// At which revision the last of them did: where that is enforced, all are. Absent where none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// At which revision the first of them did.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
}

#[utoipa::path(post, path = "/v1/revocations", tag = "grants", operation_id = "revoke_selected", summary = "Take many grants away at once",
    params(Trial), request_body = Which,
    responses(
        (status = 200, description = "Which grants ended", body = EndedGrants),
        (status = "4XX", description = "Refused; none ended", body = ProblemView, content_type = "application/problem+json")))]
async fn revoke_selected(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(trial): Params<Trial>,
    Body(which): Body<Which>,
) -> Result<Json<EndedGrants>, Problem> {
    let bad = |error: &dyn std::fmt::Display| Problem::invalid("invalid_field", error);
    let selector = Selector {
        grant: which.grant.as_deref().map(GrantId::new).transpose().map_err(|e| bad(&e))?,
        principal: which.principal.as_deref().map(Principal::parse).transpose().map_err(|e| bad(&e))?,
        backend: which.backend.as_deref().map(BackendName::new).transpose().map_err(|e| bad(&e))?,
        entitlement: which.entitlement.as_deref().map(EntitlementName::new).transpose().map_err(|e| bad(&e))?,
        task: which.task.as_deref().map(TaskRef::new).transpose().map_err(|e| bad(&e))?,
    };
    let reason = Because { reason: which.reason }.read()?;
    let reply = api.run(&caller, Command::Revoke { selector, reason }, trial.dry_run).await?;
    let Reply::Ended(ids) = reply else { return Err(unexpected()) };
    let (from, revision) = if trial.dry_run { (None, None) } else { api.span(&ids).await? };
    Ok(Json(EndedGrants { ended: ids.iter().map(ToString::to_string).collect(), revision, from }))
}
