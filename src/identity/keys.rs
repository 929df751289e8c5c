//! An issuer's public keys: read, renewed, and kept while they are good.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, Notify};

use super::settings::{IssuerSettings, KeySource, SettingsError, TokenAlgorithm, UrlKeys};
use super::{IdentityError, fetch};
use crate::domain::json::{SameKey, object};
use crate::domain::time::{Clock, Now, Uptime};

/// Most keys of a set.
const KEYS_MAX: usize = 64;

/// Most keys that are tried for a token that names none.
const CANDIDATES_MAX: usize = 8;

/// Shortest and longest RSA modulus, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// The keys of an issuer that its tokens can be signed with.
pub(super) struct KeySet {
    algorithm: Algorithm,
    keys: Vec<(Option<String>, DecodingKey)>,
    content: Vec<u8>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl KeySet {
    /// Reads a JWK set (RFC 7517). Keys of other types or for other algorithms are passed over.
    pub(super) fn read(content: &[u8], algorithm: TokenAlgorithm) -> Result<Self, String> {
        let set = object(content, 8, SameKey::Exact).ok_or("it is no JSON object, or has a key twice")?;
        let Some(Value::Array(all)) = set.get("keys") else { return Err("it has no list `keys`".to_owned()) };
        if all.len() > KEYS_MAX {
            return Err(format!("it has {} keys; at most {KEYS_MAX} are accepted", all.len()));
        }
        let mut keys: Vec<(Option<String>, DecodingKey)> = Vec::new();
        for jwk in all {
            let Value::Object(jwk) = jwk else { return Err("a key is no object".to_owned()) };
            let id = jwk.get("kid").and_then(Value::as_str).map(str::to_owned);
            let Some(key) = key(jwk, algorithm)? else { continue };
            if id.is_some() && keys.iter().any(|(known, _)| *known == id) {
                return Err("two of its keys have one `kid`".to_owned());
            }
            keys.push((id, key));
        }
        if keys.is_empty() {
            return Err(format!("it has no key for {}", algorithm.as_str()));
        }
        Ok(Self { algorithm: library_algorithm(algorithm), keys, content: content.to_vec() })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The keys a token may be signed with: the one it names, or a few where it names none.
    pub(super) fn candidates(&self, id: Option<&str>) -> impl Iterator<Item = &DecodingKey> {
        self.keys
            .iter()
            .filter(move |(known, _)| id.is_none_or(|id| known.as_deref() == Some(id)))
            .map(|(_, key)| key)
            .take(CANDIDATES_MAX)
    }
}

fn library_algorithm(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::Rs256 => Algorithm::RS256,
        TokenAlgorithm::Rs384 => Algorithm::RS384,
        TokenAlgorithm::Rs512 => Algorithm::RS512,
        TokenAlgorithm::Ps256 => Algorithm::PS256,
        TokenAlgorithm::Ps384 => Algorithm::PS384,
        TokenAlgorithm::Ps512 => Algorithm::PS512,
        TokenAlgorithm::Es256 => Algorithm::ES256,
        TokenAlgorithm::Es384 => Algorithm::ES384,
        TokenAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

/// The key, if tokens of that algorithm can be signed with it.
fn key(jwk: &Map<String, Value>, algorithm: TokenAlgorithm) -> Result<Option<DecodingKey>, String> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if jwk.contains_key("d") || jwk.contains_key("k") {
        tracing::warn!("a private or shared key in a public key set is passed over");
        return Ok(None);
    }
    if text("use").is_some_and(|purpose| purpose != "sig") || text("alg").is_some_and(|alg| alg != algorithm.as_str()) {
        return Ok(None);
    }
    let (kind, curve) = match algorithm {
        TokenAlgorithm::Es256 => ("EC", Some("P-256")),
        TokenAlgorithm::Es384 => ("EC", Some("P-384")),
        TokenAlgorithm::EdDsa => ("OKP", Some("Ed25519")),
        _ => ("RSA", None),
    };
    if text("kty") != Some(kind) || (curve.is_some() && text("crv") != curve) {
        return Ok(None);
    }
    let need = |name: &str| text(name).ok_or_else(|| format!("a key has no `{name}`"));
    let bad = |_| "a key cannot be read".to_owned();
    let key = match kind {
        "EC" => DecodingKey::from_ec_components(need("x")?, need("y")?).map_err(bad)?,
        "OKP" => DecodingKey::from_ed_components(need("x")?).map_err(bad)?,
        _ => {
            let modulus = URL_SAFE_NO_PAD.decode(need("n")?).map_err(|_| "a key cannot be read".to_owned())?;
            let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
            if !RSA_BITS.contains(&(significant * 8)) {
                tracing::warn!(bits = significant * 8, "an RSA key of that length is passed over");
                return Ok(None);
            }
            DecodingKey::from_rsa_components(need("n")?, need("e")?).map_err(bad)?
        }
    };
    Ok(Some(key))
}

/// An issuer's keys over time.
#[derive(Debug)]
pub(super) struct Keys {
    name: String,
    source: KeySource,
    algorithm: TokenAlgorithm,
    current: ArcSwapOption<KeySet>,
    /// Counts the changes; a token verified before a change is verified anew.
    generation: AtomicU64,
    /// When the keys were last known to be the issuer's, on the uptime clock; negative if never.
    proved_at: AtomicI64,
    wish: Notify,
    state: Mutex<RefreshState>,
}

#[derive(Debug, Default)]
struct RefreshState {
    stamp: Option<(SystemTime, u64)>,
    tried_at: Option<Uptime>,
    wished: bool,
    said: String,
}

impl Keys {
    pub(super) fn open(settings: &IssuerSettings, now: Now) -> Result<Self, SettingsError> {
        let keys = Self {
            name: settings.name.clone(),
            source: settings.keys.clone(),
            algorithm: settings.algorithm,
            current: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            proved_at: AtomicI64::new(-1),
            wish: Notify::new(),
            state: Mutex::default(),
        };
        match &settings.keys {
            KeySource::File(path) => {
                let content = std::fs::read(path).map_err(|error| SettingsError::new(path, error))?;
                let set =
                    KeySet::read(&content, settings.algorithm).map_err(|error| SettingsError::new(path, error))?;
                keys.replace(set, now);
            }
            KeySource::Url(url) => {
                if let Some(ca) = &url.ca {
                    fetch::check_ca(ca)?;
                }
            }
        }
        Ok(keys)
    }

    /// Fetches keys behind a URL for the first time.
    pub(super) async fn fetch_first(&self, clock: &dyn Clock) {
        if matches!(self.source, KeySource::Url(_)) {
            self.refresh(clock).await;
        }
    }

    fn replace(&self, set: KeySet, now: Now) {
        self.proved_at.store(now.uptime.as_micros(), Ordering::SeqCst);
        let same = self.current.load().as_ref().is_some_and(|known| known.content == set.content);
        if !same {
            self.current.store(Some(Arc::new(set)));
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn age(&self, now: Now) -> Option<Duration> {
        match self.proved_at.load(Ordering::SeqCst) {
            never if never < 0 => None,
            at => Some(now.uptime.since(Uptime::from_micros(at))),
        }
    }

    /// The keys in force and their generation.
    pub(super) fn current(&self, now: Now) -> Result<(Arc<KeySet>, u64), IdentityError> {
        let generation = self.generation();
        let set = self.current.load_full().ok_or(IdentityError::KeysUnavailable)?;
        if let KeySource::Url(url) = &self.source
            && self.age(now).is_none_or(|age| age > url.stale_max)
        {
            return Err(IdentityError::KeysUnavailable);
        }
        Ok((set, generation))
    }

    /// A token names a key that is not known: look whether there is a new one, soon but not too often.
    pub(super) fn want_refresh(&self) {
        self.wish.notify_one();
    }

    /// Returns when somebody wants new keys.
    pub(super) async fn wanted(&self) {
        self.wish.notified().await;
        self.state.lock().await.wished = true;
    }

    /// Renews the keys, if it is time to.
    pub(super) async fn refresh(&self, clock: &dyn Clock) {
        let mut state = self.state.lock().await;
        let now = clock.now();
        let result = match &self.source {
            KeySource::File(path) => self.read_file(path, &mut state, now),
            KeySource::Url(url) => {
                let since = state.tried_at.map(|at| now.uptime.since(at));
                let never = self.current.load().is_none();
                let due = since
                    .is_none_or(|since| since >= url.refresh || ((state.wished || never) && since >= url.refresh_min));
                if !due {
                    return;
                }
                state.tried_at = Some(now.uptime);
                state.wished = false;
                self.fetch(url, clock).await
            }
        };
        match result {
            Ok(()) => state.said.clear(),
            Err(error) => {
                if state.said != error {
                    tracing::warn!(issuer = self.name, error, "keys cannot be renewed, the last good ones stay");
                    state.said = error;
                }
            }
        }
    }

    fn read_file(&self, path: &PathBuf, state: &mut RefreshState, now: Now) -> Result<(), String> {
        let stamp = stamp(path)?;
        if state.stamp == Some(stamp) {
            self.proved_at.store(now.uptime.as_micros(), Ordering::SeqCst);
            return Ok(());
        }
        let content = std::fs::read(path).map_err(|error| error.to_string())?;
        let set = KeySet::read(&content, self.algorithm)?;
        state.stamp = Some(stamp);
        self.replace(set, now);
        Ok(())
    }

    async fn fetch(&self, url: &UrlKeys, clock: &dyn Clock) -> Result<(), String> {
        let content = fetch::get(url).await?;
        let set = KeySet::read(&content, self.algorithm)?;
        self.replace(set, clock.now());
        Ok(())
    }
}

fn stamp(path: &Path) -> Result<(SystemTime, u64), String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    Ok((metadata.modified().map_err(|error| error.to_string())?, metadata.len()))
}
