//! The tables have versions, and a newer program's are left alone.

use leasehold::control::store::sql::SqlStore;
use leasehold::control::store::{Rows, Store, StoreError};

use super::place::{Place, Postgres, Sqlite};
use super::postgres;
use super::world::world;

async fn raw(url: &str, statement: &'static str) {
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(url).await.unwrap();
    sqlx::query(statement).execute(&pool).await.unwrap();
    pool.close().await;
}

async fn newer_tables_are_refused(url: &str) {
    raw(url, "INSERT INTO schema_versions (version) VALUES (1000)").await;
    let error = SqlStore::open(url).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 1000, .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("run the newer leasehold"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_opened_again_and_kept() {
    let place = Sqlite::new();
    let head = {
        let world = world(&place).await;
        let head = world.store.view().await.unwrap().head().await.unwrap();
        world.store.close().await;
        head
    };
    assert_eq!(place.open().await.view().await.unwrap().head().await.unwrap(), head);
    newer_tables_are_refused(&place.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_control_planes_create_the_tables_once() {
    let place = Postgres::new();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = place.url.clone();
        all.spawn(async move { SqlStore::open(&url).await.map(drop) });
    }
    for opened in all.join_all().await {
        opened.unwrap();
    }
    newer_tables_are_refused(&place.url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_store_is_said_to_be_none() {
    for (url, expected) in [("mysql://x/y", "sqlite:PATH"), ("sqlite:/nowhere/at/all.db", "cannot be reached")] {
        let error = SqlStore::open(url).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{url}: {error}");
    }
    let taken = postgres::shared().database();
    raw(&taken, "CREATE TABLE grants (id TEXT)").await;
    let error = SqlStore::open(&taken).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
}
