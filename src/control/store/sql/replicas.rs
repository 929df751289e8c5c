//! What control planes that share a store tell each other of their sidecars, a row each, written whole; and the tokens
//! by which sidecars join.
//!
//! Not part of the elevations: no revision and not copied. The audit entries of who joins are a command's.

use super::SqlStore;
use super::connect::within;
use super::rows::{number, text};
use crate::control::store::Read;
use crate::domain::time::Timestamp;

/// What one control plane said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Which.
    pub id: String,
    /// How often it said something.
    pub beat: u64,
    /// What.
    pub body: String,
}

impl SqlStore {
    /// Says something in the place of what was said before; it is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`](crate::control::store::StoreError); others may or may not hear it.
    pub async fn tell(&self, row: ReplicaRow, keep_until: Timestamp) -> Read<()> {
        let query = sqlx::query(
            "INSERT INTO replicas (id, beat, keep_until, body) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET beat = excluded.beat, keep_until = excluded.keep_until, body = excluded.body",
        );
        let beat = i64::try_from(row.beat).unwrap_or(i64::MAX);
        let query = query.bind(row.id).bind(beat).bind(keep_until.as_micros()).bind(row.body);
        // Not the writer's: what runs there is not to be waited for.
        within(query.execute(&self.readers)).await.map(drop)
    }

    /// What every control plane said last.
    ///
    /// # Errors
    /// [`StoreError`](crate::control::store::StoreError).
    pub async fn told(&self) -> Read<Vec<ReplicaRow>> {
        let rows = within(sqlx::query("SELECT id, beat, body FROM replicas").fetch_all(&self.readers)).await?;
        let read = |row| Ok(ReplicaRow { id: text(row, "id")?, beat: number(row, "beat")?, body: text(row, "body")? });
        rows.iter().map(read).collect()
    }

    /// Keeps the digest of a join token until it is taken or over.
    ///
    /// # Errors
    /// [`StoreError`](crate::control::store::StoreError); it is not kept.
    pub async fn keep_join_token(&self, digest: &str, whom: &str, until: Timestamp) -> Read<()> {
        let _turn = self.turn.lock().await;
        let query = sqlx::query("INSERT INTO join_tokens (digest, keep_until, body) VALUES ($1, $2, $3)");
        let query = query.bind(digest.to_owned()).bind(until.as_micros()).bind(whom.to_owned());
        within(query.execute(&self.writer)).await.map(drop)
    }

    /// Takes a join token, which only one can: for whom it was made, if it is good.
    ///
    /// # Errors
    /// [`StoreError`](crate::control::store::StoreError); it may be gone.
    pub async fn take_join_token(&self, digest: &str, now: Timestamp) -> Read<Option<String>> {
        // Strangers guess; only who has one makes others wait for a write.
        let look = sqlx::query("SELECT digest FROM join_tokens WHERE digest = $1").bind(digest.to_owned());
        if within(look.fetch_optional(&self.readers)).await?.is_none() {
            return Ok(None);
        }
        let _turn = self.turn.lock().await;
        let query = sqlx::query("DELETE FROM join_tokens WHERE digest = $1 AND keep_until > $2 RETURNING body");
        let query = query.bind(digest.to_owned()).bind(now.as_micros());
        let taken = within(query.fetch_optional(&self.writer)).await?;
        taken.as_ref().map(|row| text(row, "body")).transpose()
    }
}
