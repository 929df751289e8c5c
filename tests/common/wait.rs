//! Waiting for a value, never for a time.

use std::time::{Duration, Instant};

/// How long anything may take that should come at once, where two dozen processes share a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until `look` sees what it looks for.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
