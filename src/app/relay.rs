//! A running relay, but for the listener: what its server needs is here, and whoever starts it serves it.

use std::sync::Arc;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clock::SystemClock;
use super::source::boot_id;
use crate::config::RelayConfig;
use crate::domain::time::Clock;
use crate::sync::GrantSource;
use crate::sync::client::{Status, Upstreams};
use crate::sync::follower::About;
use crate::sync::hub::Hub;
use crate::sync::relay::Relay;

/// A relay that follows its source. Dropping it ends that.
pub struct Following {
    /// What others follow.
    pub hub: Arc<Hub>,
    /// What is passed on.
    pub relay: Arc<Relay>,
    /// What the source shows of itself.
    pub status: Arc<Status>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Begins to follow. There may be no view yet when this returns; the hub then has those who follow it wait.
///
/// # Errors
/// What is wrong with a file.
pub async fn follow(config: &RelayConfig) -> anyhow::Result<Following> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let hub = Arc::new(Hub::of_relay(clock, config.staleness_max));
    let upstreams = Upstreams::open(config.servers.clone()).context("relay.upstream.tls")?;
    let relay = Arc::new(Relay::new(upstreams));
    let about = About {
        backends: config.backends.clone(),
        boot_id: boot_id()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        staleness_max: Some(config.staleness_max),
    };
    let mut source = relay.source(&hub, about, (config.staleness_max, config.first_view));
    let status = source.status();
    // It is patient, and fails for no reason.
    let _ = source.first().await;
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(Box::new(source).follow(stop.clone(), Box::new(|| {})));
    Ok(Following { hub, relay, status, stop, tasks })
}

impl Following {
    /// Tells what is left to be told, and ends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
