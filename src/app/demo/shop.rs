//! A small admin API that demands a credential.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The admin API: orders, and a stream of events.
pub(super) async fn serve(secret: String) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let wanted: Arc<str> = format!("Bearer {secret}").into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let wanted = Arc::clone(&wanted);
            let service = service_fn(move |request| {
                let response = answer(&request, &wanted);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    Ok(address)
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

fn answer(request: &Request<Incoming>, wanted: &str) -> Response<Body> {
    let text = |status, text: String| {
        let mut response = Response::new(Full::from(text).boxed());
        *response.status_mut() = status;
        response
    };
    if request.headers().get("authorization").is_none_or(|given| given != wanted) {
        return text(StatusCode::UNAUTHORIZED, "no credential, no service\n".to_owned());
    }
    if request.uri().path() == "/events" {
        let mut response = Response::new(events().boxed());
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/event-stream"));
        return response;
    }
    text(StatusCode::OK, format!("the shop did {} {}\n", request.method(), request.uri().path()))
}

fn events() -> impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for number in 1.. {
            let event = Frame::data(Bytes::from(format!("data: event {number}\n\n")));
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    StreamBody::new(Received(receiver))
}

/// A channel as a stream of frames.
struct Received(tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, std::convert::Infallible>>);

impl futures_core::Stream for Received {
    type Item = Result<Frame<Bytes>, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
