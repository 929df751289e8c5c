//! Sidecars that follow control planes over the network: what is heard is in force, what is not proved is denied.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;

mod certificates;
mod counted;
mod follow;
mod hostile;
mod maps;
mod relay;
mod server;
mod sidecar;
mod told;
