//! What a source states, and why it may be refused.

use super::table::GRANTS_PER_PRINCIPAL_MAX;
use crate::domain::grant::{Grant, GrantState};
use crate::domain::id::{BackendName, GrantId, Revision};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;

/// A grant as a source states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedGrant {
    /// The grant.
    pub grant: Grant,
    /// Its state according to the source.
    pub state: GrantState,
}

/// Everything a source states at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Its number; it never goes back.
    pub revision: Revision,
    /// All grants; what is missing has ended.
    pub grants: Vec<StatedGrant>,
    /// All locks; what is missing is lifted.
    pub locks: Vec<Lock>,
}

/// Why a snapshot was refused as a whole; the table is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Two grants have one id.
    #[error("two grants have the id `{0}`; give each its own")]
    Twice(GrantId),
    /// A known grant came back with another content.
    #[error("grant `{id}` changed its {what}; a grant never changes: state a new one with a new id and drop this one")]
    Changed {
        /// Which grant.
        id: GrantId,
        /// What is different.
        what: &'static str,
    },
    /// An older state of the source.
    #[error("revision {given} is older than the revision {held} held already")]
    Older {
        /// The revision of the refused snapshot.
        given: Revision,
        /// The revision in force.
        held: Revision,
    },
    /// Too many grants for one principal on one backend.
    #[error(
        "`{principal}` has more than {GRANTS_PER_PRINCIPAL_MAX} grants on `{backend}`; join their scopes in fewer grants"
    )]
    TooMany {
        /// Whose.
        principal: Principal,
        /// Where.
        backend: BackendName,
    },
}
