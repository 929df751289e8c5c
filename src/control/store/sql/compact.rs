//! Removes what nobody needs any more, a bounded piece at a time.

use sqlx::{AnyConnection, Row};

use super::connect::{failed, within};
use super::rows::{number, signed};
use crate::control::store::{Keep, Read};
use crate::domain::time::Timestamp;

/// Most changes removed at once: others wait meanwhile.
const PIECE: u64 = 1_000;

/// One piece of it: whether there is more.
pub(super) async fn compact(connection: &mut AnyConnection, now: Timestamp, keep: Keep) -> Read<bool> {
    for delete in [
        "DELETE FROM uses WHERE keep_until <= $1",
        "DELETE FROM idempotent WHERE keep_until <= $1",
        "DELETE FROM leases WHERE until <= $1",
        "DELETE FROM replicas WHERE keep_until <= $1",
        "DELETE FROM join_tokens WHERE keep_until <= $1",
    ] {
        within(sqlx::query(delete).bind(now.as_micros()).execute(&mut *connection)).await?;
    }
    let row = within(
        sqlx::query(
            "SELECT head.revision AS revision, floors.revision AS floor FROM head JOIN floors ON floors.name = 'changes' WHERE head.name = 'head'",
        )
        .fetch_one(&mut *connection),
    )
    .await?;
    let (head, floor) = (number(&row, "revision")?, number(&row, "floor")?);
    let mut until = head.saturating_sub(keep.most);
    // Changes get older toward the floor, so the last of a piece says it of all.
    let oldest = floor + PIECE.min(head.saturating_sub(keep.least).saturating_sub(floor));
    if oldest > until && oldest > floor {
        let cutoff = now.as_micros().saturating_sub(i64::try_from(keep.age.as_micros()).unwrap_or(i64::MAX));
        let last = within(
            sqlx::query(
                "SELECT revision FROM changes WHERE revision > $1 AND revision <= $2 AND at <= $3 ORDER BY revision DESC LIMIT 1",
            )
            .bind(signed(floor))
            .bind(signed(oldest))
            .bind(cutoff)
            .fetch_optional(&mut *connection),
        )
        .await?;
        let last = last.map(|row| row.try_get::<i64, _>("revision").map_err(|error| failed(&error))).transpose()?;
        until = until.max(last.map_or(0, |revision| u64::try_from(revision).unwrap_or(0)));
    }
    let until = until.min(floor + PIECE);
    if until <= floor {
        return Ok(false);
    }
    let floor_moves = sqlx::query("UPDATE floors SET revision = $1 WHERE name = 'changes'").bind(signed(until));
    within(floor_moves.execute(&mut *connection)).await?;
    within(sqlx::query("DELETE FROM changes WHERE revision <= $1").bind(signed(until)).execute(&mut *connection))
        .await?;
    Ok(until == floor + PIECE)
}
