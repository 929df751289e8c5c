//! How a sidecar gets its own certificate, resolved.

use std::path::PathBuf;

use secrecy::SecretString;

use crate::sync::client::TlsSettings;

/// How a sidecar, or a relay, joins a control plane that is its own authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Where the token is, for as long as there is no certificate.
    pub token: JoinTokenSource,
    /// Where the key and what was signed for it are kept.
    pub folder: PathBuf,
}

/// Where a join token is.
#[derive(Debug, Clone)]
pub enum JoinTokenSource {
    /// A file, read when it is needed.
    File(PathBuf),
    /// The environment of the process, read once.
    Env {
        /// Which variable.
        name: String,
        /// What it held, if anything.
        token: Option<SecretString>,
    },
}

impl PartialEq for JoinTokenSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one == other,
            // The environment of a process stays as it is.
            (Self::Env { name: one, .. }, Self::Env { name: other, .. }) => one == other,
            _ => false,
        }
    }
}

impl Eq for JoinTokenSource {}

impl Join {
    /// The files of the folder: the key and its certificate in one, so that both change at once, and the authority.
    pub fn files(&self) -> TlsSettings {
        let own = self.folder.join("identity.pem");
        TlsSettings { certificate: own.clone(), key: own, ca: self.folder.join("ca.pem") }
    }
}
