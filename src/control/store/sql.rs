//! One SQL text on two engines: SQLite, the default, and PostgreSQL, for several control planes.
//!
//! Rows are JSON with a few columns beside it to find them by; only `TEXT` and `BIGINT`, which both engines and sqlx's
//! `Any` driver have. A transaction locks the counter row first: see [`super`].

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, Row};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    AuditEntry, Change, GrantRow, Head, Idempotent, Page, Read, RequestRow, Rows, Selector, Store, StoreError,
    Transaction, Write,
};
use crate::control::document::Document;
use crate::domain::id::{EntitlementName, GrantId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// The tables, one statement each. A later version adds statements; none is ever changed.
const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS head (name TEXT PRIMARY KEY, revision BIGINT NOT NULL, sequence BIGINT NOT NULL, audit_hash TEXT NOT NULL, generation BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS documents (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, name))",
    "CREATE TABLE IF NOT EXISTS requests (id TEXT PRIMARY KEY, state TEXT NOT NULL, requester TEXT NOT NULL, subject TEXT NOT NULL, entitlement TEXT NOT NULL, task TEXT NOT NULL, window_until BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS requests_pending ON requests (window_until) WHERE state = 'pending'",
    "CREATE INDEX IF NOT EXISTS requests_held ON requests (subject, entitlement) WHERE state = 'pending'",
    "CREATE INDEX IF NOT EXISTS requests_task ON requests (task) WHERE state = 'pending'",
    "CREATE TABLE IF NOT EXISTS grants (id TEXT PRIMARY KEY, request TEXT NOT NULL UNIQUE, state TEXT NOT NULL, principal TEXT NOT NULL, backend TEXT NOT NULL, entitlement TEXT NOT NULL, task TEXT NOT NULL, expires_at BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS grants_due ON grants (expires_at) WHERE state = 'active'",
    "CREATE INDEX IF NOT EXISTS grants_held ON grants (principal, entitlement) WHERE state = 'active'",
    "CREATE INDEX IF NOT EXISTS grants_task ON grants (task) WHERE state = 'active'",
    "CREATE INDEX IF NOT EXISTS grants_backend ON grants (backend) WHERE state = 'active'",
    "CREATE TABLE IF NOT EXISTS locks (id TEXT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS tasks (reference TEXT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS uses (grant_id TEXT NOT NULL, use_id TEXT NOT NULL, PRIMARY KEY (grant_id, use_id))",
    "CREATE TABLE IF NOT EXISTS idempotent (caller TEXT NOT NULL, idem_key TEXT NOT NULL, digest TEXT NOT NULL, request TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (caller, idem_key))",
    "CREATE TABLE IF NOT EXISTS changes (revision BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit (sequence BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until BIGINT NOT NULL)",
    "INSERT INTO head (name, revision, sequence, audit_hash, generation) VALUES ('head', 0, 0, '0000000000000000000000000000000000000000000000000000000000000000', 0) ON CONFLICT (name) DO NOTHING",
];

/// A store in SQLite or PostgreSQL.
#[derive(Debug)]
pub struct SqlStore {
    readers: AnyPool,
    writer: AnyPool,
    /// SQLite has one writer; waiting here is fairer than its busy handler.
    turn: Mutex<()>,
    begin: &'static str,
    /// The first statement of a transaction: it locks the counter row against every other replica.
    lock: &'static str,
}

/// A transaction of a [`SqlStore`].
#[derive(Debug)]
pub struct SqlTransaction<'s> {
    rows: SqlRows,
    _turn: MutexGuard<'s, ()>,
}

/// Rows as a connection, or a transaction on one, sees them.
#[derive(Debug)]
pub struct SqlRows {
    transaction: sqlx::Transaction<'static, Any>,
}

fn failed(error: &sqlx::Error) -> StoreError {
    StoreError(error.to_string())
}

impl SqlStore {
    /// Opens, and creates what is missing. `url` is `sqlite:PATH` or `postgres://…`.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be reached or is not ours.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let sqlite = url.starts_with("sqlite:");
        let options = AnyConnectOptions::from_str(url).map_err(|error| failed(&error))?;
        let pool = |size: u32| {
            AnyPoolOptions::new().max_connections(size).acquire_timeout(Duration::from_secs(10)).after_connect(
                move |connection, _| {
                    Box::pin(async move {
                        if sqlite {
                            // FULL: what was acknowledged survives a power cut.
                            for pragma in [
                                "PRAGMA journal_mode = WAL",
                                "PRAGMA synchronous = FULL",
                                "PRAGMA busy_timeout = 10000",
                                "PRAGMA wal_autocheckpoint = 4000",
                            ] {
                                sqlx::query(pragma).execute(&mut *connection).await?;
                            }
                        }
                        Ok(())
                    })
                },
            )
        };
        let writer = pool(if sqlite { 1 } else { 2 }).connect_with(options.clone()).await.map_err(|e| failed(&e))?;
        let readers = pool(4).connect_with(options).await.map_err(|error| failed(&error))?;
        let store = Self {
            readers,
            writer,
            turn: Mutex::new(()),
            begin: if sqlite { "BEGIN IMMEDIATE" } else { "BEGIN" },
            lock: if sqlite {
                "SELECT revision, sequence, audit_hash, generation FROM head WHERE name = 'head'"
            } else {
                "SELECT revision, sequence, audit_hash, generation FROM head WHERE name = 'head' FOR UPDATE"
            },
        };
        store.create().await?;
        Ok(store)
    }

    async fn create(&self) -> Result<(), StoreError> {
        let mut transaction = self.writer.begin_with(self.begin).await.map_err(|error| failed(&error))?;
        if self.begin == "BEGIN" {
            // Two replicas that start at once would both create.
            sqlx::query("SELECT pg_advisory_xact_lock(7308895159)")
                .execute(&mut *transaction)
                .await
                .map_err(|error| failed(&error))?;
        }
        for statement in SCHEMA {
            sqlx::query(*statement).execute(&mut *transaction).await.map_err(|error| failed(&error))?;
        }
        transaction.commit().await.map_err(|error| failed(&error))
    }

    /// Closes every connection; what was committed stays.
    pub async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

impl Store for SqlStore {
    type Transaction<'s> = SqlTransaction<'s>;
    type View<'s> = SqlRows;

    async fn begin(&self) -> Read<SqlTransaction<'_>> {
        let turn = self.turn.lock().await;
        let mut transaction = self.writer.begin_with(self.begin).await.map_err(|error| failed(&error))?;
        sqlx::query(self.lock).fetch_one(&mut *transaction).await.map_err(|error| failed(&error))?;
        Ok(SqlTransaction { rows: SqlRows { transaction }, _turn: turn })
    }

    async fn view(&self) -> Read<SqlRows> {
        let transaction = self.readers.begin().await.map_err(|error| failed(&error))?;
        Ok(SqlRows { transaction })
    }

    async fn lease(&self, name: &str, holder: &str, now: Timestamp, ttl: Duration) -> Read<bool> {
        let _turn = self.turn.lock().await;
        let taken = sqlx::query(
            "INSERT INTO leases (name, holder, until) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET holder = \
             excluded.holder, until = excluded.until WHERE leases.holder = excluded.holder OR leases.until <= $4",
        )
        .bind(name)
        .bind(holder)
        .bind(now.plus(ttl).as_micros())
        .bind(now.as_micros())
        .execute(&self.writer)
        .await
        .map_err(|error| failed(&error))?;
        Ok(taken.rows_affected() == 1)
    }
}

fn write<T: Serialize>(row: &T) -> Read<String> {
    serde_json::to_string(row).map_err(|error| StoreError(error.to_string()))
}

fn read<T: DeserializeOwned>(row: &AnyRow) -> Read<T> {
    let body: String = row.try_get("body").map_err(|error| failed(&error))?;
    serde_json::from_str(&body).map_err(|error| StoreError(format!("a row is not ours: {error}")))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl Transaction for SqlTransaction<'_> {
    async fn apply(&mut self, writes: Vec<Write>) -> Read<()> {
        for write in writes {
            self.rows.put(write).await?;
        }
        Ok(())
    }

    async fn commit(self) -> Read<()> {
        self.rows.transaction.commit().await.map_err(|error| failed(&error))
    }
}

/// Runs a statement with these values, in their order.
macro_rules! execute {
    ($rows:expr, $sql:expr, $($value:expr),* $(,)?) => {
        sqlx::query($sql)$(.bind($value))*.execute(&mut *$rows.transaction).await.map_err(|error| failed(&error))?
    };
}

/// Every row that a statement with these values finds.
macro_rules! all {
    ($rows:expr, $sql:expr, $($value:expr),* $(,)?) => {
        sqlx::query($sql)$(.bind($value))*.fetch_all(&mut *$rows.transaction).await.map_err(|error| failed(&error))?
    };
}

impl SqlRows {
    async fn put(&mut self, row: Write) -> Read<()> {
        match row {
            Write::Document(document) => {
                execute!(
                    self,
                    "INSERT INTO documents (kind, name, body) VALUES ($1, $2, $3) ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body",
                    document.kind.as_str(),
                    document.metadata.name.clone(),
                    write(&document)?
                )
            }
            Write::NoDocument(kind, name) => {
                execute!(self, "DELETE FROM documents WHERE kind = $1 AND name = $2", kind.as_str(), name)
            }
            Write::Request(row) => {
                let (request, state) = (&row.request, row.elevation.state());
                execute!(
                    self,
                    "INSERT INTO requests (id, state, requester, subject, entitlement, task, window_until, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body",
                    request.id.as_str().to_owned(),
                    state,
                    request.requester.as_str().to_owned(),
                    request.subject.as_str().to_owned(),
                    request.entitlement.as_str().to_owned(),
                    task(request.task.as_ref()),
                    request.window_until.as_micros(),
                    write(&row)?
                )
            }
            Write::Grant(row) => {
                let grant = &row.grant;
                // Each request becomes one grant at most; one that took a wider one's place came from no request.
                let asked = row.narrowed_from.as_ref().map_or(row.request.as_str(), |_| grant.id.as_str()).to_owned();
                execute!(
                    self,
                    "INSERT INTO grants (id, request, state, principal, backend, entitlement, task, expires_at, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO UPDATE SET state = excluded.state, expires_at = excluded.expires_at, body = excluded.body",
                    grant.id.as_str().to_owned(),
                    asked,
                    row.state.as_str(),
                    grant.principal.as_str().to_owned(),
                    grant.backend.as_str().to_owned(),
                    row.entitlement.as_str().to_owned(),
                    task(grant.task.as_ref()),
                    grant.window.expires_at.as_micros(),
                    write(&row)?
                )
            }
            rest => return self.put_rest(rest).await,
        };
        Ok(())
    }

    async fn put_rest(&mut self, row: Write) -> Read<()> {
        match row {
            Write::Document(_) | Write::NoDocument(..) | Write::Request(_) | Write::Grant(_) => {
                return Err(StoreError("a row was put into the wrong table".into()));
            }
            Write::Lock(lock) => {
                execute!(
                    self,
                    "INSERT INTO locks (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                    lock.id.as_str().to_owned(),
                    write(&lock)?
                )
            }
            Write::NoLock(id) => execute!(self, "DELETE FROM locks WHERE id = $1", id.as_str().to_owned()),
            Write::Task(task) => {
                execute!(
                    self,
                    "INSERT INTO tasks (reference, body) VALUES ($1, $2) ON CONFLICT (reference) DO UPDATE SET body = excluded.body",
                    task.reference.as_str().to_owned(),
                    write(&task)?
                )
            }
            Write::Use { grant, use_id } => {
                execute!(self, "INSERT INTO uses (grant_id, use_id) VALUES ($1, $2)", grant.as_str().to_owned(), use_id)
            }
            Write::Idempotent { caller, key, digest, request, at } => {
                execute!(
                    self,
                    "INSERT INTO idempotent (caller, idem_key, digest, request, created_at) VALUES ($1, $2, $3, $4, $5)",
                    caller.as_str().to_owned(),
                    key,
                    digest,
                    request.as_str().to_owned(),
                    at.as_micros()
                )
            }
            Write::Change(revision, change) => {
                execute!(
                    self,
                    "INSERT INTO changes (revision, body) VALUES ($1, $2)",
                    signed(revision.0),
                    write(&change)?
                )
            }
            Write::Audit(entry) => {
                execute!(
                    self,
                    "INSERT INTO audit (sequence, body) VALUES ($1, $2)",
                    signed(entry.sequence),
                    write(&entry)?
                )
            }
            Write::Head(head) => {
                execute!(
                    self,
                    "UPDATE head SET revision = $1, sequence = $2, audit_hash = $3, generation = $4 WHERE name = 'head'",
                    signed(head.revision.0),
                    signed(head.sequence),
                    head.audit_hash,
                    signed(head.generation)
                )
            }
        };
        Ok(())
    }
}

fn task(reference: Option<&TaskRef>) -> String {
    reference.map(|task| task.as_str().to_owned()).unwrap_or_default()
}

/// A criterion of a list: its text, or nothing where it selects all.
fn wanted(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

impl Rows for SqlRows {
    async fn head(&mut self) -> Read<Head> {
        let rows = all!(self, "SELECT revision, sequence, audit_hash, generation FROM head WHERE name = 'head'",);
        let row = rows.first().ok_or_else(|| StoreError("the counter row is missing".into()))?;
        let number = |name: &str| row.try_get::<i64, _>(name).map(unsigned).map_err(|error| failed(&error));
        Ok(Head {
            revision: Revision(number("revision")?),
            sequence: number("sequence")?,
            audit_hash: row.try_get("audit_hash").map_err(|error| failed(&error))?,
            generation: number("generation")?,
        })
    }

    async fn documents(&mut self) -> Read<Vec<Document>> {
        all!(self, "SELECT body FROM documents ORDER BY kind, name",).iter().map(read).collect()
    }

    async fn request(&mut self, id: &RequestId) -> Read<Option<RequestRow>> {
        all!(self, "SELECT body FROM requests WHERE id = $1", id.as_str().to_owned()).first().map(read).transpose()
    }

    async fn grant(&mut self, id: &GrantId) -> Read<Option<GrantRow>> {
        all!(self, "SELECT body FROM grants WHERE id = $1", id.as_str().to_owned()).first().map(read).transpose()
    }

    async fn held(&mut self, principal: &Principal, entitlement: &EntitlementName) -> Read<u32> {
        let (principal, entitlement) = (principal.as_str().to_owned(), entitlement.as_str().to_owned());
        let rows = all!(
            self,
            "SELECT (SELECT COUNT(*) FROM grants WHERE state = 'active' AND principal = $1 AND entitlement = $2) + (SELECT COUNT(*) FROM requests WHERE state = 'pending' AND subject = $3 AND entitlement = $4) AS held",
            principal.clone(),
            entitlement.clone(),
            principal,
            entitlement
        );
        let held: i64 = rows[0].try_get("held").map_err(|error| failed(&error))?;
        Ok(u32::try_from(held).unwrap_or(u32::MAX))
    }

    async fn idempotent(&mut self, caller: &Principal, key: &str) -> Read<Option<Idempotent>> {
        let rows = all!(
            self,
            "SELECT digest, request FROM idempotent WHERE caller = $1 AND idem_key = $2",
            caller.as_str().to_owned(),
            key.to_owned()
        );
        let Some(row) = rows.first() else { return Ok(None) };
        let request: String = row.try_get("request").map_err(|error| failed(&error))?;
        Ok(Some(Idempotent {
            digest: row.try_get("digest").map_err(|error| failed(&error))?,
            request: RequestId::new(&request).map_err(|error| StoreError(error.to_string()))?,
        }))
    }

    async fn used(&mut self, grant: &GrantId, use_id: &str) -> Read<bool> {
        let rows = all!(
            self,
            "SELECT use_id FROM uses WHERE grant_id = $1 AND use_id = $2",
            grant.as_str().to_owned(),
            use_id.to_owned()
        );
        Ok(!rows.is_empty())
    }

    async fn task(&mut self, reference: &TaskRef) -> Read<Option<Task>> {
        all!(self, "SELECT body FROM tasks WHERE reference = $1", reference.as_str().to_owned())
            .first()
            .map(read)
            .transpose()
    }

    async fn locks(&mut self) -> Read<Vec<Lock>> {
        all!(self, "SELECT body FROM locks ORDER BY id",).iter().map(read).collect()
    }

    async fn selected(&mut self, selector: &Selector) -> Read<Vec<GrantRow>> {
        if selector.is_empty() {
            return Ok(Vec::new());
        }
        let (grant, principal) =
            (selector.grant.as_ref().map(GrantId::as_str), selector.principal.as_ref().map(Principal::as_str));
        let backend = selector.backend.as_ref().map(crate::domain::id::BackendName::as_str);
        let entitlement = selector.entitlement.as_ref().map(EntitlementName::as_str);
        let of_task = selector.task.as_ref().map(TaskRef::as_str);
        let rows = all!(
            self,
            "SELECT body FROM grants WHERE state = 'active' AND ($1 = '' OR id = $1) AND ($2 = '' OR principal = $2) AND ($3 = '' OR backend = $3) AND ($4 = '' OR entitlement = $4) AND ($5 = '' OR task = $5) ORDER BY id",
            wanted(grant),
            wanted(principal),
            wanted(backend),
            wanted(entitlement),
            wanted(of_task)
        );
        rows.iter().map(read).collect()
    }

    async fn pending_of(&mut self, task: &TaskRef) -> Read<Vec<RequestRow>> {
        all!(
            self,
            "SELECT body FROM requests WHERE state = 'pending' AND task = $1 ORDER BY id",
            task.as_str().to_owned()
        )
        .iter()
        .map(read)
        .collect()
    }

    async fn grants_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        all!(
            self,
            "SELECT body FROM grants WHERE state = 'active' AND expires_at <= $1 ORDER BY expires_at LIMIT $2",
            now.as_micros(),
            i64::from(limit)
        )
        .iter()
        .map(read)
        .collect()
    }

    async fn requests_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<RequestRow>> {
        all!(
            self,
            "SELECT body FROM requests WHERE state = 'pending' AND window_until <= $1 ORDER BY window_until LIMIT $2",
            now.as_micros(),
            i64::from(limit)
        )
        .iter()
        .map(read)
        .collect()
    }

    async fn requests(&mut self, page: &Page) -> Read<Vec<RequestRow>> {
        let principal = wanted(page.principal.as_ref().map(Principal::as_str));
        all!(self, "SELECT body FROM requests WHERE id > $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR requester = $3 OR subject = $3) ORDER BY id LIMIT $4",
            wanted(page.after.as_deref()), wanted(page.state.as_deref()), principal, i64::from(page.limit)).iter().map(read).collect()
    }

    async fn grants(&mut self, page: &Page) -> Read<Vec<GrantRow>> {
        let principal = wanted(page.principal.as_ref().map(Principal::as_str));
        all!(self, "SELECT body FROM grants WHERE id > $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR principal = $3) ORDER BY id LIMIT $4",
            wanted(page.after.as_deref()), wanted(page.state.as_deref()), principal, i64::from(page.limit)).iter().map(read).collect()
    }

    async fn changes(&mut self, after: Revision, limit: u32) -> Read<Vec<(Revision, Change)>> {
        let rows = all!(
            self,
            "SELECT revision, body FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2",
            signed(after.0),
            i64::from(limit)
        );
        let change = |row: &AnyRow| {
            let revision: i64 = row.try_get("revision").map_err(|error| failed(&error))?;
            Ok((Revision(unsigned(revision)), read(row)?))
        };
        rows.iter().map(change).collect()
    }

    async fn audit(&mut self, from: u64, limit: u32) -> Read<Vec<AuditEntry>> {
        all!(
            self,
            "SELECT body FROM audit WHERE sequence >= $1 ORDER BY sequence LIMIT $2",
            signed(from),
            i64::from(limit)
        )
        .iter()
        .map(read)
        .collect()
    }
}

/// A transaction sees its own rows.
macro_rules! through {
    ($($name:ident($($value:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Rows for SqlTransaction<'_> {
            $(async fn $name(&mut self, $($value: $type),*) -> Read<$result> {
                self.rows.$name($($value),*).await
            })*
        }
    };
}

through! {
    head() -> Head;
    documents() -> Vec<Document>;
    request(id: &RequestId) -> Option<RequestRow>;
    grant(id: &GrantId) -> Option<GrantRow>;
    held(principal: &Principal, entitlement: &EntitlementName) -> u32;
    idempotent(caller: &Principal, key: &str) -> Option<Idempotent>;
    used(grant: &GrantId, use_id: &str) -> bool;
    task(reference: &TaskRef) -> Option<Task>;
    locks() -> Vec<Lock>;
    selected(selector: &Selector) -> Vec<GrantRow>;
    pending_of(task: &TaskRef) -> Vec<RequestRow>;
    grants_due(now: Timestamp, limit: u32) -> Vec<GrantRow>;
    requests_due(now: Timestamp, limit: u32) -> Vec<RequestRow>;
    requests(page: &Page) -> Vec<RequestRow>;
    grants(page: &Page) -> Vec<GrantRow>;
    changes(after: Revision, limit: u32) -> Vec<(Revision, Change)>;
    audit(from: u64, limit: u32) -> Vec<AuditEntry>;
}
