//! Runs commands, one after another, as many in one transaction as wait.
//!
//! A batch is one transaction: all of it is durable, or none. Where one of its commands cannot be written, each is run
//! alone, so that only that one fails; where the store cannot be reached, everybody who waits is told at once; and
//! where a commit was not confirmed, the store is asked what became of it before anybody is told.

mod metrics;
mod runner;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::catalogue::Catalogue;
use super::command::{Command, Reply};
use super::refusal::{Kind, Refusal};
use super::store::{Head, Keep, Rows, Store, StoreError};
use crate::domain::principal::Principal;
use crate::domain::time::Clock;
use metrics::Counted;
use runner::Runner;

/// How an engine goes about its work.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Most commands in one transaction.
    pub batch_max: usize,
    /// Most commands that wait; past it callers are told to come again.
    pub queue_max: usize,
    /// How often what time ended is recorded.
    pub sweep_every: Duration,
    /// How long sidecars have to say what they used, after the start and whenever the store was away, before anything
    /// counts as unused.
    pub listen_first: Duration,
    /// How often what nobody needs any more is removed.
    pub compact_every: Duration,
    /// What is kept of the changes.
    pub keep: Keep,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            batch_max: 128,
            queue_max: 4_096,
            sweep_every: Duration::from_secs(1),
            // They connect again after 10 s at most, and say it every 5 s, and so does a relay.
            listen_first: Duration::from_secs(30),
            compact_every: Duration::from_secs(60),
            keep: Keep::default(),
        }
    }
}

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
    /// Begins to run commands on `store` until `stop`; what is counted of them is in `registry`.
    ///
    /// # Errors
    /// What is wrong with the store, or with the documents in it; or another engine counts in that registry.
    pub async fn start<S: Store>(
        store: Arc<S>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
        stop: CancellationToken,
    ) -> Result<(Self, tokio::task::JoinHandle<()>), String> {
        Self::start_at(store, clock, Pace::default(), registry, stop).await
    }

    /// As [`Engine::start`], at another pace.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn start_at<S: Store>(
        store: Arc<S>,
        clock: Arc<dyn Clock>,
        pace: Pace,
        registry: &Registry,
        stop: CancellationToken,
    ) -> Result<(Self, tokio::task::JoinHandle<()>), String> {
        let (catalogue, head) = {
            let mut view = store.view().await.map_err(|error| error.to_string())?;
            let head = view.head().await.map_err(|error| error.to_string())?;
            (read_catalogue(&mut view).await.map_err(|error| error.to_string())?, head)
        };
        let counted = Counted::new(registry).map_err(|error| error.to_string())?;
        let (queue, waiting) = mpsc::channel(pace.queue_max.max(1));
        let known = Known { catalogue: watch::Sender::new(Arc::new(catalogue)), head: watch::Sender::new(head) };
        let engine = Self { queue, catalogue: known.catalogue.subscribe(), head: known.head.subscribe() };
        let runner = Runner { store, clock, pace, known, counted };
        let task = tokio::spawn(runner.run(waiting, stop));
        Ok((engine, task))
    }

    /// Has a command run. It is durable when this returns.
    ///
    /// Dropping the future does not stop a command that waits already.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed, unless its code is `unconfirmed`: then it may have been.
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
        self.queue.try_send(Waiting { actor, command, trial, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Kind::Unavailable, "busy", "too much waits here already: ask again in a moment")
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The documents in force.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    /// A sign whenever the documents in force change from now on.
    pub fn declared(&self) -> watch::Receiver<Arc<Catalogue>> {
        let mut catalogue = self.catalogue.clone();
        catalogue.mark_unchanged();
        catalogue
    }

    /// The documents in force that the store has now: what is committed counts, whether or not it was told here yet.
    ///
    /// # Errors
    /// What is wrong with the store, or with the documents in it.
    pub async fn committed<S: Store>(&self, store: &S) -> Result<Arc<Catalogue>, StoreError> {
        let mut view = store.view().await?;
        let (told, head) = (self.catalogue(), view.head().await?);
        if told.generation >= head.generation { Ok(told) } else { read_catalogue(&mut view).await.map(Arc::new) }
    }

    /// How far the store is, and a sign whenever anything changes. A hint: what there is to know stands in the store.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }
}

/// What is known of the store, and told to whoever asks. It only moves forward.
#[derive(Debug)]
struct Known {
    catalogue: watch::Sender<Arc<Catalogue>>,
    head: watch::Sender<Head>,
}

impl Known {
    fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    /// Tells what is committed. The documents first: whoever hears of the head finds them.
    fn tell(&self, catalogue: &Arc<Catalogue>, head: &Head) {
        self.catalogue.send_if_modified(|known| {
            let newer = catalogue.generation > known.generation;
            if newer {
                known.clone_from(catalogue);
            }
            newer
        });
        self.head.send_if_modified(|known| {
            // Every write has its audit entry.
            let newer = head.sequence > known.sequence;
            if newer {
                known.clone_from(head);
            }
            newer
        });
    }
}

async fn read_catalogue<R: Rows>(rows: &mut R) -> Result<Catalogue, StoreError> {
    let head = rows.head().await?;
    let documents = rows.documents().await?;
    Catalogue::read(&documents, head.generation).map_err(|errors| StoreError::Refused(errors.join("\n")))
}
