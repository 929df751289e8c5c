//! Where an end is enforced: what every control plane knows of its sidecars, put together.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, Registry};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::replicas::Replicas;
use crate::control::store::StoreError;
use crate::domain::id::Revision;
use crate::sync::enforce::{Enforcement, Of, enforcement};
use crate::sync::hub::Hub;
use crate::sync::session::Session;

/// How often evidence that ran out is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long what sidecars say is gathered before it is looked at together.
const GATHER: Duration = Duration::from_millis(1);

/// How often a wait looks, whatever is heard.
const WAIT_EVERY: Duration = Duration::from_millis(50);

/// How long ends take until they are enforced, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0];

/// How far a revision is enforced.
#[derive(Debug)]
pub struct Report {
    /// By whom, and by whom not.
    pub found: Enforcement,
    /// Whether this control plane itself has heard of the revision.
    pub is_heard: bool,
    /// How long it took; none where it is not enforced, or was too long ago.
    pub took: Option<Duration>,
}

impl Report {
    /// Whether everybody enforces it.
    pub fn is_enforced(&self) -> bool {
        self.is_heard && self.found.pending.is_empty()
    }

    /// Whether some sidecar serves on without evidence, so that nobody can say when it enforces it.
    pub fn is_unbounded(&self) -> bool {
        self.found.pending.iter().any(|unsure| unsure.denies_within.is_none())
    }
}

/// Says where ends are enforced.
#[derive(Debug)]
pub struct Reports {
    hub: Arc<Hub>,
    replicas: Option<Arc<Replicas>>,
    moved: watch::Sender<()>,
    took: Option<Histogram>,
}

impl Reports {
    /// Of those who follow this hub, and those who follow the other control planes.
    pub fn new(hub: Arc<Hub>, replicas: Option<Arc<Replicas>>) -> Self {
        let help = "Seconds from when a control plane knew of an end until every sidecar enforced it.";
        let options = HistogramOpts::new("leasehold_revocation_enforced_seconds", help).buckets(BUCKETS.to_vec());
        Self { hub, replicas, moved: watch::Sender::new(()), took: Histogram::with_opts(options).ok() }
    }

    /// Shows how long ends take.
    ///
    /// # Errors
    /// When something of the name is there already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        match &self.took {
            Some(took) => registry.register(Box::new(took.clone())),
            None => Ok(()),
        }
    }

    /// The hub it is about.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Notices what is enforced, until `stop`.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.hub.acknowledged() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.settle();
            self.moved.send_replace(());
        }
    }

    fn settle(&self) {
        for (revision, took) in self.hub.settle() {
            tracing::debug!(%revision, ?took, "an end is enforced by everybody");
            if let Some(histogram) = &self.took {
                histogram.observe(took.as_secs_f64());
            }
        }
    }

    /// Says that somebody follows whom the others must know of before it serves.
    ///
    /// # Errors
    /// [`StoreError`]: they do not know it.
    pub async fn announce(&self) -> Result<(), StoreError> {
        match &self.replicas {
            Some(replicas) => replicas.exchange().await,
            None => Ok(()),
        }
    }

    /// Everybody who follows any of the control planes.
    ///
    /// # Errors
    /// [`StoreError`]: what the others say is not known.
    pub async fn everybody(&self) -> Result<Vec<Arc<Session>>, StoreError> {
        if let Some(replicas) = &self.replicas {
            replicas.listen().await?;
        }
        Ok(self.hub.everybody())
    }

    /// How far a revision is enforced by those who serve one of the backends; waits until it is, and not past `until`.
    ///
    /// # Errors
    /// [`StoreError`]: what the others say is not known.
    pub async fn enforcement(&self, of: &Of, revision: Revision, until: Instant) -> Result<Report, StoreError> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            let sure = self.look(of, revision);
            // Only who asks the others after the end was committed knows of everybody.
            let report = match (&self.replicas, sure.is_enforced() || Instant::now() >= until) {
                (Some(replicas), true) => {
                    replicas.listen().await?;
                    self.look(of, revision)
                }
                _ => sure,
            };
            if report.is_enforced() || Instant::now() >= until {
                return Ok(report);
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = tokio::time::sleep_until((Instant::now() + WAIT_EVERY).min(until)) => {}
            }
        }
    }

    fn look(&self, of: &Of, revision: Revision) -> Report {
        // The head first: who joins after that begins with what is known there.
        let is_heard = self.hub.head() >= Some(revision);
        let found = enforcement(&self.hub.everybody(), of, revision, self.hub.clock().now().uptime);
        let mut report = Report { found, is_heard, took: None };
        if report.is_enforced() {
            self.settle();
            report.took = self.hub.enforced_within(revision);
        }
        report
    }
}
