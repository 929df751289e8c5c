//! Matrices of cases beside the documents: given who asks for what, expect a ruling.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::trial::{self, Expected, Outcome, Situation, shown};
use super::{Problem, find, is_cases, load, text};
use crate::control::catalogue::Catalogue;
use crate::control::document::{duration, parse_yaml};
use crate::domain::entitlement::Step;

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    tests: Vec<Spanned<Case>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    given: Situation,
    expect: Expected,
}

/// How the cases went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// How many files had cases.
    pub files: usize,
    /// How many cases were as expected.
    pub passed: usize,
    /// Those that were not.
    pub failed: Vec<Failed>,
}

/// A case that was not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Its file.
    pub origin: PathBuf,
    /// The line it begins in.
    pub line: u64,
    /// Its name.
    pub name: String,
    /// What was otherwise than expected, each as a line.
    pub differences: Vec<String>,
    /// What it was, in one line.
    pub was: String,
}

/// Runs every case beside or in what is named, against the documents there.
///
/// # Errors
/// What cannot be read; no case is run then.
pub fn test(paths: &[PathBuf]) -> Result<Tested, Vec<Problem>> {
    let loaded = load(paths)?;
    let files: Vec<PathBuf> = find(&beside(paths))?.into_iter().filter(|path| is_cases(path)).collect();
    if files.is_empty() {
        let origin = paths.first().cloned().unwrap_or_default();
        let message = "there are no cases; write some into a file whose name ends in `_test.yaml`".to_owned();
        return Err(vec![Problem { origin, line: None, message }]);
    }
    let mut matrices = Vec::new();
    for file in &files {
        matrices.push((file, read(file)?));
    }
    let mut tested = Tested { files: files.len(), passed: 0, failed: Vec::new() };
    for (file, matrix) in matrices {
        for Spanned { value: case, referenced, .. } in matrix.tests {
            match run(&loaded.catalogue, &case) {
                Ok(()) => tested.passed += 1,
                Err((differences, was)) => tested.failed.push(Failed {
                    origin: file.clone(),
                    line: referenced.line(),
                    name: case.name,
                    differences,
                    was,
                }),
            }
        }
    }
    Ok(tested)
}

/// A file with documents stands for itself and for the cases next to it that have its name.
fn beside(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut all = paths.to_vec();
    for path in paths.iter().filter(|path| !is_cases(path)) {
        if let Some(stem) = path.file_stem().filter(|_| path.extension().is_some()) {
            let cases = path.with_file_name(format!("{}{}", stem.to_string_lossy(), super::CASES));
            if cases.is_file() {
                all.push(cases);
            }
        }
    }
    all
}

fn read(file: &Path) -> Result<Matrix, Vec<Problem>> {
    let text = text(file)?;
    let problem = |line, message| vec![Problem { origin: file.to_owned(), line, message }];
    let matrix: Matrix = parse_yaml(&text).map_err(|error| problem(error.line, error.message))?;
    for case in &matrix.tests {
        let line = Some(case.referenced.line());
        let durations = [&case.value.given.duration, &case.value.expect.max_ttl];
        for text in durations.into_iter().flatten() {
            duration(text).map_err(|error| problem(line, error))?;
        }
    }
    Ok(matrix)
}

fn run(catalogue: &Catalogue, case: &Case) -> Result<(), (Vec<String>, String)> {
    let outcome =
        trial::run(catalogue, &case.given).map_err(|error| (vec![error], "it could not be run".to_owned()))?;
    let differences = differences(&case.expect, &outcome);
    if differences.is_empty() { Ok(()) } else { Err((differences, told(&outcome))) }
}

fn differences(expected: &Expected, was: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |field: &str, expected: String, was: String| {
        if expected != was {
            found.push(format!("{field}: expected {expected}, and it was {was}"));
        }
    };
    compare("verdict", expected.verdict.as_str().to_owned(), was.verdict.as_str().to_owned());
    let none = || "none".to_owned();
    if let Some(ttl) = &expected.max_ttl {
        let ttl = duration(ttl).map_or_else(|_| ttl.clone(), shown);
        compare("max_ttl", ttl, was.ttl.map_or_else(none, shown));
    }
    if let Some(uses) = expected.max_uses {
        compare("max_uses", uses.to_string(), was.uses.map_or_else(none, |uses| uses.to_string()));
    }
    if let Some(steps) = &expected.steps {
        compare("steps", steps_told(steps), steps_told(&was.steps));
    }
    if let Some(determining) = &expected.determining {
        compare("determining", sorted(determining), sorted(&was.determining));
    }
    if let Some(state) = &expected.state {
        compare("state", state.clone(), was.state.clone());
    }
    if let Some(code) = &expected.refused {
        compare("refused", code.clone(), was.refused.as_ref().map_or_else(none, |refusal| refusal.code.to_owned()));
    }
    if let Some(reason) = &expected.reason {
        let reasons = was.reasons.join("; ");
        if !reasons.contains(reason.as_str()) {
            found.push(format!("reason: expected `{reason}` in it, and it was `{reasons}`"));
        }
    }
    found
}

fn sorted(ids: &[String]) -> String {
    let mut ids = ids.to_vec();
    ids.sort();
    format!("[{}]", ids.join(", "))
}

fn steps_told(steps: &[Step]) -> String {
    let told = |step: &Step| format!("{} of {}", step.quorum, step.approvers.join(" or "));
    if steps.is_empty() { "none".to_owned() } else { steps.iter().map(told).collect::<Vec<_>>().join(", then ") }
}

/// An outcome in one line.
pub(super) fn told(was: &Outcome) -> String {
    let mut parts = vec![was.verdict.as_str().to_owned()];
    let mut add = |name: &str, value: Option<String>| {
        parts.extend(value.filter(|value| !value.is_empty()).map(|value| format!("{name} {value}")));
    };
    add("max_ttl", was.ttl.map(shown));
    add("max_uses", was.uses.map(|uses| uses.to_string()));
    add("steps", (!was.steps.is_empty()).then(|| steps_told(&was.steps)));
    add("determining", Some(sorted(&was.determining)).filter(|_| !was.determining.is_empty()));
    add("refused", was.refused.as_ref().map(|refusal| refusal.code.to_owned()));
    add("because", Some(was.reasons.join("; ")));
    parts.join(", ")
}
