//! A store is copied to another, and backed up to a file.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::control::store::StoreError;
use crate::control::store::sql;

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Each table with how many rows it has now.
    pub tables: Vec<(&'static str, u64)>,
    /// How many audit entries were verified.
    pub entries: u64,
}

fn run<T>(work: impl Future<Output = Result<T, StoreError>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    Ok(runtime.block_on(work)?)
}

/// Copies the store at one URL into an empty one at another, and verifies what arrived.
///
/// # Errors
/// What went wrong; the new store is as empty as it was.
pub fn copy(from: &str, to: &str) -> anyhow::Result<Copied> {
    let copied = run(sql::copy(from, to))?;
    Ok(Copied { tables: copied.tables, entries: copied.entries })
}

/// Writes a copy of a SQLite store to a new file that only its owner can read, while the store is in use.
///
/// # Errors
/// What went wrong, such as that the file is there already; nothing is left behind.
pub fn backup(from: &str, file: &Path) -> anyhow::Result<()> {
    let shown = file.display();
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let made = made.with_context(|| format!("cannot make {shown}"))?;
    let done = run(sql::backup(from, &file.to_string_lossy()));
    // A backup that is only in the page cache is none.
    let done = done.and_then(|()| Ok(made.sync_all()?));
    if done.is_err() {
        let _ = std::fs::remove_file(file);
    }
    done
}
