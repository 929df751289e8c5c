//! The admin listener: health, readiness, metrics and reports. Never on the port of the traffic.
//!
//! It only looks: there is no method but GET and HEAD, and nothing here changes anything. A browser on the same machine is
//! kept out by the `Host` and `Origin` checks (DNS rebinding, cross-site requests).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

/// Named conditions that must all hold for the program to be ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Readiness {
    /// Without conditions, and therefore not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether a condition holds, and if not, why.
    pub fn set(&self, name: &'static str, state: Result<(), String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, state);
    }

    /// Whether all hold, and what each says.
    pub fn report(&self) -> (bool, Value) {
        let conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !conditions.is_empty() && conditions.values().all(Result::is_ok);
        let shown: BTreeMap<_, _> = conditions
            .iter()
            .map(|(name, state)| (*name, state.as_ref().map_or_else(|why| why.clone(), |()| "ok".to_owned())))
            .collect();
        (ready, json!({ "ready": ready, "conditions": shown }))
    }
}

/// Answers one report from the query of the request.
pub type Handler = Arc<dyn Fn(&str) -> (StatusCode, Value) + Send + Sync>;

/// What the admin listener serves.
#[derive(Clone)]
pub struct Admin {
    /// The metrics.
    pub metrics: Metrics,
    /// The conditions.
    pub readiness: Readiness,
    /// Reports by path.
    pub reports: Arc<BTreeMap<&'static str, Handler>>,
    /// Where it listens; a request must name it, or a loopback name.
    pub address: SocketAddr,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 64;

/// Longest a connection lives.
const CONNECTION_SECONDS: u64 = 60;

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (admin, stop) = (admin.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&admin, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(Duration::from_secs(CONNECTION_SECONDS), connection) => {}
            }
            drop(slot);
        });
    }
}

fn answer(admin: &Admin, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return problem(StatusCode::METHOD_NOT_ALLOWED, "the admin listener only answers GET and HEAD");
    }
    if request.headers().contains_key(header::ORIGIN) {
        return problem(StatusCode::FORBIDDEN, "the admin listener does not answer web pages");
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(|host| is_ours(host, admin.address)) {
        return problem(StatusCode::MISDIRECTED_REQUEST, "name the address the admin listener is bound to");
    }
    match request.uri().path() {
        "/healthz" => json_answer(StatusCode::OK, &json!({ "status": "ok" })),
        "/readyz" => {
            let (ready, report) = admin.readiness.report();
            json_answer(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &report)
        }
        "/metrics" => with_type(StatusCode::OK, admin.metrics.render(), "text/plain; version=0.0.4; charset=utf-8"),
        path => match admin.reports.get(path) {
            Some(report) => {
                let (status, value) = report(request.uri().query().unwrap_or_default());
                json_answer(status, &value)
            }
            None => problem(StatusCode::NOT_FOUND, "there is nothing here"),
        },
    }
}

fn is_ours(host: &str, address: SocketAddr) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            if port.parse() != Ok(address.port()) {
                return false;
            }
            name
        }
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip == address.ip() || ip.is_loopback())
}

fn with_type(status: StatusCode, body: Vec<u8>, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    with_type(status, format!("{value:#}\n").into_bytes(), "application/json")
}

fn problem(status: StatusCode, detail: &str) -> Response<Full<Bytes>> {
    let value = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": detail,
    });
    with_type(status, format!("{value:#}\n").into_bytes(), "application/problem+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_conditions_and_all_of_them() {
        let readiness = Readiness::new();
        assert!(!readiness.report().0);
        readiness.set("grants", Ok(()));
        assert!(readiness.report().0);
        readiness.set("audit", Err("disk full".to_owned()));
        let (ready, report) = readiness.report();
        assert!(!ready);
        assert_eq!(report["conditions"]["audit"], "disk full");
    }

    #[test]
    fn only_our_own_names_are_ours() {
        let address = "127.0.0.1:9901".parse().unwrap();
        for ours in ["127.0.0.1:9901", "localhost:9901", "[::1]:9901", "localhost"] {
            assert!(is_ours(ours, address), "{ours}");
        }
        for other in ["evil.test:9901", "127.0.0.1:80", "10.0.0.1:9901", ""] {
            assert!(!is_ours(other, address), "{other}");
        }
    }
}
