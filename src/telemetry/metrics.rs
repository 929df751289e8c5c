//! The metric registry, and what is measured of the process itself.

use prometheus::{Encoder, IntGauge, Opts, Registry, TextEncoder};

/// The registry of one running program.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    resident: IntGauge,
    descriptors: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the process's own figures.
    pub fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("the name is a valid one, written here");
            registry.register(Box::new(gauge.clone())).expect("the registry is new");
            gauge
        };
        let resident = gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
        let descriptors = gauge("process_open_fds", "Number of open file descriptors.");
        let options = Opts::new("leasehold_build_info", "1, with the version as a label.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(options).expect("the name is a valid one, written here");
        build.set(1);
        registry.register(Box::new(build)).expect("the registry is new");
        Self { registry, resident, descriptors }
    }

    /// Where further metrics are registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything, in the Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        self.measure_process();
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    fn measure_process(&self) {
        if let Ok(statm) = std::fs::read_to_string("/proc/self/statm")
            && let Some(pages) = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<i64>().ok())
        {
            let page = i64::try_from(rustix::param::page_size()).unwrap_or(4_096);
            self.resident.set(pages.saturating_mul(page));
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            self.descriptors.set(i64::try_from(entries.count()).unwrap_or(i64::MAX));
        }
    }
}
