//! Logs, the metric registry and the admin listener.
//!
//! What is measured and said is decided where it happens; here is only how it gets out. Knows no domain type.

pub mod admin;
pub mod log;
pub mod metrics;
