//! What others read: changes, audit, leases.

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold::control::command::Command;
use leasehold::control::engine::Engine;
use leasehold::control::store::{Changes, Keep, Rows, Selector, Store};
use leasehold::domain::id::{RequestId, Revision};
use leasehold::domain::time::{Clock, Timestamp};

use super::invariants::{check, everything};
use super::place::Place;
use super::world::{BEGINNING, DAY, HOUR, World, admin, asking, code, key, quiet, revoking, who, world};

/// Asks and revokes, as many as `rounds` in turn.
async fn write(engine: Engine, writer: u32, rounds: u32) {
    for round in 0..rounds {
        let ask = asking(writer * 10_000 + round, "auto");
        let grant = ask.grant.clone();
        engine.run(who("bot"), Command::Ask(Box::new(ask))).await.unwrap();
        if round % 3 == 0 {
            let selector = Selector { grant: Some(grant), ..Selector::default() };
            engine.run(admin(), revoking(selector)).await.unwrap();
        }
    }
}

pub async fn a_reader_who_resumes_misses_nothing<P: Place>(place: P) {
    let world = world(&place).await;
    let writers: Vec<_> = (1..=8).map(|writer| tokio::spawn(write(world.engine.clone(), writer, 30))).collect();
    let mut seen = BTreeMap::new();
    let mut after = Revision(0);
    loop {
        let done = writers.iter().all(tokio::task::JoinHandle::is_finished);
        // A limit that cuts batches in the middle.
        let Changes::Next(next) = world.store.view().await.unwrap().changes(after, 7).await.unwrap() else { panic!() };
        for (revision, change) in &next {
            assert_eq!(revision.0, after.0 + 1);
            after = *revision;
            seen.insert(*revision, change.clone());
        }
        if next.is_empty() && done {
            break;
        }
        tokio::task::yield_now().await;
    }
    let all = check(&*world.store).await;
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all.changes);
    assert_eq!(after, all.head.revision);
    assert_eq!(*world.engine.head().borrow(), all.head);
}

pub async fn the_audit_is_a_dense_chain<P: Place>(place: P) {
    let world = world(&place).await;
    write(world.engine.clone(), 1, 10).await;
    let all = check(&*world.store).await;
    let page = world.store.view().await.unwrap().audit(3, 4).await.unwrap();
    assert_eq!(page, all.audit[2..6]);
    assert!(world.store.view().await.unwrap().audit(all.head.sequence + 1, 4).await.unwrap().is_empty());
    let mut altered = all.audit[5].clone();
    altered.detail = serde_json::json!({});
    assert_ne!(altered.hash, altered.expected_hash());
}

pub async fn old_changes_go_and_a_late_reader_is_told<P: Place>(place: P) {
    let world = world(&place).await;
    write(world.engine.clone(), 1, 9).await;
    let keep = Keep { age: DAY, least: 3, most: 1_000 };
    let now = || world.clock.now().wall;
    world.store.compact(now(), keep).await.unwrap();
    let head = everything(&*world.store).await.head.revision;
    let read = |after: u64| {
        let store = world.store.clone();
        async move { store.view().await.unwrap().changes(Revision(after), 1_000).await.unwrap() }
    };
    assert!(matches!(read(0).await, Changes::Next(all) if all.len() as u64 == head.0), "all are young");
    world.clock.forward(DAY + HOUR);
    write(world.engine.clone(), 2, 1).await;
    let last = head.0 + 2;
    world.store.compact(now(), keep).await.unwrap();
    let floor = last - 3;
    assert_eq!(read(0).await, Changes::Compacted { floor: Revision(floor) });
    assert_eq!(read(floor - 1).await, Changes::Compacted { floor: Revision(floor) });
    assert!(matches!(read(floor).await, Changes::Next(next) if next.len() == 3), "the newest stay");
    assert!(matches!(read(last).await, Changes::Next(next) if next.is_empty()));
    let few = Keep { age: DAY, least: 1, most: 2 };
    world.store.compact(now(), few).await.unwrap();
    assert!(matches!(read(last - 2).await, Changes::Next(next) if next.len() == 2), "too many are never kept");
    assert!(matches!(read(last - 3).await, Changes::Compacted { .. }));
    check(&*world.store).await;
}

pub async fn old_keys_and_uses_go_when_nobody_can_say_them_again<P: Place>(place: P) {
    let world = world(&place).await;
    let asking = || {
        let mut ask = world.asking("once");
        ask.idempotency = key("k", "body");
        ask
    };
    let (first, grant) = world.ask(&who("bot"), asking()).await.unwrap();
    let grant = grant.unwrap().grant.id;
    world.consume(&grant, "u").await.unwrap();
    let compact = || world.store.compact(world.clock.now().wall, Keep::default());
    world.clock.forward(DAY);
    compact().await.unwrap();
    assert_eq!(world.ask(&who("bot"), asking()).await.unwrap().0.request.id, first.request.id);
    assert!(world.consume(&grant, "u").await.is_ok());
    world.clock.forward(4 * DAY);
    compact().await.unwrap();
    assert_ne!(world.ask(&who("bot"), asking()).await.unwrap().0.request.id, first.request.id);
    assert_eq!(code(world.consume(&grant, "u").await), "ended", "and it counts nothing");
    check(&*world.store).await;
}

pub async fn a_lease_has_one_holder<P: Place>(place: P) {
    let store = place.open().await;
    let (at, ttl) = (|seconds| Timestamp::from_seconds(BEGINNING + seconds), Duration::from_secs(10));
    for (holder, seconds, expected) in
        [("a", 0, true), ("b", 1, false), ("a", 5, true), ("b", 14, false), ("b", 15, true), ("a", 16, false)]
    {
        assert_eq!(store.lease("sweeper", holder, at(seconds), ttl).await, Ok(expected), "{holder} at {seconds}");
    }
    assert_eq!(store.lease("other", "a", at(16), ttl).await, Ok(true));
    store.compact(at(100), Keep::default()).await.unwrap();
    assert_eq!(store.lease("sweeper", "a", at(100), ttl).await, Ok(true));
}

pub async fn an_id_is_never_used_twice<P: Place>(place: P) {
    let world = world(&place).await;
    let ask = world.asking("auto");
    let (first, _) = world.ask(&who("bot"), ask.clone()).await.unwrap();
    let before = check(&*world.store).await;
    assert_eq!(code(world.ask(&who("bot-2"), ask).await), "store");
    assert_eq!(world.request(&first.request.id).await, first, "it was overwritten");
    assert_eq!(check(&*world.store).await, before);
}

pub async fn a_view_is_one_moment<P: Place>(place: P) {
    let world = World::on(place.open().await, quiet()).await;
    world.run(&admin(), Command::Apply(super::world::documents())).await.unwrap();
    let mut view = world.store.view().await.unwrap();
    let before = view.head().await.unwrap();
    write(world.engine.clone(), 1, 1).await;
    assert_eq!(view.head().await.unwrap(), before);
    assert_eq!(view.request(&RequestId::new("req_010000").unwrap()).await.unwrap(), None);
    drop(view);
    assert!(world.store.view().await.unwrap().head().await.unwrap().revision > before.revision);
}
