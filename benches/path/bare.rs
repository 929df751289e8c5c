//! A proxy that only forwards, made of the parts that the sidecar is made of: one thread, hyper both ways, one header.
//!
//! Told to keep callers apart, it sends what comes with one token over connections that no other token uses, as the
//! sidecar does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;

use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::process::Process;
use super::setup::{Started, free, wait};

/// Whose connections to the backend a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    Anyones,
    TheCallers,
}

impl Connections {
    const fn word(self) -> &'static str {
        match self {
            Self::Anyones => "anyones",
            Self::TheCallers => "the-callers",
        }
    }
}

/// Starts it as a process of its own: this program, told to be the proxy.
pub fn start(backend: SocketAddr, connections: Connections) -> Started {
    let address = free();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["bare-proxy", &address.to_string(), &backend.to_string(), connections.word()]);
    let process = Process::start(&command);
    wait(address);
    Started { address, process }
}

type Kept = Rc<RefCell<HashMap<Option<HeaderValue>, Vec<SendRequest<Incoming>>>>>;

/// Is the proxy, as `words` tell.
pub fn run(words: &[String]) {
    let (address, backend): (SocketAddr, SocketAddr) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let connections =
        if words[2] == Connections::TheCallers.word() { Connections::TheCallers } else { Connections::Anyones };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(address).await.unwrap();
        let kept = Kept::default();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let kept = Rc::clone(&kept);
            let service = service_fn(move |request| forward(request, backend, connections, Rc::clone(&kept)));
            tokio::task::spawn_local(
                hyper::server::conn::http1::Builder::new()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}

async fn forward(
    mut request: Request<Incoming>,
    backend: SocketAddr,
    connections: Connections,
    kept: Kept,
) -> Result<Response<Incoming>, Infallible> {
    let token = request.headers().get(AUTHORIZATION).filter(|_| connections == Connections::TheCallers).cloned();
    let mut sender = kept.borrow_mut().get_mut(&token).and_then(Vec::pop).filter(|sender| !sender.is_closed());
    if sender.is_none() {
        let stream = TcpStream::connect(backend).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (opened, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(connection);
        sender = Some(opened);
    }
    let mut sender = sender.unwrap();
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer a-credential-of-thirty-two-bytes"));
    headers.insert(HOST, HeaderValue::from_str(&backend.to_string()).unwrap());
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    // Its body is all there for the answers that are measured, so the connection can serve the next one.
    kept.borrow_mut().entry(token).or_default().push(sender);
    Ok(response)
}
