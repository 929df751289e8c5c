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

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 4_096;

/// From accepted to the end of the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// From the first byte of a head to its last, and from a request to the next.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// Serves until `stop`, then lets calls finish for `drain`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<CurrentTls>,
    stop: CancellationToken,
    drain: Duration,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
                tracing::warn!(%error, "a connection to the API could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
        calls.spawn(async move {
            if let Err(error) = connection(stream, address, router, tls, stop).await {
                tracing::debug!(%error, "a connection to the API ended");
            }
            drop(slot);
        });
    }
    calls.close();
    let _ = tokio::time::timeout(drain, calls.wait()).await;
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    tls: Option<CurrentTls>,
    stop: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let host: Arc<str> = address.ip().to_string().into();
    let Some(tls) = tls else {
        return speak(stream, router, Peer { host, certificates: Arc::from([]) }, stop).await;
    };
    let accepting = TlsAcceptor::from(tls()).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_MAX, accepting).await.map_err(io::Error::other)??;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
    speak(stream, router, Peer { host, certificates }, stop).await
}

async fn speak<S>(stream: S, router: Router, peer: Peer, stop: CancellationToken) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
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
            () = stop.cancelled(), if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
