//! The service that sidecars and relays follow: a hub and what it does not know, over gRPC.
//!
//! One task a stream. It sends whatever the stream says next as long as the peer has room for it, and sleeps until the
//! session is woken, a frame comes, or the right to follow is to be looked at again. Who the peer is, the listener has put
//! beside each request (an `Option` of a [`Peer`]); no field of a message says it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Work;
use super::hub::Hub;
use super::renewal::SignedRenewal;
use super::stream::{Refused, Said, Stream};
use crate::domain::id::{BackendName, GrantId};
use crate::domain::principal::Principal;
use crate::domain::time::{Anchored, Position};
use crate::wire::v1::policy_sync_server::{PolicySync, PolicySyncServer};
use crate::wire::{Unreadable, v1};

/// Who is at the other end of a connection, by the certificate it showed.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who.
    pub sidecar: Principal,
    /// Until when the certificate proves it. A stream ends then; whoever renews in time connects again before.
    pub expires: Anchored,
}

/// What came of asking for a use of a counted grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It was taken, now or when the same use was asked for before.
    Taken,
    /// All uses were taken before.
    Exhausted,
    /// The grant is over.
    Ended,
}

/// A certificate that was signed for a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The certificate and its issuers, DER, leaf first.
    pub certificates: Vec<Bytes>,
    /// Whom the sidecar believes, DER.
    pub roots: Vec<Bytes>,
}

/// For whom a certificate is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applicant {
    /// For whom this join token was made.
    Joins(String),
    /// Who shows a certificate that is good still.
    Shows(Principal),
    /// Whose certificate is in what was signed; the principal is whoever passes it on, or the same.
    Signed(Principal, SignedRenewal),
}

/// Why the origin does not do what a sidecar asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The sidecar may not.
    #[error("{0}")]
    Forbidden(String),
    /// What it sent says nothing that can be done.
    #[error("{0}")]
    Invalid(String),
    /// Not now: the same may be asked again.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Forbidden(said) => Self::permission_denied(said),
            Failed::Invalid(said) => Self::invalid_argument(said),
            Failed::Unavailable(said) => Self::unavailable(said),
        }
    }
}

/// What a server does not know by itself. A control plane answers it; a relay passes it on.
pub trait Origin: Send + Sync + 'static {
    /// Whether a sidecar may follow a backend.
    fn may_follow(&self, sidecar: &Principal, backend: &BackendName) -> bool;
    /// Returns when [`Origin::may_follow`] may answer otherwise than when this was called.
    fn moved(&self) -> Work<'static, ()>;
    /// Takes a use of a counted grant: at most once for each `use_id`.
    fn consume(&self, sidecar: Principal, grant: GrantId, use_id: String) -> Work<'_, Result<Use, Failed>>;
    /// Signs a certificate for the key of a request; what was signed holds a request of its own.
    fn enroll(&self, applicant: Applicant, csr: Bytes) -> Work<'_, Result<Enrolled, Failed>>;
    /// A sidecar says something that is not about its stream.
    fn said(&self, sidecar: &Principal, said: Said);
}

/// Largest message of a sidecar.
const MESSAGE_MAX: usize = 1 << 20;

/// Frames that are made before the connection has room for them: what is said later is truer.
const FRAMES_AHEAD: usize = 4;

/// How long a new stream may wait with its first frame.
const SUBSCRIBE_WITHIN: Duration = Duration::from_secs(10);

/// How often the right to follow is looked at, whatever is heard.
const CHECK_EVERY: Duration = Duration::from_secs(3);

/// How long room for a last word is waited for.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);

/// When a sidecar comes back after a farewell, at the earliest.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The service.
struct Server<O> {
    hub: Arc<Hub>,
    origin: Arc<O>,
    stop: CancellationToken,
}

/// The service as routes. Its streams say farewell and end at `stop`.
pub fn routes<O: Origin>(hub: Arc<Hub>, origin: Arc<O>, stop: CancellationToken) -> axum::Router {
    let service = PolicySyncServer::new(Server { hub, origin, stop }).max_decoding_message_size(MESSAGE_MAX);
    tonic::service::Routes::new(service).prepare().into_axum_router()
}

impl<O> Server<O> {
    /// Who asks.
    fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Option<Peer>>().cloned().flatten();
        let peer = peer.ok_or_else(|| Status::unauthenticated("show a sidecar's certificate"))?;
        if self.is_over(&peer) {
            return Err(Status::unauthenticated("the certificate of this connection is over: connect with a new one"));
        }
        Ok(peer)
    }

    fn is_over(&self, peer: &Peer) -> bool {
        peer.expires.position(self.hub.clock().now()) == Position::After
    }
}

#[tonic::async_trait]
impl<O: Origin> PolicySync for Server<O> {
    type SyncStream = Frames;

    async fn sync(&self, request: Request<Streaming<v1::ClientFrame>>) -> Result<Response<Frames>, Status> {
        let peer = self.peer(&request)?;
        let mut incoming = request.into_inner();
        // Made before the first look, so that what changes in between is looked at again.
        let moved = self.origin.moved();
        let first = timeout(SUBSCRIBE_WITHIN, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no frame came"))??;
        let Some(v1::client_frame::Frame::Subscribe(subscribe)) = first.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("the first frame of a stream is `subscribe`"));
        };
        let may = |sidecar: &Principal, backend: &BackendName| self.origin.may_follow(sidecar, backend);
        let stream = Stream::open(Arc::clone(&self.hub), peer.sidecar.clone(), subscribe, may)
            .map_err(|refused| refusal(&peer.sidecar, &refused))?;
        let backends = stream.session().backends.len();
        tracing::info!(sidecar = %peer.sidecar, boot_id = stream.session().boot_id, backends, "a sidecar follows");
        let (out, frames) = mpsc::channel(FRAMES_AHEAD);
        let open = Open { stream, hub: Arc::clone(&self.hub) };
        let driver = Driver { open, peer, origin: Arc::clone(&self.origin), stop: self.stop.clone() };
        tokio::spawn(driver.run(incoming, out, moved));
        Ok(Response::new(Frames(frames)))
    }

    async fn consume(&self, request: Request<v1::ConsumeRequest>) -> Result<Response<v1::ConsumeReply>, Status> {
        let peer = self.peer(&request)?;
        let asked = request.into_inner();
        let grant = GrantId::new(&asked.grant).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if asked.use_id.is_empty() || asked.use_id.len() > 128 {
            return Err(Status::invalid_argument("`use_id` has 1 to 128 bytes"));
        }
        let outcome = match self.origin.consume(peer.sidecar, grant, asked.use_id).await? {
            Use::Taken => v1::consume_reply::Outcome::Taken,
            Use::Exhausted => v1::consume_reply::Outcome::Exhausted,
            Use::Ended => v1::consume_reply::Outcome::Ended,
        };
        Ok(Response::new(v1::ConsumeReply { outcome: outcome.into() }))
    }

    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
        let peer = self.peer(&request);
        let v1::EnrollRequest { csr, join_token, renewal } = request.into_inner();
        let applicant = match renewal {
            // A token says for whom it was made; whatever certificate is shown beside it says nothing.
            _ if !join_token.is_empty() => Applicant::Joins(join_token),
            None => Applicant::Shows(peer?.sidecar),
            Some(renewal) => {
                let signed = renewal.try_into();
                let signed = signed.map_err(|error: Unreadable| Status::invalid_argument(error.to_string()));
                Applicant::Signed(peer?.sidecar, signed?)
            }
        };
        let Enrolled { certificates, roots } = self.origin.enroll(applicant, csr).await?;
        Ok(Response::new(v1::EnrollReply { certificates, roots }))
    }
}

fn refusal(sidecar: &Principal, refused: &Refused) -> Status {
    tracing::warn!(%sidecar, error = %refused, "a sidecar's stream is refused");
    match refused {
        Refused::NotYours { .. } => Status::permission_denied(refused.to_string()),
        Refused::Unreadable(_) => Status::invalid_argument(refused.to_string()),
        Refused::TooMuch(_) => Status::resource_exhausted(refused.to_string()),
    }
}

/// What a stream answers, frame by frame.
struct Frames(mpsc::Receiver<Result<v1::ServerFrame, Status>>);

impl futures_core::Stream for Frames {
    type Item = Result<v1::ServerFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// A stream that is closed whatever becomes of its task.
struct Open {
    stream: Stream,
    hub: Arc<Hub>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stream.close(self.hub.clock().now().uptime);
    }
}

/// Drives one stream.
struct Driver<O> {
    open: Open,
    peer: Peer,
    origin: Arc<O>,
    stop: CancellationToken,
}

type Out = mpsc::Sender<Result<v1::ServerFrame, Status>>;

impl<O: Origin> Driver<O> {
    async fn run(mut self, incoming: Streaming<v1::ClientFrame>, out: Out, moved: Work<'static, ()>) {
        let sidecar = self.peer.sidecar.clone();
        match self.serve(incoming, &out, moved).await {
            Ok(()) => tracing::info!(%sidecar, "a sidecar follows no more"),
            // Whoever does not read gets no reason.
            Err(status) => drop(timeout(FAREWELL_WITHIN, out.send(Err(status))).await),
        }
    }

    async fn serve(
        &mut self,
        mut incoming: Streaming<v1::ClientFrame>,
        out: &Out,
        mut moved: Work<'static, ()>,
    ) -> Result<(), Status> {
        let session = Arc::clone(self.open.stream.session());
        let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet = false;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => {
                    drop(timeout(FAREWELL_WITHIN, out.send(Ok(farewell()))).await);
                    return Ok(());
                }
                room = out.reserve(), if !quiet => {
                    let Ok(room) = room else { return Ok(()) };
                    match self.open.stream.next(self.open.hub.clock().now()) {
                        Some(frame) => room.send(Ok(frame)),
                        None => quiet = true,
                    }
                }
                () = session.woken() => quiet = false,
                frame = incoming.message() => {
                    let Ok(Some(frame)) = frame else { return Ok(()) };
                    self.take(frame)?;
                    quiet = false;
                }
                () = &mut moved => {
                    moved = self.origin.moved();
                    self.check()?;
                }
                _ = checks.tick() => self.check()?,
                () = out.closed() => return Ok(()),
            }
        }
    }

    fn take(&mut self, frame: v1::ClientFrame) -> Result<(), Status> {
        let now = self.open.hub.clock().now().uptime;
        let said = self.open.stream.take(frame, now).map_err(|refused| refusal(&self.peer.sidecar, &refused))?;
        for said in said {
            self.origin.said(&self.peer.sidecar, said);
        }
        Ok(())
    }

    /// Whether the peer is still who it was, and may still follow what it follows.
    fn check(&self) -> Result<(), Status> {
        if self.peer.expires.position(self.open.hub.clock().now()) == Position::After {
            return Err(Status::unauthenticated("the certificate of this connection is over: connect with a new one"));
        }
        let may = |sidecar: &Principal, backend: &BackendName| self.origin.may_follow(sidecar, backend);
        self.open.stream.check(may).map_err(|refused| refusal(&self.peer.sidecar, &refused))
    }
}

fn farewell() -> v1::ServerFrame {
    let retry_after_ms = u64::try_from(RETRY_AFTER.as_millis()).unwrap_or(0);
    let go_away = v1::GoAway { reason: "this server is stopping".to_owned(), retry_after_ms };
    v1::ServerFrame { frame: Some(v1::server_frame::Frame::GoAway(go_away)) }
}
