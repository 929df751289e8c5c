//! A relay: follows its own source into a hub that others follow, and passes on what only the origin can do.
//!
//! Whoever follows asks the relay for evidence; it asks its source then, so that the age of what they hold is measured
//! from when *they* asked, through however many relays. What a relay says of itself is enforced is what all behind it say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::client::{Activity, ControlSource, Upstreams, Use, Uses};
use super::follower::About;
use super::hub::Hub;
use super::renewal::SignedRenewal;
use crate::domain::id::GrantId;
use crate::domain::time::Timestamp;
use crate::wire::v1;

/// Grants whose uses wait to be passed on; the uses of more are not.
const USED_MAX: usize = 65_536;

type Used = HashMap<GrantId, (u64, Timestamp)>;

/// What a relay's server asks for what it does not know.
pub struct Relay {
    upstreams: Arc<Upstreams>,
    used: Arc<Mutex<Used>>,
}

impl Relay {
    /// A relay of these servers.
    pub fn new(upstreams: Arc<Upstreams>) -> Self {
        Self { upstreams, used: Arc::default() }
    }

    /// The source that keeps `hub` current. `staleness_max` is how long it goes on with a server that answers nothing, and
    /// `first` how long a first view is waited for.
    pub fn source(&self, hub: &Arc<Hub>, about: About, patience: (Duration, Duration)) -> ControlSource {
        let (sink, clock) = (Arc::clone(hub), Arc::clone(hub.clock()));
        let source = ControlSource::new(Arc::clone(&self.upstreams), about, sink, clock, patience);
        source.relaying(Arc::clone(hub)).telling(self.uses())
    }

    /// Takes a use of a counted grant for somebody who follows.
    ///
    /// # Errors
    /// Why nobody said whether it is taken; it may be.
    pub async fn consume(&self, grant: &GrantId, use_id: &str) -> Result<Use, String> {
        self.upstreams.consume(grant, use_id).await
    }

    /// Has a certificate signed for whom a join token was made.
    ///
    /// # Errors
    /// What the origin says.
    pub async fn enroll(&self, csr: Bytes, join_token: String) -> Result<v1::EnrollReply, tonic::Status> {
        self.upstreams.enroll(v1::EnrollRequest { csr, join_token, renewal: None }).await
    }

    /// Has the certificate renewed that a sidecar's signature is by.
    ///
    /// # Errors
    /// What the origin says.
    pub async fn renew(&self, signed: SignedRenewal) -> Result<v1::EnrollReply, tonic::Status> {
        // Without a request of our own: an origin that does not read the rest would sign it for us.
        let (csr, join_token) = (Bytes::new(), String::new());
        self.upstreams.enroll(v1::EnrollRequest { csr, join_token, renewal: Some(signed.into()) }).await
    }

    /// Somebody who follows used a grant.
    pub fn used(&self, grant: &GrantId, last: Timestamp, calls: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, known_last)) = used.get_mut(grant) {
            *known += calls;
            *known_last = last.max(*known_last);
        } else if used.len() < USED_MAX {
            used.insert(grant.clone(), (calls, last));
        }
    }

    fn uses(&self) -> Uses {
        let used = Arc::clone(&self.used);
        Arc::new(move || {
            let used = std::mem::take(&mut *used.lock().unwrap_or_else(PoisonError::into_inner));
            used.into_iter().map(|(grant, (calls, last))| Activity { grant, last, calls }).collect()
        })
    }
}
