//! One case against documents from files: the ruling, the policies that determined it, and what would change it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::trial::{self, Outcome, Situation, TaskSituation, shown};
use super::{Problem, load};
use crate::control::catalogue::Catalogue;
use crate::control::route::Verdict;
use crate::domain::entitlement::Step;
use crate::domain::id::TaskRef;

/// What would happen, why, and what would change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `approve`, `ask` or `deny`.
    pub verdict: &'static str,
    /// Sentences for people.
    pub reasons: Vec<String>,
    /// How long the grant would live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<String>,
    /// How many calls it would allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<u32>,
    /// Who must agree.
    pub steps: Vec<Step>,
    /// The policies that determined it.
    pub determining: Vec<Policy>,
    /// The policies in shadow that would have forbidden it.
    pub shadow: Vec<Policy>,
    /// What would change it, in simple cases.
    pub changes: Vec<String>,
    /// The SHA-256 of all policies.
    pub policy_digest: String,
}

/// A policy that had a say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Its id.
    pub id: String,
    /// The document it is in; `leasehold` where it is built in.
    pub document: String,
    /// Its text.
    pub text: String,
}

/// Explains what would happen to a request.
///
/// # Errors
/// What is wrong with the documents, or with the situation.
pub fn explain(paths: &[PathBuf], situation: &Situation) -> Result<Explanation, Vec<Problem>> {
    let loaded = load(paths)?;
    let problem = |message| vec![Problem { origin: paths.first().cloned().unwrap_or_default(), line: None, message }];
    let outcome = trial::run(&loaded.catalogue, situation).map_err(problem)?;
    let policies = &loaded.catalogue.policies;
    let told = |ids: &[String]| {
        let policy = |id: &String| {
            let told = policies.told(id)?;
            Some(Policy { id: id.clone(), document: told.document.to_owned(), text: told.text.to_owned() })
        };
        ids.iter().filter_map(policy).collect::<Vec<_>>()
    };
    Ok(Explanation {
        verdict: outcome.verdict.as_str(),
        determining: told(&outcome.determining),
        shadow: told(&outcome.shadow),
        changes: changes(&loaded.catalogue, situation, &outcome),
        reasons: outcome.reasons,
        max_ttl: outcome.ttl.map(shown),
        max_uses: outcome.uses,
        steps: outcome.steps,
        policy_digest: policies.digest().to_owned(),
    })
}

/// What would make it better for whoever asks: each is tried out, and told if it does.
fn changes(catalogue: &Catalogue, situation: &Situation, was: &Outcome) -> Vec<String> {
    if was.verdict == Verdict::Approve {
        return Vec::new();
    }
    let mut changes: Vec<(Verdict, String)> = Vec::new();
    let mut attempt = |what: String, changed: &Situation| {
        let Ok(after) = trial::run(catalogue, changed) else { return };
        let better = rank(after.verdict) > rank(was.verdict);
        if better && !changes.iter().any(|(verdict, _)| *verdict == after.verdict) {
            let then = if after.verdict == Verdict::Approve {
                "it would be approved at once"
            } else {
                "approvers would decide"
            };
            changes.push((after.verdict, format!("{what}: {then}")));
        }
    };
    for (what, changed) in simpler(situation) {
        attempt(what, &changed);
    }
    for (what, changed) in tasks(catalogue, situation) {
        attempt(what, &changed);
    }
    let mut told: Vec<String> = changes.into_iter().map(|(_, what)| what).collect();
    if let Some(entitlement) = catalogue.entitlements.get(&situation.entitlement)
        && was.determining.iter().any(|id| id == "leasehold.not_eligible")
    {
        told.push(format!("membership in {}: it could be asked for", entitlement.eligible.join(" or ")));
    }
    told
}

const fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Deny => 0,
        Verdict::Ask => 1,
        Verdict::Approve => 2,
    }
}

/// Less than was asked.
fn simpler(situation: &Situation) -> Vec<(String, Situation)> {
    let shorter = ["4h", "1h", "30m", "15m", "10m", "5m"];
    let mut all: Vec<(String, Situation)> = shorter
        .into_iter()
        .map(|time| {
            (format!("with `{time}` at most"), Situation { duration: Some(time.to_owned()), ..situation.clone() })
        })
        .collect();
    all.push(("with a single use".to_owned(), Situation { uses: Some(1), ..situation.clone() }));
    all
}

/// A task, or a better one: open, said by its source, of a kind that a policy names.
fn tasks(catalogue: &Catalogue, situation: &Situation) -> Vec<(String, Situation)> {
    let known = situation.task.clone();
    let Ok(any) = TaskRef::new("any:task") else { return Vec::new() };
    let base = known.unwrap_or(TaskSituation {
        reference: any,
        kind: String::new(),
        verified: false,
        open: true,
        until: None,
    });
    let base = TaskSituation { open: true, until: None, ..base };
    let with = |task: TaskSituation| Situation { task: Some(task), ..situation.clone() };
    let mut all = vec![("with an open task".to_owned(), with(base.clone()))];
    all.push((
        "with an open task that its source has said is open".to_owned(),
        with(TaskSituation { verified: true, ..base.clone() }),
    ));
    for kind in kinds(catalogue) {
        let words = format!("with an open task of kind `{kind}` that its source has said is open");
        all.push((words, with(TaskSituation { verified: true, kind, ..base.clone() })));
    }
    all
}

/// The kinds of tasks that policies name.
fn kinds(catalogue: &Catalogue) -> BTreeSet<String> {
    let policies = &catalogue.policies;
    let ids = policies.ids();
    let texts = ids.iter().filter_map(|id| policies.told(id)).map(|told| told.text);
    let after = |text: &str| {
        let named = text.split("task.kind").skip(1).filter_map(|rest| {
            let rest = rest.trim_start().strip_prefix("==")?.trim_start().strip_prefix('"')?;
            rest.split('"').next().map(str::to_owned)
        });
        named.collect::<Vec<_>>()
    };
    texts.flat_map(after).collect()
}
