//! What happens without anybody asking: time ends things, old rows go, and other control planes are heard of.
//!
//! Nothing depends on it. A deadline is compared wherever it is read; here it is only recorded.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::read_catalogue;
use super::runner::Runner;
use crate::control::command::{Command, Reply, execute};
use crate::control::store::{Rows, Store, StoreError, Transaction};
use crate::domain::principal::Principal;

/// The lease of whoever sweeps.
const SWEEPER: &str = "sweeper";

/// How long a sweeper that says nothing keeps it.
const SWEEPER_TTL: Duration = Duration::from_secs(5);

/// Most rounds of one sweep, so that others get their turn.
const ROUNDS_MAX: usize = 20;

/// A name for this engine that no other has.
fn name() -> String {
    let mut bytes = [0u8; 8];
    // Two engines of one name would both sweep, which is harmless.
    let _ = rand::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<S: Store> Runner<S> {
    /// Never ends.
    pub(super) async fn upkeep(&self) {
        tokio::join!(self.sweep_regularly(), self.follow_others());
    }

    async fn sweep_regularly(&self) {
        let us = name();
        let every = |pause: Duration| {
            let mut ticks = interval_at(Instant::now() + pause, pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut sweep, mut compact) = (every(self.pace.sweep_every), every(self.pace.compact_every));
        let listened_from = || self.clock.now().uptime.plus(self.pace.listen_first);
        let mut listened = listened_from();
        loop {
            let compacts = tokio::select! {
                _ = sweep.tick() => false,
                _ = compact.tick() => true,
            };
            let done = match self.is_sweeper(&us).await {
                Ok(false) => Ok(()),
                Ok(true) if compacts => self.compact().await,
                Ok(true) => self.sweep(self.clock.now().uptime >= listened).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                listened = listened_from();
                tracing::warn!(%error, "what time has ended is not recorded yet");
            }
        }
    }

    /// Of several control planes one sweeps.
    async fn is_sweeper(&self, us: &str) -> Result<bool, StoreError> {
        if !self.store.is_shared() {
            return Ok(true);
        }
        self.store.lease(SWEEPER, us, self.clock.now().wall, SWEEPER_TTL.max(self.pace.sweep_every * 3)).await
    }

    async fn sweep(&self, idle: bool) -> Result<(), StoreError> {
        let now = self.clock.now().wall;
        for _ in 0..ROUNDS_MAX {
            {
                // Most of the time there is nothing, and nobody is to wait for that.
                let mut view = self.store.view().await?;
                let is_used = !idle || view.grants_idle(now, 1).await?.is_empty();
                if is_used && view.grants_due(now, 1).await?.is_empty() && view.requests_due(now, 1).await?.is_empty() {
                    return Ok(());
                }
            }
            let Ok(actor) = Principal::parse("urn:leasehold#time") else { return Ok(()) };
            let began = Instant::now();
            let mut transaction = self.store.begin().await?;
            let catalogue = self.known.catalogue();
            let swept = execute(&mut transaction, &catalogue, &actor, &Command::Sweep { idle }, now).await;
            let Ok((Reply::Swept(_), writes)) = swept else { return Ok(()) };
            let events: Vec<_> = self.counted.of(&writes).collect();
            transaction.apply(writes).await?;
            let head = transaction.head().await?;
            transaction.commit().await?;
            self.counted.committed(1, &events, began.elapsed());
            self.store.stir();
            self.known.tell(&catalogue, &head);
        }
        Ok(())
    }

    async fn compact(&self) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            if !self.store.compact(self.clock.now().wall, self.pace.keep).await? {
                break;
            }
        }
        Ok(())
    }

    /// Looks whenever another control plane may have written.
    async fn follow_others(&self) {
        loop {
            self.store.stirred().await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "what other control planes wrote is not known");
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let mut view = self.store.view().await?;
        let head = view.head().await?;
        if head.sequence <= self.known.head.borrow().sequence {
            return Ok(());
        }
        let mut catalogue = self.known.catalogue();
        if head.generation > catalogue.generation {
            catalogue = Arc::new(read_catalogue(&mut view).await?);
        }
        self.known.tell(&catalogue, &head);
        Ok(())
    }
}
