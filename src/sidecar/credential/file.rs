//! A secret in a file that somebody else keeps up to date.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{CredentialError, Issued};
use crate::domain::id::CredentialName;

/// Largest file taken for a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// What tells that a file is another than before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

#[derive(Debug)]
pub(super) struct SecretFile {
    path: PathBuf,
    seen: Mutex<Option<(Stamp, u64)>>,
}

impl SecretFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(None) }
    }

    /// The secret, if the file is another than when it was last read (or `even_unchanged`).
    pub(super) fn read_if_changed(
        &self,
        name: &CredentialName,
        even_unchanged: bool,
    ) -> Result<Option<Issued>, CredentialError> {
        let refuse = |reason: String| CredentialError::File {
            name: name.clone(),
            path: self.path.display().to_string(),
            reason,
        };
        let stamp = self.stamp().map_err(|error| refuse(error.to_string()))?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !even_unchanged && seen.as_ref().is_some_and(|(known, _)| *known == stamp) {
            return Ok(None);
        }
        if stamp.len > SECRET_BYTES_MAX {
            return Err(refuse(format!("it has {} bytes; a secret has at most {SECRET_BYTES_MAX}", stamp.len)));
        }
        let text = Zeroizing::new(std::fs::read_to_string(&self.path).map_err(|error| refuse(error.to_string()))?);
        let secret = text.trim_end_matches(['\n', '\r']);
        if secret.is_empty() {
            return Err(refuse("it is empty".to_owned()));
        }
        let generation = seen.as_ref().map_or(1, |(_, generation)| generation + 1);
        *seen = Some((stamp, generation));
        Ok(Some(Issued { secret: SecretString::from(secret), id: format!("file:{name}@{generation}"), expires: None }))
    }

    fn stamp(&self) -> std::io::Result<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(&self.path)?;
        Ok(Stamp { modified: metadata.modified().ok(), len: metadata.len(), inode: metadata.ino() })
    }
}
