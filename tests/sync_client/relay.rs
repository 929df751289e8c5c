//! A hub that is filled from another server's: what holds for one holds for a chain of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold::action_map::BackendBundle;
use leasehold::app::clock::SystemClock;
use leasehold::app::relay::{RunningRelay, start_relay};
use leasehold::config::parse_relay_with;
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{BackendName, GrantId, Revision};
use leasehold::domain::principal::Principal;
use leasehold::domain::time::{Clock, Timestamp};
use leasehold::domain::view::Change;
use leasehold::sync::client::{Address, Servers, Upstreams, Use};
use leasehold::sync::follower::About;
use leasehold::sync::hub::Hub;
use leasehold::sync::relay::Relay;
use leasehold::sync::stream::Stream;
use leasehold::sync::{GrantSource, Sink};
use leasehold::wire::v1;
use rcgen::SanType;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::common::wait_for;
use crate::counted::counted;
use crate::follow::{Follows, end, grant, snapshot};
use crate::maps::say;
use crate::server::Server;
use crate::sidecar::{self, Fleet, granted};

/// A server whose hub follows another server.
struct Between {
    server: Server,
    relay: Arc<Relay>,
    stop: CancellationToken,
    runtime: Option<Runtime>,
}

impl Between {
    fn start(origin: &Server, staleness_max: Duration) -> Self {
        let server = Server::relaying();
        let addresses = vec![Address { host: "127.0.0.1".to_owned(), port: origin.address.port() }];
        let relay = Arc::new(Relay::new(Upstreams::open(Servers { addresses, tls: None }).unwrap()));
        let about = About {
            backends: [BackendName::new("shop").unwrap()].into(),
            action_maps: [BackendName::new("shop").unwrap()].into(),
            boot_id: "r1".to_owned(),
            version: "0".to_owned(),
            staleness_max: Some(staleness_max),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let source = {
            let _inside = runtime.enter();
            relay.source(&server.hub, about, (staleness_max, Duration::ZERO))
        };
        runtime.spawn(Box::new(source).follow(stop.clone(), Box::new(|| {})));
        Self { server, relay, stop, runtime: Some(runtime) }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn ends_and_evidence_pass_through_and_silence_at_the_origin_is_silence_everywhere() {
    let origin = Server::start(None);
    origin.state(snapshot(4, &["g1", "g2"]));
    let near = Between::start(&origin, SHORT);
    let far = Between::start(&near.server, SHORT);
    let follows = Follows::start(&[&far.server], SHORT);
    follows.fresh();
    assert_eq!(follows.decider.table().revision(), Revision(4));
    origin.change(end("g1"));
    follows.has("g1", GrantState::Revoked);
    origin.change(Change::Grant(Box::new(grant("g3"))));
    follows.has("g3", GrantState::Active);
    far.server.enforced();

    // All streams stay open; only the origin proves nothing any more.
    origin.manner.deaf.store(true, Ordering::SeqCst);
    follows.stale();
    origin.manner.deaf.store(false, Ordering::SeqCst);
    follows.fresh();

    origin.kill();
    follows.stale();
}

#[test]
fn a_relay_says_that_an_end_is_enforced_once_all_behind_it_say_so() {
    let origin = Server::start(None);
    origin.state(snapshot(1, &["g1"]));
    let between = Between::start(&origin, LONG);
    let follows = Follows::start(&[&between.server], LONG);
    follows.fresh();
    between.server.manner.mute.store(true, Ordering::SeqCst);
    origin.change(end("g1"));
    wait_for("the relay to know", || (between.server.hub.head() == Some(Revision(2))).then_some(()));
    assert_eq!(follows.state("g1"), Some(GrantState::Active));
    assert!(origin.hub.settle().is_empty(), "an end that is not enforced is not called so");
    between.server.manner.mute.store(false, Ordering::SeqCst);
    origin.enforced();
    assert_eq!(follows.state("g1"), Some(GrantState::Revoked));
}

#[test]
fn maps_pass_through_a_relay_to_who_wants_them() {
    let origin = Server::start(None);
    let nothing = || BackendBundle::default().pack();
    say(&origin, "shop", 1, nothing());
    say(&origin, "bank", 1, nothing());
    origin.state(snapshot(1, &["g1"]));
    let between = Between::start(&origin, LONG);
    wait_for("the relay to know", || (between.server.hub.head() == Some(Revision(1))).then_some(()));
    assert_eq!(origin.manner.subscribed.lock().unwrap()[0].action_maps, ["shop"]);
    let told = |action_maps: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (backends, action_maps) = (names(&["shop", "bank"]), names(action_maps));
        let subscribe = v1::Subscribe { backends, action_maps, staleness_max_ms: 1_000, ..v1::Subscribe::default() };
        let (hub, who) = (&between.server.hub, Principal::parse("spiffe://test.example/sidecar").unwrap());
        let mut stream = Stream::open(Arc::clone(hub), who, subscribe, |_, _| true).unwrap();
        let frames = std::iter::from_fn(|| stream.next(hub.clock().now())?.frame);
        let bundles = frames.filter_map(|frame| match frame {
            v1::server_frame::Frame::Bundle(bundle) => Some(bundle.name),
            _ => None,
        });
        bundles.collect::<Vec<_>>()
    };
    assert_eq!((told(&["shop", "bank"]), told(&["bank"])), (vec!["backend/shop".to_owned()], vec![]));
}

#[test]
fn nobody_follows_a_relay_who_would_serve_longer_than_it_is_counted_on_to() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let hub = Arc::new(Hub::of_relay(clock, LONG));
    let who = Principal::parse("spiffe://test.example/sidecar").unwrap();
    for (staleness_max_ms, may) in [(30_000, true), (3_000, true), (30_001, false), (0, false)] {
        let subscribe = v1::Subscribe { staleness_max_ms, ..v1::Subscribe::default() };
        let opened = Stream::open(Arc::clone(&hub), who.clone(), subscribe, |_, _| true);
        assert_eq!(opened.is_ok(), may, "{staleness_max_ms}");
    }
}

#[test]
fn behind_a_relay_the_origins_clock_counts_where_it_is_ahead() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let hub = Arc::new(Hub::of_relay(Arc::clone(&clock), LONG));
    hub.replace(snapshot(1, &["g1"])).unwrap();
    hub.ahead(Duration::from_secs(100));
    let who = Principal::parse("spiffe://test.example/sidecar").unwrap();
    let subscribe = v1::Subscribe { staleness_max_ms: 3_000, ..v1::Subscribe::default() };
    let mut stream = Stream::open(Arc::clone(&hub), who, subscribe, |_, _| true).unwrap();
    let ping = v1::ClientFrame { frame: Some(v1::client_frame::Frame::Ping(v1::Ping { nonce: 1 })) };
    stream.take(ping, clock.now().uptime).unwrap();
    let before = clock.now();
    hub.prove(before.uptime);
    let said: Vec<_> = std::iter::from_fn(|| stream.next(clock.now())).collect();
    let Some(v1::server_frame::Frame::Pong(pong)) = &said.last().unwrap().frame else { panic!("{said:?}") };
    assert!(pong.server_time >= before.wall.plus(Duration::from_secs(100)).as_micros());
}

/// A relay as the program runs it, in a folder of its own.
struct Running {
    relay: Option<RunningRelay>,
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start(fleet: &Fleet, sidecars: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (held, server) =
            (fleet.authority.sidecar(), fleet.authority.held(SanType::IpAddress([127, 0, 0, 1].into())));
        for (name, text) in [
            ("a.crt", &held.certificate),
            ("a.key", &held.key),
            ("ca.pem", &fleet.authority.pem),
            ("s.crt", &server.certificate),
            ("s.key", &server.key),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let text = format!(
            "relay:
  upstream: {{addresses: ['https://{}'], tls: {{certificate: a.crt, key: a.key, ca: ca.pem}}}}
  address: 127.0.0.1:0
  trust_domain: test.example
  tls: {{certificate: s.crt, key: s.key, client_ca: ca.pem}}
  backends: [shop]
  sidecars: ['{sidecars}']
",
            fleet.servers[0].address
        );
        let config = parse_relay_with(&text, &folder.path().join("relay.yaml"), &|_| None).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let relay = runtime.block_on(start_relay(&config)).unwrap();
        Self { relay: Some(relay), runtime, _folder: folder }
    }

    fn relay(&self) -> &RunningRelay {
        self.relay.as_ref().unwrap()
    }

    fn stop(mut self) {
        self.runtime.block_on(self.relay.take().unwrap().stop());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.relay.take());
    }
}

#[test]
fn a_sidecar_behind_a_relay_serves_as_one_beside_the_control_plane() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| sidecar::snapshot(7, vec![counted("g1", 2), granted("g2", "upload", "upload")]));
    fleet.servers[0].manner.uses_max.store(2, Ordering::SeqCst);
    let running = Running::start(&fleet, "spiffe://test.example/*");
    assert_eq!(running.relay().hub().head(), Some(Revision(7)));
    // The sidecar knows of the relay alone.
    let origin = fleet.servers.remove(0);
    fleet.others = vec![running.relay().address()];
    let world = fleet.sidecar(|_| {}, "");
    let call = || world.call("GET", "/allowed/a");
    assert_eq!([call().status, call().status, call().status], [200, 200, 403]);
    assert_eq!(world.call("POST", "/upload").status, 200);
    origin.change(sidecar::end("g2", GrantState::Revoked));
    origin.enforced();
    assert_eq!(world.call("POST", "/upload").status, 403, "what is called enforced is");
    world.stop();
    running.stop();
    let told =
        wait_for("the uses", || Some(origin.manner.activity.lock().unwrap().clone()).filter(|all| all.len() == 2));
    assert_eq!(told, [("g1".to_owned(), 2), ("g2".to_owned(), 1)].into());
}

#[test]
fn a_relay_is_followed_by_those_it_names() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| sidecar::snapshot(1, vec![granted("g1", "allowed.read", "**")]));
    let running = Running::start(&fleet, "spiffe://test.example/other");
    let _origin = fleet.servers.remove(0);
    fleet.others = vec![running.relay().address()];
    let world = fleet.sidecar(|_| {}, "  first_view: 500ms");
    assert_eq!(world.call("GET", "/allowed/a").json()["reason"], "stale_source");
    assert!(running.relay().hub().sessions().is_empty());
}

#[test]
fn uses_are_taken_and_told_through_a_relay() {
    let origin = Server::start(None);
    origin.manner.uses_max.store(1, Ordering::SeqCst);
    origin.state(snapshot(1, &["g1"]));
    let between = Between::start(&origin, LONG);
    // That the origin knows of the stream does not mean that the relay does.
    wait_for("the relay's view", || between.server.hub.head());
    let id = GrantId::new("g1").unwrap();
    let runtime = between.runtime.as_ref().unwrap();
    let take = |use_id: &str| runtime.block_on(between.relay.consume(&id, use_id)).unwrap();
    assert_eq!([take("u1"), take("u1"), take("u2")], [Use::Taken, Use::Taken, Use::Exhausted]);
    between.relay.used(&id, Timestamp::from_seconds(5), 2);
    between.relay.used(&id, Timestamp::from_seconds(4), 1);
    between.stop.cancel();
    let told = wait_for("the uses", || origin.manner.activity.lock().unwrap().get("g1").copied());
    assert_eq!(told, 3);
    let refused = runtime.block_on(between.relay.enroll(bytes::Bytes::new(), "token".to_owned()));
    assert_eq!(refused.unwrap_err().message(), "not in this test");
}
