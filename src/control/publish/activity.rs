//! When grants were used last, and how often: what sidecars say of it, gathered and written now and then.
//!
//! A figure for people, and no decision: what waits to be written when the process dies is lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::control::engine::Engine;
use crate::control::store::StoreError;
use crate::control::store::sql::{Activity, SqlStore};
use crate::domain::id::GrantId;
use crate::domain::principal::Principal;
use crate::domain::time::{Clock, Timestamp};

/// How often it is written at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Most grants of which something waits to be written; what is said of more is lost.
const WAITING_MAX: usize = 65_536;

/// What sidecars said since it was written last, by grant and sidecar.
type Waiting = HashMap<(GrantId, Principal), Activity>;

/// Gathers what sidecars say.
#[derive(Debug)]
pub struct Usage {
    store: Arc<SqlStore>,
    engine: Engine,
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
}

impl Usage {
    /// Writes to this store.
    pub fn new(store: Arc<SqlStore>, engine: Engine, clock: Arc<dyn Clock>) -> Self {
        Self { store, engine, clock, waiting: Mutex::default() }
    }

    /// A sidecar says that a grant was used.
    pub(super) fn note(&self, sidecar: &Principal, grant: GrantId, last: Timestamp, calls: u64) {
        // A clock that is ahead makes nothing younger than it is.
        let last = last.min(self.clock.now().wall);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (grant, sidecar.clone());
        if waiting.len() >= WAITING_MAX && !waiting.contains_key(&key) {
            return;
        }
        waiting.entry(key).or_insert(Activity { last_used: last, calls: 0 }).add(last, calls);
    }

    /// Writes what is said, until `stop`, and then the rest.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(WRITE_EVERY) => {}
            }
            if let Err(error) = self.write().await {
                tracing::warn!(%error, "when grants were used last is not written");
            }
        }
    }

    async fn write(&self) -> Result<(), StoreError> {
        let said = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if said.is_empty() {
            return Ok(());
        }
        let ids: Vec<GrantId> = said.keys().map(|(grant, _)| grant.clone()).collect();
        let backends = self.store.backends_of(&ids).await?;
        let catalogue = self.engine.catalogue();
        let mut used: BTreeMap<GrantId, Activity> = BTreeMap::new();
        for ((grant, sidecar), activity) in said {
            // What a sidecar says of a backend that is not its own is not heard.
            if backends.get(&grant).is_some_and(|backend| catalogue.may_follow(&sidecar, backend)) {
                let known = used.entry(grant).or_insert(Activity { last_used: activity.last_used, calls: 0 });
                known.add(activity.last_used, activity.calls);
            }
        }
        self.store.used(used).await
    }
}
