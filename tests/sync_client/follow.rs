//! A source of grants over the network, without a sidecar around it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold::app::clock::SystemClock;
use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::arguments::ArgumentDigest;
use leasehold::domain::grant::{Grant, GrantState};
use leasehold::domain::id::{BackendName, GrantId, Revision};
use leasehold::domain::principal::Principal;
use leasehold::domain::resource::ResourcePattern;
use leasehold::domain::time::{Clock, Timestamp, Window};
use leasehold::domain::view::{Change, Snapshot, StatedGrant};
use leasehold::sidecar::decide::Decider;
use leasehold::sidecar::sync::sink::TableSink;
use leasehold::sync::client::{Address, ControlSource, Servers, Status, Upstreams};
use leasehold::sync::follower::About;
use leasehold::sync::hub::Hub;
use leasehold::sync::stream::Stream;
use leasehold::sync::{GrantSource, Sink};
use leasehold::wire::v1;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::common::wait_for;
use crate::server::Server;

pub fn grant(id: &str) -> Grant {
    Grant {
        id: GrantId::new(id).unwrap(),
        principal: Principal::token("https://idp.test", "ci-bot").unwrap(),
        backend: BackendName::new("shop").unwrap(),
        scope: Arc::new(Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()])),
        window: Window {
            not_before: Timestamp::from_seconds(0),
            expires_at: SystemClock::new().now().wall.plus(Duration::from_secs(3_600)),
        },
        uses_max: None,
        task: None,
    }
}

pub fn snapshot(revision: u64, grants: &[&str]) -> Snapshot {
    let grants = grants.iter().map(|id| StatedGrant { grant: grant(id), state: GrantState::Active });
    Snapshot { revision: Revision(revision), grants: grants.collect(), locks: Vec::new() }
}

pub fn end(id: &str) -> Change {
    let grant = grant(id);
    Change::End { id: grant.id, backend: grant.backend, state: GrantState::Revoked }
}

/// A table that follows servers.
pub struct Follows {
    pub decider: Arc<Decider>,
    pub status: Arc<Status>,
    runtime: Option<Runtime>,
}

impl Follows {
    pub fn start(servers: &[&Server], staleness_max: Duration) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let decider = Decider::new(Arc::clone(&clock), staleness_max, 1);
        let address = |server: &&Server| Address { host: "127.0.0.1".to_owned(), port: server.address.port() };
        let servers = Servers { addresses: servers.iter().map(address).collect(), tls: None };
        let about = About {
            backends: [BackendName::new("shop").unwrap()].into(),
            action_maps: [BackendName::new("shop").unwrap()].into(),
            boot_id: "b1".to_owned(),
            version: "0".to_owned(),
            staleness_max: Some(staleness_max),
        };
        let sink = Arc::new(TableSink::new(Arc::clone(&decider)));
        let upstreams = Upstreams::open(servers).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut source = {
            let _inside = runtime.enter();
            ControlSource::new(upstreams, about, sink, clock, (staleness_max, Duration::from_millis(1)))
        };
        let status = source.status();
        runtime.block_on(async { source.first().await }).unwrap();
        runtime.spawn(Box::new(source).follow(CancellationToken::new(), Box::new(|| {})));
        Self { decider, status, runtime: Some(runtime) }
    }

    pub fn is_fresh(&self) -> bool {
        self.decider.freshness().is_fresh(self.decider.clock().now())
    }

    pub fn state(&self, id: &str) -> Option<GrantState> {
        let entry = self.decider.table().find(&GrantId::new(id).unwrap())?;
        Some(entry.state(self.decider.clock().now()))
    }

    #[track_caller]
    pub fn fresh(&self) {
        wait_for("a proved view", || self.is_fresh().then_some(()));
    }

    #[track_caller]
    pub fn stale(&self) {
        wait_for("a stale view", || (!self.is_fresh()).then_some(()));
    }

    #[track_caller]
    pub fn has(&self, id: &str, state: GrantState) {
        wait_for(&format!("{id} to be {state}"), || (self.state(id) == Some(state)).then_some(()));
    }
}

impl Drop for Follows {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn what_the_server_says_is_in_force_and_acknowledged() {
    let server = Server::start(None);
    server.state(snapshot(7, &["g1", "g2"]));
    let follows = Follows::start(&[&server], LONG);
    follows.fresh();
    assert_eq!(follows.decider.table().revision(), Revision(7));
    server.change(end("g1"));
    follows.has("g1", GrantState::Revoked);
    follows.has("g2", GrantState::Active);
    server.change(Change::Grant(Box::new(grant("g3"))));
    follows.has("g3", GrantState::Active);
    server.enforced();
    wait_for("an end to be counted as enforced", || server.hub.settle().into_iter().next());
    assert!(follows.status.is_connected() && follows.status.reconnects() == 0);
    assert!(follows.status.clock_offset_seconds().abs() < 1.0);
}

#[test]
fn a_server_that_knows_nothing_yet_proves_nothing() {
    let server = Server::start(None);
    let follows = Follows::start(&[&server], LONG);
    wait_for("a stream", || server.hub.sessions().first().cloned());
    assert!(!follows.is_fresh());
    server.state(snapshot(1, &["g1"]));
    follows.fresh();
    follows.has("g1", GrantState::Active);
}

#[test]
fn when_one_server_dies_the_other_goes_on_where_it_was() {
    let servers = [Server::start(None), Server::start(None)];
    for server in &servers {
        server.state(snapshot(3, &["g1", "g2"]));
    }
    let follows = Follows::start(&[&servers[0], &servers[1]], LONG);
    follows.fresh();
    follows.has("g1", GrantState::Active);
    let [first, second] = servers;
    let (mine, other) = if first.hub.sessions().is_empty() { (second, first) } else { (first, second) };
    for server in [&mine, &other] {
        server.change(end("g1"));
    }
    follows.has("g1", GrantState::Revoked);
    mine.kill();
    other.change(end("g2"));
    follows.has("g2", GrantState::Revoked);
    let subscribed = other.manner.subscribed.lock().unwrap().clone();
    assert_eq!(subscribed.last().unwrap().resume_revision, Some(4), "{subscribed:?}");
    assert_eq!(follows.status.reconnects(), 1);
}

#[test]
fn a_server_that_comes_back_is_followed_again() {
    let server = Server::start(None);
    server.state(snapshot(1, &["g1"]));
    let follows = Follows::start(&[&server], SHORT);
    follows.fresh();
    let address = server.address;
    server.kill();
    follows.stale();
    assert!(!follows.status.is_connected());
    let server = Server::start_at(address, None);
    server.state(snapshot(2, &[]));
    follows.fresh();
    follows.has("g1", GrantState::Revoked);
}

#[test]
fn a_stream_that_is_open_and_silent_is_left_for_another() {
    let (first, second) = (Server::start(None), Server::start(None));
    let servers = [&first, &second];
    for server in servers {
        server.state(snapshot(1, &["g1"]));
    }
    let follows = Follows::start(&servers, SHORT);
    follows.fresh();
    for silent in servers {
        silent.manner.mute.store(true, Ordering::SeqCst);
        let other = if std::ptr::eq(silent, &raw const first) { &second } else { &first };
        wait_for("the other to be followed", || other.hub.sessions().into_iter().find(|s| s.is_connected()));
        follows.fresh();
        silent.manner.mute.store(false, Ordering::SeqCst);
    }
}

#[test]
fn pings_that_are_not_answered_make_the_view_stale_though_the_stream_is_open() {
    let server = Server::start(None);
    server.state(snapshot(1, &["g1"]));
    let follows = Follows::start(&[&server], SHORT);
    follows.fresh();
    server.manner.deaf.store(true, Ordering::SeqCst);
    follows.stale();
    follows.has("g1", GrantState::Active);
    server.manner.deaf.store(false, Ordering::SeqCst);
    follows.fresh();
}

#[test]
fn a_refusal_is_no_end_and_no_beginning() {
    let server = Server::start(None);
    server.manner.refuse.store(true, Ordering::SeqCst);
    server.state(snapshot(1, &["g1"]));
    let follows = Follows::start(&[&server], SHORT);
    assert!(!follows.is_fresh());
    server.manner.refuse.store(false, Ordering::SeqCst);
    follows.fresh();
}

#[test]
fn a_process_that_connects_again_is_counted_with_the_evidence_it_had() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let hub = Arc::new(Hub::new(Arc::clone(&clock)));
    hub.replace(snapshot(1, &["g1"])).unwrap();
    let who = Principal::parse("spiffe://test.example/sidecar").unwrap();
    let subscribe = || v1::Subscribe {
        backends: vec!["shop".to_owned()],
        boot_id: "b1".to_owned(),
        staleness_max_ms: 30_000,
        ..v1::Subscribe::default()
    };
    let open = || Stream::open(Arc::clone(&hub), who.clone(), subscribe(), |_, _| true).unwrap();
    let mut first = open();
    let ping = v1::ClientFrame { frame: Some(v1::client_frame::Frame::Ping(v1::Ping { nonce: 1 })) };
    first.take(ping, clock.now().uptime).unwrap();
    hub.prove(clock.now().uptime);
    while first.next(clock.now()).is_some() {}
    let until = first.session().fresh_until();
    // The second comes before the first is known to be over: whoever asks is not told that nobody is there.
    let second = open();
    hub.advance(Revision(2), vec![end("g1")]).unwrap();
    assert!(hub.settle().is_empty());
    first.close(clock.now().uptime);
    assert!(hub.sessions().len() == 1 && second.session().fresh_until() >= until);
    assert!(hub.settle().is_empty());
    // And one that comes after it.
    second.close(clock.now().uptime);
    let third = open();
    assert!(hub.sessions().len() == 1 && third.session().fresh_until() >= until);
    assert!(hub.settle().is_empty());
}

#[test]
fn a_grant_for_one_call_stays_that_and_what_lost_it_on_the_way_is_no_grant() {
    let server = Server::start(None);
    server.state(snapshot(4, &["g1"]));
    let follows = Follows::start(&[&server], Duration::from_secs(30));
    follows.has("g1", GrantState::Active);
    let with = |id: &str, scope: Scope| Change::Grant(Box::new(Grant { scope: Arc::new(scope), ..grant(id) }));
    let digest = ArgumentDigest::from_bytes([7; 32]);
    let bound = Scope::clone(&grant("g2").scope).bound_to(Some(digest));
    // As somebody passes it on who does not know of arguments.
    let hollow = Scope::new(Vec::new(), vec![ResourcePattern::new("**").unwrap()]);
    server.change(with("g2", bound.clone()));
    server.change(with("g3", hollow.clone()));
    server.change(with("g4", bound.clone()));
    follows.has("g4", GrantState::Active);
    let find = |follows: &Follows, id: &str| follows.decider.table().find(&GrantId::new(id).unwrap());
    assert_eq!(find(&follows, "g2").unwrap().scope(), &bound);
    assert!(find(&follows, "g3").is_none());
    // Whoever is between learns of it, and now it is one.
    server.change(with("g3", bound.clone()));
    follows.has("g3", GrantState::Active);
    // What may be narrower than what is held ends it.
    server.change(with("g4", hollow));
    follows.has("g4", GrantState::Revoked);
    let late = Follows::start(&[&server], Duration::from_secs(30));
    late.has("g3", GrantState::Active);
    assert_eq!(find(&late, "g3").unwrap().scope(), &bound);
    assert!(find(&late, "g4").is_none());
}
