//! From one store to another, and to a file.

use sqlx::{AnyConnection, Row};

use super::connect::{Kind, failed, within};
use super::insert::{Insert, Value, bound};
use super::rows::{number, signed};
use super::{SqlStore, schema};
use crate::control::store::{AuditEntry, Head, Read, Rows, Store, StoreError};

/// How many rows are read at once.
const PAGE: i64 = 500;

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Each table with how many rows it has now.
    pub tables: Vec<(&'static str, u64)>,
    /// How many audit entries were verified.
    pub entries: u64,
}

/// Copies a whole store into an empty one, and verifies what arrived: the counts of rows and the chain of the audit.
/// What runs on the old store meanwhile is not copied: stop it first.
///
/// # Errors
/// [`StoreError`]; the new store is as empty as it was.
pub async fn copy(from: &str, to: &str) -> Result<Copied, StoreError> {
    let source = SqlStore::connect(from, false)?;
    let mut source_view = source.view().await?;
    let found = schema::version(&mut source_view.0).await.map_err(|error| match error {
        StoreError::Refused(said) => StoreError::Refused(format!("`--from` is no store of leasehold: {said}")),
        other => other,
    })?;
    if found != schema::KNOWN {
        return Err(StoreError::Refused(format!(
            "the tables of `--from` are of version {found}: start this leasehold on it once, which brings them to {}",
            schema::KNOWN
        )));
    }
    let target = SqlStore::open(to).await?;
    let mut into = target.begin().await?;
    if into.head().await? != Head::default() {
        return Err(StoreError::Refused("the store to copy to is not empty; give a new one".into()));
    }
    let head = source_view.head().await?;
    let mut tables = Vec::new();
    for (table, columns, keys) in schema::TABLES {
        let connection = into.connection()?;
        copy_table(&mut source_view.0, connection, table, columns, keys).await?;
        let (there, here) = (count(&mut source_view.0, table).await?, count(connection, table).await?);
        if there != here {
            return Err(StoreError::Refused(format!("{here} of {there} rows of `{table}` arrived")));
        }
        tables.push((*table, here));
    }
    let floor =
        within(sqlx::query("SELECT revision FROM floors WHERE name = 'changes'").fetch_one(&mut *source_view.0));
    let floor = number(&floor.await?, "revision")?;
    let floors = sqlx::query("UPDATE floors SET revision = $1 WHERE name = 'changes'").bind(signed(floor));
    within(floors.execute(into.connection()?)).await?;
    into.set_head(head.clone()).await?;
    let entries = verify(&mut into, &head).await?;
    into.finish().await?;
    drop(source_view);
    source.close().await;
    target.close().await;
    Ok(Copied { tables, entries })
}

async fn count(connection: &mut AnyConnection, table: &str) -> Read<u64> {
    let query = bound(format!("SELECT COUNT(*) AS rows FROM {table}"), []);
    number(&within(query.fetch_one(&mut *connection)).await?, "rows")
}

async fn copy_table(
    from: &mut AnyConnection,
    to: &mut AnyConnection,
    table: &'static str,
    columns: &'static [&'static str],
    keys: &[&str],
) -> Read<()> {
    let numbers =
        ["revision", "sequence", "at", "window_until", "expires_at", "idle_due", "keep_until", "last_used", "calls"];
    let insert = Insert { table, columns, conflict: "" };
    let (list, order) = (columns.join(", "), keys.join(", "));
    let mut after: Option<Vec<Value>> = None;
    loop {
        let marks: Vec<String> = (1..=keys.len()).map(|place| format!("${place}")).collect();
        let past = after.as_ref().map_or(String::new(), |_| format!("WHERE ({order}) > ({})", marks.join(", ")));
        let sql = format!("SELECT {list} FROM {table} {past} ORDER BY {order} LIMIT {PAGE}");
        let rows = within(bound(sql, after.take().into_iter().flatten()).fetch_all(&mut *from)).await?;
        let value = |row: &sqlx::any::AnyRow, column: &str| {
            if numbers.contains(&column) {
                row.try_get(column).map(Value::Number).map_err(|error| failed(&error))
            } else {
                row.try_get(column).map(Value::Text).map_err(|error| failed(&error))
            }
        };
        let of = |row, columns: &[&str]| columns.iter().map(|column| value(row, column)).collect::<Read<Vec<Value>>>();
        let Some(last) = rows.last() else { return Ok(()) };
        after = Some(of(last, keys)?);
        let rows = rows.iter().map(|row| of(row, columns)).collect::<Read<Vec<_>>>()?;
        insert.write(to, rows).await?;
    }
}

/// Reads the whole chain, and that it ends where the head says.
async fn verify<R: Rows>(rows: &mut R, head: &Head) -> Read<u64> {
    let (mut sequence, mut hash) = (0, Head::default().audit_hash);
    loop {
        let page = rows.audit(sequence + 1, 500).await?;
        if page.is_empty() {
            break;
        }
        for entry in page {
            follows(&entry, sequence, &hash)?;
            (sequence, hash) = (entry.sequence, entry.hash);
        }
    }
    if (sequence, &hash) == (head.sequence, &head.audit_hash) {
        return Ok(sequence);
    }
    Err(StoreError::Refused(format!("the audit ends at {sequence} and not where the counter row says")))
}

fn follows(entry: &AuditEntry, sequence: u64, hash: &str) -> Read<()> {
    if entry.sequence == sequence + 1 && entry.previous == hash && entry.hash == entry.expected_hash() {
        return Ok(());
    }
    Err(StoreError::Refused(format!("audit entry {} does not follow on the one before it", sequence + 1)))
}

/// Writes a copy of a SQLite store to a new file while it runs.
///
/// # Errors
/// [`StoreError`] when the file is there already, or the store is not SQLite.
pub async fn backup(from: &str, file: &str) -> Result<(), StoreError> {
    if Kind::of(from)? == Kind::Postgres {
        return Err(StoreError::Refused(
            "a store in PostgreSQL is backed up with its own means, such as `pg_dump --format=custom`".into(),
        ));
    }
    let store = SqlStore::connect(from, false)?;
    let mut connection = within(store.readers.acquire()).await?;
    schema::version(&mut connection).await?;
    sqlx::query("VACUUM INTO $1")
        .bind(file.to_owned())
        .execute(&mut *connection)
        .await
        .map_err(|error| failed(&error))?;
    drop(connection);
    store.close().await;
    Ok(())
}
