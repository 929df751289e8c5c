//! `leasehold sidecars`, and how far an end has come for those who wait for it.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::render::{self, Column, text, when};
use super::{Call, Common, EXIT_CODES, Failure, duration};
use crate::cli::client::Client;
use crate::cli::{Output, print};
use crate::domain::time::Timestamp;

/// How long one question waits; who is cut off is told soon.
const WAIT_ONCE: Duration = Duration::from_secs(1);

/// Most sidecars that are shown.
const LIMIT: usize = 1_000_000;

/// How to list the sidecars.
#[derive(Debug, Args)]
pub(in crate::cli) struct Sidecars {
    #[command(flatten)]
    common: Common,
}

const SIDECARS: &[Column] = &[
    ("SIDECAR", |sidecar, _| text(sidecar, &["/sidecar"])),
    ("VERSION", |sidecar, _| text(sidecar, &["/version"])),
    ("BACKENDS", |sidecar, _| text(sidecar, &["/backends"])),
    ("CONNECTED", |sidecar, _| if sidecar["connected"] == true { "yes" } else { "no" }.to_owned()),
    ("ENFORCES", |sidecar, _| text(sidecar, &["/acked"])),
    ("BEHIND", |sidecar, _| text(sidecar, &["/behind"])),
    ("DENIES", |sidecar, now| match sidecar.get("fresh_until") {
        Some(_) => when(sidecar, &["/fresh_until"], now),
        None => "never".to_owned(),
    }),
];

impl Sidecars {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (sidecars, _) = self.common.client()?.list(&Call::get(&["v1", "sidecars"]), LIMIT)?;
        Ok(render::list(self.common.output, &sidecars, SIDECARS, "no sidecar follows this control plane")?)
    }
}

/// What to do for one sidecar.
#[derive(Debug, Args)]
pub(in crate::cli) struct Sidecar {
    #[command(subcommand)]
    command: One,
}

#[derive(Debug, Subcommand)]
enum One {
    /// Makes a token with which a sidecar joins: good once, for 10 minutes; it is shown once
    #[command(after_help = EXIT_CODES)]
    JoinToken {
        /// The sidecar's name: it becomes spiffe://TRUST_DOMAIN/sidecar/NAME
        #[arg(value_name = "NAME")]
        name: String,
        /// For a relay: a host name or an address by which others follow it, once for each
        #[arg(long, value_name = "HOST")]
        serves: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
}

impl Sidecar {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let One::JoinToken { name, serves, common } = &self.command;
        let mut joining = json!({"name": name});
        if !serves.is_empty() {
            joining["serves"] = json!(serves);
        }
        let call = Call::post(&["v1", "sidecars", "join-tokens"], joining);
        let made = common.client()?.send(&call)?.body;
        render::one(common.output, &made, |made| print::safe(&format!("{}\n", text(made, &["/token"]))))?;
        if common.output == Output::Table {
            let (sidecar, until) = (text(&made, &["/sidecar"]), when(&made, &["/expires_at"], render::now()));
            print::aside(&format!("for {sidecar}, once, and no more {until}"));
        }
        Ok(())
    }
}

/// Whether to wait until an end is enforced.
#[derive(Debug, Args)]
pub(super) struct Enforced {
    /// Waits until every sidecar enforces it, at most this long [default: 10s]; exit code 3 where one may not yet
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, default_missing_value = "10s")]
    wait: Option<Duration>,
}

impl Enforced {
    /// Waits for what these answers say was ended, if that was asked for, and says how far it has come.
    pub(super) fn wait(&self, client: &Client, output: Output, answers: &[Value]) -> Result<(), Failure> {
        let Some(wait) = self.wait else { return Ok(()) };
        let number = |answer: &Value, key: &str| answer.get(key).and_then(Value::as_u64);
        let last = answers.iter().filter_map(|answer| number(answer, "revision")).max();
        let from = answers.iter().filter_map(|answer| number(answer, "from").or(number(answer, "revision"))).min();
        let (Some(last), Some(from)) = (last, from) else { return Ok(()) };
        let began = Instant::now();
        let enforcement = loop {
            let left = wait.saturating_sub(began.elapsed());
            let call = Call::get(&["v1", "revocations", &last.to_string()]).query("from", &from.to_string());
            let body = client.send(&call.wait(left.min(WAIT_ONCE)))?.body;
            let enforcement = body.get("enforcement").cloned().unwrap_or_default();
            if enforcement["state"] == "enforced" || is_settled(&enforcement) || began.elapsed() >= wait {
                break enforcement;
            }
        };
        let line = line(&enforcement);
        match output {
            Output::Table => print::out(&format!("{line}\n")),
            Output::Json | Output::Yaml => print::aside(&line),
        }
        if enforcement["state"] == "enforced" { Ok(()) } else { Err(Failure::Told(3)) }
    }
}

fn count(enforcement: &Value, key: &str) -> u64 {
    enforcement.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn unsure(enforcement: &Value) -> u64 {
    count(enforcement, "sidecars").saturating_sub(count(enforcement, "enforced") + count(enforcement, "lapsed"))
}

/// How many of those that may not know are cut off.
fn disconnected(enforcement: &Value) -> u64 {
    let pending = enforcement.get("pending").and_then(Value::as_array);
    pending.map_or(0, |pending| pending.iter().filter(|unsure| unsure["connected"] == false).count() as u64)
}

/// Whether all that may not know are cut off, so that nothing but time can tell.
fn is_settled(enforcement: &Value) -> bool {
    let unsure = unsure(enforcement);
    unsure > 0 && disconnected(enforcement) == unsure
}

/// `enforced on 998/998 sidecars in 41 ms`, and who may not know.
fn line(enforcement: &Value) -> String {
    let (all, unsure, lapsed) = (count(enforcement, "sidecars"), unsure(enforcement), count(enforcement, "lapsed"));
    let mut line = format!("enforced on {}/{all} {}", all - unsure, if all == 1 { "sidecar" } else { "sidecars" });
    if let Some(took) = enforcement.get("took_ms").and_then(Value::as_u64) {
        line.push_str(&format!(" in {took} ms"));
    }
    if lapsed > 0 {
        line.push_str(&format!("; {lapsed} of them not heard of, and denying everything"));
    }
    if unsure > 0 {
        let what = if disconnected(enforcement) == unsure { "disconnected" } else { "not yet" };
        line.push_str(&format!("; {unsure} {what}"));
        let by = enforcement.get("deny_by").and_then(Value::as_str).map(Timestamp::parse);
        match by {
            Some(Ok(by)) => {
                let by = Timestamp::from_seconds(by.as_seconds() + 1).to_string();
                let time = by.split_once('T').map_or(by.as_str(), |(_, time)| time);
                line.push_str(&format!(", deny by {time}"));
            }
            _ => line.push_str(", and nobody can say when: one serves on without evidence"),
        }
    }
    print::safe(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_has_come_is_one_line() {
        let all =
            json!({"state": "enforced", "sidecars": 998, "enforced": 998, "lapsed": 0, "pending": [], "took_ms": 41});
        assert_eq!(line(&all), "enforced on 998/998 sidecars in 41 ms");
        let cut = json!({"connected": false});
        let some = json!({
            "state": "pending", "sidecars": 5, "enforced": 2, "lapsed": 1, "pending": [cut, cut],
            "deny_by": "2026-11-23T15:03:40.2Z",
        });
        assert_eq!(
            line(&some),
            "enforced on 3/5 sidecars; 1 of them not heard of, and denying everything; 2 disconnected, deny by 15:03:41Z"
        );
        assert!(is_settled(&some) && !is_settled(&all));
        let unbounded = json!({"state": "unbounded", "sidecars": 1, "enforced": 0, "lapsed": 0, "pending": []});
        assert!(line(&unbounded).ends_with("1 not yet, and nobody can say when: one serves on without evidence"));
    }
}
