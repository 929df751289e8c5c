//! The identity that a sidecar, or a relay, cares for itself: joined with a token, kept in a folder, renewed in time.
//!
//! The key is made here and never leaves. It is in one file with its certificate, so that one rename changes both, and
//! whoever reads finds a pair; the authority is in another, and a certificate that is not of it counts as none.

mod renewal;

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use secrecy::{ExposeSecret, SecretString};
use x509_parser::extensions::GeneralName;

use super::authority::put;
use crate::config::{Join, JoinTokenSource};
use crate::control::authority;
use crate::domain::time::{Clock, Timestamp};
use crate::sync::client::{Address, JoinError, JoinToken, TlsSettings, join};
use crate::sync::server::Enrolled;

pub(super) use renewal::Renewal;

/// How long a control plane that cannot be reached is waited for.
const JOIN_WITHIN: Duration = Duration::from_secs(30);

/// Largest file of a token, in bytes.
const TOKEN_MAX: u64 = 4 * 1024;

/// The longest pause between two attempts to renew.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What a certificate says.
#[derive(Debug)]
struct Leaf {
    name: String,
    /// By what names others follow.
    serves: Vec<String>,
    key: Vec<u8>,
    from: Timestamp,
    until: Timestamp,
}

impl Leaf {
    fn read(der: &[u8]) -> anyhow::Result<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).context("the certificate cannot be read")?;
        let names = parsed.subject_alternative_name().context("the certificate's names cannot be read")?;
        let name = names.and_then(|names| match names.value.general_names.first() {
            Some(GeneralName::URI(name)) => Some((*name).to_owned()),
            _ => None,
        });
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_seconds(time.timestamp());
        Ok(Self {
            name: name.context("the certificate names no sidecar")?,
            serves: authority::serves(der),
            key: parsed.public_key().subject_public_key.data.to_vec(),
            from: at(parsed.validity().not_before),
            until: at(parsed.validity().not_after),
        })
    }

    fn life(&self) -> Duration {
        self.until.since(self.from)
    }

    /// When it is to be renewed: from half of its life on, not all at once.
    fn due(&self, spread: f64) -> Timestamp {
        self.from.plus(self.life() / 2 + (self.life() / 20).mul_f64(spread))
    }

    /// How long nothing is asked for after an attempt. Whatever clocks and authorities say, nobody asks without a pause.
    fn pause(&self, spread: f64) -> Duration {
        (self.life() / 64).clamp(Duration::from_secs(1), PAUSE_MAX).mul_f64(0.5 + spread / 2.0)
    }
}

/// What the folder holds.
struct Held {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
}

impl Held {
    /// What is there, if it is of use.
    fn read(files: &TlsSettings) -> anyhow::Result<Option<Self>> {
        if !files.certificate.exists() || !files.ca.exists() {
            return Ok(None);
        }
        let mode = std::fs::metadata(&files.key)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "others may read {}: `chmod 600` it", files.key.display());
        let chain = certificates(&files.certificate)?;
        let authorities = certificates(&files.ca)?;
        let Some((first, last)) = chain.first().zip(chain.last()) else { return Ok(None) };
        let leaf = Leaf::read(first).with_context(|| files.certificate.display().to_string())?;
        Ok(authorities.contains(last).then_some(Self { leaf, chain, authorities }))
    }
}

/// Makes sure that others can follow who shows this certificate.
///
/// # Errors
/// It is good for no host name, and what to do about it.
pub(super) fn must_serve(file: &Path) -> anyhow::Result<()> {
    let chain = certificates(file)?;
    let serves = chain.first().map(|leaf| authority::serves(leaf)).unwrap_or_default();
    ensure!(
        !serves.is_empty(),
        "{} names no host, so nobody can follow: join anew with a token of `leasehold sidecar join-token NAME --serves HOST`, into an empty folder, or write `relay.tls`",
        file.display()
    );
    Ok(())
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    all.with_context(|| file.display().to_string())
}

/// Makes sure that there is a certificate: the one in the folder while it is good, or else one for the token.
///
/// # Errors
/// Why there is none, and what to do about it; the folder is as it was.
pub(super) async fn ensure(settings: &Join, addresses: &[Address], clock: &dyn Clock) -> anyhow::Result<()> {
    let folder = &settings.folder;
    private(folder).with_context(|| folder.display().to_string())?;
    let files = settings.files();
    let held = Held::read(&files)?.filter(|held| clock.now().wall < held.leaf.until);
    let token = token(&settings.token);
    if let Some(held) = &held {
        // A control plane that was set up anew knows nothing of what its forerunner signed.
        let is_another = token.as_ref().is_ok_and(|token| !held.authorities.iter().any(|known| token.names(known)));
        if !is_another {
            return Ok(());
        }
        tracing::warn!("the join token is of another authority than the certificate: joining anew");
    }
    let joined = async { join_with(&token?, &files, addresses, clock).await };
    match (joined.await, held) {
        (Ok(()), _) => Ok(()),
        (Err(error), Some(_)) => {
            tracing::warn!(error = format!("{error:#}"), "not joined: the certificate that is there stays");
            Ok(())
        }
        (Err(error), None) => {
            let none = format!("there is no good certificate in {}", folder.display());
            Err(match error.downcast_ref() {
                // The token may be as good as it was.
                Some(JoinError::Unreachable(_)) => error.context(none),
                _ => error.context(format!(
                    "{none}; `leasehold sidecar join-token NAME` makes a token that is good once, for ten minutes"
                )),
            })
        }
    }
}

/// Joins with that token, and keeps what was signed.
async fn join_with(
    token: &JoinToken,
    files: &TlsSettings,
    addresses: &[Address],
    clock: &dyn Clock,
) -> anyhow::Result<()> {
    let key = KeyPair::generate().context("no key can be made")?;
    let mut answer = join(addresses, token, request(&key)?, JOIN_WITHIN).await?;
    // A relay may say what it likes; the token names one authority.
    answer.roots.retain(|root| token.names(root));
    ensure!(!answer.roots.is_empty(), "the answer lacks the authority of the token");
    let leaf = keep(files, &key, &answer, clock.now().wall)?;
    tracing::info!(sidecar = leaf.name, until = %leaf.until, "joined");
    Ok(())
}

/// The folder, for the owner of the process alone.
fn private(folder: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mode = std::fs::metadata(folder)?.permissions().mode();
    ensure!(mode & 0o077 == 0, "others may look into it: `chmod 700` it, or name a folder of its own below it");
    Ok(())
}

fn token(source: &JoinTokenSource) -> anyhow::Result<JoinToken> {
    let text = match source {
        JoinTokenSource::Env { token: Some(token), .. } => token.clone(),
        JoinTokenSource::Env { name, token: None } => bail!("the variable `{name}` is not set"),
        JoinTokenSource::File(file) => {
            let read = || {
                let metadata = std::fs::metadata(file)?;
                if !metadata.is_file() || metadata.len() > TOKEN_MAX {
                    return Err(std::io::Error::other("it is not the file of a token"));
                }
                std::fs::read_to_string(file).map(SecretString::from)
            };
            read().with_context(|| file.display().to_string())?
        }
    };
    let context = || match source {
        JoinTokenSource::Env { name, .. } => format!("the variable `{name}`"),
        JoinTokenSource::File(file) => file.display().to_string(),
    };
    JoinToken::parse(text.expose_secret().trim()).with_context(context)
}

fn request(key: &KeyPair) -> anyhow::Result<Bytes> {
    let made = CertificateParams::default().serialize_request(key).context("no certificate can be asked for")?;
    Ok(Bytes::copy_from_slice(made.der()))
}

/// Writes what was signed, if it is what was asked for.
fn keep(files: &TlsSettings, key: &KeyPair, answer: &Enrolled, now: Timestamp) -> anyhow::Result<Leaf> {
    let Enrolled { certificates, roots } = answer;
    let (first, last) = certificates.first().zip(certificates.last()).context("the answer holds no certificate")?;
    let leaf = Leaf::read(first)?;
    ensure!(leaf.key == key.public_key_raw(), "the certificate is not one of our key");
    ensure!(now < leaf.until, "the certificate is over already: one of the two clocks is wrong");
    ensure!(roots.contains(last), "the certificate is of no authority that is believed");
    verify(certificates, roots, now.max(leaf.from))?;
    let own = zeroize::Zeroizing::new(key.serialize_pem() + &pem(certificates));
    // Whatever happens between the two, a certificate that is not of the authority beside it is not used.
    let authorities = pem(roots);
    if std::fs::read(&files.ca).is_ok_and(|known| known == authorities.as_bytes()) {
        put(&files.certificate, &own, 0o600, true)?;
    } else {
        put(&files.ca, &authorities, 0o644, true)?;
        put(&files.certificate, &own, 0o600, true)?;
    }
    Ok(leaf)
}

/// Makes sure that one of these authorities signed it: whatever else is answered takes the place of nothing good.
fn verify(certificates: &[Bytes], roots: &[Bytes], now: Timestamp) -> anyhow::Result<()> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(&**root)).context("an authority cannot be read")?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build()?;
    let chain: Vec<_> = certificates.iter().map(|der| CertificateDer::from(&**der)).collect();
    let (leaf, issuers) = chain.split_first().context("there is no certificate")?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_seconds().max(0).unsigned_abs()));
    verifier.verify_client_cert(leaf, issuers, now).context("the certificate is not signed by the authority")?;
    Ok(())
}

fn pem(certificates: &[Bytes]) -> String {
    let mut text = String::new();
    for der in certificates {
        let encoded = STANDARD.encode(der);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::{Now, Uptime};

    #[test]
    fn a_certificate_is_renewed_at_half_of_its_life_and_nobody_asks_without_a_pause() {
        let at = Timestamp::from_seconds;
        let leaf = |life: i64| Leaf {
            name: String::new(),
            serves: Vec::new(),
            key: Vec::new(),
            from: at(1_000),
            until: at(1_000 + life),
        };
        assert_eq!((leaf(86_400).due(0.0), leaf(86_400).due(1.0)), (at(44_200), at(48_520)));
        assert_eq!(leaf(86_400).pause(1.0), PAUSE_MAX);
        assert_eq!(leaf(640).pause(0.0), Duration::from_secs(5));
        assert_eq!(leaf(0).pause(1.0), Duration::from_secs(1));
    }

    #[derive(Debug)]
    struct Still(Timestamp);

    impl Clock for Still {
        fn now(&self) -> Now {
            Now { wall: self.0, uptime: Uptime::from_micros(0) }
        }
    }

    #[tokio::test]
    async fn only_what_is_whole_private_and_of_its_authority_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let join = Join { token: JoinTokenSource::File("none".into()), folder: folder.path().join("own") };
        let files = join.files();
        private(&join.folder).unwrap();
        let (now, other) = (Timestamp::from_seconds(1_800_000_000), KeyPair::generate().unwrap());
        let sign = |key: &KeyPair| {
            let pair = authority::Authority::make("prod.test", now).unwrap();
            let authority = authority::Authority::open(&pair, "prod.test").unwrap();
            let sidecar = authority.sidecar("shop-1").unwrap();
            let (certificates, _) = authority.sign(&sidecar, &[], &request(key).unwrap(), now).unwrap();
            Enrolled { certificates, roots: vec![authority.certificate()] }
        };
        let key = KeyPair::generate().unwrap();
        let answer = sign(&key);
        assert!(Held::read(&files).unwrap().is_none());
        assert!(keep(&files, &other, &answer, now).unwrap_err().to_string().contains("our key"));
        let late = now.plus(Duration::from_secs(100_000));
        assert!(keep(&files, &key, &answer, late).unwrap_err().to_string().contains("over already"));
        let strange = Enrolled { roots: sign(&key).roots, ..answer.clone() };
        assert!(keep(&files, &key, &strange, now).unwrap_err().to_string().contains("no authority"));
        assert!(!files.ca.exists() && !files.certificate.exists(), "nothing half written");
        keep(&files, &key, &answer, now).unwrap();
        assert_eq!(Held::read(&files).unwrap().unwrap().leaf.name, "spiffe://prod.test/sidecar/shop-1");
        let nowhere = [Address { host: "nowhere.invalid".to_owned(), port: 1 }];
        ensure(&join, &nowhere, &Still(now)).await.unwrap();
        let over = ensure(&join, &nowhere, &Still(late)).await.unwrap_err();
        assert!(format!("{over:#}").contains("makes a token that is good once"), "{over:#}");
        std::fs::write(&files.ca, pem(&strange.roots)).unwrap();
        assert!(Held::read(&files).unwrap().is_none(), "not of the authority beside it");
        let open = |file: &Path, mode| std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        open(&files.key, 0o644);
        assert!(Held::read(&files).is_err_and(|error| error.to_string().contains("chmod 600")));
        open(&join.folder, 0o750);
        assert!(private(&join.folder).unwrap_err().to_string().contains("chmod 700"));
    }
}
