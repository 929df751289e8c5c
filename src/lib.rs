//! Leasehold: privilege orchestration for machines.
//!
//! Nobody and nothing holds standing admin rights. A sidecar in front of a sensitive backend checks every call against
//! its table of live grants, injects a short-lived upstream credential only for a permitted call, cuts what runs when
//! the grant ends, and records one outcome for each call.
//!
//! The map, in the order of dependency; `tests/boundaries.rs` holds who may name whom:
//!
//! * [`domain`] — what things are; names no other module.

pub mod domain;

pub mod identity;

pub mod telemetry;

pub mod sidecar;

pub mod config;

pub mod app;

pub mod cli;
