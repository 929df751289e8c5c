//! `leasehold request` and `leasehold requests`.

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::render::{self, must, text};
use super::{Call, Common, Failure, duration, more, view};
use crate::cli::client::{Client, fresh_key};
use crate::cli::{Output, print};
use crate::domain::arguments::ArgumentDigest;

/// Longest that one call waits; a longer wait is several.
const WAIT_ONCE: Duration = Duration::from_secs(30);

/// What to ask for.
#[derive(Debug, Args)]
pub(in crate::cli) struct Ask {
    /// The entitlement
    #[arg(value_name = "ENTITLEMENT")]
    entitlement: String,
    /// What justifies it, such as `jira:OPS-17` or `github:org/app:run:7`
    #[arg(long, value_name = "SOURCE:REF")]
    task: Option<String>,
    /// For how long, from when it is approved; without it as long as the entitlement allows
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// For how many calls
    #[arg(long, value_name = "N")]
    uses: Option<u32>,
    /// Only this action; may be given more than once
    #[arg(long = "action", value_name = "ACTION")]
    actions: Vec<String>,
    /// Only this resource; may be given more than once
    #[arg(long = "resource", value_name = "RESOURCE")]
    resources: Vec<String>,
    /// Only the one call of that digest, as `leasehold digest` prints it
    #[arg(long, value_name = "DIGEST")]
    arguments: Option<ArgumentDigest>,
    /// Why, in your words; approvers see it marked as yours
    #[arg(long, value_name = "TEXT")]
    justification: Option<String>,
    /// For a principal that you answer for, and not for yourself
    #[arg(long = "for", value_name = "PRINCIPAL")]
    subject: Option<String>,
    /// The grant whose place it is to take; it widens nothing, and lasts as long as the entitlement allows in all
    #[arg(long, value_name = "GRANT")]
    renews: Option<String>,
    /// Waits until it is decided, at most this long [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, default_missing_value = "10m")]
    wait: Option<Duration>,
    /// Says what would come of it, and asks for nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Ask {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        // One key an invocation: if the answer is lost, asking again finds the same request.
        let call = Call::post(&["v1", "requests"], self.body()).dry_run(self.dry_run).key(fresh_key()?);
        let mut request = client.send(&call)?.body;
        if let Some(wait) = self.wait
            && is_pending(&request)
        {
            print::aside(&format!(
                "{} is pending: it waits for {}",
                text(&request, &["/id"]),
                view::waits_for(&request)
            ));
            request = wait_for(&client, request, wait)?;
        }
        render::one(self.common.output, &request, |request| outcome(request, self.dry_run))?;
        if self.common.output == Output::Table && !self.dry_run && is_pending(&request) {
            let id = text(&request, &["/id"]);
            print::aside(&format!("an approver says `leasehold approve {id}`; see it with `leasehold show {id}`"));
        }
        ended(&request)
    }

    fn body(&self) -> Value {
        let mut body = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(key.to_owned(), value);
            }
        };
        let list = |list: &[String]| (!list.is_empty()).then(|| json!(list));
        put("entitlement", Some(json!(self.entitlement)));
        put("subject", self.subject.as_ref().map(|subject| json!(subject)));
        put("actions", list(&self.actions));
        put("resources", list(&self.resources));
        put("arguments", self.arguments.map(|digest| json!(digest)));
        put("duration_seconds", self.ttl.map(|ttl| json!(ttl.as_secs())));
        put("uses", self.uses.map(|uses| json!(uses)));
        put("renews", self.renews.as_ref().map(|grant| json!(grant)));
        put("task", self.task.as_ref().map(|task| json!(task)));
        put("justification", self.justification.as_ref().map(|words| json!(words)));
        Value::Object(body)
    }
}

fn is_pending(request: &Value) -> bool {
    request.get("state").and_then(Value::as_str) == Some("pending")
}

/// Asks again and again, until it is decided or `wait` is over. A connection that is lost on the way is made again.
fn wait_for(client: &Client, mut request: Value, wait: Duration) -> Result<Value, Failure> {
    let id = must(&request, "/id")?.to_owned();
    let began = Instant::now();
    while let Some(left) = wait.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
        && is_pending(&request)
    {
        let asked = Instant::now();
        let once = left.min(WAIT_ONCE);
        match client.send(&Call::get(&["v1", "requests", &id]).wait(once)) {
            Ok(reply) => request = reply.body,
            Err(Failure::Unreachable(error)) => print::aside(&format!("{error:#}\n  still waiting for {id}")),
            Err(failure) => return Err(failure),
        }
        // One that does not wait is not asked in a tight loop.
        if asked.elapsed() < Duration::from_millis(500) && is_pending(&request) {
            client.pause(left.min(Duration::from_secs(1)));
        }
    }
    Ok(request)
}

/// What came of it, in full.
fn outcome(request: &Value, dry_run: bool) -> String {
    let shown = view::request(request, render::now());
    if !dry_run {
        return shown;
    }
    let state = text(request, &["/state"]);
    let rest = shown.split_once('\n').map_or("", |(_, rest)| rest);
    format!("nothing was asked: it would be {state}\n{rest}")
}

/// The exit code that tells where it stands.
fn ended(request: &Value) -> Result<(), Failure> {
    match request.get("state").and_then(Value::as_str) {
        Some("approved") => Ok(()),
        Some("pending") => Err(Failure::Told(3)),
        Some(_) => Err(Failure::Told(1)),
        None => Err(Failure::Running(anyhow!("the control plane's answer has no `state`"))),
    }
}

/// What a request has to do with whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Somebody must decide yet
    Pending,
    /// It became a grant
    Approved,
    /// Policy or an approver said no
    Denied,
    /// It was taken back
    Cancelled,
    /// Nobody decided in time
    Expired,
}

/// Which requests to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct Requests {
    /// Only in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only yours
    #[arg(long, group = "relation")]
    mine: bool,
    /// Only those that wait for you
    #[arg(long, group = "relation")]
    can_approve: bool,
    /// Only those that you agreed to
    #[arg(long, group = "relation")]
    approved: bool,
    /// Only of this requester or subject
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Only on this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only for this entitlement
    #[arg(long, value_name = "NAME")]
    entitlement: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

impl Requests {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        let state = self.state.and_then(|state| state.to_possible_value());
        let relation = [(self.mine, "mine"), (self.can_approve, "can_approve"), (self.approved, "approved")];
        let relation = relation.into_iter().find_map(|(is_set, name)| is_set.then_some(name));
        let call = Call::get(&["v1", "requests"])
            .maybe("state", state.as_ref().map(|state| state.get_name()))
            .maybe("principal", self.principal.as_deref())
            .maybe("backend", self.backend.as_deref())
            .maybe("entitlement", self.entitlement.as_deref())
            .maybe("relation", relation);
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let (requests, is_more) = client.list(&call, limit)?;
        let none = if self.can_approve { "nothing waits for you" } else { "no requests" };
        render::list(self.common.output, &requests, view::REQUESTS, none)?;
        more(is_more, limit);
        Ok(())
    }
}
