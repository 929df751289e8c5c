//! A store is copied whole, and backed up while it runs.

use leasehold::control::command::Command;
use leasehold::control::store::Store;
use leasehold::control::store::sql::{SqlStore, backup, copy};

use super::invariants::{check, everything, same};
use super::place::{Place, Postgres, Sqlite};
use super::world::{World, admin, documents, key, quiet, who, world};

/// A store with some of everything, closed.
async fn filled(place: &Sqlite) {
    let world = world(place).await;
    for number in 0..30 {
        let mut ask = world.asking(if number % 2 == 0 { "counted" } else { "asked" });
        ask.idempotency = key(&format!("k{number}"), "body");
        let (_, grant) = world.ask(&who(&format!("bot-{number}")), ask).await.unwrap();
        if let Some(grant) = grant {
            world.consume(&grant.grant.id, "u").await.unwrap();
        }
    }
    let lock = serde_json::from_value(serde_json::json!({
        "id": "l1", "principal": null, "backend": null, "action": null, "resource": null, "grant": null,
        "task": "jira:A-1", "message": "stop", "expires_at": null,
    }));
    world.run(&admin(), Command::Lock(Box::new(lock.unwrap()))).await.unwrap();
    world.store.close().await;
}

async fn copied(from: &str, to: &str, place: &impl Place<Store = SqlStore>, source: &Sqlite) {
    let copied = copy(from, to).await.unwrap();
    let (before, after) = (source.open().await, place.open().await);
    let all = check(&*after).await;
    same(&all, &everything(&*before).await);
    assert_eq!(copied.entries, all.head.sequence);
    let rows = |table: &str| copied.tables.iter().find(|(name, _)| *name == table).unwrap().1;
    assert_eq!((rows("grants"), rows("uses"), rows("idempotent"), rows("locks")), (15, 15, 30, 1));
    let again = copy(from, to).await.unwrap_err().to_string();
    assert!(again.contains("not empty"), "{again}");
    // It goes on where it was.
    let world = World::on(after, quiet()).await;
    world.run(&admin(), Command::Apply(documents())).await.unwrap();
    let mut ask = world.asking("counted");
    ask.idempotency = key("k0", "body");
    let (row, _) = world.ask(&who("bot-0"), ask).await.unwrap();
    assert_eq!(row.request.id, all.requests[0].request.id, "a key that was used is known");
    check(&*world.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_another_file() {
    let (from, to) = (Sqlite::new(), Sqlite::new());
    filled(&from).await;
    copied(&from.url(), &to.url(), &to, &from).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_postgresql() {
    let (from, to) = (Sqlite::new(), Postgres::new());
    filled(&from).await;
    copied(&from.url(), &to.url, &to, &from).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_record_is_not_copied() {
    let (from, to) = (Sqlite::new(), Sqlite::new());
    filled(&from).await;
    let pool = sqlx::AnyPool::connect(&from.url()).await.unwrap();
    let alter = "UPDATE audit SET body = REPLACE(body, 'idp.test#', 'idp.test#x') WHERE sequence = 30";
    assert_eq!(sqlx::query(alter).execute(&pool).await.unwrap().rows_affected(), 1);
    pool.close().await;
    let error = copy(&from.url(), &to.url()).await.unwrap_err().to_string();
    assert!(error.contains("audit entry 30"), "{error}");
    assert_eq!(everything(&*to.open().await).await.head.sequence, 0, "nothing of it stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_store_is_not_copied_and_not_made() {
    let (nothing, to) = (Sqlite::new(), Sqlite::new());
    let error = copy(&nothing.url(), &to.url()).await.unwrap_err().to_string();
    assert!(error.contains("unable to open"), "{error}");
    assert!(!std::path::Path::new(nothing.url().trim_start_matches("sqlite:")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_the_store_of_one_moment() {
    let place = Sqlite::new();
    filled(&place).await;
    let running = World::on(place.open().await, quiet()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.db").display().to_string();
    backup(&place.url(), &file).await.unwrap();
    let restored = SqlStore::open(&format!("sqlite:{file}")).await.unwrap();
    same(&check(&restored).await, &everything(&*running.store).await);
    restored.close().await;
    let again = backup(&place.url(), &file).await.unwrap_err().to_string();
    assert!(again.contains("already exists"), "{again}");
    let error = backup("postgres://nowhere/x", &file).await.unwrap_err().to_string();
    assert!(error.contains("pg_dump"), "{error}");
    assert!(!running.store.is_shared());
}

/// The program, and what it printed where.
fn leasehold(words: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_leasehold")).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_command_line() {
    use std::os::unix::fs::PermissionsExt;
    let (from, to) = (Sqlite::new(), Sqlite::new());
    filled(&from).await;
    let (code, out, err) = leasehold(&["store", "copy", "--from", &from.url(), "--to", &to.url()]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("grants") && out.contains("copied and verified"), "{out}");
    same(&check(&*to.open().await).await, &everything(&*from.open().await).await);
    let (code, _, err) = leasehold(&["store", "copy", "--from", &from.url(), "--to", &to.url()]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("not empty"), "{err}");
    let (code, _, err) = leasehold(&["store", "copy", "--from", "mysql://x", "--to", &to.url()]);
    assert_eq!(code, Some(2), "{err}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.db");
    let name = file.display().to_string();
    let (code, out, err) = leasehold(&["store", "backup", "--from", &from.url(), &name]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let written = std::fs::metadata(&file).unwrap();
    assert_eq!(written.permissions().mode() & 0o777, 0o600);
    let (code, _, err) = leasehold(&["store", "backup", "--from", &from.url(), &name]);
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written.modified().unwrap(), "overwritten");
    let other = folder.path().join("other.db").display().to_string();
    let (code, _, err) = leasehold(&["store", "backup", "--from", "postgres://nobody@127.0.0.1:1/x", &other]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("pg_dump") && !std::path::Path::new(&other).exists(), "{err}");
    for words in [&["store", "--help"][..], &["store", "copy", "--help"], &["store", "backup", "--help"]] {
        let (code, out, _) = leasehold(words);
        assert!(code == Some(0) && out.contains("Exit codes:"), "{words:?}: {out}");
    }
}
