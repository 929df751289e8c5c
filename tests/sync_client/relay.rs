//! A hub that is filled from another server's: what holds for one holds for a chain of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold::app::clock::SystemClock;
use leasehold::config::parse_relay_with;
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{BackendName, GrantId, Revision};
use leasehold::domain::principal::Principal;
use leasehold::domain::time::{Clock, Timestamp};
use leasehold::domain::view::Change;
use leasehold::sync::GrantSource;
use leasehold::sync::client::{Address, Servers, Upstreams, Use};
use leasehold::sync::follower::About;
use leasehold::sync::hub::Hub;
use leasehold::sync::relay::Relay;
use leasehold::sync::stream::Stream;
use leasehold::wire::v1;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::common::wait_for;
use crate::follow::{Follows, end, grant, snapshot};
use crate::server::Server;
use crate::sidecar::Fleet;

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
fn a_relay_does_not_say_of_itself_what_only_those_behind_it_know() {
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

/// The same relay as the program runs it, from its configuration.
#[test]
fn a_configured_relay_follows_and_stops() {
    let fleet = Fleet::start(1);
    fleet.state(|| snapshot(7, &["g1"]));
    let folder = tempfile::tempdir().unwrap();
    let held = fleet.authority.sidecar();
    for (name, text) in [("a.crt", &held.certificate), ("a.key", &held.key), ("ca.pem", &fleet.authority.pem)] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let text = format!(
        "relay:
  upstream: {{addresses: ['https://{}'], tls: {{certificate: a.crt, key: a.key, ca: ca.pem}}}}
  trust_domain: test.example
  tls: {{certificate: a.crt, key: a.key, client_ca: ca.pem}}
  backends: [shop]
  sidecars: ['spiffe://test.example/*']
",
        fleet.servers[0].address
    );
    let config = parse_relay_with(&text, &folder.path().join("relay.yaml"), &|_| None).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let following = runtime.block_on(leasehold::app::relay::follow(&config)).unwrap();
    assert_eq!(following.hub.head(), Some(Revision(7)));
    assert!(following.status.is_connected());
    runtime.block_on(following.stop());
    wait_for("its stream to end", || {
        fleet.servers[0].hub.sessions().iter().all(|session| !session.is_connected()).then_some(())
    });
}

#[test]
fn uses_are_taken_and_told_through_a_relay() {
    let origin = Server::start(None);
    origin.manner.uses_max.store(1, Ordering::SeqCst);
    origin.state(snapshot(1, &["g1"]));
    let between = Between::start(&origin, LONG);
    wait_for("the relay's stream", || origin.hub.sessions().first().cloned());
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
