//! The listener: connections in, each with its limits, its TLS and its peer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Peer;

/// The TLS in force; asked for each connection, so that a new certificate needs no restart.
pub type CurrentTls = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Most connections to the API at a time.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Most sidecars at a time; each has one connection.
pub const SIDECARS_MAX: usize = 16_384;

/// From accepted to the end of the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// From the first byte of a head to its last, and from a request to the next.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// What is put beside each request of a connection, and for how long the connection lives.
#[derive(Debug, Clone)]
pub struct Greeted<T> {
    /// Beside each request.
    pub mark: T,
    /// How long at most; without it there is no limit.
    pub lives: Option<Duration>,
}

/// Looks at who is at the other end of a connection, or refuses it.
pub type Greet<T> = Arc<dyn Fn(Peer) -> Result<Greeted<T>, String> + Send + Sync>;

/// For the API: calls prove who they are, each by itself.
pub fn anybody() -> Greet<Peer> {
    Arc::new(|mark| Ok(Greeted { mark, lives: None }))
}

/// Serves until `stop`, then lets calls finish for `drain`.
pub async fn serve<T: Clone + Send + Sync + 'static>(
    listener: TcpListener,
    router: Router,
    tls: Option<CurrentTls>,
    greet: Greet<T>,
    connections_max: usize,
    stop: CancellationToken,
    drain: Duration,
) {
    let slots = Arc::new(Semaphore::new(connections_max));
    let calls = TaskTracker::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting lets others close theirs.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
        let greet = Arc::clone(&greet);
        calls.spawn(async move {
            if let Err(error) = connection(stream, address, router, tls, greet, stop).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(slot);
        });
    }
    calls.close();
    let _ = tokio::time::timeout(drain, calls.wait()).await;
}

async fn connection<T: Clone + Send + Sync + 'static>(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    tls: Option<CurrentTls>,
    greet: Greet<T>,
    stop: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let host: Arc<str> = address.ip().to_string().into();
    let greet = |certificates| greet(Peer { host, certificates }).map_err(io::Error::other);
    let Some(tls) = tls else {
        return speak(stream, router, greet(Arc::from([]))?, stop).await;
    };
    let accepting = TlsAcceptor::from(tls()).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_MAX, accepting).await.map_err(io::Error::other)??;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
    speak(stream, router, greet(certificates)?, stop).await
}

async fn speak<S, T>(stream: S, router: Router, greeted: Greeted<T>, stop: CancellationToken) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let Greeted { mark, lives } = greeted;
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(mark.clone());
        request
    });
    let over = async move {
        match lives {
            Some(lives) => tokio::time::sleep(lives).await,
            None => std::future::pending().await,
        }
    };
    let mut over = std::pin::pin!(over);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(64 * 1024).max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(64 * 1024)
        .max_pending_accept_reset_streams(Some(20))
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(10));
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let mut finishing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = over.as_mut() => return Ok(()),
            () = stop.cancelled(), if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
