//! The ticket, incident, pipeline run, agent job or migration window that justifies a grant.

use serde::{Deserialize, Serialize};

use super::id::TaskRef;
use super::time::Timestamp;

/// A task as it is known here. Closing it ends every grant and request of the epochs so far; opening it again begins the
/// next epoch and brings nothing back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its name at its source.
    pub reference: TaskRef,
    /// Whether it is open.
    pub open: bool,
    /// How often it was opened.
    pub epoch: u32,
    /// What kind it is, as its source says: `incident`, `change`, `pipeline`, …
    pub kind: String,
    /// Whether its source said so, and not the requester alone.
    pub verified: bool,
    /// When its source says it ends by itself.
    pub until: Option<Timestamp>,
    /// When its state last changed, by its source.
    pub at: Timestamp,
}

/// What a source says of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskEvent {
    /// It is open.
    Opened,
    /// It is over.
    Closed,
}

impl Task {
    /// A task of which only its name was heard.
    pub fn mentioned(reference: TaskRef, at: Timestamp) -> Self {
        Self { reference, open: true, epoch: 1, kind: String::new(), verified: false, until: None, at }
    }

    /// The task after what its source said happened `at`. A close stands against every older opening.
    #[must_use]
    pub fn after(&self, event: TaskEvent, at: Timestamp) -> Self {
        let mut task = Self { verified: true, ..self.clone() };
        match event {
            TaskEvent::Closed => {
                task.open = false;
                task.at = task.at.max(at);
            }
            TaskEvent::Opened if !self.open && at > self.at => {
                task.open = true;
                task.epoch += 1;
                task.at = at;
            }
            TaskEvent::Opened => {}
        }
        task
    }

    /// Whether it justifies anything at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.open && self.until.is_none_or(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    proptest! {
        /// After a close at some time, no opening that is not later makes it open again, in whatever order they come.
        #[test]
        fn a_close_is_sticky(events in prop::collection::vec((any::<bool>(), 0i64..20), 1..20)) {
            let mut task = Task::mentioned(TaskRef::new("jira:OPS-1").unwrap(), at(0));
            let mut closed = None;
            for (open, seconds) in events {
                let before = task.clone();
                task = task.after(if open { TaskEvent::Opened } else { TaskEvent::Closed }, at(seconds));
                if !open {
                    closed = closed.max(Some(seconds));
                }
                prop_assert!(task.epoch >= before.epoch && task.at >= before.at);
                prop_assert!(task.epoch == before.epoch || (open && !before.open));
                if !open {
                    prop_assert!(!task.open);
                }
                if task.open && let Some(closed) = closed {
                    prop_assert!(task.at > at(closed), "opened again by something older");
                }
            }
        }
    }
}
