//! What calls about one thing have in common: who acts on which, whether it is only tried out, why, and how long to wait.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::caller::Caller;
use super::input::{Named, Params};
use super::problem::Problem;
use crate::control::command::{Command, Reply};

/// Longest wait that a caller can ask for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Whether what would come of a call is only looked at.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Trial {
    /// With `true` nothing is changed, and the answer says what would have come of it.
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// Somebody who wants something done to what the path names.
pub(super) struct Act {
    pub(super) api: Arc<Api>,
    pub(super) caller: Caller,
    pub(super) name: Named,
    /// Whether it is only tried out.
    pub(super) trial: bool,
}

impl FromRequestParts<Arc<Api>> for Act {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        // Who it is comes first: nobody else learns what is wrong with the rest.
        let caller = Caller::from_request_parts(parts, api).await?;
        let name = Named::from_request_parts(parts, api).await?;
        let Params(Trial { dry_run: trial }) = Params::from_request_parts(parts, api).await?;
        Ok(Self { api: Arc::clone(api), caller, name, trial })
    }
}

impl Act {
    /// Runs a command of the caller's, or looks at what would come of it.
    pub(super) async fn run(&self, command: Command) -> Result<Reply, Problem> {
        self.api.run(&self.caller, command, self.trial).await
    }
}

/// Why something is done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Because {
    /// In the caller's words.
    #[serde(default)]
    #[schema(max_length = 2_000)]
    pub(super) reason: String,
}

impl Because {
    /// The words, if they are not too many.
    pub(super) fn read(self) -> Result<String, Problem> {
        if self.reason.len() > 2_000 {
            return Err(Problem::invalid("reason_too_long", "`reason` has at most 2,000 bytes"));
        }
        Ok(self.reason)
    }
}

/// How long to wait for something to happen.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// Answers when the state is another one, or after this long: `30s`, at most `60s`.
    pub(super) wait: Option<String>,
}

impl Wait {
    /// Until when.
    pub(super) fn until(&self) -> Result<Instant, Problem> {
        let Some(text) = &self.wait else { return Ok(Instant::now()) };
        let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs);
        let wait = seconds.filter(|wait| *wait <= WAIT_MAX && text.bytes().all(|b| b.is_ascii_digit() || b == b's'));
        let wait = wait.ok_or_else(|| Problem::invalid("wait", "`wait` is `0s` to `60s`"))?;
        Ok(Instant::now() + wait)
    }
}

impl Api {
    /// Looks until what is seen is over, or the wait is; whatever changes in the store is a reason to look again.
    pub(super) async fn watch<T, F>(
        &self,
        wait: &Wait,
        look: impl Fn() -> F,
        is_over: impl Fn(&T) -> bool,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let until = wait.until()?;
        let mut changes = self.engine.head();
        loop {
            changes.mark_unchanged();
            let seen = look().await?;
            if is_over(&seen) || !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Ok(seen);
            }
        }
    }
}
