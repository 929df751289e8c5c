//! Writes what waits in an overlay.

use sqlx::AnyConnection;

use super::connect::within;
use super::insert::{Insert, Value};
use super::overlay::{Flush, Waiting};
use super::rows::{signed, written};
use crate::control::store::{GrantRow, Read, RequestRow, Write};
use crate::domain::id::TaskRef;

const REQUEST: &[&str] = &["id", "state", "requester", "subject", "entitlement", "task", "window_until", "body"];
const GRANT: &[&str] =
    &["id", "request", "state", "principal", "backend", "entitlement", "task", "expires_at", "idle_due", "body"];

const NEW_REQUESTS: Insert = Insert { table: "requests", columns: REQUEST, conflict: "" };
const REQUESTS: Insert = Insert {
    conflict: "ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body WHERE requests.state = 'pending'",
    ..NEW_REQUESTS
};
const NEW_GRANTS: Insert = Insert { table: "grants", columns: GRANT, conflict: "" };
const GRANTS: Insert = Insert {
    conflict: "ON CONFLICT (id) DO UPDATE SET state = excluded.state, expires_at = excluded.expires_at, idle_due = excluded.idle_due, body = excluded.body WHERE grants.state = 'active' OR grants.state = excluded.state",
    ..NEW_GRANTS
};
const TASKS: Insert = Insert {
    table: "tasks",
    columns: &["reference", "body"],
    conflict: "ON CONFLICT (reference) DO UPDATE SET body = excluded.body",
};
const USES: Insert = Insert { table: "uses", columns: &["grant_id", "use_id", "keep_until"], conflict: "" };
const KEYS: Insert =
    Insert { table: "idempotent", columns: &["caller", "idem_key", "digest", "request", "keep_until"], conflict: "" };
const CHANGES: Insert = Insert { table: "changes", columns: &["revision", "at", "body"], conflict: "" };
const AUDIT: Insert = Insert { table: "audit", columns: &["sequence", "body"], conflict: "" };

/// Executes one statement with these values, in their order.
macro_rules! execute {
    ($connection:expr, $sql:expr, $($value:expr),* $(,)?) => {
        within(sqlx::query($sql)$(.bind($value))*.execute(&mut *$connection)).await?
    };
}

/// Writes everything, the head last.
pub(super) async fn flush(connection: &mut AnyConnection, flush: Flush) -> Read<()> {
    let (new, changed) = parted(flush.requests, request)?;
    NEW_REQUESTS.write(connection, new).await?;
    REQUESTS.write(connection, changed).await?;
    // What ended first: its successor may need its place.
    let (new, changed) = parted(flush.grants, grant)?;
    GRANTS.write(connection, changed).await?;
    NEW_GRANTS.write(connection, new).await?;
    let tasks = flush.tasks.iter().map(|task| Ok(vec![task.reference.as_str().into(), written(task)?.into()]));
    TASKS.write(connection, tasks.collect::<Read<_>>()?).await?;
    let uses = flush.uses.into_iter();
    let uses = uses.map(|(grant, id, until)| vec![grant.as_str().into(), id.into(), until.as_micros().into()]);
    USES.write(connection, uses.collect()).await?;
    let keys = flush.keys.into_iter().map(|(caller, key, used, until)| {
        let request = used.request.as_str().into();
        vec![caller.as_str().into(), key.into(), used.digest.into(), request, until.as_micros().into()]
    });
    KEYS.write(connection, keys.collect()).await?;
    let changes = flush.changes.iter().map(|(revision, at, change)| {
        Ok(vec![signed(revision.0).into(), at.as_micros().into(), written(change)?.into()])
    });
    CHANGES.write(connection, changes.collect::<Read<_>>()?).await?;
    let audit = flush.audit.iter().map(|entry| Ok(vec![signed(entry.sequence).into(), written(entry)?.into()]));
    AUDIT.write(connection, audit.collect::<Read<_>>()?).await?;
    if let Some(head) = flush.head {
        execute!(
            connection,
            "UPDATE head SET revision = $1, sequence = $2, audit_hash = $3, generation = $4 WHERE name = 'head'",
            signed(head.revision.0),
            signed(head.sequence),
            head.audit_hash,
            signed(head.generation)
        );
    }
    Ok(())
}

/// The values of rows: of those that are new, and of those that are there.
type Parted = (Vec<Vec<Value>>, Vec<Vec<Value>>);

fn parted<T>(rows: Vec<Waiting<T>>, values: impl Fn(&T) -> Read<Vec<Value>>) -> Read<Parted> {
    let (mut new, mut there) = (Vec::new(), Vec::new());
    for waiting in rows {
        if waiting.is_new { &mut new } else { &mut there }.push(values(&waiting.row)?);
    }
    Ok((new, there))
}

fn request(row: &RequestRow) -> Read<Vec<Value>> {
    let request = &row.request;
    Ok(vec![
        request.id.as_str().into(),
        row.elevation.state().into(),
        request.requester.as_str().into(),
        request.subject.as_str().into(),
        request.entitlement.as_str().into(),
        task(request.task.as_ref()).into(),
        request.window_until.as_micros().into(),
        written(row)?.into(),
    ])
}

fn grant(row: &GrantRow) -> Read<Vec<Value>> {
    let grant = &row.grant;
    // Each request becomes one grant at most; one that took a wider one's place came from no request.
    let asked = row.narrowed_from.as_ref().map_or(row.request.as_str(), |_| grant.id.as_str());
    Ok(vec![
        grant.id.as_str().into(),
        asked.into(),
        row.state.as_str().into(),
        grant.principal.as_str().into(),
        grant.backend.as_str().into(),
        row.entitlement.as_str().into(),
        task(grant.task.as_ref()).into(),
        grant.window.expires_at.as_micros().into(),
        row.idle.map_or(0, |idle| idle.due().as_micros()).into(),
        written(row)?.into(),
    ])
}

fn task(reference: Option<&TaskRef>) -> &str {
    reference.map_or("", TaskRef::as_str)
}

/// The few writes that are so rare that they are done at once.
pub(super) async fn at_once(connection: &mut AnyConnection, write: &Write) -> Read<()> {
    match write {
        Write::Document(document) => {
            execute!(
                connection,
                "INSERT INTO documents (kind, name, body) VALUES ($1, $2, $3) ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body",
                document.kind.as_str(),
                document.metadata.name.clone(),
                written(document)?
            );
        }
        Write::NoDocument(kind, name) => {
            execute!(connection, "DELETE FROM documents WHERE kind = $1 AND name = $2", kind.as_str(), name.clone());
        }
        Write::Lock(lock) => {
            execute!(
                connection,
                "INSERT INTO locks (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                lock.id.as_str().to_owned(),
                written(lock)?
            );
        }
        Write::NoLock(id) => {
            execute!(connection, "DELETE FROM locks WHERE id = $1", id.as_str().to_owned());
        }
        // Everything else waits in the overlay.
        _ => {}
    }
    Ok(())
}
