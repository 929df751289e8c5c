//! When grants were used last, and how often. No state: it has no revision and no audit entry.

use std::collections::{BTreeMap, HashMap};

use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use super::SqlStore;
use super::connect::within;
use super::insert::{Insert, Value, bound, tuples};
use super::rows::{number, signed, text};
use crate::control::store::{Activity, Read, StoreError};
use crate::domain::id::{BackendName, GrantId, NameError};
use crate::domain::time::Timestamp;

/// Most ids in one question.
const IDS_MAX: usize = 500;

const USED: Insert = Insert {
    table: "activity",
    columns: &["grant_id", "last_used", "calls"],
    conflict: "ON CONFLICT (grant_id) DO UPDATE SET calls = activity.calls + excluded.calls, last_used = CASE WHEN excluded.last_used > activity.last_used THEN excluded.last_used ELSE activity.last_used END",
};

fn not_ours(error: NameError) -> StoreError {
    StoreError::Refused(format!("a row is not ours: {error}"))
}

fn id(row: &AnyRow, column: &str) -> Read<GrantId> {
    GrantId::new(&text(row, column)?).map_err(not_ours)
}

impl SqlStore {
    /// On which backends grants are; those that are not there are left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn backends_of(&self, ids: &[GrantId]) -> Read<HashMap<GrantId, BackendName>> {
        let mut all = HashMap::new();
        for some in ids.chunks(IDS_MAX) {
            let sql = format!("SELECT id, backend FROM grants WHERE id IN ({})", tuples(some.len(), 1));
            let query = bound(sql, some.iter().map(|id| Value::from(id.as_str())));
            for row in within(query.fetch_all(&self.readers)).await? {
                let backend = BackendName::new(&text(&row, "backend")?).map_err(not_ours)?;
                all.insert(id(&row, "id")?, backend);
            }
        }
        Ok(all)
    }
}

/// How grants were used; those that were not are left out.
pub(super) async fn of(connection: &mut AnyConnection, ids: &[GrantId]) -> Read<HashMap<GrantId, Activity>> {
    let mut all = HashMap::new();
    for some in ids.chunks(IDS_MAX) {
        let sql =
            format!("SELECT grant_id, last_used, calls FROM activity WHERE grant_id IN ({})", tuples(some.len(), 1));
        let query = bound(sql, some.iter().map(|id| Value::from(id.as_str())));
        for row in within(query.fetch_all(&mut *connection)).await? {
            let last = i64::try_from(number(&row, "last_used")?).unwrap_or(i64::MAX);
            let activity = Activity { last_used: Timestamp::from_micros(last), calls: number(&row, "calls")? };
            all.insert(id(&row, "grant_id")?, activity);
        }
    }
    Ok(all)
}

/// Adds to how grants were used.
pub(super) async fn used(connection: &mut AnyConnection, used: BTreeMap<GrantId, Activity>) -> Read<()> {
    let rows = used.into_iter().map(|(id, activity)| {
        vec![id.as_str().into(), activity.last_used.as_micros().into(), signed(activity.calls).into()]
    });
    USED.write(connection, rows.collect()).await
}
