//! Machines of the world: clocks, servers, followers.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{GrantId, Revision};
use leasehold::domain::time::{Clock, Now, Timestamp, Uptime};
use leasehold::domain::view::{Change, Snapshot};
use leasehold::sidecar::decide::Decider;
use leasehold::sidecar::sync::sink::TableSink;
use leasehold::sync::follower::{About, Follower};
use leasehold::sync::hub::Hub;
use leasehold::sync::{Bundle, Sink};

use crate::net::Connection;
use crate::random::Random;

/// How long a sidecar serves without evidence.
pub const STALENESS_MAX: Duration = Duration::from_secs(3);

/// A machine's clocks: the world's time since it started, and a wall clock that is stepped.
#[derive(Debug)]
pub struct MachineClock {
    world: Arc<AtomicI64>,
    started: i64,
    step: AtomicI64,
}

impl MachineClock {
    pub fn new(world: &Arc<AtomicI64>, random: &mut Random) -> Arc<Self> {
        // No two machines started at once: their readings have nothing to do with each other.
        let started = -random.between(0, 1_000_000_000_000);
        Arc::new(Self { world: Arc::clone(world), started, step: AtomicI64::new(0) })
    }

    pub fn step_wall(&self, micros: i64) {
        self.step.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Now {
        let world = self.world.load(Ordering::SeqCst);
        Now {
            wall: Timestamp::from_micros(1_800_000_000_000_000 + world + self.step.load(Ordering::SeqCst)),
            uptime: Uptime::from_micros(world - self.started),
        }
    }
}

/// A sidecar's sink, and which bundles it holds.
#[derive(Debug)]
pub struct Probe {
    table: TableSink,
    decider: Arc<Decider>,
    /// Grants that ended ahead of their turn.
    ended: Mutex<HashSet<GrantId>>,
    pub bundles: Mutex<BTreeMap<String, String>>,
}

impl Sink for Probe {
    fn replace(&self, snapshot: Snapshot) -> Result<(), String> {
        let ended = self.ended.lock().unwrap();
        // An older one is refused by the table.
        let counts = snapshot.revision >= self.decider.table().revision();
        for stated in snapshot.grants.iter().filter(|_| counts).filter(|stated| stated.state == GrantState::Active) {
            assert!(!ended.contains(stated.id.as_str()), "{} is stated again by a snapshot", stated.id);
        }
        self.table.replace(snapshot)
    }

    fn advance(&self, to: Revision, changes: Vec<Change>) -> Result<(), String> {
        let ended = self.ended.lock().unwrap();
        for change in &changes {
            let Change::Grant(grant) = change else { continue };
            assert!(!ended.contains(&grant.id), "{} is stated again by a delta", grant.id);
        }
        self.table.advance(to, changes)
    }

    fn hurry(&self, ahead: Vec<(Revision, Change)>) {
        let ends = ahead.iter().filter_map(|(_, change)| match change {
            Change::End { id, .. } => Some(id.clone()),
            _ => None,
        });
        self.ended.lock().unwrap().extend(ends);
        self.table.hurry(ahead);
    }

    fn bundle(&self, bundle: Bundle) -> Result<(), String> {
        self.bundles.lock().unwrap().insert(bundle.name.to_string(), bundle.digest.to_string());
        Ok(())
    }

    fn prove(&self, at: Uptime) {
        self.table.prove(at);
    }
}

/// Whatever follows a server.
pub struct Client {
    pub follower: Follower,
    pub connection: Option<Connection>,
    pub next_ping: i64,
    pub retry_at: i64,
    pub last_proof: i64,
    pub paused_until: i64,
}

impl Client {
    pub fn new(about: About) -> Self {
        Self {
            follower: Follower::new(about),
            connection: None,
            next_ping: 0,
            retry_at: 0,
            last_proof: 0,
            paused_until: 0,
        }
    }
}

pub struct Sidecar {
    pub name: String,
    pub clock: Arc<MachineClock>,
    pub decider: Arc<Decider>,
    pub sink: Arc<Probe>,
    pub client: Client,
}

impl Sidecar {
    pub fn new(name: &str, boot: u64, about: &About, clock: &Arc<MachineClock>) -> Self {
        let shared: Arc<dyn Clock> = Arc::<MachineClock>::clone(clock);
        let decider = Decider::new(shared, STALENESS_MAX, 1);
        let table = TableSink::new(Arc::clone(&decider));
        let sink = Probe { table, decider: Arc::clone(&decider), ended: Mutex::default(), bundles: Mutex::default() };
        let about = About { boot_id: format!("boot-{boot}"), ..about.clone() };
        let (clock, client) = (Arc::clone(clock), Client::new(about));
        Self { name: name.to_owned(), clock, decider, sink: Arc::new(sink), client }
    }
}

/// A read of the store that is under way.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub asked: Uptime,
    pub looks_at: i64,
    pub done_at: i64,
}

/// A control plane, or a relay.
pub struct Server {
    pub clock: Arc<MachineClock>,
    pub hub: Arc<Hub>,
    pub paused_until: i64,
    /// How far a control plane has read the store.
    pub read: Option<Revision>,
    pub reading: Option<(Reading, Revision)>,
    pub next_read: i64,
    pub blind_until: i64,
    /// A relay's own end of a stream.
    pub upstream: Option<Client>,
}

impl Server {
    pub fn new(clock: &Arc<MachineClock>, about: Option<About>) -> Self {
        let shared: Arc<dyn Clock> = Arc::<MachineClock>::clone(clock);
        Self {
            clock: Arc::clone(clock),
            hub: Arc::new(Hub::new(shared)),
            paused_until: 0,
            read: None,
            reading: None,
            next_read: 0,
            blind_until: 0,
            upstream: about.map(Client::new),
        }
    }
}
