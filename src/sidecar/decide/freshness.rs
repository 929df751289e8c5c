//! How long ago the view of the grants was provably current.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::domain::time::{Now, Uptime};

/// The age of the view, and the age past which every call is denied. Needs no clock synchronisation: only time that has
/// passed on this machine counts.
#[derive(Debug)]
pub struct Freshness {
    proved_at: AtomicI64,
    staleness_max: Duration,
}

/// `proved_at` of a view that was never proved.
const NEVER: i64 = i64::MIN;

impl Freshness {
    /// A view that was never proved current.
    pub fn new(staleness_max: Duration) -> Self {
        Self { proved_at: AtomicI64::new(NEVER), staleness_max }
    }

    /// The view is provably what its source held at `at`. Proofs that arrive out of order do no harm.
    pub fn prove(&self, at: Uptime) {
        self.proved_at.fetch_max(at.as_micros(), Ordering::SeqCst);
    }

    /// Since when the view is not proved; none if it never was.
    pub fn age(&self, now: Now) -> Option<Duration> {
        match self.proved_at.load(Ordering::SeqCst) {
            NEVER => None,
            at => Some(now.uptime.since(Uptime::from_micros(at))),
        }
    }

    /// Whether the view is young enough to decide on.
    pub fn is_fresh(&self, now: Now) -> bool {
        self.age(now).is_some_and(|age| age <= self.staleness_max)
    }

    /// When the view becomes stale, unless it is proved again before.
    pub fn stale_from(&self) -> Uptime {
        match self.proved_at.load(Ordering::SeqCst) {
            NEVER => Uptime::from_micros(0),
            at => Uptime::from_micros(at).plus(self.staleness_max).plus(Duration::from_micros(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    fn at(seconds: i64) -> Now {
        Now { wall: Timestamp::from_seconds(0), uptime: Uptime::from_micros(seconds * 1_000_000) }
    }

    #[test]
    fn what_was_never_proved_is_stale() {
        assert!(!Freshness::new(Duration::from_secs(30)).is_fresh(at(0)));
    }

    #[test]
    fn a_view_is_fresh_up_to_the_limit_and_no_further() {
        let freshness = Freshness::new(Duration::from_secs(30));
        freshness.prove(at(10).uptime);
        assert!(freshness.is_fresh(at(40)));
        assert!(!freshness.is_fresh(Now { uptime: freshness.stale_from(), ..at(0) }));
        freshness.prove(at(5).uptime);
        assert!(freshness.is_fresh(at(40)), "an older proof takes nothing away");
        assert!(!freshness.is_fresh(at(41)));
    }
}
