//! A running control plane: its store, its engine, its API; alone or beside a sidecar.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clock::SystemClock;
use super::source::Beside;
use super::{LOOK_EVERY, Running, build, carry, publish, start_beside};
use crate::config::{self, Config, ControlConfig, StoreAddress};
use crate::control::api::{self, LocalToken, serve::CurrentTls};
use crate::control::catalogue::LOCAL_ADMIN;
use crate::control::command::{Command, Reply};
use crate::control::document::{API_VERSION, BackendSpec, Document, Kind, Metadata, NamedAction, Spec, read_yaml};
use crate::control::engine::Engine;
use crate::control::publish::{Reports, Usage};
use crate::control::store::sql::SqlStore;
use crate::domain::principal::Principal;
use crate::domain::time::Clock;
use crate::identity::Verifier;
use crate::sidecar::accept::tls::Tls;
use crate::sidecar::resolve::ActionMap;
use crate::sync::hub::Hub;
use crate::sync::local::Local;
use crate::telemetry::admin::{Admin, Readiness};
use crate::telemetry::metrics::Metrics;

/// The sidecar in the control plane's own process.
const LOCAL_SIDECAR: &str = "urn:leasehold:local#sidecar";

/// A running control plane. Dropping it without [`RunningControl::stop`] cuts everything at once.
pub struct RunningControl {
    address: SocketAddr,
    sync: Option<SocketAddr>,
    reports: Arc<Reports>,
    usage: Arc<Usage>,
    token_file: PathBuf,
    engine: Engine,
    store: Arc<SqlStore>,
    upkeep: CancellationToken,
    serving: CancellationToken,
    served: Vec<tokio::task::JoinHandle<()>>,
    tasks: JoinSet<()>,
}

/// Starts a control plane: the store is open, the documents are in force and the API is bound when this returns.
///
/// # Errors
/// What is wrong with the store, a document, a file or an address; nothing runs then.
pub async fn start_control(config: &ControlConfig) -> anyhow::Result<RunningControl> {
    start_control_at(config, Arc::new(SystemClock::new())).await
}

/// As [`start_control`], by this clock; for tests.
///
/// # Errors
/// As [`start_control`].
pub async fn start_control_at(config: &ControlConfig, clock: Arc<dyn Clock>) -> anyhow::Result<RunningControl> {
    start_control_with(config, clock, &Metrics::new(), Vec::new()).await
}

/// As [`start_control`], with its figures in `metrics`; `more` is declared with the configured documents, which come
/// before it where both name a thing.
async fn start_control_with(
    config: &ControlConfig,
    clock: Arc<dyn Clock>,
    metrics: &Metrics,
    more: Vec<Document>,
) -> anyhow::Result<RunningControl> {
    let control = &config.control;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&control.data)
        .with_context(|| format!("control.data {}", control.data.display()))?;
    let token_file = control.data.join("admin.token");
    let local = local_token(&token_file)?;
    let store = Arc::new(SqlStore::open(&store_url(&control.store)).await.context("control.store")?);
    let verifier = verifier(config, &clock).await?;
    let hub = Arc::new(Hub::new(Arc::clone(&clock)));
    let (upkeep, serving) = (CancellationToken::new(), CancellationToken::new());
    let engine = Engine::start(Arc::clone(&store), Arc::clone(&clock), metrics.registry(), upkeep.clone()).await;
    let (engine, running) = engine.map_err(|error| anyhow!(error))?;
    let listener =
        TcpListener::bind(control.address).await.with_context(|| format!("control.address {}", control.address))?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(running.await) });
    tasks.spawn(Arc::clone(&verifier).maintain(upkeep.clone()));
    let tls = match &control.tls {
        Some(tls) => Some(follow_tls(Arc::new(Tls::open(tls.clone())?), &mut tasks, upkeep.clone())),
        None => None,
    };
    let reports = publish::reports(&store, &hub, &mut tasks, &upkeep)?;
    reports.register(metrics.registry())?;
    let enrolment = publish::enrolment(config, &engine, &store, &clock).await?;
    let usage = publish::usage(&store, &engine, &clock, &mut tasks, &upkeep);
    let router = api::router(api::Parts {
        engine: engine.clone(),
        store: Arc::clone(&store),
        clock,
        verifier,
        local: Some(local),
        calls_per_second: control.calls_per_second,
        login: control.login.as_ref().map(login),
        reports: Arc::clone(&reports),
        enrolment: enrolment.clone(),
        usable,
        stop: serving.clone(),
        registry: metrics.registry().clone(),
    })?;
    let (greet, most) = (api::serve::anybody(), api::serve::CONNECTIONS_MAX);
    let mut served = vec![tokio::spawn(api::serve::serve(
        listener,
        router,
        tls,
        greet,
        most,
        serving.clone(),
        config.drain_timeout,
    ))];
    let feed = Beside::new(Arc::clone(&store), engine.clone());
    publish::fill(feed, &hub, &mut tasks, upkeep.clone()).await?;
    let mut sync = None;
    if let Some(listens) = &control.sync {
        let (upkeep, serving) = (upkeep.clone(), serving.clone());
        let ground = publish::Ground { hub: &hub, engine: &engine, enrolment, usage: &usage, upkeep, serving };
        let (bound, serves) = publish::listen(config, listens, ground, &mut tasks).await?;
        sync = Some(bound);
        served.push(serves);
    }
    let running =
        RunningControl { address, sync, reports, usage, token_file, engine, store, upkeep, serving, served, tasks };
    running.declare(documents(&control.documents, more)?).await?;
    tracing::info!(%address, "control plane listening");
    tracing::info!(file = %running.token_file.display(), "the local admin's token is in this file");
    Ok(running)
}

impl RunningControl {
    /// Where the API is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where sidecars follow, if they do.
    pub fn sync(&self) -> Option<SocketAddr> {
        self.sync
    }

    /// The file that holds the local admin's token.
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// Declares documents in the name of the local admin.
    async fn declare(&self, documents: Vec<Document>) -> anyhow::Result<()> {
        if documents.is_empty() {
            return Ok(());
        }
        let actor = Principal::parse(LOCAL_ADMIN).map_err(|error| anyhow!(error))?;
        let reply = self.engine.run(actor, Command::Apply(documents)).await;
        let reply = reply.map_err(|refusal| anyhow!("documents: {}", refusal.detail))?;
        if let Reply::Applied(applied) = reply {
            for document in applied.iter().filter(|document| document.result != "unchanged") {
                tracing::info!(kind = %document.kind, name = document.name, result = document.result, "declared");
            }
        }
        Ok(())
    }

    /// The grants of this control plane, for the sidecar beside it, who counts among those that follow.
    async fn feed(&self, config: &Config) -> anyhow::Result<Beside> {
        let beside = Beside::new(Arc::clone(&self.store), self.engine.clone());
        let sidecar = Principal::parse(LOCAL_SIDECAR).map_err(|error| anyhow!(error))?;
        let backends = config.backends.iter().map(|backend| backend.name.clone()).collect();
        let hub = Arc::clone(self.reports.hub());
        let local = Local::join(hub, sidecar, backends, config.grants.staleness_max);
        self.reports.announce().await.context("control.store")?;
        Ok(beside.counted(local, Arc::clone(&self.usage)))
    }

    /// Stops: no new connection, calls finish until the configured deadline, what waits is written.
    pub async fn stop(mut self) {
        self.serving.cancel();
        for served in std::mem::take(&mut self.served) {
            let _ = served.await;
        }
        self.upkeep.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.store.close().await;
    }
}

impl Drop for RunningControl {
    fn drop(&mut self) {
        self.serving.cancel();
        self.upkeep.cancel();
        self.served.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn login(config: &config::Login) -> api::Login {
    let config::Login { issuer, client_id, scopes } = config.clone();
    api::Login { issuer, client_id, scopes }
}

/// Whose proofs are good at the API.
async fn verifier(config: &ControlConfig, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<Verifier>> {
    let mut identity = config.identity.clone();
    if let Some(login) = &config.control.login {
        // People show the ID token they logged in with; to the sidecar it stays worth nothing.
        for issuer in identity.issuers.iter_mut().filter(|issuer| issuer.issuer == login.issuer) {
            issuer.own_client = Some(login.client_id.clone());
        }
    }
    Ok(Arc::new(Verifier::new(identity, Arc::clone(clock)).await?))
}

/// The token of the local admin: read where it is, else made, for the owner of the process alone.
fn local_token(file: &Path) -> anyhow::Result<LocalToken> {
    let context = || format!("the local admin's token {}", file.display());
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(file) {
        Ok(mut created) => {
            let mut random = [0; 32];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow!("the system has no random bytes"))?;
            let token = format!("lha_{}", URL_SAFE_NO_PAD.encode(random));
            created.write_all(token.as_bytes()).and_then(|()| created.sync_all()).with_context(context)?;
            Ok(LocalToken::new(&token))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(file).with_context(context)?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(
                    anyhow!("others may read it: `chmod 600` it, or remove it to have a new one").context(context())
                );
            }
            let token = std::fs::read_to_string(file).with_context(context)?;
            let token = token.trim_end();
            if token.len() < 32 {
                return Err(anyhow!("it is no token: remove it to have a new one").context(context()));
            }
            Ok(LocalToken::new(token))
        }
        Err(error) => Err(anyhow!(error).context(context())),
    }
}

fn store_url(address: &StoreAddress) -> String {
    match address {
        StoreAddress::Sqlite(path) => {
            let path = percent_encoding::percent_encode(path.as_os_str().as_encoded_bytes(), PATH);
            format!("sqlite://{path}?mode=rwc")
        }
        StoreAddress::Postgres { url, password: None } => url.clone(),
        StoreAddress::Postgres { url, password: Some(password) } => {
            let password = utf8_percent_encode(password.expose_secret(), NON_ALPHANUMERIC);
            match url.split_once('@') {
                Some((before, after)) => format!("{before}:{password}@{after}"),
                None => url.clone(),
            }
        }
    }
}

/// What a path keeps in a URL.
const PATH: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Documents from files, and from the YAML files of folders; of `more` those that are not among them.
fn documents(paths: &[PathBuf], more: Vec<Document>) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        let files = if path.is_dir() { yaml_files(path)? } else { vec![path.clone()] };
        for file in files {
            let text = std::fs::read_to_string(&file).with_context(|| format!("documents {}", file.display()))?;
            let read = read_yaml(&text).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(|error| format!("{}: {error}", file.display())).collect();
                anyhow!("{}", lines.join("\n"))
            });
            documents.extend(read?);
        }
    }
    for document in more {
        let same = |d: &Document| d.kind == document.kind && d.metadata.name == document.metadata.name;
        if !documents.iter().any(same) {
            documents.push(document);
        }
    }
    documents.iter().try_for_each(usable).map_err(|error| anyhow!("documents: {error}"))?;
    Ok(documents)
}

/// Whether a sidecar could use a document. What has not even its shape is the control plane's to refuse.
fn usable(document: &Document) -> Result<(), String> {
    let Ok(Spec::ActionMap(_, map)) = document.read() else { return Ok(()) };
    let name = document.metadata.name.escape_debug();
    ActionMap::compile(&map).map(drop).map_err(|errors| format!("ActionMap `{name}`: spec: {errors}"))
}

/// The YAML files of a folder and below, in the order of their names; those of policy tests are none.
fn yaml_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("documents {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            files.extend(yaml_files(&path)?);
        } else if (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.contains("_test.y") {
            files.push(path);
        }
    }
    Ok(files)
}

fn follow_tls(tls: Arc<Tls>, tasks: &mut JoinSet<()>, stop: CancellationToken) -> CurrentTls {
    let followed = Arc::clone(&tls);
    tasks.spawn(async move {
        let mut said = String::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match followed.reload() {
                Ok(true) => tracing::info!("the API's certificates changed"),
                Ok(false) => said.clear(),
                Err(error) if error.to_string() != said => {
                    said = error.to_string();
                    tracing::error!(error = said, "the API's certificates are not in force; the last good ones stay");
                }
                Err(_) => {}
            }
        }
    });
    Arc::new(move || tls.current())
}

/// What the sidecar's configuration says of its backends, as documents. Of those whose action map is to come from the
/// control plane it says nothing.
fn backends(config: &Config) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for backend in &config.backends {
        let Some(map) = build::action_map(backend)? else { continue };
        let actions =
            map.actions().iter().map(|action| NamedAction { name: action.name.to_string(), class: action.class });
        let spec = BackendSpec { action_map: None, actions: Some(actions.collect()), sidecars: Vec::new() };
        let name = backend.name.to_string();
        documents.push(Document {
            api_version: API_VERSION.to_owned(),
            kind: Kind::Backend,
            metadata: Metadata { name, labels: std::collections::BTreeMap::new(), generation: None },
            spec: serde_json::to_value(spec)?,
        });
    }
    Ok(documents)
}

/// A control plane and a sidecar in one process.
pub struct Up {
    /// The control plane.
    pub control: RunningControl,
    /// The sidecar, whose grants come from it.
    pub sidecar: Running,
}

/// Starts both. The sidecar's backends are declared to the control plane, each with the actions of its map.
///
/// # Errors
/// As [`start_control`] and [`super::start`].
pub async fn start_up(config: Config, control: &ControlConfig) -> anyhow::Result<Up> {
    let metrics = Metrics::new();
    let control = start_control_with(control, Arc::new(SystemClock::new()), &metrics, backends(&config)?).await?;
    let feed = control.feed(&config).await?;
    let sidecar = start_beside(config, metrics, Some(feed)).await?;
    Ok(Up { control, sidecar })
}

impl Up {
    /// Stops the sidecar, then the control plane.
    ///
    /// # Errors
    /// When the last records could not be written.
    pub async fn stop(self) -> anyhow::Result<()> {
        let stopped = self.sidecar.stop().await;
        self.control.stop().await;
        stopped
    }
}

/// Runs both until the process is told to stop.
///
/// # Errors
/// When they cannot start, or the last records could not be written.
pub fn run_up(config: Config, control: &ControlConfig) -> anyhow::Result<()> {
    carry(Some(2), async |stop| {
        let Some(up) = stop.unless(start_up(config, control)).await? else { return Ok(()) };
        stop.heard().await;
        tracing::info!("stopping");
        up.stop().await
    })
}

/// Runs a control plane until the process is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run_control(config: &ControlConfig) -> anyhow::Result<()> {
    carry(None, async |stop| {
        let admin = TcpListener::bind(config.admin.address)
            .await
            .with_context(|| format!("admin.address {}", config.admin.address))?;
        let address = admin.local_addr()?;
        let metrics = Metrics::new();
        let starting = start_control_with(config, Arc::new(SystemClock::new()), &metrics, Vec::new());
        let Some(running) = stop.unless(starting).await? else { return Ok(()) };
        let readiness = Readiness::new();
        let parts = Admin {
            metrics,
            readiness: readiness.clone(),
            reports: Arc::new(std::collections::BTreeMap::new()),
            address,
        };
        let serving = tokio::spawn(crate::telemetry::admin::serve(admin, parts, running.upkeep.clone()));
        readiness.set("serving", Ok(()));
        tracing::info!(%address, "admin listening");
        stop.heard().await;
        tracing::info!("stopping");
        readiness.set("serving", Err("draining".to_owned()));
        running.stop().await;
        let _ = serving.await;
        Ok(())
    })
}
