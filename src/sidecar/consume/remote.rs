//! Uses counted by control planes elsewhere.

use std::sync::Arc;

use super::Counter;
use crate::domain::id::GrantId;
use crate::sync::Work;
use crate::sync::client::{Upstreams, Use};

/// Asks the control planes whose grants are followed.
#[derive(Debug)]
pub struct Remote(Arc<Upstreams>);

impl Remote {
    /// Asks these.
    pub fn new(upstreams: Arc<Upstreams>) -> Self {
        Self(upstreams)
    }
}

impl Counter for Remote {
    fn take<'a>(&'a self, grant: &'a GrantId, use_id: &'a str) -> Work<'a, Result<Use, String>> {
        Box::pin(self.0.consume(grant, use_id))
    }
}
