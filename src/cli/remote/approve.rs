//! `leasehold approve`, `deny` and `cancel`.

use anyhow::anyhow;
use clap::Args;
use http::StatusCode;
use serde_json::{Value, json};

use super::render::{self, must, text};
use super::{Call, Common, Failure, view};
use crate::cli::client::{Client, Reply};
use crate::cli::{Output, print};

/// Which request to agree to.
#[derive(Debug, Args)]
pub(in crate::cli) struct Approve {
    /// The request
    #[arg(value_name = "ID")]
    id: String,
    /// Why, in your words
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Only if it is still as in this version, as `leasehold show` tells
    #[arg(long, value_name = "VERSION")]
    seen: Option<u64>,
    /// Does not ask
    #[arg(short, long)]
    yes: bool,
    /// Says what would come of it, and agrees to nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Approve {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if !self.yes && !self.dry_run && !print::can_ask() {
            let hint =
                "there is no terminal to ask on: look at it with `leasehold show`, and say `--yes --seen VERSION`";
            return Err(Failure::Usage(anyhow!(hint)));
        }
        let client = self.common.client()?;
        let mut read = self.look(&client)?;
        loop {
            print::aside(&shown(&read.body));
            if !self.yes && !self.dry_run && !print::ask("Approve it?") {
                return Err(Failure::Running(anyhow!("nothing was done")));
            }
            match self.agree(&client, &read) {
                // What was agreed to is what was seen, so what is there now is shown and asked about again.
                Err(Failure::Refused(problem))
                    if problem.status == StatusCode::PRECONDITION_FAILED && !self.yes && self.seen.is_none() =>
                {
                    print::notice("changed", "it is not what you saw any more; this is how it stands now");
                    read = self.look(&client)?;
                }
                Err(failure) => return Err(failure),
                Ok(request) => return done(&self.common, &request, self.dry_run),
            }
        }
    }

    fn look(&self, client: &Client) -> Result<Reply, Failure> {
        let reply = client.send(&Call::get(&["v1", "requests", &self.id]))?;
        let state = text(&reply.body, &["/state"]);
        if state != "pending" {
            return Err(Failure::Running(anyhow!("request `{}` is {state}: there is nothing to approve", self.id)));
        }
        Ok(reply)
    }

    fn agree(&self, client: &Client, read: &Reply) -> Result<Value, Failure> {
        let version = match self.seen {
            Some(seen) => Some(format!("\"{seen}\"")),
            None => read.version.clone(),
        };
        let version = version.ok_or_else(|| anyhow!("the control plane's answer has no `ETag`"))?;
        let call = Call::post(&["v1", "requests", &self.id, "approve"], json!({"reason": self.reason}));
        Ok(client.send(&call.if_match(version).dry_run(self.dry_run))?.body)
    }
}

/// What an approver has to know.
fn shown(request: &Value) -> String {
    format!("{}{}", view::request(request, render::now()), view::lets(request))
}

fn done(common: &Common, request: &Value, dry_run: bool) -> Result<(), Failure> {
    if common.output != Output::Table {
        return Ok(render::one(common.output, request, |_| String::new())?);
    }
    let (id, state) = (must(request, "/id")?, text(request, &["/state"]));
    let said = match state.as_str() {
        "pending" => format!("{id} is pending still: it waits for {}", view::waits_for(request)),
        "approved" => format!("{id} is approved: grant {}", text(request, &["/grant_id"])),
        _ => format!("{id} is {state}: {}", text(request, &["/reason"])),
    };
    let would = if dry_run { "nothing was done; it would stand like this: " } else { "" };
    print::out(&print::safe(&format!("{would}{said}\n")));
    // Policy is asked again at approval, and may say no.
    if state == "denied" && !dry_run { Err(Failure::Told(1)) } else { Ok(()) }
}

/// Which request to say no to.
#[derive(Debug, Args)]
pub(in crate::cli) struct Deny {
    /// The request
    #[arg(value_name = "ID")]
    id: String,
    /// Why; the requester is told
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    common: Common,
}

impl Deny {
    pub(super) fn run(&self) -> Result<(), Failure> {
        end(&self.common, &self.id, "deny", &self.reason)
    }
}

/// Which request to take back.
#[derive(Debug, Args)]
pub(in crate::cli) struct Cancel {
    /// The request
    #[arg(value_name = "ID")]
    id: String,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "no longer needed")]
    reason: String,
    #[command(flatten)]
    common: Common,
}

impl Cancel {
    pub(super) fn run(&self) -> Result<(), Failure> {
        end(&self.common, &self.id, "cancel", &self.reason)
    }
}

fn end(common: &Common, id: &str, verb: &str, reason: &str) -> Result<(), Failure> {
    let client = common.client()?;
    let request = client.send(&Call::post(&["v1", "requests", id, verb], json!({"reason": reason})))?.body;
    Ok(render::one(common.output, &request, |request| {
        print::safe(&format!("{} is {}\n", text(request, &["/id"]), text(request, &["/state"])))
    })?)
}
