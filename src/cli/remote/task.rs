//! `leasehold tasks`.

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::render::{self, plain};
use super::sidecar::Enforced;
use super::{Call, Common, EXIT_CODES, Failure, confirm, view};
use crate::cli::client::Client;
use crate::cli::print;
use crate::domain::time::Timestamp;

/// What to do with a task.
#[derive(Debug, Args)]
pub(in crate::cli) struct Tasks {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows a task
    #[command(after_help = EXIT_CODES)]
    Show {
        /// The task, such as `jira:OPS-17`
        #[arg(value_name = "SOURCE:REF")]
        reference: String,
        #[command(flatten)]
        common: Common,
    },

    /// Says that a task is closed: its grants end, its pending requests are cancelled
    #[command(after_help = EXIT_CODES)]
    Close {
        /// The task, such as `jira:OPS-17`
        #[arg(value_name = "SOURCE:REF")]
        reference: String,
        /// Does not ask
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        enforced: Enforced,
        #[command(flatten)]
        common: Common,
    },

    /// Says that a task is open; what its end had ended stays ended
    #[command(after_help = EXIT_CODES)]
    Open {
        /// The task, such as `jira:OPS-17`
        #[arg(value_name = "SOURCE:REF")]
        reference: String,
        /// What kind it is, such as `incident` or `change`
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// When it ends by itself, such as 2026-11-23T15:13:00Z
        #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
        until: Option<Timestamp>,
        #[command(flatten)]
        common: Common,
    },
}

impl Tasks {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match &self.command {
            Command::Show { reference, common } => {
                let body = common.client()?.get(&["v1", "tasks", reference])?;
                Ok(render::one(common.output, &body, |task| view::task(task, render::now()))?)
            }
            Command::Close { reference, yes, enforced, common } => {
                confirm(&format!("Close {reference}? Its grants end, its pending requests are cancelled."), *yes)?;
                let client = common.client()?;
                let said = say(&client, common, reference, "close", Map::new())?;
                enforced.wait(&client, common.output, &[said])
            }
            Command::Open { reference, kind, until, common } => {
                let mut body = Map::new();
                if let Some(kind) = kind {
                    body.insert("kind".into(), json!(kind));
                }
                if let Some(until) = until {
                    body.insert("until".into(), json!(until));
                }
                let said = say(&common.client()?, common, reference, "open", body)?;
                if said.pointer("/task/open") == Some(&Value::Bool(true)) {
                    return Ok(());
                }
                // A close is sticky against what is older.
                Err(Failure::Running(anyhow!("{reference} stays closed: it was closed later than this")))
            }
        }
    }
}

/// Says it, shows the answer, and returns it.
fn say(
    client: &Client,
    common: &Common,
    reference: &str,
    verb: &str,
    body: Map<String, Value>,
) -> Result<Value, Failure> {
    let body = client.send(&Call::post(&["v1", "tasks", reference, verb], Value::Object(body)))?.body;
    render::one(common.output, &body, |body| {
        let mut text = view::task(body.get("task").unwrap_or(&Value::Null), render::now());
        for id in body.get("ended").and_then(Value::as_array).into_iter().flatten() {
            text.push_str(&print::safe(&format!("{} ended\n", plain(id))));
        }
        text
    })?;
    Ok(body)
}
