//! Runs commands, one after another, as many in one transaction as wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::catalogue::Catalogue;
use super::command::{Command, Failed, Reply, execute};
use super::refusal::{Kind, Refusal};
use super::store::{Head, Rows, Store, StoreError, Transaction};
use crate::domain::principal::Principal;
use crate::domain::time::Clock;

/// Most commands in one transaction.
const BATCH_MAX: usize = 128;

/// Most commands that wait; past it callers are told to come again.
const QUEUE_MAX: usize = 4_096;

/// How often what time ended is recorded, and how often a store that others write to is looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

struct Waiting {
    actor: Principal,
    command: Command,
    /// Whether what it would write is thrown away.
    trial: bool,
    reply: oneshot::Sender<Result<Reply, Refusal>>,
}

/// Where commands are given. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Engine {
    queue: mpsc::Sender<Waiting>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    head: watch::Receiver<Head>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("actor", &self.actor).finish_non_exhaustive()
    }
}

impl Engine {
    /// Begins to run commands on `store` until `stop`.
    ///
    /// # Errors
    /// What is wrong with the store, or with the documents in it.
    pub async fn start<S: Store>(
        store: Arc<S>,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
    ) -> Result<(Self, tokio::task::JoinHandle<()>), String> {
        let catalogue = read_catalogue(&*store).await?;
        let head = store.view().await.map_err(|e| e.to_string())?.head().await.map_err(|e| e.to_string())?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (told, catalogue) = watch::channel(Arc::new(catalogue));
        let (moved, head) = watch::channel(head);
        let runner = Runner { store, clock, catalogue: told, head: moved };
        let task = tokio::spawn(runner.run(waiting, stop));
        Ok((Self { queue, catalogue, head }, task))
    }

    /// Has a command run. It is durable when this returns.
    ///
    /// Dropping the future does not stop a command that waits already.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed, unless its kind is [`Kind::Unavailable`]: then it may have been.
    pub async fn run(&self, actor: Principal, command: Command) -> Result<Reply, Refusal> {
        self.queue(actor, command, false).await
    }

    /// What would come of a command. Nothing is changed.
    ///
    /// # Errors
    /// The [`Refusal`] that the command would meet.
    pub async fn try_out(&self, actor: Principal, command: Command) -> Result<Reply, Refusal> {
        self.queue(actor, command, true).await
    }

    async fn queue(&self, actor: Principal, command: Command, trial: bool) -> Result<Reply, Refusal> {
        let (reply, answer) = oneshot::channel();
        let stopped =
            || Refusal::new(Kind::Unavailable, "stopping", "this control plane is stopping: ask another, or again");
        self.queue.send(Waiting { actor, command, trial, reply }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The documents in force.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    /// How far the store is, and a sign whenever anything changes. A hint: what there is to know stands in the store.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }
}

async fn read_catalogue<S: Store>(store: &S) -> Result<Catalogue, String> {
    let mut view = store.view().await.map_err(|error| error.to_string())?;
    read_from(&mut view).await
}

async fn read_from<R: Rows>(rows: &mut R) -> Result<Catalogue, String> {
    let head = rows.head().await.map_err(|error| error.to_string())?;
    let documents = rows.documents().await.map_err(|error| error.to_string())?;
    Catalogue::read(&documents, head.generation).map_err(|errors| errors.join("\n"))
}

struct Runner<S> {
    store: Arc<S>,
    clock: Arc<dyn Clock>,
    catalogue: watch::Sender<Arc<Catalogue>>,
    head: watch::Sender<Head>,
}

impl<S: Store> Runner<S> {
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            batch.clear();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                taken = waiting.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
                _ = sweep.tick() => {
                    if let Ok(actor) = Principal::parse("urn:leasehold#time") {
                        let (reply, _) = oneshot::channel();
                        batch.push(Waiting { actor, command: Command::Sweep, trial: false, reply });
                    }
                }
            }
            self.run_batch(&mut batch).await;
        }
        waiting.close();
        batch.clear();
        // What was taken before the stop is done; nobody waits in vain.
        while let Ok(last) = waiting.try_recv() {
            batch.push(last);
        }
        if !batch.is_empty() {
            self.run_batch(&mut batch).await;
        }
    }

    async fn run_batch(&self, batch: &mut Vec<Waiting>) {
        let mut answers = Vec::with_capacity(batch.len());
        match self.try_batch(batch, &mut answers).await {
            Ok(()) => {
                for (waiting, answer) in batch.drain(..).zip(answers) {
                    let _ = waiting.reply.send(answer);
                }
            }
            Err(error) => {
                tracing::error!(%error, commands = batch.len(), "commands were not carried out");
                for waiting in batch.drain(..) {
                    let _ = waiting.reply.send(Err(Refusal::new(Kind::Unavailable, "store", &error)));
                }
            }
        }
    }

    async fn try_batch(&self, batch: &[Waiting], answers: &mut Vec<Result<Reply, Refusal>>) -> Result<(), StoreError> {
        let mut transaction = self.store.begin().await?;
        let mut wrote = false;
        // Told to others only once it is committed.
        let mut catalogue = Arc::clone(&self.catalogue.borrow());
        for waiting in batch {
            self.follow(&mut transaction, &mut catalogue).await?;
            let now = self.clock.now().wall;
            match execute(&mut transaction, &catalogue, &waiting.actor, &waiting.command, now).await {
                Ok((reply, _)) if waiting.trial => answers.push(Ok(reply)),
                Ok((reply, writes)) => {
                    wrote |= !writes.is_empty();
                    transaction.apply(writes).await?;
                    answers.push(Ok(reply));
                }
                Err(Failed::Refused(refusal)) => answers.push(Err(refusal)),
                Err(Failed::Store(error)) => return Err(error),
            }
        }
        self.follow(&mut transaction, &mut catalogue).await?;
        let head = transaction.head().await?;
        if wrote {
            transaction.commit().await?;
        }
        self.follow_committed(catalogue);
        self.head.send_if_modified(|known| {
            let moved = *known != head;
            *known = head;
            moved
        });
        Ok(())
    }

    /// Makes `catalogue` what this transaction sees; another replica, or the command before, may have changed it.
    async fn follow(
        &self,
        transaction: &mut S::Transaction<'_>,
        catalogue: &mut Arc<Catalogue>,
    ) -> Result<(), StoreError> {
        if transaction.head().await?.generation != catalogue.generation {
            *catalogue = Arc::new(read_from(transaction).await.map_err(StoreError)?);
        }
        Ok(())
    }

    fn follow_committed(&self, catalogue: Arc<Catalogue>) {
        self.catalogue.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(known, &catalogue);
            *known = catalogue;
            changed
        });
    }
}
