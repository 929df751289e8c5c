//! Grants from a feed: one snapshot, then every change after it, in the order of revisions.
//!
//! The view is proved current whenever the feed was asked and everything up to its answer is in force. A feed that does
//! not answer, or whose change cannot be applied, proves nothing: the view ages, and then everything is denied.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Bundle, Changed, GrantSource, Sink, Work};
use crate::domain::id::Revision;
use crate::domain::time::Clock;
use crate::domain::view::{Change, Snapshot};

/// What came after a revision.
#[derive(Debug)]
pub enum Changes {
    /// All changes up to the head, or the first of them; none where there are none.
    Next(Vec<(Revision, Change)>),
    /// They are kept no more: begin with a snapshot.
    Compacted,
}

/// Something that knows all grants and says what changes.
pub trait Feed: Send + Sync + 'static {
    /// All that is in force, at one moment.
    fn snapshot(&self) -> Work<'_, Result<Snapshot, String>>;
    /// What calls are judged by besides, as of `revision` or later.
    fn bundles(&self, revision: Revision) -> Work<'_, Result<Vec<Bundle>, String>>;
    /// What changed after that revision.
    fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>>;
    /// Returns when something may have changed since it was last asked, and at once if that is not known.
    fn moved(&mut self) -> Work<'_, ()>;
}

/// How often a quiet feed is asked, so that the view stays proved; a fraction of any sensible limit of staleness.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Most changes that are put in force at once.
const BATCH_MAX: usize = 256;

/// A source that follows a feed.
pub struct FeedSource<F> {
    feed: F,
    sink: Arc<dyn Sink>,
    clock: Arc<dyn Clock>,
    revision: Revision,
}

impl<F: Feed> FeedSource<F> {
    /// A source that has not been asked.
    pub fn new(feed: F, sink: Arc<dyn Sink>, clock: Arc<dyn Clock>) -> Self {
        Self { feed, sink, clock, revision: Revision(0) }
    }

    async fn begin(&mut self) -> Result<(), String> {
        let before = self.clock.now().uptime;
        let snapshot = self.feed.snapshot().await?;
        let revision = snapshot.revision;
        // First what forbids, then what permits; asked for later, it is no older.
        self.guard(revision).await?;
        // Very many grants take a while, and this thread has calls to serve.
        tokio::task::block_in_place(|| self.sink.replace(snapshot))?;
        self.revision = revision;
        self.sink.prove(before);
        Ok(())
    }

    /// Hands over what calls are judged by. What cannot be used is not an error of the view.
    async fn guard(&self, revision: Revision) -> Result<(), String> {
        for bundle in self.feed.bundles(revision).await? {
            let (name, digest) = (Arc::clone(&bundle.name), Arc::clone(&bundle.digest));
            if let Err(error) = tokio::task::block_in_place(|| self.sink.bundle(bundle)) {
                tracing::error!(%name, %digest, %error, "not in force");
            }
        }
        Ok(())
    }

    /// Takes in what changed; returns whether anything did.
    async fn catch_up(&mut self) -> Result<bool, String> {
        let mut changed = false;
        loop {
            let before = self.clock.now().uptime;
            match self.feed.changes(self.revision).await? {
                Changes::Compacted => {
                    self.begin().await?;
                    return Ok(true);
                }
                Changes::Next(changes) if changes.is_empty() => {
                    self.sink.prove(before);
                    return Ok(changed);
                }
                Changes::Next(mut changes) => {
                    // Before what comes after it: a later grant may rest on a guardrail that is new.
                    let declared = changes.iter().rev().find(|(_, change)| *change == Change::Declared);
                    if let Some((revision, _)) = declared {
                        self.guard(*revision).await?;
                    }
                    while !changes.is_empty() {
                        let rest = changes.split_off(changes.len().min(BATCH_MAX));
                        self.take(std::mem::replace(&mut changes, rest))?;
                    }
                    changed = true;
                }
            }
        }
    }

    fn take(&mut self, changes: Vec<(Revision, Change)>) -> Result<(), String> {
        let mut to = self.revision;
        for (revision, _) in &changes {
            if revision.0 != to.0 + 1 {
                // Dense by promise: what is missing could be an end.
                return Err(format!("revision {revision} came after {to}"));
            }
            to = *revision;
        }
        self.sink.advance(to, changes.into_iter().map(|(_, change)| change).collect())?;
        self.revision = to;
        Ok(())
    }

    async fn run(mut self, stop: CancellationToken, changed: Changed) {
        let mut said = String::new();
        let mut lost = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.feed.moved() => {}
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            let outcome = if lost { self.begin().await.map(|()| true) } else { self.catch_up().await };
            match outcome {
                Ok(moved) => {
                    (lost, said) = (false, String::new());
                    if moved {
                        changed();
                    }
                }
                Err(error) => {
                    // A change that could not be applied leaves a hole, which only a snapshot closes.
                    lost = true;
                    if error != said {
                        tracing::error!(%error, "the grants are not current; they hold until the view is stale");
                        said = error;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl<F: Feed> GrantSource for FeedSource<F> {
    fn first(&mut self) -> Work<'_, Result<(), String>> {
        Box::pin(self.begin())
    }

    fn follow(self: Box<Self>, stop: CancellationToken, changed: Changed) -> Work<'static, ()> {
        Box::pin(self.run(stop, changed))
    }
}
