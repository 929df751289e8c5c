//! `leasehold demo`: everything in one process, shown live.
//!
//! A small admin API that demands a credential, a sidecar in front of it, and a caller with a token of its own. The calls
//! are real HTTP over loopback; what is printed is what came back.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use tokio::net::{TcpListener, TcpStream};

use super::{Running, start};
use crate::config;
use crate::domain::time::{Clock, Timestamp};

const ISSUER: &str = "https://ci.demo";
const AUDIENCE: &str = "leasehold-demo";
const SUBJECT: &str = "deploy-bot";

/// A demo that is up: what to call and with what.
pub struct Demo {
    running: Running,
    folder: tempdir::Folder,
    backend: SocketAddr,
    sidecar: SocketAddr,
    token: String,
    clock: Arc<dyn Clock>,
}

/// What came back from one call.
#[derive(Debug)]
pub struct Seen {
    /// The status.
    pub status: StatusCode,
    /// The body, or as much of it as came.
    pub body: String,
    /// Whether the body came whole.
    pub whole: bool,
}

/// Starts everything on free ports of the loopback address.
///
/// # Errors
/// When something cannot be started; nothing runs then.
pub async fn start_demo() -> anyhow::Result<Demo> {
    let clock: Arc<dyn Clock> = Arc::new(super::clock::SystemClock::new());
    let folder = tempdir::Folder::new()?;
    let secret = random_text();
    let backend = serve_backend(secret.clone()).await?;
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate().map_err(|_| anyhow!("no key could be made"))?;
    folder.write("backend-secret", secret.as_bytes())?;
    folder.write("keys.json", keys(&key)?.as_bytes())?;
    folder.write("actions.yaml", ACTIONS.as_bytes())?;
    folder.write("leasehold.yaml", configuration(backend).as_bytes())?;
    let token = token(&key, clock.now().wall)?;
    folder.write("token", token.as_bytes())?;
    folder.write("grants.yaml", b"grants: []\n")?;
    let path = folder.path().join("leasehold.yaml");
    let config = config::load(&path).map_err(|errors| anyhow!("{errors}"))?;
    let running = start(config).await?;
    let sidecar = running.address("demo").context("the demo listens on TCP")?;
    Ok(Demo { running, folder, backend, sidecar, token, clock })
}

impl Demo {
    /// States one grant for `lifetime` seconds, or none, and waits until it is in force.
    ///
    /// # Errors
    /// When the grants file cannot be written, or is not in force after five seconds.
    pub async fn grant(&self, id: &str, actions: &str, resources: &str, lifetime: Option<u64>) -> anyhow::Result<()> {
        let before = self.running.decider().table().revision().0;
        let mut text = format!("revision: {}\n", before + 1);
        match lifetime {
            None => text.push_str("grants: []\n"),
            Some(seconds) => {
                let end = self.clock.now().wall.plus(Duration::from_secs(seconds));
                text.push_str(&format!(
                    "grants:\n  - id: {id}\n    principal: {ISSUER}#{SUBJECT}\n    backend: shop\n    actions: [{actions}]\n    resources: [\"{resources}\"]\n    expires_at: {end}\n    task: \"jira:OPS-17\"\n"
                ));
            }
        }
        self.folder.write("grants.new", text.as_bytes())?;
        std::fs::rename(self.folder.path().join("grants.new"), self.folder.path().join("grants.yaml"))?;
        for _ in 0..500 {
            if self.running.decider().table().revision().0 > before {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(anyhow!("the grants are not in force after five seconds"))
    }

    /// Makes one call through the sidecar.
    ///
    /// # Errors
    /// When the sidecar cannot be reached or answers no HTTP.
    pub async fn call(&self, method: Method, path: &str) -> anyhow::Result<Seen> {
        let response = send(self.sidecar, method, path, Some(&self.token)).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut text = Vec::new();
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        };
        Ok(Seen { status, body: String::from_utf8_lossy(&text).trim().to_owned(), whole })
    }

    /// Stops everything.
    ///
    /// # Errors
    /// When the last records could not be written.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.running.stop().await
    }
}

/// As [`show`], on a runtime of its own.
///
/// # Errors
/// As [`show`].
pub fn run(out: &mut (dyn Write + Send), stay: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(show(out, stay))
}

/// The whole show, printed to `out`; `stay` keeps it up until the process is told to stop.
///
/// # Errors
/// When something cannot be started or a call cannot be made.
pub async fn show(out: &mut (dyn Write + Send), stay: bool) -> anyhow::Result<()> {
    let demo = start_demo().await?;
    writeln!(out, "A shop's admin API on http://{} demands a credential that no caller has.", demo.backend)?;
    writeln!(out, "A sidecar on http://{} stands in front of it. The caller is {ISSUER}#{SUBJECT}.\n", demo.sidecar)?;
    let line = |out: &mut (dyn Write + Send), what: &str, seen: &Seen| {
        let first = seen.body.lines().next().unwrap_or_default();
        writeln!(out, "{what:<52} {} {}", seen.status.as_u16(), shorten(first))
    };

    writeln!(out, "1. Nothing is granted:")?;
    line(out, "   DELETE /orders/17", &demo.call(Method::DELETE, "/orders/17").await?)?;

    writeln!(out, "2. A grant for order 17, for one minute, for the task jira:OPS-17:")?;
    demo.grant("grt_demo_1", "order.delete", "orders/17", Some(60)).await?;
    line(out, "   DELETE /orders/17", &demo.call(Method::DELETE, "/orders/17").await?)?;
    line(out, "   DELETE /orders/18", &demo.call(Method::DELETE, "/orders/18").await?)?;
    line(out, "   GET /orders/17/../18", &demo.call(Method::GET, "/orders/17/../18").await?)?;

    writeln!(out, "3. A grant that lasts two seconds, used while it lasts and after:")?;
    demo.grant("grt_demo_2", "order.delete", "orders/18", Some(2)).await?;
    line(out, "   DELETE /orders/18", &demo.call(Method::DELETE, "/orders/18").await?)?;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    line(out, "   DELETE /orders/18, two seconds later", &demo.call(Method::DELETE, "/orders/18").await?)?;

    writeln!(out, "4. A stream of events, revoked while it runs:")?;
    demo.grant("grt_demo_3", "event.watch", "events", Some(60)).await?;
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        demo.grant("", "", "", None).await
    };
    let (seen, revoked) = tokio::join!(demo.call(Method::GET, "/events"), revoke);
    revoked?;
    let seen = seen?;
    for text in seen.body.lines().filter(|text| !text.is_empty()) {
        writeln!(out, "   {text}")?;
    }
    writeln!(out, "   the stream was {}\n", if seen.whole { "not cut" } else { "cut" })?;

    if stay {
        stay_up(&demo, out).await?;
    }
    demo.stop().await
}

async fn stay_up(demo: &Demo, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    demo.grant("grt_demo_4", "order.*", "orders/*", Some(3_600)).await?;
    let folder = demo.folder.path().display();
    let (sidecar, admin) = (demo.sidecar, demo.running.admin());
    writeln!(out, "It stays up. A grant for all orders lasts an hour; edit {folder}/grants.yaml and watch:\n")?;
    writeln!(out, "  curl -i -H \"Authorization: Bearer $(cat {folder}/token)\" http://{sidecar}/orders/17")?;
    writeln!(out, "  curl -i -X DELETE -H \"Authorization: Bearer $(cat {folder}/token)\" http://{sidecar}/orders/17")?;
    writeln!(out, "  curl -s http://{admin}/metrics | grep leasehold_calls_total")?;
    writeln!(out, "  tail -n 3 {folder}/audit/*.jsonl\n\nCtrl-C ends it.")?;
    out.flush()?;
    super::stop_signal()?.await;
    Ok(())
}

fn shorten(text: &str) -> String {
    if let Ok(problem) = serde_json::from_str::<serde_json::Value>(text)
        && let Some(reason) = problem.get("reason").and_then(|reason| reason.as_str())
    {
        let detail = problem.get("detail").and_then(|detail| detail.as_str()).unwrap_or_default();
        return format!("{reason}: {detail}");
    }
    text.chars().take(100).collect()
}

const ACTIONS: &str = "rules:
  - {action: order.read, class: read, method: GET, path: '/orders/{order}', resource: 'orders/{order}'}
  - {action: order.delete, class: write, method: DELETE, path: '/orders/{order}', resource: 'orders/{order}'}
  - {action: event.watch, class: read, method: GET, path: /events, resource: events, streaming: true}
";

fn configuration(backend: SocketAddr) -> String {
    format!(
        "listeners:
  - {{name: demo, address: '127.0.0.1:0', backends: [shop]}}
identity:
  issuers:
    - name: ci
      issuer: {ISSUER}
      audience: [{AUDIENCE}]
      algorithm: EdDSA
      keys: {{file: keys.json}}
backends:
  - name: shop
    upstream: http://{backend}
    action_map: actions.yaml
    credential: shop-admin
credentials:
  - name: shop-admin
    source: {{file: backend-secret}}
    inject: {{bearer: true}}
grants: {{file: grants.yaml, poll: 50ms}}
audit: {{directory: audit}}
admin: {{address: '127.0.0.1:0'}}
workers: 1
drain_timeout: 1s
"
    )
}

fn keys(key: &aws_lc_rs::signature::Ed25519KeyPair) -> anyhow::Result<String> {
    use aws_lc_rs::signature::KeyPair;
    let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
    let set = serde_json::json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "demo", "x": x }
    ] });
    Ok(serde_json::to_string(&set)?)
}

fn token(key: &aws_lc_rs::signature::Ed25519KeyPair, now: Timestamp) -> anyhow::Result<String> {
    let der = key.to_pkcs8().map_err(|_| anyhow!("the key cannot be written"))?;
    let header = Header { kid: Some("demo".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let claims = serde_json::json!({
        "iss": ISSUER, "sub": SUBJECT, "aud": AUDIENCE, "iat": now.as_seconds(), "exp": now.as_seconds() + 36_000,
    });
    Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(der.as_ref()))?)
}

fn random_text() -> String {
    let mut bytes = [0u8; 24];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers, or nothing here is safe to do");
    URL_SAFE_NO_PAD.encode(bytes)
}

async fn send(to: SocketAddr, method: Method, path: &str, token: Option<&str>) -> anyhow::Result<Response<Incoming>> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", to.to_string());
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    Ok(sender.send_request(request.body(Full::<Bytes>::default())?).await?)
}

/// The admin API: orders, and a stream of events.
async fn serve_backend(secret: String) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let wanted: Arc<str> = format!("Bearer {secret}").into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let wanted = Arc::clone(&wanted);
            let service = service_fn(move |request| {
                let answer = backend_answer(&request, &wanted);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    Ok(address)
}

type BackendBody = BoxBody<Bytes, std::convert::Infallible>;

fn backend_answer(request: &Request<Incoming>, wanted: &str) -> Response<BackendBody> {
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

/// A folder that goes with the demo.
mod tempdir {
    use super::{Path, URL_SAFE_NO_PAD};
    use base64::Engine;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    use std::path::PathBuf;

    pub(super) struct Folder(PathBuf);

    impl Folder {
        pub(super) fn new() -> anyhow::Result<Self> {
            let mut bytes = [0u8; 9];
            aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no random name"))?;
            let path = std::env::temp_dir().join(format!("leasehold-demo-{}", URL_SAFE_NO_PAD.encode(bytes)));
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            Ok(Self(path))
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }

        pub(super) fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
            use std::io::Write;
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(self.0.join(name))?.write_all(content)?;
            Ok(())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
