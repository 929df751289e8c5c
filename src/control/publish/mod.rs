//! What sidecars are told and asked: who may follow, uses of counted grants, and who they are.
//!
//! The store says what is in force; a hub keeps it for all streams ([`crate::sync`]). Here stands what only a control plane
//! can answer them. A sidecar has the rights that the Backend documents name it for, and none at the API.

mod activity;
mod enrol;
mod replicas;
mod report;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use activity::Usage;
pub use enrol::{Enrolment, JoinToken};
pub use replicas::Replicas;
pub use report::{Report, Reports};

use super::command::{Command, Reply};
use super::engine::Engine;
use super::refusal::{Kind, Refusal};
use crate::domain::id::{BackendName, GrantId};
use crate::domain::principal::Principal;
use crate::domain::time::Clock;
use crate::identity::Verifier;
use crate::sync::Work;
use crate::sync::server::{Applicant, Enrolled, Failed, Origin, Peer, Use};
use crate::sync::stream::Said;
use rustls::pki_types::CertificateDer;

/// How long a connection without a certificate lives: enough to enrol.
pub const STRANGER_LIVES: Duration = Duration::from_secs(30);

/// What a control plane answers to its sidecars.
#[derive(Debug)]
pub struct Publisher {
    engine: Engine,
    enrolment: Option<Arc<Enrolment>>,
    usage: Arc<Usage>,
}

impl Publisher {
    /// Answers from this engine, and signs where somebody is to.
    pub fn new(engine: Engine, enrolment: Option<Arc<Enrolment>>, usage: Arc<Usage>) -> Self {
        Self { engine, enrolment, usage }
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            Kind::Unavailable | Kind::Limited => Self::Unavailable(refusal.detail),
            Kind::Invalid => Self::Invalid(refusal.detail),
            _ => Self::Forbidden(refusal.detail),
        }
    }
}

impl Origin for Publisher {
    fn may_follow(&self, sidecar: &Principal, backend: &BackendName) -> bool {
        self.engine.catalogue().may_follow(sidecar, backend)
    }

    fn moved(&self) -> Work<'static, ()> {
        let mut declared = self.engine.declared();
        Box::pin(async move {
            if declared.changed().await.is_err() {
                // The engine stopped; so will the stream.
                std::future::pending::<()>().await;
            }
        })
    }

    fn consume(&self, sidecar: Principal, grant: GrantId, use_id: String) -> Work<'_, Result<Use, Failed>> {
        Box::pin(async move {
            match self.engine.run(sidecar, Command::Use { grant, use_id }).await? {
                Reply::Used(outcome) => Ok(outcome),
                _ => Err(Failed::Unavailable("the control plane lost its thread".to_owned())),
            }
        })
    }

    fn enroll(&self, applicant: Applicant, csr: Bytes) -> Work<'_, Result<Enrolled, Failed>> {
        Box::pin(async move {
            let refused = || Failed::Forbidden("this control plane signs no certificates: ask who does".to_owned());
            let enrolment = self.enrolment.as_ref().ok_or_else(refused)?;
            match applicant {
                Applicant::Joins(token) => enrolment.join(&token, &csr).await,
                Applicant::Shows(sidecar) => enrolment.renew(sidecar, &csr).await,
                Applicant::Signed(by, signed) => enrolment.renew_signed(by, &signed).await,
            }
        })
    }

    fn said(&self, sidecar: &Principal, said: Said) {
        match said {
            Said::Used { grant, last, calls } => self.usage.note(sidecar, grant, last, calls),
            Said::Unusable { bundle, digest, error } => {
                tracing::error!(%sidecar, bundle, digest, error, "a sidecar cannot use what it was told");
            }
        }
    }
}

/// Who shows this certificate: none for a connection without one.
///
/// # Errors
/// What is wrong with it.
pub fn sidecar(
    verifier: &Verifier,
    clock: &Arc<dyn Clock>,
    shown: &[CertificateDer<'static>],
) -> Result<Option<Peer>, String> {
    if shown.is_empty() {
        return Ok(None);
    }
    let verified = verifier.certificate(shown, clock.now()).map_err(|error| error.to_string())?;
    Ok(Some(Peer { sidecar: verified.principal().clone(), expires: verified.expires() }))
}
