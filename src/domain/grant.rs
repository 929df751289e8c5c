//! A live permission.

use std::fmt;
use std::sync::Arc;

use super::action::Scope;
use super::id::{BackendName, GrantId, TaskRef};
use super::principal::Principal;
use super::time::Window;

/// A live permission: who may do what on what, from when until when, how often, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Grant {
    /// Its id, never used again for another.
    pub id: GrantId,
    /// Who may act.
    pub principal: Principal,
    /// On which backend.
    pub backend: BackendName,
    /// Which actions on which resources.
    /// Shared by all grants of one entitlement.
    pub scope: Arc<Scope>,
    /// From when until when.
    pub window: Window,
    /// How many calls it is good for; without it there is no count.
    pub uses_max: Option<u32>,
    /// What justifies it.
    pub task: Option<TaskRef>,
}

/// Where a grant is in its life. Every state but `Active` is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum GrantState {
    /// It permits, inside its window.
    Active = 0,
    /// Its window is over.
    Expired = 1,
    /// Its last use was taken.
    Exhausted = 2,
    /// Its holder gave it back.
    Released = 3,
    /// Somebody or something took it away.
    Revoked = 4,
}

impl GrantState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Active, Self::Expired, Self::Exhausted, Self::Released, Self::Revoked];

    /// The state of that number; a number that is none is an ended grant.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Active,
            1 => Self::Expired,
            2 => Self::Exhausted,
            3 => Self::Released,
            _ => Self::Revoked,
        }
    }

    /// The state as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Exhausted => "exhausted",
            Self::Released => "released",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for GrantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_and_an_unknown_number_permits_nothing() {
        for state in GrantState::ALL {
            assert_eq!(GrantState::from_number(state as u8), state);
        }
        assert_eq!(GrantState::from_number(200), GrantState::Revoked);
    }
}
