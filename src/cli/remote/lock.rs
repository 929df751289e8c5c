//! `leasehold lock`, `locks` and `unlock`.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};

use super::render::{self, text};
use super::sidecar::Enforced;
use super::{Call, Common, Failure, confirm, duration, view};
use crate::cli::print;

/// Most locks that are shown.
const LIMIT: usize = 10_000;

/// What to stop: calls that match every criterion.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub(in crate::cli) struct Lock {
    /// Calls of this principal
    #[arg(long, value_name = "PRINCIPAL", group = "what")]
    principal: Option<String>,
    /// Calls to this backend
    #[arg(long, value_name = "NAME", group = "what")]
    backend: Option<String>,
    /// These actions
    #[arg(long, value_name = "ACTION", group = "what")]
    action: Option<String>,
    /// Calls that reach these resources
    #[arg(long, value_name = "RESOURCE", group = "what")]
    resource: Option<String>,
    /// Calls under this grant
    #[arg(long, value_name = "ID", group = "what")]
    grant: Option<String>,
    /// Calls for this task
    #[arg(long, value_name = "SOURCE:REF", group = "what")]
    task: Option<String>,
    /// Every call to every backend
    #[arg(long, group = "what", conflicts_with_all = ["principal", "backend", "action", "resource", "grant", "task"])]
    everything: bool,
    /// What refused callers are told
    #[arg(short, long, value_name = "TEXT")]
    message: String,
    /// Ends by itself after this long; without it, it stays until it is lifted
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    time: Option<Duration>,
    /// Does not ask, where everything is stopped
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    enforced: Enforced,
    #[command(flatten)]
    common: Common,
}

impl Lock {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if self.everything {
            confirm("Stop every call to every backend?", self.yes)?;
        }
        let client = self.common.client()?;
        let lock = client.send(&Call::post(&["v1", "locks"], self.body()))?.body;
        render::one(self.common.output, &lock, |lock| view::lock(lock, render::now()))?;
        self.enforced.wait(&client, self.common.output, &[lock])
    }

    fn body(&self) -> Value {
        let criteria = [
            ("principal", &self.principal),
            ("backend", &self.backend),
            ("action", &self.action),
            ("resource", &self.resource),
            ("grant", &self.grant),
            ("task", &self.task),
        ];
        let mut body: Map<String, Value> =
            criteria.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?)))).collect();
        if self.everything {
            body.insert("all".into(), json!(true));
        }
        body.insert("message".into(), json!(self.message));
        if let Some(time) = self.time {
            body.insert("expires_at".into(), json!(render::now().plus(time)));
        }
        Value::Object(body)
    }
}

/// How to list the locks.
#[derive(Debug, Args)]
pub(in crate::cli) struct Locks {
    #[command(flatten)]
    common: Common,
}

impl Locks {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (locks, _) = self.common.client()?.list(&Call::get(&["v1", "locks"]), LIMIT)?;
        Ok(render::list(self.common.output, &locks, view::LOCKS, "no locks: nothing is stopped")?)
    }
}

/// Which lock to lift.
#[derive(Debug, Args)]
pub(in crate::cli) struct Unlock {
    /// The lock
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    common: Common,
}

impl Unlock {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let reply = self.common.client()?.send(&Call::new(Method::DELETE, &["v1", "locks", &self.id]))?;
        let document = if reply.body.is_null() { json!({"id": self.id, "lifted": true}) } else { reply.body };
        Ok(render::one(self.common.output, &document, |lock| {
            print::safe(&format!("{} is lifted\n", text(lock, &["/id"])))
        })?)
    }
}
