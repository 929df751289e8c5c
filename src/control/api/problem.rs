//! What a refusal looks like on the wire: RFC 9457, with a stable code for programs.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::refusal::{Kind, Refusal};
use crate::control::store::StoreError;

/// Why something was not done. Nothing was changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemView {
    /// `urn:leasehold:problem:` and the code with hyphens.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// A sentence for people, with what to do next where that is not the hint.
    detail: String,
    /// A stable word for programs, such as `self_approval`.
    code: &'static str,
    /// Whether the same call may succeed later without anybody doing something about it.
    retryable: bool,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

/// A refusal on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retryable: bool,
    hint: Option<&'static str>,
}

impl Problem {
    /// A problem of that status.
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl std::fmt::Display) -> Self {
        let retryable = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self { status, code, detail: detail.to_string(), retryable, hint: None }
    }

    /// What was sent says something that cannot be.
    pub(super) fn invalid(code: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// Nobody is known to be calling; the same for every cause.
    pub(super) fn unauthenticated() -> Self {
        let detail = "show a token of a configured issuer, or a client certificate: log in with `leasehold login`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }
}

fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Changed => StatusCode::PRECONDITION_FAILED,
        Kind::Unconditional => StatusCode::PRECONDITION_REQUIRED,
        Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let retryable = refusal.kind == Kind::Unavailable;
        let hint = refusal.hint;
        Self { retryable, hint, ..Self::new(status(refusal.kind), refusal.code, refusal.detail) }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // What the database says is for the operator, not for whoever calls.
        tracing::error!(%error, "a question to the store failed");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store", "the store cannot answer now: try again")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, code, detail, retryable, hint } = self;
        let view = ProblemView {
            kind: format!("urn:leasehold:problem:{}", code.replace('_', "-")),
            title: status.canonical_reason().unwrap_or("Refused"),
            status: status.as_u16(),
            detail,
            code,
            retryable,
            hint,
        };
        let mut response = (status, Json(view)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if retryable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
