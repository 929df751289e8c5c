//! `leasehold store`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{EXIT_CODES, print};
use crate::app::store;

/// What to do with a store.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Copies a whole store into an empty one, and verifies what arrived
    #[command(
        long_about = "Copies a whole store into an empty one, and verifies what arrived.\n\n\
Stop every control plane on the old store first: what it writes meanwhile is not copied. Every row is copied in one \
transaction, the rows of each table are counted on both sides, and the chain of the record is verified from its first \
entry to its last; where anything differs, the new store stays empty. Then name the new store in `control.store`.\n\n\
A password is better in the file that PGPASSFILE names than on a command line, which others on the machine can read.",
        after_help = EXAMPLES_COPY
    )]
    Copy {
        /// The store to copy: `sqlite:PATH` or `postgres://USER@HOST/DATABASE`
        #[arg(long, value_name = "URL", value_parser = url)]
        from: String,
        /// The store to copy to; a SQLite file is made, a database is there already and is empty
        #[arg(long, value_name = "URL", value_parser = url)]
        to: String,
    },

    /// Writes a copy of a SQLite store to a new file, while the store is in use
    #[command(
        long_about = "Writes a copy of a SQLite store to a new file, while the store is in use.\n\n\
The copy is of one moment and compact. A file that is there already is never overwritten. To restore it, stop the \
control plane and name the copy in `control.store`. PostgreSQL has its own means, such as pg_dump.",
        after_help = EXAMPLES_BACKUP
    )]
    Backup {
        /// The store: `sqlite:PATH`
        #[arg(long, value_name = "URL", value_parser = url)]
        from: String,
        /// The file to make
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

const EXAMPLES_COPY: &str = "\
Examples:
  leasehold store copy --from sqlite:/var/lib/leasehold/leasehold.db --to postgres://leasehold@db.example/leasehold

Exit codes:
  0  everything was copied and verified
  1  it was not; the new store is as empty as it was
  2  the command line is wrong";

const EXAMPLES_BACKUP: &str = "\
Examples:
  leasehold store backup --from sqlite:/var/lib/leasehold/leasehold.db /backup/leasehold-monday.db

Exit codes:
  0  the copy is written and on the disk
  1  it is not, and nothing was left behind
  2  the command line is wrong";

/// Help of the command as a whole.
pub(super) const AFTER_HELP: &str = EXIT_CODES;

/// Refuses what is no store before anything is opened.
fn url(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("sqlite" | "postgres" | "postgresql", rest)) if !rest.is_empty() => Ok(text.to_owned()),
        _ => Err("write `sqlite:PATH` or `postgres://USER@HOST/DATABASE`".into()),
    }
}

impl StoreCommand {
    /// Does it.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Copy { from, to } => copy(from, to),
            Self::Backup { from, file } => backup(from, file),
        }
    }
}

fn copy(from: &str, to: &str) -> anyhow::Result<()> {
    let copied = store::copy(from, to)?;
    let mut rows = vec![vec!["TABLE".to_owned(), "ROWS".to_owned()]];
    rows.extend(copied.tables.iter().map(|(table, rows)| vec![(*table).to_owned(), rows.to_string()]));
    print::out(&print::table(&rows));
    print::out(&format!("copied and verified: {} entries of the record\n", copied.entries));
    Ok(())
}

fn backup(from: &str, file: &Path) -> anyhow::Result<()> {
    store::backup(from, file)?;
    print::out(&print::safe(&format!("{}: written\n", file.display())));
    Ok(())
}
