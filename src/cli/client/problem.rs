//! What a control plane says when it refuses, for somebody who has to do something about it.

use std::fmt;

use http::StatusCode;
use serde_json::Value;

/// A refusal of the control plane (RFC 9457). Its text says what to do next.
#[derive(Debug)]
pub(in crate::cli) struct Problem {
    pub(in crate::cli) status: StatusCode,
    /// The stable word for programs; empty where the answer has none.
    pub(in crate::cli) code: String,
    detail: String,
    hint: Option<String>,
}

impl Problem {
    /// Reads a refusal; none where the body is not one.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(body).ok()?;
        let text = |key: &str| document.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let detail = text("detail").or_else(|| text("title"))?.to_owned();
        let hint = text("hint").map(str::to_owned).or_else(|| usual_hint(status).map(str::to_owned));
        Some(Self { status, code: text("code").unwrap_or_default().to_owned(), detail, hint })
    }
}

/// What to do where the control plane does not say.
fn usual_hint(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::UNAUTHORIZED => {
            Some("log in with `leasehold login`, or name a token with `--token-file` or LEASEHOLD_TOKEN_FILE")
        }
        StatusCode::SERVICE_UNAVAILABLE => Some("nothing was changed as far as it knows; say it again"),
        _ => None,
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if !self.code.is_empty() {
            write!(f, " ({})", self.code)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_to_do() {
        let read = |status, text: &str| Problem::read(status, text.as_bytes()).map(|problem| problem.to_string());
        let body = r#"{"detail":"nobody approves their own","code":"self_approval","hint":"ask a colleague"}"#;
        let expected = "nobody approves their own (self_approval)\n  ask a colleague";
        assert_eq!(read(StatusCode::FORBIDDEN, body).as_deref(), Some(expected));
        let said = read(StatusCode::UNAUTHORIZED, r#"{"title":"who are you?"}"#).expect("a problem");
        assert!(said.contains("leasehold login"), "{said}");
        for bad in ["", "<html>", "[]", "{}", r#"{"detail":1}"#] {
            assert_eq!(read(StatusCode::FORBIDDEN, bad), None, "{bad}");
        }
    }
}
