//! The request's body on its way upstream: counted, limited, and ended with the permit.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::domain::time::Clock;
use crate::sidecar::decide::Subject;
use crate::sidecar::decide::live::{LiveCall, Watcher};
use crate::sidecar::reason::Reason;

/// How a body may come in.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Most bytes.
    pub bytes_max: u64,
    /// Most bytes that are read whole, to compare them with what a grant is bound to.
    pub arguments_max: usize,
    /// Longest pause between two pieces.
    pub pause_max: Duration,
    /// Fewest bytes a second, averaged, once [`RATE_GRACE`] has passed; 0 is no limit.
    pub rate_min: u64,
    /// How long the backend may be silent after it took a piece.
    pub answer_within: Duration,
}

/// How long a body may be slow before its rate counts.
pub const RATE_GRACE: Duration = Duration::from_secs(5);

/// Why a request's body is not sent on.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the request's body ended: {0}")]
pub struct BodyEnded(pub Reason);

/// What is known of a body once it is on its way.
#[derive(Debug, Default)]
pub struct BodyProgress {
    bytes: AtomicU64,
    done: AtomicBool,
}

impl BodyProgress {
    /// How many bytes went through.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether all of it did.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// A request's body as it is sent upstream.
#[derive(Debug)]
pub enum UpstreamBody {
    /// There is none.
    Empty,
    /// It was read to be decided on; exactly these bytes are sent.
    Whole(Option<Bytes>),
    /// It is passed on as it comes.
    Passing(Box<Passing>),
}

/// A body that is passed on as it comes.
#[derive(Debug)]
pub struct Passing {
    inner: Incoming,
    call: Arc<LiveCall<Subject>>,
    limits: BodyLimits,
    progress: Arc<BodyProgress>,
    clock: Arc<dyn Clock>,
    started: Instant,
    pause: Option<Pin<Box<Sleep>>>,
}

impl UpstreamBody {
    /// A body that is passed on as it comes and ends with the call.
    pub fn passing(
        inner: Incoming,
        call: Arc<LiveCall<Subject>>,
        limits: BodyLimits,
        progress: Arc<BodyProgress>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let started = Instant::now();
        Self::Passing(Box::new(Passing { inner, call, limits, progress, clock, started, pause: None }))
    }
}

impl Passing {
    fn refuse(&self, reason: Reason) -> Poll<Option<Result<Frame<Bytes>, BodyEnded>>> {
        // The call learns of it too: what waits for the answer must not wait on.
        self.call.end(reason);
        Poll::Ready(Some(Err(BodyEnded(reason))))
    }

    fn is_too_slow(&self, bytes: u64) -> bool {
        let elapsed = self.started.elapsed();
        self.limits.rate_min > 0
            && elapsed > RATE_GRACE
            && u128::from(bytes) * 1_000 < u128::from(self.limits.rate_min) * elapsed.as_millis()
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyEnded>>> {
        if let Some(reason) = self.call.poll_ended(Watcher::RequestBody, cx.waker()) {
            return Poll::Ready(Some(Err(BodyEnded(reason))));
        }
        let polled = loop {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                // Trailers of a request are not passed on: nothing was decided about them.
                Poll::Ready(Some(Ok(frame))) if !frame.is_data() => {}
                other => break other,
            }
        };
        match polled {
            Poll::Ready(None) => {
                self.progress.done.store(true, Ordering::Release);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.pause = None;
                // It is alive: what it is waited for begins anew.
                self.call.wait_until(self.clock.now().uptime.plus(self.limits.answer_within));
                let piece = frame.data_ref().map_or(0, |data| data.len() as u64);
                let bytes = self.progress.bytes.fetch_add(piece, Ordering::Relaxed) + piece;
                if bytes > self.limits.bytes_max {
                    return self.refuse(Reason::BodyTooLarge);
                }
                if self.is_too_slow(bytes) {
                    return self.refuse(Reason::BodyTimeout);
                }
                if self.inner.is_end_stream() {
                    self.progress.done.store(true, Ordering::Release);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.refuse(if is_gone(&error) { Reason::CallerGone } else { Reason::Malformed })
            }
            Poll::Pending => {
                let limit = self.limits.pause_max;
                let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(pause.as_mut().poll(cx));
                self.refuse(Reason::BodyTimeout)
            }
        }
    }
}

/// Whether a body ended because its sender went away, and not because of what it sent.
fn is_gone(error: &hyper::Error) -> bool {
    use std::io::ErrorKind;
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return true;
    }
    let Some(cause) = std::error::Error::source(error) else { return false };
    if let Some(cause) = cause.downcast_ref::<h2::Error>() {
        return cause.is_remote() || cause.is_io();
    }
    // A chunk that is none comes as `InvalidInput` or `InvalidData`.
    cause.downcast_ref::<std::io::Error>().is_some_and(|cause| {
        !matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::Other)
    })
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyEnded;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyEnded>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Passing(passing) => passing.poll_piece(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Passing(passing) => passing.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Passing(passing) => passing.inner.size_hint(),
        }
    }
}
