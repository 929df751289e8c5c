//! A certificate is renewed in time, for as long as the process runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rcgen::KeyPair;
use tokio_util::sync::CancellationToken;

use super::{Held, Leaf, keep, request};
use crate::domain::time::{Clock, Timestamp};
use crate::sync::client::{TlsSettings, Upstreams, fraction};

/// How long is slept before the clock is read again: a machine that sleeps too does not count that.
const NAP: Duration = Duration::from_secs(60);

/// Renews the certificate again and again, over connections that it proves itself.
pub(in crate::app) struct Renewal {
    pub(in crate::app) files: TlsSettings,
    pub(in crate::app) upstreams: Arc<Upstreams>,
    pub(in crate::app) clock: Arc<dyn Clock>,
}

impl Renewal {
    /// Until `stop`.
    pub(in crate::app) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep_renewing() => {}
        }
    }

    async fn keep_renewing(&self) {
        // Somebody who takes the files away, or spoils them, is waited for.
        let mut pause = NAP;
        loop {
            match Held::read(&self.files) {
                Ok(Some(Held { leaf, .. })) => {
                    self.wait(leaf.due(fraction())).await;
                    if let Err(error) = self.renew().await {
                        self.complain(&leaf, &error);
                    }
                    pause = leaf.pause(fraction());
                }
                Ok(None) => tracing::error!(file = %self.files.certificate.display(), "the certificate is gone"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "the certificate cannot be renewed"),
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn wait(&self, due: Timestamp) {
        loop {
            let left = due.since(self.clock.now().wall);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(NAP)).await;
        }
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let key = KeyPair::generate().context("no key can be made")?;
        let answer = self.upstreams.renew(request(&key)?).await.map_err(|why| anyhow!(why))?;
        let leaf = keep(&self.files, &key, &answer, self.clock.now().wall)?;
        tracing::info!(sidecar = leaf.name, until = %leaf.until, "the certificate was renewed");
        Ok(())
    }

    fn complain(&self, leaf: &Leaf, error: &anyhow::Error) {
        let (error, until) = (format!("{error:#}"), leaf.until);
        let left = until.since(self.clock.now().wall);
        if left.is_zero() {
            tracing::error!(error, %until, "the certificate is over: start again with a new join token");
        } else if left < leaf.life() / 4 {
            tracing::error!(error, %until, "the certificate is not renewed; soon no control plane will know us by it");
        } else {
            tracing::warn!(error, %until, "the certificate is not renewed yet");
        }
    }
}
