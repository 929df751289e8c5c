//! A connection from a caller as hyper reads and writes it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::ResetSwitch;
use crate::sidecar::accept::Limits;

/// An accepted socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Socket {
    /// Makes closing it a reset: what was cut must not look as if it ended.
    fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // A socket that cannot be told is closed in the ordinary way.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A connection from a caller.
#[derive(Debug)]
pub struct CallerIo {
    stream: Layer,
    /// Bytes that were read to tell the protocol and are still to be taken.
    prefix: Prefix,
    reset: ResetSwitch,
    pulse: Option<Arc<Pulse>>,
}

/// What a connection is doing, for whoever closes those that do nothing or are too slow.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    calls: AtomicUsize,
    /// Milliseconds from `began` to the first byte of a head that is still incomplete; negative if there is none.
    head_since: AtomicI64,
    /// Milliseconds from `began` to the end of the last call.
    idle_since: AtomicI64,
}

const NO_HEAD: i64 = -1;

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

impl Pulse {
    /// Of a connection that was opened now.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            calls: AtomicUsize::new(0),
            head_since: AtomicI64::new(NO_HEAD),
            idle_since: AtomicI64::new(0),
        }
    }

    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn read(&self) {
        if self.calls.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == NO_HEAD {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A head is complete: a call begins. It ends when what is returned is dropped.
    pub fn call(self: &Arc<Self>) -> RunningCall {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(NO_HEAD, Ordering::Relaxed);
        RunningCall(Arc::clone(self))
    }

    /// Whether a head took too long, or nothing happened for too long.
    pub fn is_overdue(&self, limits: &Limits) -> bool {
        if self.calls.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let now = self.now();
        let over = |since: i64, limit: Duration| {
            i64::try_from(limit.as_millis()).is_ok_and(|limit| now.saturating_sub(since) > limit)
        };
        let head = self.head_since.load(Ordering::Relaxed);
        (head != NO_HEAD && over(head, limits.head)) || over(self.idle_since.load(Ordering::Relaxed), limits.idle)
    }
}

/// A call that keeps its connection from being idle.
#[derive(Debug)]
pub struct RunningCall(Arc<Pulse>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RunningCall {
    /// Lets the call last as long as its body.
    pub fn carry<B>(self, body: B) -> CarriedBody<B> {
        CarriedBody { body, _call: self }
    }
}

/// A body that keeps its connection from being idle.
#[derive(Debug)]
pub struct CarriedBody<B> {
    body: B,
    _call: RunningCall,
}

impl<B: Body + Unpin> Body for CarriedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug)]
enum Layer {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// The client's connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Default)]
struct Prefix {
    bytes: [u8; 24],
    from: u8,
    to: u8,
}

impl Prefix {
    /// Gives what waits, or as much of it as there is room for. Returns whether there was any.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let waiting = &self.bytes[usize::from(self.from)..usize::from(self.to)];
        let taken = waiting.len().min(buf.remaining());
        buf.put_slice(&waiting[..taken]);
        self.from += u8::try_from(taken).unwrap_or(0);
        taken > 0
    }
}

impl CallerIo {
    /// A connection without TLS.
    pub fn plain(socket: Socket, reset: ResetSwitch) -> Self {
        Self { stream: Layer::Plain(socket), prefix: Prefix::default(), reset, pulse: None }
    }

    /// A connection with TLS.
    pub fn tls(stream: TlsStream<Socket>, reset: ResetSwitch) -> Self {
        Self { stream: Layer::Tls(Box::new(stream)), prefix: Prefix::default(), reset, pulse: None }
    }

    /// Reads until the bytes are those of the HTTP/2 preface or cannot be any more, and says whether they are. What was
    /// read is given to the next reader.
    ///
    /// # Errors
    /// The connection failed or ended before its first byte.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        let mut bytes = [0; PREFACE.len()];
        let mut filled = 0;
        while filled < bytes.len() {
            let read = self.read(&mut bytes[filled..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if bytes[..filled] != PREFACE[..filled] {
                break;
            }
        }
        self.prefix = Prefix { bytes, from: 0, to: u8::try_from(filled).unwrap_or(0) };
        Ok(filled == PREFACE.len() && bytes == *PREFACE)
    }

    /// From now on what is read is told to `pulse`.
    pub fn beat(&mut self, pulse: Arc<Pulse>) {
        if self.prefix.from < self.prefix.to {
            pulse.read();
        }
        self.pulse = Some(pulse);
    }

    fn socket(&self) -> &Socket {
        match &self.stream {
            Layer::Plain(socket) => socket,
            Layer::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl Drop for CallerIo {
    fn drop(&mut self) {
        if self.reset.is_set() {
            self.socket().reset_on_close();
        }
    }
}

macro_rules! on {
    ($target:expr, $kind:ident :: $a:ident | $b:ident, $stream:ident => $call:expr) => {
        match $target {
            $kind::$a($stream) => $call,
            $kind::$b($stream) => $call,
        }
    };
}

impl AsyncRead for CallerIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let had_waiting = this.prefix.give(buf);
        if had_waiting && buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What comes after the prefix is read along with it: a reader that is given a few bytes of a head first makes its
        // buffer twice as large, for as long as the connection is open.
        let polled = on!(&mut this.stream, Layer::Plain | Tls, stream => Pin::new(stream).poll_read(cx, buf));
        let polled = if had_waiting && polled.is_pending() { Poll::Ready(Ok(())) } else { polled };
        if let (true, Some(pulse)) = (polled.is_ready(), &this.pulse) {
            pulse.read();
        }
        polled
    }
}

impl AsyncWrite for CallerIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on!(&mut self.get_mut().stream, Layer::Plain | Tls, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(&mut self.get_mut().stream, Layer::Plain | Tls, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(&mut self.get_mut().stream, Layer::Plain | Tls, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.reset.is_set() {
            // No orderly end: dropping the socket resets it.
            return Poll::Ready(Ok(()));
        }
        on!(&mut this.stream, Layer::Plain | Tls, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on!(self.get_mut(), Self::Tcp | Unix, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on!(self.get_mut(), Self::Tcp | Unix, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(self.get_mut(), Self::Tcp | Unix, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self.get_mut(), Self::Tcp | Unix, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self.get_mut(), Self::Tcp | Unix, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn connected(said: &[u8]) -> (UnixStream, CallerIo) {
        let (mut caller, here) = UnixStream::pair().unwrap();
        caller.write_all(said).await.unwrap();
        (caller, CallerIo::plain(Socket::Unix(here), ResetSwitch::default()))
    }

    #[tokio::test]
    async fn what_told_the_protocol_is_read_along_with_what_follows() {
        for said in [&b"GET /things/x HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more"] {
            let (_caller, mut io) = connected(said).await;
            assert_eq!(io.speaks_http2().await.unwrap(), said.starts_with(b"PRI"));
            let mut bytes = [0; 100];
            let read = io.read(&mut bytes).await.unwrap();
            assert_eq!(&bytes[..read], said);
        }
    }

    #[tokio::test]
    async fn what_told_the_protocol_does_not_wait_for_what_follows() {
        let (mut caller, mut io) = connected(b"GET ").await;
        assert!(!io.speaks_http2().await.unwrap());
        let mut bytes = [0; 3];
        assert_eq!((io.read(&mut bytes).await.unwrap(), &bytes), (3, b"GET"));
        assert_eq!((io.read(&mut bytes).await.unwrap(), bytes[0]), (1, b' '));
        caller.write_all(b"/").await.unwrap();
        assert_eq!((io.read(&mut bytes).await.unwrap(), bytes[0]), (1, b'/'));
        drop(caller);
        assert_eq!(io.read(&mut bytes).await.unwrap(), 0);
    }
}
