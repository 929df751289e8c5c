//! Reads into an overlay, with one question for each table, what the commands of a batch will read.

use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use super::connect::within;
use super::insert::{Value, bound, tuples};
use super::overlay::Overlay;
use super::rows::{body, idempotent_of, number, text};
use crate::control::store::{GrantRow, Read, RequestRow, StoreError, Wanted};
use crate::domain::id::{EntitlementName, GrantId, NameError};
use crate::domain::principal::Principal;
use crate::domain::task::Task;

/// Most keys in one question.
const KEYS_MAX: usize = 128;

/// What no key is, to fill a question up to one of the few lengths that the engine knows already.
const NOTHING: &str = "";

/// Asks for these keys, `width` values each, in questions of few different lengths. `sql` gets the list of keys.
async fn ask(
    connection: &mut AnyConnection,
    keys: &[Vec<&str>],
    sql: impl Fn(&str) -> String,
    mut each: impl FnMut(&AnyRow) -> Read<()>,
) -> Read<()> {
    for some in keys.chunks(KEYS_MAX) {
        let width = some[0].len();
        let length = some.len().next_power_of_two();
        let fill = (length - some.len()) * width;
        let values = some.iter().flatten().copied().chain(std::iter::repeat_n(NOTHING, fill));
        let query = bound(sql(&tuples(length, width)), values.map(Value::from));
        for row in within(query.fetch_all(&mut *connection)).await? {
            each(&row)?;
        }
    }
    Ok(())
}

fn not_ours(error: NameError) -> StoreError {
    StoreError::Refused(format!("a row is not ours: {error}"))
}

/// Reads what is wanted and not known yet.
pub(super) async fn prefetch(connection: &mut AnyConnection, overlay: &mut Overlay, mut wanted: Wanted) -> Read<()> {
    wanted.requests.retain(|id| !overlay.requests.is_known(id));
    let keys: Vec<_> = wanted.requests.iter().map(|id| vec![id.as_str()]).collect();
    let sql = |keys: &str| format!("SELECT body FROM requests WHERE id IN ({keys})");
    ask(connection, &keys, sql, |row| {
        let row: RequestRow = body(row)?;
        wanted.tasks.extend(row.request.task.clone());
        wanted.grants.extend(row.request.renews.clone());
        // Who approves it looks at what its subject holds; asked one by one, each would wait for what is written before.
        wanted.holders.insert(row.request.subject.clone());
        overlay.requests.read(row.request.id.clone(), Some(row));
        Ok(())
    })
    .await?;
    wanted.requests.iter().for_each(|id| overlay.requests.read(id.clone(), None));

    wanted.grants.retain(|id| !overlay.grants.is_known(id));
    let keys: Vec<_> = wanted.grants.iter().map(|id| vec![id.as_str()]).collect();
    let sql = |keys: &str| format!("SELECT body FROM grants WHERE id IN ({keys})");
    ask(connection, &keys, sql, |row| {
        let row: GrantRow = body(row)?;
        overlay.grants.read(row.grant.id.clone(), Some(row));
        Ok(())
    })
    .await?;
    wanted.grants.iter().for_each(|id| overlay.grants.read(id.clone(), None));

    wanted.tasks.retain(|task| !overlay.tasks.is_known(task));
    let keys: Vec<_> = wanted.tasks.iter().map(|task| vec![task.as_str()]).collect();
    let sql = |keys: &str| format!("SELECT body FROM tasks WHERE reference IN ({keys})");
    ask(connection, &keys, sql, |row| {
        let task: Task = body(row)?;
        overlay.tasks.read(task.reference.clone(), Some(task));
        Ok(())
    })
    .await?;
    wanted.tasks.iter().for_each(|task| overlay.tasks.read(task.clone(), None));
    pairs(connection, overlay, wanted).await
}

/// The rows whose keys have two parts.
async fn pairs(connection: &mut AnyConnection, overlay: &mut Overlay, mut wanted: Wanted) -> Read<()> {
    wanted.keys.retain(|key| !overlay.keys.contains_key(key));
    let keys: Vec<_> = wanted.keys.iter().map(|(caller, key)| vec![caller.as_str(), key.as_str()]).collect();
    let sql = |keys: &str| {
        format!(
            "SELECT i.caller, i.idem_key, i.digest, i.request FROM (VALUES {keys}) AS wanted JOIN idempotent AS i ON i.caller = wanted.column1 AND i.idem_key = wanted.column2"
        )
    };
    ask(connection, &keys, sql, |row| {
        let caller = Principal::parse(&text(row, "caller")?).map_err(not_ours)?;
        overlay.keys.insert((caller, text(row, "idem_key")?), Some(idempotent_of(row)?));
        Ok(())
    })
    .await?;
    for key in wanted.keys {
        overlay.keys.entry(key).or_insert(None);
    }

    wanted.uses.retain(|key| !overlay.uses.contains_key(key));
    let keys: Vec<_> = wanted.uses.iter().map(|(grant, id)| vec![grant.as_str(), id.as_str()]).collect();
    let sql = |keys: &str| {
        format!(
            "SELECT u.grant_id, u.use_id FROM (VALUES {keys}) AS wanted JOIN uses AS u ON u.grant_id = wanted.column1 AND u.use_id = wanted.column2"
        )
    };
    ask(connection, &keys, sql, |row| {
        let grant = GrantId::new(&text(row, "grant_id")?).map_err(not_ours)?;
        overlay.uses.insert((grant, text(row, "use_id")?), true);
        Ok(())
    })
    .await?;
    for key in wanted.uses {
        overlay.uses.entry(key).or_insert(false);
    }

    wanted.holders.retain(|principal| !overlay.holders.contains_key(principal));
    let keys: Vec<_> = wanted.holders.iter().map(|principal| vec![principal.as_str()]).collect();
    // One look at an index a key, whatever the engine believes of the tables: a join or `IN` may become a scan of all.
    let sql = |keys: &str| {
        format!(
            "SELECT wanted.column1 AS principal, (SELECT COUNT(*) FROM grants AS g WHERE g.state = 'active' AND g.principal <> '' AND g.principal = wanted.column1) AS held FROM (VALUES {keys}) AS wanted WHERE wanted.column1 <> ''"
        )
    };
    ask(connection, &keys, sql, |row| {
        let principal = Principal::parse(&text(row, "principal")?).map_err(not_ours)?;
        overlay.holders.insert(principal, u32::try_from(number(row, "held")?).unwrap_or(u32::MAX));
        Ok(())
    })
    .await?;
    for principal in wanted.holders {
        overlay.holders.entry(principal).or_insert(0);
    }

    // Counted once here and then kept right by every write: it is only right where nothing waits to be written.
    wanted.held.retain(|key| !overlay.held.contains_key(key));
    let keys: Vec<_> = wanted.held.iter().map(|(who, what)| vec![who.as_str(), what.as_str()]).collect();
    let sql = |keys: &str| {
        format!(
            "SELECT wanted.column1 AS principal, wanted.column2 AS entitlement, (SELECT COUNT(*) FROM grants AS g WHERE g.state = 'active' AND g.principal <> '' AND g.principal = wanted.column1 AND g.entitlement = wanted.column2) + (SELECT COUNT(*) FROM requests AS r WHERE r.state = 'pending' AND r.subject <> '' AND r.subject = wanted.column1 AND r.entitlement = wanted.column2) AS held FROM (VALUES {keys}) AS wanted WHERE wanted.column1 <> ''"
        )
    };
    ask(connection, &keys, sql, |row| {
        let principal = Principal::parse(&text(row, "principal")?).map_err(not_ours)?;
        let entitlement = EntitlementName::new(&text(row, "entitlement")?).map_err(not_ours)?;
        let held = u32::try_from(number(row, "held")?).unwrap_or(u32::MAX);
        overlay.held.insert((principal, entitlement), held);
        Ok(())
    })
    .await?;
    for key in wanted.held {
        overlay.held.entry(key).or_insert(0);
    }
    Ok(())
}
