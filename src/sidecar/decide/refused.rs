//! Why what a source states may be refused.

use super::table::GRANTS_PER_PRINCIPAL_MAX;
use crate::domain::id::{BackendName, GrantId, Revision};
use crate::domain::principal::Principal;

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
