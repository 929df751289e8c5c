//! Time: when a permission starts and ends, and a reading of the clocks that suspend and NTP steps cannot cheat.

use std::fmt;
use std::time::Duration;

/// Microseconds since 1970-01-01T00:00:00Z, by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The latest moment that can be written; a grant that ends then never ends by itself.
    pub const MAX: Self = Self(i64::MAX);

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the epoch, saturating.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Reads an RFC 3339 date and time with an offset.
    ///
    /// # Errors
    /// The reason, fit to be shown to whoever wrote the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let stamp: jiff::Timestamp = text
            .parse()
            .map_err(|_| format!("`{}` is not an RFC 3339 time such as `2026-11-23T15:13:00Z`", text.escape_debug()))?;
        Ok(Self(stamp.as_microsecond()))
    }

    /// As [`Timestamp::parse`], and the words that [`fmt::Display`] has for the ends of time.
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::MAX),
            "always" => Ok(Self(i64::MIN)),
            _ => Self::parse(text),
        }
    }

    /// This moment plus a duration, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }

    /// How long it is from `earlier` until this moment; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

super::as_text!(Timestamp, Timestamp::read);

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds where they are not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(stamp) => stamp.fmt(f),
            Err(_) if self.0 > 0 => f.write_str("never"),
            Err(_) => f.write_str("always"),
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Microseconds since the machine started, time asleep included (`CLOCK_BOOTTIME`); no step moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uptime(i64);

impl Uptime {
    /// Later than every reading.
    pub const MAX: Self = Self(i64::MAX);

    /// From microseconds since the machine started.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the machine started.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// This moment plus a duration, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }

    /// How long it is from `earlier` until this moment; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What the wall clock says; it can be stepped.
    pub wall: Timestamp,
    /// What has really passed; it cannot.
    pub uptime: Uptime,
}

/// Reads the clocks. Production reads the machine's; tests step one of their own.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Both clocks, now.
    fn now(&self) -> Now;
}

/// From when and until when a permission holds: half-open, `[not_before, expires_at)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// The first moment at which it holds.
    pub not_before: Timestamp,
    /// The first moment at which it holds no more.
    pub expires_at: Timestamp,
}

/// Where a moment lies against a [`Window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Before it begins.
    Before,
    /// Inside it.
    Inside,
    /// At or past its end.
    After,
}

impl Window {
    /// Fixes the end of the window on the clock that cannot be stepped, as of `now`.
    pub fn anchor(self, now: Now) -> Anchored {
        let ends_uptime = if self.expires_at == Timestamp::MAX {
            Uptime::MAX
        } else {
            now.uptime.plus(self.expires_at.since(now.wall))
        };
        Anchored { window: self, ends_uptime }
    }
}

/// A window whose end is known on both clocks; it ends at the earlier of the two.
///
/// A wall clock set back gives no longer life, and neither does a machine that was asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchored {
    window: Window,
    ends_uptime: Uptime,
}

impl Anchored {
    /// Puts a window back together with the end that was fixed for it before.
    pub fn from_parts(window: Window, ends_uptime: Uptime) -> Self {
        Self { window, ends_uptime }
    }

    /// The end on the clock that cannot be stepped.
    pub fn ends_uptime(&self) -> Uptime {
        self.ends_uptime
    }

    /// The window as it was given.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Where `now` lies; past the end on either clock is past the end.
    pub fn position(&self, now: Now) -> Position {
        if now.wall >= self.window.expires_at || now.uptime >= self.ends_uptime {
            Position::After
        } else if now.wall < self.window.not_before {
            Position::Before
        } else {
            Position::Inside
        }
    }

    /// How long it is until the earlier of the two ends; zero when it is past.
    pub fn remaining(&self, now: Now) -> Duration {
        let by_wall = if self.window.expires_at == Timestamp::MAX {
            Duration::MAX
        } else {
            self.window.expires_at.since(now.wall)
        };
        let by_uptime =
            if self.ends_uptime == Uptime::MAX { Duration::MAX } else { self.ends_uptime.since(now.uptime) };
        by_wall.min(by_uptime)
    }

    /// The same permission read again: it never ends later than it already did.
    #[must_use]
    pub fn shortened_by(self, other: Self) -> Self {
        Self {
            window: Window {
                not_before: self.window.not_before.max(other.window.not_before),
                expires_at: self.window.expires_at.min(other.window.expires_at),
            },
            ends_uptime: self.ends_uptime.min(other.ends_uptime),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now(wall: i64, uptime: i64) -> Now {
        Now { wall: Timestamp::from_micros(wall), uptime: Uptime::from_micros(uptime) }
    }

    fn window(from: i64, to: i64) -> Window {
        Window { not_before: Timestamp::from_micros(from), expires_at: Timestamp::from_micros(to) }
    }

    #[test]
    fn the_end_is_exclusive_and_the_start_inclusive() {
        let anchored = window(10, 20).anchor(now(0, 100));
        assert_eq!(anchored.position(now(9, 109)), Position::Before);
        assert_eq!(anchored.position(now(10, 110)), Position::Inside);
        assert_eq!(anchored.position(now(19, 119)), Position::Inside);
        assert_eq!(anchored.position(now(20, 119)), Position::After);
    }

    #[test]
    fn a_wall_clock_set_back_gives_no_longer_life() {
        let anchored = window(0, 20).anchor(now(0, 100));
        assert_eq!(anchored.position(now(-3_600_000_000, 120)), Position::After);
    }

    #[test]
    fn a_grant_without_end_has_none_on_either_clock() {
        let anchored = Window { not_before: Timestamp::from_micros(0), expires_at: Timestamp::MAX }.anchor(now(5, 5));
        assert_eq!(anchored.position(now(i64::MAX - 1, i64::MAX - 1)), Position::Inside);
        assert_eq!(anchored.remaining(now(6, 6)), Duration::MAX);
    }

    #[test]
    fn times_read_as_rfc_3339() {
        assert_eq!(Timestamp::parse("1970-01-01T00:00:01Z"), Ok(Timestamp::from_seconds(1)));
        assert_eq!(Timestamp::parse("1970-01-01T01:00:01+01:00"), Ok(Timestamp::from_seconds(1)));
        for bad in ["", "tomorrow", "2026-11-23", "2026-11-23T15:13:00", "99999999999999999999"] {
            assert!(Timestamp::parse(bad).is_err(), "`{bad}` was accepted");
        }
        assert_eq!(Timestamp::from_seconds(1).to_string(), "1970-01-01T00:00:01Z");
    }

    proptest! {
        /// Whatever the clocks do, once the true time is past the end the window is over.
        #[test]
        fn no_clock_step_extends_a_window(from in 0i64..1_000, length in 1i64..1_000, step in -10_000i64..10_000, passed in 0i64..5_000) {
            let anchored = window(from, from + length).anchor(now(from, 0));
            let reading = now(from + passed + step, passed);
            if passed >= length {
                prop_assert_eq!(anchored.position(reading), Position::After);
                prop_assert_eq!(anchored.remaining(reading), Duration::ZERO);
            }
        }

        /// Inside means time remains; after means none does.
        #[test]
        fn position_and_remaining_agree(end in 1i64..1_000, wall in 0i64..2_000, uptime in 0i64..2_000) {
            let anchored = window(0, end).anchor(now(0, 0));
            let reading = now(wall, uptime);
            prop_assert_eq!(anchored.position(reading) == Position::After, anchored.remaining(reading).is_zero());
        }

        /// Reading a grant again, in any order, never ends it later.
        #[test]
        fn shortening_is_commutative_and_only_shrinks(a in 0i64..1_000, b in 0i64..1_000, at in 0i64..1_000) {
            let first = window(0, a).anchor(now(0, 0));
            let second = window(0, b).anchor(now(0, 0));
            let both = first.shortened_by(second);
            prop_assert_eq!(both, second.shortened_by(first));
            let reading = now(at, at);
            if both.position(reading) == Position::Inside {
                prop_assert_eq!(first.position(reading), Position::Inside);
                prop_assert_eq!(second.position(reading), Position::Inside);
            }
        }
    }
}
