//! How long what was is remembered.

use std::time::Duration;

use super::{Change, Revision};

/// How long changes are kept for those who resume. Rows and audit entries are kept for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// A change younger than this stays, unless there are too many.
    pub age: Duration,
    /// So many of the newest stay however old they are.
    pub least: u64,
    /// More than so many are never kept.
    pub most: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { age: Duration::from_secs(24 * 3_600), least: 10_000, most: 2_000_000 }
    }
}

/// Longest that anything is remembered only to recognise what is said again.
pub(crate) const REPEATS_AFTER_END: Duration = Duration::from_secs(24 * 3_600);

/// What a reader who resumes gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// The next changes, dense: each revision is the one before it plus one.
    Next(Vec<(Revision, Change)>),
    /// They are not kept any more: begin again with a snapshot.
    Compacted {
        /// The first revision that one can resume after.
        floor: Revision,
    },
}
