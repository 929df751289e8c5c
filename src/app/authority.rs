//! Where the control plane's own authority is kept, and what its listener for sidecars shows.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::control::authority::{Authority, AuthorityError, Pair, SERVER_SECONDS};
use crate::domain::time::Timestamp;

/// The authority's key and certificate, for the owner of the process alone.
const KEPT: &str = "authority.pem";

/// Its certificate alone, for whoever is to believe it.
const SHOWN: &str = "ca.pem";

/// The authority in a folder; made where there is none. Several control planes may do so at once, and one is first.
pub(super) fn open(folder: &Path, trust_domain: &str, now: Timestamp) -> anyhow::Result<Authority> {
    let context = || format!("control.sync.authority {}", folder.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(context)?;
    let kept = folder.join(KEPT);
    if !kept.exists() {
        let made = Authority::make(trust_domain, now).with_context(context)?;
        let text = zeroize::Zeroizing::new(format!("{}{}", *made.key, made.certificate));
        put(&kept, &text, 0o600, false).with_context(context)?;
        tracing::info!(folder = %folder.display(), "made an authority for the certificates of sidecars");
    }
    let mode = std::fs::metadata(&kept).with_context(context)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(anyhow!("others may read {}: `chmod 600` it", kept.display()).context(context()));
    }
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(&kept).with_context(context)?);
    let certificate = text.find("-----BEGIN CERTIFICATE").map_or("", |at| &text[at..]).to_owned();
    let authority = Authority::open(&Pair { key: text, certificate: certificate.clone() }, trust_domain);
    let authority = authority.with_context(context)?;
    put(&folder.join(SHOWN), &certificate, 0o644, true).with_context(context)?;
    Ok(authority)
}

/// The certificate of the authority in a folder.
pub(super) fn shown(folder: &Path) -> PathBuf {
    folder.join(SHOWN)
}

/// Writes a file whole or not at all; one that is there stays unless it is to be replaced.
pub(super) fn put(file: &Path, text: &str, mode: u32, replace: bool) -> std::io::Result<()> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| std::io::Error::other("the system has no random bytes"))?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let beside = file.with_extension(name);
    let mut options = std::fs::OpenOptions::new();
    let mut written = options.write(true).create_new(true).mode(mode).open(&beside)?;
    let put = written.write_all(text.as_bytes()).and_then(|()| written.sync_all()).and_then(|()| match replace {
        true => std::fs::rename(&beside, file),
        false => match std::fs::hard_link(&beside, file) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        },
    });
    // After a rename it is not there any more.
    let _ = std::fs::remove_file(&beside);
    put?;
    // The name too outlives a loss of power.
    file.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

/// What the listener shows, made by our own authority and made again in time.
pub(super) struct Served {
    names: Vec<String>,
    certificate: PathBuf,
    key: PathBuf,
    again: std::sync::Mutex<Timestamp>,
}

impl Served {
    /// In the folder where the control plane keeps what is its own.
    pub(super) fn new(data: &Path, names: &[String]) -> Self {
        Self {
            names: names.to_vec(),
            certificate: data.join("sync.pem"),
            key: data.join("sync.key"),
            again: std::sync::Mutex::new(Timestamp::from_micros(i64::MIN)),
        }
    }

    /// The files of the certificate and its key.
    pub(super) fn files(&self) -> (PathBuf, PathBuf) {
        (self.certificate.clone(), self.key.clone())
    }

    /// Makes both anew, if it is time.
    pub(super) fn renew(&self, authority: &Authority, now: Timestamp) -> anyhow::Result<()> {
        let mut again = self.again.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now < *again {
            return Ok(());
        }
        let made: Result<Pair, AuthorityError> = authority.server(&self.names, now);
        let made = made.context("control.sync.names")?;
        let context = || format!("control.data {}", self.key.display());
        put(&self.key, &made.key, 0o600, true).with_context(context)?;
        put(&self.certificate, &made.certificate, 0o644, true).with_context(context)?;
        *again = Timestamp::from_seconds(now.as_seconds() + SERVER_SECONDS / 2);
        Ok(())
    }
}
