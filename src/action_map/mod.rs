//! Action maps as they are written and as they travel: how the calls of a backend become actions on resources.
//!
//! Both planes read them. The control plane reads which actions there are and how much each can change, and makes a
//! [`BackendBundle`] for the sidecars of each backend; a sidecar compiles a map and resolves calls by it.
//!
//! Deliberately absent: what a rule means for a call, which is the sidecar's alone, and the way that a bundle takes.

pub mod bundle;
pub mod document;

pub use bundle::{BackendBundle, NamedMap, Packed};
pub use document::{ActionMapDocument, Requires};
