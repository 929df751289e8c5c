//! A server of the protocol, for tests: a hub whose truth the test states, and ways to misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use leasehold::app::clock::SystemClock;
use leasehold::domain::principal::Principal;
use leasehold::domain::time::Clock;
use leasehold::domain::view::{Change, Snapshot};
use leasehold::sync::Sink;
use leasehold::sync::hub::Hub;
use leasehold::sync::stream::{Said, Stream};
use leasehold::wire::v1;
use leasehold::wire::v1::policy_sync_server::{PolicySync, PolicySyncServer};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, Streaming};

use crate::common::wait_for;

/// How a server answers, and what it was asked.
#[derive(Default)]
pub struct Manner {
    /// Pings are never answered, though everything else is said.
    pub deaf: AtomicBool,
    /// Nothing is said at all.
    pub mute: AtomicBool,
    /// Streams are refused.
    pub refuse: AtomicBool,
    /// Sent in place of what is true.
    pub script: Mutex<Vec<v1::ServerFrame>>,
    /// First frames of all streams.
    pub subscribed: Mutex<Vec<v1::Subscribe>>,
    /// What was said of uses: calls of each grant.
    pub activity: Mutex<BTreeMap<String, u64>>,
    /// What was said of bundles that cannot be used: the name and why.
    pub unusable: Mutex<Vec<(String, String)>>,
    /// Uses taken: grant and use.
    pub taken: Mutex<BTreeSet<(String, String)>>,
    /// Uses of any grant before it is used up.
    pub uses_max: AtomicUsize,
    /// Uses are taken, and the answer is lost.
    pub lose_answers: AtomicBool,
    /// Who connected, by certificate.
    pub shown: Mutex<Vec<Vec<u8>>>,
}

pub struct Server {
    pub address: SocketAddr,
    pub hub: Arc<Hub>,
    pub manner: Arc<Manner>,
    runtime: Option<Runtime>,
}

impl Server {
    pub fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), tls)
    }

    pub fn start_at(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        let server = Self::open(address, tls);
        let asked = Arc::clone(&server.hub);
        server.runtime.as_ref().unwrap().spawn(async move {
            loop {
                asked.asked().await;
                asked.prove(asked.clock().now().uptime);
            }
        });
        server
    }

    /// One that proves nothing by itself: a source does that.
    pub fn relaying() -> Self {
        Self::open("127.0.0.1:0".parse().unwrap(), None)
    }

    fn open(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (hub, manner) = (Arc::new(Hub::new(clock)), Arc::new(Manner::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Whoever had the address a moment ago may still be about to give it up.
        let listener = wait_for("the address", || runtime.block_on(TcpListener::bind(address)).ok());
        let address = listener.local_addr().unwrap();
        let service = Service { hub: Arc::clone(&hub), manner: Arc::clone(&manner) };
        runtime.spawn(accept(listener, tls, service));
        Self { address, hub, manner, runtime: Some(runtime) }
    }

    /// States everything.
    pub fn state(&self, snapshot: Snapshot) {
        self.hub.replace(snapshot).unwrap();
        self.hub.prove(self.hub.clock().now().uptime);
    }

    /// States one more change.
    pub fn change(&self, change: Change) {
        let next = self.hub.head().unwrap().0 + 1;
        self.hub.advance(leasehold::domain::id::Revision(next), vec![change]).unwrap();
    }

    /// Waits until everybody who is connected enforces all of it.
    #[track_caller]
    pub fn enforced(&self) {
        let head = self.hub.head().unwrap();
        wait_for("all to be enforced", || {
            let sessions = self.hub.sessions();
            let mut open = sessions.iter().filter(|session| session.is_connected()).peekable();
            (open.peek().is_some() && open.all(|session| session.enforces(head))).then_some(())
        });
    }

    /// Ends it at once, with all of its connections.
    pub fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, service: Service) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, service) = (tls.clone(), service.clone());
        tokio::spawn(async move {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let manner = Arc::clone(&service.manner);
            let service = TowerToHyperService::new(PolicySyncServer::new(service));
            match tls {
                None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                Some(tls) => {
                    let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
                    manner.shown.lock().unwrap().push(shown);
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                }
            }
        });
    }
}

#[derive(Clone)]
struct Service {
    hub: Arc<Hub>,
    manner: Arc<Manner>,
}

pub struct Frames(mpsc::Receiver<Result<v1::ServerFrame, Status>>);

impl futures_core::Stream for Frames {
    type Item = Result<v1::ServerFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[tonic::async_trait]
impl PolicySync for Service {
    type SyncStream = Frames;

    async fn sync(&self, request: Request<Streaming<v1::ClientFrame>>) -> Result<Response<Frames>, Status> {
        if self.manner.refuse.load(Ordering::SeqCst) {
            return Err(Status::permission_denied("not you"));
        }
        let mut said = request.into_inner();
        let Some(v1::ClientFrame { frame: Some(v1::client_frame::Frame::Subscribe(subscribe)) }) =
            said.message().await?
        else {
            return Err(Status::invalid_argument("subscribe first"));
        };
        self.manner.subscribed.lock().unwrap().push(subscribe.clone());
        let sidecar = Principal::parse("spiffe://test.example/sidecar").unwrap();
        let stream = Stream::open(Arc::clone(&self.hub), sidecar, subscribe, |_, _| true)
            .map_err(|refused| Status::permission_denied(refused.to_string()))?;
        let (out, frames) = mpsc::channel(4);
        tokio::spawn(serve(stream, said, out, Arc::clone(&self.manner), Arc::clone(&self.hub)));
        Ok(Response::new(Frames(frames)))
    }

    async fn consume(&self, request: Request<v1::ConsumeRequest>) -> Result<Response<v1::ConsumeReply>, Status> {
        let v1::ConsumeRequest { grant, use_id } = request.into_inner();
        let most = self.manner.uses_max.load(Ordering::SeqCst);
        let outcome = {
            let mut taken = self.manner.taken.lock().unwrap();
            let used = taken.iter().filter(|(of, _)| *of == grant).count();
            let again = taken.contains(&(grant.clone(), use_id.clone()));
            if !again && used >= most {
                v1::consume_reply::Outcome::Exhausted
            } else {
                taken.insert((grant, use_id));
                v1::consume_reply::Outcome::Taken
            }
        };
        if self.manner.lose_answers.load(Ordering::SeqCst) {
            return Err(Status::unavailable("the answer was lost"));
        }
        Ok(Response::new(v1::ConsumeReply { outcome: outcome.into() }))
    }

    async fn enroll(&self, _: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

async fn serve(
    mut stream: Stream,
    mut said: Streaming<v1::ClientFrame>,
    out: mpsc::Sender<Result<v1::ServerFrame, Status>>,
    manner: Arc<Manner>,
    hub: Arc<Hub>,
) {
    let session = Arc::clone(stream.session());
    let clock = Arc::clone(hub.clock());
    let script = std::mem::take(&mut *manner.script.lock().unwrap());
    for frame in script {
        let _ = out.send(Ok(frame)).await;
    }
    'open: loop {
        while !manner.mute.load(Ordering::SeqCst) {
            let Some(frame) = stream.next(clock.now()) else { break };
            let is_pong = matches!(frame.frame, Some(v1::server_frame::Frame::Pong(_)));
            if is_pong && manner.deaf.load(Ordering::SeqCst) {
                continue;
            }
            if out.send(Ok(frame)).await.is_err() {
                break 'open;
            }
        }
        tokio::select! {
            () = session.woken() => {}
            () = out.closed() => break,
            frame = said.message() => match frame {
                Ok(Some(frame)) => match stream.take(frame, clock.now().uptime) {
                    Ok(news) => {
                        let mut activity = manner.activity.lock().unwrap();
                        for said in news {
                            match said {
                                Said::Used { grant, calls, .. } => {
                                    *activity.entry(grant.to_string()).or_default() += calls;
                                }
                                Said::Unusable { bundle, error, .. } => {
                                    manner.unusable.lock().unwrap().push((bundle, error));
                                }
                            }
                        }
                    }
                    Err(refused) => {
                        let _ = out.send(Err(Status::invalid_argument(refused.to_string()))).await;
                        break;
                    }
                },
                _ => break,
            },
        }
    }
    stream.close(clock.now().uptime);
}
