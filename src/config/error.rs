//! What is wrong with a file: where, what, and what to write instead.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_saphyr::Error as YamlError;

use super::raw::{File, Shape};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub origin: PathBuf,
    /// Line of the value, from 1, where it is known.
    pub line: Option<u32>,
    /// Column of the value, from 1, where it is known.
    pub column: Option<u32>,
    /// The key, such as `backends[0].upstream`; empty when the file as a whole is meant.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Everything that is wrong, in the order of the file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    /// In the order of the file, each once.
    pub(super) fn sorted(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by_key(|e| (e.line.is_none(), e.line, e.column));
        errors.dedup();
        Self(errors)
    }

    /// The file as a whole cannot be used.
    pub(super) fn whole(origin: &Path, message: String, hint: Option<&str>) -> Self {
        Self(vec![ConfigError {
            origin: origin.to_owned(),
            line: None,
            column: None,
            field: String::new(),
            message,
            hint: hint.map(str::to_owned),
        }])
    }

    /// What the parser refused.
    pub(super) fn from_yaml(origin: &Path, text: &str, error: &YamlError) -> Self {
        let error = error.without_snippet();
        let place = error.location().filter(|l| l.line() > 0);
        let (mut field, message, hint) = explain(error);
        if field.is_empty()
            && let Some(line) = place.and_then(|l| text.lines().nth(usize::try_from(l.line()).ok()?.checked_sub(1)?))
        {
            field = key_of(line).to_owned();
        }
        Self(vec![ConfigError {
            origin: origin.to_owned(),
            line: place.and_then(|l| u32::try_from(l.line()).ok()),
            column: place.and_then(|l| u32::try_from(l.column()).ok()),
            field,
            message,
            hint,
        }])
    }
}

/// Field, message and hint for the parser's error.
fn explain(error: &YamlError) -> (String, String, Option<String>) {
    let plain = |message: &str, hint: &str| (String::new(), message.to_owned(), Some(hint.to_owned()));
    match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            (field.clone(), "there is no such key here".to_owned(), Some(unknown_key_hint(field, expected)))
        }
        YamlError::SerdeInvalidType { unexpected, expected, .. }
        | YamlError::SerdeInvalidValue { unexpected, expected, .. } => {
            // The value itself may be a secret in the wrong place; its kind is enough.
            let kind = unexpected.split([' ', '`', '"']).next().unwrap_or("value");
            (String::new(), format!("a {kind} cannot stand here"), Some(format!("write {expected}")))
        }
        YamlError::NullIntoString { .. } => plain(
            "the key has nothing after its colon",
            "write a value, or remove the key (a text that reads `null` or `~` needs quotes)",
        ),
        YamlError::DuplicateMappingKey { key, .. } => (
            key.as_ref().map(ToString::to_string).unwrap_or_default(),
            "the key is written twice".to_owned(),
            Some("keep one of them".to_owned()),
        ),
        YamlError::MergeKeyNotAllowed { .. } => {
            plain("merge keys (`<<`) are not supported", "write the keys out, or use an alias for the whole value")
        }
        YamlError::MultipleDocuments { .. } => plain("the file has several documents", "remove the `---` lines"),
        YamlError::Unexpected { expected, .. } => {
            let (message, hint) = match *expected {
                "mapping start" => ("keys and values are expected here", "write `key: value` lines, indented below"),
                "sequence start" => ("a list is expected here", "write `[a, b]`, or lines that begin with `- `"),
                "string scalar" => ("one text is expected here", "write a single value"),
                other => return (String::new(), format!("{other} is expected here"), None),
            };
            plain(message, hint)
        }
        YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. }
        | YamlError::AliasReplayCounterOverflow { .. } => {
            plain("its aliases unfold to more than a configuration needs", "write the values out")
        }
        other => {
            let mut text = other.to_string();
            // The place is said in front already.
            if let Some(at) = text.rfind(" at line ") {
                text.truncate(at);
            }
            if text.starts_with("budget breached") {
                return plain("the file is larger, or deeper, than a configuration needs", "write less");
            }
            (String::new(), text, None)
        }
    }
}

/// The key that a line sets, if it plainly sets one.
fn key_of(line: &str) -> &str {
    let line = line.trim_start().trim_start_matches("- ");
    let end = line.bytes().take_while(|b| b.is_ascii_lowercase() || *b == b'_').count();
    if line[end..].starts_with(':') { &line[..end] } else { "" }
}

/// What a writer who meant well probably wanted.
fn unknown_key_hint(key: &str, here: &[&'static str]) -> String {
    if here == ["file", "env", "jwt"] {
        return "a secret is never written in this file: write `{file: /run/secrets/name}` or `{env: NAME}`".to_owned();
    }
    if let Some(near) = nearest(key, here) {
        return format!("did you mean `{near}`?");
    }
    let mut all = Vec::new();
    File::keys("", &mut all);
    let elsewhere: Vec<_> = all.iter().filter(|path| path.rsplit('.').next() == Some(key)).take(3).collect();
    if !elsewhere.is_empty() {
        let places: Vec<_> = elsewhere.iter().map(|path| format!("`{path}`")).collect();
        return format!("it exists as {}", places.join(", "));
    }
    let known: Vec<_> = here.iter().map(|k| format!("`{k}`")).collect();
    format!("the keys here are {}", known.join(", "))
}

/// The candidate that differs from `word` by few enough letters to be a slip.
pub(super) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    // A slip is one letter in three at most; anything else would be a guess.
    let allowed = (word.chars().count().max(3) / 3).min(3);
    let begun = || candidates.iter().copied().find(|c| word.chars().count() > 3 && c.starts_with(word));
    let close = || {
        candidates
            .iter()
            .map(|candidate| (distance(word, candidate), *candidate))
            .filter(|(distance, _)| *distance <= allowed)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, candidate)| candidate)
    };
    begun().or_else(close)
}

/// Letters to insert, remove, replace or swap with their neighbour to get from one word to the other (optimal string
/// alignment).
fn distance(from: &str, to: &str) -> usize {
    const LENGTH_MAX: usize = 64;
    let a: Vec<char> = from.chars().take(LENGTH_MAX + 1).collect();
    let b: Vec<char> = to.chars().take(LENGTH_MAX + 1).collect();
    if a.len() > LENGTH_MAX || b.len() > LENGTH_MAX {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word() {
        let keys = ["client_certificate", "client_ca", "upstream", "key"];
        for (word, expected) in [
            ("upstraem", Some("upstream")),
            ("client_cert", Some("client_certificate")),
            ("client_certificat", Some("client_certificate")),
            ("keys", Some("key")),
            ("yek", None),
            ("default", None),
        ] {
            assert_eq!(nearest(word, &keys), expected, "{word}");
        }
        assert_eq!(distance(&"x".repeat(1000), "x"), usize::MAX);
        assert_eq!(distance("ab", "ba"), 1);
    }
}
