//! What is measured when somebody looks: grants, the age of the view, keys, leases, what runs.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounter, IntGauge, IntGaugeVec, Opts};

use super::Parts;
use crate::domain::grant::GrantState;
use crate::sync::client::Status;
use crate::telemetry::metrics::Metrics;

/// Measures the parts when it is collected.
struct Measured {
    parts: Parts,
    grants: IntGaugeVec,
    locks: IntGauge,
    next_expiry: Gauge,
    view_age: Gauge,
    guardrails_broken: IntGauge,
    action_maps_broken: IntGauge,
    action_maps_missing: IntGauge,
    view_revision: IntGauge,
    keys_age: GaugeVec,
    tokens: IntGauge,
    leases: IntGauge,
    running: IntGauge,
    ready: IntGauge,
    source: Option<Source>,
}

/// What is measured of a source that is followed over the network.
struct Source {
    status: Arc<Status>,
    connected: IntGauge,
    reconnects: IntCounter,
    clock_offset: Gauge,
}

impl Source {
    fn new(status: Arc<Status>) -> prometheus::Result<Self> {
        Ok(Self {
            status,
            connected: IntGauge::new(
                "leasehold_source_connected",
                "1 while a stream to a control plane is open, else 0.",
            )?,
            reconnects: IntCounter::new(
                "leasehold_source_reconnects_total",
                "Streams to control planes that were opened after the first.",
            )?,
            clock_offset: Gauge::new(
                "leasehold_source_clock_offset_seconds",
                "How far the control plane's clock is ahead of this machine's.",
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 3] {
        [&self.connected, &self.reconnects, &self.clock_offset]
    }

    fn measure(&self) {
        self.connected.set(i64::from(self.status.is_connected()));
        self.reconnects.inc_by(self.status.reconnects().saturating_sub(self.reconnects.get()));
        self.clock_offset.set(self.status.clock_offset_seconds());
    }
}

impl Collector for Source {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.measure();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

/// For a relay, of which there is nothing else to measure.
pub(super) fn register_source(metrics: &Metrics, status: &Arc<Status>) -> anyhow::Result<()> {
    metrics.registry().register(Box::new(Source::new(Arc::clone(status))?))?;
    Ok(())
}

pub(super) fn register(parts: &Parts) -> anyhow::Result<()> {
    let gauge = |name: &str, help: &str| Gauge::new(name, help);
    let whole = |name: &str, help: &str| IntGauge::new(name, help);
    let measured = Measured {
        grants: IntGaugeVec::new(Opts::new("leasehold_grants", "Grants in the table, by state."), &["state"])?,
        locks: whole("leasehold_locks", "Locks in force.")?,
        next_expiry: gauge(
            "leasehold_next_expiry_seconds",
            "Seconds until the next active grant ends; 0 without one.",
        )?,
        guardrails_broken: whole(
            "leasehold_guardrails_broken",
            "1 while the last guardrails that came could not be used, else 0.",
        )?,
        action_maps_broken: whole(
            "leasehold_action_maps_broken",
            "Backends for which the last action map that the control plane said cannot be used.",
        )?,
        action_maps_missing: whole(
            "leasehold_action_maps_missing",
            "Backends whose calls are denied because the control plane has said no action map that can be used.",
        )?,
        view_age: gauge(
            "leasehold_view_age_seconds",
            "Seconds since the view of the grants was proved current; -1 if never.",
        )?,
        view_revision: whole("leasehold_view_revision", "Revision of the grants in force.")?,
        keys_age: GaugeVec::new(
            Opts::new("leasehold_keys_age_seconds", "Seconds since an issuer's keys were proved current; -1 if never."),
            &["issuer"],
        )?,
        tokens: whole("leasehold_tokens_remembered", "Verified tokens that are remembered.")?,
        leases: whole("leasehold_leases", "Upstream credentials that are remembered.")?,
        running: whole("leasehold_calls_running", "Permitted calls that run.")?,
        ready: whole("leasehold_ready", "1 while the sidecar is ready, else 0.")?,
        source: parts.source.clone().map(Source::new).transpose()?,
        parts: parts.clone(),
    };
    parts.metrics.registry().register(Box::new(measured))?;
    Ok(())
}

impl Measured {
    fn all(&self) -> Vec<&dyn Collector> {
        let mut all: Vec<&dyn Collector> = vec![
            &self.grants,
            &self.locks,
            &self.next_expiry,
            &self.view_age,
            &self.guardrails_broken,
            &self.action_maps_broken,
            &self.action_maps_missing,
            &self.view_revision,
            &self.keys_age,
            &self.tokens,
            &self.leases,
            &self.running,
            &self.ready,
        ];
        all.extend(self.source.iter().flat_map(Source::all));
        all
    }
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Collector for Measured {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.parts.clock.now();
        let census = self.parts.decider.table().census(now);
        for state in GrantState::ALL {
            self.grants.with_label_values(&[state.as_str()]).set(signed(census.by_state[state as usize]));
        }
        self.locks.set(signed(census.locks));
        self.next_expiry.set(census.next_expiry.map_or(0.0, |next| next.as_secs_f64()));
        self.view_age.set(self.parts.decider.freshness().age(now).map_or(-1.0, |age| age.as_secs_f64()));
        self.guardrails_broken.set(i64::from(self.parts.decider.guardrails_are_broken()));
        let maps = self.parts.maps.standing();
        self.action_maps_broken.set(signed(maps.iter().filter(|map| map.error.is_some()).count()));
        self.action_maps_missing.set(signed(maps.iter().filter(|map| map.held.is_none()).count()));
        self.view_revision.set(i64::try_from(self.parts.decider.table().revision().0).unwrap_or(i64::MAX));
        let plane = self.parts.plane.load();
        for (issuer, age) in plane.verifier.keys_age(now) {
            self.keys_age.with_label_values(&[issuer.as_str()]).set(age.map_or(-1.0, |age| age.as_secs_f64()));
        }
        self.tokens.set(signed(plane.verifier.remembered_tokens()));
        self.leases.set(signed(plane.credentials.leases()));
        self.running.set(signed(self.parts.decider.calls().len()));
        self.ready.set(i64::from(self.parts.readiness.report().0));
        if let Some(source) = &self.source {
            source.measure();
        }
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
