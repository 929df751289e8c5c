//! What the engine makes of a store that fails.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leasehold::control::command::{Command, Reply};
use leasehold::control::refusal::Kind;
use leasehold::control::store::memory::{Memory, MemoryStore};
use leasehold::control::store::{
    Activity, AuditEntry, Changes, GrantRow, Head, Idempotent, Keep, Page, RequestRow, Rows, Selector, Store,
    StoreError, Transaction, Wanted, Write,
};
use leasehold::domain::id::{EntitlementName, GrantId, RequestId, Revision, TaskRef};
use leasehold::domain::lock::Lock;
use leasehold::domain::principal::Principal;
use leasehold::domain::task::Task;
use leasehold::domain::time::Timestamp;

use super::invariants::check;
use super::world::{World, admin, asking, documents, quiet, who};

/// How the next commits go wrong, each once.
#[derive(Debug, Default)]
struct Faults {
    /// The commit is done and not confirmed.
    unconfirmed_done: AtomicU32,
    /// The commit is not done and not confirmed.
    unconfirmed_lost: AtomicU32,
    /// After such a commit, so many times nothing can be begun.
    then_gone: AtomicU32,
    /// Nothing can be begun.
    unreachable: AtomicU32,
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// The model, with faults. A request for `nobody` is one that it does not take.
#[derive(Debug, Default)]
struct Faulty {
    inner: MemoryStore,
    faults: Arc<Faults>,
}

struct InFaulty {
    inner: Memory,
    faults: Arc<Faults>,
}

impl Transaction for InFaulty {
    async fn prefetch(&mut self, wanted: Wanted) -> Result<(), StoreError> {
        self.inner.prefetch(wanted).await
    }

    async fn apply(&mut self, writes: Vec<Write>) -> Result<(), StoreError> {
        for write in &writes {
            if matches!(write, Write::Request(row) if row.request.justification == "poison") {
                return Err(StoreError::Refused("poison".into()));
            }
        }
        self.inner.apply(writes).await
    }

    async fn commit(self) -> Result<(), StoreError> {
        if take(&self.faults.unconfirmed_done) {
            self.inner.commit().await?;
            self.faults.unreachable.store(self.faults.then_gone.load(Ordering::SeqCst), Ordering::SeqCst);
            return Err(StoreError::Unconfirmed("the line went dead".into()));
        }
        if take(&self.faults.unconfirmed_lost) {
            return Err(StoreError::Unconfirmed("the line went dead".into()));
        }
        self.inner.commit().await
    }
}

impl Store for Faulty {
    type Transaction<'s> = InFaulty;
    type View<'s> = Memory;

    async fn begin(&self) -> Result<InFaulty, StoreError> {
        if take(&self.faults.unreachable) {
            return Err(StoreError::Unreachable("gone".into()));
        }
        Ok(InFaulty { inner: self.inner.begin().await?, faults: Arc::clone(&self.faults) })
    }

    async fn view(&self) -> Result<Memory, StoreError> {
        self.inner.view().await
    }

    async fn lease(&self, name: &str, holder: &str, now: Timestamp, ttl: Duration) -> Result<bool, StoreError> {
        self.inner.lease(name, holder, now, ttl).await
    }

    async fn used(&self, used: BTreeMap<GrantId, Activity>) -> Result<(), StoreError> {
        self.inner.used(used).await
    }

    async fn compact(&self, now: Timestamp, keep: Keep) -> Result<bool, StoreError> {
        self.inner.compact(now, keep).await
    }
}

macro_rules! through {
    ($($name:ident($($value:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Rows for InFaulty {
            $(async fn $name(&mut self, $($value: $type),*) -> Result<$result, StoreError> {
                self.inner.$name($($value),*).await
            })*
        }
    };
}

through! {
    head() -> Head;
    documents() -> Vec<leasehold::control::document::Document>;
    request(id: &RequestId) -> Option<RequestRow>;
    grant(id: &GrantId) -> Option<GrantRow>;
    held(principal: &Principal, entitlement: &EntitlementName) -> u32;
    holds(principal: &Principal, most: u32) -> u32;
    idempotent(caller: &Principal, key: &str) -> Option<Idempotent>;
    used(grant: &GrantId, use_id: &str) -> bool;
    task(reference: &TaskRef) -> Option<Task>;
    locks() -> Vec<Lock>;
    selected(selector: &Selector) -> Vec<GrantRow>;
    pending_of(task: &TaskRef) -> Vec<RequestRow>;
    grants_due(now: Timestamp, limit: u32) -> Vec<GrantRow>;
    grants_idle(now: Timestamp, limit: u32) -> Vec<GrantRow>;
    activity(ids: &[GrantId]) -> HashMap<GrantId, Activity>;
    requests_due(now: Timestamp, limit: u32) -> Vec<RequestRow>;
    requests(page: &Page) -> Vec<RequestRow>;
    grants(page: &Page) -> Vec<GrantRow>;
    changes(after: Revision, limit: u32) -> Changes;
    audit(from: u64, limit: u32) -> Vec<AuditEntry>;
}

async fn faulty() -> World<Faulty> {
    let world = World::on(Arc::new(Faulty::default()), quiet()).await;
    world.run(&admin(), Command::Apply(documents())).await.unwrap();
    world
}

/// Sixteen who ask at the same time, one of them for something that the store does not take.
async fn ask_together(
    world: &World<Faulty>,
    poison: Option<u32>,
) -> Vec<Result<Reply, leasehold::control::refusal::Refusal>> {
    let mut all = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (engine, mut ask) = (world.engine.clone(), asking(number, "auto"));
        if poison == Some(number) {
            ask.justification = "poison".into();
        }
        all.spawn(async move { engine.run(who("bot"), Command::Ask(Box::new(ask))).await });
    }
    all.join_all().await
}

/// Each entry that is durable was counted once, and no other.
async fn counts_what_is_there(world: &World<Faulty>) {
    let there = world.store.view().await.unwrap().head().await.unwrap().sequence;
    assert!((world.counted() - there as f64).abs() < 0.5, "{} of {there}", world.counted());
}

#[tokio::test]
async fn only_the_command_fails_that_cannot_be_written() {
    let world = faulty().await;
    let answers = ask_together(&world, Some(7)).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{answers:?}");
    assert_eq!((refused[0].kind, refused[0].code), (Kind::Unavailable, "store"));
    assert!(!refused[0].detail.contains("poison"), "what the engine said is for the log");
    assert_eq!(check(&*world.store).await.requests.len(), 15);
    counts_what_is_there(&world).await;
}

#[tokio::test]
async fn a_commit_that_was_done_and_not_confirmed_is_found_and_not_done_again() {
    let world = faulty().await;
    world.store.faults.unconfirmed_done.store(1, Ordering::SeqCst);
    assert!(ask_together(&world, None).await.iter().all(Result::is_ok));
    assert_eq!(check(&*world.store).await.grants.len(), 16);
    counts_what_is_there(&world).await;
}

#[tokio::test]
async fn a_commit_that_was_lost_is_done_again() {
    let world = faulty().await;
    world.store.faults.unconfirmed_lost.store(1, Ordering::SeqCst);
    assert!(ask_together(&world, None).await.iter().all(Result::is_ok));
    assert_eq!(check(&*world.store).await.grants.len(), 16);
    counts_what_is_there(&world).await;
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_commit_is_said_to_be_unknown_where_it_is() {
    let world = faulty().await;
    world.store.faults.unconfirmed_done.store(1, Ordering::SeqCst);
    world.store.faults.then_gone.store(u32::MAX, Ordering::SeqCst);
    let refused = world.ask(&who("bot"), asking(0, "auto")).await.unwrap_err();
    assert_eq!((refused.kind, refused.code), (Kind::Unavailable, "unconfirmed"));
    world.store.faults.unreachable.store(0, Ordering::SeqCst);
    assert_eq!(check(&*world.store).await.grants.len(), 1, "it was done, and said to be possible");
}

#[tokio::test]
async fn who_waits_for_a_store_that_is_gone_is_told_and_it_works_again_after() {
    let world = faulty().await;
    world.store.faults.unreachable.store(1, Ordering::SeqCst);
    let answers = ask_together(&world, None).await;
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
    assert!(refused.clone().count() > 0);
    for refusal in refused {
        assert_eq!((refusal.kind, refusal.code), (Kind::Unavailable, "store"));
    }
    world.ask(&who("bot"), asking(100, "auto")).await.unwrap();
    check(&*world.store).await;
    counts_what_is_there(&world).await;
}

#[tokio::test]
async fn past_what_may_wait_callers_are_told_to_come_again() {
    let pace = leasehold::control::engine::Pace { queue_max: 2, ..quiet() };
    let world = World::on(Arc::new(Faulty::default()), pace).await;
    let hold = world.store.begin().await.unwrap();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let engine = world.engine.clone();
        all.spawn(async move { engine.run(admin(), Command::Sweep { idle: true }).await });
    }
    let first = all.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!((first.kind, first.code), (Kind::Unavailable, "busy"));
    drop(hold);
    assert!(all.join_all().await.iter().any(Result::is_ok));
}
