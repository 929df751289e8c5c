//! A login in a file that only its owner reads.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::provider::claims;

/// A login as it is kept.
#[derive(Debug)]
pub(super) struct Saved {
    /// The control plane that it is for; no other is shown it.
    pub(super) server: String,
    pub(super) issuer: String,
    pub(super) client_id: String,
    /// Who it is.
    pub(super) subject: String,
    pub(super) id_token: SecretString,
    pub(super) refresh_token: Option<SecretString>,
}

impl Saved {
    /// The login in a file; none where there is no file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let shown = path.display();
        let saved = Self::read_to_forget(path).context("`leasehold logout`, and log in again")?;
        let Some(saved) = saved else { return Ok(None) };
        let mode = std::fs::metadata(path).with_context(|| format!("{shown} cannot be read"))?.mode();
        if mode & 0o077 != 0 {
            bail!(
                "{shown} can be read by others, so whoever they are may have been you: `leasehold logout`, and log in again"
            );
        }
        Ok(Some(saved))
    }

    /// As [`Saved::read`], whoever else may have read it.
    pub(super) fn read_to_forget(path: &Path) -> anyhow::Result<Option<Self>> {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{shown} cannot be read")),
        };
        let damaged = || format!("{shown} is damaged");
        let document: Value = serde_json::from_str(&text).ok().with_context(damaged)?;
        let of = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
        let saved = || {
            Some(Self {
                server: of("server")?,
                issuer: of("issuer")?,
                client_id: of("client_id")?,
                subject: of("subject")?,
                id_token: of("id_token")?.into(),
                refresh_token: of("refresh_token").map(SecretString::from),
            })
        };
        saved().map(Some).with_context(damaged)
    }

    /// Puts it in the place of what was there, as a whole.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.parent().context("no folder")?;
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        let document = json!({
            "server": self.server, "issuer": self.issuer, "client_id": self.client_id, "subject": self.subject,
            "id_token": self.id_token.expose_secret(),
            "refresh_token": self.refresh_token.as_ref().map(ExposeSecret::expose_secret),
        });
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| file.write_all(document.to_string().as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&beside, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        written.with_context(|| format!("{shown} cannot be written"))
    }

    /// Whether its token is good for that long yet. One whose end cannot be read is not.
    pub(super) fn lasts(&self, now: i64, time: Duration) -> bool {
        let time = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        claims(&self.id_token).is_ok_and(|claims| claims.expires > now.saturating_add(time))
    }
}

/// Keeps other commands of this user from renewing the login at the same time, until it is dropped.
pub(super) fn lock(path: &Path) -> anyhow::Result<File> {
    let path = path.with_extension("lock");
    let cannot = || format!("{} cannot be locked", path.display());
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).with_context(cannot)?;
    file.lock().with_context(cannot)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use std::os::unix::fs::PermissionsExt;

    fn login(expires: i64) -> Saved {
        let payload = json!({"iss": "https://i", "sub": "me", "aud": "cli", "exp": expires}).to_string();
        let token = format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(payload));
        Saved {
            server: "https://cp".into(),
            issuer: "https://i".into(),
            client_id: "cli".into(),
            subject: "me".into(),
            id_token: token.into(),
            refresh_token: Some("r3fresh".to_owned().into()),
        }
    }

    #[test]
    fn only_its_owner_reads_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/login.json");
        assert!(Saved::read(&path).expect("nothing").is_none());
        login(1).write(&path).expect("written");
        login(100).write(&path).expect("written again");
        assert_eq!(std::fs::metadata(&path).expect("a file").mode() & 0o777, 0o600);
        let read = Saved::read(&path).expect("a login").expect("a login");
        assert_eq!(read.refresh_token.as_ref().map(|token| token.expose_secret()), Some("r3fresh"));
        assert!(read.lasts(39, Duration::from_secs(60)) && !read.lasts(40, Duration::from_secs(60)));
        assert!(!format!("{read:?}").contains("r3fresh"));
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).expect("a folder").count(), 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
        assert!(Saved::read(&path).is_err_and(|error| error.to_string().contains("read by others")));
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("login.json");
        login(1).write(&path).expect("written");
        std::fs::write(&path, "{").expect("written");
        assert!(Saved::read(&path).is_err_and(|error| error.to_string().contains("leasehold logout")));
    }
}
