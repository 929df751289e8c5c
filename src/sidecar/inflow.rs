//! The body of a call on its way in: still to come, or read whole because something is decided by it.
//!
//! What was read is what is sent on, byte for byte. A body that is read is bounded by a limit of the configuration and by
//! a time; nobody holds a permit meanwhile, so nothing has to end one.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::domain::arguments::{ArgumentDigest, Call};
use crate::sidecar::canonical::{BodyLength, Canonical};
use crate::sidecar::reason::Reason;

/// The body of a request on its way in.
#[derive(Debug)]
pub enum Inflow {
    /// Still to come.
    Unread(Incoming),
    /// Read, because something is decided by it.
    Read(Bytes),
    /// Begun and not read to its end.
    Lost,
}

impl Inflow {
    /// Reads it: all of it, within the limit and in time, or not at all. Dropping the future loses it.
    ///
    /// # Errors
    /// The reason for which the call must be refused; what is left of the body is no other request.
    pub async fn read(&mut self, bytes_max: usize, within: Duration) -> Result<Bytes, Reason> {
        let mut body = match std::mem::replace(self, Self::Lost) {
            Self::Unread(body) => body,
            Self::Read(bytes) => {
                *self = Self::Read(bytes.clone());
                return Ok(bytes);
            }
            Self::Lost => return Err(Reason::Internal),
        };
        let mut all = BytesMut::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Reason::Malformed)?;
                let Ok(piece) = frame.into_data() else { continue };
                if all.len() + piece.len() > bytes_max {
                    return Err(Reason::BodyTooLarge);
                }
                all.extend_from_slice(&piece);
            }
            Ok(())
        };
        tokio::time::timeout(within, reading).await.map_err(|_| Reason::BodyTimeout)??;
        let all = all.freeze();
        *self = Self::Read(all.clone());
        Ok(all)
    }

    /// Whether it will not be longer than that, as far as can be told: with `surely` before it is begun, or else as it comes.
    pub fn fits(&self, length: BodyLength, bytes_max: usize, surely: bool) -> bool {
        let Self::Unread(body) = self else { return true };
        match length {
            BodyLength::None => true,
            BodyLength::Exact(length) => usize::try_from(length).is_ok_and(|length| length <= bytes_max),
            BodyLength::Chunked => !surely || body.is_end_stream(),
        }
    }
}

/// Whether the body of a call says all of it, as it stands: it is not encoded, and not the beginning of a conversation.
pub fn is_whole(call: &Canonical) -> bool {
    let plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    !call.is_grpc() && call.upgrade().is_none() && call.headers().get(CONTENT_ENCODING).is_none_or(plain)
}

/// The digest of a call with this body.
pub fn digest(call: &Canonical, body: &[u8]) -> ArgumentDigest {
    ArgumentDigest::of(Call {
        method: call.method().as_str(),
        target: call.path_and_query().as_str(),
        content_type: call.headers().get(CONTENT_TYPE).map_or(b"", |kind| kind.as_bytes()),
        body,
    })
}
