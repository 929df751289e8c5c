//! What is told of uses: gathered from wherever calls are carried out, in a few frames now and then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::outgoing::Outgoing;
use crate::domain::id::GrantId;
use crate::domain::time::Timestamp;
use crate::wire::v1;

/// How often it is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Grants of one frame.
const FRAME_MAX: usize = 1_000;

/// Grants that wait to be told; of more, the oldest news is forgotten.
const WAITING_MAX: usize = 65_536;

/// The uses of one grant since they were told last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Which.
    pub grant: GrantId,
    /// When it was used last, by this machine's clock.
    pub last: Timestamp,
    /// How often.
    pub calls: u64,
}

/// Gives all uses since it was asked last.
pub type Uses = Arc<dyn Fn() -> Vec<Activity> + Send + Sync>;

/// Uses on their way.
pub(super) struct Telling {
    uses: Uses,
    waiting: VecDeque<Activity>,
    pub(super) due: Instant,
}

impl Telling {
    pub(super) fn new(uses: Uses) -> Self {
        Self { uses, waiting: VecDeque::new(), due: Instant::now() + TELL_EVERY }
    }

    /// Tells what there is, as far as there is room. The server's clock is ahead of the one that it was noted by by so
    /// many microseconds.
    pub(super) fn tell(&mut self, out: &Outgoing, ahead: i64) {
        self.due = Instant::now() + TELL_EVERY;
        self.waiting.extend((self.uses)());
        let too_many = self.waiting.len().saturating_sub(WAITING_MAX);
        self.waiting.drain(..too_many);
        while !self.waiting.is_empty() && out.has_room() {
            let some = self.waiting.drain(..self.waiting.len().min(FRAME_MAX));
            let grants = some.map(|used| v1::GrantActivity {
                grant: used.grant.to_string(),
                last_used: used.last.as_micros().saturating_add(ahead),
                calls: used.calls,
            });
            let activity = v1::Activity { grants: grants.collect() };
            out.send(v1::ClientFrame { frame: Some(v1::client_frame::Frame::Activity(activity)) });
        }
    }
}
