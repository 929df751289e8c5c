//! Connections: how they are made, how long they may take, and what their errors mean.

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyPool, ConnectOptions};

use crate::control::store::{Read, StoreError};

/// Longest wait for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Longest wait for the answer to one statement.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Longest wait for a statement that changes tables, and for another control plane that is at it: an index of very many
/// rows takes minutes.
const CHANGE_WITHIN: Duration = Duration::from_secs(3_600);

/// FULL: what was acknowledged survives a power cut.
const SQLITE: &[&str] = &[
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA wal_autocheckpoint = 4000",
];

/// Another control plane that stands still while it holds the counter row is waited for, and then thrown out. The plans
/// are for tables that grow by the thousand before anybody counts them: always by the index.
const POSTGRES: &[&str] = &[
    "SET lock_timeout = '5s'",
    "SET statement_timeout = '10s'",
    "SET idle_in_transaction_session_timeout = '10s'",
    "SET enable_seqscan = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
];

/// Inside the transaction that brings the tables up to date: whoever else is at it is waited for, and no statement is too
/// long. The number is ours; two that start at once would both create.
pub(super) const POSTGRES_ALONE: &[&str] = &[
    "SET LOCAL statement_timeout = '1h'",
    "SET LOCAL idle_in_transaction_session_timeout = '1min'",
    "SET LOCAL lock_timeout = '1h'",
    "SELECT pg_advisory_xact_lock(7308895159)",
    "SET LOCAL lock_timeout = '5s'",
];

/// The kinds of engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One machine, one file, one writer.
    Sqlite,
    /// Several control planes.
    Postgres,
}

impl Kind {
    pub(super) fn of(url: &str) -> Read<Self> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => Ok(Self::Sqlite),
            Some("postgres" | "postgresql") => Ok(Self::Postgres),
            _ => Err(StoreError::Refused("a store is `sqlite:PATH` or `postgres://…`".into())),
        }
    }
}

/// The options of a URL. A file that is not there is created only where `create` says so.
pub(super) fn options(url: &str, kind: Kind, create: bool) -> Read<AnyConnectOptions> {
    let with = |option: &str| format!("{url}{}{option}", if url.contains('?') { '&' } else { '?' });
    let url = match kind {
        Kind::Sqlite if !url.contains("mode=") => with(if create { "mode=rwc" } else { "mode=rw" }),
        // Statements come in several lengths: see `insert`.
        Kind::Postgres if !url.contains("statement-cache-capacity") => with("statement-cache-capacity=256"),
        _ => url.to_owned(),
    };
    let options = AnyConnectOptions::from_str(&url).map_err(|error| failed(&error))?;
    Ok(options.disable_statement_logging())
}

/// A pool of connections that are set up for us. Nothing is connected yet.
pub(super) fn pool(options: AnyConnectOptions, kind: Kind, size: u32) -> AnyPool {
    let settings = match kind {
        Kind::Sqlite => SQLITE,
        Kind::Postgres => POSTGRES,
    };
    AnyPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(CONNECT_WITHIN)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                for setting in settings {
                    sqlx::query(*setting).execute(&mut *connection).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(options)
}

/// What the engine answers, unless it takes too long.
pub(super) async fn within<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Read<T> {
    answered(asked, ANSWER_WITHIN).await
}

/// As [`within`], of what goes through whole tables.
pub(super) async fn within_change<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Read<T> {
    answered(asked, CHANGE_WITHIN).await
}

async fn answered<T>(asked: impl Future<Output = Result<T, sqlx::Error>>, limit: Duration) -> Read<T> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(|error| failed(&error)),
        Err(_) => Err(StoreError::Unreachable(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// As [`within`], for a commit: without an answer it may have been done.
pub(super) async fn within_commit<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Read<T> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(answer) => answer.map_err(|error| not_confirmed(&error)),
        Err(_) => Err(StoreError::Unconfirmed(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
    }
}

/// What an error means before a commit was asked for.
pub(super) fn failed(error: &sqlx::Error) -> StoreError {
    use sqlx::Error;
    let said = error.to_string();
    match error {
        Error::Io(_)
        | Error::Tls(_)
        | Error::Protocol(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed => StoreError::Unreachable(said),
        Error::Database(database) if database.code().is_some_and(|code| is_passing(&code)) => {
            StoreError::Unreachable(said)
        }
        _ => StoreError::Refused(said),
    }
}

/// What an error of a commit means: whether it was done is only known where the engine itself says no.
fn not_confirmed(error: &sqlx::Error) -> StoreError {
    let said = error.to_string();
    match error {
        sqlx::Error::Database(database) if database.code().is_some_and(|code| !is_doubtful(&code)) => failed(error),
        _ => StoreError::Unconfirmed(said),
    }
}

/// Whether an error code is about the engine's state, and not about what was asked of it.
///
/// SQLite's are numbers whose low byte is the kind: busy, locked, read-only, I/O, full, cannot open. PostgreSQL's are
/// classes: connection, resources, operator, locks, serialisation, cancelled or idle for too long.
fn is_passing(code: &str) -> bool {
    if code.len() == 5 {
        return ["08", "53", "57", "58", "40", "25P0", "55P"].iter().any(|class| code.starts_with(class));
    }
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

/// Whether an error code leaves open what became of a commit: the connection or the server went, or the disk failed.
fn is_doubtful(code: &str) -> bool {
    if code.len() == 5 {
        return ["08", "57", "58"].iter().any(|class| code.starts_with(class));
    }
    code.parse::<u32>().is_ok_and(|code| code & 0xff == 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_engine() {
        assert_eq!(Kind::of("sqlite:/x/y.db"), Ok(Kind::Sqlite));
        assert_eq!(Kind::of("postgres://h/d"), Ok(Kind::Postgres));
        for bad in ["", "mysql://h/d", "/x/y.db"] {
            assert!(Kind::of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn codes_say_whose_fault_it_is() {
        for (code, passing, doubtful) in [
            ("57P01", true, true),
            ("08006", true, true),
            ("55P03", true, false),
            ("40P01", true, false),
            ("25P03", true, false),
            ("23505", false, false),
            ("22021", false, false),
            ("5", true, false),
            ("522", true, true),
            ("13", true, false),
            ("1555", false, false),
        ] {
            assert_eq!((is_passing(code), is_doubtful(code)), (passing, doubtful), "{code}");
        }
    }
}
