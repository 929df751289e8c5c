//! Commands that run until they are told to stop.

use tracing::level_filters::LevelFilter;

use super::{LogFormat, LogLevel};
use crate::config::{Config, ControlConfig, RelayConfig};
use crate::telemetry::log;

/// Begins to log on standard error.
pub(super) fn log(format: LogFormat, level: LogLevel) {
    let format = match format {
        LogFormat::Text => log::LogFormat::Text,
        LogFormat::Json => log::LogFormat::Json,
    };
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    log::init(format, level);
}

/// `leasehold proxy`.
pub(super) fn proxy(config: Config) -> anyhow::Result<()> {
    crate::app::run(config)
}

/// `leasehold control`.
pub(super) fn control(config: &ControlConfig) -> anyhow::Result<()> {
    crate::app::control::run_control(config)
}

/// `leasehold relay`.
pub(super) fn relay(config: &RelayConfig) -> anyhow::Result<()> {
    crate::app::relay::run_relay(config)
}

/// `leasehold up`.
pub(super) fn up(sidecar: Config, control: &ControlConfig) -> anyhow::Result<()> {
    crate::app::control::run_up(sidecar, control)
}

/// `leasehold demo`.
pub(super) fn demo(stay: bool) -> anyhow::Result<()> {
    crate::app::demo::run(&mut std::io::stdout(), stay)
}
