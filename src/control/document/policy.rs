//! Cedar text and what it is for.

use serde::{Deserialize, Serialize};

use crate::guardrail::Mode;

/// Longest Cedar text of one document, in bytes.
const CEDAR_BYTES_MAX: usize = 256 << 10;

/// What a policy is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Requests and approvals.
    Elevation,
    /// Calls, although a grant covers them; only `forbid`.
    Guardrail,
    /// Administration.
    Admin,
}

impl Target {
    /// The target as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Elevation => "elevation",
            Self::Guardrail => "guardrail",
            Self::Admin => "admin",
        }
    }
}

/// Cedar text and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// What it is asked about.
    pub target: Target,
    /// Whether it counts.
    #[serde(default)]
    pub mode: Mode,
    /// The Cedar text.
    pub cedar: String,
}

impl PolicySpec {
    pub(super) fn check(self) -> Result<Self, String> {
        if self.cedar.len() > CEDAR_BYTES_MAX {
            return Err("spec.cedar: at most 256 KiB; make several documents of it".into());
        }
        Ok(self)
    }
}
