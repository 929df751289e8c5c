//! Control planes and sidecars that follow them, over real connections.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod follower;
#[path = "../store/postgres.rs"]
#[allow(dead_code)]
mod postgres;
mod signer;
mod world;

mod doors;
mod enforce;
mod enrol;
mod follow;
mod join;
mod maps;
mod replicas;
mod through;
mod watch;
mod whole;
