//! A whole sidecar that follows control planes over mTLS.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::grant::{Grant, GrantState};
use leasehold::domain::id::{LockId, Revision};
use leasehold::domain::lock::Lock;
use leasehold::domain::principal::Principal;
use leasehold::domain::resource::ResourcePattern;
use leasehold::domain::view::{Change, Snapshot, StatedGrant};

use crate::certificates::Authority;
use crate::common::backend::{Backend, Then};
use crate::common::client::Client;
use crate::common::issuer::ISSUER;
use crate::common::wait_for;
use crate::common::world::{Setup, World};
use crate::follow;
use crate::server::Server;

/// A grant of `ci-bot`.
pub fn granted(id: &str, action: &str, resource: &str) -> Grant {
    let scope = Scope::new(vec![ActionPattern::new(action).unwrap()], vec![ResourcePattern::new(resource).unwrap()]);
    let principal = Principal::token(ISSUER, "ci-bot").unwrap();
    Grant { principal, scope: Arc::new(scope), ..follow::grant(id) }
}

pub fn end(id: &str, state: GrantState) -> Change {
    let grant = granted(id, "*", "**");
    Change::End { id: grant.id, backend: grant.backend, state }
}

pub fn snapshot(revision: u64, grants: Vec<Grant>) -> Snapshot {
    let grants = grants.into_iter().map(|grant| StatedGrant { grant, state: GrantState::Active });
    Snapshot { revision: Revision(revision), grants: grants.collect(), locks: Vec::new() }
}

/// Servers, and a sidecar that may follow them.
pub struct Fleet {
    pub servers: Vec<Server>,
    pub authority: Authority,
    pub backend: Backend,
    /// Addresses where no server is.
    pub others: Vec<SocketAddr>,
}

impl Fleet {
    pub fn start(servers: usize) -> Self {
        let authority = Authority::new();
        let server = |_| Server::start(Some(authority.server([127, 0, 0, 1])));
        let servers = (0..servers).map(server).collect();
        Self { servers, authority, backend: shop(), others: Vec::new() }
    }

    pub fn state(&self, snapshot: impl Fn() -> Snapshot) {
        for server in &self.servers {
            server.state(snapshot());
        }
    }

    pub fn change(&self, change: &Change) {
        for server in &self.servers {
            server.change(change.clone());
        }
    }

    pub fn sidecar(&self, change: impl FnOnce(&mut Setup), more: &str) -> World {
        let held = self.authority.sidecar();
        let mut setup = Setup::new(self.backend.address);
        setup.files.extend([
            ("sidecar.crt".to_owned(), held.certificate),
            ("sidecar.key".to_owned(), held.key),
            ("control-ca.pem".to_owned(), self.authority.pem.clone()),
        ]);
        change(&mut setup);
        let addresses = self.servers.iter().map(|server| server.address).chain(self.others.iter().copied());
        let addresses: Vec<_> = addresses.map(|address| format!("'https://{address}'")).collect();
        let addresses = addresses.join(", ");
        let grants = format!(
            "grants:
  control:
    addresses: [{addresses}]
    tls: {{certificate: sidecar.crt, key: sidecar.key, ca: control-ca.pem}}
  {more}"
        );
        World::start_with(&setup, &grants)
    }
}

/// A backend that answers, and streams events without end.
fn shop() -> Backend {
    Backend::scripted(|seen, stream| {
        let answer: &[u8] = if seen.line().contains("/events") {
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n"
        };
        let _ = stream.write_all(answer);
        Then::Keep
    })
}

#[track_caller]
pub fn answers(world: &World, target: &str, status: u16, reason: &str) {
    wait_for(&format!("{status} {reason}"), || {
        let answer = world.call("GET", target);
        (answer.status == status && (status == 200 || answer.json()["reason"] == reason)).then_some(())
    });
}

const QUICK: &str = "staleness_max: 3s";

#[test]
fn a_call_passes_from_the_grant_to_its_end_and_an_open_stream_is_cut() {
    let fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![granted("g1", "event.watch", "events")]));
    let world = fleet.sidecar(|_| {}, "");
    assert_eq!(world.call("GET", "/allowed/a").json()["reason"], "out_of_scope");
    fleet.change(&Change::Grant(Box::new(granted("g2", "allowed.read", "allowed/**"))));
    answers(&world, "/allowed/a", 200, "");

    let mut stream = events(&world);
    fleet.change(&end("g1", GrantState::Revoked));
    let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
    assert!(rest.contains("\"reason\":\"revoked\""), "{rest}");
    answers(&world, "/allowed/a", 200, "");

    let lock = Lock {
        id: LockId::new("l1").unwrap(),
        principal: None,
        backend: None,
        action: None,
        resource: None,
        grant: None,
        task: None,
        message: "stop".to_owned(),
        expires_at: None,
    };
    fleet.change(&Change::Lock(Box::new(lock)));
    answers(&world, "/allowed/a", 403, "lock");
    fleet.change(&Change::Unlock(LockId::new("l1").unwrap()));
    answers(&world, "/allowed/a", 200, "");

    let metrics = String::from_utf8(world.admin("/metrics").body).unwrap();
    assert!(metrics.contains("leasehold_source_connected 1\n"), "{metrics}");
    assert!(metrics.contains("leasehold_source_reconnects_total 0\n"), "{metrics}");
    assert!(metrics.contains("leasehold_source_clock_offset_seconds "), "{metrics}");
    assert_eq!(world.admin("/status").json()["source"]["connected"], true);
    fleet.servers[0].enforced();
    let subscribed = fleet.servers[0].manner.subscribed.lock().unwrap()[0].clone();
    assert_eq!((subscribed.backends, subscribed.staleness_max_ms), (vec!["shop".to_owned()], 30_000));
}

/// A stream of events that runs.
pub fn events(world: &World) -> Client {
    let mut client = world.connect();
    client.send(&world.request("GET", "/events"));
    let head = String::from_utf8_lossy(&client.until(b"\r\n\r\n")).into_owned();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client
}

#[test]
fn without_a_view_it_starts_is_not_ready_and_denies_until_there_is_one() {
    let fleet = Fleet::start(1);
    let world = fleet.sidecar(|_| {}, "  first_view: 10ms");
    assert_eq!(world.call("GET", "/allowed/a").json()["reason"], "stale_source");
    wait_for("unreadiness", || (world.admin("/readyz").status == 503).then_some(()));
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "**")]));
    answers(&world, "/allowed/a", 200, "");
    wait_for("readiness", || (world.admin("/readyz").status == 200).then_some(()));
}

#[test]
fn when_no_server_is_left_everything_is_denied_and_what_runs_is_cut() {
    let mut fleet = Fleet::start(2);
    fleet.state(|| snapshot(1, vec![granted("g1", "*", "**")]));
    let world = fleet.sidecar(|_| {}, QUICK);
    answers(&world, "/allowed/a", 200, "");
    let mut stream = events(&world);
    for server in fleet.servers.drain(..) {
        server.kill();
    }
    let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
    assert!(rest.contains("\"reason\":\"stale_source\""), "{rest}");
    answers(&world, "/allowed/a", 503, "stale_source");
}

#[test]
fn where_it_is_asked_for_calls_pass_without_a_server_and_are_marked() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "allowed/**")]));
    let world = fleet.sidecar(|setup| setup.backend = "    on_stale: serve_until_expiry\n".to_owned(), QUICK);
    answers(&world, "/allowed/a", 200, "");
    let server = fleet.servers.remove(0);
    assert_eq!(server.manner.subscribed.lock().unwrap()[0].staleness_max_ms, 0, "no bound is claimed");
    server.kill();
    let marked = wait_for("a marked call", || {
        assert_eq!(world.call("GET", "/allowed/a").status, 200);
        world.records("call").into_iter().find(|call| call["stale"] == true)
    });
    assert_eq!((&marked["decision"], &marked["grant"]), (&"permit".into(), &"g1".into()));
    assert!(world.records("call")[0].get("stale").is_none());
    answers(&world, "/admin", 503, "stale_source");
}

#[test]
fn certificates_that_change_are_used_for_the_next_connection() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "**")]));
    let world = fleet.sidecar(|_| {}, QUICK);
    answers(&world, "/allowed/a", 200, "");
    // Another authority for both ends, and the server begins anew with what it signed.
    let old = fleet.servers.remove(0);
    let address = old.address;
    old.kill();
    let other = Authority::new();
    let server = Server::start_at(address, Some(other.server([127, 0, 0, 1])));
    server.state(snapshot(2, vec![granted("g2", "upload", "**")]));
    answers(&world, "/allowed/a", 503, "stale_source");
    assert!(server.manner.subscribed.lock().unwrap().is_empty(), "nobody is believed who is not signed for");
    // A file that is broken changes nothing.
    std::fs::write(world.path("control-ca.pem"), "nonsense").unwrap();
    let held = other.sidecar();
    std::fs::write(world.path("sidecar.crt"), &held.certificate).unwrap();
    std::fs::write(world.path("sidecar.key"), &held.key).unwrap();
    std::fs::write(world.path("control-ca.pem"), &other.pem).unwrap();
    answers(&world, "/allowed/a", 403, "revoked");
    assert_eq!(*server.manner.shown.lock().unwrap(), [held.der]);
}

/// Somebody who listens and is no server: says this to whoever comes, and no more.
pub fn nobody(says: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(says);
            held.push(stream);
        }
    });
    address
}

#[test]
fn addresses_where_no_server_is_cost_a_while_and_nothing_else() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "allowed/**")]));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fleet.others = vec![nobody(b""), nobody(b"HTTP/1.1 200 OK\r\n\r\n\0\xff\x16\x03"), closed];
    let world = fleet.sidecar(|_| {}, "");
    answers(&world, "/allowed/a", 200, "");
}

#[test]
fn a_server_of_another_name_is_not_believed() {
    let mut fleet = Fleet::start(0);
    fleet.servers.push(Server::start(Some(fleet.authority.server([127, 0, 0, 2]))));
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "**")]));
    let world = fleet.sidecar(|_| {}, "  first_view: 300ms");
    assert_eq!(world.call("GET", "/allowed/a").json()["reason"], "stale_source");
    assert!(fleet.servers[0].manner.subscribed.lock().unwrap().is_empty());
    assert!(!fleet.servers[0].manner.refuse.load(Ordering::SeqCst));
}
