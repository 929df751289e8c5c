//! `leasehold grants`, `reduce`, `release`, `revoke` and `review`.

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::render::{self, text};
use super::sidecar::Enforced;
use super::{Call, Common, Failure, confirm, duration, more, view};
use crate::cli::admin::AdminUrl;
use crate::cli::client::Client;
use crate::cli::{Output, print, show};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::time::Timestamp;

/// Most grants that are named before they are taken away.
const NAMED_MAX: usize = 20;

/// Where a grant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// It permits
    Active,
    /// Its time is over
    Expired,
    /// Its last use was taken
    Exhausted,
    /// Its holder gave it back
    Released,
    /// It was taken away
    Revoked,
}

/// Whether somebody looked at a break-glass grant afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reviewed {
    /// Nobody did yet
    Open,
    /// Somebody did
    Done,
}

/// Which grants to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct Grants {
    /// Asks the admin listener of a running proxy, such as http://127.0.0.1:9901, and not the control plane
    #[arg(long, value_name = "URL", conflicts_with_all = ["state", "principal", "backend", "entitlement", "task", "review", "mine"])]
    admin: Option<AdminUrl>,
    /// Only in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only of this principal
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Only on this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only under this entitlement
    #[arg(long, value_name = "NAME")]
    entitlement: Option<String>,
    /// Only for this task
    #[arg(long, value_name = "SOURCE:REF")]
    task: Option<String>,
    /// Only break-glass grants whose review is open, or done
    #[arg(long, value_enum)]
    review: Option<Reviewed>,
    /// Only yours
    #[arg(long)]
    mine: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

impl Grants {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if let Some(admin) = &self.admin {
            if self.common.server.is_given() {
                return Err(Failure::Usage(anyhow!(
                    "`--admin` asks a proxy: `--server`, `--token-file` and `--ca` are for the control plane"
                )));
            }
            return Ok(show::grants(admin, self.common.output)?);
        }
        let client = self.common.client()?;
        let state = self.state.and_then(|state| state.to_possible_value());
        let review = self.review.and_then(|review| review.to_possible_value());
        let call = Call::get(&["v1", "grants"])
            .maybe("state", state.as_ref().map(|state| state.get_name()))
            .maybe("principal", self.principal.as_deref())
            .maybe("backend", self.backend.as_deref())
            .maybe("entitlement", self.entitlement.as_deref())
            .maybe("task", self.task.as_deref())
            .maybe("review", review.as_ref().map(|review| review.get_name()))
            .maybe("relation", self.mine.then_some("mine"));
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let (grants, is_more) = client.list(&call, limit)?;
        render::list(self.common.output, &grants, view::GRANTS, "no grants")?;
        more(is_more, limit);
        Ok(())
    }
}

/// How a grant becomes narrower.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("narrower").required(true).multiple(true))]
pub(in crate::cli) struct Reduce {
    /// The grant
    #[arg(value_name = "ID")]
    id: String,
    /// Ends this long from now
    #[arg(long, value_name = "DURATION", value_parser = duration, group = "narrower", conflicts_with = "expires_at")]
    ttl: Option<Duration>,
    /// Ends then, such as 2026-11-23T15:13:00Z
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse, group = "narrower")]
    expires_at: Option<Timestamp>,
    /// Is good for this many calls, those that were made included
    #[arg(long, value_name = "N", group = "narrower")]
    uses: Option<u32>,
    /// Only this action; may be given more than once
    #[arg(long = "action", value_name = "ACTION", group = "narrower")]
    actions: Vec<String>,
    /// Only this resource; may be given more than once
    #[arg(long = "resource", value_name = "RESOURCE", group = "narrower")]
    resources: Vec<String>,
    /// Only the one call of that digest, as `leasehold digest` prints it; a grant that is bound stays bound to what it is
    #[arg(long, value_name = "DIGEST", group = "narrower")]
    arguments: Option<ArgumentDigest>,
    /// Says what would come of it, and does nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Reduce {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        let mut body = Map::new();
        if let Some(end) = self.expires_at.or_else(|| self.ttl.map(|ttl| render::now().plus(ttl))) {
            body.insert("expires_at".into(), json!(end));
        }
        if let Some(uses) = self.uses {
            body.insert("uses_max".into(), json!(uses));
        }
        if let Some(digest) = self.arguments {
            body.insert("arguments".into(), json!(digest));
        }
        for (key, list) in [("actions", &self.actions), ("resources", &self.resources)] {
            if !list.is_empty() {
                body.insert(key.into(), json!(list));
            }
        }
        let call = Call::post(&["v1", "grants", &self.id, "reduce"], Value::Object(body)).dry_run(self.dry_run);
        let grant = client.send(&call)?.body;
        render::one(self.common.output, &grant, |grant| view::grant(grant, render::now()))?;
        let id = text(&grant, &["/id"]);
        if self.dry_run {
            print::aside("nothing was changed: --dry-run");
        } else if id != self.id {
            print::aside(&format!("a scope never changes under its id: {id} took the place of {}", self.id));
        }
        Ok(())
    }
}

/// Which grant to give back.
#[derive(Debug, Args)]
pub(in crate::cli) struct Release {
    /// The grant
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    common: Common,
}

impl Release {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        let grant = client.send(&Call::post(&["v1", "grants", &self.id, "release"], json!({})))?.body;
        Ok(render::one(self.common.output, &grant, state_line)?)
    }
}

fn state_line(grant: &Value) -> String {
    print::safe(&format!("{} is {}\n", text(grant, &["/id"]), text(grant, &["/state"])))
}

/// Which grants to take away: by id, or all that match every criterion.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true))]
pub(in crate::cli) struct Revoke {
    /// The grants
    #[arg(value_name = "ID", group = "which", conflicts_with_all = ["principal", "backend", "entitlement", "task"])]
    ids: Vec<String>,
    /// Those of this principal
    #[arg(long, value_name = "PRINCIPAL", group = "which")]
    principal: Option<String>,
    /// Those on this backend
    #[arg(long, value_name = "NAME", group = "which")]
    backend: Option<String>,
    /// Those under this entitlement
    #[arg(long, value_name = "NAME", group = "which")]
    entitlement: Option<String>,
    /// Those of this task
    #[arg(long, value_name = "SOURCE:REF", group = "which")]
    task: Option<String>,
    /// Why, in your words
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Does not ask
    #[arg(short, long)]
    yes: bool,
    /// Says what would end, and ends nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    enforced: Enforced,
    #[command(flatten)]
    common: Common,
}

impl Revoke {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        if self.ids.is_empty() { self.by_selector(&client) } else { self.by_id(&client) }
    }

    fn by_selector(&self, client: &Client) -> Result<(), Failure> {
        let criteria = [
            ("principal", &self.principal),
            ("backend", &self.backend),
            ("entitlement", &self.entitlement),
            ("task", &self.task),
        ];
        let mut body: Map<String, Value> =
            criteria.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?)))).collect();
        body.insert("reason".into(), json!(self.reason));
        let call = Call::post(&["v1", "revocations"], Value::Object(body));
        if self.dry_run || (!self.yes && print::can_ask()) {
            let would = client.send(&call.clone().dry_run(true))?.body;
            let ids = ended(&would)?;
            if self.dry_run || ids.is_empty() {
                return self.tell(&would, &ids);
            }
            print::aside(&named(&ids));
            confirm("Revoke them?", false)?;
        }
        let body = client.send(&call)?.body;
        let ids = ended(&body)?;
        self.tell(&body, &ids)?;
        self.enforced.wait(client, self.common.output, &[body])
    }

    fn by_id(&self, client: &Client) -> Result<(), Failure> {
        if !self.dry_run {
            confirm(&format!("Revoke {}?", self.ids.join(", ")), self.yes)?;
        }
        let mut grants = Vec::new();
        let mut failed = None;
        for id in &self.ids {
            let call = Call::post(&["v1", "grants", id, "revoke"], json!({"reason": self.reason}));
            match client.send(&call.dry_run(self.dry_run)) {
                Ok(reply) => {
                    if self.common.output == Output::Table {
                        let would = format!("{id} would be revoked\n");
                        print::out(&if self.dry_run { print::safe(&would) } else { state_line(&reply.body) });
                    }
                    grants.push(reply.body);
                }
                // The others are taken away all the same: the safe side.
                Err(Failure::Refused(problem)) => {
                    print::error(&format!("{id}: {problem}"));
                    failed = Some(Failure::Told(1));
                }
                Err(failure) => return Err(failure),
            }
        }
        if self.common.output != Output::Table {
            render::list(self.common.output, &grants, view::GRANTS, "")?;
        }
        let enforced = self.enforced.wait(client, self.common.output, &grants);
        failed.map_or(enforced, Err)
    }

    fn tell(&self, body: &Value, ids: &[String]) -> Result<(), Failure> {
        Ok(render::one(self.common.output, body, |_| {
            let what = if self.dry_run { "would be revoked" } else { "revoked" };
            match ids {
                [] => "no grant matches: nothing to revoke\n".to_owned(),
                ids => ids.iter().map(|id| print::safe(&format!("{id} {what}\n"))).collect(),
            }
        })?)
    }
}

fn ended(body: &Value) -> anyhow::Result<Vec<String>> {
    let ended = body.get("ended").and_then(Value::as_array).context("the control plane's answer has no `ended`")?;
    Ok(ended.iter().map(render::plain).collect())
}

/// How many, and which if they are few.
fn named(ids: &[String]) -> String {
    let first = ids.iter().take(NAMED_MAX).map(|id| format!("\n  {id}")).collect::<String>();
    let rest = ids.len().saturating_sub(NAMED_MAX);
    let rest = if rest > 0 { format!("\n  and {rest} more") } else { String::new() };
    format!("{} {} would end:{first}{rest}", ids.len(), if ids.len() == 1 { "grant" } else { "grants" })
}

/// What was found about a break-glass grant.
#[derive(Debug, Args)]
pub(in crate::cli) struct Review {
    /// The grant
    #[arg(value_name = "GRANT")]
    id: String,
    /// What you found
    #[arg(long, value_name = "TEXT")]
    note: String,
    #[command(flatten)]
    common: Common,
}

impl Review {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        let grant = client.send(&Call::post(&["v1", "grants", &self.id, "review"], json!({"note": self.note})))?.body;
        Ok(render::one(self.common.output, &grant, |grant| {
            print::safe(&format!("{} is reviewed\n", text(grant, &["/id"])))
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_named_and_many_are_counted() {
        assert_eq!(named(&["a".into()]), "1 grant would end:\n  a");
        let many: Vec<String> = (0..22).map(|number| number.to_string()).collect();
        let said = named(&many);
        assert!(said.starts_with("22 grants") && said.ends_with("\n  19\n  and 2 more"), "{said}");
    }
}
