//! Sending one request to a backend and waiting for the head of its answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::uri::{Authority, Scheme, Uri};
use http::{HeaderMap, Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::body::UpstreamBody;
use super::connect::{Protocol, Target};
use super::pool::{Pool, PoolKey, Sender};
use crate::sidecar::credential::Lease;
use crate::sidecar::decide::Permit;
use crate::sidecar::decide::live::Watcher;
use crate::sidecar::inject::Injected;
use crate::sidecar::reason::Reason;

/// How long a backend may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To be connected to, TLS included.
    pub connect: Duration,
    /// To send the first byte of its answer after the last byte of the request.
    pub first_byte: Duration,
    /// To lie idle and still be used again.
    pub idle: Duration,
}

/// A backend as it is called.
#[derive(Debug)]
pub struct Upstream {
    target: Target,
    timeouts: Timeouts,
    serial: u64,
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Most bytes of an answer's head, and of what is buffered while it is passed on.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Longest time a connection may have lain idle for a request on it not to be prepared for its death.
const FRESH: Duration = Duration::from_millis(250);

/// The head of an answer, and the connection it came over.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub response: Response<Incoming>,
    /// The connection, if it can be used again.
    pub sender: Option<Sender>,
    /// Whose connection it is.
    pub key: PoolKey,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The permit, or the request's body, ended first.
    #[error("the call was ended: {0}")]
    Ended(Reason),
    /// The backend cannot be connected to.
    #[error("the backend cannot be reached: {0}")]
    Unreachable(#[source] std::io::Error),
    /// The backend went away before it answered, or answered what is no HTTP.
    #[error("the backend's answer is not usable: {0}")]
    Invalid(#[source] hyper::Error),
}

impl SendError {
    /// The reason as it is answered and recorded.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Ended(reason) => *reason,
            Self::Unreachable(_) => Reason::UpstreamUnreachable,
            Self::Invalid(_) => Reason::UpstreamInvalid,
        }
    }
}

impl Upstream {
    /// A backend to be called.
    pub fn new(target: Target, timeouts: Timeouts) -> Self {
        Self { target, timeouts, serial: SERIAL.fetch_add(1, Ordering::Relaxed) }
    }

    /// How it is reached.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How long it may take.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Sends the request and returns the head of the answer. Ends as soon as the permit does; dropping the future aborts
    /// the request.
    ///
    /// # Errors
    /// [`SendError`]. Unless it says otherwise the backend may have acted on the request.
    pub async fn send(
        &self,
        pool: &Pool,
        permit: &Permit,
        lease: Option<&Lease>,
        injected: Injected,
        body: UpstreamBody,
    ) -> Result<Answer, SendError> {
        let key = PoolKey {
            backend: self.serial,
            principal: permit.principal().clone(),
            lease: lease.map_or(0, Lease::serial),
        };
        // It is handed on many times.
        let request = Box::new(self.request(injected, body));
        tokio::select! {
            biased;
            reason = permit.ended(Watcher::Head) => Err(SendError::Ended(reason)),
            answer = self.try_send(pool, permit, key, request) => match answer {
                // A body that failed ended the call and so names the reason better than what it did to the connection.
                Err(error) => Err(permit.confirm().err().map_or(error, SendError::Ended)),
                Ok(answer) => Ok(answer),
            },
        }
    }

    async fn try_send(
        &self,
        pool: &Pool,
        permit: &Permit,
        key: PoolKey,
        mut request: Box<Request<UpstreamBody>>,
    ) -> Result<Answer, SendError> {
        // A kept connection may have died unseen. A request it did not take at all comes back and is sent again; one that
        // it took is sent again only if doing it twice is doing it once, and only over a connection of its own.
        while let Some((sender, idle)) = pool.take(&key, self.timeouts.idle) {
            let spare = (idle >= FRESH).then(|| replay(&request)).flatten();
            permit.confirm_and_wait(self.timeouts.first_byte).map_err(SendError::Ended)?;
            match send_over(sender, request).await {
                Ok((response, sender)) => return Ok(Answer { response, sender, key }),
                Err(Failed::NotSent(back)) => request = back,
                Err(Failed::Sent(error)) => match spare {
                    Some(again) if error.is_incomplete_message() || error.is_canceled() || is_io(&error) => {
                        request = again;
                        break;
                    }
                    _ => return Err(SendError::Invalid(error)),
                },
            }
        }
        permit.wait_at_most(self.timeouts.connect);
        // Apart, because most requests open none and all keep the room.
        let sender = Box::pin(self.open(pool, &key)).await.map_err(SendError::Unreachable)?;
        // INVARIANT: connecting takes time; what was decided before is decided again before the credential leaves.
        permit.confirm_and_wait(self.timeouts.first_byte).map_err(SendError::Ended)?;
        match send_over(sender, request).await {
            Ok((response, sender)) => Ok(Answer { response, sender, key }),
            Err(Failed::NotSent(_)) => {
                Err(SendError::Unreachable(std::io::Error::other("the backend closed a new connection")))
            }
            Err(Failed::Sent(error)) => Err(SendError::Invalid(error)),
        }
    }

    fn request(&self, injected: Injected, body: UpstreamBody) -> Request<UpstreamBody> {
        let Injected { method, target, mut headers } = injected;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        match self.target.protocol {
            Protocol::Http1 => {
                *request.uri_mut() = Uri::from(target);
                *request.version_mut() = Version::HTTP_11;
            }
            Protocol::Http2 => {
                headers.remove(http::header::HOST);
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(if self.target.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
                parts.authority = Authority::try_from(self.target.authority.as_bytes()).ok();
                parts.path_and_query = Some(target);
                *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
                *request.version_mut() = Version::HTTP_2;
            }
        }
        *request.headers_mut() = headers;
        request
    }

    async fn open(&self, pool: &Pool, key: &PoolKey) -> std::io::Result<Sender> {
        let io = TokioIo::new(self.target.connect().await?);
        match self.target.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(HEAD_BYTES_MAX)
                    .handshake(io)
                    .await
                    .map_err(std::io::Error::other)?;
                tokio::spawn(async move {
                    // Its errors reach whoever waits for an answer on it.
                    let _ = connection.with_upgrades().await;
                });
                Ok(Sender::Http1(sender))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(4 * WINDOW)
                    .max_header_list_size(HEAD_BYTES_MAX as u32)
                    .keep_alive_interval(Some(Duration::from_secs(20)))
                    .keep_alive_timeout(Duration::from_secs(10))
                    .keep_alive_while_idle(false)
                    .handshake(io)
                    .await
                    .map_err(std::io::Error::other)?;
                tokio::spawn(async move {
                    let _ = connection.await;
                });
                pool.keep(key.clone(), Sender::Http2(sender.clone()));
                Ok(Sender::Http2(sender))
            }
        }
    }
}

/// How much of a stream is taken before it is passed on, in bytes.
const WINDOW: u32 = 64 * 1024;

enum Failed {
    NotSent(Box<Request<UpstreamBody>>),
    Sent(hyper::Error),
}

async fn send_over(
    sender: Sender,
    request: Box<Request<UpstreamBody>>,
) -> Result<(Response<Incoming>, Option<Sender>), Failed> {
    match sender {
        Sender::Http1(mut sender) => {
            if sender.ready().await.is_err() {
                return Err(Failed::NotSent(request));
            }
            match sender.try_send_request(*request).await {
                Ok(response) => Ok((response, Some(Sender::Http1(sender)))),
                Err(mut error) => Err(failed(error.take_message(), error.into_error())),
            }
        }
        Sender::Http2(mut sender) => {
            if sender.ready().await.is_err() {
                return Err(Failed::NotSent(request));
            }
            match sender.try_send_request(*request).await {
                Ok(response) => Ok((response, None)),
                Err(mut error) => Err(failed(error.take_message(), error.into_error())),
            }
        }
    }
}

fn failed(back: Option<Request<UpstreamBody>>, error: hyper::Error) -> Failed {
    match back {
        Some(request) => Failed::NotSent(Box::new(request)),
        None => Failed::Sent(error),
    }
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>())
}

/// The same request once more, where sending it twice does what sending it once does (RFC 9110 section 9.2.2) and there is
/// no body that is gone.
fn replay(request: &Request<UpstreamBody>) -> Option<Box<Request<UpstreamBody>>> {
    let idempotent =
        matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
    let body = match request.body() {
        UpstreamBody::Empty => UpstreamBody::Empty,
        UpstreamBody::Whole(bytes) => UpstreamBody::Whole(bytes.clone()),
        UpstreamBody::Passing(_) => return None,
    };
    idempotent.then(|| {
        let mut again = Request::new(body);
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.version_mut() = request.version();
        let headers: &HeaderMap = request.headers();
        *again.headers_mut() = headers.clone();
        Box::new(again)
    })
}

impl Answer {
    /// The status of the answer.
    pub fn status(&self) -> http::StatusCode {
        self.response.status()
    }
}
