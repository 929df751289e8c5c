//! The answer on its way downstream: what a backend may say to a caller, and the end of a body that outlives its permit.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::body::BodyProgress;
use super::pool::{Pool, PoolKey, Sender};
use super::upstream::Answer;
use crate::sidecar::accept::ResetSwitch;
use crate::sidecar::credential::Lease;
use crate::sidecar::decide::Permit;
use crate::sidecar::decide::live::Watcher;
use crate::sidecar::reason::Reason;
use crate::sidecar::record::Ended;
use crate::sidecar::record::call::CallRecord;

/// What a backend's answers may hold.
#[derive(Debug, Clone)]
pub struct ResponseRules {
    /// Whether `Set-Cookie` passes although a credential was injected.
    pub set_cookie_keep: bool,
    /// Whether answers that hold the injected credential are stopped.
    pub leak_guard: bool,
    /// Trailers that pass, besides those of gRPC.
    pub trailers: Vec<HeaderName>,
}

/// How many bytes of a body the leak guard looks at.
pub const LEAK_BYTES: usize = 64 * 1024;

/// How long a last event has to be written out before the stream is cut.
const LAST_EVENT_GRACE: Duration = Duration::from_millis(5);

/// Takes out of an answer's head what is for the connection, for us, or would tie the caller to our credential.
///
/// # Errors
/// The reason for which the caller must not get this answer.
pub fn filter_head(
    answer: &mut Answer,
    rules: &ResponseRules,
    lease: Option<&Lease>,
    upgrade: bool,
) -> Result<(), Reason> {
    let status = answer.response.status();
    if status == http::StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        answer.sender = None;
        return Err(Reason::UpstreamInvalid);
    }
    let seen = Seen::of(answer.response.headers());
    if seen.transfer_encoding && seen.content_length {
        answer.sender = None;
        return Err(Reason::UpstreamInvalid);
    }
    if seen.connection_authentication {
        // What the connection now stands for belongs to this call alone.
        answer.sender = None;
    }
    if lease.is_some() && matches!(status.as_u16(), 401 | 407) {
        return Err(Reason::UpstreamAuthFailed);
    }
    let headers = answer.response.headers_mut();
    strip(headers, seen.connection, |name| {
        *name == header::PROXY_AUTHENTICATE
            || (lease.is_some()
                && (*name == header::WWW_AUTHENTICATE || (*name == header::SET_COOKIE && !rules.set_cookie_keep)))
    });
    if let Some(lease) = lease {
        let leaks = |(_, value): (&HeaderName, &HeaderValue)| lease.is_in(value.as_bytes());
        if rules.leak_guard && headers.iter().any(leaks) {
            return Err(Reason::LeakGuard);
        }
    }
    Ok(())
}

/// What an answer's head holds that decides what becomes of it, found in one look.
#[derive(Debug, Default)]
struct Seen {
    transfer_encoding: bool,
    content_length: bool,
    connection: bool,
    connection_authentication: bool,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            match *name {
                header::TRANSFER_ENCODING => seen.transfer_encoding = true,
                header::CONTENT_LENGTH => seen.content_length = true,
                header::CONNECTION => seen.connection = true,
                header::WWW_AUTHENTICATE => seen.connection_authentication |= authenticates_connection(value),
                _ => {}
            }
        }
        seen
    }
}

fn authenticates_connection(value: &HeaderValue) -> bool {
    let scheme = value.as_bytes().split(|b| *b == b' ').next().unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
}

/// Takes out what is for the connection, what `Connection` names where there is one, and what `more` names.
fn strip(headers: &mut HeaderMap, connection: bool, more: impl Fn(&HeaderName) -> bool) {
    let mut out: SmallVec<[HeaderName; 4]> = SmallVec::new();
    if connection {
        for value in headers.get_all(header::CONNECTION) {
            let named = value.as_bytes().split(|b| *b == b',');
            out.extend(named.filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok()));
        }
    }
    out.extend(headers.keys().filter(|name| is_hop_by_hop(name) || more(name)).cloned());
    for name in out {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, header::CONNECTION | header::TRANSFER_ENCODING | header::TRAILER | header::UPGRADE | header::TE)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// A body on its way to the caller.
pub enum DownstreamBody {
    /// All of it, from us.
    Whole(Option<Bytes>),
    /// The backend's, as it comes.
    Passing(Box<Passing>),
}

/// How a body that is cut says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// By an end that is none: h1 reset, h2 RST_STREAM.
    Reset,
    /// By gRPC trailers.
    Grpc,
    /// By a last event, where one may begin; then by a reset.
    EventStream,
}

/// The backend's body as it comes, with the permit it comes under.
pub struct Passing {
    inner: Incoming,
    permit: Permit,
    record: Box<CallRecord>,
    manner: Manner,
    reset: ResetSwitch,
    leak: Option<LeakScan>,
    trailers: Vec<HeaderName>,
    keep: Option<Keep>,
    at_event_boundary: bool,
    over: bool,
    /// Set when the body ended before it was whole and must not look as if it were.
    fails: Option<Reason>,
    /// Runs while the last event is written out, because what is cut takes along what was not.
    grace: Option<Pin<Box<Sleep>>>,
}

/// Where the connection goes when the answer is whole.
pub struct Keep {
    /// The worker's pool.
    pub pool: Arc<Pool>,
    /// Whose connection it is.
    pub key: PoolKey,
    /// The connection.
    pub sender: Sender,
    /// The request's body, if one is being sent.
    pub request: Option<Arc<BodyProgress>>,
}

impl Keep {
    fn give_back(self) {
        if self.request.as_ref().is_none_or(|body| body.is_done()) {
            self.pool.keep(self.key, self.sender);
        }
    }
}

/// Looks for the credential in the first bytes of a body.
pub struct LeakScan {
    lease: Arc<Lease>,
    left: usize,
    carry: BytesMut,
}

impl LeakScan {
    /// A scan for what the lease put on the request.
    pub fn new(lease: Arc<Lease>) -> Self {
        Self { lease, left: LEAK_BYTES, carry: BytesMut::new() }
    }

    /// Whether the credential is in what came so far, up to the limit.
    fn finds_in(&mut self, piece: &[u8]) -> bool {
        if self.left == 0 {
            return false;
        }
        let piece = &piece[..piece.len().min(self.left)];
        self.left -= piece.len();
        if self.lease.is_in(piece) {
            return true;
        }
        let overlap = self.lease.overlap();
        if !self.carry.is_empty() {
            self.carry.extend_from_slice(&piece[..piece.len().min(overlap)]);
            if self.lease.is_in(&self.carry) {
                return true;
            }
        }
        if piece.len() >= overlap {
            self.carry.clear();
            self.carry.extend_from_slice(&piece[piece.len() - overlap..]);
        } else {
            if self.carry.is_empty() {
                self.carry.extend_from_slice(piece);
            }
            let surplus = self.carry.len().saturating_sub(overlap);
            bytes::Buf::advance(&mut self.carry, surplus);
        }
        false
    }
}

/// An answer that ends before it is whole.
#[derive(Debug)]
pub struct Cut {
    reason: Reason,
    /// What hyper looks for to choose the code of RST_STREAM.
    stream: h2::Error,
}

impl Cut {
    fn new(reason: Reason) -> Self {
        Self { reason, stream: h2::Error::from(h2::Reason::CANCEL) }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer was cut: {}", self.reason)
    }
}

impl Error for Cut {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.stream)
    }
}

/// What a [`Passing`] body is made of.
pub struct PassingParts {
    /// The backend's body.
    pub inner: Incoming,
    /// The permit it comes under.
    pub permit: Permit,
    /// The record of the call.
    pub record: Box<CallRecord>,
    /// How it says that it was cut.
    pub manner: Manner,
    /// The caller's connection.
    pub reset: ResetSwitch,
    /// The search for the credential.
    pub leak: Option<LeakScan>,
    /// Trailers that pass.
    pub trailers: Vec<HeaderName>,
    /// The backend's connection.
    pub keep: Option<Keep>,
}

impl DownstreamBody {
    /// A body from us.
    pub fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }

    /// The backend's body. One that is over already gives its connection back at once.
    pub fn passing(parts: PassingParts) -> Self {
        let PassingParts { inner, permit, record, manner, reset, leak, trailers, keep } = parts;
        let mut passing = Box::new(Passing {
            inner,
            permit,
            record,
            manner,
            reset,
            leak,
            trailers,
            keep,
            at_event_boundary: true,
            over: false,
            fails: None,
            grace: None,
        });
        if passing.inner.is_end_stream() {
            passing.complete();
        }
        Self::Passing(passing)
    }
}

impl DownstreamBody {
    /// Takes in all of a short body before anything of it is passed on, so that a refusal can stand in its place.
    ///
    /// # Errors
    /// Why the caller must not get it, and the record of the call.
    pub async fn gather(self) -> Result<Self, (Reason, Box<CallRecord>)> {
        let Self::Passing(mut passing) = self else { return Ok(self) };
        let mut all = Bytes::new();
        while !passing.over {
            match std::future::poll_fn(|cx| passing.poll_piece(cx)).await {
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        all = joined(all, piece);
                    }
                }
                Some(Err(cut)) => return Err((cut.reason, passing.record)),
                None => break,
            }
        }
        Ok(Self::Whole(Some(all)))
    }
}

/// Two pieces of a body as one; most short bodies come in one.
fn joined(first: Bytes, then: Bytes) -> Bytes {
    if first.is_empty() {
        return then;
    }
    let mut all = BytesMut::from(first);
    all.extend_from_slice(&then);
    all.freeze()
}

impl Passing {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(reason) = self.permit.poll_ended(Watcher::ResponseBody, cx.waker()) {
            return self.cut(reason, Ended::Cut(reason));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_trailers() {
                Ok(trailers) => self.trailers(trailers),
                Err(frame) => self.data(frame),
            },
            Poll::Ready(Some(Err(_))) => self.cut(Reason::UpstreamTruncated, Ended::UpstreamTruncated),
        }
    }

    fn complete(&mut self) {
        if !self.over {
            self.over = true;
            self.record.end(Ended::Complete);
            if let Some(keep) = self.keep.take() {
                keep.give_back();
            }
        }
    }

    /// Ends the body before it is whole, as the protocol can say it.
    fn cut(&mut self, reason: Reason, ended: Ended) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.over = true;
        self.keep = None;
        self.record.end(ended);
        match self.manner {
            Manner::Grpc => Poll::Ready(Some(Ok(Frame::trailers(grpc_trailers(reason))))),
            Manner::EventStream if self.at_event_boundary => {
                let event = format!("event: leasehold.ended\ndata: {{\"reason\":\"{reason}\"}}\n\n");
                self.fails = Some(reason);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(event)))))
            }
            Manner::Reset | Manner::EventStream => Poll::Ready(Some(Err(Cut::new(reason)))),
        }
    }

    fn data(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let piece = frame.data_ref().map_or(&[][..], |data| data);
        if self.leak.as_mut().is_some_and(|scan| scan.finds_in(piece)) {
            return self.cut(Reason::LeakGuard, Ended::Cut(Reason::LeakGuard));
        }
        self.record.sent(piece.len() as u64);
        if self.manner == Manner::EventStream {
            self.at_event_boundary = piece.ends_with(b"\n\n") || piece.ends_with(b"\r\n\r\n");
        }
        if self.inner.is_end_stream() {
            self.complete();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn trailers(&mut self, mut given: HeaderMap) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let grpc = self.manner == Manner::Grpc;
        let passes = |name: &HeaderName| grpc || self.trailers.contains(name);
        let out: Vec<_> = given.keys().filter(|name| !passes(name)).cloned().collect();
        for name in out {
            given.remove(name);
        }
        given.remove(header::SET_COOKIE);
        if let Some(scan) = &self.leak
            && given.values().any(|value| scan.lease.is_in(value.as_bytes()))
        {
            return self.cut(Reason::LeakGuard, Ended::Cut(Reason::LeakGuard));
        }
        self.complete();
        if given.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(Frame::trailers(given)))) }
    }
}

/// What a gRPC caller is told when a call ends early.
pub fn grpc_trailers(reason: Reason) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from_static(grpc_status(reason)));
    trailers.insert("grpc-message", HeaderValue::from_static(reason.as_str()));
    trailers
}

/// The gRPC status of a reason.
pub fn grpc_status(reason: Reason) -> &'static str {
    match reason.status().as_u16() {
        401 => "16",
        403 => "7",
        408 | 504 => "4",
        413 | 429 => "8",
        400 | 405 | 414 | 415 | 417 | 421 | 431 => "3",
        502 | 503 => "14",
        _ => "13",
    }
}

impl Body for DownstreamBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let passing = match self.get_mut() {
            Self::Whole(bytes) => {
                return Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))));
            }
            Self::Passing(passing) => passing,
        };
        if passing.over {
            let Some(reason) = passing.fails else { return Poll::Ready(None) };
            let grace = passing.grace.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_EVENT_GRACE)));
            ready!(grace.as_mut().poll(cx));
            // An event stream that said why it ends must still not look whole.
            passing.fails = None;
            passing.reset.set();
            return Poll::Ready(Some(Err(Cut::new(reason))));
        }
        let polled = passing.poll_piece(cx);
        if let Poll::Ready(Some(Err(_))) = &polled {
            passing.reset.set();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Passing(passing) => passing.over && passing.fails.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Passing(passing) => passing.inner.size_hint(),
        }
    }
}
