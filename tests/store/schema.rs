//! The tables have versions, a newer program's are left alone, and each question looks by its own index.

use std::time::Duration;

use leasehold::control::command::Command;
use leasehold::control::store::sql::SqlStore;
use leasehold::control::store::{Rows, Store, StoreError};

use super::place::{Place, Postgres, Sqlite};
use super::postgres;
use super::world::{who, world};

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
    // Those of the version before are brought to this one, with all that is in them.
    raw(&place.url(), "DELETE FROM schema_versions WHERE version = 4").await;
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

/// An index of very many rows takes longer than any statement may at other times. Others that start meanwhile wait.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_many_rows_are_brought_up_to_date_however_long_it_takes() {
    let place = Postgres::new();
    place.open().await.close().await;
    raw(&place.url, "DELETE FROM schema_versions WHERE version = 4").await;
    raw(&place.url, "CREATE TABLE slow AS SELECT 1 AS once").await;
    let slowly = "CREATE FUNCTION slowly() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN IF (SELECT COUNT(*) FROM slow) > 0 THEN DELETE FROM slow; PERFORM pg_sleep(11); END IF; END $$";
    raw(&place.url, slowly).await;
    raw(
        &place.url,
        "CREATE EVENT TRIGGER slowly ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION slowly()",
    )
    .await;
    let (one, other) = tokio::join!(SqlStore::open(&place.url), SqlStore::open(&place.url));
    for store in [one.unwrap(), other.unwrap()] {
        store.close().await;
    }
    let database = place.url.rsplit('/').next().unwrap();
    assert_eq!(postgres::shared().sql(database, "SELECT COUNT(*) FROM slow"), "0");
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

/// PostgreSQL believes that what it has not counted yet is nearly empty. Where it may, it then reads all of it for one key.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_but_what_was_asked_for() {
    let place = Postgres::new();
    let world = world(&place).await;
    for _ in 0..8 {
        let mut all = tokio::task::JoinSet::new();
        for number in 0..32 {
            let (engine, entitlement) = (world.engine.clone(), if number % 2 == 0 { "auto" } else { "asked" });
            let (actor, ask) = (who(&format!("bot-{number}")), Command::Ask(Box::new(world.asking(entitlement))));
            all.spawn(async move { engine.run(actor, ask).await.map(drop) });
        }
        all.join_all().await.into_iter().for_each(|answer| answer.unwrap());
    }
    world.store.close().await;
    let database = place.url.rsplit('/').next().unwrap().to_owned();
    let asked = |statement: &str| postgres::shared().sql(&database, statement);
    // A connection leaves its counts when it ends.
    let others =
        format!("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()");
    while asked(&format!("{others} AND query NOT LIKE 'LISTEN%' AND query NOT LIKE '%pg_notify%'")) != "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let read = |indexes: &str| {
        let sum = "SELECT COALESCE(SUM(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE indexrelname IN";
        asked(&format!("{sum} ({indexes})"))
    };
    assert_ne!(read("'grants_held', 'requests_held'"), "0");
    assert_eq!(read("'grants_backend', 'grants_task', 'grants_due', 'requests_task', 'requests_pending'"), "0");
    assert_eq!(asked("SELECT SUM(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ('grants', 'requests')"), "0");
}
