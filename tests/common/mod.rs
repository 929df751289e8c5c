//! What the tests of the whole program share: a sidecar in this process, a backend that writes down what it gets, and a
//! caller that sends bytes as they are.

#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods)]

pub mod backend;
pub mod client;
pub mod issuer;
mod wait;
pub mod world;

pub use wait::{DEADLINE, wait_for};
