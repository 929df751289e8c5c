//! The control plane: who may ask for what, who agrees, what becomes of it, and when it ends.
//!
//! An elevation in order: the API reads what is asked ([`api`]), policy rules ([`route`]), approvers decide
//! ([`command`]), a grant begins and ends, and every step is a row with its audit entry ([`store`]). Commands run one
//! after another ([`engine`]); sidecars hear of changes in the order of revisions.
//!
//! Deliberately absent: calls to backends, upstream credentials, and any name of the sidecar.

pub mod api;
pub mod authority;
pub mod catalogue;
pub mod command;
pub mod doctor;
pub mod document;
pub mod engine;
pub mod publish;
pub mod refusal;
pub mod route;
pub mod store;
