//! How long it takes until an end is in force at a thousand sidecars, and what that costs the server.
//!
//! `cargo bench --bench sync` prints tables; a number sets how many sidecars there are. The server has one thread, all
//! sidecars share another; both ends speak mTLS over loopback. Nothing is asserted here: a figure is a figure of one
//! machine.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "sync/ends.rs"]
mod ends;
#[path = "sync/mtls.rs"]
mod mtls;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leasehold::app::clock::SystemClock;
use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::grant::{Grant, GrantState};
use leasehold::domain::id::{BackendName, GrantId, Revision};
use leasehold::domain::principal::Principal;
use leasehold::domain::resource::ResourcePattern;
use leasehold::domain::time::{Clock, Timestamp, Window};
use leasehold::domain::view::{Change, Snapshot, StatedGrant, StatedGrants};
use leasehold::sidecar::decide::Decider;
use leasehold::sidecar::sync::sink::TableSink;
use leasehold::sync::Sink;
use leasehold::sync::follower::Follower;
use leasehold::sync::hub::Hub;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use ends::{Applied, Counting, follow, follower, serve};
use mtls::Mtls;

const REVOCATIONS: usize = 100;
const BURST: usize = 10_000;
const MILLION: usize = 1_000_000;

/// Live grants of the backend that all sidecars share; ends of others are told all the same.
const GRANTS: usize = 500;

fn backend() -> BackendName {
    BackendName::new("rabbitmq").unwrap()
}

fn grant_id(number: usize) -> GrantId {
    GrantId::new(&format!("grt_{number:020}")).unwrap()
}

/// Each principal holds one grant, as a CI job or an agent does.
fn grants(count: usize) -> StatedGrants {
    let resource = ResourcePattern::new("vhosts/prod/queues/orders-*").unwrap();
    let actions = ["queue.delete", "queue.purge"].map(|action| ActionPattern::new(action).unwrap());
    let scope = Arc::new(Scope::new(actions.to_vec(), vec![resource]));
    let grant = |number: usize| Grant {
        id: grant_id(number),
        principal: Principal::spiffe(&format!("spiffe://prod.example/ns/pay/sa/bot-{number:07}")).unwrap(),
        backend: backend(),
        scope: Arc::clone(&scope),
        window: Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX },
        uses_max: None,
        task: None,
    };
    (0..count).map(|number| StatedGrant { grant: grant(number), state: GrantState::Active }).collect()
}

fn end(number: usize) -> Change {
    Change::End { id: grant_id(number), backend: backend(), state: GrantState::Revoked }
}

/// Time that a thread of this process ran, in all (`/proc/…/schedstat`).
fn ran(thread: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = status.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

struct Percentiles(Vec<Duration>);

impl Percentiles {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    fn at(&self, share: usize) -> String {
        let found = self.0[(self.0.len() * share / 100).min(self.0.len() - 1)];
        format!("{:.1}", found.as_secs_f64() * 1_000.0)
    }
}

/// Waits until every sidecar holds `revision`; when each did.
async fn everybody(
    applied: &mut mpsc::UnboundedReceiver<Applied>,
    revision: Revision,
    sidecars: usize,
) -> Vec<Instant> {
    let mut times = Vec::with_capacity(sidecars);
    while times.len() < sidecars {
        let seen = applied.recv().await.unwrap();
        if seen.revision >= revision && seen.before < revision {
            times.push(seen.at);
        }
    }
    times
}

struct House {
    hub: Arc<Hub>,
    server_thread: i32,
    address: std::net::SocketAddr,
    mtls: Arc<Mtls>,
    stop: CancellationToken,
}

impl House {
    fn build(hub: &Arc<Hub>) -> Self {
        let (mtls, stop) = (Arc::new(Mtls::new()), CancellationToken::new());
        let (said, told) = std::sync::mpsc::channel();
        let (serving, ending, of) = (Arc::clone(&mtls), stop.clone(), Arc::clone(hub));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                said.send((thread, listener.local_addr().unwrap())).unwrap();
                serve(listener, &serving, of, ending).await;
            });
        });
        let (server_thread, address) = told.recv().unwrap();
        Self { hub: Arc::clone(hub), server_thread, address, mtls, stop }
    }
}

/// Proves the hub's view ten times a second, as reading the store does.
fn prove(hub: &Arc<Hub>, clock: &Arc<dyn Clock>, stop: &CancellationToken) {
    let (hub, clock, stop) = (Arc::clone(hub), Arc::clone(clock), stop.clone());
    std::thread::spawn(move || {
        while !stop.is_cancelled() {
            hub.prove(clock.now().uptime);
            std::thread::park_timeout(Duration::from_millis(100));
        }
    });
}

async fn ends_to(house: &House, sidecars: usize) {
    let (sender, mut applied) = mpsc::unbounded_channel();
    let began = Instant::now();
    let followers: Vec<_> = (0..sidecars).map(|n| (follower(n), Arc::new(Counting::new(sender.clone())))).collect();
    let clients = connect(house, &followers);
    let head = house.hub.head().unwrap();
    everybody(&mut applied, head, sidecars).await;
    println!("{sidecars} streams opened, subscribed and filled in {:.2} s", began.elapsed().as_secs_f64());

    let (mut all, mut last) = (Vec::new(), Vec::new());
    let ran_before = ran(house.server_thread);
    for number in 0..REVOCATIONS {
        let revision = Revision(house.hub.head().unwrap().0 + 1);
        let began = Instant::now();
        house.hub.advance(revision, vec![end(number)]).unwrap();
        let took = everybody(&mut applied, revision, sidecars).await;
        let took: Vec<Duration> = took.into_iter().map(|at| at.duration_since(began)).collect();
        last.push(took.iter().max().copied().unwrap());
        all.extend(took);
    }
    let cost = (ran(house.server_thread) - ran_before) / u32::try_from(REVOCATIONS * sidecars).unwrap();
    let (all, last) = (Percentiles::of(all), Percentiles::of(last));
    println!("\n| one revocation to {sidecars} sidecars, in force | p50 ms | p99 ms | longest ms |\n|---|---|---|---|");
    println!("| each sidecar | {} | {} | {} |", all.at(50), all.at(99), all.at(100));
    println!("| the last sidecar | {} | {} | {} |", last.at(50), last.at(99), last.at(100));
    println!("\nserver CPU for each delivery, its acknowledgement included: {:.1} µs", cost.as_secs_f64() * 1e6);

    let began = Instant::now();
    let mut revision = house.hub.head().unwrap();
    for number in 0..BURST {
        revision = Revision(revision.0 + 1);
        house.hub.advance(revision, vec![end(REVOCATIONS + number)]).unwrap();
    }
    everybody(&mut applied, revision, sidecars).await;
    println!("{BURST} revocations, in force at all of them in {:.2} s", began.elapsed().as_secs_f64());

    storm(house, clients, &followers, applied).await;
}

type Sidecars = [(Arc<Mutex<Follower>>, Arc<Counting>)];

fn connect(house: &House, followers: &Sidecars) -> Vec<tokio::task::JoinHandle<()>> {
    let one = |(follower, sink): &(Arc<Mutex<Follower>>, Arc<Counting>)| {
        let (mtls, follower, sink) = (Arc::clone(&house.mtls), Arc::clone(follower), Arc::clone(sink));
        tokio::spawn(follow(house.address, mtls, follower, sink, house.stop.clone()))
    };
    followers.iter().map(one).collect()
}

/// Everybody loses the connection at once and comes back with what it holds.
async fn storm(
    house: &House,
    clients: Vec<tokio::task::JoinHandle<()>>,
    followers: &Sidecars,
    mut applied: mpsc::UnboundedReceiver<Applied>,
) {
    for client in &clients {
        client.abort();
    }
    for client in clients {
        let _ = client.await;
    }
    let began = Instant::now();
    drop(connect(house, followers));
    let (revision, sidecars) = (Revision(house.hub.head().unwrap().0 + 1), followers.len());
    house.hub.advance(revision, vec![end(REVOCATIONS + BURST)]).unwrap();
    everybody(&mut applied, revision, sidecars).await;
    let took = began.elapsed().as_secs_f64();
    println!("{sidecars} lost their streams; all are back and have the next revocation in force in {took:.2} s");
}

async fn million(clock: &Arc<dyn Clock>, count: usize) {
    let hub = Arc::new(Hub::new(Arc::clone(clock)));
    let house = House::build(&hub);
    hub.replace(Snapshot { revision: Revision(1), grants: grants(count), locks: Vec::new() }).unwrap();
    let before = resident_bytes();
    let decider = Decider::new(Arc::clone(clock), Duration::from_secs(3_600), 1);
    let (sender, mut applied) = mpsc::unbounded_channel();
    let table = Arc::new(Counting::over(sender, TableSink::new(Arc::clone(&decider))));
    let began = Instant::now();
    let stop = house.stop.clone();
    tokio::spawn(follow(house.address, Arc::clone(&house.mtls), follower(0), table, stop.clone()));
    everybody(&mut applied, Revision(1), 1).await;
    let took = began.elapsed().as_secs_f64();
    stop.cancel();
    let bytes = resident_bytes().saturating_sub(before) / count;
    let held = decider.table().census(clock.now()).by_state[0];
    println!("\na snapshot of {held} grants into a sidecar's table: {took:.2} s; {bytes} B a grant at the sidecar");
}

static NUMBER: AtomicUsize = AtomicUsize::new(1_000);

fn main() {
    for word in std::env::args().skip(1) {
        if let Ok(number) = word.parse() {
            NUMBER.store(number, Ordering::Relaxed);
        }
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // The sidecars' thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // First, while the memory of this process is its own.
    runtime.block_on(million(&clock, MILLION));
    let hub = Arc::new(Hub::new(Arc::clone(&clock)));
    hub.replace(Snapshot { revision: Revision(1), grants: grants(GRANTS), locks: Vec::new() }).unwrap();
    let house = House::build(&hub);
    prove(&hub, &clock, &house.stop);
    runtime.block_on(ends_to(&house, NUMBER.load(Ordering::Relaxed)));
    house.stop.cancel();
}

/// The backends of every sidecar here.
fn backends() -> BTreeSet<BackendName> {
    BTreeSet::from([backend()])
}
