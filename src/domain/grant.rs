//! A live permission.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::action::Scope;
use super::id::{BackendName, GrantId, TaskRef};
use super::principal::Principal;
use super::time::{Timestamp, Window};

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

/// How long a grant may go unused, and when that is over. What is heard of uses comes late, so a quarter more is allowed:
/// what is heard of sooner than that after it was made counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Idle {
    #[serde(rename = "timeout_seconds", with = "super::elevation::seconds")]
    timeout: Duration,
    due: Timestamp,
}

impl Idle {
    /// Shortest timeout: a quarter of it is as long as it takes to hear of a use.
    pub const TIMEOUT_MIN: Duration = Duration::from_secs(60);

    /// Of a grant that begins at `now`, which counts as a use.
    pub fn new(timeout: Duration, now: Timestamp) -> Self {
        Self { timeout, due: now.plus(timeout + timeout / 4) }
    }

    /// As long as the grant may go unused.
    pub const fn timeout(self) -> Duration {
        self.timeout
    }

    /// When it has gone unused for too long, as far as is known.
    pub const fn due(self) -> Timestamp {
        self.due
    }

    /// The same once a use at `last` is known. It is never over sooner for that.
    #[must_use]
    pub fn used(self, last: Timestamp) -> Self {
        Self { due: self.due.max(Self::new(self.timeout, last).due), ..self }
    }

    /// Whether it has gone unused for too long.
    pub fn is_over(self, now: Timestamp) -> bool {
        now >= self.due
    }
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
    use proptest::prelude::*;

    #[test]
    fn a_state_reads_back_and_an_unknown_number_permits_nothing() {
        for state in GrantState::ALL {
            assert_eq!(GrantState::from_number(state as u8), state);
        }
        assert_eq!(GrantState::from_number(200), GrantState::Revoked);
    }

    proptest! {
        /// However late and out of order uses are heard of, sooner than a quarter of the timeout: what was used in time
        /// is not idle, and what was not is.
        #[test]
        fn what_is_used_in_time_is_not_idle(
            timeout in 60u64..10_000, uses in prop::collection::vec((0u64..50_000, 0u64..25), 0..20),
        ) {
            let at = |seconds: u64| Timestamp::from_seconds(i64::try_from(seconds).unwrap());
            let allowed = timeout + timeout / 4;
            // Each use is heard of less than a quarter of the timeout after it was made.
            let mut heard: Vec<_> = uses.iter().map(|(use_at, late)| (use_at + timeout * late / 100, *use_at)).collect();
            heard.sort_unstable();
            let mut idle = Idle::new(Duration::from_secs(timeout), at(0));
            let mut last = 0;
            for (now, used) in heard {
                let over_before = idle.is_over(at(now));
                let in_time = used <= last + timeout;
                prop_assert!(!(over_before && in_time), "used at {used}, heard at {now}, before it at {last}");
                idle = idle.used(at(used));
                last = last.max(used);
            }
            prop_assert!(!idle.is_over(at(last + timeout)));
            prop_assert!(idle.is_over(at(last + allowed + 1)));
        }
    }

    /// The very moment at which it is due is over, as the end of a window is outside the window.
    #[test]
    fn what_is_due_is_over() {
        let idle = Idle::new(Duration::from_secs(3_324), Timestamp::from_seconds(28_457));
        let due = Timestamp::from_seconds(28_457 + 3_324 + 831);
        assert_eq!(idle.due(), due);
        assert!(idle.is_over(due));
        assert!(!idle.is_over(Timestamp::from_micros(due.as_micros() - 1)));
    }
}
