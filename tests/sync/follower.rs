//! A sidecar's end of a connection, frame by frame.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use leasehold::wire::v1;
use leasehold::wire::v1::client_frame::Frame as Said;
use leasehold::wire::v1::policy_sync_client::PolicySyncClient;
use leasehold::wire::v1::server_frame::Frame;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::common::DEADLINE;

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Vec<u8>,
}

pub struct Follower {
    pub client: PolicySyncClient<Channel>,
    out: Option<mpsc::Sender<v1::ClientFrame>>,
    frames: Option<Streaming<v1::ServerFrame>>,
    nonce: u64,
    /// The bundles that came so far.
    pub bundles: Vec<v1::Bundle>,
}

/// What was said by a channel, as a stream.
struct Spoken(mpsc::Receiver<v1::ClientFrame>);

impl futures_core::Stream for Spoken {
    type Item = v1::ClientFrame;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<v1::ClientFrame>> {
        self.0.poll_recv(context)
    }
}

impl Follower {
    /// Connects, and makes sure that the connection is one: a refused certificate is told after the handshake only.
    pub async fn connect(
        to: SocketAddr,
        trusted: &CertificateDer<'static>,
        shown: Option<Shown>,
    ) -> Result<Self, tonic::transport::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            Some(shown) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key));
                builder.with_client_auth_cert(shown.chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let dial = tower::service_fn(move |_: http::Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(to).await?;
                let name = ServerName::IpAddress(to.ip().into());
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://{to}")).unwrap().timeout(DEADLINE);
        let channel = endpoint.connect_with_connector(dial).await?;
        Ok(Self { client: PolicySyncClient::new(channel), out: None, frames: None, nonce: 0, bundles: Vec::new() })
    }

    /// Opens a stream.
    pub async fn follow(&mut self, subscribe: v1::Subscribe) -> Result<(), Status> {
        let (out, said) = mpsc::channel(64);
        out.send(v1::ClientFrame { frame: Some(Said::Subscribe(subscribe)) }).await.unwrap();
        self.frames = Some(self.client.sync(Spoken(said)).await?.into_inner());
        self.out = Some(out);
        Ok(())
    }

    pub async fn say(&self, frame: Said) {
        self.out.as_ref().unwrap().send(v1::ClientFrame { frame: Some(frame) }).await.unwrap();
    }

    /// The next frame that is no bundle, or how the stream ended.
    pub async fn next(&mut self) -> Result<Option<Frame>, Status> {
        loop {
            let next = timeout(DEADLINE, self.frames.as_mut().unwrap().message()).await.expect("a frame in time");
            match next?.and_then(|frame| frame.frame) {
                Some(Frame::Bundle(bundle)) => self.bundles.push(bundle),
                frame => return Ok(frame),
            }
        }
    }

    /// The whole of the first snapshot.
    pub async fn snapshot(&mut self) -> (u64, Vec<v1::Grant>) {
        let mut grants = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Some(Frame::Snapshot(part)) => {
                    grants.extend(part.grants);
                    if part.last {
                        return (part.revision, grants);
                    }
                }
                other => panic!("{other:?} came in place of a snapshot"),
            }
        }
    }

    /// Says that everything up to a revision is enforced.
    pub async fn ack(&self, revision: u64) {
        self.say(Said::Ack(v1::Ack { revision })).await;
    }

    /// Asks for evidence and waits for it; the deltas that came before it.
    pub async fn ping(&mut self) -> (u64, Vec<v1::Delta>) {
        self.nonce += 1;
        let nonce = self.nonce;
        self.say(Said::Ping(v1::Ping { nonce })).await;
        let mut deltas = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Some(Frame::Pong(pong)) if pong.nonce == nonce => return (pong.as_of_revision, deltas),
                Some(Frame::Delta(delta)) => deltas.push(delta),
                Some(Frame::Urgent(_) | Frame::Bundle(_)) => {}
                other => panic!("{other:?} came in place of a pong"),
            }
        }
    }

    /// Waits for a change that is wanted; up to where all is known then.
    pub async fn change(&mut self, wanted: impl Fn(&v1::change::Change) -> bool) -> u64 {
        loop {
            match self.next().await.unwrap() {
                Some(Frame::Delta(delta)) => {
                    if delta.changes.iter().filter_map(|change| change.change.as_ref()).any(&wanted) {
                        return delta.to;
                    }
                }
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    pub async fn consume(&mut self, grant: &str, use_id: &str) -> Result<v1::consume_reply::Outcome, Status> {
        let request = v1::ConsumeRequest { grant: grant.to_owned(), use_id: use_id.to_owned() };
        Ok(self.client.consume(request).await?.into_inner().outcome())
    }
}

/// Follows these backends, and serves a minute without evidence.
pub fn subscribe(backends: &[&str]) -> v1::Subscribe {
    v1::Subscribe {
        backends: backends.iter().map(|backend| (*backend).to_owned()).collect(),
        resume_revision: None,
        boot_id: "b1".to_owned(),
        version: "test".to_owned(),
        staleness_max_ms: 60_000,
        bundles: Vec::new(),
        action_maps: Vec::new(),
    }
}

pub fn ended(grant: &str) -> impl Fn(&v1::change::Change) -> bool {
    move |change| matches!(change, v1::change::Change::Ended(ended) if ended.grant == grant)
}
