//! Changes as they happen, a JSON object a line: for people, dashboards and integrations. Sidecars have a protocol of
//! their own.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::caller::Caller;
use super::input::Params;
use super::overlay::LockView;
use super::problem::{Problem, ProblemView};
use super::watchers::Place;
use crate::control::store::{Change, Changes, Rows, Store};
use crate::domain::grant::Grant;
use crate::domain::id::Revision;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(watch))
}

/// How often a quiet stream says how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// How long one stream lasts; whoever wants more proves again who they are.
const LASTS: Duration = Duration::from_secs(3_600);

/// Changes read at once.
const PAGE: u32 = 500;

/// Where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Since {
    /// The revision after which to begin; without it, now.
    since: Option<u64>,
}

/// A line: a change, or how far the stream is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    /// A grant began, or became narrower.
    Grant {
        /// At which revision.
        revision: u64,
        /// Its id.
        id: String,
        /// Who holds it.
        principal: String,
        /// On which backend.
        backend: String,
        /// Which actions.
        actions: Vec<String>,
        /// On which resources.
        resources: Vec<String>,
        /// Only the one call of that digest.
        #[serde(skip_serializing_if = "Option::is_none")]
        arguments: Option<String>,
        /// When it ends by itself.
        expires_at: String,
        /// What justifies it.
        #[serde(skip_serializing_if = "Option::is_none")]
        task: Option<String>,
    },
    /// A grant ended.
    Ended {
        /// At which revision.
        revision: u64,
        /// Its id.
        id: String,
        /// On which backend.
        backend: String,
        /// In which state it is.
        state: String,
    },
    /// A lock is in force.
    Lock {
        /// At which revision.
        revision: u64,
        /// The lock.
        lock: LockView,
    },
    /// A lock was lifted.
    Unlock {
        /// At which revision.
        revision: u64,
        /// Its id.
        id: String,
    },
    /// Documents changed.
    Declared {
        /// At which revision.
        revision: u64,
    },
    /// Everything up to there was said; begin after it the next time.
    Bookmark {
        /// The revision.
        revision: u64,
    },
}

impl Line {
    fn of(revision: u64, change: Change) -> Self {
        match change {
            Change::Grant(grant) => Self::begun(revision, &grant),
            Change::End { id, backend, state } => Self::Ended {
                revision,
                id: id.to_string(),
                backend: backend.to_string(),
                state: state.as_str().to_owned(),
            },
            Change::Lock(lock) => Self::Lock { revision, lock: LockView::from(&*lock) },
            Change::Unlock { id } => Self::Unlock { revision, id: id.to_string() },
            Change::Declared => Self::Declared { revision },
        }
    }

    fn begun(revision: u64, grant: &Grant) -> Self {
        Self::Grant {
            revision,
            id: grant.id.to_string(),
            principal: grant.principal.to_string(),
            backend: grant.backend.to_string(),
            actions: grant.scope.actions().iter().map(|action| action.as_str().to_owned()).collect(),
            resources: grant.scope.resources().iter().map(|resource| resource.as_str().to_owned()).collect(),
            arguments: grant.scope.arguments().map(ToString::to_string),
            expires_at: grant.window.expires_at.to_string(),
            task: grant.task.as_ref().map(ToString::to_string),
        }
    }

    fn bytes(&self) -> Bytes {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}

#[utoipa::path(get, path = "/v1/watch", tag = "operations", operation_id = "watch", summary = "Watch what changes",
    description = "A JSON object a line, without end: changes in the order of revisions, and a `bookmark` every 5 s. Whom an \
        admin policy lets `admin:read` sees all of them; anybody else the grants that they hold or answer for, and neither \
        locks nor that documents changed. It ends after an hour, when the control plane stops, and when the caller may not see \
        it any more; begin again after the last revision.",
    params(Since),
    responses(
        (status = 200, description = "The changes, one a line", body = Line, content_type = "application/x-ndjson"),
        (status = "4XX", description = "Refused; 410 where the changes are kept no more: list, then watch from now", body = ProblemView, content_type = "application/problem+json")))]
async fn watch(State(api): State<Arc<Api>>, caller: Caller, Params(since): Params<Since>) -> Result<Response, Problem> {
    let sees_all = caller.administers("admin:read", api.now());
    let place = if sees_all {
        api.watchers.of_all()?
    } else {
        caller.known()?;
        api.watchers.of(&caller.principal)?
    };
    let head = api.store.view().await?.head().await?.revision;
    let after = since.since.map_or(head, Revision);
    if after > head {
        return Err(Problem::invalid("invalid_query", format_args!("`since` is at most {head}, which is the last")));
    }
    // What cannot be gone on from is told before anything else is.
    let first = api.read(after).await?;
    let (lines, receiver) = mpsc::channel(16);
    let watcher = Watcher { api, caller, sees_all, lines, after, _place: place };
    tokio::spawn(watcher.run(first));
    let mut response = Response::new(Body::from_stream(Lines(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Api {
    async fn read(&self, after: Revision) -> Result<Vec<(Revision, Change)>, Problem> {
        match self.store.view().await?.changes(after, PAGE).await? {
            Changes::Next(changes) => Ok(changes),
            Changes::Compacted { floor } => {
                let detail = format!("changes before revision {floor} are kept no more: list, then watch from now");
                Err(Problem::new(StatusCode::GONE, "compacted", detail))
            }
        }
    }
}

struct Watcher {
    api: Arc<Api>,
    caller: Caller,
    /// Whether that is everything, or what is the caller's.
    sees_all: bool,
    lines: mpsc::Sender<Result<Bytes, Infallible>>,
    after: Revision,
    _place: Place,
}

impl Watcher {
    async fn run(mut self, mut changes: Vec<(Revision, Change)>) {
        let mut moved = self.api.engine.head();
        let over = Instant::now() + LASTS;
        let mut bookmark = Instant::now() + BOOKMARK_EVERY;
        while Instant::now() < over && !self.api.stop.is_cancelled() {
            moved.mark_unchanged();
            while !changes.is_empty() {
                let Some(next) = self.say(changes).await else { return };
                changes = next;
            }
            tokio::select! {
                () = self.api.stop.cancelled() => return,
                () = self.lines.closed() => return,
                waited = timeout_at(bookmark, moved.changed()) => if let Ok(Err(_)) = waited { return },
            }
            if Instant::now() >= bookmark {
                bookmark = Instant::now() + BOOKMARK_EVERY;
                let line = Line::Bookmark { revision: self.after.0 };
                if !self.still_may() || self.lines.send(Ok(line.bytes())).await.is_err() {
                    return;
                }
            }
            let Ok(next) = self.api.read(self.after).await else { return };
            changes = next;
        }
    }

    /// Says what of these changes is the caller's to see, and reads the next; nothing where that is over.
    async fn say(&mut self, changes: Vec<(Revision, Change)>) -> Option<Vec<(Revision, Change)>> {
        if !self.still_may() {
            return None;
        }
        let last = changes.last().map_or(self.after, |(revision, _)| *revision);
        // All of them first: a reader who is slow is not to hold a view of the store.
        for (revision, change) in self.seen(changes).await.ok()? {
            self.lines.send(Ok(Line::of(revision.0, change).bytes())).await.ok()?;
        }
        self.after = last;
        self.api.read(last).await.ok()
    }

    /// What of it is the caller's to see.
    async fn seen(&self, changes: Vec<(Revision, Change)>) -> Result<Vec<(Revision, Change)>, Problem> {
        if self.sees_all {
            return Ok(changes);
        }
        let mut rows = self.api.store.view().await?;
        let mut seen = Vec::new();
        for (revision, change) in changes {
            let is_theirs = match &change {
                Change::Grant(grant) => self.caller.holds(grant),
                Change::End { id, .. } => rows.grant(id).await?.is_some_and(|row| self.caller.holds(&row.grant)),
                Change::Lock(_) | Change::Unlock { .. } | Change::Declared => false,
            };
            if is_theirs {
                seen.push((revision, change));
            }
        }
        Ok(seen)
    }

    /// Whether the caller may still see it, by the documents of now.
    fn still_may(&mut self) -> bool {
        self.caller.catalogue = self.api.engine.catalogue();
        self.caller.known = self.caller.catalogue.know(&self.caller.principal);
        if self.sees_all { self.caller.administers("admin:read", self.api.now()) } else { self.caller.known().is_ok() }
    }
}

/// The lines as a body.
struct Lines(mpsc::Receiver<Result<Bytes, Infallible>>);

impl futures_core::Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}
