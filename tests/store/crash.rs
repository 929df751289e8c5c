//! Processes that are killed in the middle of their writes.
//!
//! The process is this test's own binary, told by its environment to be a control plane; it says each answer that it got
//! on its standard output, and what it said must be true.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command as Process, Stdio};
use std::sync::Arc;

use leasehold::control::command::{Command, Reply};
use leasehold::control::store::sql::SqlStore;
use leasehold::control::store::{Rows, Selector, Store};
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{GrantId, RequestId};

use super::invariants::check;
use super::place::{Place, Postgres, Sqlite};
use super::world::{World, admin, asking, documents, quiet, who};

const ROLE: &str = "LEASEHOLD_TEST_CONTROL_PLANE";

/// What a control plane is to do: on which store, what, and with which numbers.
fn spawn(url: &str, work: &str, first: u32) -> (Child, BufReader<ChildStdout>) {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::a_control_plane", "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{work} {first} {url}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// What it says, without what its test harness says.
fn said(line: std::io::Result<String>) -> Option<(String, u32)> {
    let line = line.ok()?;
    // A line that the kill cut is no word.
    let (word, number) = line.strip_prefix("! ")?.strip_suffix(" .")?.split_once(' ')?;
    Some((word.to_owned(), number.parse().ok()?))
}

fn say(word: &str, number: u32) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "! {word} {number} .").unwrap();
    out.flush().unwrap();
}

/// Nothing, unless its environment says that this is such a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.splitn(3, ' ');
    let (work, first, url) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let first: u32 = first.parse().unwrap();
    let world = Arc::new(World::on(Arc::new(SqlStore::open(url).await.unwrap()), quiet()).await);
    match work {
        "ask" => ask_for_ever(&world, first).await,
        _ => decide_all(&world, first).await,
    }
}

async fn ask_for_ever(world: &Arc<World<SqlStore>>, first: u32) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let world = Arc::clone(world);
        writers.spawn(async move {
            for number in (first + writer..).step_by(8) {
                world.ask(&who("bot"), asking(number, "auto")).await.unwrap();
                say("asked", number);
                if number % 4 == 0 {
                    let grant = Some(asking(number, "auto").grant);
                    world.revoke(Selector { grant, ..Selector::default() }).await;
                    say("revoked", number);
                }
            }
        });
    }
    writers.join_all().await;
}

/// How many requests wait for the replicas.
const REQUESTS: u32 = 240;

/// Approves every request that waits, as others do at the same time, and revokes every third grant.
async fn decide_all(world: &Arc<World<SqlStore>>, first: u32) {
    let mut approvers = tokio::task::JoinSet::new();
    for approver in 0..6 {
        let world = Arc::clone(world);
        approvers.spawn(async move {
            for number in
                (0..REQUESTS).map(|number| (number + first) % REQUESTS).filter(|number| number % 6 == approver)
            {
                let request = asking(number, "asked").id;
                let approve = Command::Approve { request, seen: 1, reason: String::new() };
                let name = who(&format!("approver-{first}-{approver}"));
                match world.run(&name, approve).await {
                    Ok(Reply::Request(_, Some(grant))) => {
                        say("approved", number);
                        if number % 3 == 0 {
                            let id = Some(grant.grant.id);
                            world.revoke(Selector { grant: id, ..Selector::default() }).await;
                            say("revoked", number);
                        }
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(refusal) => assert_eq!(refusal.code, "already_decided"),
                }
            }
        });
    }
    approvers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_killed_fifty_times_keeps_what_it_acknowledged() {
    let place = Sqlite::new();
    {
        let world = World::on(place.open().await, quiet()).await;
        world.run(&admin(), Command::Apply(documents())).await.unwrap();
        world.store.close().await;
    }
    let mut acknowledged = Vec::new();
    for round in 0..50u32 {
        let (mut child, lines) = spawn(&place.url(), "ask", round * 10_000);
        let enough = 1 + (round * 7) % 23;
        let mut heard = 0;
        for line in lines.lines() {
            if let Some(word) = said(line) {
                acknowledged.push(word);
                heard += 1;
                if heard == enough {
                    child.kill().unwrap();
                }
            }
        }
        assert!(heard >= enough, "round {round}: it ended by itself");
        child.wait().unwrap();
    }
    let store = place.open().await;
    let all = check(&*store).await;
    let mut view = store.view().await.unwrap();
    for (word, number) in &acknowledged {
        let id: GrantId = asking(*number, "auto").grant;
        let row = view.grant(&id).await.unwrap().unwrap_or_else(|| panic!("{word} {number} is lost"));
        assert!(word != "revoked" || row.state == GrantState::Revoked, "{word} {number} is lost: {row:?}");
    }
    assert!(all.grants.len() * 2 >= acknowledged.len() && acknowledged.len() >= 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_control_planes_killed_loses_and_doubles_nothing() {
    let place = Postgres::new();
    let world = World::on(place.open().await, quiet()).await;
    world.run(&admin(), Command::Apply(documents())).await.unwrap();
    for _ in 0..REQUESTS {
        world.pending(&who("bot"), "asked").await;
    }
    let (mut victim, mut lines) = spawn(&place.url, "decide", 0);
    let others = [spawn(&place.url, "decide", 80), spawn(&place.url, "decide", 160)];
    let mut words = Vec::new();
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        words.extend(said(Ok(line.trim_end().to_owned())));
        line.clear();
        if words.len() >= 10 {
            // Whatever it said before it died is read to the end.
            victim.kill().unwrap();
        }
    }
    assert!(!victim.wait().unwrap().success(), "it was done before it was killed");
    for (mut child, lines) in others {
        words.extend(lines.lines().filter_map(said));
        assert!(child.wait().unwrap().success());
    }
    let all = check(&*world.store).await;
    assert_eq!(all.grants.len(), REQUESTS as usize, "each request became one grant");
    assert!(all.requests.iter().all(|row| row.elevation.state() == "approved"));
    for (word, number) in &words {
        let id: RequestId = asking(*number, "asked").id;
        let row = all.grants.iter().find(|row| row.request == id).unwrap();
        assert!(word != "revoked" || row.state == GrantState::Revoked, "{word} {number} is lost");
    }
    let approved = words.iter().filter(|(word, _)| word == "approved").count();
    assert!(approved <= REQUESTS as usize, "two were told of one approval");
}
