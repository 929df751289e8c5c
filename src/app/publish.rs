//! What a control plane knows, kept for those who follow it, and the listener where sidecars do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LOOK_EVERY;
use super::authority::{self, Served};
use super::source::Beside;
use crate::config::{ControlConfig, ControlSync, SyncSigner};
use crate::control::api::serve::{self, Greeted};
use crate::control::engine::Engine;
use crate::control::publish::{self, Enrolment, Publisher, Replicas, Reports, Usage};
use crate::control::store::Store;
use crate::control::store::sql::SqlStore;
use crate::domain::id::Revision;
use crate::domain::time::Clock;
use crate::domain::view::Snapshot;
use crate::identity::{Settings, TrustDomain, Verifier};
use crate::sidecar::accept::tls::{ClientCertificate, Tls, TlsSettings};
use crate::sync::feed::{Changes, Feed, FeedSource};
use crate::sync::hub::Hub;
use crate::sync::server::{self, Origin};
use crate::sync::{Bundle, GrantSource, Work};

/// How often the store is read at most because sidecars ask for evidence.
const READ_EVERY: Duration = Duration::from_millis(20);

/// Keeps a hub filled from the store.
pub(super) async fn fill(
    feed: Beside,
    hub: &Arc<Hub>,
    tasks: &mut JoinSet<()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let feed = Asked { feed, hub: Arc::clone(hub), next: Instant::now() };
    let (sink, clock) = (Arc::clone(hub), Arc::clone(hub.clock()));
    let mut source = Box::new(FeedSource::new(feed, sink, clock));
    source.first().await.map_err(|error| anyhow!(error)).context("the grants of the store")?;
    tasks.spawn(source.follow(stop, Box::new(|| {})));
    Ok(())
}

/// A feed that is also asked whenever a sidecar asks for evidence.
struct Asked {
    feed: Beside,
    hub: Arc<Hub>,
    /// When a sidecar's question makes us read again at the earliest; those that come before share the answer.
    next: Instant,
}

impl Feed for Asked {
    fn snapshot(&self) -> Work<'_, Result<Snapshot, String>> {
        self.feed.snapshot()
    }

    fn bundles(&self, revision: Revision) -> Work<'_, Result<Vec<Bundle>, String>> {
        self.feed.bundles(revision)
    }

    fn changes(&self, after: Revision) -> Work<'_, Result<Changes, String>> {
        self.feed.changes(after)
    }

    fn moved(&mut self) -> Work<'_, ()> {
        Box::pin(async {
            tokio::select! {
                () = self.feed.moved() => {}
                () = async {
                    self.hub.asked().await;
                    tokio::time::sleep_until(self.next).await;
                } => {}
            }
            self.next = Instant::now() + READ_EVERY;
        })
    }
}

/// What says where ends are enforced: here, and where other control planes write to the store too.
pub(super) fn reports(
    store: &Arc<SqlStore>,
    hub: &Arc<Hub>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<Reports>> {
    let mut replicas = None;
    if store.is_shared() {
        // Two of one name would not hear each other.
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow!("the system has no random bytes"))?;
        let id = URL_SAFE_NO_PAD.encode(random);
        let shared = Arc::new(Replicas::new(id, Arc::clone(hub), Arc::clone(store)));
        tasks.spawn(Arc::clone(&shared).run(stop.clone()));
        replicas = Some(shared);
    }
    let reports = Arc::new(Reports::new(Arc::clone(hub), replicas));
    tasks.spawn(Arc::clone(&reports).watch(stop.clone()));
    Ok(reports)
}

/// What gathers how grants are used.
pub(super) fn usage(
    store: &Arc<SqlStore>,
    engine: &Engine,
    clock: &Arc<dyn Clock>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Arc<Usage> {
    let usage = Arc::new(Usage::new(Arc::clone(store), engine.clone(), Arc::clone(clock)));
    tasks.spawn(Arc::clone(&usage).run(stop.clone()));
    usage
}

/// Where sidecars follow, with what its certificates are verified by.
struct Door {
    tls: Tls,
    settings: Settings,
    names: ArcSwap<Verifier>,
    clock: Arc<dyn Clock>,
    own: Option<(Served, Arc<Enrolment>)>,
}

impl Door {
    async fn open(
        config: &ControlSync,
        clock: Arc<dyn Clock>,
        own: Option<(Served, Arc<Enrolment>)>,
        strangers: bool,
    ) -> anyhow::Result<Self> {
        let settings = match (&config.signer, &own) {
            (SyncSigner::Files { certificate, key, client_ca, client_crl }, _) => TlsSettings {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: Some(client_ca.clone()),
                client_crl: client_crl.clone(),
                client_certificate: match strangers {
                    true => ClientCertificate::Optional,
                    false => ClientCertificate::Required,
                },
                tls12: false,
            },
            (SyncSigner::Own { folder, .. }, Some((served, enrolment))) => {
                served.renew(enrolment.authority(), clock.now().wall)?;
                let (certificate, key) = served.files();
                TlsSettings {
                    certificate,
                    key,
                    client_ca: Some(authority::shown(folder)),
                    client_crl: Vec::new(),
                    // Whoever has a join token has no certificate yet; for all else one is asked for.
                    client_certificate: ClientCertificate::Optional,
                    tls12: false,
                }
            }
            (SyncSigner::Own { .. }, None) => return Err(anyhow!("there is no authority")),
        };
        let bundle = settings.client_ca.clone().unwrap_or_default();
        let tls = Tls::open(settings)?;
        let domain = TrustDomain { name: config.trust_domain.clone(), bundle };
        let settings = Settings { spiffe: vec![domain], ..Settings::default() };
        let names = ArcSwap::from_pointee(Verifier::new(settings.clone(), Arc::clone(&clock)).await?);
        Ok(Self { tls, settings, names, clock, own })
    }

    /// Reads the files again and puts all in force at once, if any changed.
    async fn reload(&self) -> anyhow::Result<bool> {
        if let Some((served, enrolment)) = &self.own {
            served.renew(enrolment.authority(), self.clock.now().wall)?;
        }
        let changed = self.tls.reload()?;
        if changed {
            self.names.store(Arc::new(Verifier::new(self.settings.clone(), Arc::clone(&self.clock)).await?));
        }
        Ok(changed)
    }

    async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut said = String::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match self.reload().await {
                Ok(true) => tracing::info!("the certificates towards sidecars changed"),
                Ok(false) => said.clear(),
                Err(error) if error.to_string() != said => {
                    said = error.to_string();
                    tracing::error!(
                        error = said,
                        "the certificates towards sidecars are not in force; the last good ones stay"
                    );
                }
                Err(_) => {}
            }
        }
    }
}

/// The own authority, where nobody else signs, with what the listener shows.
pub(super) async fn enrolment(
    config: &ControlConfig,
    engine: &Engine,
    store: &Arc<SqlStore>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<Arc<Enrolment>>> {
    let Some(ControlSync { trust_domain, signer: SyncSigner::Own { folder, lives, names: own, .. }, .. }) =
        &config.control.sync
    else {
        return Ok(None);
    };
    let mut authority = authority::open(folder, trust_domain, clock.now().wall)?;
    if let Some(lives) = lives {
        authority = authority.signing_for(*lives);
    }
    let domain = TrustDomain { name: trust_domain.clone(), bundle: authority::shown(folder) };
    let names = Verifier::new(Settings { spiffe: vec![domain], ..Settings::default() }, Arc::clone(clock)).await?;
    let enrolment =
        Enrolment::new((authority, own.clone()), names, engine.clone(), Arc::clone(store), Arc::clone(clock));
    Ok(Some(Arc::new(enrolment)))
}

/// What listening for sidecars stands on.
pub(super) struct Ground<'g> {
    pub(super) hub: &'g Arc<Hub>,
    pub(super) engine: &'g Engine,
    pub(super) enrolment: Option<Arc<Enrolment>>,
    pub(super) usage: &'g Arc<Usage>,
    /// Ends the upkeep, and before it the serving.
    pub(super) upkeep: CancellationToken,
    pub(super) serving: CancellationToken,
}

/// Listens for sidecars.
pub(super) async fn listen(
    control: &ControlConfig,
    config: &ControlSync,
    ground: Ground<'_>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let Ground { hub, engine, enrolment, usage, upkeep, serving } = ground;
    let own = match (&config.signer, &enrolment) {
        (SyncSigner::Own { names, .. }, Some(enrolment)) => {
            Some((Served::new(&control.control.data, names), Arc::clone(enrolment)))
        }
        _ => None,
    };
    let publisher = Arc::new(Publisher::new(engine.clone(), enrolment, Arc::clone(usage)));
    let drain = control.drain_timeout;
    let at = Listening { config, key: "control.sync", hub, strangers: false, upkeep, serving, drain };
    serve_to(at, publisher, own, tasks).await
}

/// Where is listened, for whom, and until when.
pub(super) struct Listening<'l> {
    pub(super) config: &'l ControlSync,
    /// The section it is configured in.
    pub(super) key: &'static str,
    pub(super) hub: &'l Arc<Hub>,
    /// Whether somebody without a certificate is heard, with a join token that another verifies.
    pub(super) strangers: bool,
    /// Ends the upkeep, and before it the serving.
    pub(super) upkeep: CancellationToken,
    pub(super) serving: CancellationToken,
    pub(super) drain: Duration,
}

/// Serves whoever follows, with what only `origin` can answer.
pub(super) async fn serve_to<O: Origin>(
    at: Listening<'_>,
    origin: Arc<O>,
    own: Option<(Served, Arc<Enrolment>)>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let Listening { config, key, hub, strangers, upkeep, serving, drain } = at;
    let door = Arc::new(Door::open(config, Arc::clone(hub.clock()), own, strangers).await.context(key)?);
    let listener =
        TcpListener::bind(config.address).await.with_context(|| format!("{key}.address {}", config.address))?;
    let address = listener.local_addr()?;
    tasks.spawn(Arc::clone(&door).follow(upkeep));
    let routes = server::routes(Arc::clone(hub), origin, serving.clone());
    let current = Arc::clone(&door);
    let tls: serve::CurrentTls = Arc::new(move || current.tls.current());
    let greet: serve::Greet<Option<server::Peer>> = Arc::new(move |peer| {
        let mark = publish::sidecar(&door.names.load(), &door.clock, &peer.certificates).inspect_err(|error| {
            tracing::warn!(host = %peer.host, error, "a sidecar's certificate is refused");
        })?;
        let lives = mark.is_none().then_some(publish::STRANGER_LIVES);
        Ok(Greeted { mark, lives })
    });
    let served = tokio::spawn(serve::serve(listener, routes, Some(tls), greet, serve::SIDECARS_MAX, serving, drain));
    tracing::info!(%address, "listening for sidecars");
    Ok((address, served))
}
