//! Step `inject`: the caller's credential and every field it could deceive the backend with go out, ours go in last.
//!
//! Takes the decided request apart and puts together what is sent; nothing is copied from the bytes that came in. The
//! result does not show its fields: they hold the credential.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fmt::Write as _;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use smallvec::SmallVec;

use crate::sidecar::credential::Lease;
use crate::sidecar::fields::passes;

/// A request as it will be sent upstream, but for its body.
pub struct Injected {
    /// The method that was decided on.
    pub(in crate::sidecar) method: Method,
    /// The target that was decided on, with the credential's parameter if it has one.
    pub(in crate::sidecar) target: PathAndQuery,
    /// What is left of the caller's fields, and ours.
    pub(in crate::sidecar) headers: HeaderMap,
}

impl fmt::Debug for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injected").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What of the call matters to the fields.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// The backend's own authority, which becomes `Host`.
    pub authority: &'a HeaderValue,
    /// Whether a WebSocket upgrade was asked for and permitted.
    pub upgrade: bool,
    /// Whether the call is gRPC, which needs `te: trailers`.
    pub grpc: bool,
}

/// The target cannot carry the credential's query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The caller's query already has the parameter.
    #[error("the query already has the parameter the credential goes in")]
    ReservedParameter,
    /// With the parameter the target is no target any more.
    #[error("the target cannot hold the credential")]
    NoTarget,
}

/// Puts the request together.
///
/// # Errors
/// [`InjectError`] when the credential goes into a query parameter and cannot.
pub fn inject(
    method: Method,
    target: PathAndQuery,
    mut headers: HeaderMap,
    passage: Passage<'_>,
    lease: Option<&Lease>,
) -> Result<Injected, InjectError> {
    // What is put in its place need not be taken out first.
    let replaced = |name: &HeaderName| {
        *name == header::HOST || lease.is_some_and(|lease| lease.headers().iter().any(|(ours, _)| ours == name))
    };
    strip(&mut headers, replaced);
    if passage.grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if passage.upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    headers.insert(header::HOST, passage.authority.clone());
    let mut target = target;
    if let Some(lease) = lease {
        for (name, value) in lease.headers() {
            headers.insert(name.clone(), value.clone());
        }
        for (name, secret) in lease.query() {
            target = with_parameter(&target, name, secret.expose_secret())?;
        }
    }
    Ok(Injected { method, target, headers })
}

/// Takes out what must not reach the backend from a caller, but for what `stays` because it is written over.
fn strip(headers: &mut HeaderMap, stays: impl Fn(&HeaderName) -> bool) {
    let mut out: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for value in headers.get_all(header::CONNECTION) {
        // Whatever a caller names as hop-by-hop is; the canonicaliser refused the names it must not name.
        for token in value.as_bytes().split(|b| *b == b',') {
            if let Ok(name) = HeaderName::from_bytes(token.trim_ascii()) {
                out.push(name);
            }
        }
    }
    for name in headers.keys() {
        if !passes(name) && !stays(name) {
            out.push(name.clone());
        }
    }
    for name in out {
        headers.remove(name);
    }
}

fn with_parameter(target: &PathAndQuery, name: &str, secret: &str) -> Result<PathAndQuery, InjectError> {
    let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    let query = target.query().unwrap_or_default();
    let taken = query.split('&').any(|pair| {
        let given = pair.split('=').next().unwrap_or_default();
        percent_encoding::percent_decode_str(given).eq(name.bytes())
    });
    if taken {
        return Err(InjectError::ReservedParameter);
    }
    let mut text = String::with_capacity(target.as_str().len() + encoded.len() + secret.len() * 3 + 2);
    text.push_str(target.as_str());
    text.push(if target.query().is_some() { '&' } else { '?' });
    text.push_str(&encoded);
    text.push('=');
    let _ = write!(text, "{}", utf8_percent_encode(secret, NON_ALPHANUMERIC));
    PathAndQuery::try_from(text).map_err(|_| InjectError::NoTarget)
}
