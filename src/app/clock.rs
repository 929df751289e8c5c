//! The machine's clocks.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::domain::time::{Clock, Now, Timestamp, Uptime};

/// Reads the machine's clocks. The wall clock it tells never falls behind what has passed since it was made: a clock that
/// is set back makes nothing younger.
#[derive(Debug)]
pub struct SystemClock {
    began: Now,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl SystemClock {
    /// Begins now.
    pub fn new() -> Self {
        Self { began: read() }
    }

    /// How far the wall clock was set back since this began, in microseconds; negative when it was set ahead.
    pub fn set_back_micros(&self) -> i64 {
        let now = read();
        self.expected(now).saturating_sub(now.wall.as_micros())
    }

    fn expected(&self, now: Now) -> i64 {
        let passed = now.uptime.as_micros().saturating_sub(self.began.uptime.as_micros());
        self.began.wall.as_micros().saturating_add(passed)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let now = read();
        Now { wall: Timestamp::from_micros(now.wall.as_micros().max(self.expected(now))), uptime: now.uptime }
    }
}

fn read() -> Now {
    Now {
        wall: Timestamp::from_micros(micros(clock_gettime(ClockId::Realtime))),
        uptime: Uptime::from_micros(micros(clock_gettime(ClockId::Boottime))),
    }
}

fn micros(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_on_both_clocks() {
        let clock = SystemClock::new();
        let first = clock.now();
        while clock.now().uptime == first.uptime {
            std::hint::spin_loop();
        }
        let second = clock.now();
        assert!(second.wall >= first.wall && second.uptime > first.uptime);
        assert!(clock.set_back_micros().abs() < 60_000_000);
    }
}
