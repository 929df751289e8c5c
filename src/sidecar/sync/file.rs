//! Grants from a file: read again when it changes, in force as a whole or not at all.
//!
//! The view is proved current whenever the file was looked at and is the one in force. A file that is missing, unreadable
//! or wrong proves nothing: the last good grants hold until the view is stale, and then everything is denied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::document::{DocumentError, Format, read};
use crate::sidecar::decide::Decider;
use crate::sidecar::decide::refused::Refused;
use crate::sync::{Changed, GrantSource, Work};

/// Where the grants are and how often they are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSettings {
    /// The file.
    pub path: PathBuf,
    /// How often it is looked at.
    pub poll: Duration,
}

/// Why the file is not in force.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is being written.
    #[error("it is being written")]
    Unsettled,
    /// Its content is wrong.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Its content contradicts what is in force.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path)?;
        Ok(Self { modified: metadata.modified().ok(), len: metadata.len(), inode: metadata.ino() })
    }

    /// Whether the file was written a moment ago. A time in the future counts as long ago.
    fn is_recent(&self) -> bool {
        self.modified.is_some_and(|modified| modified.elapsed().is_ok_and(|age| age < SETTLE))
    }
}

/// How long a file must have been left alone: a writer that does not rename may still be at it.
const SETTLE: Duration = Duration::from_millis(20);

/// The file source. It runs apart from the calls: reading a large file delays none.
#[derive(Debug)]
pub struct FileSource {
    settings: FileSettings,
    format: Format,
    decider: Arc<Decider>,
    in_force: Option<Stamp>,
    refused: Option<Stamp>,
    reads: AtomicU64,
}

impl FileSource {
    /// A source that has not been read.
    pub fn new(settings: FileSettings, decider: Arc<Decider>) -> Self {
        let format = Format::of(&settings.path);
        Self { settings, format, decider, in_force: None, refused: None, reads: AtomicU64::new(0) }
    }

    /// How often the file was read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// As [`FileSource::look`], but waits for a file that is being written; for the start. Blocks for a second at most.
    ///
    /// # Errors
    /// [`FileError`]; nothing is in force.
    pub fn look_settled(&mut self) -> Result<(), FileError> {
        let began = self.decider.clock().now().uptime;
        loop {
            match self.look() {
                Err(FileError::Unsettled)
                    if self.decider.clock().now().uptime.since(began) < Duration::from_secs(1) =>
                {
                    std::thread::park_timeout(self.left_to_settle());
                }
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// How much longer the file must be left alone, as far as can be told.
    fn left_to_settle(&self) -> Duration {
        let age = Stamp::of(&self.settings.path).ok().and_then(|stamp| stamp.modified?.elapsed().ok());
        age.map_or(SETTLE, |age| SETTLE.saturating_sub(age)).max(Duration::from_millis(1))
    }

    /// Looks at the file and puts it in force if it is another than before.
    ///
    /// # Errors
    /// [`FileError`]; what was in force stays, and ages.
    pub fn look(&mut self) -> Result<bool, FileError> {
        let before = self.decider.clock().now().uptime;
        let stamp = Stamp::of(&self.settings.path)?;
        if self.in_force.as_ref() == Some(&stamp) {
            self.decider.freshness().prove(before);
            return Ok(false);
        }
        if self.refused.as_ref() == Some(&stamp) {
            return Ok(false);
        }
        if stamp.is_recent() {
            return Err(FileError::Unsettled);
        }
        let content = std::fs::read(&self.settings.path)?;
        if Stamp::of(&self.settings.path)? != stamp || content.len() as u64 != stamp.len {
            return Err(FileError::Unsettled);
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let read = read(self.format, &content).map_err(FileError::from);
        // A file of very many grants is as large as the table that they make.
        drop(content);
        let applied = read.and_then(|snapshot| self.decider.apply(snapshot).map_err(FileError::from));
        match applied {
            Ok(()) => {
                self.in_force = Some(stamp);
                self.refused = None;
                self.decider.freshness().prove(before);
                Ok(true)
            }
            Err(error) => {
                self.refused = Some(stamp);
                Err(error)
            }
        }
    }

    /// Looks again and again until `stop`.
    async fn run(mut self, stop: CancellationToken, changed: Changed) {
        let mut last_error = String::new();
        let mut pause = self.settings.poll;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = self.settings.poll;
            match tokio::task::block_in_place(|| self.look()) {
                Ok(true) => {
                    last_error.clear();
                    let revision = self.decider.table().revision();
                    tracing::info!(file = %self.settings.path.display(), %revision, "grants changed");
                    changed();
                }
                Ok(false) => {}
                Err(FileError::Unsettled) => pause = pause.min(SETTLE),
                Err(error) => {
                    // Once for each fault, not ten times a second.
                    let text = error.to_string();
                    if text != last_error {
                        tracing::error!(file = %self.settings.path.display(), error = text, "grants not in force; the last good ones hold until the view is stale");
                        last_error = text;
                    }
                }
            }
        }
    }
}

impl GrantSource for FileSource {
    fn first(&mut self) -> Work<'_, Result<(), String>> {
        Box::pin(async { tokio::task::block_in_place(|| self.look_settled()).map_err(|error| error.to_string()) })
    }

    fn follow(self: Box<Self>, stop: CancellationToken, changed: Changed) -> Work<'static, ()> {
        Box::pin(self.run(stop, changed))
    }
}
