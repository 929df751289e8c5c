//! What a source of grants knows at a revision, and what changes from one revision to the next.

use super::grant::{Grant, GrantState};
use super::id::{BackendName, GrantId, LockId, Revision};
use super::lock::Lock;
pub use super::stated::{Stated, StatedGrant, StatedGrants};

/// Everything a source states at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Its number; it never goes back.
    pub revision: Revision,
    /// All grants; what is missing has ended.
    pub grants: StatedGrants,
    /// All locks; what is missing is lifted.
    pub locks: Vec<Lock>,
}

/// One change of what is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A grant began, or became narrower.
    Grant(Box<Grant>),
    /// A grant ended.
    End {
        /// Which.
        id: GrantId,
        /// On which backend.
        backend: BackendName,
        /// In which state it is; never [`GrantState::Active`].
        state: GrantState,
    },
    /// A lock is in force.
    Lock(Box<Lock>),
    /// A lock was lifted.
    Unlock(LockId),
    /// What is declared changed; nothing about grants and locks.
    Declared,
}

impl Change {
    /// Whether it takes something away, and so may come ahead of its turn.
    pub const fn is_end(&self) -> bool {
        matches!(self, Self::End { .. } | Self::Lock(_))
    }

    /// The only backend that it is about; none where it may be about any.
    pub fn backend(&self) -> Option<&BackendName> {
        match self {
            Self::Grant(grant) => Some(&grant.backend),
            Self::End { backend, .. } => Some(backend),
            Self::Lock(lock) => lock.backend.as_ref(),
            Self::Unlock(_) | Self::Declared => None,
        }
    }
}
