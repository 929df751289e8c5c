//! Who enforces what: the sidecars, and how far an end has come.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::act::Wait;
use super::caller::Caller;
use super::input::{Body, Named, Params, nothing_there};
use super::page::Listed;
use super::problem::{Problem, ProblemView};

use crate::control::publish::Report;
use crate::control::store::{Change, Changes, Rows, Store};
use crate::domain::id::{GrantId, Revision};
use crate::domain::time::Now;
use crate::sync::enforce::{Of, Unsure};
use crate::sync::session::Session;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(sidecars)).routes(routes!(enforcement)).routes(routes!(join_token))
}

/// Most sidecars that are named in a report.
const NAMED_MAX: usize = 100;

/// Most revisions whose backends are looked up; more are everybody's.
const SPAN_MAX: u32 = 1_000;

/// A sidecar, as the control planes know it.
#[derive(Debug, Serialize, ToSchema)]
struct SidecarView {
    /// Its SPIFFE id.
    sidecar: String,
    /// Which of its processes.
    boot_id: String,
    /// Its version.
    version: String,
    /// What it serves.
    backends: Vec<String>,
    /// Whether its stream is open.
    connected: bool,
    /// The last revision that it says is enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    acked: Option<u64>,
    /// How many revisions came after that, of whatever backends.
    behind: u64,
    /// How old its evidence is, in milliseconds; absent where it never had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    /// When it denies everything, unless it gets new evidence; absent where it serves some backend until its grants end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    fresh_until: Option<String>,
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl SidecarView {
    fn of(session: &Session, head: Revision, now: Now) -> Self {
        let (until, age) = (session.fresh_until(), session.age(now.uptime));
        let acked = session.acked();
        // Before now there is no telling on which day that was; it denies.
        let fresh_until = now.wall.plus(until.since(now.uptime));
        Self {
            sidecar: session.sidecar.to_string(),
            boot_id: session.boot_id.clone(),
            version: session.version.clone(),
            backends: session.backends.iter().map(ToString::to_string).collect(),
            connected: session.is_connected(),
            acked: acked.map(|revision| revision.0),
            behind: head.0.saturating_sub(acked.unwrap_or_default().0),
            age_ms: age.map(millis),
            fresh_until: session.staleness_max.map(|_| fresh_until.to_string()),
        }
    }
}

#[utoipa::path(get, path = "/v1/sidecars", tag = "sidecars", operation_id = "list_sidecars", summary = "List the sidecars that follow",
    responses(
        (status = 200, description = "All of them, of every control plane", body = Listed<SidecarView>),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn sidecars(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<Listed<SidecarView>>, Problem> {
    caller.must_administer("admin:read", api.now())?;
    let mut sessions = api.reports.everybody().await?;
    sessions.sort_by(|a, b| (&a.sidecar, &a.boot_id).cmp(&(&b.sidecar, &b.boot_id)));
    let (head, now) = (api.reports.hub().head().unwrap_or_default(), api.clock.now());
    let items = sessions.iter().map(|session| SidecarView::of(session, head, now)).collect();
    Ok(Json(Listed { items, next_page_token: None }))
}

impl Api {
    /// The revisions at which the first and the last of these grants ended, which they did in this order.
    pub(super) async fn span(&self, ended: &[GrantId]) -> Result<(Option<u64>, Option<u64>), Problem> {
        let (Some(first), Some(last)) = (ended.first(), ended.last()) else { return Ok((None, None)) };
        let mut rows = self.store.view().await?;
        let (first, last) = (rows.grant(first).await?, rows.grant(last).await?);
        Ok((first.map(|row| row.revision.0), last.map(|row| row.revision.0)))
    }

    /// Whom the ends of these revisions concern; none where there are none.
    async fn concerned(&self, from: u64, to: u64) -> Result<Option<Of>, Problem> {
        let mut rows = self.store.view().await?;
        if from == 0 || from > to || to > rows.head().await?.revision.0 {
            return Ok(None);
        }
        let count = u32::try_from(to - from + 1).unwrap_or(u32::MAX);
        let changes = match rows.changes(Revision(from - 1), count.min(SPAN_MAX)).await? {
            Changes::Next(changes) if count <= SPAN_MAX => changes,
            _ => return Ok(Some(Of::All)),
        };
        let mut backends = BTreeSet::new();
        for (_, change) in changes {
            match change {
                Change::End { backend, .. } => drop(backends.insert(backend)),
                Change::Grant(grant) => drop(backends.insert(grant.backend)),
                Change::Lock(lock) => match lock.backend {
                    Some(backend) => drop(backends.insert(backend)),
                    None => return Ok(Some(Of::All)),
                },
                Change::Unlock { .. } | Change::Declared => {}
            }
        }
        Ok((!backends.is_empty()).then_some(Of::Only(backends)))
    }
}

/// What is asked about an end.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// Answers when it is enforced everywhere, or after this long: `30s`, at most `60s`.
    wait: Option<String>,
    /// The first of the revisions, where there are several.
    from: Option<u64>,
}

/// A sidecar that may not know of an end yet.
#[derive(Debug, Serialize, ToSchema)]
struct PendingView {
    /// Its SPIFFE id.
    sidecar: String,
    /// Whether its stream is open.
    connected: bool,
    /// When it denies everything at the latest; absent where it serves some backend until its grants end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    deny_by: Option<String>,
}

impl PendingView {
    fn of(unsure: &Unsure, now: Now) -> Self {
        Self {
            sidecar: unsure.sidecar.to_string(),
            connected: unsure.connected,
            deny_by: unsure.denies_within.map(|within| now.wall.plus(within).to_string()),
        }
    }
}

/// How far an end has come.
#[derive(Debug, Serialize, ToSchema)]
struct EnforcementView {
    /// `enforced` by everybody; `pending`; or `unbounded`, where one that may not know serves on without evidence.
    state: &'static str,
    /// How many sidecars serve what it is about.
    sidecars: usize,
    /// How many of them say that they enforce it.
    enforced: usize,
    /// How many deny everything, because they were not heard of for too long.
    lapsed: usize,
    /// Those that may not know yet: at most 100, and to admins only.
    pending: Vec<PendingView>,
    /// When the last of them denies everything at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    deny_by: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u64>,
}

impl EnforcementView {
    fn of(report: &Report, names: bool, now: Now) -> Self {
        let (found, unbounded) = (&report.found, report.is_unbounded());
        let state = match report.is_enforced() {
            true => "enforced",
            false if unbounded => "unbounded",
            false => "pending",
        };
        let last = found.pending.iter().filter_map(|unsure| unsure.denies_within).max().filter(|_| !unbounded);
        let named = found.pending.iter().take(if names { NAMED_MAX } else { 0 });
        Self {
            state,
            sidecars: found.enforced + found.lapsed + found.pending.len(),
            enforced: found.enforced,
            lapsed: found.lapsed,
            pending: named.map(|unsure| PendingView::of(unsure, now)).collect(),
            deny_by: last.map(|last| now.wall.plus(last).to_string()),
            took_ms: report.took.map(millis),
        }
    }
}

/// Where an end is enforced.
#[derive(Debug, Serialize, ToSchema)]
struct RevocationView {
    /// The revision.
    revision: u64,
    /// How far it has come.
    enforcement: EnforcementView,
}

#[utoipa::path(get, path = "/v1/revocations/{revision}", tag = "sidecars", operation_id = "show_enforcement", summary = "Say where an end is enforced",
    description = "Of a grant's end, a narrower grant or a lock, by the revision that its answer gave.",
    params(("revision" = String, Path), Asked),
    responses(
        (status = 200, description = "How far it has come", body = RevocationView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn enforcement(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Named,
    Params(asked): Params<Asked>,
) -> Result<Json<RevocationView>, Problem> {
    caller.known()?;
    let revision = name.id(|text| text.parse::<u64>().map_err(drop))?;
    let until = Wait { wait: asked.wait }.until()?;
    let of = api.concerned(asked.from.unwrap_or(revision), revision).await?.ok_or_else(nothing_there)?;
    let report = api.reports.enforcement(&of, Revision(revision), until).await?;
    let names = caller.administers("admin:read", api.now());
    Ok(Json(RevocationView { revision, enforcement: EnforcementView::of(&report, names, api.clock.now()) }))
}

/// A sidecar that is to join.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Joining {
    /// Its name: it becomes `spiffe://<trust domain>/sidecar/<name>`.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// For a relay: the host names and addresses by which others follow it. Its certificate is good for these too.
    #[serde(default)]
    #[schema(max_items = 16)]
    serves: Vec<String>,
}

/// What a sidecar joins with. It is shown once.
#[derive(Debug, Serialize, ToSchema)]
struct JoinTokenView {
    /// The token, good once.
    token: String,
    /// The SPIFFE id it is for.
    sidecar: String,
    /// When it is good no more.
    #[schema(format = DateTime)]
    expires_at: String,
}

#[utoipa::path(post, path = "/v1/sidecars/join-tokens", tag = "sidecars", operation_id = "make_join_token", summary = "Make a token with which a sidecar joins",
    description = "Where the control plane signs the certificates of sidecars itself.",
    request_body = Joining,
    responses(
        (status = 201, description = "The token; it is shown once", body = JoinTokenView),
        (status = "4XX", description = "Refused; there is no token", body = ProblemView, content_type = "application/problem+json")))]
async fn join_token(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(joining): Body<Joining>,
) -> Result<(StatusCode, Json<JoinTokenView>), Problem> {
    caller.must_administer("admin:enroll", api.now())?;
    let enrolment = api.enrolment.as_ref().ok_or_else(|| {
        let detail = "this control plane signs no certificates: `control.sync` is missing, or its `tls` says who does";
        Problem::new(StatusCode::CONFLICT, "signs_nothing", detail)
    })?;
    let made = enrolment.token(caller.principal, &joining.name, &joining.serves).await?;
    let view =
        JoinTokenView { token: made.token, sidecar: made.sidecar.to_string(), expires_at: made.expires_at.to_string() };
    Ok((StatusCode::CREATED, Json(view)))
}
