//! What changes while the program runs: the configuration file, certificates, credentials.
//!
//! Everything new is built and validated before anything is replaced; what cannot be used is said once and what was in
//! force stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{LOOK_EVERY, Parts, build};
use crate::config::{self, Config};
use crate::sidecar::plane::Plane;

/// Follows the configuration, TLS files and credentials until `stop`.
pub(super) async fn follow(parts: Parts, stop: CancellationToken) {
    let origin = parts.config.load().origin.clone();
    let mut seen = modified(&origin);
    let mut said = String::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = modified(&origin);
        if now != seen && now.is_some() {
            seen = now;
            match reload(&parts, &origin).await {
                Ok(()) => tracing::info!(file = %origin.display(), "configuration changed"),
                Err(error) => {
                    tracing::error!(file = %origin.display(), error = format!("{error:#}"), "configuration not in force; the last good one stays");
                }
            }
        }
        let plane = parts.plane.load_full();
        plane.credentials.maintain();
        let mut faults = String::new();
        for tls in plane.offers.iter().filter_map(|offer| offer.tls.as_ref()) {
            match tls.reload() {
                Ok(true) => tracing::info!("certificates changed"),
                Ok(false) => {}
                Err(error) => faults.push_str(&error.to_string()),
            }
        }
        if faults != said {
            if !faults.is_empty() {
                tracing::error!(error = faults, "certificates not in force; the last good ones stay");
            }
            said = faults;
        }
    }
}

/// Lets the verifier of the configuration in force keep its keys up to date, whichever that is, until `stop`.
pub(super) async fn follow_keys(plane: Arc<ArcSwap<Plane>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let verifier = Arc::clone(&plane.load().verifier);
        let replaced = stop.child_token();
        let watch = async {
            while Arc::ptr_eq(&verifier, &plane.load().verifier) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = Arc::clone(&verifier).maintain(replaced.clone()) => {}
            () = watch => {}
        }
        replaced.cancel();
    }
}

async fn reload(parts: &Parts, origin: &Path) -> anyhow::Result<()> {
    let new = match parts.config.load().grants.source {
        config::GrantSource::File { .. } | config::GrantSource::Remote { .. } => config::load(origin),
        config::GrantSource::Control => config::load_up(origin).map(|(sidecar, _)| sidecar),
    };
    let new = new.map_err(|errors| anyhow::anyhow!("{errors}"))?;
    if let Some(what) = needs_restart(&parts.config.load(), &new) {
        anyhow::bail!("`{what}` changed, which needs a restart");
    }
    let plane = build::plane(&new, &parts.addresses, Arc::clone(&parts.clock)).await?;
    parts.maps.replace(plane).map_err(|error| anyhow::anyhow!(error))?;
    parts.config.store(Arc::new(new));
    Ok(())
}

/// The first key that changed and cannot change while the program runs.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let listeners = |config: &Config| -> Vec<(String, String, bool, usize)> {
        let one = |l: &config::Listener| (l.name.clone(), l.address.to_string(), l.tls.is_some(), l.limits.connections);
        config.listeners.iter().map(one).collect()
    };
    let on_stale = |config: &Config| -> Vec<config::OnStale> { config.backends.iter().map(|b| b.on_stale).collect() };
    let given = |config: &Config| -> Vec<_> { build::mapped_by_control(config).collect() };
    if listeners(old) != listeners(new) {
        Some("listeners")
    } else if build::names(old) != build::names(new) {
        Some("backends (their names and order)")
    } else if given(old) != given(new) {
        // The control plane was told which maps are wanted.
        Some("backends[].action_map (from or to `control`)")
    } else if old.grants != new.grants {
        Some("grants")
    } else if on_stale(old) != on_stale(new) {
        // The control plane was told what it may count on.
        Some("backends[].on_stale")
    } else if old.audit != new.audit || old.access_log != new.access_log {
        Some("audit")
    } else if old.admin != new.admin {
        Some("admin")
    } else if old.workers != new.workers {
        Some("workers")
    } else {
        None
    }
}

fn modified(path: &PathBuf) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
