//! Record files: appended to, begun anew at a size, bounded together.
//!
//! All workers write to one file: whole lines, by single writes to a descriptor opened for appending, so the lines of
//! workers never mix. The lock is held for the one system call that has to be made anyway.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Kept free for the outcomes of calls that were permitted while there was room.
const RESERVE: u64 = 1024 * 1024;

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    number: u64,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    segment_bytes: u64,
    bytes_max: u64,
    bytes: AtomicU64,
    taken_away: AtomicBool,
    current: Mutex<Segment>,
}

impl Spool {
    pub(super) fn open(directory: &Path, segment_bytes: u64, bytes_max: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let last = segments(directory)?.into_iter().max();
        let segment = match last {
            Some(number) => Segment::reopen(directory, number)?,
            None => Segment::begin(directory, 1)?,
        };
        let spool = Self {
            directory: directory.to_owned(),
            segment_bytes,
            bytes_max,
            bytes: AtomicU64::new(0),
            taken_away: AtomicBool::new(false),
            current: Mutex::new(segment),
        };
        spool.recount();
        Ok(spool)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether no further call may be permitted.
    pub(super) fn is_full(&self) -> bool {
        self.bytes().saturating_add(RESERVE.min(self.bytes_max / 8)) >= self.bytes_max
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Segment> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes whole lines.
    pub(super) fn append(&self, lines: &[u8]) -> io::Result<()> {
        if self.bytes().saturating_add(lines.len() as u64) > self.bytes_max {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "audit.bytes_max is reached"));
        }
        let mut segment = self.current();
        let taken_away = self.taken_away.swap(false, Ordering::AcqRel) || segment.is_deleted();
        if segment.bytes >= self.segment_bytes || taken_away {
            let next = Segment::begin(&self.directory, segment.number + 1)?;
            *segment = next;
        }
        segment.write(lines)?;
        self.bytes.fetch_add(lines.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.current().file.sync_data()
    }

    /// Counts again: whoever ships the files takes them away.
    pub(super) fn recount(&self) {
        let total = segments(&self.directory).map(|numbers| {
            let size = |number| std::fs::metadata(path_of(&self.directory, number)).map_or(0, |m| m.len());
            numbers.into_iter().map(size).sum()
        });
        if let Ok(total) = total {
            self.bytes.store(total, Ordering::Relaxed);
        }
        let segment = self.current();
        if !segment.is_still_there() {
            self.taken_away.store(true, Ordering::Release);
        }
    }

    /// Whether a file can be begun again after a failure.
    pub(super) fn probe(&self) -> bool {
        let mut segment = self.current();
        match Segment::begin(&self.directory, segment.number + 1) {
            Ok(mut next) => {
                let good = next.write(b"").is_ok() && next.file.sync_data().is_ok();
                *segment = next;
                good
            }
            Err(_) => false,
        }
    }
}

impl Segment {
    /// Whether nobody could read what is written any more.
    fn is_deleted(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.nlink() == 0)
    }

    /// Whether the path still leads to the open file; one that was taken away is not written to any further.
    fn is_still_there(&self) -> bool {
        match (self.file.metadata(), std::fs::symlink_metadata(&self.path)) {
            (Ok(open), Ok(named)) => open.ino() == named.ino() && open.dev() == named.dev(),
            _ => false,
        }
    }

    fn begin(directory: &Path, number: u64) -> io::Result<Self> {
        let path = path_of(directory, number);
        let file = options().create_new(true).open(&path)?;
        Ok(Self { file, path, number, bytes: 0 })
    }

    /// Goes on with the last file. A last line that was torn by a crash is ended, so that the next stands alone.
    fn reopen(directory: &Path, number: u64) -> io::Result<Self> {
        let path = path_of(directory, number);
        let mut file = options().open(&path)?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            let mut reader = File::open(&path)?;
            reader.seek(SeekFrom::End(-1))?;
            reader.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        let bytes = file.metadata()?.len();
        Ok(Self { file, path, number, bytes })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let before = self.bytes;
        match self.file.write_all(lines) {
            Ok(()) => {
                self.bytes += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a batch must not stay: it would be written again with the whole.
                let _ = self.file.set_len(before);
                Err(error)
            }
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("audit-{number:08}.jsonl"))
}

fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse::<u64>().ok());
        numbers.extend(number);
    }
    Ok(numbers)
}
