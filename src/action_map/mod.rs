//! Action maps as they are written: how the calls of a backend become actions on resources.
//!
//! Both planes read them. A sidecar compiles a map and resolves calls by it; the control plane reads which actions there
//! are, and how much each can change.
//!
//! Deliberately absent: what a rule means for a call, which is the sidecar's alone, and how a map travels.

pub mod document;

pub use document::{ActionMapDocument, Requires};
