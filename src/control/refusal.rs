//! Why something asked of the control plane is not done.

use std::fmt;

/// What kind of refusal it is; the API gives each a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was sent says something that cannot be.
    Invalid,
    /// There is nothing of that name for this caller.
    NotFound,
    /// The caller may not.
    Forbidden,
    /// It contradicts what is there.
    Conflict,
    /// What the caller saw is not what is there.
    Changed,
    /// The caller must say what they saw.
    Unconditional,
    /// They hold all that they may: it is so until something is given back.
    Limited,
    /// The store cannot answer now.
    Unavailable,
}

/// A refusal: nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind it is.
    pub kind: Kind,
    /// A stable word for programs, such as `self_approval`.
    pub code: &'static str,
    /// A sentence for people, with what to do next where that is not the hint.
    pub detail: String,
    /// What to do next, alone.
    pub hint: Option<&'static str>,
}

impl Refusal {
    /// A refusal of that kind.
    pub fn new(kind: Kind, code: &'static str, detail: impl fmt::Display) -> Self {
        Self { kind, code, detail: detail.to_string(), hint: None }
    }

    /// As [`Refusal::new`], for whoever holds all that they may, with what they can do about it.
    pub fn limited(code: &'static str, detail: impl fmt::Display, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..Self::new(Kind::Limited, code, detail) }
    }

    /// What was sent is wrong.
    pub fn invalid(code: &'static str, detail: impl fmt::Display) -> Self {
        Self::new(Kind::Invalid, code, detail)
    }

    /// There is no such thing, or none that the caller may know of.
    pub fn not_found(what: &str, name: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, "not_found", format_args!("there is no {what} `{name}`, or it is not yours to see"))
    }

    /// The caller may not.
    pub fn forbidden(code: &'static str, detail: impl fmt::Display) -> Self {
        Self::new(Kind::Forbidden, code, detail)
    }

    /// It contradicts what is there.
    pub fn conflict(code: &'static str, detail: impl fmt::Display) -> Self {
        Self::new(Kind::Conflict, code, detail)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Refusal {}
