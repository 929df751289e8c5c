//! Policy before it is in force: documents from files are checked, tested and explained, with no server.
//!
//! A case is run through the very commands that a control plane runs, on a store in memory that is thrown away: what is
//! told here is what would happen there.

mod cases;
mod explain;
mod trial;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::clock::SystemClock;
use crate::control::catalogue::Catalogue;
use crate::control::document::{Document, Kind, read_yaml};
use crate::domain::time::Clock;
use crate::sidecar::resolve::ActionMap;

pub use cases::{Failed, Tested, test};
pub use explain::{Explanation, Policy, explain};
pub use trial::{Expected, Situation, TaskSituation};

/// How the names of files with cases end.
const CASES: &str = "_test.yaml";

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The time now, as a case has it.
pub fn now() -> String {
    SystemClock::new().now().wall.to_string()
}

/// Something that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or folder.
    pub origin: PathBuf,
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.origin.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// What the documents amount to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// How many files were read.
    pub files: usize,
    /// How many documents there are of each kind.
    pub documents: Vec<(String, usize)>,
    /// How many policies there are, the built-in ones included.
    pub policies: usize,
    /// To how many policies each question about a request is put at most.
    pub asked: Vec<(String, usize)>,
    /// How many guardrails a call costs: backend, action, number; only where there are any.
    pub slices: Vec<(String, String, usize)>,
    /// What is valid and probably not meant.
    pub notices: Vec<String>,
    /// The SHA-256 of all policies.
    pub digest: String,
}

/// Documents read from files.
struct Loaded {
    files: Vec<PathBuf>,
    documents: Vec<Document>,
    catalogue: Catalogue,
}

/// Reads and checks the documents in these files and folders, as one installation.
///
/// # Errors
/// Everything that is wrong with them.
pub fn check(paths: &[PathBuf]) -> Result<Checked, Vec<Problem>> {
    let Loaded { files, documents, catalogue } = load(paths)?;
    let count = |kind: Kind| documents.iter().filter(|document| document.kind == kind).count();
    let slices = catalogue.policies.slices().filter(|(_, _, number)| *number > 0);
    Ok(Checked {
        files: files.len(),
        documents: Kind::ALL.iter().map(|kind| (kind.to_string(), count(*kind))).collect(),
        policies: catalogue.policies.ids().len(),
        asked: catalogue.policies.asked().map(|(question, number)| (question.to_owned(), number)).to_vec(),
        slices: slices.map(|(backend, action, number)| (backend.to_string(), action.to_string(), number)).collect(),
        notices: catalogue.notices(),
        digest: catalogue.policies.digest().to_owned(),
    })
}

fn load(paths: &[PathBuf]) -> Result<Loaded, Vec<Problem>> {
    let files: Vec<PathBuf> = find(paths)?.into_iter().filter(|path| !is_cases(path)).collect();
    let (mut documents, mut problems) = (Vec::new(), Vec::new());
    for file in &files {
        match documents_of(file) {
            Ok(mut read) => documents.append(&mut read),
            Err(mut wrong) => problems.append(&mut wrong),
        }
    }
    let origin = || paths.first().cloned().unwrap_or_default();
    if problems.is_empty() && documents.is_empty() {
        let message = "there are no documents; name a `.yaml` file, or a folder with some".to_owned();
        problems.push(Problem { origin: origin(), line: None, message });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let catalogue = Catalogue::read(&documents, 0).map_err(|errors| {
        errors.into_iter().map(|message| Problem { origin: origin(), line: None, message }).collect::<Vec<_>>()
    })?;
    let dangling = catalogue.policies.dangling().iter();
    let dangling: Vec<Problem> =
        dangling.map(|(_, message)| Problem { origin: origin(), line: None, message: message.clone() }).collect();
    if dangling.is_empty() { Ok(Loaded { files, documents, catalogue }) } else { Err(dangling) }
}

fn documents_of(file: &Path) -> Result<Vec<Document>, Vec<Problem>> {
    let problem = |line, message| Problem { origin: file.to_owned(), line, message };
    let text = text(file)?;
    let documents = read_yaml(&text)
        .map_err(|errors| errors.into_iter().map(|error| problem(error.line, error.message)).collect::<Vec<_>>())?;
    let maps = documents.iter().filter(|document| document.kind == Kind::ActionMap);
    // Only the sidecar knows what the rest of a rule means, and JSON is YAML.
    let wrong = maps.filter_map(|map| Some((map, ActionMap::from_yaml(&map.spec.to_string()).err()?)));
    let wrong: Vec<Problem> = wrong
        .flat_map(|(map, errors)| {
            let name = map.metadata.name.clone();
            errors.0.into_iter().map(move |error| problem(None, format!("ActionMap `{name}`: {error}")))
        })
        .collect();
    if wrong.is_empty() { Ok(documents) } else { Err(wrong) }
}

fn is_cases(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(CASES))
}

/// All YAML files that are named, or are in folders that are.
fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Vec<Problem>> {
    let mut found = Vec::new();
    for path in paths {
        walk(path, true, &mut found).map_err(|(origin, error)| {
            vec![Problem { origin, line: None, message: format!("it cannot be read: {error}") }]
        })?;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(path: &Path, named: bool, found: &mut Vec<PathBuf>) -> Result<(), (PathBuf, std::io::Error)> {
    let fail = |error| (path.to_owned(), error);
    if !std::fs::metadata(path).map_err(fail)?.is_dir() {
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if named || yaml {
            found.push(path.to_owned());
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        // A link could lead round in a circle, or out of what was named.
        if !entry.file_type().map_err(fail)?.is_symlink() {
            walk(&entry.path(), false, found)?;
        }
    }
    Ok(())
}

fn text(file: &Path) -> Result<String, Vec<Problem>> {
    let problem = |message: String| vec![Problem { origin: file.to_owned(), line: None, message }];
    let length = std::fs::metadata(file).map_err(|error| problem(format!("it cannot be read: {error}")))?.len();
    if length > FILE_BYTES_MAX {
        return Err(problem("it is larger than 16 MiB".to_owned()));
    }
    std::fs::read_to_string(file).map_err(|error| problem(format!("it cannot be read: {error}")))
}
