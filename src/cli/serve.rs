//! Commands that run until they are told to stop.

use crate::config::Config;

/// `leasehold proxy`.
pub(super) fn proxy(config: Config) -> anyhow::Result<()> {
    crate::app::run(config)
}

/// `leasehold demo`.
pub(super) fn demo(stay: bool) -> anyhow::Result<()> {
    crate::app::demo::run(&mut std::io::stdout(), stay)
}
