//! Grants that are bound to the arguments of one call.
//!
//! A call is decided by its head. Only where nothing but a bound grant is left that could cover it does its body matter:
//! the denial then says that the arguments were not read ([`Denial::is_open`]), whoever has the body reads it, and the call
//! is decided anew. So no call is read that needs not be, and no use is taken before the digests are compared. They are
//! compared as they are: neither is a secret, and a caller knows the digest of its own call.
//!
//! [`Denial::is_open`]: super::Denial::is_open

use super::Denial;
use super::search::Search;
use crate::domain::action::Scope;
use crate::domain::arguments::ArgumentDigest;
use crate::sidecar::reason::Reason;

/// What is known of a call's arguments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Arguments {
    /// Nothing: its body is still to come.
    #[default]
    Unread,
    /// Everything: this is the call's digest.
    Known(ArgumentDigest),
    /// They cannot be known, for this reason. No bound grant covers such a call.
    Hidden(Reason),
}

impl Arguments {
    /// Whether a grant of that scope, which covers the call but for them, covers it with them.
    #[inline]
    pub(super) fn meet(&self, scope: &Scope) -> Result<(), Unmet> {
        match scope.arguments() {
            None => Ok(()),
            Some(bound) => self.are(bound),
        }
    }

    fn are(&self, bound: &ArgumentDigest) -> Result<(), Unmet> {
        match self {
            Self::Known(digest) if digest == bound => Ok(()),
            Self::Known(_) => Err(Unmet::For(Reason::ArgumentsDiffer)),
            Self::Hidden(reason) => Err(Unmet::For(*reason)),
            Self::Unread => Err(Unmet::Unread),
        }
    }
}

/// Why a bound grant does not cover a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmet {
    /// For that reason.
    For(Reason),
    /// It is not known whether it does.
    Unread,
}

impl Search {
    /// What is said where no grant covers a call of these arguments.
    pub(super) fn denial(self, arguments: &Arguments) -> Denial {
        let open = self.unread;
        let denial = self.into_denial();
        match arguments {
            Arguments::Unread if open => Denial { open, ..Denial::of(Reason::ArgumentsDiffer) },
            Arguments::Known(digest) if denial.reasons.contains(&Reason::ArgumentsDiffer) => {
                Denial { arguments: Some(Box::new(*digest)), ..denial }
            }
            _ => denial,
        }
    }
}
