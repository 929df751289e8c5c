//! The tables, and how those of an older version become those of this one.

use sqlx::{AnyConnection, Row};

use super::connect::{failed, within, within_change};
use crate::control::store::{Read, StoreError};

/// What each version added. A later version adds an entry at the end; none is ever changed.
///
/// Only `TEXT` and `BIGINT`, which both engines and sqlx's `Any` driver have.
const VERSIONS: &[&[&str]] = &[FIRST, SECOND, THIRD, FOURTH];

const FIRST: &[&str] = &[
    "CREATE TABLE head (name TEXT PRIMARY KEY, revision BIGINT NOT NULL, sequence BIGINT NOT NULL, audit_hash TEXT NOT NULL, generation BIGINT NOT NULL)",
    "CREATE TABLE documents (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, name))",
    "CREATE TABLE requests (id TEXT PRIMARY KEY, state TEXT NOT NULL, requester TEXT NOT NULL, subject TEXT NOT NULL, entitlement TEXT NOT NULL, task TEXT NOT NULL, window_until BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX requests_pending ON requests (window_until) WHERE state = 'pending'",
    "CREATE INDEX requests_held ON requests (subject, entitlement) WHERE state = 'pending'",
    "CREATE INDEX requests_task ON requests (task) WHERE state = 'pending'",
    "CREATE TABLE grants (id TEXT PRIMARY KEY, request TEXT NOT NULL UNIQUE, state TEXT NOT NULL, principal TEXT NOT NULL, backend TEXT NOT NULL, entitlement TEXT NOT NULL, task TEXT NOT NULL, expires_at BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX grants_due ON grants (expires_at) WHERE state = 'active'",
    "CREATE INDEX grants_held ON grants (principal, entitlement) WHERE state = 'active'",
    "CREATE INDEX grants_task ON grants (task) WHERE state = 'active'",
    "CREATE INDEX grants_backend ON grants (backend) WHERE state = 'active'",
    "CREATE TABLE locks (id TEXT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE tasks (reference TEXT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE uses (grant_id TEXT NOT NULL, use_id TEXT NOT NULL, keep_until BIGINT NOT NULL, PRIMARY KEY (grant_id, use_id))",
    "CREATE INDEX uses_over ON uses (keep_until)",
    "CREATE TABLE idempotent (caller TEXT NOT NULL, idem_key TEXT NOT NULL, digest TEXT NOT NULL, request TEXT NOT NULL, keep_until BIGINT NOT NULL, PRIMARY KEY (caller, idem_key))",
    "CREATE INDEX idempotent_over ON idempotent (keep_until)",
    "CREATE TABLE changes (revision BIGINT PRIMARY KEY, at BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE audit (sequence BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until BIGINT NOT NULL)",
    "CREATE TABLE floors (name TEXT PRIMARY KEY, revision BIGINT NOT NULL)",
    "INSERT INTO head (name, revision, sequence, audit_hash, generation) VALUES ('head', 0, 0, '0000000000000000000000000000000000000000000000000000000000000000', 0)",
    "INSERT INTO floors (name, revision) VALUES ('changes', 0)",
];

/// Control planes tell each other of their sidecars; grants are used; sidecars join.
const SECOND: &[&str] = &[
    "CREATE TABLE replicas (id TEXT PRIMARY KEY, beat BIGINT NOT NULL, keep_until BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE activity (grant_id TEXT PRIMARY KEY, last_used BIGINT NOT NULL, calls BIGINT NOT NULL)",
    "CREATE TABLE join_tokens (digest TEXT PRIMARY KEY, keep_until BIGINT NOT NULL, body TEXT NOT NULL)",
];

/// Grants that go unused end. 0 where that is not limited.
const THIRD: &[&str] = &[
    "ALTER TABLE grants ADD COLUMN idle_due BIGINT NOT NULL DEFAULT 0",
    "CREATE INDEX grants_idle ON grants (idle_due) WHERE state = 'active' AND idle_due > 0",
];

/// Each partial index says of its own first column what every row in it fulfils. A question says the same of the column
/// that it looks by, so that an engine can use no other index for it: PostgreSQL believes of any part of a table that it
/// has not counted that it is nearly empty, and reads all of it where one key was wanted.
const FOURTH: &[&str] = &[
    "DROP INDEX requests_pending",
    "DROP INDEX requests_held",
    "DROP INDEX requests_task",
    "DROP INDEX grants_due",
    "DROP INDEX grants_held",
    "DROP INDEX grants_task",
    "DROP INDEX grants_backend",
    "CREATE INDEX requests_pending ON requests (window_until) WHERE state = 'pending' AND window_until > 0",
    "CREATE INDEX requests_held ON requests (subject, entitlement) WHERE state = 'pending' AND subject <> ''",
    "CREATE INDEX requests_task ON requests (task) WHERE state = 'pending' AND task <> ''",
    "CREATE INDEX grants_due ON grants (expires_at) WHERE state = 'active' AND expires_at > 0",
    "CREATE INDEX grants_held ON grants (principal, entitlement) WHERE state = 'active' AND principal <> ''",
    "CREATE INDEX grants_task ON grants (task) WHERE state = 'active' AND task <> ''",
    "CREATE INDEX grants_backend ON grants (backend) WHERE state = 'active' AND backend <> ''",
];

/// Every table with what its rows are ordered by, as a copy goes through them. Leases, and what control planes and join tokens say
/// for a while, belong to who runs and not to the rows.
pub(super) const TABLES: &[(&str, &[&str], &[&str])] = &[
    ("documents", &["kind", "name", "body"], &["kind", "name"]),
    ("requests", &["id", "state", "requester", "subject", "entitlement", "task", "window_until", "body"], &["id"]),
    (
        "grants",
        &["id", "request", "state", "principal", "backend", "entitlement", "task", "expires_at", "idle_due", "body"],
        &["id"],
    ),
    ("locks", &["id", "body"], &["id"]),
    ("tasks", &["reference", "body"], &["reference"]),
    ("uses", &["grant_id", "use_id", "keep_until"], &["grant_id", "use_id"]),
    ("idempotent", &["caller", "idem_key", "digest", "request", "keep_until"], &["caller", "idem_key"]),
    ("changes", &["revision", "at", "body"], &["revision"]),
    ("audit", &["sequence", "body"], &["sequence"]),
    ("activity", &["grant_id", "last_used", "calls"], &["grant_id"]),
];

/// The last version known here.
pub(super) const KNOWN: u64 = VERSIONS.len() as u64;

/// The version of the tables.
///
/// # Errors
/// [`StoreError::Newer`], or that there are none.
pub(super) async fn version(connection: &mut AnyConnection) -> Read<u64> {
    let query = "SELECT COALESCE(MAX(version), 0) AS version FROM schema_versions";
    let row = within(sqlx::query(query).fetch_one(&mut *connection)).await?;
    let found: i64 = row.try_get("version").map_err(|error| failed(&error))?;
    let found = u64::try_from(found).unwrap_or(0);
    if found > KNOWN {
        return Err(StoreError::Newer { found, known: KNOWN });
    }
    Ok(found)
}

/// Brings the tables to this version, inside a transaction of the caller's.
pub(super) async fn bring_up(connection: &mut AnyConnection) -> Read<()> {
    let create = "CREATE TABLE IF NOT EXISTS schema_versions (version BIGINT PRIMARY KEY)";
    within(sqlx::query(create).execute(&mut *connection)).await?;
    let found = version(connection).await?;
    if (1..KNOWN).contains(&found) {
        tracing::info!(
            from = found,
            to = KNOWN,
            "the tables are brought up to date; with very many rows this takes minutes"
        );
    }
    for (before, statements) in (0u64..).zip(VERSIONS) {
        if before < found {
            continue;
        }
        for statement in *statements {
            within_change(sqlx::query(*statement).execute(&mut *connection)).await?;
        }
        let insert = sqlx::query("INSERT INTO schema_versions (version) VALUES ($1)");
        within(insert.bind(i64::try_from(before + 1).unwrap_or(i64::MAX)).execute(&mut *connection)).await?;
    }
    Ok(())
}
