//! A certificate is renewed in time, for as long as the process runs. One that ran out all the same, because the machine
//! slept or nobody could be reached, is followed by one for a new token, without a restart.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use rcgen::{KeyPair, SigningKey};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{Held, Leaf, join_with, keep, request, token};
use crate::config::{Join, JoinTokenSource};
use crate::domain::time::{Clock, Timestamp};
use crate::sync::client::{Address, JoinError, JoinToken, Status, TlsSettings, Upstreams, fraction};
use crate::sync::renewal::SignedRenewal;
use crate::sync::server::Enrolled;

/// How long is slept before the clock is read again: a machine that sleeps too does not count that.
const NAP: Duration = Duration::from_secs(60);

/// Clocks that are less apart need no second try.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// How often a new token is looked for once the certificate is over. It is good for ten minutes.
const TOKEN_EVERY: Duration = Duration::from_secs(5);

/// Renews the certificate again and again, over connections that it proves itself.
pub(in crate::app) struct Renewal {
    pub(in crate::app) join: Join,
    /// Where is joined again.
    pub(in crate::app) addresses: Vec<Address>,
    pub(in crate::app) upstreams: Arc<Upstreams>,
    pub(in crate::app) clock: Arc<dyn Clock>,
    /// What is known of the clock of those who are followed.
    pub(in crate::app) status: Arc<Status>,
}

/// By which clocks a renewal is signed, one after the other. Behind a relay it is good for minutes, by the control plane's
/// clock: where ours and the one that is followed are further apart, one of the two is wrong, and nobody here knows which.
fn moments(now: Timestamp, ahead_micros: i64) -> impl Iterator<Item = Timestamp> {
    let theirs = Timestamp::from_micros(now.as_micros().saturating_add(ahead_micros));
    let apart = Duration::from_micros(ahead_micros.unsigned_abs()) > CLOCKS_APART;
    std::iter::once(now).chain(apart.then_some(theirs))
}

/// What came of joining again so far.
#[derive(Default)]
struct Tried {
    /// A token that is not good, and will not be.
    refused: Option<JoinToken>,
    said: String,
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
        let mut tried = Tried::default();
        let files = self.join.files();
        loop {
            match Held::read(&files) {
                Ok(Some(held)) => {
                    let leaf = &held.leaf;
                    self.wait(leaf.due(fraction())).await;
                    pause = if self.left(leaf).is_zero() {
                        self.join_again(leaf, &mut tried).await;
                        TOKEN_EVERY.mul_f64(0.5 + fraction() / 2.0)
                    } else {
                        tried = Tried::default();
                        if let Err(error) = self.renew(&held).await {
                            self.complain(leaf, &error);
                        }
                        // With its end begins another care.
                        leaf.pause(fraction()).min(self.left(leaf).max(Duration::from_secs(1)))
                    };
                }
                Ok(None) => tracing::error!(file = %files.certificate.display(), "the certificate is gone"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "the certificate cannot be renewed"),
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn left(&self, leaf: &Leaf) -> Duration {
        leaf.until.since(self.clock.now().wall)
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

    async fn renew(&self, held: &Held) -> anyhow::Result<()> {
        let files = self.join.files();
        let key = KeyPair::generate().context("no key can be made")?;
        let csr = request(&key)?;
        let mut answer = Err(anyhow!("nobody was asked"));
        for moment in moments(self.clock.now().wall, self.status.clock_offset_micros()) {
            let signed = sign_renewal(&files, held, csr.clone(), moment)?;
            answer = self.upstreams.renew(&signed).await.map_err(|why| anyhow!(why));
            if answer.is_ok() {
                break;
            }
        }
        let answer = taken(held, answer?)?;
        let leaf = keep(&files, &key, &answer, self.clock.now().wall)?;
        tracing::info!(sidecar = leaf.name, until = %leaf.until, "the certificate was renewed");
        Ok(())
    }

    fn complain(&self, leaf: &Leaf, error: &anyhow::Error) {
        let (error, until) = (format!("{error:#}"), leaf.until);
        if self.left(leaf) < leaf.life() / 4 {
            tracing::error!(error, %until, "the certificate is not renewed; soon no control plane will know us by it");
        } else {
            tracing::warn!(error, %until, "the certificate is not renewed yet");
        }
    }

    /// Joins with the token that is there now, unless it is the one that was refused.
    async fn join_again(&self, leaf: &Leaf, tried: &mut Tried) {
        let token = token(&self.join.token);
        if let (Ok(token), Some(refused)) = (&token, &tried.refused)
            && token.is(refused)
        {
            return;
        }
        let joined = match &token {
            Ok(token) => join_with(token, &self.join.files(), &self.addresses, &*self.clock).await,
            Err(error) => Err(anyhow!("{error:#}")),
        };
        let Err(error) = joined else { return *tried = Tried::default() };
        if let Some(JoinError::Refused(_)) = error.downcast_ref() {
            tried.refused = token.ok();
        }
        let error = format!("{error:#}");
        if error == tried.said {
            return;
        }
        let hint = match &self.join.token {
            JoinTokenSource::File(file) => format!("put it into {}", file.display()),
            JoinTokenSource::Env { name, .. } => format!("start again with it in the variable `{name}`"),
        };
        tracing::error!(
            error,
            until = %leaf.until,
            "the certificate is over: `leasehold sidecar join-token NAME` makes a token, {hint}"
        );
        tried.said = error;
    }
}

/// Proves with the key in the folder that its certificate is ours.
fn sign_renewal(files: &TlsSettings, held: &Held, csr: Bytes, now: Timestamp) -> anyhow::Result<SignedRenewal> {
    let text = Zeroizing::new(std::fs::read_to_string(&files.key)?);
    let key = KeyPair::from_pem(&text).with_context(|| files.key.display().to_string())?;
    let signed = SignedRenewal::make(csr, bytes(&held.chain), now, |message| key.sign(message));
    signed.context("the renewal cannot be signed")
}

/// What is taken of an answer. Whoever passed it on may say what they like: who is believed, and who we are, stays.
fn taken(held: &Held, answer: Enrolled) -> anyhow::Result<Enrolled> {
    let named = answer.certificates.first().map(|der| Leaf::read(der)).transpose()?;
    let named = named.filter(|named| named.name == held.leaf.name).context("the answer is for another sidecar")?;
    // What a certificate does not say any more, no later renewal can find in it.
    ensure!(
        named.serves == held.leaf.serves,
        "the answer is not for the hosts by which others follow us: is that control plane of an older version?"
    );
    Ok(Enrolled { roots: bytes(&held.authorities), ..answer })
}

fn bytes(certificates: &[CertificateDer<'_>]) -> Vec<Bytes> {
    certificates.iter().map(|der| Bytes::copy_from_slice(der)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::clock::SystemClock;
    use crate::control::authority::Authority;
    use crate::sync::client::Servers;

    #[tokio::test(start_paused = true)]
    async fn a_token_that_was_refused_is_not_sent_again_and_another_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let text = |secret: &str| format!("lhj_{secret}.{}", "0a".repeat(32));
        let put = |secret: &str| std::fs::write(&file, text(secret)).unwrap();
        let addresses = vec![Address { host: "127.0.0.1".to_owned(), port: 1 }];
        let renewal = Renewal {
            join: Join { token: JoinTokenSource::File(file.clone()), folder: folder.path().join("own") },
            addresses: addresses.clone(),
            upstreams: Upstreams::open(Servers { addresses, tls: None }).unwrap(),
            clock: Arc::new(SystemClock::new()),
            status: Arc::default(),
        };
        let at = Timestamp::from_seconds;
        let leaf = Leaf { name: String::new(), serves: Vec::new(), key: Vec::new(), from: at(0), until: at(60) };
        let mut tried = Tried { refused: JoinToken::parse(&text("first")).ok(), said: String::new() };
        put("first");
        renewal.join_again(&leaf, &mut tried).await;
        assert_eq!(tried.said, "");
        put("second");
        renewal.join_again(&leaf, &mut tried).await;
        assert!(tried.said.contains("no control plane could be joined"), "{}", tried.said);
        std::fs::remove_file(&file).unwrap();
        renewal.join_again(&leaf, &mut tried).await;
        assert!(tried.said.contains("No such file"), "{}", tried.said);
        assert!(tried.refused.unwrap().is(&JoinToken::parse(&text("first")).unwrap()), "only a refusal is one");
    }
    #[test]
    fn of_two_clocks_that_differ_both_are_tried() {
        let at = Timestamp::from_seconds;
        let tried = |ahead_seconds: i64| moments(at(1_000), ahead_seconds * 1_000_000).collect::<Vec<_>>();
        assert_eq!(tried(0), [at(1_000)]);
        assert_eq!(tried(-60), [at(1_000)]);
        assert_eq!(tried(400), [at(1_000), at(1_400)]);
        assert_eq!(tried(-400), [at(1_000), at(600)]);
        assert_eq!(moments(Timestamp::MAX, i64::MAX).count(), 2);
    }

    #[test]
    fn of_an_answer_nothing_is_taken_but_a_certificate_for_the_own_name_and_key() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Timestamp::from_seconds(1_800_000_000));
        let files = Join { token: JoinTokenSource::File("none".into()), folder: folder.path().to_owned() }.files();
        let authority = || Authority::open(&Authority::make("prod.test", now).unwrap(), "prod.test").unwrap();
        let (ours, other) = (authority(), authority());
        let sign_as = |by: &Authority, name: &str, serves: &[String], key: &KeyPair| {
            let (certificates, _) = by.sign(&by.sidecar(name).unwrap(), serves, &request(key).unwrap(), now).unwrap();
            Enrolled { certificates, roots: vec![by.certificate()] }
        };
        let host = ["relay.prod.test".to_owned()];
        let sign = |by: &Authority, name: &str, key: &KeyPair| sign_as(by, name, &host, key);
        let [first, next, theirs] = [(); 3].map(|()| KeyPair::generate().unwrap());
        keep(&files, &first, &sign(&ours, "shop-1", &first), now).unwrap();
        let held = Held::read(&files).unwrap().unwrap();
        let before = std::fs::read(&files.certificate).unwrap();
        let mut not_signed = sign(&other, "shop-1", &next);
        not_signed.certificates[1] = ours.certificate();
        for (answer, says) in [
            (sign(&ours, "shop-2", &next), "another sidecar"),
            (sign_as(&ours, "shop-1", &[], &next), "of an older version"),
            (sign(&ours, "shop-1", &theirs), "our key"),
            (sign(&other, "shop-1", &next), "no authority"),
            (not_signed, "not signed by the authority"),
            (Enrolled { certificates: Vec::new(), roots: Vec::new() }, "another sidecar"),
        ] {
            let kept = taken(&held, answer).and_then(|answer| keep(&files, &next, &answer, now));
            assert!(format!("{:#}", kept.unwrap_err()).contains(says), "{says}");
            assert_eq!(std::fs::read(&files.certificate).unwrap(), before, "what is good stays: {says}");
        }
        let good = Enrolled { roots: vec![other.certificate()], ..sign(&ours, "shop-1", &next) };
        keep(&files, &next, &taken(&held, good).unwrap(), now).unwrap();
        let renewed = Held::read(&files).unwrap().unwrap();
        assert_eq!(renewed.authorities, held.authorities, "who is believed stays");
        let signed = sign_renewal(&files, &renewed, request(&first).unwrap(), now).unwrap();
        assert!(signed.is_signed_by(&renewed.leaf.key) && !signed.is_signed_by(&held.leaf.key));
    }
}
