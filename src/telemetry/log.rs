//! Log lines on standard error.
//!
//! The level is that of our own lines. Libraries below us log what they read and write at their finer levels, callers'
//! tokens included, so theirs are never shown below `warn`.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Begins to log what is at least as grave as `level`. Called once; a second call is ignored.
pub fn init(format: LogFormat, level: LevelFilter) {
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("leasehold", level);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_filter(targets).boxed(),
        LogFormat::Text => lines.with_filter(targets).boxed(),
    };
    // The outcome of a second start in one process is the first one's format.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}
