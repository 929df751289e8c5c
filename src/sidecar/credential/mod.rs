//! Step `credential`: the short-lived lease that makes the backend accept this call.
//!
//! [`Credentials::obtain`] demands a [`Permit`]. A lease of a minting source belongs to one grant, never outlives it and
//! is forgotten with it; concurrent calls of one grant share one issue. A lease of a file or of the environment is the
//! same for all who may have it, and is called long-lived wherever it is shown.
//!
//! A secret is a [`secrecy::SecretString`] or a header value marked sensitive from the moment it is read; nothing here
//! prints one.

mod file;
mod mint;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dashmap::DashMap;
use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;

use crate::domain::grant::GrantState;
use crate::domain::id::{CredentialName, GrantId};
use crate::domain::principal::Principal;
use crate::domain::time::{Anchored, Clock, Now, Position};
use crate::sidecar::decide::entry::Entry;
use crate::sidecar::decide::{CredentialSlot, Permit};

pub use mint::{MintAlgorithm, MintSettings};

/// A credential source, and how what it gives is put on a request.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub name: CredentialName,
    /// Where the secret comes from.
    pub source: SourceSettings,
    /// How it is put on a request.
    pub injections: Vec<Injection>,
}

/// Where a secret comes from.
#[derive(Debug, Clone)]
pub enum SourceSettings {
    /// A file that somebody else keeps up to date; read again when it changes. Long-lived.
    File(std::path::PathBuf),
    /// An environment variable, read once by the configuration. Long-lived.
    Env {
        /// The variable's name.
        variable: String,
        /// Its value.
        secret: SecretString,
    },
    /// A token signed here for one grant at a time.
    Mint(MintSettings),
}

impl SourceSettings {
    /// Whether what it gives ends by itself with the grant.
    pub fn is_long_lived(&self) -> bool {
        !matches!(self, Self::Mint(_))
    }
}

/// One way to put a secret on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// `Authorization: Bearer <secret>` (RFC 6750 section 2.1).
    Bearer,
    /// `Authorization: Basic <username:secret>` (RFC 7617).
    Basic {
        /// The user name.
        username: String,
    },
    /// Any header: the secret between a prefix and a suffix.
    Header {
        /// The header's name.
        name: HeaderName,
        /// What stands before the secret.
        prefix: String,
        /// What stands after it.
        suffix: String,
    },
    /// A query parameter whose value is the secret.
    Query {
        /// The parameter's name.
        name: String,
    },
}

/// Why there is no credential. The message never holds one.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read or holds no secret.
    #[error("credential `{name}`: {path}: {reason}")]
    File {
        /// Which credential.
        name: CredentialName,
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was issued cannot stand in a header.
    #[error("credential `{0}` has a byte that no header value can hold")]
    NotAHeader(CredentialName),
    /// The signing key cannot be used.
    #[error("credential `{name}`: signing key {path}: {reason}")]
    Key {
        /// Which credential.
        name: CredentialName,
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The grant leaves too little time to issue anything for it.
    #[error("credential `{0}`: the grant ends before a token could be used")]
    TooLate(CredentialName),
}

/// What a source gives: a secret and until when it is good.
struct Issued {
    secret: SecretString,
    id: String,
    expires: Option<Anchored>,
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A credential issued for one grant, ready to be put on requests.
pub struct Lease {
    id: Arc<str>,
    serial: u64,
    headers: Vec<(HeaderName, HeaderValue)>,
    query: Vec<(String, SecretString)>,
    needles: Vec<memchr::memmem::Finder<'static>>,
    expires: Option<Anchored>,
}

impl Lease {
    /// Its id, as it is recorded. Tells nothing about the secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A number that no other lease of this process has.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The header fields to set.
    pub(in crate::sidecar) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The query parameters to add.
    pub(in crate::sidecar) fn query(&self) -> &[(String, SecretString)] {
        &self.query
    }

    /// Whether the secret, in a form that was put on a request, is in `bytes`.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.needles.iter().any(|needle| needle.find(bytes).is_some())
    }

    /// How many bytes of one piece must be looked at again together with the next.
    pub fn overlap(&self) -> usize {
        self.needles.iter().map(|needle| needle.needle().len() - 1).max().unwrap_or(0)
    }

    fn is_good(&self, now: Now) -> bool {
        self.expires
            .is_none_or(|expires| expires.position(now) != Position::After && expires.remaining(now) > RENEW_BEFORE)
    }

    fn new(name: &CredentialName, injections: &[Injection], issued: Issued) -> Result<Self, CredentialError> {
        let secret = issued.secret.expose_secret();
        let mut headers = Vec::new();
        let mut query = Vec::new();
        let mut needles = Vec::new();
        let mut guard = |text: &str| {
            if text.len() >= NEEDLE_BYTES_MIN {
                needles.push(memchr::memmem::Finder::new(text.as_bytes()).into_owned());
            }
        };
        guard(secret);
        for injection in injections {
            let (field, text) = match injection {
                Injection::Bearer => (http::header::AUTHORIZATION, format!("Bearer {secret}")),
                Injection::Basic { username } => {
                    let pair = STANDARD.encode(format!("{username}:{secret}"));
                    guard(&pair);
                    (http::header::AUTHORIZATION, format!("Basic {pair}"))
                }
                Injection::Header { name, prefix, suffix } => (name.clone(), format!("{prefix}{secret}{suffix}")),
                Injection::Query { name } => {
                    query.push((name.clone(), issued.secret.clone()));
                    continue;
                }
            };
            let mut value = HeaderValue::from_str(&text).map_err(|_| CredentialError::NotAHeader(name.clone()))?;
            value.set_sensitive(true);
            headers.push((field, value));
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id: issued.id.into(), serial, headers, query, needles, expires: issued.expires })
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.id).field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// A secret shorter than this is in too many innocent answers to be looked for.
const NEEDLE_BYTES_MIN: usize = 6;

/// A lease this close to its end is not used for another call.
const RENEW_BEFORE: Duration = Duration::from_millis(250);

enum Source {
    /// One lease for all: a file or the environment.
    Shared { file: Option<file::SecretFile>, current: ArcSwapOption<Lease> },
    /// One lease a grant.
    Mint { mint: mint::Mint, leases: DashMap<LeaseKey, Minted> },
}

/// What a minted lease belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum LeaseKey {
    /// It ends with this grant.
    Grant(GrantId),
    /// It rests on a baseline, or on nothing in observe mode.
    Principal(Principal),
}

impl LeaseKey {
    fn of(permit: &Permit) -> Self {
        match permit.grant() {
            Some(entry) => Self::Grant(entry.id().to_owned()),
            None => Self::Principal(permit.principal().clone()),
        }
    }
}

/// A minted lease, or the place where it is being minted, with the grant it ends with.
struct Minted {
    cell: Arc<OnceCell<Arc<Lease>>>,
    grant: Option<Arc<Entry>>,
}

struct Provider {
    settings: Settings,
    source: Source,
}

/// All configured credential sources and the leases they gave.
pub struct Credentials {
    providers: Vec<Provider>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.providers.iter().map(|p| p.settings.name.as_str())).finish()
    }
}

/// Most minted leases that are remembered; past it those of ended grants and then any are dropped.
const LEASES_MAX: usize = 100_000;

impl Credentials {
    /// Opens every source. The place in `settings` is the [`CredentialSlot`].
    ///
    /// # Errors
    /// [`CredentialError`] of the first source that cannot give anything.
    pub fn open(settings: Vec<Settings>, clock: Arc<dyn Clock>) -> Result<Self, CredentialError> {
        let providers = settings.into_iter().map(Provider::open).collect::<Result<_, _>>()?;
        Ok(Self { providers, clock })
    }

    /// The lease for the call: remembered, or issued now. No credential is configured: none.
    ///
    /// Dropping the future leaves the issue to the other calls that wait for it, or drops it if there are none.
    ///
    /// # Errors
    /// [`CredentialError`]; the call must not be forwarded.
    pub async fn obtain(&self, permit: &Permit) -> Result<Option<Arc<Lease>>, CredentialError> {
        let Some(CredentialSlot(place)) = permit.credential() else { return Ok(None) };
        let provider = &self.providers[place];
        match &provider.source {
            Source::Shared { current, .. } => Ok(current.load_full()),
            Source::Mint { mint, leases } => {
                let now = self.clock.now();
                let cell = cell_of(leases, permit, now);
                let issue = async {
                    let issued = mint.issue(&provider.settings.name, permit, now)?;
                    Ok(Arc::new(Lease::new(&provider.settings.name, &provider.settings.injections, issued)?))
                };
                cell.get_or_try_init(|| issue).await.map(|lease| Some(Arc::clone(lease)))
            }
        }
    }

    /// The backend refused this lease: it is not used again where another can be had.
    pub fn refused(&self, permit: &Permit, lease: &Lease) {
        let Some(CredentialSlot(place)) = permit.credential() else { return };
        match &self.providers[place].source {
            Source::Shared { .. } => self.reread(&self.providers[place], true),
            Source::Mint { leases, .. } => {
                leases.retain(|_, minted| minted.cell.get().is_none_or(|known| known.serial != lease.serial))
            }
        }
    }

    /// Reads changed files again and forgets the leases of ended grants. Cheap; called every second and after every
    /// change of the grants.
    pub fn maintain(&self) {
        let now = self.clock.now();
        for provider in &self.providers {
            match &provider.source {
                Source::Shared { .. } => self.reread(provider, false),
                Source::Mint { leases, .. } => forget_ended(leases, now),
            }
        }
    }

    /// How many leases are remembered.
    pub fn leases(&self) -> usize {
        self.providers
            .iter()
            .map(|provider| match &provider.source {
                Source::Shared { current, .. } => usize::from(current.load().is_some()),
                Source::Mint { leases, .. } => leases.len(),
            })
            .sum()
    }

    fn reread(&self, provider: &Provider, even_unchanged: bool) {
        let Source::Shared { file: Some(file), current } = &provider.source else { return };
        match file.read_if_changed(&provider.settings.name, even_unchanged) {
            Ok(None) => {}
            Ok(Some(issued)) => match Lease::new(&provider.settings.name, &provider.settings.injections, issued) {
                Ok(lease) => {
                    tracing::info!(credential = %provider.settings.name, lease = lease.id(), "credential changed");
                    current.store(Some(Arc::new(lease)));
                }
                Err(error) => tracing::warn!(%error, "the changed credential is not usable, the last good one stays"),
            },
            Err(error) => tracing::warn!(%error, "the credential cannot be read again, the last good one stays"),
        }
    }
}

impl Provider {
    fn open(settings: Settings) -> Result<Self, CredentialError> {
        let shared = |file, issued| {
            let lease = Lease::new(&settings.name, &settings.injections, issued)?;
            Ok(Source::Shared { file, current: ArcSwapOption::from_pointee(lease) })
        };
        let source = match &settings.source {
            SourceSettings::File(path) => {
                let file = file::SecretFile::new(path.clone());
                let Some(issued) = file.read_if_changed(&settings.name, true)? else {
                    unreachable!("a file that was never read has changed");
                };
                shared(Some(file), issued)?
            }
            SourceSettings::Env { variable, secret } => {
                shared(None, Issued { secret: secret.clone(), id: format!("env:{variable}"), expires: None })?
            }
            SourceSettings::Mint(mint) => {
                Source::Mint { mint: mint::Mint::open(&settings.name, mint)?, leases: DashMap::new() }
            }
        };
        Ok(Self { settings, source })
    }
}

/// The place of the permit's lease; a new one if there is none or what is there is over.
fn cell_of(leases: &DashMap<LeaseKey, Minted>, permit: &Permit, now: Now) -> Arc<OnceCell<Arc<Lease>>> {
    let key = LeaseKey::of(permit);
    if let Some(minted) = leases.get(&key)
        && minted.cell.get().is_none_or(|lease| lease.is_good(now))
    {
        return Arc::clone(&minted.cell);
    }
    if leases.len() >= LEASES_MAX {
        forget_ended(leases, now);
        if leases.len() >= LEASES_MAX {
            leases.clear();
        }
    }
    let mut minted =
        leases.entry(key).or_insert_with(|| Minted { cell: Arc::default(), grant: permit.grant().map(Arc::clone) });
    if minted.cell.get().is_some_and(|lease| !lease.is_good(now)) {
        minted.cell = Arc::default();
    }
    Arc::clone(&minted.cell)
}

fn forget_ended(leases: &DashMap<LeaseKey, Minted>, now: Now) {
    leases.retain(|_, minted| {
        let lives = minted.grant.as_ref().is_none_or(|entry| entry.state(now) == GrantState::Active);
        lives && minted.cell.get().is_none_or(|lease| lease.is_good(now))
    });
}
