//! The places where rows can be kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use leasehold::control::store::Store;
use leasehold::control::store::memory::MemoryStore;
use leasehold::control::store::sql::SqlStore;
use tempfile::TempDir;

use super::postgres;

/// A place of its own, empty at first.
pub trait Place {
    type Store: Store;
    async fn open(&self) -> Arc<Self::Store>;
}

#[derive(Default)]
pub struct Memory {
    opened: AtomicBool,
}

impl Place for Memory {
    type Store = MemoryStore;

    async fn open(&self) -> Arc<MemoryStore> {
        assert!(!self.opened.swap(true, Ordering::Relaxed), "what is in memory cannot be opened again");
        Arc::default()
    }
}

pub struct Sqlite {
    folder: TempDir,
}

impl Sqlite {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn url(&self) -> String {
        format!("sqlite:{}", self.folder.path().join("leasehold.db").display())
    }
}

impl Place for Sqlite {
    type Store = SqlStore;

    async fn open(&self) -> Arc<SqlStore> {
        Arc::new(SqlStore::open(&self.url()).await.unwrap())
    }
}

pub struct Postgres {
    pub url: String,
}

impl Postgres {
    pub fn new() -> Self {
        Self { url: postgres::shared().database() }
    }
}

impl Place for Postgres {
    type Store = SqlStore;

    async fn open(&self) -> Arc<SqlStore> {
        Arc::new(SqlStore::open(&self.url).await.unwrap())
    }
}
