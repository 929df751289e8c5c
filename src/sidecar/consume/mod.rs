//! Step `consume`: a use of a counted grant is taken where it is counted, before anything is sent.
//!
//! With a grants file the use was taken with the decision. With a control plane only it can count, because other sidecars
//! take uses too: it is asked once for each call, under one name, so that an answer that got lost can be asked for again
//! without taking a second use. What is not confirmed is not sent; a use whose answer never came stays lost.

pub mod remote;

use std::fmt;
use std::sync::Arc;

use crate::domain::grant::GrantState;
use crate::domain::id::GrantId;
use crate::sidecar::decide::live::Watcher;
use crate::sidecar::decide::{Decider, Permit};
use crate::sidecar::reason::Reason;
use crate::sync::Work;
use crate::sync::client::Use;

/// Whoever counts the uses of grants.
pub trait Counter: Send + Sync + fmt::Debug {
    /// Takes a use of a grant, at most once for each `use_id`; an error says that nobody knows whether it is taken.
    /// Dropping the future may lose the use.
    fn take<'a>(&'a self, grant: &'a GrantId, use_id: &'a str) -> Work<'a, Result<Use, String>>;
}

/// Where uses are counted.
#[derive(Debug, Clone)]
pub enum Counting {
    /// In the table, with the decision.
    Local,
    /// By whoever decides grants.
    Remote(Arc<dyn Counter>),
}

impl Counting {
    /// Whether the permit is good as it is: its grant is not counted, or its use was taken with the decision.
    pub fn is_done(&self, permit: &Permit) -> bool {
        matches!(self, Self::Local) || permit.grant().is_none_or(|entry| !entry.is_counted())
    }

    /// Takes the use that the permit needs. Where there is none, the grant is over here too, and the next decision says
    /// what that means for the call.
    ///
    /// # Errors
    /// The reason for which this permit must not be used.
    pub async fn take(&self, decider: &Decider, permit: &Permit, use_id: &str) -> Result<(), Reason> {
        let (Self::Remote(counter), Some(entry)) = (self, permit.grant()) else { return Ok(()) };
        let grant = entry.id().to_owned();
        let taken = tokio::select! {
            biased;
            reason = permit.ended(Watcher::Head) => return Err(reason),
            taken = counter.take(&grant, use_id) => taken,
        };
        match taken {
            Ok(Use::Taken) => Ok(()),
            Ok(Use::Exhausted) => {
                decider.end(&grant, GrantState::Exhausted);
                Err(Reason::Exhausted)
            }
            Ok(Use::Ended) => {
                decider.end(&grant, GrantState::Revoked);
                Err(Reason::Revoked)
            }
            Err(error) => {
                tracing::warn!(%grant, error, "a use of a counted grant was not confirmed");
                Err(Reason::UseUnconfirmed)
            }
        }
    }
}
