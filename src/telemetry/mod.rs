//! Logs, the metric registry and the admin listener; knows no domain type.
