//! What a source shows of itself, and how far its clock is from ours.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::time::{Now, Timestamp};

/// What is shown of a source that is followed.
#[derive(Debug, Default)]
pub struct Status {
    connected: AtomicBool,
    connections: AtomicU64,
    offset_micros: AtomicI64,
}

impl Status {
    /// Whether a stream is open.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// How often a stream was opened after the first.
    pub fn reconnects(&self) -> u64 {
        self.connections.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// How far the source's clock is ahead of this machine's, in seconds; negative where it is behind.
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn clock_offset_seconds(&self) -> f64 {
        self.clock_offset_micros() as f64 / 1e6
    }

    /// The same in microseconds.
    pub fn clock_offset_micros(&self) -> i64 {
        self.offset_micros.load(Ordering::Relaxed)
    }

    pub(super) fn opened(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.connected.store(false, Ordering::Relaxed);
    }
}

/// How many answers the estimate is made of.
const ANSWERS: usize = 16;

/// More than this is worth a warning.
const OFFSET_MAX: Duration = Duration::from_secs(5);

/// The difference of the clocks: each answer bounds it from both sides, by when it was asked for and when it came.
#[derive(Debug, Default)]
pub(super) struct Offset {
    answers: VecDeque<(i64, i64)>,
    warned: bool,
}

impl Offset {
    /// Takes in when the server answered; returns how far its clock is ahead of ours at most.
    pub(super) fn learn(&mut self, asked: Now, came: Now, server: Timestamp, status: &Status) -> Duration {
        // What passed between the two readings really, whatever the wall clock did meanwhile.
        let passed = i64::try_from(came.uptime.since(asked.uptime).as_micros()).unwrap_or(i64::MAX);
        let least = server.as_micros().saturating_sub(came.wall.as_micros());
        if self.answers.len() >= ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back((least, least.saturating_add(passed)));
        let most = self.answers.iter().map(|(_, most)| *most).min().unwrap_or(0);
        // A clock that was stepped leaves bounds that contradict each other; the last answer is then all there is.
        let least_of_all = self.answers.iter().map(|(least, _)| *least).max().unwrap_or(0);
        if least_of_all > most {
            self.answers.drain(..self.answers.len() - 1);
        }
        let (least, most) = self.answers.iter().fold((i64::MIN, i64::MAX), |(l, m), (a, b)| (l.max(*a), m.min(*b)));
        let middle = least.midpoint(most);
        status.offset_micros.store(middle, Ordering::Relaxed);
        let far = Duration::from_micros(middle.unsigned_abs()) > OFFSET_MAX;
        if far && !self.warned {
            tracing::warn!(
                offset_seconds = status.clock_offset_seconds(),
                "the source's clock and this machine's differ: one of the two is wrong"
            );
        }
        self.warned = far;
        Duration::from_micros(u64::try_from(most).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Uptime;

    fn now(wall: i64, uptime: i64) -> Now {
        Now { wall: Timestamp::from_micros(wall), uptime: Uptime::from_micros(uptime) }
    }

    #[test]
    fn the_estimate_is_the_narrowest_that_all_answers_allow() {
        let (mut offset, status) = (Offset::default(), Status::default());
        // Asked at 0, came at 100, and the server said 1,050: it is 950 to 1,050 ahead.
        let most = |offset: &mut Offset, asked, came, server| {
            offset.learn(now(asked, asked), now(came, came), Timestamp::from_micros(server), &status).as_micros()
        };
        assert_eq!(most(&mut offset, 0, 100, 1_050), 1_050);
        // A slow answer widens nothing.
        assert_eq!(most(&mut offset, 200, 5_200, 1_250), 1_050);
        assert_eq!(most(&mut offset, 6_000, 6_010, 7_005), 1_005);
        assert!((status.clock_offset_seconds() - 0.001).abs() < 0.000_01);
    }

    #[test]
    fn a_step_of_a_clock_is_believed_at_once_and_a_slow_clock_of_the_server_shortens_nothing() {
        let (mut offset, status) = (Offset::default(), Status::default());
        let far = 60_000_000;
        assert!(offset.learn(now(0, 0), now(10, 10), Timestamp::from_micros(far), &status).as_secs() >= 59);
        assert!((status.clock_offset_seconds() - 60.0).abs() < 0.1);
        let behind = offset.learn(now(0, 20), now(10, 30), Timestamp::from_micros(-far), &status);
        assert_eq!(behind, Duration::ZERO);
        assert!((status.clock_offset_seconds() + 60.0).abs() < 0.1);
    }
}
