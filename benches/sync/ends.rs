//! Both ends of a stream: the service behind a listener, and a follower that says when what came is in force.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use leasehold::domain::id::{BackendName, GrantId, Revision};
use leasehold::domain::principal::Principal;
use leasehold::domain::time::{Clock, Timestamp, Uptime, Window};
use leasehold::domain::view::{Change, Snapshot};
use leasehold::sidecar::sync::sink::TableSink;
use leasehold::sync::follower::{About, Follower};
use leasehold::sync::hub::Hub;
use leasehold::sync::server::{Applicant, Enrolled, Failed, Origin, Peer, Use, routes};
use leasehold::sync::stream::Said as Aside;
use leasehold::sync::{Bundle, Sink, Work};
use leasehold::wire::v1::ClientFrame;
use leasehold::wire::v1::policy_sync_client::PolicySyncClient;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::mtls::Mtls;

/// Lets everybody follow, and does nothing else.
struct Open;

impl Origin for Open {
    fn may_follow(&self, _: &Principal, _: &BackendName) -> bool {
        true
    }

    fn moved(&self) -> Work<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn consume(&self, _: Principal, _: GrantId, _: String) -> Work<'_, Result<Use, Failed>> {
        Box::pin(async { Ok(Use::Taken) })
    }

    fn enroll(&self, _: Applicant, _: Bytes) -> Work<'_, Result<Enrolled, Failed>> {
        Box::pin(async { Err(Failed::Forbidden(String::new())) })
    }

    fn said(&self, _: &Principal, _: Aside) {}
}

/// Serves the hub until `stop`.
pub async fn serve(listener: TcpListener, mtls: &Mtls, hub: Arc<Hub>, stop: CancellationToken) {
    let always = Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX };
    let sidecar = Principal::spiffe("spiffe://prod.example/sidecar/bench").unwrap();
    let peer = Some(Peer { sidecar, expires: always.anchor(hub.clock().now()) });
    let router = routes(hub, Arc::new(Open), stop.clone());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&mtls.server));
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let (acceptor, peer) = (acceptor.clone(), peer.clone());
        let service = router.clone().map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request
        });
        tokio::spawn(async move {
            stream.set_nodelay(true).unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
        });
    }
}

/// What a sidecar has in force since a moment.
pub struct Applied {
    pub before: Revision,
    pub revision: Revision,
    pub at: Instant,
}

/// Says when what came is in force; with a table, that of a real sidecar.
pub struct Counting {
    held: AtomicU64,
    say: mpsc::UnboundedSender<Applied>,
    table: Option<TableSink>,
}

impl Counting {
    pub fn new(say: mpsc::UnboundedSender<Applied>) -> Self {
        Self { held: AtomicU64::new(0), say, table: None }
    }

    pub fn over(say: mpsc::UnboundedSender<Applied>, table: TableSink) -> Self {
        Self { table: Some(table), ..Self::new(say) }
    }

    fn now_holds(&self, revision: Revision) {
        let before = Revision(self.held.swap(revision.0, Ordering::Relaxed));
        let _ = self.say.send(Applied { before, revision, at: Instant::now() });
    }
}

impl Sink for Counting {
    fn replace(&self, snapshot: Snapshot) -> Result<(), String> {
        let revision = snapshot.revision;
        if let Some(table) = &self.table {
            table.replace(snapshot)?;
        }
        self.now_holds(revision);
        Ok(())
    }

    fn advance(&self, to: Revision, changes: Vec<Change>) -> Result<(), String> {
        if let Some(table) = &self.table {
            table.advance(to, changes)?;
        }
        self.now_holds(to);
        Ok(())
    }

    fn hurry(&self, _: Vec<(Revision, Change)>) {}

    fn bundle(&self, _: Bundle) -> Result<(), String> {
        Ok(())
    }

    fn prove(&self, _: Uptime) {}
}

/// A sidecar that holds nothing yet.
pub fn follower(number: usize) -> Arc<Mutex<Follower>> {
    let about = About {
        backends: crate::backends(),
        action_maps: std::collections::BTreeSet::new(),
        boot_id: format!("bench-{number}"),
        version: "bench".to_owned(),
        staleness_max: Some(Duration::from_secs(30)),
    };
    Arc::new(Mutex::new(Follower::new(about)))
}

/// What a sidecar says, frame by frame.
struct Said(mpsc::Receiver<ClientFrame>);

impl futures_core::Stream for Said {
    type Item = ClientFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ClientFrame>> {
        self.0.poll_recv(context)
    }
}

/// Follows the server until `stop`, from what is held.
pub async fn follow(
    address: SocketAddr,
    mtls: Arc<Mtls>,
    follower: Arc<Mutex<Follower>>,
    sink: Arc<Counting>,
    stop: CancellationToken,
) {
    let connector = tower::service_fn(move |_: http::Uri| {
        let config = Arc::clone(&mtls.client);
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = rustls::pki_types::ServerName::from(address.ip());
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = PolicySyncClient::new(channel).max_decoding_message_size(16 << 20);
    let (send, receive) = mpsc::channel(16);
    let subscribe = follower.lock().unwrap().subscribe();
    send.send(subscribe).await.unwrap();
    let mut frames = client.sync(Said(receive)).await.unwrap().into_inner();
    let clock = leasehold::app::clock::SystemClock::new();
    let mut ping = tokio::time::interval(Duration::from_secs(2));
    loop {
        let frame = tokio::select! {
            () = stop.cancelled() => return,
            _ = ping.tick() => {
                let ask = follower.lock().unwrap().ping(clock.now().uptime);
                if let Some(ask) = ask {
                    let _ = send.send(ask).await;
                }
                continue;
            }
            frame = frames.message() => frame,
        };
        let Ok(Some(frame)) = frame else { return };
        let ack = {
            let mut follower = follower.lock().unwrap();
            let taken = follower.take(frame, &*sink).unwrap();
            follower.ack().filter(|_| taken.changed)
        };
        if let Some(ack) = ack {
            let _ = send.send(ack).await;
        }
    }
}
