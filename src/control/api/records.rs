//! What was done, by whom; and what deserves a look.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::Caller;
use super::input::{Params, nothing_there};
use super::page::{self, Listed};
use super::problem::{Problem, ProblemView};
use super::{Api, Login};
use crate::control::doctor::{Finding, examine};
use crate::control::store::{AuditEntry, Rows, Store};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(entries)).routes(routes!(doctor)).routes(routes!(whoami)).routes(routes!(login))
}

/// Which entries are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// From this sequence number on; the first is 1.
    #[param(minimum = 1)]
    from: Option<i64>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 500)]
    page_size: Option<u32>,
}

/// An entry of the record. Its hash covers everything else in it, the hash of the entry before included.
#[derive(Debug, Serialize, ToSchema)]
struct EntryView {
    /// Dense, from 1.
    sequence: u64,
    /// When.
    at: String,
    /// Who did it.
    actor: String,
    /// What happened, such as `grant.revoked`.
    event: String,
    /// To what.
    subject: String,
    /// The rest of it.
    #[schema(value_type = Object)]
    detail: Value,
    /// The hash of the entry before.
    previous: String,
    /// The hash of this one.
    hash: String,
}

impl From<AuditEntry> for EntryView {
    fn from(entry: AuditEntry) -> Self {
        Self {
            sequence: entry.sequence,
            at: entry.at.to_string(),
            actor: entry.actor,
            event: entry.event,
            subject: entry.subject,
            detail: entry.detail,
            previous: entry.previous,
            hash: entry.hash,
        }
    }
}

#[utoipa::path(get, path = "/v1/audit/entries", tag = "audit", operation_id = "audit_entries", summary = "Read the record",
    params(Wanted),
    responses(
        (status = 200, description = "Entries in their order; ask on from the last sequence and one", body = Listed<EntryView>),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn entries(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Listed<EntryView>>, Problem> {
    caller.must_administer("admin:audit", api.now())?;
    let size = page::size(wanted.page_size)?;
    let from = u64::try_from(wanted.from.unwrap_or(1)).ok().filter(|from| *from > 0);
    let from = from.ok_or_else(|| Problem::invalid("from", "`from` is a sequence number, and the first is 1"))?;
    let entries = api.store.view().await?.audit(from, size).await?;
    Ok(Json(Listed { items: entries.into_iter().map(EntryView::from).collect(), next_page_token: None }))
}

/// What deserves a look.
#[derive(Debug, Serialize, ToSchema)]
struct Findings {
    /// The gravest first.
    findings: Vec<Finding>,
}

#[utoipa::path(get, path = "/v1/doctor", tag = "operations", operation_id = "doctor", summary = "Say what deserves a look, and how to mend it",
    responses(
        (status = 200, description = "What was found", body = Findings),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn doctor(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<Findings>, Problem> {
    let now = api.now();
    caller.must_administer("admin:read", now)?;
    let mut rows = api.store.view().await?;
    Ok(Json(Findings { findings: examine(&caller.catalogue, &mut rows, now).await? }))
}

/// Who the caller is.
#[derive(Debug, Serialize, ToSchema)]
struct WhoAmI {
    /// The principal that the proof proves.
    principal: String,
    /// What it is; nothing of a stranger.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// The groups it is in.
    groups: Vec<String>,
    /// The task that the proof names.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Whether an admin policy lets it declare documents.
    admin: bool,
}

#[utoipa::path(get, path = "/v1/whoami", tag = "operations", operation_id = "whoami", summary = "Say who the caller is",
    responses(
        (status = 200, description = "Who", body = WhoAmI),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn whoami(State(api): State<Arc<Api>>, caller: Caller) -> Json<WhoAmI> {
    let known = caller.known.as_ref().filter(|known| !known.disabled);
    Json(WhoAmI {
        principal: caller.principal.to_string(),
        kind: known.map(|known| known.kind.as_str().to_owned()),
        groups: known.map(|known| known.groups.clone()).unwrap_or_default(),
        task: caller.task.as_ref().map(ToString::to_string),
        admin: caller.administers("admin:apply", api.now()),
    })
}

#[utoipa::path(get, path = "/v1/login", tag = "operations", operation_id = "login", summary = "Say where people log in", security(()),
    responses(
        (status = 200, description = "Where", body = Login),
        (status = 404, description = "People do not log in here", body = ProblemView, content_type = "application/problem+json")))]
async fn login(State(api): State<Arc<Api>>) -> Result<Json<Login>, Problem> {
    api.login.clone().map(Json).ok_or_else(nothing_there)
}
