//! What a caller sends, read in one way or refused.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;
use serde::de::DeserializeOwned;

use super::Api;
use super::problem::Problem;
use crate::domain::json::{SameKey, object};

/// Largest body, in bytes.
pub(super) const BODY_MAX: usize = 256 * 1024;

/// Deepest JSON.
const DEPTH_MAX: usize = 64;

/// A JSON body: one object, no key twice, nothing unknown in it.
pub(super) struct Body<T>(pub(super) T);

/// The bytes of a JSON body beside what they say, for those who compare bodies.
pub(super) struct Exact<T>(pub(super) T, pub(super) serde_json::Value);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        let Exact(read, _) = Exact::from_request(request, api).await?;
        Ok(Self(read))
    }
}

/// As [`Body`], where saying nothing is saying enough.
pub(super) struct Spoken<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<Api>> for Spoken<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        Body::from_request(request, api).await.map(|Body(read)| Self(read))
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Exact<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<Api>) -> Result<Self, Problem> {
        is_json(request.headers())?;
        let body = axum::body::to_bytes(request.into_body(), BODY_MAX).await.map_err(|_| {
            let detail = format!("the body is larger than {BODY_MAX} bytes, or broke off: send less at a time");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
        })?;
        let read = object(&body, DEPTH_MAX, SameKey::Exact).ok_or_else(|| {
            let detail = format!("the body is not one JSON object with each key once, at most {DEPTH_MAX} deep");
            Problem::invalid("malformed_json", detail)
        })?;
        let value = serde_json::Value::Object(read);
        let read = serde_json::from_value(value.clone()).map_err(|error| Problem::invalid("invalid_body", error))?;
        Ok(Self(read, value))
    }
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    match kind {
        None => Ok(()),
        Some(kind) if kind.eq_ignore_ascii_case("application/json") => Ok(()),
        Some(_) => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send `Content-Type: application/json`",
        )),
    }
}

/// Query parameters: nothing unknown, nothing twice.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Api>> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Problem> {
        let read = Query::try_from_uri(&parts.uri);
        read.map(|Query(read)| Self(read)).map_err(|error| Problem::invalid("invalid_query", error.body_text()))
    }
}

/// What a path names. A name that cannot be is a thing that is not there.
pub(super) struct Named(pub(super) String);

impl FromRequestParts<Arc<Api>> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, api).await;
        path.map(|Path(name)| Self(name)).map_err(|_| nothing_there())
    }
}

impl Named {
    /// The id of that kind.
    pub(super) fn id<T, E>(&self, read: impl Fn(&str) -> Result<T, E>) -> Result<T, Problem> {
        read(&self.0).map_err(|_| nothing_there())
    }
}

/// There is nothing here, or nothing for this caller.
pub(super) fn nothing_there() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing of that name, or it is not yours to see")
}
