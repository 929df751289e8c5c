//! Documents as files have them: several in one YAML text, each with the line it begins in.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

use super::Document;
use crate::domain::yaml::{self, Size};

/// Most documents in one text.
const DOCUMENTS_MAX: usize = 5_000;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for YamlError {}

/// Reads all documents of a text. What is in their specs is read as [`Document::read`] does, so that its mistakes have
/// lines too.
///
/// # Errors
/// Every mistake that was found.
pub fn read_yaml(text: &str) -> Result<Vec<Document>, Vec<YamlError>> {
    let spanned: Vec<Spanned<Document>> =
        serde_saphyr::from_multiple_with_options(text, yaml::options(Size::Large, DOCUMENTS_MAX))
            .map_err(|error| vec![refused(&error)])?;
    let (mut documents, mut errors) = (Vec::with_capacity(spanned.len()), Vec::new());
    for Spanned { value, referenced, .. } in spanned {
        if let Err(message) = value.read() {
            errors.push(YamlError { line: Some(referenced.line()), message });
        }
        documents.push(value);
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

/// Reads one YAML document, as strictly.
///
/// # Errors
/// What is wrong with it.
pub fn parse_yaml<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    yaml::read(text, Size::Large).map_err(|error| refused(&error))
}

fn refused(error: &serde_saphyr::Error) -> YamlError {
    let error = error.without_snippet();
    let line = error.location().map(|place| place.line()).filter(|line| *line > 0);
    let mut message = error.to_string();
    // The place is said in front already.
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    YamlError { line, message }
}
