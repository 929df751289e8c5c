//! One SQL text on two engines: SQLite, the default, and PostgreSQL, for several control planes.
//!
//! Rows are JSON with a few columns beside it to find them by. A transaction locks the counter row first (see
//! [`super`]), reads what its commands will read with one question a table (`prefetch`), keeps what they write to itself
//! (`overlay`), and writes it at its end with few statements (`flush`, `insert`).
//!
//! Deliberately absent: a statement that only one engine has, but for how a transaction begins, what a connection is
//! set to, and how control planes wake each other (`hints`).

mod activity;
mod compact;
mod connect;
mod copy;
mod flush;
mod hints;
mod insert;
mod overlay;
mod prefetch;
mod replicas;
mod rows;
mod schema;
mod transaction;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::{Any, AnyPool};
use tokio::sync::Mutex;

pub use copy::{Copied, backup, copy};
pub use replicas::ReplicaRow;
pub use transaction::SqlTransaction;

use super::{
    Activity, AuditEntry, Changes, GrantRow, Head, Idempotent, Keep, Page, Read, RequestRow, Rows, Selector, Store,
    StoreError,
};
use crate::control::document::Document;
use crate::domain::id::{EntitlementName, GrantId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;
use connect::{Kind, within, within_change};
use hints::Hints;
use rows::On;
use transaction::{Held, Remembered};

/// A store in SQLite or PostgreSQL.
#[derive(Debug)]
pub struct SqlStore {
    kind: Kind,
    readers: AnyPool,
    writer: AnyPool,
    /// One transaction at a time. SQLite has one writer, and waiting here is fairer than its busy handler; on PostgreSQL
    /// it would wait for the counter row anyway.
    turn: Mutex<Remembered>,
    hints: Option<Hints>,
}

/// Rows as one moment shows them.
#[derive(Debug)]
pub struct SqlView(sqlx::Transaction<'static, Any>);

impl SqlStore {
    /// Opens, and creates or brings up to date what is missing. `url` is `sqlite:PATH` or `postgres://…`.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be reached, is not ours, or is a newer program's.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let store = Self::connect(url, true)?;
        let mut transaction = within(store.writer.begin_with(store.begin_word())).await?;
        if store.kind == Kind::Postgres {
            for statement in connect::POSTGRES_ALONE {
                within_change(sqlx::query(*statement).execute(&mut *transaction)).await?;
            }
        }
        schema::bring_up(&mut transaction).await?;
        within_change(transaction.commit()).await?;
        Ok(Self { hints: (store.kind == Kind::Postgres).then(|| Hints::start(url)), ..store })
    }

    /// The pools, with nothing looked at yet.
    fn connect(url: &str, create: bool) -> Read<Self> {
        sqlx::any::install_default_drivers();
        let kind = Kind::of(url)?;
        let options = connect::options(url, kind, create)?;
        // The second is for the connection that is being closed.
        let writer = connect::pool(options.clone(), kind, if kind == Kind::Sqlite { 1 } else { 2 });
        Ok(Self { kind, writer, readers: connect::pool(options, kind, 4), turn: Mutex::default(), hints: None })
    }

    fn begin_word(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN",
        }
    }

    /// Closes every connection; what was committed stays.
    pub async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

impl Store for SqlStore {
    type Transaction<'s> = SqlTransaction<'s>;
    type View<'s> = SqlView;

    async fn begin(&self) -> Read<SqlTransaction<'_>> {
        let turn = self.turn.lock().await;
        let mut connection = Held::begin(within(self.writer.acquire()).await?, self.begin_word()).await?;
        let lock = match self.kind {
            Kind::Sqlite => "SELECT revision, sequence, audit_hash, generation FROM head WHERE name = 'head'",
            Kind::Postgres => {
                "SELECT revision, sequence, audit_hash, generation FROM head WHERE name = 'head' FOR UPDATE"
            }
        };
        let head = rows::head_of(&within(sqlx::query(lock).fetch_one(connection.get()?)).await?)?;
        Ok(SqlTransaction::on(connection, head, turn))
    }

    async fn view(&self) -> Read<SqlView> {
        let begin = match self.kind {
            Kind::Sqlite => "BEGIN",
            Kind::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(SqlView(within(self.readers.begin_with(begin)).await?))
    }

    async fn lease(&self, name: &str, holder: &str, now: Timestamp, ttl: Duration) -> Read<bool> {
        let _turn = self.turn.lock().await;
        let query = sqlx::query(
            "INSERT INTO leases (name, holder, until) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until WHERE leases.holder = excluded.holder OR leases.until <= $4",
        );
        let query = query.bind(name.to_owned()).bind(holder.to_owned());
        let query = query.bind(now.plus(ttl).as_micros()).bind(now.as_micros());
        Ok(within(query.execute(&self.writer)).await?.rows_affected() == 1)
    }

    async fn used(&self, used: BTreeMap<GrantId, Activity>) -> Read<()> {
        let _turn = self.turn.lock().await;
        let mut connection = within(self.writer.acquire()).await?;
        activity::used(&mut connection, used).await
    }

    async fn compact(&self, now: Timestamp, keep: Keep) -> Read<bool> {
        let _turn = self.turn.lock().await;
        let mut transaction = within(self.writer.begin_with(self.begin_word())).await?;
        let more = compact::compact(&mut transaction, now, keep).await?;
        within(transaction.commit()).await?;
        Ok(more)
    }

    fn is_shared(&self) -> bool {
        self.kind == Kind::Postgres
    }

    async fn stirred(&self) {
        match &self.hints {
            Some(hints) => hints.stirred().await,
            None => std::future::pending().await,
        }
    }

    fn stir(&self) {
        if let Some(hints) = &self.hints {
            hints.stir();
        }
    }
}

/// A view sees what its connection does.
macro_rules! through {
    ($($name:ident($($value:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Rows for SqlView {
            $(async fn $name(&mut self, $($value: $type),*) -> Read<$result> {
                On(&mut self.0).$name($($value),*).await
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
    holds(principal: &Principal, most: u32) -> u32;
    idempotent(caller: &Principal, key: &str) -> Option<Idempotent>;
    used(grant: &GrantId, use_id: &str) -> bool;
    task(reference: &TaskRef) -> Option<Task>;
    locks() -> Vec<Lock>;
    selected(selector: &Selector) -> Vec<GrantRow>;
    pending_of(task: &TaskRef) -> Vec<RequestRow>;
    grants_due(now: Timestamp, limit: u32) -> Vec<GrantRow>;
    grants_idle(now: Timestamp, limit: u32) -> Vec<GrantRow>;
    activity(ids: &[GrantId]) -> HashMap<GrantId, Activity>;
    requests_due(now: Timestamp, limit: u32) -> Vec<RequestRow>;
    requests(page: &Page) -> Vec<RequestRow>;
    grants(page: &Page) -> Vec<GrantRow>;
    changes(after: Revision, limit: u32) -> Changes;
    audit(from: u64, limit: u32) -> Vec<AuditEntry>;
}
