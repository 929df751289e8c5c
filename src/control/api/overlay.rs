//! What lies over grants: locks, which stop them, and tasks, which end them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::act::{Act, Trial};
use super::caller::Caller;
use super::input::{Body, Named, Params, Spoken, nothing_there};
use super::page::Listed;
use super::problem::{Problem, ProblemView};
use super::sight::unexpected;
use super::view::TaskView;
use crate::control::command::{Command, Reply, TaskSaid};
use crate::control::store::{Rows, Store};
use crate::domain::action::ActionPattern;
use crate::domain::id::{BackendName, GrantId, LockId, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::domain::task::TaskEvent;
use crate::domain::time::Timestamp;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(locks, lock))
        .routes(routes!(unlock))
        .routes(routes!(task))
        .routes(routes!(close))
        .routes(routes!(open))
}

/// A kill switch: criteria that are given must all hold. One without any stops everything, and says so with `all`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LockView {
    /// Its id; made here where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Only calls of this principal.
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    /// Only calls to this backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    /// Only these actions.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
    /// Only calls that reach these resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    /// Only calls under this grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<String>,
    /// Only calls for this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Every call. Given where no criterion is, and only there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    all: bool,
    /// What whoever is stopped is told.
    #[serde(default)]
    #[schema(max_length = 500)]
    message: String,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// The revision at which it was put in force; in the answer to that only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    revision: Option<u64>,
}

impl From<&Lock> for LockView {
    fn from(lock: &Lock) -> Self {
        Self {
            id: Some(lock.id.to_string()),
            principal: lock.principal.as_ref().map(ToString::to_string),
            backend: lock.backend.as_ref().map(ToString::to_string),
            action: lock.action.as_ref().map(|action| action.as_str().to_owned()),
            resource: lock.resource.as_ref().map(|resource| resource.as_str().to_owned()),
            grant: lock.grant.as_ref().map(ToString::to_string),
            task: lock.task.as_ref().map(ToString::to_string),
            all: stops_everything(lock),
            message: lock.message.clone(),
            expires_at: lock.expires_at.map(|end| end.to_string()),
            revision: None,
        }
    }
}

impl LockView {
    fn read(self, api: &Api) -> Result<Lock, Problem> {
        let bad = |error: &dyn std::fmt::Display| Problem::invalid("invalid_field", error);
        if self.message.len() > 500 || self.message.chars().any(char::is_control) {
            return Err(Problem::invalid("message", "`message` has at most 500 bytes and no control characters"));
        }
        if self.revision.is_some() {
            return Err(Problem::invalid("invalid_field", "`revision` is for the control plane to say: leave it out"));
        }
        let all = self.all;
        let id = self.id.unwrap_or_else(|| format!("lck_{}", api.new_id()));
        let lock = Lock {
            id: LockId::new(&id).map_err(|e| bad(&e))?,
            principal: self.principal.as_deref().map(Principal::parse).transpose().map_err(|e| bad(&e))?,
            backend: self.backend.as_deref().map(BackendName::new).transpose().map_err(|e| bad(&e))?,
            action: self.action.as_deref().map(ActionPattern::new).transpose().map_err(|e| bad(&e))?,
            resource: self.resource.as_deref().map(ResourcePattern::new).transpose().map_err(|e| bad(&e))?,
            grant: self.grant.as_deref().map(GrantId::new).transpose().map_err(|e| bad(&e))?,
            task: self.task.as_deref().map(TaskRef::new).transpose().map_err(|e| bad(&e))?,
            message: self.message,
            expires_at: self.expires_at.as_deref().map(Timestamp::parse).transpose().map_err(|e| bad(&e))?,
        };
        if all != stops_everything(&lock) {
            let detail = "a lock has criteria, or `all: true` and none: say which calls it is to stop";
            return Err(Problem::invalid("which_calls", detail));
        }
        Ok(lock)
    }
}

fn stops_everything(lock: &Lock) -> bool {
    lock.principal.is_none()
        && lock.backend.is_none()
        && lock.action.is_none()
        && lock.resource.is_none()
        && lock.grant.is_none()
        && lock.task.is_none()
}

#[utoipa::path(get, path = "/v1/locks", tag = "locks", operation_id = "list_locks", summary = "List the locks in force",
    responses(
        (status = 200, description = "All of them", body = Listed<LockView>),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn locks(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<Listed<LockView>>, Problem> {
    let now = api.now();
    caller.must_administer("admin:read", now)?;
    let locks = api.store.view().await?.locks().await?;
    let in_force = locks.iter().filter(|lock| lock.expires_at.is_none_or(|end| now < end));
    Ok(Json(Listed { items: in_force.map(LockView::from).collect(), next_page_token: None }))
}

#[utoipa::path(post, path = "/v1/locks", tag = "locks", operation_id = "lock", summary = "Put a lock in force",
    params(Trial), request_body = LockView,
    responses(
        (status = 201, description = "The lock", body = LockView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn lock(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(trial): Params<Trial>,
    Body(lock): Body<LockView>,
) -> Result<(StatusCode, Json<LockView>), Problem> {
    let command = Command::Lock(Box::new(lock.read(&api)?));
    let Reply::Lock(lock, revision) = api.run(&caller, command, trial.dry_run).await? else {
        return Err(unexpected());
    };
    let revision = (!trial.dry_run).then_some(revision.0);
    Ok((StatusCode::CREATED, Json(LockView { revision, ..LockView::from(&*lock) })))
}

#[utoipa::path(delete, path = "/v1/locks/{id}", tag = "locks", operation_id = "unlock", summary = "Lift a lock",
    params(("id" = String, Path), Trial),
    responses(
        (status = 204, description = "It is lifted"),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn unlock(act: Act) -> Result<StatusCode, Problem> {
    act.caller.must_administer("admin:lock", act.api.now())?;
    act.run(Command::Unlock(act.name.id(LockId::new)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a task's source says of it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Said {
    /// What kind it is: `incident`, `change`, `pipeline`, …
    #[serde(default)]
    #[schema(max_length = 64)]
    kind: String,
    /// When it ends by itself.
    #[schema(format = DateTime)]
    until: Option<String>,
    /// When that happened, by the source's clock; without it now.
    #[schema(format = DateTime)]
    at: Option<String>,
}

/// A task, and what its end ended.
#[derive(Debug, Serialize, ToSchema)]
struct TaskOutcome {
    /// How it is now.
    task: TaskView,
    /// The grants that ended with it.
    ended: Vec<String>,
    /// At which revision the last of them did: where that is enforced, all are. Absent where none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// At which revision the first of them did.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
}

#[utoipa::path(get, path = "/v1/tasks/{reference}", tag = "tasks", operation_id = "show_task", summary = "Show a task",
    params(("reference" = String, Path, description = "`source:reference`, percent-encoded")),
    responses(
        (status = 200, description = "The task", body = TaskView),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn task(State(api): State<Arc<Api>>, caller: Caller, name: Named) -> Result<Json<TaskView>, Problem> {
    caller.known()?;
    let reference = name.id(TaskRef::new)?;
    if caller.task.as_ref() != Some(&reference) && !caller.administers("admin:read", api.now()) {
        return Err(nothing_there());
    }
    let task = api.store.view().await?.task(&reference).await?.ok_or_else(nothing_there)?;
    Ok(Json(TaskView::from(&task)))
}

impl Act {
    async fn task_said(&self, said: Said, event: TaskEvent) -> Result<Json<TaskOutcome>, Problem> {
        let bad = |error: &dyn std::fmt::Display| Problem::invalid("invalid_field", error);
        self.caller.must_administer("admin:task", self.api.now())?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if said.kind.len() > 64 || !said.kind.bytes().all(plain) {
            return Err(Problem::invalid("kind", "`kind` is up to 64 of a-z, 0-9, `_` and `-`"));
        }
        let at = said.at.as_deref().map(Timestamp::parse).transpose().map_err(|e| bad(&e))?;
        let said = TaskSaid {
            task: TaskRef::new(&self.name.0).map_err(|e| bad(&e))?,
            event,
            at: at.unwrap_or_else(|| self.api.now()),
            kind: said.kind,
            until: said.until.as_deref().map(Timestamp::parse).transpose().map_err(|e| bad(&e))?,
        };
        let trial = self.trial;
        let Reply::Task(task, ended) = self.run(Command::Task(said)).await? else { return Err(unexpected()) };
        let (from, revision) = if trial { (None, None) } else { self.api.span(&ended).await? };
        let ended = ended.iter().map(ToString::to_string).collect();
        Ok(Json(TaskOutcome { task: TaskView::from(&task), ended, revision, from }))
    }
}

#[utoipa::path(post, path = "/v1/tasks/{reference}/close", tag = "tasks", operation_id = "close_task", summary = "Say that a task is over",
    description = "Its grants end and its pending requests are cancelled; what is older than the close opens it no more.",
    params(("reference" = String, Path, description = "`source:reference`, percent-encoded"), Trial), request_body = Said,
    responses(
        (status = 200, description = "The task, and what ended", body = TaskOutcome),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn close(act: Act, Spoken(said): Spoken<Said>) -> Result<Json<TaskOutcome>, Problem> {
    act.task_said(said, TaskEvent::Closed).await
}

#[utoipa::path(post, path = "/v1/tasks/{reference}/open", tag = "tasks", operation_id = "open_task", summary = "Say that a task is open",
    params(("reference" = String, Path, description = "`source:reference`, percent-encoded"), Trial), request_body = Said,
    responses(
        (status = 200, description = "The task", body = TaskOutcome),
        (status = "4XX", description = "Refused", body = ProblemView, content_type = "application/problem+json")))]
async fn open(act: Act, Spoken(said): Spoken<Said>) -> Result<Json<TaskOutcome>, Problem> {
    act.task_said(said, TaskEvent::Opened).await
}
