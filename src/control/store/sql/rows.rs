//! Rows as one connection sees them.

use std::collections::HashMap;
use std::fmt::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::activity;
use super::connect::{failed, within};
use super::insert::{Value, bound};
use crate::control::document::Document;
use crate::control::store::{
    Activity, AuditEntry, Change, Changes, GrantRow, Head, Idempotent, Page, Read, RequestRow, Rows, Selector,
    StoreError,
};
use crate::domain::id::{BackendName, EntitlementName, GrantId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// Rows as a connection sees them.
pub(super) struct On<'c>(pub(super) &'c mut AnyConnection);

pub(super) fn written<T: Serialize>(row: &T) -> Read<String> {
    serde_json::to_string(row).map_err(|error| StoreError::Refused(error.to_string()))
}

pub(super) fn body<T: DeserializeOwned>(row: &AnyRow) -> Read<T> {
    let body: String = text(row, "body")?;
    serde_json::from_str(&body).map_err(|error| StoreError::Refused(format!("a row is not ours: {error}")))
}

pub(super) fn text(row: &AnyRow, column: &str) -> Read<String> {
    row.try_get(column).map_err(|error| failed(&error))
}

pub(super) fn number(row: &AnyRow, column: &str) -> Read<u64> {
    row.try_get::<i64, _>(column).map(|number| u64::try_from(number).unwrap_or(0)).map_err(|error| failed(&error))
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn head_of(row: &AnyRow) -> Read<Head> {
    Ok(Head {
        revision: Revision(number(row, "revision")?),
        sequence: number(row, "sequence")?,
        audit_hash: text(row, "audit_hash")?,
        generation: number(row, "generation")?,
    })
}

/// Every row that a statement with these values finds.
macro_rules! all {
    ($rows:expr, $sql:expr, $($value:expr),* $(,)?) => {
        within(sqlx::query($sql)$(.bind($value))*.fetch_all(&mut *$rows.0)).await?
    };
}

/// A criterion of a list: its text, or nothing where it selects all.
fn wanted(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

impl Rows for On<'_> {
    async fn head(&mut self) -> Read<Head> {
        let rows = all!(self, "SELECT revision, sequence, audit_hash, generation FROM head WHERE name = 'head'",);
        head_of(rows.first().ok_or_else(|| StoreError::Refused("the counter row is missing".into()))?)
    }

    async fn documents(&mut self) -> Read<Vec<Document>> {
        all!(self, "SELECT body FROM documents ORDER BY kind, name",).iter().map(body).collect()
    }

    async fn request(&mut self, id: &RequestId) -> Read<Option<RequestRow>> {
        all!(self, "SELECT body FROM requests WHERE id = $1", id.as_str().to_owned()).first().map(body).transpose()
    }

    async fn grant(&mut self, id: &GrantId) -> Read<Option<GrantRow>> {
        all!(self, "SELECT body FROM grants WHERE id = $1", id.as_str().to_owned()).first().map(body).transpose()
    }

    async fn held(&mut self, principal: &Principal, entitlement: &EntitlementName) -> Read<u32> {
        let (principal, entitlement) = (principal.as_str().to_owned(), entitlement.as_str().to_owned());
        let rows = all!(
            self,
            "SELECT (SELECT COUNT(*) FROM grants WHERE state = 'active' AND principal = $1 AND principal <> '' AND entitlement = $2) + (SELECT COUNT(*) FROM requests WHERE state = 'pending' AND subject = $3 AND subject <> '' AND entitlement = $4) AS held",
            principal.clone(),
            entitlement.clone(),
            principal,
            entitlement
        );
        let held = rows.first().map(|row| number(row, "held")).transpose()?;
        Ok(u32::try_from(held.unwrap_or(0)).unwrap_or(u32::MAX))
    }

    async fn holds(&mut self, principal: &Principal, most: u32) -> Read<u32> {
        let rows = all!(
            self,
            "SELECT COUNT(*) AS held FROM (SELECT id FROM grants WHERE state = 'active' AND principal = $1 AND principal <> '' LIMIT $2) AS held",
            principal.as_str().to_owned(),
            i64::from(most)
        );
        let held = rows.first().map(|row| number(row, "held")).transpose()?;
        Ok(u32::try_from(held.unwrap_or(0)).unwrap_or(u32::MAX))
    }

    async fn idempotent(&mut self, caller: &Principal, key: &str) -> Read<Option<Idempotent>> {
        let rows = all!(
            self,
            "SELECT digest, request FROM idempotent WHERE caller = $1 AND idem_key = $2",
            caller.as_str().to_owned(),
            key.to_owned()
        );
        rows.first().map(idempotent_of).transpose()
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
            .map(body)
            .transpose()
    }

    async fn locks(&mut self) -> Read<Vec<Lock>> {
        all!(self, "SELECT body FROM locks ORDER BY id",).iter().map(body).collect()
    }

    async fn selected(&mut self, selector: &Selector) -> Read<Vec<GrantRow>> {
        if selector.is_empty() {
            return Ok(Vec::new());
        }
        // With each what its index says of every row in it.
        let criteria = [
            ("id = ", selector.grant.as_ref().map(GrantId::as_str)),
            ("principal <> '' AND principal = ", selector.principal.as_ref().map(Principal::as_str)),
            ("backend <> '' AND backend = ", selector.backend.as_ref().map(BackendName::as_str)),
            ("principal <> '' AND entitlement = ", selector.entitlement.as_ref().map(EntitlementName::as_str)),
            ("task <> '' AND task = ", selector.task.as_ref().map(TaskRef::as_str)),
        ];
        let given = criteria.into_iter().filter_map(|(is, value)| Some((is, value?)));
        let (given, values): (Vec<_>, Vec<_>) = given.unzip();
        let mut sql = "SELECT body FROM grants WHERE state = 'active'".to_owned();
        for (number, is) in (1..).zip(given) {
            // Writing into a String does not fail.
            let _ = write!(sql, " AND {is}${number}");
        }
        let query = bound(sql, values.into_iter().map(Value::from));
        let rows = within(query.fetch_all(&mut *self.0)).await?;
        let mut grants = rows.iter().map(body).collect::<Read<Vec<GrantRow>>>()?;
        grants.sort_unstable_by(|a, b| a.grant.id.cmp(&b.grant.id));
        Ok(grants)
    }

    async fn pending_of(&mut self, task: &TaskRef) -> Read<Vec<RequestRow>> {
        all!(
            self,
            "SELECT body FROM requests WHERE state = 'pending' AND task = $1 AND task <> '' ORDER BY id",
            task.as_str().to_owned()
        )
        .iter()
        .map(body)
        .collect()
    }

    async fn grants_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        all!(
            self,
            "SELECT body FROM grants WHERE state = 'active' AND expires_at > 0 AND expires_at <= $1 ORDER BY expires_at, id LIMIT $2",
            now.as_micros(),
            i64::from(limit)
        )
        .iter()
        .map(body)
        .collect()
    }

    async fn grants_idle(&mut self, now: Timestamp, limit: u32) -> Read<Vec<GrantRow>> {
        all!(
            self,
            "SELECT body FROM grants WHERE state = 'active' AND idle_due > 0 AND idle_due <= $1 ORDER BY idle_due, id LIMIT $2",
            now.as_micros(),
            i64::from(limit)
        )
        .iter()
        .map(body)
        .collect()
    }

    async fn activity(&mut self, ids: &[GrantId]) -> Read<HashMap<GrantId, Activity>> {
        activity::of(self.0, ids).await
    }

    async fn requests_due(&mut self, now: Timestamp, limit: u32) -> Read<Vec<RequestRow>> {
        all!(
            self,
            "SELECT body FROM requests WHERE state = 'pending' AND window_until > 0 AND window_until <= $1 ORDER BY window_until, id LIMIT $2",
            now.as_micros(),
            i64::from(limit)
        )
        .iter()
        .map(body)
        .collect()
    }

    async fn requests(&mut self, page: &Page) -> Read<Vec<RequestRow>> {
        let principal = wanted(page.principal.as_ref().map(Principal::as_str));
        all!(self, "SELECT body FROM requests WHERE id > $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR requester = $3 OR subject = $3) ORDER BY id LIMIT $4",
            wanted(page.after.as_deref()), wanted(page.state.as_deref()), principal, i64::from(page.limit)).iter().map(body).collect()
    }

    async fn grants(&mut self, page: &Page) -> Read<Vec<GrantRow>> {
        let principal = wanted(page.principal.as_ref().map(Principal::as_str));
        all!(self, "SELECT body FROM grants WHERE id > $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR principal = $3) ORDER BY id LIMIT $4",
            wanted(page.after.as_deref()), wanted(page.state.as_deref()), principal, i64::from(page.limit)).iter().map(body).collect()
    }

    async fn changes(&mut self, after: Revision, limit: u32) -> Read<Changes> {
        let rows = all!(
            self,
            "SELECT revision, body FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2",
            signed(after.0),
            i64::from(limit)
        );
        // In this order: what is removed between the two looks is then said to be.
        let floors = all!(self, "SELECT revision FROM floors WHERE name = 'changes'",);
        let floor = floors.first().map(|row| number(row, "revision")).transpose()?.unwrap_or(0);
        if after.0 < floor {
            return Ok(Changes::Compacted { floor: Revision(floor) });
        }
        let mut next: Vec<(Revision, Change)> = Vec::with_capacity(rows.len());
        for (expected, row) in (after.0 + 1..).zip(&rows) {
            let revision = number(row, "revision")?;
            // INVARIANT: revisions are dense. A reader who is passed over may miss a revocation.
            if revision != expected {
                return Err(StoreError::Refused(format!("change {expected} is missing; the store was tampered with")));
            }
            next.push((Revision(revision), body(row)?));
        }
        Ok(Changes::Next(next))
    }

    async fn audit(&mut self, from: u64, limit: u32) -> Read<Vec<AuditEntry>> {
        all!(
            self,
            "SELECT body FROM audit WHERE sequence >= $1 ORDER BY sequence LIMIT $2",
            signed(from),
            i64::from(limit)
        )
        .iter()
        .map(body)
        .collect()
    }
}

pub(super) fn idempotent_of(row: &AnyRow) -> Read<Idempotent> {
    let request = RequestId::new(&text(row, "request")?).map_err(|error| StoreError::Refused(error.to_string()))?;
    Ok(Idempotent { digest: text(row, "digest")?, request })
}
