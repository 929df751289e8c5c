//! Every refusal, and what the caller is told: `application/problem+json` (RFC 9457), or gRPC status for gRPC.
//!
//! The one place where a reason becomes an answer. What is told is what a caller may know: the reason, its own action and
//! resource; never a rule, a path on this machine, or why a backend cannot be reached.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::domain::id::{ActionName, BackendName};
use crate::domain::resource::Resource;
use crate::guardrail::Rule;
use crate::sidecar::decide::Denial;
use crate::sidecar::forward::response::{DownstreamBody, grpc_status};
use crate::sidecar::reason::Reason;

/// What a refusal says besides its reason.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The id under which the call is recorded.
    pub evaluation: &'a str,
    /// Which of the ways to be malformed, and the like; from a closed list.
    pub detail: Option<&'a str>,
    /// The backend.
    pub backend: Option<&'a BackendName>,
    /// The action.
    pub action: Option<&'a ActionName>,
    /// What it would be done to.
    pub resource: Option<&'a Resource>,
    /// The decision, where there was one.
    pub denial: Option<&'a Denial>,
    /// Whether the caller speaks gRPC.
    pub grpc: bool,
    /// Whether the connection is to be closed.
    pub close: bool,
}

/// The answer to a call that is refused for `reason`.
pub fn refuse(reason: Reason, context: Context<'_>) -> Response<DownstreamBody> {
    if context.grpc {
        return grpc(reason, context);
    }
    let status = reason.status();
    let body = problem(reason, status, context).to_string();
    let mut response = Response::new(DownstreamBody::whole(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer error="invalid_token""#));
    }
    if matches!(
        reason,
        Reason::NoGrant
            | Reason::OutOfScope
            | Reason::ArgumentsDiffer
            | Reason::Expired
            | Reason::Exhausted
            | Reason::Released
    ) {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer error="insufficient_scope""#));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if context.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn grpc(reason: Reason, context: Context<'_>) -> Response<DownstreamBody> {
    let mut response = Response::new(DownstreamBody::Whole(None));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(grpc_status(reason)));
    let message = match (context.action, context.resource) {
        (Some(action), Some(resource)) => format!("{reason}: {action} on {resource}"),
        _ => reason.to_string(),
    };
    let message = percent_encoding::utf8_percent_encode(&message, percent_encoding::CONTROLS).to_string();
    if let Ok(value) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", value);
    }
    response
}

fn problem(reason: Reason, status: StatusCode, context: Context<'_>) -> Value {
    let (kind, title) = kind(reason);
    let mut problem = json!({
        "type": format!("urn:leasehold:problem:{kind}"),
        "title": title,
        "status": status.as_u16(),
        "reason": reason.as_str(),
    });
    // Before a caller is known it is told nothing that differs from one to the next.
    if reason == Reason::Unauthenticated {
        return problem;
    }
    problem["instance"] = context.evaluation.into();
    if let Some(detail) = context.detail {
        problem["detail"] = detail.into();
    }
    if let Some(backend) = context.backend {
        problem["backend"] = backend.as_str().into();
    }
    if let (Some(action), Some(resource)) = (context.action, context.resource) {
        problem["action"] = action.as_str().into();
        problem["resource"] = resource.to_string().into();
        if kind == "elevation-required" {
            problem["detail"] = format!("{action} on {resource} is not covered by an active grant").into();
        }
        if reason == Reason::ArgumentsDiffer {
            problem["detail"] =
                format!("{action} on {resource} is granted for a call with other arguments only").into();
        }
    }
    problem["next"] = json!({ "action": next(reason) });
    if let Some(denial) = context.denial {
        let reasons: Vec<&str> = denial.reasons.iter().map(|reason| reason.as_str()).collect();
        problem["decision"] = json!({
            "decision": false,
            "context": { "evaluation_id": context.evaluation, "reason": reason.as_str(), "reasons": reasons },
        });
        if let Some(grant) = &denial.grant {
            problem["grant"] = grant.as_str().into();
        }
        // Of the caller's own call: to compare with what was asked for, or to ask for.
        if let Some(arguments) = &denial.arguments {
            problem["arguments"] = arguments.to_string().into();
        }
        if let Some(said) = &denial.guardrail {
            let policy = |rule: &Arc<Rule>| json!({ "document": rule.document, "id": rule.id });
            problem["policies"] = said.stopping().map(policy).collect();
        }
        if let Some(message) = denial.message.as_deref().filter(|message| !message.is_empty()) {
            problem["detail"] = message.into();
        }
    }
    problem
}

/// What an agent that was refused does best: file a request, try the same call again later, or neither. By the reason alone:
/// a permit that ends on the way to the backend leads to the same step as a denial.
fn next(reason: Reason) -> &'static str {
    match reason {
        Reason::NoGrant
        | Reason::OutOfScope
        | Reason::ArgumentsDiffer
        | Reason::Expired
        | Reason::Exhausted
        | Reason::Released
        | Reason::Revoked => "request",
        Reason::NotYet
        | Reason::StaleSource
        | Reason::UseUnconfirmed
        | Reason::AuditUnavailable
        | Reason::KeysUnavailable
        | Reason::Draining
        | Reason::CredentialUnavailable
        | Reason::UpstreamUnreachable => "retry",
        _ => "none",
    }
}

fn kind(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::NoGrant
        | Reason::NotYet
        | Reason::Expired
        | Reason::Exhausted
        | Reason::Released
        | Reason::Revoked
        | Reason::OutOfScope
        | Reason::ArgumentsDiffer => ("elevation-required", "This call needs an elevation"),
        Reason::UnmappedAction => ("unmapped-action", "No rule names what this call does"),
        Reason::Lock => ("locked", "A lock stops this call"),
        Reason::Guardrail => ("guardrail", "A guardrail forbids this call"),
        Reason::Unauthenticated | Reason::IdentityExpired => ("unauthenticated", "This call needs a valid identity"),
        Reason::Malformed
        | Reason::MethodRefused
        | Reason::HeadTooLarge
        | Reason::TargetTooLong
        | Reason::Misdirected
        | Reason::ExpectationRefused
        | Reason::BodyTooLarge
        | Reason::BodyTimeout
        | Reason::BodyUnreadable => ("malformed", "This request is not accepted as it is written"),
        Reason::StaleSource
        | Reason::UseUnconfirmed
        | Reason::KeysUnavailable
        | Reason::AuditUnavailable
        | Reason::Draining => ("unavailable", "The sidecar cannot decide or record calls right now"),
        Reason::CredentialUnavailable
        | Reason::UpstreamUnreachable
        | Reason::UpstreamTimeout
        | Reason::UpstreamInvalid
        | Reason::UpstreamAuthFailed
        | Reason::UpstreamTruncated
        | Reason::LeakGuard => ("upstream", "The backend gave no answer that can be passed on"),
        Reason::Granted | Reason::Baseline | Reason::CallerGone | Reason::Internal => {
            ("internal", "The sidecar failed; nothing was permitted because of that")
        }
    }
}
