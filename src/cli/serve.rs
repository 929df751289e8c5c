//! Commands that run until they are told to stop.

use crate::config::Config;

/// `leasehold proxy`.
pub(super) fn proxy(config: Config) -> anyhow::Result<()> {
    drop(config);
    anyhow::bail!("not wired")
}

/// `leasehold demo`.
pub(super) fn demo() -> anyhow::Result<()> {
    anyhow::bail!("not wired")
}
