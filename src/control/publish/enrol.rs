//! Sidecars join with a token that is good once, and renew what they got for it.
//!
//! The token is the secret; of it only the digest is kept. It is taken before anything is signed, and what is signed is in
//! the record before it is given: a lost answer loses the token, and nothing is signed that is not recorded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::control::authority::{self, Authority, AuthorityError};
use crate::control::command::Command;
use crate::control::engine::Engine;
use crate::control::refusal::{Kind, Refusal};
use crate::control::store::sql::SqlStore;
use crate::domain::principal::Principal;
use crate::domain::time::{Clock, Timestamp};
use crate::identity::Verifier;
use crate::sync::renewal::SignedRenewal;
use crate::sync::server::{Enrolled, Failed};

/// How long a join token is good for.
const TOKEN_LIVES: Duration = Duration::from_secs(600);

/// Most names that one relay serves by.
const SERVES_MAX: usize = 16;

/// What join tokens begin with, so that a leaked one is known for what it is.
const PREFIX: &str = "lhj_";

/// A join token, as it is shown once.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The token, with the digest of the authority that the server must show.
    pub token: String,
    /// For which sidecar.
    pub sidecar: Principal,
    /// Until when.
    pub expires_at: Timestamp,
}

/// Lets sidecars join.
#[derive(Debug)]
pub struct Enrolment {
    authority: Authority,
    /// By what names sidecars connect to the control plane itself.
    own: Vec<String>,
    /// Whose certificates it signed.
    names: Verifier,
    engine: Engine,
    store: Arc<SqlStore>,
    clock: Arc<dyn Clock>,
    /// Strangers who are heard at a time.
    strangers: Semaphore,
}

/// Most strangers who are heard at a time; what they say costs a look into the store.
const STRANGERS_MAX: usize = 4;

fn unavailable(error: &dyn std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a sidecar cannot be enrolled");
    Refusal::new(Kind::Unavailable, "store", "it cannot be done now: try again")
}

/// Whether whoever connects by that name never leaves this machine.
fn is_this_machine(name: &ServerName<'_>) -> bool {
    match name {
        ServerName::IpAddress(address) => IpAddr::from(*address).is_loopback(),
        ServerName::DnsName(name) => name.as_ref().eq_ignore_ascii_case("localhost"),
        _ => false,
    }
}

/// Whether both are names of one server: of a host's name neither the case nor a dot at the end counts.
fn is_same(own: &str, name: &ServerName<'_>) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    match name {
        ServerName::IpAddress(address) => own.parse::<IpAddr>().is_ok_and(|own| own == IpAddr::from(*address)),
        ServerName::DnsName(name) => plain(own) == plain(name.as_ref()),
        _ => true,
    }
}

fn hashed(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, secret.as_bytes()))
}

impl Enrolment {
    /// With this authority, the names of the control plane itself, and what verifies the certificates that it signed.
    pub fn new(
        (authority, own): (Authority, Vec<String>),
        names: Verifier,
        engine: Engine,
        store: Arc<SqlStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { authority, own, names, engine, store, clock, strangers: Semaphore::new(STRANGERS_MAX) }
    }

    /// Makes a token for a sidecar of that name, if `actor` may; for a relay, which `serves` others by these names.
    ///
    /// # Errors
    /// [`Refusal`]; there is no token then.
    pub async fn token(&self, actor: Principal, name: &str, serves: &[String]) -> Result<JoinToken, Refusal> {
        let sidecar = self.authority.sidecar(name).map_err(|error| Refusal::invalid("name", error))?;
        self.may_serve(serves).map_err(|why| Refusal::invalid("serves", why))?;
        let expires_at = self.clock.now().wall.plus(TOKEN_LIVES);
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| unavailable(&"the system has no random bytes"))?;
        let secret = URL_SAFE_NO_PAD.encode(random);
        let mut detail = json!({"expires_at": expires_at});
        if !serves.is_empty() {
            detail["serves"] = json!(serves);
        }
        let command = Command::Enrol { sidecar: sidecar.clone(), event: "sidecar.token_made", detail };
        self.engine.run(actor, command).await?;
        // None of them has a space in it.
        let whom = [&[sidecar.as_str().to_owned()], serves].concat().join(" ");
        let kept = self.store.keep_join_token(&hashed(&secret), &whom, expires_at).await;
        kept.map_err(|error| unavailable(&error))?;
        let token = format!("{PREFIX}{secret}.{}", self.authority.digest());
        Ok(JoinToken { token, sidecar, expires_at })
    }

    /// Why nobody is to serve by these names.
    fn may_serve(&self, serves: &[String]) -> Result<(), String> {
        if serves.len() > SERVES_MAX {
            return Err(format!("there are more than {SERVES_MAX} names"));
        }
        for text in serves {
            let name = ServerName::try_from(text.as_str());
            let name = name.map_err(|_| format!("`{}` is no host name and no address", text.escape_debug()))?;
            // Whoever may let sidecars join could be the control plane to all of them.
            if !is_this_machine(&name) && self.own.iter().any(|own| is_same(own, &name)) {
                return Err(format!("`{text}` is a name of the control plane: a relay has one of its own"));
            }
        }
        Ok(())
    }

    /// Signs for whom the token was made.
    pub(super) async fn join(&self, token: &str, csr: &[u8]) -> Result<Enrolled, Failed> {
        let refused = || Failed::Forbidden("the join token is not good, or not any more: make another".to_owned());
        let secret = token.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).map(|(secret, _)| secret);
        let secret = secret.filter(|secret| secret.len() <= 64).ok_or_else(refused)?;
        let busy = |_| Failed::Unavailable("too many join at once: try again in a moment".to_owned());
        let _heard = self.strangers.try_acquire().map_err(busy)?;
        let now = self.clock.now().wall;
        let taken = self.store.take_join_token(&hashed(secret), now).await;
        let taken = taken.map_err(|error| Failed::from(unavailable(&error)))?.ok_or_else(refused)?;
        let mut whom = taken.split(' ');
        let sidecar = Principal::parse(whom.next().unwrap_or_default()).map_err(|_| refused())?;
        let serves: Vec<_> = whom.map(str::to_owned).collect();
        self.sign(sidecar, &serves, csr, ("sidecar.joined", None)).await
    }

    /// Signs for who shows a certificate of ours; without what it signed, it serves nobody.
    pub(super) async fn renew(&self, sidecar: Principal, csr: &[u8]) -> Result<Enrolled, Failed> {
        self.renew_as(sidecar, &[], csr, None).await
    }

    async fn renew_as(
        &self,
        sidecar: Principal,
        serves: &[String],
        csr: &[u8],
        through: Option<&Principal>,
    ) -> Result<Enrolled, Failed> {
        if !self.engine.catalogue().is_sidecar(&sidecar) {
            // What was taken from it is not to be had again by asking for more time.
            let said = format!("no Backend names `{sidecar}` under `sidecars`: its certificate is not renewed");
            return Err(Failed::Forbidden(said));
        }
        self.sign(sidecar, serves, csr, ("sidecar.renewed", through)).await
    }

    /// Signs for whose certificate is in a signed renewal: of `by` who shows it to us too, or else passes it on.
    pub(super) async fn renew_signed(&self, by: Principal, signed: &SignedRenewal) -> Result<Enrolled, Failed> {
        let chain: Vec<_> = signed.certificates.iter().map(|der| CertificateDer::from(&**der)).collect();
        let now = self.clock.now();
        let verified = self.names.certificate(&chain, now);
        let verified = verified.map_err(|error| {
            Failed::Forbidden(format!("the certificate that is to be renewed is not good: {error}"))
        })?;
        let sidecar = verified.principal().clone();
        // It is good and ours: what it serves by was signed before.
        let serves = chain.first().map(|leaf| authority::serves(leaf)).unwrap_or_default();
        if sidecar == by {
            // Its connection proves more than a signature does, whatever its clock says.
            return self.renew_as(sidecar, &serves, &signed.csr, None).await;
        }
        if !self.engine.catalogue().is_sidecar(&by) {
            let said = format!("no Backend names `{by}` under `sidecars`: it may not pass on renewals");
            return Err(Failed::Forbidden(said));
        }
        if !signed.is_recent(now.wall) {
            let said = format!(
                "the renewal was signed at {} and it is {}: it was kept for too long, or one of the two clocks is wrong",
                signed.signed_at, now.wall
            );
            return Err(Failed::Forbidden(said));
        }
        let key = chain.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
        let key = key.map(|(_, leaf)| leaf.public_key().subject_public_key.data.to_vec()).unwrap_or_default();
        if !signed.is_signed_by(&key) {
            return Err(Failed::Forbidden("the renewal is not signed by the key of its certificate".to_owned()));
        }
        self.renew_as(sidecar, &serves, &signed.csr, Some(&by)).await
    }

    async fn sign(
        &self,
        sidecar: Principal,
        serves: &[String],
        csr: &[u8],
        (event, through): (&'static str, Option<&Principal>),
    ) -> Result<Enrolled, Failed> {
        let signed = self.authority.sign(&sidecar, serves, csr, self.clock.now().wall);
        let (certificates, serial) = signed.map_err(|error| match error {
            AuthorityError::Request(_) => Failed::Invalid(error.to_string()),
            AuthorityError::Ours(_) => Failed::from(unavailable(&error)),
        })?;
        let mut detail = json!({"serial": serial});
        if !serves.is_empty() {
            detail["serves"] = json!(serves);
        }
        if let Some(through) = through {
            detail["through"] = json!(through);
        }
        self.engine.run(sidecar.clone(), Command::Enrol { sidecar, event, detail }).await?;
        Ok(Enrolled { certificates, roots: vec![self.authority.certificate()] })
    }

    /// Who signs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}
