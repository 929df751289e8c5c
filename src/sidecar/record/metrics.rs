//! What is counted of calls. Label values come from the catalogue and from closed lists, never from a caller.

use std::sync::OnceLock;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Catalogue, Ended, Outcome};
use crate::domain::id::ActionName;
use crate::sidecar::reason::{Decision, Reason};

/// What a call without a backend or an action is counted under.
const NONE: &str = "none";

/// Bounds of the histograms, in seconds: from a cached decision to a long poll.
const SECONDS: &[f64] = &[
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 10.0, 60.0,
];

#[derive(Debug)]
pub(super) struct RecordMetrics {
    calls: IntCounterVec,
    own: HistogramVec,
    upstream: HistogramVec,
    cut: IntCounterVec,
    shadow: IntCounterVec,
    bytes: IntCounterVec,
    intents: IntCounter,
    outcomes: IntCounter,
    failures: IntCounter,
    spool_bytes: IntGauge,
    available: IntGauge,
    backends: arc_swap::ArcSwap<Vec<BackendHandles>>,
    unknown: BackendHandles,
}

/// The series of one backend, found once.
#[derive(Debug)]
struct BackendHandles {
    name: String,
    actions: Vec<ActionHandles>,
    unmapped: ActionHandles,
    own: Histogram,
    upstream: Histogram,
    bytes_in: IntCounter,
    bytes_out: IntCounter,
}

impl BackendHandles {
    /// The handles of an action; its name alone where it is none of today's.
    fn action<'a>(&self, action: Option<(usize, &'a ActionName)>) -> Result<&ActionHandles, &'a ActionName> {
        let Some((place, name)) = action else { return Ok(&self.unmapped) };
        let is = |handles: &&ActionHandles| handles.name == name.as_str();
        // A call that was resolved by another map than today's may have another place.
        let found = self.actions.get(place).filter(is).or_else(|| self.actions.iter().find(is));
        found.ok_or(name)
    }
}

/// The counters of one action by decision and reason, made when first counted.
#[derive(Debug)]
struct ActionHandles {
    name: String,
    counters: Vec<OnceLock<IntCounter>>,
}

impl ActionHandles {
    fn new(name: &str) -> Self {
        let places = Decision::ALL.len() * Reason::ALL.len();
        Self { name: name.to_owned(), counters: (0..places).map(|_| OnceLock::new()).collect() }
    }
}

impl RecordMetrics {
    pub(super) fn new(registry: &Registry, catalogue: &Catalogue) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let seconds = |name: &str, help: &str| -> prometheus::Result<HistogramVec> {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let histogram = HistogramVec::new(options, &["backend"])?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let records = counters("leasehold_audit_records_total", "Records made, by kind.", &["kind"])?;
        let failures = counters("leasehold_audit_failures_total", "Attempts to write records that failed.", &[])?;
        let calls = counters(
            "leasehold_calls_total",
            "Calls by backend, action, decision and reason.",
            &["backend", "action", "decision", "reason"],
        )?;
        let own = seconds("leasehold_call_own_seconds", "Time a call spent in the sidecar until its answer began.")?;
        let upstream =
            seconds("leasehold_call_upstream_seconds", "Time from sending a call upstream to the head of the answer.")?;
        let bytes =
            counters("leasehold_call_bytes_total", "Bytes of bodies, by direction.", &["backend", "direction"])?;
        let mut metrics = Self {
            cut: counters(
                "leasehold_streams_cut_total",
                "Answers cut before they were whole, by cause.",
                &["backend", "cause"],
            )?,
            shadow: counters(
                "leasehold_guardrail_shadow_denies_total",
                "Calls that a guardrail in shadow would have denied, by policy.",
                &["policy"],
            )?,
            intents: records.with_label_values(&["intent"]),
            outcomes: records.with_label_values(&["call"]),
            failures: failures.with_label_values(&[] as &[&str]),
            spool_bytes: gauge("leasehold_audit_spool_bytes", "Bytes in the audit directory.")?,
            available: gauge("leasehold_audit_available", "1 while calls can be recorded, else 0.")?,
            backends: arc_swap::ArcSwap::from_pointee(Vec::new()),
            unknown: handles(NONE, &[], &own, &upstream, &bytes),
            calls,
            own,
            upstream,
            bytes,
        };
        metrics.available.set(1);
        metrics.extend(catalogue);
        metrics.unknown.name = NONE.to_owned();
        Ok(metrics)
    }

    /// Makes the handles of a catalogue.
    pub(super) fn extend(&self, catalogue: &Catalogue) {
        let all = catalogue
            .0
            .iter()
            .map(|(name, actions)| {
                let actions: Vec<&str> = actions.iter().map(|action| action.as_str()).collect();
                handles(name.as_str(), &actions, &self.own, &self.upstream, &self.bytes)
            })
            .collect();
        self.backends.store(std::sync::Arc::new(all));
    }

    pub(super) fn outcome(&self, outcome: &Outcome<'_>) {
        self.outcomes.inc();
        let backends = self.backends.load();
        let backend = outcome.backend.and_then(|place| backends.get(place)).unwrap_or(&self.unknown);
        let counter = |action: &str| {
            let labels = [&backend.name, action, outcome.decision.as_str(), outcome.reason.as_str()];
            self.calls.with_label_values(&labels)
        };
        let place = outcome.decision as usize * Reason::ALL.len() + outcome.reason as usize;
        match backend.action(outcome.action) {
            Ok(action) => action.counters[place].get_or_init(|| counter(&action.name)).inc(),
            Err(name) => counter(name.as_str()).inc(),
        }
        for rule in outcome.shadow {
            self.shadow.with_label_values(&[rule.id.as_str()]).inc();
        }
        backend.own.observe(outcome.own.as_secs_f64());
        if outcome.upstream_status.is_some() {
            backend.upstream.observe(outcome.upstream.as_secs_f64());
            backend.bytes_in.inc_by(outcome.bytes_in);
            backend.bytes_out.inc_by(outcome.bytes_out);
        }
        let cause = match outcome.ended {
            Ended::Cut(reason) => reason.as_str(),
            Ended::UpstreamTruncated => Ended::UpstreamTruncated.as_str(),
            Ended::Complete | Ended::CallerGone | Ended::Refused => return,
        };
        self.cut.with_label_values(&[backend.name.as_str(), cause]).inc();
    }

    pub(super) fn intent(&self) {
        self.intents.inc();
    }

    pub(super) fn failure(&self) {
        self.failures.inc();
    }

    pub(super) fn spool(&self, bytes: u64, available: bool) {
        self.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.available.set(i64::from(available));
    }
}

fn handles(
    name: &str,
    actions: &[&str],
    own: &HistogramVec,
    upstream: &HistogramVec,
    bytes: &IntCounterVec,
) -> BackendHandles {
    BackendHandles {
        name: name.to_owned(),
        actions: actions.iter().map(|action| ActionHandles::new(action)).collect(),
        unmapped: ActionHandles::new(NONE),
        own: own.with_label_values(&[name]),
        upstream: upstream.with_label_values(&[name]),
        bytes_in: bytes.with_label_values(&[name, "in"]),
        bytes_out: bytes.with_label_values(&[name, "out"]),
    }
}
