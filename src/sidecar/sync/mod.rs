//! Where the grants come from. The sole writer of the table, and the only one who says how fresh it is.
//!
//! A [`GrantSource`] is a file ([`file`](mod@file)) or a feed of changes ([`feed`]), which the control plane in the same process is.

pub mod document;
pub mod feed;
pub mod file;

use std::pin::Pin;

use tokio_util::sync::CancellationToken;

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
