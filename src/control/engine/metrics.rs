//! What is counted of commits. Nothing is counted that is not durable.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use crate::control::store::Write;

/// Bounds of the sizes of a batch.
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Bounds of a transaction's time, in seconds: from a file in memory to a database that is far away.
const SECONDS: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

#[derive(Debug)]
pub(super) struct Counted {
    events: IntCounterVec,
    batch: Histogram,
    seconds: Histogram,
}

impl Counted {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, bounds: &[f64]| -> prometheus::Result<Histogram> {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let options = Opts::new("leasehold_control_events_total", "Entries of the control plane's record, by event.");
        let events = IntCounterVec::new(options, &["event"])?;
        registry.register(Box::new(events.clone()))?;
        let batch = histogram("leasehold_store_commit_batch_size", "Commands that were committed together.", SIZES)?;
        let about = "Time of a transaction that wrote, from its beginning until it was committed.";
        Ok(Self { events, batch, seconds: histogram("leasehold_store_commit_seconds", about, SECONDS)? })
    }

    /// The counters of what is about to be written, to be moved when it is committed.
    ///
    /// The events are words of the commands, so there are only so many series.
    pub(super) fn of<'w>(&'w self, writes: &'w [Write]) -> impl Iterator<Item = IntCounter> + 'w {
        writes.iter().filter_map(|write| match write {
            Write::Audit(entry) => Some(self.events.with_label_values(&[entry.event.as_str()])),
            _ => None,
        })
    }

    /// That so many commands are committed, and what they wrote.
    pub(super) fn committed(&self, commands: usize, events: &[IntCounter], took: Duration) {
        events.iter().for_each(IntCounter::inc);
        // At most the few thousand that may wait.
        self.batch.observe(commands as f64);
        self.seconds.observe(took.as_secs_f64());
    }
}
