//! How grants and their ends come from where they are decided to where they are enforced.
//!
//! A source knows everything at one revision and every change after it; a [`Sink`] takes both in. The control plane's
//! store is followed by its [`Hub`](hub::Hub) ([`feed`]); the hub speaks to each sidecar over one [`stream`]; the sidecar's
//! [`follower`] puts what it hears into the grant table; a relay's puts it into a hub again. The protocol is pure:
//! frames and readings of the clock in, frames and calls of a sink out, so that a simulation can run all of it.
//!
//! What it promises: no reordering, repetition or loss of frames revives a grant that ended, or hides an end for longer
//! than the view counts as fresh; and a view counts as fresh only from when the proof of it was *asked* for.

pub mod client;
pub mod enforce;
pub mod feed;
pub mod follower;
pub mod hub;
pub mod local;
pub mod relay;
pub mod renewal;
pub mod server;
pub mod session;
pub mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::id::{BackendName, Revision};
use crate::domain::time::Uptime;
use crate::domain::view::{Change, Snapshot};

/// A future of a source's.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Called after each change that is in force.
pub type Changed = Box<dyn Fn() + Send + Sync>;

/// Somewhere grants come from.
pub trait GrantSource: Send {
    /// Puts the first view in force.
    ///
    /// # Errors
    /// Why nothing is in force; for the operator.
    fn first(&mut self) -> Work<'_, Result<(), String>>;

    /// Keeps the view current until `stop`. Dropping the future stops it too; the view then ages.
    fn follow(self: Box<Self>, stop: CancellationToken, changed: Changed) -> Work<'static, ()>;
}

/// The name of the bundle that holds the guardrails.
pub const GUARDRAILS: &str = "guardrails";

/// What the name of a bundle begins with that is about one backend; only whoever asks for it gets it.
pub const OF_BACKEND: &str = "backend/";

/// The name of the bundle that holds what a sidecar has to know of a backend.
pub fn bundle_of(backend: &BackendName) -> Arc<str> {
    format!("{OF_BACKEND}{backend}").into()
}

/// What calls are judged by besides grants and locks: known by its digest, opaque to whoever only passes it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// What it is, such as [`GUARDRAILS`], or [`OF_BACKEND`] with a backend's name.
    pub name: Arc<str>,
    /// Of the content, as whoever made it computes it.
    pub digest: Arc<str>,
    /// The revision as of which it is current.
    pub revision: Revision,
    /// What it says.
    pub content: bytes::Bytes,
}

impl Bundle {
    /// The backend that it is about, where it is about one.
    pub fn backend(&self) -> Option<&str> {
        self.name.strip_prefix(OF_BACKEND)
    }
}

/// The digest of digests: whether two ends speak of the same bundles.
fn digest_of<'a>(bundles: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for (name, digest) in bundles {
        context.update(format!("{name}={digest}\n").as_bytes());
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where what a source knows is put: the grant table of a sidecar, or the hub that others follow.
///
/// Only one source writes to a sink, and one call at a time.
pub trait Sink: Send + Sync + 'static {
    /// Everything, at one revision; what it does not have has ended.
    ///
    /// # Errors
    /// Why it is refused as a whole; nothing was changed.
    fn replace(&self, snapshot: Snapshot) -> Result<(), String>;

    /// All changes after the revision in force up to `to`, in their order.
    ///
    /// # Errors
    /// Why it cannot be applied; the source then begins anew with [`Sink::replace`].
    fn advance(&self, to: Revision, changes: Vec<Change>) -> Result<(), String>;

    /// Ends and locks ahead of their turn; each comes again in its turn.
    fn hurry(&self, ahead: Vec<(Revision, Change)>);

    /// A bundle, before whatever was decided after it.
    ///
    /// # Errors
    /// Why it cannot be used. The last good one stays in force; where there is none, calls are denied.
    fn bundle(&self, bundle: Bundle) -> Result<(), String>;

    /// What is in force is what the origin of all sources held at `at`, or later.
    fn prove(&self, at: Uptime);

    /// The origin's clock is ahead of this machine's by so much at most; whoever ends things by the clock ends them by the
    /// later one.
    fn ahead(&self, _by: Duration) {}
}
