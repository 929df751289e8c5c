//! When grants were used last, and how often: what sidecars say of it, gathered and written now and then.
//!
//! What waits to be written when the process dies is lost; what waits while the store is away is not.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::control::engine::Engine;
use crate::control::store::sql::SqlStore;
use crate::control::store::{Activity, Store, StoreError};
use crate::domain::id::GrantId;
use crate::domain::principal::Principal;
use crate::domain::time::{Clock, Timestamp};
use crate::sync::client::Uses;

/// How often it is written at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Most grants of which something waits to be written; what is said of more is lost.
const WAITING_MAX: usize = 65_536;

/// What was said since it was written last, by grant and sidecar; the one in this process has no name.
type Waiting = HashMap<(GrantId, Option<Principal>), Activity>;

/// Gathers what sidecars say.
#[derive(Debug)]
pub struct Usage {
    store: Arc<SqlStore>,
    engine: Engine,
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
    own: OnceLock<Own>,
}

/// The uses that the sidecar in this process counts.
struct Own(Uses);

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Own")
    }
}

impl Usage {
    /// Writes to this store.
    pub fn new(store: Arc<SqlStore>, engine: Engine, clock: Arc<dyn Clock>) -> Self {
        Self { store, engine, clock, waiting: Mutex::default(), own: OnceLock::new() }
    }

    /// A sidecar says that a grant was used.
    pub(super) fn note(&self, sidecar: &Principal, grant: GrantId, last: Timestamp, calls: u64) {
        self.keep((grant, Some(sidecar.clone())), last, calls);
    }

    /// Asks the sidecar in this process too, which counts its uses here.
    pub fn beside(&self, uses: Uses) {
        // There is one.
        let _ = self.own.set(Own(uses));
    }

    fn keep(&self, key: (GrantId, Option<Principal>), last: Timestamp, calls: u64) {
        // A clock that is ahead makes nothing younger than it is.
        let last = last.min(self.clock.now().wall);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
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
        for used in self.own.get().map(|own| (own.0)()).unwrap_or_default() {
            self.keep((used.grant, None), used.last, used.calls);
        }
        let said = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if said.is_empty() {
            return Ok(());
        }
        let used = match self.credible(&said).await {
            Ok(used) => used,
            Err(error) => {
                said.into_iter().for_each(|(key, activity)| self.keep(key, activity.last_used, activity.calls));
                return Err(error);
            }
        };
        let written = self.store.used(used).await;
        if written.is_err() {
            // Some of it may be counted: said again it would be counted twice. When it was is the same said twice.
            said.into_iter().for_each(|(key, activity)| self.keep(key, activity.last_used, 0));
        }
        written
    }

    /// What is said by whom it is believed from, by grant.
    async fn credible(&self, said: &Waiting) -> Result<BTreeMap<GrantId, Activity>, StoreError> {
        let ids: Vec<GrantId> = said.keys().map(|(grant, _)| grant.clone()).collect();
        let backends = self.store.backends_of(&ids).await?;
        let catalogue = self.engine.catalogue();
        let mut used: BTreeMap<GrantId, Activity> = BTreeMap::new();
        for ((grant, sidecar), activity) in said {
            // What a sidecar says of a backend that is not its own is not heard.
            let is_heard = |backend| sidecar.as_ref().is_none_or(|sidecar| catalogue.may_follow(sidecar, backend));
            if backends.get(grant).is_some_and(is_heard) {
                let known = used.entry(grant.clone()).or_insert(Activity { last_used: activity.last_used, calls: 0 });
                known.add(activity.last_used, activity.calls);
            }
        }
        Ok(used)
    }
}
