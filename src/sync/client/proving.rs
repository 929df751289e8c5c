//! Whether anything was proved lately.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::{Bundle, Sink};
use crate::domain::id::Revision;
use crate::domain::time::Uptime;
use crate::domain::view::{Change, Snapshot};

/// A sink that says whether anything was proved.
pub(super) struct Proving {
    proofs: AtomicU64,
    sink: Arc<dyn Sink>,
}

impl Proving {
    /// Over another sink.
    pub(super) fn over(sink: Arc<dyn Sink>) -> Self {
        Self { proofs: AtomicU64::new(0), sink }
    }

    pub(super) fn proofs(&self) -> u64 {
        self.proofs.load(Ordering::Relaxed)
    }
}

impl Sink for Proving {
    fn replace(&self, snapshot: Snapshot) -> Result<(), String> {
        // Very many grants take a while, and this thread has others to serve.
        tokio::task::block_in_place(|| self.sink.replace(snapshot))
    }

    fn advance(&self, to: Revision, changes: Vec<Change>) -> Result<(), String> {
        self.sink.advance(to, changes)
    }

    fn hurry(&self, ahead: Vec<(Revision, Change)>) {
        self.sink.hurry(ahead);
    }

    fn bundle(&self, bundle: Bundle) -> Result<(), String> {
        self.sink.bundle(bundle)
    }

    fn prove(&self, at: Uptime) {
        self.proofs.fetch_add(1, Ordering::Relaxed);
        self.sink.prove(at);
    }

    fn ahead(&self, by: Duration) {
        self.sink.ahead(by);
    }
}
