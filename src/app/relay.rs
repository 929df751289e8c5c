//! A running relay: its source, its hub, its listener.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::clock::SystemClock;
use super::join::{self, Renewal};
use super::publish::{Listening, serve_to};
use super::source::{boot_id, upstreams};
use super::{LOOK_EVERY, carry};
use crate::config::{ControlSync, RelayConfig, SyncSigner};
use crate::domain::id::{BackendName, GrantId};
use crate::domain::principal::Principal;
use crate::domain::time::Clock;
use crate::sync::client::Status;
use crate::sync::follower::About;
use crate::sync::hub::Hub;
use crate::sync::relay::Relay;
use crate::sync::server::{Applicant, Enrolled, Failed, Origin, Use};
use crate::sync::stream::Said;
use crate::sync::{GrantSource, Work};
use crate::telemetry::admin::{Admin, Readiness};
use crate::telemetry::metrics::Metrics;

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
    let opened = upstreams(&config.servers, config.join.as_ref(), &clock).await;
    let (upstreams, renewal) = opened.context("relay.upstream")?;
    if config.shows_what_it_joined_with() {
        join::must_serve(&config.tls.certificate)?;
    }
    let hub = Arc::new(Hub::of_relay(clock, config.staleness_max));
    let relay = Arc::new(Relay::new(upstreams));
    let about = About {
        backends: config.backends.clone(),
        // Whoever follows may want them.
        action_maps: config.backends.clone(),
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
    if let Some(renewal) = renewal {
        let renewal = Renewal { status: Arc::clone(&status), ..renewal };
        tasks.spawn(renewal.run(stop.clone()));
    }
    Ok(Following { hub, relay, status, stop, tasks })
}

impl Following {
    /// Tells what is left to be told, and ends.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What a relay answers to those who follow it.
struct Passing {
    relay: Arc<Relay>,
    config: RelayConfig,
    /// Strangers who are heard at a time.
    strangers: Semaphore,
}

/// Most strangers who are heard at a time: each costs the control plane a look into its store.
const STRANGERS_MAX: usize = 4;

impl Passing {
    fn must_follow(&self, sidecar: &Principal) -> Result<(), Failed> {
        let is_named = self.config.sidecars.iter().any(|pattern| pattern.matches(sidecar));
        if is_named { Ok(()) } else { Err(Failed::Forbidden(format!("{sidecar} may not follow this relay"))) }
    }
}

impl Origin for Passing {
    fn may_follow(&self, sidecar: &Principal, backend: &BackendName) -> bool {
        self.config.may_follow(sidecar, backend)
    }

    fn moved(&self) -> Work<'static, ()> {
        // What its file says holds as long as it runs.
        Box::pin(std::future::pending())
    }

    fn consume(&self, sidecar: Principal, grant: GrantId, use_id: String) -> Work<'_, Result<Use, Failed>> {
        Box::pin(async move {
            self.must_follow(&sidecar)?;
            self.relay.consume(&grant, &use_id).await.map_err(Failed::Unavailable)
        })
    }

    fn enroll(&self, applicant: Applicant, csr: Bytes) -> Work<'_, Result<Enrolled, Failed>> {
        Box::pin(async move {
            let answer = match applicant {
                Applicant::Joins(token) => {
                    let busy = |_| Failed::Unavailable("too many join at once: try again in a moment".to_owned());
                    let _heard = self.strangers.try_acquire().map_err(busy)?;
                    self.relay.enroll(csr, token).await
                }
                Applicant::Shows(_) => {
                    // The control plane sees our certificate, and would sign for us.
                    let said =
                        "a relay passes on renewals that are signed, and this one is not: renew at a control plane";
                    return Err(Failed::Forbidden(said.to_owned()));
                }
                Applicant::Signed(by, signed) => {
                    self.must_follow(&by)?;
                    self.relay.renew(signed).await
                }
            };
            let reply = answer.map_err(|status| match status.code() {
                tonic::Code::InvalidArgument => Failed::Invalid(status.message().to_owned()),
                tonic::Code::PermissionDenied => Failed::Forbidden(status.message().to_owned()),
                _ => Failed::Unavailable(status.message().to_owned()),
            })?;
            Ok(Enrolled { certificates: reply.certificates, roots: reply.roots })
        })
    }

    fn said(&self, sidecar: &Principal, said: Said) {
        match said {
            Said::Used { grant, last, calls } => self.relay.used(&grant, last, calls),
            Said::Unusable { bundle, digest, error } => {
                tracing::error!(%sidecar, bundle, digest, error, "a sidecar cannot use what it was told");
            }
        }
    }
}

/// A relay that serves. Dropping it without [`RunningRelay::stop`] cuts everything at once.
pub struct RunningRelay {
    following: Following,
    address: SocketAddr,
    upkeep: CancellationToken,
    serving: CancellationToken,
    served: JoinHandle<()>,
    tasks: JoinSet<()>,
}

/// Starts a relay: it follows, and is bound, when this returns.
///
/// # Errors
/// What is wrong with a file or an address; nothing runs then.
pub async fn start_relay(config: &RelayConfig) -> anyhow::Result<RunningRelay> {
    let following = follow(config).await?;
    let (upkeep, serving) = (CancellationToken::new(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    let tls = config.tls.clone();
    let listens = ControlSync {
        address: config.address,
        trust_domain: config.trust_domain.clone(),
        signer: SyncSigner::Files {
            certificate: tls.certificate,
            key: tls.key,
            client_ca: tls.client_ca,
            client_crl: Vec::new(),
        },
    };
    let at = Listening {
        config: &listens,
        key: "relay",
        hub: &following.hub,
        // Who joined may pass on that others do; where somebody else signs, nobody comes without a certificate.
        strangers: config.join.is_some(),
        upkeep: upkeep.clone(),
        serving: serving.clone(),
        drain: config.drain_timeout,
    };
    let (relay, strangers) = (Arc::clone(&following.relay), Semaphore::new(STRANGERS_MAX));
    let passing = Passing { relay, config: config.clone(), strangers };
    let (address, served) = serve_to(at, Arc::new(passing), None, &mut tasks).await?;
    Ok(RunningRelay { following, address, upkeep, serving, served, tasks })
}

impl RunningRelay {
    /// Where it is followed.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What others follow.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.following.hub
    }

    /// Stops: those who follow are told to go elsewhere, what they said of uses is passed on.
    pub async fn stop(mut self) {
        self.serving.cancel();
        let _ = (&mut self.served).await;
        self.upkeep.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.following.stop().await;
    }
}

/// Runs a relay until the process is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run_relay(config: &RelayConfig) -> anyhow::Result<()> {
    carry(None, async |stop| {
        let admin = TcpListener::bind(config.admin.address)
            .await
            .with_context(|| format!("admin.address {}", config.admin.address))?;
        let address = admin.local_addr()?;
        let Some(running) = stop.unless(start_relay(config)).await? else { return Ok(()) };
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        super::gauges::register_source(&metrics, &running.following.status)?;
        let reports = Arc::new(std::collections::BTreeMap::new());
        let parts = Admin { metrics, readiness: readiness.clone(), reports, address };
        let serving = tokio::spawn(crate::telemetry::admin::serve(admin, parts, running.upkeep.clone()));
        readiness.set("serving", Ok(()));
        tracing::info!(%address, "admin listening");
        let follow = follow_readiness(&readiness, &running);
        tokio::select! {
            biased;
            () = stop.heard() => {}
            () = follow => {}
        }
        tracing::info!("stopping");
        readiness.set("serving", Err("draining".to_owned()));
        running.stop().await;
        let _ = serving.await;
        Ok(())
    })
}

/// Says again and again whether there is something to follow.
async fn follow_readiness(readiness: &Readiness, running: &RunningRelay) {
    loop {
        let following = &running.following;
        let is_ready = following.hub.head().is_some() && following.status.is_connected();
        let why = || "no control plane is followed".to_owned();
        readiness.set("grants", if is_ready { Ok(()) } else { Err(why()) });
        tokio::time::sleep(LOOK_EVERY / 4).await;
    }
}
