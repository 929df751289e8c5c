//! JSON Web Tokens (RFC 7519), read strictly (RFC 8725) before any of their cryptography is looked at.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dashmap::DashMap;
use serde_json::{Map, Value};

use super::keys::{KeySet, Keys};
use super::settings::{IssuerSettings, Preset, claim_text};
use super::{IdentityError, Method, Verified};
use crate::domain::id::TaskRef;
use crate::domain::json::{SameKey, object};
use crate::domain::principal::Principal;
use crate::domain::time::{Anchored, Now, Position, Timestamp, Window};

/// Largest token, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Longest key id, in bytes.
const KEY_ID_BYTES_MAX: usize = 256;

/// Deepest nesting of a token's claims.
const DEPTH_MAX: usize = 16;

/// Largest number that may be a time: the end of the year 9999.
const TIME_MAX: u64 = 253_402_300_799;

/// Most one-time tokens that are remembered; past it they are refused until some are over.
const USED_MAX: usize = 100_000;

/// A token taken apart, with nothing of it believed yet.
pub(super) struct Unverified<'t> {
    text: &'t str,
    /// Where the signature begins in `text`, after its dot.
    signature: usize,
    algorithm: String,
    key_id: Option<String>,
    kind: Option<String>,
    claims: Map<String, Value>,
    issuer: String,
}

impl<'t> Unverified<'t> {
    pub(super) fn read(text: &'t str) -> Result<Self, IdentityError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(IdentityError::TooLarge);
        }
        let mut segments = text.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(IdentityError::Malformed);
        };
        // The engine refuses padding, white space and trailing bits.
        let decode = |segment: &str| URL_SAFE_NO_PAD.decode(segment).map_err(|_| IdentityError::Malformed);
        let read = |bytes: &[u8]| object(bytes, DEPTH_MAX, SameKey::Exact).ok_or(IdentityError::Malformed);
        let mut header = read(&decode(header)?)?;
        let claims = read(&decode(claims)?)?;
        if decode(signature)?.is_empty() {
            return Err(IdentityError::Malformed);
        }
        if header.contains_key("crit") {
            return Err(IdentityError::Critical);
        }
        let mut text_of = |name: &str| match header.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(IdentityError::Malformed),
        };
        let algorithm = text_of("alg")?.ok_or(IdentityError::Malformed)?;
        let key_id = text_of("kid")?;
        if key_id.as_ref().is_some_and(|id| id.len() > KEY_ID_BYTES_MAX) {
            return Err(IdentityError::Malformed);
        }
        let kind = text_of("typ")?;
        let issuer = match claims.get("iss") {
            Some(Value::String(issuer)) => issuer.clone(),
            _ => return Err(IdentityError::Malformed),
        };
        let signature = text.len() - signature.len();
        Ok(Self { text, signature, algorithm, key_id, kind, claims, issuer })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }
}

/// What a token says, believed once its signature is verified.
pub(super) struct Claims {
    pub(super) verified: Verified,
    once: Option<String>,
}

/// A configured issuer.
#[derive(Debug)]
pub(super) struct Issuer {
    settings: IssuerSettings,
    name: Arc<str>,
    keys: Keys,
    /// One-time tokens that were used, until they are over.
    used: DashMap<String, Anchored, ahash::RandomState>,
}

impl Issuer {
    pub(super) fn new(settings: IssuerSettings, keys: Keys) -> Self {
        let name = settings.name.as_str().into();
        Self { settings, name, keys, used: DashMap::with_hasher(ahash::RandomState::new()) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is(&self, issuer: &str) -> bool {
        self.settings.issuer == issuer
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) fn is_single_use(&self) -> bool {
        self.settings.single_use
    }

    /// Everything but the signature.
    pub(super) fn check(&self, token: &Unverified<'_>, now: Now) -> Result<Claims, IdentityError> {
        if token.algorithm != self.settings.algorithm.as_str() {
            return Err(IdentityError::WrongAlgorithm);
        }
        self.check_type(token)?;
        self.check_audience(&token.claims)?;
        let window = self.window(&token.claims, now)?;
        let subject = match token.claims.get("sub") {
            Some(Value::String(subject)) => subject,
            _ => return Err(IdentityError::WrongSubject),
        };
        let principal = Principal::token(&self.settings.issuer, subject).map_err(|_| IdentityError::WrongSubject)?;
        let claims = Value::Object(token.claims.clone());
        for (pointer, wanted) in &self.settings.required_claims {
            if claims.pointer(pointer) != Some(wanted) {
                return Err(IdentityError::WrongClaim);
            }
        }
        let mut attributes: std::collections::BTreeMap<Arc<str>, Arc<str>> = self
            .settings
            .attributes
            .iter()
            .filter_map(|(name, pointer)| Some((Arc::clone(name), claim_text(&claims, pointer)?.into())))
            .collect();
        if self.settings.preset == Preset::Kubernetes {
            attributes.extend(service_account(subject, &claims)?);
        }
        let task = match &self.settings.task {
            None => None,
            // A token that names no task proves an identity all the same; one that names a broken one proves nothing.
            Some(template) => match template.fill(&claims) {
                None => None,
                Some(text) => Some(TaskRef::new(&text).map_err(|_| IdentityError::WrongClaim)?),
            },
        };
        let once = match (self.settings.single_use, token.claims.get("jti")) {
            (false, _) => None,
            (true, Some(Value::String(id))) if !id.is_empty() => Some(id.clone()),
            (true, _) => return Err(IdentityError::WrongClaim),
        };
        let verified = Verified {
            principal,
            method: Method::Token,
            issuer: Arc::clone(&self.name),
            attributes,
            task,
            expires: window.anchor(now),
        };
        Ok(Claims { verified, once })
    }

    fn check_type(&self, token: &Unverified<'_>) -> Result<(), IdentityError> {
        let given = token.kind.as_deref().map(|kind| {
            let kind = kind.to_ascii_lowercase();
            kind.strip_prefix("application/").map(str::to_owned).unwrap_or(kind)
        });
        let good = match (&self.settings.typ, given.as_deref()) {
            (Some(wanted), Some(given)) => wanted.eq_ignore_ascii_case(given),
            (Some(_), None) => false,
            (None, None | Some("jwt" | "at+jwt")) => {
                let has = |claim: &&str| token.claims.contains_key(*claim);
                // An ID token is for a client to know its user by, not for a service to be called with.
                let is_id_token = ["nonce", "at_hash", "c_hash"].iter().any(has);
                !has(&"events") && (!is_id_token || self.is_for_own_client(&token.claims))
            }
            (None, Some(_)) => false,
        };
        if good { Ok(()) } else { Err(IdentityError::WrongType) }
    }

    /// Whether an ID token was given to our own client, and is for no other.
    fn is_for_own_client(&self, claims: &Map<String, Value>) -> bool {
        let Some(own) = self.settings.own_client.as_deref() else { return false };
        let is_own = |value: &Value| value.as_str() == Some(own);
        let audience = match claims.get("aud") {
            Some(Value::Array(all)) => all.len() == 1 && all.iter().all(is_own),
            Some(one) => is_own(one),
            None => false,
        };
        audience && claims.get("azp").is_none_or(is_own)
    }

    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), IdentityError> {
        let wanted = |given: &str| self.settings.audience.iter().any(|audience| audience == given);
        let good = match claims.get("aud") {
            Some(Value::String(one)) => wanted(one),
            Some(Value::Array(all)) => {
                all.iter().all(Value::is_string) && all.iter().filter_map(Value::as_str).any(wanted)
            }
            _ => false,
        };
        if good { Ok(()) } else { Err(IdentityError::WrongAudience) }
    }

    /// From when until when the token proves anything, leeway included.
    fn window(&self, claims: &Map<String, Value>, now: Now) -> Result<Window, IdentityError> {
        let leeway = self.settings.leeway;
        let expires = time(claims, "exp")?.ok_or(IdentityError::Malformed)?;
        let not_before = time(claims, "nbf")?;
        let issued = time(claims, "iat")?;
        if now.wall >= expires.plus(leeway) {
            return Err(IdentityError::Expired);
        }
        let latest = now.wall.plus(leeway);
        if [not_before, issued].into_iter().flatten().any(|from| from > latest) {
            return Err(IdentityError::NotYet);
        }
        if expires.since(issued.unwrap_or(now.wall)) > self.settings.lifetime_max + Duration::from_secs(1) {
            return Err(IdentityError::TooLongLived);
        }
        Ok(Window { not_before: Timestamp::from_seconds(0), expires_at: expires.plus(leeway) })
    }

    /// The signature, by one of the issuer's keys.
    pub(super) fn verify(&self, token: &Unverified<'_>, keys: &KeySet) -> Result<(), IdentityError> {
        let message = &token.text.as_bytes()[..token.signature - 1];
        let signature = &token.text[token.signature..];
        let algorithm = keys.algorithm();
        let mut known = false;
        for key in keys.candidates(token.key_id.as_deref()) {
            known = true;
            if jsonwebtoken::crypto::verify(signature, message, key, algorithm).unwrap_or(false) {
                return Ok(());
            }
        }
        Err(if known { IdentityError::BadSignature } else { IdentityError::UnknownKey })
    }

    /// Takes a one-time token. Of any number of calls with the same, one succeeds.
    pub(super) fn take_once(&self, claims: &Claims, now: Now) -> Result<(), IdentityError> {
        let Some(id) = &claims.once else { return Ok(()) };
        if self.used.len() >= USED_MAX {
            self.used.retain(|_, until| until.position(now) != Position::After);
            if self.used.len() >= USED_MAX {
                return Err(IdentityError::TooManyFailures);
            }
        }
        match self.used.entry(id.clone()) {
            dashmap::Entry::Occupied(_) => Err(IdentityError::Replayed),
            dashmap::Entry::Vacant(place) => {
                place.insert(claims.verified.expires);
                Ok(())
            }
        }
    }
}

/// A NumericDate (RFC 7519 section 2): a whole number of seconds in any year a person could mean.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, IdentityError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let seconds = number.as_u64().filter(|seconds| *seconds <= TIME_MAX).ok_or(IdentityError::Malformed)?;
            Ok(Some(Timestamp::from_seconds(i64::try_from(seconds).map_err(|_| IdentityError::Malformed)?)))
        }
        Some(_) => Err(IdentityError::Malformed),
    }
}

/// What a proof says of its principal: names and values.
type Attributes = Vec<(Arc<str>, Arc<str>)>;

/// What a Kubernetes service-account token says, where both places it says it in agree.
fn service_account(subject: &str, claims: &Value) -> Result<Attributes, IdentityError> {
    let mut parts = subject.strip_prefix("system:serviceaccount:").ok_or(IdentityError::WrongSubject)?.split(':');
    let (Some(namespace), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(IdentityError::WrongSubject);
    };
    let said = |pointer: &str| claims.pointer(pointer).and_then(Value::as_str);
    let agrees =
        said("/kubernetes.io/namespace") == Some(namespace) && said("/kubernetes.io/serviceaccount/name") == Some(name);
    if !agrees {
        return Err(IdentityError::WrongClaim);
    }
    let mut attributes: Attributes =
        vec![("namespace".into(), namespace.into()), ("serviceaccount".into(), name.into())];
    if let Some(pod) = said("/kubernetes.io/pod/name") {
        attributes.push(("pod".into(), pod.into()));
    }
    Ok(attributes)
}
