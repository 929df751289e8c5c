//! Which of a principal's grants a call is put on, and what is said where none covers it.

use std::cmp::Reverse;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Denial;
use super::entry::Entry;
use crate::domain::id::{Borrowed, GrantId};
use crate::domain::time::Timestamp;
use crate::sidecar::reason::Reason;

/// What a look at a principal's grants found.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) best: Option<Arc<Entry>>,
    pub(super) holds_other: bool,
    /// Whether a grant is bound to arguments, and those of the call are not known.
    pub(super) unread: bool,
    reasons: SmallVec<[Reason; 4]>,
    closest: Option<(u8, GrantId)>,
    pub(super) message: Option<String>,
}

impl Search {
    /// Prefers a grant that is not counted, then the one that lasts longest, then the lower id: the same everywhere.
    pub(super) fn consider(&mut self, entry: &Arc<Entry>) {
        fn rank(entry: &Entry) -> (bool, Timestamp, Reverse<Borrowed<'_, GrantId>>) {
            (!entry.is_counted(), entry.window().window().expires_at, Reverse(entry.id()))
        }
        if self.best.as_ref().is_none_or(|best| rank(entry) > rank(best)) {
            self.best = Some(Arc::clone(entry));
        }
    }

    pub(super) fn refuse(&mut self, reason: Reason, entry: &Entry) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
        let weight = weight(reason);
        if self.closest.as_ref().is_none_or(|(closest, _)| weight < *closest) {
            self.closest = Some((weight, entry.id().to_owned()));
        }
    }

    pub(super) fn into_denial(mut self) -> Denial {
        if self.reasons.is_empty() {
            self.reasons.push(if self.holds_other { Reason::OutOfScope } else { Reason::NoGrant });
        }
        self.reasons.sort_by_key(|reason| weight(*reason));
        let reason = self.reasons[0];
        Denial {
            reason,
            reasons: self.reasons,
            grant: self.closest.map(|(_, id)| id),
            message: self.message,
            ..Denial::of(reason)
        }
    }
}

/// Which of several reasons the caller is told first: the one that says most about what to do next.
fn weight(reason: Reason) -> u8 {
    match reason {
        Reason::Lock => 0,
        Reason::ArgumentsDiffer | Reason::BodyTooLarge | Reason::BodyUnreadable => 1,
        Reason::NotYet => 2,
        Reason::Exhausted => 3,
        Reason::Revoked => 4,
        Reason::Released => 5,
        Reason::Expired => 6,
        _ => 7,
    }
}
