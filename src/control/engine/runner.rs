//! One batch after another.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::metrics::Counted;
use super::{Known, Pace, Waiting, read_catalogue};
use crate::control::catalogue::Catalogue;
use crate::control::command::{Failed, Reply, execute};
use crate::control::refusal::{Kind, Refusal};
use crate::control::store::{Head, Rows, Store, StoreError, Transaction, Wanted};
use crate::domain::time::Clock;

/// For how long the store is asked what became of a commit that it did not confirm.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// How long to wait between two such questions.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Runner<S> {
    pub(super) store: Arc<S>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) pace: Pace,
    pub(super) known: Known,
    pub(super) counted: Counted,
}

/// What came of each command of a batch.
type Answers = Vec<Result<Reply, Refusal>>;

/// A batch that is ready to be committed.
struct Done {
    answers: Answers,
    catalogue: Arc<Catalogue>,
    head: Head,
    wrote: bool,
    /// Moved when it is committed.
    events: Vec<IntCounter>,
}

impl<S: Store> Runner<S> {
    pub(super) async fn run(self, waiting: mpsc::Receiver<Waiting>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = self.commands(waiting, &stop) => {}
            () = self.upkeep() => {}
        }
    }

    async fn commands(&self, mut waiting: mpsc::Receiver<Waiting>, stop: &CancellationToken) {
        let mut batch = Vec::with_capacity(self.pace.batch_max);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                taken = waiting.recv_many(&mut batch, self.pace.batch_max) => if taken == 0 { break },
            }
            if !self.run_batch(&mut batch).await {
                // Those who came meanwhile would each wait for the store as long as this batch did.
                while let Ok(next) = waiting.try_recv() {
                    let _ = next.reply.send(Err(unreachable("it did not answer")));
                }
            }
        }
        waiting.close();
        // What was taken before the stop is done; nobody waits in vain.
        while waiting.recv_many(&mut batch, self.pace.batch_max).await > 0 {
            self.run_batch(&mut batch).await;
        }
    }

    /// Whether the store could be reached.
    async fn run_batch(&self, batch: &mut Vec<Waiting>) -> bool {
        match self.try_batch(batch).await {
            Ok(answers) => answer(batch.drain(..), answers),
            Err(StoreError::Refused(_)) if batch.len() > 1 => {
                // One of them is guilty, and only that one is to fail.
                for one in batch.drain(..) {
                    match self.try_batch(std::slice::from_ref(&one)).await {
                        Ok(answers) => answer(std::iter::once(one), answers),
                        Err(error) => drop(one.reply.send(Err(refusal(&error)))),
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, commands = batch.len(), "commands were not carried out");
                for waiting in batch.drain(..) {
                    let _ = waiting.reply.send(Err(refusal(&error)));
                }
                return matches!(error, StoreError::Refused(_));
            }
        }
        true
    }

    /// Runs a batch as one transaction, and finds out what became of a commit that was not confirmed.
    async fn try_batch(&self, batch: &[Waiting]) -> Result<Answers, StoreError> {
        for _ in 0..2 {
            let began = Instant::now();
            let mut transaction = self.store.begin().await?;
            let done = self.execute(&mut transaction, batch).await?;
            match transaction.commit().await {
                Ok(()) => return Ok(self.told(done, began)),
                Err(StoreError::Unconfirmed(_)) if done.wrote => match self.settle(&done.head).await {
                    Some(true) => return Ok(self.told(done, began)),
                    Some(false) => {}
                    None => return Err(StoreError::Unconfirmed("and cannot be asked now".into())),
                },
                Err(StoreError::Unconfirmed(said)) => return Err(StoreError::Unreachable(said)),
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unreachable("it lost two commits in a row".into()))
    }

    async fn execute(&self, transaction: &mut S::Transaction<'_>, batch: &[Waiting]) -> Result<Done, StoreError> {
        let mut wanted = Wanted::default();
        batch.iter().for_each(|waiting| waiting.command.want(&waiting.actor, &mut wanted));
        transaction.prefetch(wanted).await?;
        let catalogue = self.known.catalogue();
        let mut done = Done { answers: Vec::new(), catalogue, head: Head::default(), wrote: false, events: Vec::new() };
        for waiting in batch {
            follow(transaction, &mut done.catalogue).await?;
            let now = self.clock.now().wall;
            match execute(transaction, &done.catalogue, &waiting.actor, &waiting.command, now).await {
                Ok((reply, _)) if waiting.trial => done.answers.push(Ok(reply)),
                Ok((reply, writes)) => {
                    done.wrote |= !writes.is_empty();
                    done.events.extend(self.counted.of(&writes));
                    transaction.apply(writes).await?;
                    done.answers.push(Ok(reply));
                }
                Err(Failed::Refused(refusal)) => done.answers.push(Err(refusal)),
                Err(Failed::Store(error)) => return Err(error),
            }
        }
        follow(transaction, &mut done.catalogue).await?;
        done.head = transaction.head().await?;
        Ok(done)
    }

    /// Tells of a batch that is committed.
    fn told(&self, done: Done, began: Instant) -> Answers {
        if done.wrote {
            self.counted.committed(done.answers.len(), &done.events, began.elapsed());
            self.store.stir();
        }
        self.known.tell(&done.catalogue, &done.head);
        done.answers
    }

    /// Whether a commit that would have led to `head` was done; nothing where the store cannot be asked in time.
    async fn settle(&self, head: &Head) -> Option<bool> {
        let until = Instant::now() + SETTLE_WITHIN;
        loop {
            if let Ok(done) = self.is_done(head).await {
                tracing::warn!(done, "the store did not confirm a commit; it was asked what became of it");
                return Some(done);
            }
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(SETTLE_EVERY).await;
        }
    }

    /// A transaction of ours that still runs somewhere holds the counter row: only who gets it knows for certain.
    async fn is_done(&self, head: &Head) -> Result<bool, StoreError> {
        let mut transaction = self.store.begin().await?;
        let entries = transaction.audit(head.sequence, 1).await?;
        transaction.commit().await?;
        Ok(entries.first().is_some_and(|entry| entry.sequence == head.sequence && entry.hash == head.audit_hash))
    }
}

/// Makes `catalogue` what this transaction sees; another replica, or the command before, may have changed it.
async fn follow<R: Rows>(rows: &mut R, catalogue: &mut Arc<Catalogue>) -> Result<(), StoreError> {
    if rows.head().await?.generation != catalogue.generation {
        *catalogue = Arc::new(read_catalogue(rows).await?);
    }
    Ok(())
}

fn answer(waiting: impl Iterator<Item = Waiting>, answers: Answers) {
    for (waiting, answer) in waiting.zip(answers) {
        let _ = waiting.reply.send(answer);
    }
}

fn unreachable(said: &str) -> Refusal {
    Refusal::new(Kind::Unavailable, "store", format_args!("the store cannot be reached: {said}; ask again"))
}

/// What the caller of a command is told. What the engine said of its tables is for the log.
fn refusal(error: &StoreError) -> Refusal {
    match error {
        StoreError::Unconfirmed(_) => Refusal::new(
            Kind::Unavailable,
            "unconfirmed",
            "the store did not confirm it: it may have been done; look, or ask again with the same Idempotency-Key",
        ),
        StoreError::Unreachable(_) => unreachable("nothing was changed"),
        StoreError::Refused(_) | StoreError::Newer { .. } => {
            Refusal::new(Kind::Unavailable, "store", "the store did not take it: nothing was changed; see the log")
        }
    }
}
