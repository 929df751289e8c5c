//! `leasehold policy`: documents are checked, tested and explained before they are applied, with no server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Failure, Output, print, show};
use crate::app::policy::{self, Explanation, Problem, Situation};

const EXIT_CODES: &str = "\
Exit codes:
  0  everything is as it should be
  1  a case was not as expected, or something deserves a look and --strict was asked for
  2  the command line or a file is wrong; nothing was tested";

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Finds every mistake in documents before a control plane does
    #[command(
        long_about = "Finds every mistake in documents before a control plane does.\n\n\
Reads all documents of the files and folders as one installation: their fields, the names they use of each other, the \
Cedar policies by strict validation, their annotations, and how many guardrails each call would cost. Says too what is \
valid and probably not meant: groups that nobody is in, actions that no entitlement covers.",
        after_help = EXIT_CODES
    )]
    Check {
        /// Files, or folders with `.yaml` files
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Treats what deserves a look as a mistake
        #[arg(long)]
        strict: bool,
        /// How to print the result
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },

    /// Runs the cases in `*_test.yaml` files against the documents beside them
    #[command(
        long_about = "Runs the cases in `*_test.yaml` files against the documents beside them.\n\n\
Each case says who asks for what and which ruling is expected:\n\n  \
tests:\n    \
- name: an open incident passes with nobody looking\n      \
given: {principal: 'spiffe://prod.example/db-maint', entitlement: db-maintenance,\n              \
task: {ref: 'pagerduty:P1', kind: incident, verified: true}}\n      \
expect: {verdict: approve, max_ttl: 30m, determining: [leasehold.eligible, auto-on-incident]}\n\n\
It is run by the very commands of the control plane, on a store that is thrown away.",
        after_help = EXIT_CODES
    )]
    Test {
        /// Files, or folders with `.yaml` files
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },

    /// Says what would happen to a request, which policies say so, and what would change it
    #[command(
        long_about = "Says what would happen to a request, which policies say so, and what would change it.\n\n\
Nothing is asked of a server: the documents are read from files.",
        after_help = "\
Examples:
  leasehold policy explain --documents config/control/incident-maintenance \\
      --principal spiffe://prod.example/ns/db/sa/maintenance --entitlement orders-db-maintenance
  leasehold policy explain --documents policies/ --principal 'https://ci.example#repo:shop/app:main' \\
      --entitlement deploy --task gitlab:shop/app:run:4711 --task-kind pipeline --task-verified

Exit codes:
  0  it is explained, whatever the ruling is
  2  the command line or a file is wrong"
    )]
    Explain(Box<Explain>),
}

/// The request to explain.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Files, or folders with `.yaml` files; may be given more than once
    #[arg(long, required = true, value_name = "PATH")]
    documents: Vec<PathBuf>,
    /// Who asks: `spiffe://…`, or issuer and subject as `https://idp.example#ci-bot`
    #[arg(long, value_name = "PRINCIPAL")]
    principal: String,
    /// What is asked for
    #[arg(long, value_name = "NAME")]
    entitlement: String,
    /// Fewer actions than the entitlement has; may be given more than once
    #[arg(long = "action", value_name = "ACTION")]
    actions: Vec<String>,
    /// Fewer resources than the entitlement has; may be given more than once
    #[arg(long = "resource", value_name = "RESOURCE")]
    resources: Vec<String>,
    /// Only the one call of that digest
    #[arg(long, value_name = "DIGEST")]
    arguments: Option<String>,
    /// For how long, such as `15m`
    #[arg(long, value_name = "DURATION")]
    duration: Option<String>,
    /// For how many calls
    #[arg(long, value_name = "NUMBER")]
    uses: Option<u32>,
    /// What justifies it, such as `jira:OPS-17`
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// What kind of task it is, as its source says: `incident`, `change`, `pipeline` …
    #[arg(long, value_name = "KIND", requires = "task", default_value = "")]
    task_kind: String,
    /// The source of the task has said that it is open
    #[arg(long, requires = "task")]
    task_verified: bool,
    /// The task is closed
    #[arg(long, requires = "task")]
    task_closed: bool,
    /// At which time, such as `2026-11-23T15:13:00Z`; without it now
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Policy {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Check { paths, strict, output } => check(paths, *strict, *output),
            Self::Test { paths } => test(paths),
            Self::Explain(explain) => explain.run(),
        }
    }
}

/// Everything that is wrong, a line each; the last of them is the failure.
fn unreadable(problems: &[Problem]) -> Failure {
    for problem in problems {
        print::error(&problem.to_string());
    }
    Failure::Told(2)
}

fn check(paths: &[PathBuf], strict: bool, output: Output) -> Result<(), Failure> {
    let checked = policy::check(paths).map_err(|problems| unreadable(&problems))?;
    for notice in &checked.notices {
        print::notice("notice", notice);
    }
    if output != Output::Table {
        print::out(&show::document_text(&serde_json::to_value(&checked).unwrap_or_default(), output)?);
    } else {
        let count = |(name, number): &(String, usize)| format!("{number} {name}");
        let list = |all: &[(String, usize)]| all.iter().map(count).collect::<Vec<_>>().join(", ");
        let most = checked.slices.iter().max_by_key(|(_, _, number)| *number);
        let guardrails = match most {
            Some((backend, action, number)) => format!("at most {number} a call (`{action}` on `{backend}`)"),
            None => "none".to_owned(),
        };
        let rows = [
            ("documents", list(&checked.documents)),
            ("policies", format!("{} with the built-in ones", checked.policies)),
            ("asked", list(&checked.asked)),
            ("guardrails", guardrails),
            ("digest", checked.digest.clone()),
        ];
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        print::out(&print::safe(&format!("ok: {} files\n{}", checked.files, print::table(&rows))));
    }
    if strict && !checked.notices.is_empty() {
        print::error(&format!("{} named above deserve a look, and --strict was asked for", checked.notices.len()));
        return Err(Failure::Told(1));
    }
    Ok(())
}

fn test(paths: &[PathBuf]) -> Result<(), Failure> {
    let tested = policy::test(paths).map_err(|problems| unreadable(&problems))?;
    for failed in &tested.failed {
        let mut text = format!("{}:{}: {}", failed.origin.display(), failed.line, failed.name);
        for difference in &failed.differences {
            text.push_str(&format!("\n  {difference}"));
        }
        text.push_str(&format!("\n  it was: {}", failed.was));
        print::error(&text);
    }
    let all = tested.passed + tested.failed.len();
    print::out(&format!("{} of {all} cases in {} files are as expected\n", tested.passed, tested.files));
    if tested.failed.is_empty() { Ok(()) } else { Err(Failure::Told(1)) }
}

impl Explain {
    fn run(&self) -> Result<(), Failure> {
        let situation = self.situation().map_err(Failure::Usage)?;
        let explanation = policy::explain(&self.documents, &situation).map_err(|problems| unreadable(&problems))?;
        if self.output != Output::Table {
            print::out(&show::document_text(&serde_json::to_value(&explanation).unwrap_or_default(), self.output)?);
        } else {
            print::out(&print::safe(&told(&explanation)));
        }
        Ok(())
    }

    /// As a case of a policy test has it, so that both are read by the same rules.
    fn situation(&self) -> anyhow::Result<Situation> {
        let time = self.time.clone().unwrap_or_else(policy::now);
        let mut given = json!({
            "principal": self.principal, "entitlement": self.entitlement, "duration": self.duration, "uses": self.uses,
            "time": time, "justification": "explain", "arguments": self.arguments,
        });
        if !self.actions.is_empty() {
            given["actions"] = json!(self.actions);
        }
        if !self.resources.is_empty() {
            given["resources"] = json!(self.resources);
        }
        if let Some(task) = &self.task {
            given["task"] = json!({
                "ref": task, "kind": self.task_kind, "verified": self.task_verified, "open": !self.task_closed,
            });
        }
        let known = |value: &Value| !value.is_null();
        if let Some(fields) = given.as_object_mut() {
            fields.retain(|_, value| known(value));
        }
        Ok(serde_json::from_value(given)?)
    }
}

fn told(explanation: &Explanation) -> String {
    let mut rows = vec![("verdict", explanation.verdict.to_owned())];
    rows.extend(explanation.reasons.iter().map(|reason| ("because", reason.clone())));
    rows.extend(explanation.max_ttl.iter().map(|ttl| ("max_ttl", ttl.clone())));
    rows.extend(explanation.max_uses.iter().map(|uses| ("max_uses", uses.to_string())));
    for step in &explanation.steps {
        rows.push(("step", format!("{} of {}", step.quorum, step.approvers.join(" or "))));
    }
    rows.extend(explanation.changes.iter().map(|change| ("change", change.clone())));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut text = print::table(&rows);
    let both =
        [("determined by", &explanation.determining), ("in shadow, would have forbidden it", &explanation.shadow)];
    for (heading, policies) in both {
        for policy in policies {
            text.push_str(&format!("\n{heading}: {} (Policy `{}`)\n", policy.id, policy.document));
            for line in policy.text.lines() {
                text.push_str(&format!("  {line}\n"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(subcommand)]
        policy: Policy,
    }

    fn situation(words: &[&str]) -> anyhow::Result<Situation> {
        let always = ["policy", "explain", "--documents", "x"];
        match Words::try_parse_from(always.iter().chain(words))?.policy {
            Policy::Explain(explain) => explain.situation(),
            other => anyhow::bail!("{other:?}"),
        }
    }

    #[test]
    fn the_words_become_a_situation() {
        let words = ["--principal", "https://i#s", "--entitlement", "e", "--task", "jira:A-1", "--task-closed"];
        let read = situation(&[&words[..], &["--time", "2026-01-01T00:00:00Z", "--action", "q.*"]].concat());
        let read = read.expect("a situation");
        assert_eq!((read.principal.as_str(), read.time.as_seconds()), ("https://i#s", 1_767_225_600));
        assert!(read.task.is_some_and(|task| !task.open && !task.verified));
        assert_eq!(read.actions.map(|actions| actions.len()), Some(1));
        assert!(read.resources.is_none());
        for bad in [
            &["--principal", "nobody", "--entitlement", "e"][..],
            &["--principal", "https://i#s", "--entitlement", "e", "--task", "A-1"],
            &["--principal", "https://i#s", "--entitlement", "e", "--task-verified"],
            &["--principal", "https://i#s", "--entitlement", "e", "--time", "yesterday"],
        ] {
            assert!(situation(bad).is_err(), "{bad:?}");
        }
    }
}
