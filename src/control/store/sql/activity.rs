//! When grants were used last, and how often. No state: it has no revision and no audit entry.

use std::collections::{BTreeMap, HashMap};

use sqlx::any::AnyRow;

use super::SqlStore;
use super::connect::within;
use super::insert::{Insert, Value, bound, tuples};
use super::rows::{number, signed, text};
use crate::control::store::{Read, StoreError};
use crate::domain::id::{BackendName, GrantId, NameError};
use crate::domain::time::Timestamp;

/// How a grant was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// When for the last time.
    pub last_used: Timestamp,
    /// How often.
    pub calls: u64,
}

impl Activity {
    /// The same after more calls.
    pub fn add(&mut self, last: Timestamp, calls: u64) {
        self.last_used = self.last_used.max(last);
        self.calls = self.calls.saturating_add(calls);
    }
}

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
    async fn about(&self, select: &str, ids: &[GrantId]) -> Read<Vec<AnyRow>> {
        let mut rows = Vec::new();
        for some in ids.chunks(IDS_MAX) {
            let values = some.iter().map(|id| Value::from(id.as_str()));
            let query = bound(format!("{select} IN ({})", tuples(some.len(), 1)), values);
            rows.extend(within(query.fetch_all(&self.readers)).await?);
        }
        Ok(rows)
    }

    /// On which backends grants are; those that are not there are left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn backends_of(&self, ids: &[GrantId]) -> Read<HashMap<GrantId, BackendName>> {
        let rows = self.about("SELECT id, backend FROM grants WHERE id", ids).await?;
        let read = |row: &AnyRow| {
            let backend = BackendName::new(&text(row, "backend")?).map_err(not_ours)?;
            Ok((id(row, "id")?, backend))
        };
        rows.iter().map(read).collect()
    }

    /// How grants were used; those that were not are left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn activity(&self, ids: &[GrantId]) -> Read<HashMap<GrantId, Activity>> {
        let rows = self.about("SELECT grant_id, last_used, calls FROM activity WHERE grant_id", ids).await?;
        let read = |row: &AnyRow| {
            let last = i64::try_from(number(row, "last_used")?).unwrap_or(i64::MAX);
            let activity = Activity { last_used: Timestamp::from_micros(last), calls: number(row, "calls")? };
            Ok((id(row, "grant_id")?, activity))
        };
        rows.iter().map(read).collect()
    }

    /// Adds to how grants were used.
    ///
    /// # Errors
    /// [`StoreError`]; some of it may be written.
    pub async fn used(&self, used: BTreeMap<GrantId, Activity>) -> Read<()> {
        let _turn = self.turn.lock().await;
        let mut connection = within(self.writer.acquire()).await?;
        let rows = used.into_iter().map(|(id, activity)| {
            vec![id.as_str().into(), activity.last_used.as_micros().into(), signed(activity.calls).into()]
        });
        USED.write(&mut connection, rows.collect()).await
    }
}
