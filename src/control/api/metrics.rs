//! What is counted of calls to the API. Label values are the templates of its routes and closed lists, never what a
//! caller wrote.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{Method, StatusCode};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::time::Instant;

/// The route of a call that matched none.
const NONE: &str = "none";

/// Bounds of the time to an answer, in seconds: from a look at one row to the longest wait that can be asked for.
const SECONDS: &[f64] = &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

#[derive(Debug)]
pub(super) struct Counted {
    calls: IntCounterVec,
    running: IntGaugeVec,
    seconds: HistogramVec,
}

impl Counted {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let about = "Calls to the API, by route, method and status; `gone` where the caller left before the answer.";
        let options = Opts::new("leasehold_control_api_requests_total", about);
        let calls = IntCounterVec::new(options, &["route", "method", "status"])?;
        registry.register(Box::new(calls.clone()))?;
        let options =
            Opts::new("leasehold_control_api_requests_running", "Calls to the API that wait for an answer, by route.");
        let running = IntGaugeVec::new(options, &["route"])?;
        registry.register(Box::new(running.clone()))?;
        let about = "Time from the head of a call to the API until its answer began, by route.";
        let options = HistogramOpts::new("leasehold_control_api_request_seconds", about).buckets(SECONDS.to_vec());
        let seconds = HistogramVec::new(options, &["route"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { calls, running, seconds })
    }
}

/// Counts a call when it ends, also when its caller leaves.
pub(super) async fn count(State(counted): State<Arc<Counted>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut running = Running::new(counted, route, request.method());
    let response = next.run(request).await;
    running.status = Some(response.status());
    response
}

struct Running {
    counted: Arc<Counted>,
    route: Option<MatchedPath>,
    method: &'static str,
    began: Instant,
    status: Option<StatusCode>,
}

impl Running {
    fn new(counted: Arc<Counted>, route: Option<MatchedPath>, method: &Method) -> Self {
        let running = Self { counted, route, method: word(method), began: Instant::now(), status: None };
        running.counted.running.with_label_values(&[running.route()]).inc();
        running
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or(NONE, MatchedPath::as_str)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let route = self.route();
        self.counted.running.with_label_values(&[route]).dec();
        let status = self.status.as_ref().map_or("gone", StatusCode::as_str);
        self.counted.calls.with_label_values(&[route, self.method, status]).inc();
        self.counted.seconds.with_label_values(&[route]).observe(self.began.elapsed().as_secs_f64());
    }
}

/// The method as a label: anybody can make one up.
fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
