//! A sidecar in the process of its server: it follows the source itself, and counts in what is said of all sidecars.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::hub::Hub;
use super::session::Session;
use crate::domain::id::{BackendName, Revision};
use crate::domain::principal::Principal;
use crate::domain::time::Uptime;

/// The session of a sidecar in this process; over when it is dropped.
#[derive(Debug)]
pub struct Local {
    hub: Arc<Hub>,
    session: Arc<Session>,
}

impl Local {
    /// Joins the hub.
    pub fn join(hub: Arc<Hub>, sidecar: Principal, backends: BTreeSet<BackendName>, staleness_max: Duration) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (boot_id, now) = ("local".to_owned(), hub.clock().now().uptime);
        let session = Arc::new(Session::new(sidecar, boot_id, version, backends, Some(staleness_max), now));
        hub.join(Arc::clone(&session));
        Self { hub, session }
    }

    /// Now, by the clock that sessions are measured by.
    pub fn now(&self) -> Uptime {
        self.hub.clock().now().uptime
    }

    /// Whether evidence that is asked for now counts; other servers may have to hear of this one first.
    pub fn may_prove(&self) -> bool {
        self.hub.may_prove(self.now())
    }

    /// Everything up to `revision` is enforced.
    pub fn enforces(&self, revision: Revision) {
        if !self.session.enforces(revision) {
            self.session.acknowledge(revision);
            self.hub.note_ack();
        }
    }

    /// What is enforced is what the source held when it was asked at `asked`, or later.
    pub fn proves(&self, asked: Uptime) {
        self.session.prove(asked);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.hub.leave(&self.session, self.now());
    }
}
