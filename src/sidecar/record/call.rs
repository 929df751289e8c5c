//! The record of one call while it runs. Whatever becomes of the call, dropping this writes exactly one outcome.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{AuditUnavailable, CallId, Ended, Intent, Outcome, WorkerRecorder};
use crate::domain::id::{ActionName, BackendName, Borrowed};
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;
use crate::domain::time::Timestamp;
use crate::guardrail::Rule;
use crate::sidecar::credential::Lease;
use crate::sidecar::decide::live::LiveCall;
use crate::sidecar::decide::{Basis, Denial, Permit, Subject};
use crate::sidecar::forward::body::BodyProgress;
use crate::sidecar::reason::{Decision, Reason};

/// The trace that a call belongs to (W3C Trace Context section 3.2).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where a call came in.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Who is at the other end.
    pub peer: Arc<str>,
    /// `h1` or `h2`.
    pub protocol: &'static str,
}

/// The record of one call. Dropping it writes the outcome.
#[derive(Debug)]
pub struct CallRecord {
    recorder: Arc<WorkerRecorder>,
    origin: Arc<Origin>,
    id: CallId,
    at: Timestamp,
    started: Instant,
    method: Method,
    target: Option<PathAndQuery>,
    trace: Option<[u8; 32]>,
    principal: Option<(Principal, &'static str)>,
    backend: Option<usize>,
    action: Option<(usize, ActionName)>,
    resource: Option<Resource>,
    live: Option<Arc<LiveCall<Subject>>>,
    denial: Option<Denial>,
    decision: Decision,
    reason: Reason,
    detail: Option<&'static str>,
    lease: Option<Arc<Lease>>,
    status: Option<StatusCode>,
    upstream_status: Option<StatusCode>,
    ended: Ended,
    request: Option<Arc<BodyProgress>>,
    bytes_in: u64,
    bytes_out: u64,
    sent_at: Option<Instant>,
    upstream: Duration,
    own: Option<Duration>,
}

impl CallRecord {
    /// Begins the record of a call that came in now. It is handed on many times, so it stays in one place.
    pub fn begin(recorder: Arc<WorkerRecorder>, origin: Arc<Origin>, at: Timestamp, method: Method) -> Box<Self> {
        let id = recorder.next_id();
        Box::new(Self {
            recorder,
            origin,
            id,
            at,
            started: Instant::now(),
            method,
            target: None,
            trace: None,
            principal: None,
            backend: None,
            action: None,
            resource: None,
            live: None,
            denial: None,
            decision: Decision::Error,
            reason: Reason::CallerGone,
            detail: None,
            lease: None,
            status: None,
            upstream_status: None,
            ended: Ended::CallerGone,
            request: None,
            bytes_in: 0,
            bytes_out: 0,
            sent_at: None,
            upstream: Duration::ZERO,
            own: None,
        })
    }

    /// The id under which the call is recorded.
    pub fn id(&self) -> &CallId {
        &self.id
    }

    /// Who calls, and how that was proved.
    pub fn identified(&mut self, principal: &Principal, method: &'static str) {
        self.principal = Some((principal.clone(), method));
    }

    /// What was asked for, in its one reading.
    pub fn canonical(&mut self, backend: usize, target: &PathAndQuery, headers: &HeaderMap) {
        self.backend = Some(backend);
        self.target = Some(target.clone());
        self.trace = headers.get(&TRACEPARENT).and_then(|value| trace_id(value.as_bytes()));
    }

    /// Which action on what; `place` is the action's in its map.
    pub fn resolved(&mut self, place: usize, action: &ActionName, resource: &Resource) {
        self.action = Some((place, action.clone()));
        self.resource = Some(resource.clone());
    }

    /// The call is permitted, or let pass because it is only observed.
    pub fn permitted(&mut self, permit: &Permit) {
        (self.decision, self.reason) = match permit.basis() {
            Basis::Grant(_) => (Decision::Permit, Reason::Granted),
            Basis::Baseline(_) => (Decision::Permit, Reason::Baseline),
            Basis::Observed(denial) => {
                self.denial = Some(denial.clone());
                (Decision::WouldDeny, denial.reason)
            }
        };
        self.live = Some(permit.watch());
    }

    /// Writes the intent to carry the call out; on `Ok` it is with the kernel and survives this process.
    ///
    /// # Errors
    /// [`AuditUnavailable`]: the call must not be carried out.
    pub async fn intend(
        &self,
        permit: &Permit,
        backend: &BackendName,
        action: Option<&ActionName>,
        lease: Option<&Lease>,
    ) -> Result<(), AuditUnavailable> {
        let intent = Intent {
            id: &self.id,
            at: self.at,
            principal: permit.principal(),
            backend,
            action,
            resource: permit.resource(),
            grant: permit.grant().map(|entry| entry.id()),
            task: permit.task(),
            lease: lease.map(Lease::id),
        };
        self.recorder.intend(&intent).await
    }

    /// The request is on its way, with this lease and this body.
    pub fn sending(&mut self, lease: Option<&Arc<Lease>>, request: Option<Arc<BodyProgress>>) {
        self.lease = lease.cloned();
        self.request = request;
        self.sent_at = Some(Instant::now());
    }

    /// The backend answered, or will not.
    pub fn answered(&mut self, status: Option<StatusCode>) {
        self.upstream_status = status;
        self.upstream = self.sent_at.map_or(Duration::ZERO, |at| at.elapsed());
    }

    /// The caller is answered with this status.
    pub fn answering(&mut self, status: StatusCode) {
        self.status = Some(status);
        // What comes after is the body's own pace.
        self.own = Some(self.started.elapsed().saturating_sub(self.upstream));
    }

    /// So many bytes of the answer went out.
    pub fn sent(&mut self, bytes: u64) {
        self.bytes_out += bytes;
    }

    /// So many bytes came in from the caller, besides a body that was passed on.
    pub fn received(&mut self, bytes: u64) {
        self.bytes_in += bytes;
    }

    /// The call is refused.
    pub fn denied(&mut self, reason: Reason, detail: Option<&'static str>, denial: Option<Denial>) {
        self.decision = match reason.status() {
            status if status.is_server_error() || reason == Reason::CallerGone => Decision::Error,
            _ => Decision::Deny,
        };
        self.reason = reason;
        self.detail = detail;
        self.denial = denial;
        self.ended = Ended::Refused;
    }

    /// How the call ended. The last word before the record is dropped stands.
    pub fn end(&mut self, ended: Ended) {
        self.ended = ended;
    }
}

/// The trace id of a W3C `traceparent` of version 00.
fn trace_id(value: &[u8]) -> Option<[u8; 32]> {
    let id = value.get(3..35)?;
    let plain = value.len() == 55 && id.iter().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
    plain.then(|| id.try_into().ok()).flatten()
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let total = self.started.elapsed();
        let live = self.live.as_deref().map(LiveCall::subject);
        let one = [self.reason];
        let reasons: SmallVec<[Reason; 4]> =
            self.denial.as_ref().map_or_else(|| SmallVec::from_slice(&one), |denial| denial.reasons.clone());
        let denied = self.denial.as_ref().and_then(|denial| denial.guardrail.as_deref());
        let stop = denied.or_else(|| live?.stopped_by().map(|said| &**said));
        let guardrails: Vec<Arc<Rule>> = stop.map(|said| said.stopping().cloned().collect()).unwrap_or_default();
        let shadow = denied.or_else(|| live?.said().map(|said| &**said)).map_or(&[][..], |said| &said.shadow);
        let body = self.request.as_ref().map_or(0, |request| request.bytes());
        self.recorder.outcome(&Outcome {
            id: &self.id,
            at: self.at,
            listener: &self.origin.listener,
            peer: &self.origin.peer,
            protocol: self.origin.protocol,
            principal: self.principal.as_ref().map(|(principal, _)| principal),
            identity: self.principal.as_ref().map(|(_, method)| *method),
            backend: self.backend,
            action: self.action.as_ref().map(|(place, name)| (*place, name)),
            resource: self.resource.as_ref().or(live.map(Subject::resource)),
            method: self.method.as_str(),
            path: self.target.as_ref().map_or("", |target| target.path()),
            grant: live.and_then(Subject::grant).map(|entry| entry.id()).or(self
                .denial
                .as_ref()
                .and_then(|denial| denial.grant.as_ref())
                .map(Borrowed::from)),
            arguments: live
                .and_then(Subject::grant)
                .and_then(|entry| entry.scope().arguments())
                .or(self.denial.as_ref().and_then(|denial| denial.arguments.as_deref())),
            task: live.and_then(Subject::task),
            decision: self.decision,
            stale: live.is_some_and(Subject::is_stale),
            reason: self.reason,
            detail: self.detail,
            reasons: &reasons,
            guardrails: &guardrails,
            shadow,
            lease: self.lease.as_deref().map(Lease::id),
            upstream_status: self.upstream_status.map(|status| status.as_u16()),
            status: self.status.map(|status| status.as_u16()),
            ended: self.ended,
            bytes_in: self.bytes_in + body,
            bytes_out: self.bytes_out,
            own: self.own.unwrap_or_else(|| total.saturating_sub(self.upstream)),
            upstream: self.upstream,
            total,
            trace: self.trace.as_ref().and_then(|trace| std::str::from_utf8(trace).ok()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_trace_is_kept() {
        let good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace_id(good).unwrap(), *b"0af7651916cd43dd8448eb211c80319c");
        for bad in [
            &b""[..],
            b"00-xyz",
            b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            b"00-\"af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(trace_id(bad), None);
        }
    }
}
