//! Step `identify`: which proof of identity this call offers, and who it proves.
//!
//! A token is looked at first: it says more than the certificate of a shared connection. A call with both must have both
//! right. Two `Authorization` fields are none. The machinery that verifies stands in [`crate::identity`].

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::domain::time::Now;
use crate::identity::{IdentityError, Verified, Verifier};
use crate::sidecar::accept::Connection;
use crate::sidecar::reason::Reason;

/// Nobody is known to be calling.
#[derive(Debug)]
pub struct Unidentified {
    /// What the caller is told.
    pub reason: Reason,
    /// Which check failed, from a closed list; for the record only.
    pub detail: &'static str,
}

impl From<IdentityError> for Unidentified {
    fn from(error: IdentityError) -> Self {
        let reason = if error.is_ours() { Reason::KeysUnavailable } else { Reason::Unauthenticated };
        Self { reason, detail: error.reason() }
    }
}

/// Who calls.
///
/// Dropping the future abandons a verification; nothing is remembered of it.
///
/// # Errors
/// [`Unidentified`] when there is no proof, more than one token, or one that does not hold.
pub async fn identify(
    verifier: &Verifier,
    connection: &Connection,
    headers: &HeaderMap,
    now: Now,
) -> Result<Arc<Verified>, Unidentified> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let refuse = |detail| Unidentified { reason: Reason::Unauthenticated, detail };
    match (fields.next(), fields.next()) {
        (Some(_), Some(_)) => Err(refuse("two_tokens")),
        (Some(field), None) => {
            let token = bearer(field.as_bytes()).ok_or_else(|| refuse("no_bearer"))?;
            if let Some(verified) = verifier.remembered(token, now) {
                return Ok(verified);
            }
            let token = std::str::from_utf8(token).map_err(|_| refuse("no_bearer"))?;
            Ok(verifier.token(token, host_of(&connection.peer), now).await?)
        }
        (None, _) if connection.certificates.is_empty() => Err(refuse("no_proof")),
        (None, _) => Ok(verifier.certificate(&connection.certificates, now)?),
    }
}

/// The peer without its port.
fn host_of(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

/// The token of an `Authorization: Bearer` field (RFC 6750 section 2.1).
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked(7)?;
    // Without a way out in between, so that many bytes are looked at at once.
    let plain = !token.is_empty() && token.iter().fold(true, |all, b| all & b.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case(b"bearer ") && plain).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_is_a_bearer_token() {
        assert_eq!(bearer(b"Bearer a.b.c"), Some(&b"a.b.c"[..]));
        assert_eq!(bearer(b"bEARER a.b.c"), Some(&b"a.b.c"[..]));
        for bad in
            [&b""[..], b"Bearer", b"Bearer ", b"Bearer  a", b"Bearer a b", b"Basic YTpi", b"a.b.c", b"Bearer a\xff"]
        {
            assert_eq!(bearer(bad), None, "{bad:?}");
        }
    }
}
