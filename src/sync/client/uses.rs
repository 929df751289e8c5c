//! Uses of counted grants, taken where they are counted.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Request};

use super::super::server::Use;
use super::connect::Upstreams;
use crate::domain::id::GrantId;
use crate::wire::v1;
use crate::wire::v1::consume_reply::Outcome;

/// How long a call waits for its use.
const WITHIN: Duration = Duration::from_secs(5);

/// How long one server is waited for, so that there is time for another.
const EACH_WITHIN: Duration = Duration::from_secs(2);

/// Between two servers that cannot be reached.
const PAUSE: Duration = Duration::from_millis(50);

impl Upstreams {
    /// Takes a use, under one name however many servers must be asked.
    ///
    /// # Errors
    /// Why nobody said whether it is taken; it may be.
    pub async fn consume(&self, grant: &GrantId, use_id: &str) -> Result<Use, String> {
        let until = Instant::now() + WITHIN;
        let mut last = "no control plane answered in time".to_owned();
        let asking = async {
            loop {
                match self.consume_once(grant, use_id).await {
                    Ok(taken) => return Ok(taken),
                    Err(Failed::Said(why)) => return Err(why),
                    Err(Failed::Silent(why)) => last = why,
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        match tokio::time::timeout_at(until, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(last),
        }
    }

    /// Has a certificate signed for whom a token was made.
    ///
    /// # Errors
    /// What the server says, or why it cannot be asked.
    pub async fn enroll(&self, request: v1::EnrollRequest) -> Result<v1::EnrollReply, tonic::Status> {
        let asking = async {
            let (address, mut client) = self.connected().await.map_err(tonic::Status::unavailable)?;
            let answer = client.enroll(request).await.map(tonic::Response::into_inner);
            if answer.as_ref().is_err_and(|status| !is_final(status.code())) {
                self.disconnect(&address).await;
            }
            answer
        };
        let answer = tokio::time::timeout(WITHIN, asking).await;
        answer.unwrap_or_else(|_| Err(tonic::Status::unavailable("no control plane answered in time")))
    }

    async fn consume_once(&self, grant: &GrantId, use_id: &str) -> Result<Use, Failed> {
        let (address, mut client) = self.connected().await.map_err(Failed::Silent)?;
        let mut request = Request::new(v1::ConsumeRequest { grant: grant.to_string(), use_id: use_id.to_owned() });
        request.set_timeout(EACH_WITHIN);
        let failed = match client.consume(request).await {
            Ok(reply) => match reply.into_inner().outcome() {
                Outcome::Taken => return Ok(Use::Taken),
                Outcome::Exhausted => return Ok(Use::Exhausted),
                Outcome::Ended => return Ok(Use::Ended),
                Outcome::Unspecified => return Err(Failed::Said("an answer that says nothing".to_owned())),
            },
            Err(status) => status,
        };
        let why = format!("{:?}: {}", failed.code(), failed.message());
        if is_final(failed.code()) {
            return Err(Failed::Said(why));
        }
        self.disconnect(&address).await;
        Err(Failed::Silent(why))
    }
}

/// Whether the same is said when it is asked again, or elsewhere. `Unauthenticated` is not: the certificate may have ended
/// with which a connection began.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

/// Why a server took no use, or is not known to.
enum Failed {
    /// It said so.
    Said(String),
    /// It may know what another server will say.
    Silent(String),
}
