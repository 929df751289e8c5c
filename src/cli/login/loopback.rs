//! Where the browser comes back to: one answer, on loopback, with the state that was given out (RFC 8252 section 7.3).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// How long somebody may take to log in.
const PATIENCE: Duration = Duration::from_secs(300);

const PATH: &str = "/callback";

/// What the browser brought.
pub(super) type Parameters = BTreeMap<String, String>;

/// A listener for one answer.
pub(super) struct Loopback {
    listener: TcpListener,
    address: SocketAddr,
}

impl Loopback {
    pub(super) fn bind(runtime: &Runtime) -> anyhow::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("no port of loopback is free")?;
        let address = listener.local_addr().context("no address")?;
        Ok(Self { listener, address })
    }

    /// The address for the browser to come back to.
    pub(super) fn address(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Waits for the answer that carries `state`; one that does not is somebody else's, and turned away.
    pub(super) fn answer(self, runtime: &Runtime, state: &str) -> anyhow::Result<Parameters> {
        let came = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.listen(state)).await });
        came.with_context(|| format!("nobody logged in within {} minutes", PATIENCE.as_secs() / 60))?
    }

    async fn listen(&self, state: &str) -> anyhow::Result<Parameters> {
        let (told, mut answers) = mpsc::channel(1);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let (told, state) = (told.clone(), state.to_owned());
                    // It ends with this runtime, which ends with the command.
                    tokio::spawn(async move {
                        let service = service_fn(|request| {
                            let (told, state) = (told.clone(), state.clone());
                            async move { Ok::<_, Infallible>(receive(&request, &state, &told)) }
                        });
                        let _ = hyper::server::conn::http1::Builder::new()
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
                answer = answers.recv() => {
                    // The page is written by the task that serves it; let it.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let answer: Parameters = answer.context("no answer")?;
                    if let Some(error) = answer.get("error") {
                        let detail = answer.get("error_description").map_or("no more is said", String::as_str);
                        bail!("the issuer refused: {error}: {detail}");
                    }
                    return Ok(answer);
                }
            }
        }
    }
}

fn receive<B>(request: &Request<B>, state: &str, told: &mpsc::Sender<Parameters>) -> Response<Full<Bytes>> {
    let parameters = parameters(request.uri().query().unwrap_or_default());
    let is_ours = request.method() == http::Method::GET && request.uri().path() == PATH;
    let (status, text) = match parameters {
        _ if !is_ours => (StatusCode::NOT_FOUND, "There is nothing here.\n"),
        Some(parameters) if parameters.get("state").is_some_and(|given| same(given, state)) => {
            let _ = told.try_send(parameters);
            (StatusCode::OK, "Go back to the terminal: it goes on there. This page can be closed.\n")
        }
        _ => (StatusCode::BAD_REQUEST, "This is no answer to a login that runs here.\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("no-referrer"));
    response
}

/// The parameters of a query; none where one stands there twice or is no text.
fn parameters(query: &str) -> Option<Parameters> {
    let mut all = Parameters::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
        };
        if all.insert(decode(name)?, decode(value)?).is_some() {
            return None;
        }
    }
    Some(all)
}

/// Whether two texts are the same, in a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_with_our_state_is_taken() {
        let (told, mut answers) = mpsc::channel(1);
        let status = |method: &str, target: &str| {
            let request = Request::builder().method(method).uri(target).body(()).expect("a request");
            receive(&request, "st4te", &told).status().as_u16()
        };
        assert_eq!(status("GET", "/callback?code=c&state=other"), 400);
        assert_eq!(status("GET", "/callback?code=c"), 400);
        assert_eq!(status("GET", "/callback?code=c&code=d&state=st4te"), 400);
        assert_eq!(status("GET", "/favicon.ico?state=st4te"), 404);
        assert_eq!(status("POST", "/callback?code=c&state=st4te"), 404);
        assert!(answers.try_recv().is_err());
        assert_eq!(status("GET", "/callback?code=a%2Fb&state=st4te&iss=https%3A%2F%2Fi"), 200);
        let answer = answers.try_recv().expect("an answer");
        assert_eq!((answer["code"].as_str(), answer["iss"].as_str()), ("a/b", "https://i"));
    }
}
