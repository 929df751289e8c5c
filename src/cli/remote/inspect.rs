//! `leasehold show`, `doctor` and `whoami`.

use anyhow::anyhow;
use clap::Args;
use http::StatusCode;
use serde_json::Value;

use super::render::{self, pairs, text};
use super::{Call, Common, Failure, view};
use crate::cli::client::Client;
use crate::cli::{Output, print};
use crate::domain::time::Timestamp;

/// How many entries are looked through for one whose id begins so.
const LOOK_THROUGH: usize = 5_000;

/// What to show.
#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    /// An id or its beginning, such as `req_0193`; or a task, such as `jira:OPS-17`
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    common: Common,
}

/// How something is shown in full.
type Lines = fn(&Value, Timestamp) -> String;

/// What an id can be of, and where the API has it.
const RUNTIME: &[(&str, Lines)] = &[("requests", view::request), ("grants", view::grant), ("locks", view::lock)];

impl Show {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        if self.id.contains(':') {
            let body = client.get(&["v1", "tasks", &self.id])?;
            return Ok(render::one(self.common.output, &body, |task| view::task(task, render::now()))?);
        }
        for (path, lines) in RUNTIME.iter().filter(|(path, _)| *path != "locks" && may_be(&self.id, path)) {
            match client.get(&["v1", path, &self.id]) {
                Ok(found) => return Ok(render::one(self.common.output, &found, |found| lines(found, render::now()))?),
                Err(Failure::Refused(problem)) if is_no_such(problem.status) => {}
                Err(failure) => return Err(failure),
            }
        }
        self.by_beginning(&client)
    }

    fn by_beginning(&self, client: &Client) -> Result<(), Failure> {
        let mut found = Vec::new();
        for (path, lines) in RUNTIME.iter().filter(|(path, _)| may_be(&self.id, path)) {
            let (entries, _) = client.list(&Call::get(&["v1", path]), LOOK_THROUGH)?;
            found.extend(entries.into_iter().filter(|entry| begins(entry, &self.id)).map(|entry| (path, lines, entry)));
        }
        match found.as_slice() {
            [] => Err(Failure::Running(anyhow!(
                "no request, grant or lock that you may see has an id that begins with `{}`",
                self.id
            ))),
            [(path, lines, entry)] => {
                // The entry itself says more than its line in a list: its history, for one.
                let entry = match *path {
                    &"locks" => entry.clone(),
                    path => client.get(&["v1", path, &text(entry, &["/id"])])?,
                };
                Ok(render::one(self.common.output, &entry, |entry| lines(entry, render::now()))?)
            }
            several => {
                let ids: Vec<String> = several.iter().take(10).map(|(_, _, entry)| text(entry, &["/id"])).collect();
                Err(Failure::Running(anyhow!(
                    "{} ids begin with `{}`, such as {}; write more of it",
                    several.len(),
                    self.id,
                    ids.join(", ")
                )))
            }
        }
    }
}

/// An id that cannot be one is as good as one that is not there.
fn is_no_such(status: StatusCode) -> bool {
    status == StatusCode::NOT_FOUND || status == StatusCode::BAD_REQUEST
}

/// Whether an id can be of that kind, by how it begins.
fn may_be(id: &str, path: &str) -> bool {
    let prefix = match path {
        "requests" => "req_",
        "grants" => "grt_",
        _ => "lck_",
    };
    let known = ["req_", "grt_", "lck_"].iter().any(|known| id.starts_with(known));
    !known || id.starts_with(prefix)
}

/// Whether an entry's id begins so, with what stands before its `_` or without.
fn begins(entry: &Value, start: &str) -> bool {
    let id = text(entry, &["/id"]);
    !start.is_empty() && (id.starts_with(start) || id.split_once('_').is_some_and(|(_, id)| id.starts_with(start)))
}

/// How to look.
#[derive(Debug, Args)]
pub(in crate::cli) struct Doctor {
    #[command(flatten)]
    common: Common,
}

impl Doctor {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let body = self.common.client()?.get(&["v1", "doctor"])?;
        let findings = body.get("findings").and_then(Value::as_array).cloned().unwrap_or_default();
        render::one(self.common.output, &body, |_| told(&findings, print::colours_out()))?;
        let is_error = |finding: &Value| finding.get("severity").and_then(Value::as_str) == Some("error");
        if findings.iter().any(is_error) { Err(Failure::Told(1)) } else { Ok(()) }
    }
}

fn told(findings: &[Value], colours: bool) -> String {
    if findings.is_empty() {
        return "nothing found: all is well\n".to_owned();
    }
    let mut told = String::new();
    for finding in findings {
        let of = |key: &str| print::safe(&text(finding, &[key])).replace('\n', " ");
        let row = vec![of("/severity"), of("/code"), of("/subject")];
        told.push_str(&print::painted(&[row], colours));
        told.push_str(&format!("  {}\n", of("/detail")));
        if of("/fix") != "-" {
            told.push_str(&format!("  fix: {}\n", of("/fix")));
        }
    }
    told
}

/// How to say it.
#[derive(Debug, Args)]
pub(in crate::cli) struct Whoami {
    #[command(flatten)]
    common: Common,
}

impl Whoami {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        let body = client.get(&["v1", "whoami"])?;
        let origin = client.origin().to_string();
        if self.common.output == Output::Table {
            print::out(&print::safe(&format!("{}\n", text(&body, &["/principal"]))));
        }
        Ok(render::one(self.common.output, &body, |body| {
            pairs(&[
                ("kind", text(body, &["/kind"])),
                ("groups", text(body, &["/groups"])),
                ("admin", text(body, &["/admin"])),
                ("at", origin),
            ])
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_id_says_what_it_is_of() {
        for (id, path, expected) in [
            ("req_1", "requests", true),
            ("req_1", "grants", false),
            ("grt_1", "grants", true),
            ("0193", "requests", true),
            ("0193", "locks", true),
            ("lck_1", "locks", true),
        ] {
            assert_eq!(may_be(id, path), expected, "{id} {path}");
        }
        let entry = json!({"id": "grt_0193ab"});
        assert!(begins(&entry, "grt_0193") && begins(&entry, "0193") && !begins(&entry, "193") && !begins(&entry, ""));
    }

    #[test]
    fn a_finding_says_how_to_fix_it() {
        let finding = json!({"severity": "warning", "code": "no_approver", "subject": "Entitlement/maint",
            "detail": "nobody is in group dba", "fix": "declare a Principal in group dba"});
        let shown = told(&[finding], false);
        assert_eq!(
            shown,
            "warning  no_approver  Entitlement/maint\n  nobody is in group dba\n  fix: declare a Principal in group dba\n"
        );
        assert!(told(&[], false).contains("all is well"));
    }
}
