//! Proof in, [`Verified`] out; both planes use it.
//!
//! A principal is proved by an X.509-SVID (SPIFFE) or by a JWT whose issuer, algorithm and audience are configured. What a
//! token says about how it should be verified (`alg`, `jku`, `jwk`, `x5u`, `x5c`) is never followed. A verified token is
//! remembered by its SHA-256 until it expires or its issuer's keys change; the token itself is not kept.
//!
//! Deliberately absent: identity from a header, from an address, from a certificate's common name.

mod certificate;
mod fetch;
mod keys;
pub mod settings;
mod token;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use dashmap::DashMap;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use crate::domain::id::TaskRef;
use crate::domain::principal::Principal;
use crate::domain::time::{Anchored, Clock, Now, Position};

use certificate::TrustedDomain;
use keys::Keys;
pub use settings::{
    IssuerSettings, KeySource, Preset, Settings, SettingsError, TaskTemplate, TokenAlgorithm, TrustDomain, UrlKeys,
};
use token::Issuer;

/// How an identity was proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a client certificate.
    Certificate,
    /// By a token.
    Token,
}

impl Method {
    /// The method as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Token => "token",
        }
    }
}

/// The proof that somebody is who they say. Only [`Verifier`] makes one.
#[derive(Debug, Clone)]
pub struct Verified {
    principal: Principal,
    method: Method,
    issuer: Arc<str>,
    attributes: BTreeMap<Arc<str>, Arc<str>>,
    task: Option<TaskRef>,
    expires: Anchored,
}

impl Verified {
    /// Who.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// How it was proved.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The configured name of the issuer, or the trust domain.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What else the proof says of the principal, as configured.
    pub fn attributes(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.attributes
    }

    /// The task the principal works on, where the proof names one.
    pub fn task(&self) -> Option<&TaskRef> {
        self.task.as_ref()
    }

    /// Until when it is proved.
    pub fn expires(&self) -> Anchored {
        self.expires
    }
}

macro_rules! identity_errors {
    ($($variant:ident = $reason:literal, $text:literal;)*) => {
        /// Why somebody is not who they say, or why that cannot be told. Messages never hold a token.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[allow(missing_docs, reason = "each says what it is")]
        pub enum IdentityError {
            $(#[error($text)] $variant,)*
        }

        impl IdentityError {
            /// The name of the defect, from a closed list.
            pub const fn reason(self) -> &'static str {
                match self {
                    $(Self::$variant => $reason,)*
                }
            }
        }
    };
}

identity_errors! {
    Malformed = "malformed_token", "the token is not a JWT in its strict form";
    TooLarge = "token_too_large", "the token is too large";
    WrongType = "wrong_token_type", "the token is of another type";
    WrongAlgorithm = "wrong_algorithm", "the token's algorithm is not the issuer's";
    Critical = "critical_header", "the token demands an extension that is not known";
    UnknownIssuer = "unknown_issuer", "the token's issuer is not configured";
    WrongAudience = "wrong_audience", "the token is for another audience";
    WrongSubject = "wrong_subject", "the token's subject is not valid";
    WrongClaim = "wrong_claim", "a required claim is missing or another";
    Expired = "expired_token", "the token is over";
    NotYet = "token_not_yet_valid", "the token is not valid yet";
    TooLongLived = "token_too_long_lived", "the token is valid for longer than is allowed";
    UnknownKey = "unknown_key", "the token's key is not known";
    BadSignature = "bad_signature", "the token's signature is wrong";
    Replayed = "replayed_token", "the token was used before";
    BadCertificate = "bad_certificate", "the certificate is no valid X.509-SVID";
    UnknownTrustDomain = "unknown_trust_domain", "the certificate's trust domain is not configured";
    UntrustedCertificate = "untrusted_certificate", "the certificate is not signed by its trust domain";
    KeysUnavailable = "keys_unavailable", "the issuer's keys are missing or too old";
    TooManyFailures = "too_many_failures", "too many proofs failed a moment ago";
}

impl IdentityError {
    /// Whether the fault is ours and not the caller's.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::KeysUnavailable | Self::TooManyFailures)
    }
}

/// A verified token, and the state of the issuer's keys it was verified with.
#[derive(Debug)]
struct Remembered {
    verified: Arc<Verified>,
    issuer: usize,
    generation: u64,
}

/// Verifies identities.
#[derive(Debug)]
pub struct Verifier {
    domains: Vec<TrustedDomain>,
    issuers: Vec<Issuer>,
    remembered: DashMap<[u8; 32], Remembered, ahash::RandomState>,
    remembered_max: usize,
    failures: FailureLimit,
    clock: Arc<dyn Clock>,
}

impl Verifier {
    /// Reads the key files and trust bundles. Keys behind a URL are fetched once; where that fails the verifier exists
    /// all the same, and is not ready.
    ///
    /// # Errors
    /// [`SettingsError`] naming the first file that cannot be used.
    pub async fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, SettingsError> {
        let mut domains = Vec::new();
        for domain in &settings.spiffe {
            domains.push(TrustedDomain::open(domain)?);
        }
        let mut issuers = Vec::new();
        for issuer in settings.issuers {
            let keys = Keys::open(&issuer, clock.now())?;
            keys.fetch_first(&*clock).await;
            issuers.push(Issuer::new(issuer, keys));
        }
        Ok(Self {
            domains,
            issuers,
            remembered: DashMap::with_hasher(ahash::RandomState::new()),
            remembered_max: settings.token_cache_entries.max(1),
            failures: FailureLimit::new(settings.failures_per_second_max),
            clock,
        })
    }

    /// Who a client certificate proves. `chain` begins with the leaf; its signatures are checked again here, against the
    /// bundle of the trust domain that the leaf names and no other.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn certificate(&self, chain: &[CertificateDer<'_>], now: Now) -> Result<Arc<Verified>, IdentityError> {
        certificate::verify(&self.domains, chain, now).map(Arc::new)
    }

    /// Who a token proves, if it was verified before and still holds. Allocates nothing.
    pub fn remembered(&self, token: &[u8], now: Now) -> Option<Arc<Verified>> {
        let key: [u8; 32] = digest(&SHA256, token).as_ref().try_into().ok()?;
        let found = self.remembered.get(&key)?;
        let current = self.issuers.get(found.issuer)?.keys().generation();
        let good = found.generation == current && found.verified.expires.position(now) != Position::After;
        good.then(|| Arc::clone(&found.verified))
    }

    /// Who a token proves. `source` is where it came from (a host): failures are limited for each.
    ///
    /// Dropping the future abandons the verification.
    ///
    /// # Errors
    /// [`IdentityError`]; some are ours and not the caller's.
    pub async fn token(&self, token: &str, source: &str, now: Now) -> Result<Arc<Verified>, IdentityError> {
        let unverified = token::Unverified::read(token)?;
        let place = self
            .issuers
            .iter()
            .position(|issuer| issuer.is(unverified.issuer()))
            .ok_or(IdentityError::UnknownIssuer)?;
        let issuer = &self.issuers[place];
        // Everything that needs no signature first: a refusal is cheaper than a verification.
        let claims = issuer.check(&unverified, now)?;
        let (keys, generation) = issuer.keys().current(now)?;
        if !self.failures.allows(source, now) {
            return Err(IdentityError::TooManyFailures);
        }
        issuer.verify(&unverified, &keys).inspect_err(|error| match error {
            IdentityError::UnknownKey => issuer.keys().want_refresh(),
            _ => self.failures.count(source, now),
        })?;
        issuer.take_once(&claims, now)?;
        let verified = Arc::new(claims.verified);
        if !issuer.is_single_use() {
            self.remember(token.as_bytes(), &verified, place, generation, now);
        }
        Ok(verified)
    }

    fn remember(&self, token: &[u8], verified: &Arc<Verified>, issuer: usize, generation: u64, now: Now) {
        let Ok(key) = <[u8; 32]>::try_from(digest(&SHA256, token).as_ref()) else { return };
        if self.remembered.len() >= self.remembered_max {
            self.forget(now);
        }
        if self.remembered.len() < self.remembered_max {
            self.remembered.insert(key, Remembered { verified: Arc::clone(verified), issuer, generation });
        }
    }

    /// Makes room: what is over goes, and if that is not enough, half of the rest.
    fn forget(&self, now: Now) {
        let lives = |remembered: &Remembered| {
            remembered.verified.expires.position(now) != Position::After
                && self.issuers.get(remembered.issuer).is_some_and(|i| i.keys().generation() == remembered.generation)
        };
        self.remembered.retain(|_, remembered| lives(remembered));
        if self.remembered.len() >= self.remembered_max {
            let mut keep = false;
            self.remembered.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
    }

    /// How many verified tokens are remembered.
    pub fn remembered_tokens(&self) -> usize {
        self.remembered.len()
    }

    /// How old each issuer's keys are; none where there never were any.
    pub fn keys_age(&self, now: Now) -> Vec<(String, Option<Duration>)> {
        self.issuers.iter().map(|issuer| (issuer.name().to_owned(), issuer.keys().age(now))).collect()
    }

    /// Whether every issuer's tokens can be verified.
    ///
    /// # Errors
    /// The issuers whose keys are missing or too old.
    pub fn ready(&self, now: Now) -> Result<(), String> {
        let missing: Vec<&str> =
            self.issuers.iter().filter(|i| i.keys().current(now).is_err()).map(Issuer::name).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("no usable keys of {}", missing.join(", "))) }
    }

    /// Keeps the keys up to date until `stop`: files when they change, URLs at their interval and when a token names a
    /// key that is not known. What cannot be read keeps the last good keys.
    pub async fn maintain(self: Arc<Self>, stop: CancellationToken) {
        loop {
            for issuer in &self.issuers {
                issuer.keys().refresh(&*self.clock).await;
            }
            let wanted = async {
                let all = self.issuers.iter().map(|issuer| Box::pin(issuer.keys().wanted()));
                if self.issuers.is_empty() {
                    std::future::pending::<()>().await;
                }
                first_of(all.collect()).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = wanted => {}
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }
}

async fn first_of<F: Future<Output = ()> + Unpin>(mut all: Vec<F>) {
    std::future::poll_fn(|cx| {
        if all.iter_mut().any(|one| std::pin::Pin::new(one).poll(cx).is_ready()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// Bounds the work that forged tokens can cause: so many failed signatures a second from one source, and no more.
///
/// Sources share a fixed number of counters, so a flood from one is nobody else's but for a chance collision.
#[derive(Debug)]
struct FailureLimit {
    per_second_max: u32,
    hasher: ahash::RandomState,
    /// For each: the second in its upper half, and how many failed in it in its lower.
    counters: Box<[AtomicU64]>,
}

/// How many counters there are.
const FAILURE_COUNTERS: usize = 1024;

impl FailureLimit {
    fn new(per_second_max: u32) -> Self {
        let counters = (0..FAILURE_COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self { per_second_max, hasher: ahash::RandomState::new(), counters }
    }

    /// The source's counter, and what it holds of this second.
    fn look(&self, source: &str, now: Now) -> (&AtomicU64, u64, u32) {
        let place = usize::try_from(self.hasher.hash_one(source)).unwrap_or(0) % self.counters.len();
        let second = (now.uptime.as_micros().unsigned_abs() / 1_000_000) & u64::from(u32::MAX);
        let held = self.counters[place].load(Ordering::Relaxed);
        let failed =
            if held >> 32 == second { u32::try_from(held & u64::from(u32::MAX)).unwrap_or(u32::MAX) } else { 0 };
        (&self.counters[place], second, failed)
    }

    fn allows(&self, source: &str, now: Now) -> bool {
        self.look(source, now).2 < self.per_second_max
    }

    /// Counts one. Two at a moment may count as one: the limit bounds work and need not be exact.
    fn count(&self, source: &str, now: Now) {
        let (counter, second, failed) = self.look(source, now);
        counter.store((second << 32) | u64::from(failed.saturating_add(1)), Ordering::Relaxed);
    }
}
