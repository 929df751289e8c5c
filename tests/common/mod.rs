//! What the tests of the whole program share: a sidecar in this process, a backend that writes down what it gets, and a
//! caller that sends bytes as they are.

#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods)]

pub mod backend;
pub mod client;
pub mod issuer;
pub mod world;

use std::time::{Duration, Instant};

/// How long anything may take that should come at once.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `look` sees what it looks for.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}
