//! What goes on at a sidecar until it is cut.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Runtime;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Streaming};
use tonic_prost::ProstCodec;

use crate::tools::DEADLINE;
use crate::wait_for;

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An answer that goes on until it is cut.
pub struct Running {
    what: &'static str,
    stream: TcpStream,
}

impl Running {
    /// An event stream and a WebSocket.
    pub fn both(door: (SocketAddr, String)) -> [Self; 2] {
        [
            Self::open(&door, "an event stream", "/orders/stream", "", "data: 1"),
            Self::open(&door, "a WebSocket", "/socket", UPGRADE, "begun"),
        ]
    }

    /// Asks until it has begun, with what shows that.
    fn open(
        (address, token): &(SocketAddr, String),
        what: &'static str,
        path: &str,
        fields: &str,
        begun: &str,
    ) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\nauthorization: Bearer {token}\r\n{fields}\r\n");
        let stream = wait_for(what, || {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(DEADLINE)).ok()?;
            stream.write_all(head.as_bytes()).ok()?;
            let (mut said, mut piece) = (Vec::new(), [0; 1024]);
            while !String::from_utf8_lossy(&said).contains(begun) {
                let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
                said.extend_from_slice(&piece[..read]);
            }
            Some(stream)
        });
        Self { what, stream }
    }

    /// Reads to its end.
    #[track_caller]
    pub fn ends(mut self) {
        let mut piece = [0; 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    let waits = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                    assert!(!waits, "{} was not cut", self.what);
                    return;
                }
            }
        }
    }
}

/// `etcdserverpb.WatchRequest`, as far as it is said here.
#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// `etcdserverpb.WatchResponse`, as far as it is read here.
#[derive(Clone, PartialEq, prost::Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bool, tag = "4")]
    canceled: bool,
}

/// One request, after which more could come.
struct Asking(Option<WatchRequest>);

impl futures_core::Stream for Asking {
    type Item = WatchRequest;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<WatchRequest>> {
        self.0.take().map_or(Poll::Pending, |request| Poll::Ready(Some(request)))
    }
}

/// A watch of etcd over gRPC.
pub struct Watch {
    runtime: Runtime,
    said: Streaming<WatchResponse>,
}

impl Watch {
    /// Asks until etcd says that it watches.
    pub fn open(door: &(SocketAddr, String)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let said = wait_for("a watch of etcd", || {
            runtime.block_on(async { tokio::time::timeout(DEADLINE, Self::begin(door)).await.unwrap().ok() })
        });
        Self { runtime, said }
    }

    async fn begin(
        (address, token): &(SocketAddr, String),
    ) -> Result<Streaming<WatchResponse>, Box<dyn std::error::Error>> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.origin("http://etcd.test".parse()?);
        let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
        client.ready().await?;
        let key = b"app/a".to_vec();
        let mut request = Request::new(Asking(Some(WatchRequest { create: Some(WatchCreateRequest { key }) })));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let codec: ProstCodec<WatchRequest, WatchResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let mut said = client.streaming(request, path, codec).await?.into_inner();
        let first = said.message().await?.ok_or("it ended")?;
        if !first.created || first.canceled {
            return Err("it does not watch".into());
        }
        Ok(said)
    }

    /// Reads to its end: how it was told why.
    #[track_caller]
    pub fn ends(mut self) -> (Code, String) {
        let ended = self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, async {
                loop {
                    match self.said.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => return (Code::Ok, String::new()),
                        Err(status) => return (status.code(), status.message().to_owned()),
                    }
                }
            })
            .await
        });
        ended.expect("a watch that is cut")
    }
}
