//! `leasehold documents` and `leasehold delete`.

use anyhow::anyhow;
use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;

use super::render::{self, Column, plain, text};
use super::{Call, Common, Failure, confirm, more};
use crate::cli::client::Client;
use crate::cli::{Output, print};

/// The kinds, and where the API has them.
const KINDS: &[(&str, &str)] = &[
    ("Backend", "backends"),
    ("ActionMap", "action-maps"),
    ("Principal", "principals"),
    ("Entitlement", "entitlements"),
    ("Policy", "policies"),
];

const COLUMNS: &[Column] = &[
    ("KIND", |document, _| text(document, &["/kind"])),
    ("NAME", |document, _| text(document, &["/metadata/name"])),
    ("GENERATION", |document, _| text(document, &["/metadata/generation"])),
    ("LABELS", |document, _| labels(document)),
];

/// Most documents of a kind that are shown.
const LIMIT: usize = 10_000;

fn labels(document: &Value) -> String {
    let labels = document.pointer("/metadata/labels").and_then(Value::as_object);
    let labels = labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", plain(value)));
    let labels: Vec<String> = labels.collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(",") }
}

/// Reads a kind in either number and any case: `Policy`, `policies`.
fn kind(text: &str) -> Result<&'static str, String> {
    let plain = text.to_ascii_lowercase().replace(['-', '_'], "");
    let found = KINDS.iter().find(|(kind, path)| {
        let singular = kind.to_ascii_lowercase();
        plain == singular || plain == path.replace('-', "")
    });
    found.map(|(kind, _)| *kind).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
        format!("the kinds are {}", known.join(", "))
    })
}

fn path(kind: &str) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("", |(_, path)| path)
}

/// Which documents to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct Documents {
    /// Only of this kind: Backend, ActionMap, Principal, Entitlement or Policy
    #[arg(value_name = "KIND", value_parser = kind)]
    kind: Option<&'static str>,
    /// Only the one of this name, in full
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl Documents {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.common.client()?;
        if let (Some(kind), Some(name)) = (self.kind, &self.name) {
            let document = client.get(&["v1", path(kind), name])?;
            let output = if self.common.output == Output::Table { Output::Yaml } else { self.common.output };
            return Ok(render::one(output, &document, |_| String::new())?);
        }
        let mut documents = Vec::new();
        for (kind, path) in KINDS.iter().filter(|(kind, _)| self.kind.is_none_or(|wanted| wanted == *kind)) {
            match client.list(&Call::get(&["v1", path]), LIMIT) {
                Ok((found, is_more)) => {
                    documents.extend(found);
                    more(is_more, LIMIT);
                }
                // An older control plane has fewer kinds.
                Err(Failure::Refused(problem))
                    if self.kind.is_none() && problem.status == StatusCode::NOT_FOUND && *kind == "ActionMap" => {}
                Err(failure) => return Err(failure),
            }
        }
        if self.common.output == Output::Yaml {
            // As `apply` takes them.
            let text = serde_saphyr::to_string_multiple(&documents).map_err(anyhow::Error::from)?;
            print::out(&text);
            return Ok(());
        }
        Ok(render::list(self.common.output, &documents, COLUMNS, "nothing is declared: `leasehold apply -f FILE`")?)
    }
}

/// Which document to declare no more.
#[derive(Debug, Args)]
pub(in crate::cli) struct Delete {
    /// Its kind: Backend, ActionMap, Principal, Entitlement or Policy
    #[arg(value_name = "KIND", value_parser = kind)]
    kind: &'static str,
    /// Its name
    #[arg(value_name = "NAME")]
    name: String,
    /// Does not ask
    #[arg(short, long)]
    yes: bool,
    /// Says whether it could be done, and does nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Delete {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client: Client = self.common.client()?;
        if self.name.is_empty() {
            return Err(Failure::Usage(anyhow!("a name is not empty")));
        }
        let shown = format!("{}/{}", self.kind, self.name);
        let question = format!("Delete {shown}? The grants under it end.");
        confirm(&question, self.yes || self.dry_run)?;
        let call = Call::new(Method::DELETE, &["v1", path(self.kind), &self.name]).dry_run(self.dry_run);
        client.send(&call)?;
        let what = if self.dry_run { "would be deleted" } else { "deleted" };
        print::out(&print::safe(&format!("{shown} {what}\n")));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_in_either_number() {
        for (text, expected) in [
            ("Policy", "Policy"),
            ("policies", "Policy"),
            ("BACKENDS", "Backend"),
            ("action-maps", "ActionMap"),
            ("action_map", "ActionMap"),
            ("entitlement", "Entitlement"),
        ] {
            assert_eq!(kind(text), Ok(expected));
        }
        assert!(kind("grants").is_err_and(|error| error.contains("Backend")));
        assert_eq!(path("Policy"), "policies");
    }
}
