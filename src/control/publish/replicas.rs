//! Control planes on one store tell each other of their sidecars, so that any of them can say where an end is enforced.
//!
//! No clock of another machine is compared with ours. Every second each says of its sidecars how long they may still
//! serve; whoever reads it counts from when it was read, which is later. A control plane that could not say it for a while
//! gives its sidecars no evidence ([`Hub::told`]), and a sidecar gets none before the others could have heard of it. So
//! what is not heard of does not serve, and who says nothing any more is waited for and not forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::control::store::StoreError;
use crate::control::store::sql::{ReplicaRow, SqlStore};
use crate::domain::id::{BackendName, Revision};
use crate::domain::principal::Principal;
use crate::domain::time::Uptime;
use crate::sync::hub::Hub;
use crate::sync::session::{Heard, Session};

/// How often it is said and heard.
const EVERY: Duration = Duration::from_secs(1);

/// The same while an end is not enforced by everybody.
const EVERY_WHILE_PENDING: Duration = Duration::from_millis(50);

/// How long evidence may be asked for after it was said.
const LASTS: Duration = Duration::from_secs(5);

/// How long what was said last is kept after it means nothing any more.
const KEEP: Duration = Duration::from_secs(3_600);

/// The same where a sidecar serves some backend until its grants end, which is no longer than a day.
const KEEP_UNBOUNDED: Duration = Duration::from_secs(2 * 86_400);

/// What is said of one sidecar.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    sidecar: Principal,
    boot_id: String,
    version: String,
    backends: BTreeSet<BackendName>,
    connected: bool,
    acked: Option<u64>,
    /// How long it serves without evidence; none where that has no limit.
    max_ms: Option<u64>,
    /// How long it may serve after this was said, unless it gets evidence.
    left_ms: u64,
}

fn millis(duration: Duration) -> u64 {
    // Rounded up: never less than is true.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

impl Said {
    fn of(session: &Session, now: Uptime) -> Self {
        let left = session.fresh_until().since(now);
        Self {
            sidecar: session.sidecar.clone(),
            boot_id: session.boot_id.clone(),
            version: session.version.clone(),
            backends: session.backends.clone(),
            connected: session.is_connected(),
            acked: session.acked().map(|revision| revision.0),
            max_ms: session.staleness_max.map(millis),
            left_ms: millis(left),
        }
    }

    /// As it is true of everything that was said later too, until that is heard.
    fn heard(self, at: Uptime) -> Heard {
        let max = self.max_ms.map(Duration::from_millis);
        let left = Duration::from_millis(self.left_ms);
        // While its stream is open it may have got evidence of which nobody has heard yet.
        let left = if self.connected { LASTS + max.unwrap_or_default() } else { left };
        Heard {
            sidecar: self.sidecar,
            boot_id: self.boot_id,
            version: self.version,
            backends: self.backends,
            staleness_max: max,
            connected: self.connected,
            acked: self.acked.map(Revision),
            fresh_until: at.plus(left),
        }
    }
}

/// What was read of another control plane, and when for the first time.
#[derive(Debug)]
struct Read {
    beat: u64,
    at: Uptime,
}

/// This control plane among those that share its store.
#[derive(Debug)]
pub struct Replicas {
    id: String,
    hub: Arc<Hub>,
    store: Arc<SqlStore>,
    beat: Mutex<u64>,
    read: Mutex<BTreeMap<String, Read>>,
}

impl Replicas {
    /// One more of them. Nobody who follows the hub gets evidence before this runs.
    pub fn new(id: String, hub: Arc<Hub>, store: Arc<SqlStore>) -> Self {
        hub.share();
        Self { id, hub, store, beat: Mutex::default(), read: Mutex::default() }
    }

    /// Says and hears, until `stop`; then says that its sidecars are gone.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut said = String::new();
        while !stop.is_cancelled() {
            match self.exchange().await {
                Ok(()) => said.clear(),
                Err(error) if error.to_string() != said => {
                    said = error.to_string();
                    tracing::error!(%error, "other control planes do not hear of our sidecars, who get no evidence");
                }
                Err(_) => {}
            }
            let pause = if self.hub.is_settling() { EVERY_WHILE_PENDING } else { EVERY };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.hub.joined() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let _ = self.tell().await;
    }

    /// Says and hears once.
    ///
    /// # Errors
    /// [`StoreError`]: others may not have heard it.
    pub async fn exchange(&self) -> Result<(), StoreError> {
        self.tell().await?;
        self.listen().await
    }

    /// Says how it stands with our sidecars.
    async fn tell(&self) -> Result<(), StoreError> {
        let mut beat = self.beat.lock().await;
        let clock = self.hub.clock();
        let (sessions, now) = (self.hub.sessions(), clock.now());
        let gone = |session: &Arc<Session>| !session.is_connected() && session.fresh_until() < now.uptime;
        let said: Vec<Said> =
            sessions.iter().filter(|session| !gone(session)).map(|session| Said::of(session, now.uptime)).collect();
        let keep = said.iter().map(|said| said.max_ms.map_or(KEEP_UNBOUNDED, Duration::from_millis)).max();
        let body = serde_json::to_string(&said).map_err(|error| StoreError::Refused(error.to_string()))?;
        *beat += 1;
        let row = ReplicaRow { id: self.id.clone(), beat: *beat, body };
        self.store.tell(row, now.wall.plus(keep.unwrap_or_default() + LASTS + KEEP)).await?;
        self.hub.told(&sessions, now.uptime, LASTS);
        Ok(())
    }

    /// Hears how it stands with those of the others. What is said of an end after this is true of all.
    ///
    /// # Errors
    /// [`StoreError`]; what was heard last still counts.
    pub async fn listen(&self) -> Result<(), StoreError> {
        let mut known = self.read.lock().await;
        let rows = self.store.told().await?;
        let now = self.hub.clock().now().uptime;
        let mut heard = Vec::new();
        for row in rows.into_iter().filter(|row| row.id != self.id) {
            let said: Vec<Said> = serde_json::from_str(&row.body)
                .map_err(|error| StoreError::Refused(format!("what `{}` says cannot be read: {error}", row.id)))?;
            let read = known.entry(row.id).or_insert(Read { beat: row.beat, at: now });
            if read.beat != row.beat {
                *read = Read { beat: row.beat, at: now };
            }
            heard.extend(said.into_iter().map(|said| said.heard(read.at)));
        }
        drop(known);
        self.hub.hear(heard);
        Ok(())
    }
}
