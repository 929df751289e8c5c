//! The world: who is in it, what goes wrong, and what must be true all the while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use leasehold::domain::id::{BackendName, Revision};
use leasehold::domain::time::{Clock, Uptime};
use leasehold::domain::view::Change;
use leasehold::sync::enforce::{Standing, standing};
use leasehold::sync::follower::About;
use leasehold::sync::hub::Hub;
use leasehold::sync::stream::Stream;
use leasehold::sync::{Bundle, Sink, bundle_of};
use leasehold::wire::v1::client_frame::Frame;

use crate::machine::{Client, MachineClock, Reading, STALENESS_MAX, Server, Sidecar};
use crate::net::Connection;
use crate::oracle::{BACKENDS, Oracle, Store, backend, lets_through};
use crate::random::Random;

const TICK: i64 = 20_000;
const STORM_TICKS: u32 = 1_000;
const CALM_TICKS: u32 = 500;
const SECOND: i64 = 1_000_000;
const CONTROL_PLANES: usize = 2;

pub struct World {
    random: Random,
    time: Arc<AtomicI64>,
    store: Store,
    servers: Vec<Server>,
    sidecars: Vec<Sidecar>,
    oracle: Oracle,
    boots: u64,
    /// What servers knew of sidecars when they died; control planes keep it in the store.
    gone: Vec<Arc<Hub>>,
    /// Whether frames are also repeated, swapped and lost.
    hostile: bool,
    stormy: bool,
}

fn about(random: &mut Random) -> About {
    let mut backends: BTreeSet<BackendName> = (0..BACKENDS).filter(|_| random.once_in(2)).map(backend).collect();
    backends.insert(backend(random.below(BACKENDS)));
    about_all(backends)
}

fn about_all(backends: BTreeSet<BackendName>) -> About {
    let action_maps = backends.clone();
    let (boot_id, version) = ("boot".to_owned(), "sim".to_owned());
    About { backends, action_maps, boot_id, version, staleness_max: Some(STALENESS_MAX) }
}

impl World {
    pub fn new(mut random: Random) -> Self {
        let time = Arc::new(AtomicI64::new(0));
        let mut servers: Vec<Server> =
            (0..CONTROL_PLANES).map(|_| Server::new(&MachineClock::new(&time, &mut random), None)).collect();
        if random.once_in(2) {
            let all = (0..BACKENDS).map(backend).collect();
            servers.push(Server::new(&MachineClock::new(&time, &mut random), Some(about_all(all))));
        }
        let sidecars = (0..4).map(|number| {
            let clock = MachineClock::new(&time, &mut random);
            Sidecar::new(&format!("sidecar-{number}"), number, &about(&mut random), &clock)
        });
        let sidecars = sidecars.collect();
        let hostile = random.once_in(3);
        let (store, oracle) = (Store::new(), Oracle::default());
        Self { random, time, store, servers, sidecars, oracle, boots: 100, gone: Vec::new(), hostile, stormy: true }
    }

    fn now(&self) -> i64 {
        self.time.load(Ordering::SeqCst)
    }

    pub fn storm(&mut self) {
        for _ in 0..STORM_TICKS {
            if self.random.once_in(4) {
                let now = self.now();
                self.store.work(now, &mut self.random);
            }
            self.fault();
            self.tick();
        }
    }

    /// Nothing goes wrong any more: soon everybody holds what is true.
    pub fn calm(&mut self) {
        self.stormy = false;
        for server in &mut self.servers {
            (server.paused_until, server.blind_until) = (0, 0);
            if let Some(client) = &mut server.upstream {
                soothe(client);
            }
        }
        for sidecar in &mut self.sidecars {
            soothe(&mut sidecar.client);
        }
        for _ in 0..CALM_TICKS {
            self.tick();
        }
        for sidecar in &self.sidecars {
            self.is_true(sidecar);
        }
    }

    fn is_true(&self, sidecar: &Sidecar) {
        let name = &sidecar.name;
        let backends = &sidecar.client.follower.about().backends;
        let mine = |of: &BackendName| backends.contains(of);
        let now = sidecar.clock.now();
        assert!(sidecar.decider.freshness().is_fresh(now), "{name} has no evidence in a calm world");
        let held = sidecar.decider.table().census(now).by_state[0];
        let there: Vec<_> = self.store.active.values().filter(|grant| mine(&grant.backend)).collect();
        assert_eq!(held, there.len(), "{name} holds another number of grants");
        let locks: Vec<_> = self.store.locks.values().map(|(_, lock)| lock).collect();
        for grant in there {
            let of = &grant.backend;
            let locked = locks.iter().any(|lock| {
                lock.grant.as_ref().is_none_or(|g| *g == grant.id) && lock.backend.as_ref().is_none_or(|b| b == of)
            });
            let outcome = lets_through(sidecar, &grant.id, of);
            let expected = if locked { Err("lock".to_owned()) } else { Ok(grant.id.clone()) };
            assert_eq!(outcome, expected, "{name}");
        }
        let my_locks = locks.iter().filter(|lock| lock.backend.as_ref().is_none_or(mine)).count();
        assert_eq!(
            sidecar.decider.table().locks().len(),
            my_locks,
            "{name} holds another number of locks, {:?} and not {locks:?}; hostile: {}",
            sidecar.decider.table().locks(),
            self.hostile
        );
        let bundles = sidecar.sink.bundles.lock().unwrap();
        let now_there = self.store.bundles_at(Revision(u64::MAX));
        for of in backends {
            let held = bundles.get(&*bundle_of(of));
            assert_eq!(held, now_there.get(of), "{name} has an old bundle of {of}");
        }
        assert_eq!(bundles.len(), backends.len(), "{name} was told of what is not its own");
    }

    fn fault(&mut self) {
        let now = self.now();
        let victim = self.random.index(self.sidecars.len());
        let server = self.random.index(self.servers.len());
        let long = self.random.between(0, 6 * SECOND);
        let clock = if self.random.once_in(2) { &self.servers[server].clock } else { &self.sidecars[victim].clock };
        match self.random.below(400) {
            0..10 => self.drop_connection(victim),
            10..16 => {
                if let Some(connection) = &mut self.sidecars[victim].client.connection {
                    connection.held_until = now + long;
                }
            }
            16..20 => self.sidecars[victim].client.paused_until = now + long,
            20..24 => self.servers[server].paused_until = now + long,
            24..28 => self.servers[server].blind_until = now + long,
            28..31 => self.restart_sidecar(victim),
            31..33 => self.restart_server(server),
            33..36 => clock.step_wall(self.random.between(-3_600 * SECOND, 3_600 * SECOND)),
            36..60 if self.hostile => {
                if let Some(connection) = &mut self.sidecars[victim].client.connection {
                    connection.to_client.spoil(&mut self.random);
                }
            }
            60..63 => {
                if let Some(connection) = self.servers[server].upstream.as_mut().and_then(|c| c.connection.as_mut()) {
                    connection.held_until = now + long;
                }
            }
            _ => {}
        }
    }

    fn drop_connection(&mut self, victim: usize) {
        if let Some(connection) = self.sidecars[victim].client.connection.take() {
            close(&connection, &self.servers);
        }
    }

    fn restart_sidecar(&mut self, victim: usize) {
        self.drop_connection(victim);
        self.boots += 1;
        let old = &self.sidecars[victim];
        let new = Sidecar::new(&old.name, self.boots, old.client.follower.about(), &old.clock);
        self.sidecars[victim] = new;
    }

    fn restart_server(&mut self, server: usize) {
        for victim in 0..self.sidecars.len() {
            if self.sidecars[victim].client.connection.as_ref().is_some_and(|c| c.server == server) {
                self.sidecars[victim].client.connection = None;
            }
        }
        for other in &mut self.servers {
            if let Some(client) = &mut other.upstream
                && client.connection.as_ref().is_some_and(|c| c.server == server)
            {
                client.connection = None;
            }
        }
        let old = &self.servers[server];
        let about = old.upstream.as_ref().map(|client| client.follower.about().clone());
        if let Some(connection) = old.upstream.as_ref().and_then(|client| client.connection.as_ref()) {
            close(connection, &self.servers);
        }
        let about = about.map(|about| About { boot_id: format!("{}x", about.boot_id), ..about });
        if server < CONTROL_PLANES {
            self.gone.push(Arc::clone(&self.servers[server].hub));
        }
        self.servers[server] = Server::new(&self.servers[server].clock, about);
    }

    fn tick(&mut self) {
        let now = self.time.fetch_add(TICK, Ordering::SeqCst) + TICK;
        for place in 0..self.servers.len() {
            self.read_store(place, now);
            if let Some(mut client) = self.servers[place].upstream.take() {
                let (hub, clock) = (Arc::clone(&self.servers[place].hub), Arc::clone(&self.servers[place].clock));
                client.paused_until = client.paused_until.max(self.servers[place].paused_until);
                let least = hub.enforced().unwrap_or_default();
                self.step(&mut client, &*hub, &clock, Some(least), now);
                self.servers[place].upstream = Some(client);
            }
        }
        for place in 0..self.sidecars.len() {
            let idle = Client::new(about_all(BTreeSet::new()));
            let mut client = std::mem::replace(&mut self.sidecars[place].client, idle);
            let (sink, clock) = (Arc::clone(&self.sidecars[place].sink), Arc::clone(&self.sidecars[place].clock));
            self.step(&mut client, &*sink, &clock, None, now);
            self.sidecars[place].client = client;
        }
        self.look(now);
    }

    /// A control plane reads the store: what it finds is what was there some time after it asked.
    fn read_store(&mut self, place: usize, now: i64) {
        let server = &mut self.servers[place];
        if place >= CONTROL_PLANES || server.paused_until > now || server.blind_until > now {
            return;
        }
        match server.reading.take() {
            None if server.next_read <= now => {
                let looks_at = now + self.random.between(0, 30_000);
                let done_at = looks_at + self.random.between(0, 60_000);
                let reading = Reading { asked: server.clock.now().uptime, looks_at, done_at };
                server.reading = Some((reading, Revision(0)));
            }
            Some((reading, _)) if reading.done_at <= now => {
                let target = self.store.head_at(reading.looks_at);
                for (of, digest) in self.store.bundles_at(target) {
                    let (digest, content) = (digest.into(), b"x"[..].into());
                    let bundle = Bundle { name: bundle_of(&of), digest, revision: target, content };
                    server.hub.bundle(bundle).unwrap();
                }
                match server.read {
                    Some(read) if read >= self.store.floor => {
                        let range = usize::try_from(read.0).unwrap()..usize::try_from(target.0).unwrap();
                        let mut to = read;
                        for some in self.store.changes[range].chunks(usize::try_from(1 + self.random.below(9)).unwrap())
                        {
                            to = Revision(to.0 + some.len() as u64);
                            let changes = some.iter().map(|(_, change)| change.clone()).collect();
                            server.hub.advance(to, changes).unwrap();
                        }
                    }
                    _ => server.hub.replace(self.store.snapshot(target)).unwrap(),
                }
                server.read = Some(target);
                server.hub.prove(reading.asked);
                server.next_read = now + 100_000;
            }
            reading => server.reading = reading,
        }
    }

    fn step(&mut self, client: &mut Client, sink: &dyn Sink, clock: &MachineClock, least: Option<Revision>, now: i64) {
        if client.connection.is_none() && client.retry_at <= now && client.paused_until <= now {
            // A relay follows control planes; sidecars follow whatever there is.
            let choices = if least.is_some() { CONTROL_PLANES } else { self.servers.len() };
            let mut connection = Connection::new(self.random.index(choices));
            let first = client.follower.subscribe();
            connection.to_server.send(now, &mut self.random, 40_000, first);
            (client.connection, client.next_ping, client.last_proof) = (Some(connection), now, now);
        }
        let Some(mut connection) = client.connection.take() else { return };
        if connection.held_until <= now && !self.serve(&mut connection, least.is_some(), now) {
            client.retry_at = now + self.random.between(0, SECOND);
            return;
        }
        if client.paused_until <= now && !self.follow(client, &mut connection, sink, clock, least, now) {
            close(&connection, &self.servers);
            client.retry_at = now + self.random.between(0, SECOND);
            return;
        }
        client.connection = Some(connection);
    }

    /// The server's end; whether it stays open.
    fn serve(&mut self, connection: &mut Connection, is_relay: bool, now: i64) -> bool {
        let server = &self.servers[connection.server];
        if server.paused_until > now {
            return true;
        }
        while let Some(frame) = connection.to_server.receive(now) {
            let uptime = server.clock.now().uptime;
            let outcome = match (&mut connection.stream, frame.frame) {
                (None, Some(Frame::Subscribe(subscribe))) => {
                    let name =
                        format!("spiffe://sim/{}/{}", if is_relay { "relay" } else { "sidecar" }, subscribe.boot_id);
                    let who = leasehold::domain::principal::Principal::spiffe(&name).unwrap();
                    Stream::open(Arc::clone(&server.hub), who, subscribe, |_, _| true)
                        .map(|stream| connection.stream = Some(stream))
                }
                (Some(stream), frame) => {
                    let frame = leasehold::wire::v1::ClientFrame { frame };
                    stream.take(frame, uptime).map(drop)
                }
                (None, _) => return false,
            };
            if outcome.is_err() {
                close(connection, &self.servers);
                return false;
            }
        }
        let Some(stream) = &mut connection.stream else { return true };
        while connection.to_client.len() < 6 {
            let Some(frame) = stream.next(server.clock.now()) else { break };
            let slowest = if self.stormy { 150_000 } else { 5_000 };
            connection.to_client.send(now, &mut self.random, slowest, frame);
        }
        true
    }

    /// The follower's end; whether it stays open.
    fn follow(
        &mut self,
        client: &mut Client,
        connection: &mut Connection,
        sink: &dyn Sink,
        clock: &MachineClock,
        least: Option<Revision>,
        now: i64,
    ) -> bool {
        let held_back = connection.held_until > now;
        while let Some(frame) = connection.to_client.receive(now).filter(|_| !held_back) {
            let is_pong = matches!(frame.frame, Some(leasehold::wire::v1::server_frame::Frame::Pong(_)));
            let Ok(taken) = client.follower.take(frame, sink) else { return false };
            if is_pong {
                client.last_proof = now;
            }
            if let Some(reply) = taken.reply {
                connection.to_server.send(now, &mut self.random, 40_000, reply);
            }
        }
        let ack = match least {
            Some(least) => client.follower.ack_up_to(least),
            None => client.follower.ack(),
        };
        if let Some(ack) = ack {
            connection.to_server.send(now, &mut self.random, 40_000, ack);
        }
        if client.next_ping <= now {
            client.next_ping = now + if least.is_some() { SECOND / 10 } else { SECOND / 2 };
            if let Some(ping) = client.follower.ping(clock.now().uptime) {
                connection.to_server.send(now, &mut self.random, 40_000, ping);
            }
        }
        now - client.last_proof < 2 * SECOND
    }

    fn look(&mut self, now: i64) {
        for sidecar in &self.sidecars {
            let backends = &sidecar.client.follower.about().backends;
            for _ in 0..3 {
                let late = self.random.once_in(2);
                let change = if late {
                    let len = self.store.changes.len();
                    len.checked_sub(1 + self.random.index(len.min(60))).map(|place| &self.store.changes[place])
                } else {
                    self.random.pick(&self.store.changes)
                };
                let (id, of) = match change {
                    Some((_, Change::Grant(grant))) => (&grant.id, &grant.backend),
                    Some((_, Change::End { id, backend, .. })) => (id, backend),
                    _ => continue,
                };
                if backends.contains(of) {
                    self.oracle.look(&self.store, sidecar, id, of, now);
                }
            }
        }
        self.check_bundles(now);
        self.check_reports();
    }

    /// Who lets anything through has a bundle that was in force within the bound.
    fn check_bundles(&self, now: i64) {
        let bound = i64::try_from(STALENESS_MAX.as_micros()).unwrap();
        for sidecar in &self.sidecars {
            if !sidecar.decider.freshness().is_fresh(sidecar.clock.now()) {
                continue;
            }
            let held = sidecar.sink.bundles.lock().unwrap();
            for of in &sidecar.client.follower.about().backends {
                let may_hold = self.store.bundles_since(of, self.store.head_at(now - bound));
                let holds = held.get(&*bundle_of(of)).map(String::as_str);
                assert!(holds.is_some_and(|holds| may_hold.contains(holds)), "{} has {holds:?} of {of}", sidecar.name);
            }
        }
    }

    /// What a hub says is enforced, is.
    fn check_reports(&self) {
        for (place, server) in self.servers.iter().enumerate() {
            for (revision, _) in server.hub.settle() {
                let index = usize::try_from(revision.0).unwrap() - 1;
                let (_, Change::End { id, backend, .. }) = &self.store.changes[index] else { continue };
                for sidecar in &self.sidecars {
                    let about = sidecar.client.follower.about();
                    let known = self.is_under(place, &about.boot_id) && !self.may_not_know(&about.boot_id, revision);
                    if about.backends.contains(backend) && known {
                        let outcome = lets_through(sidecar, id, backend);
                        assert!(outcome.is_err(), "{} lets {id} through after the report", sidecar.name);
                    }
                }
            }
        }
    }

    /// Whether some control plane counts the process among those that may not know yet: a report joins what all of them
    /// say. What a relay knows it keeps to itself.
    fn may_not_know(&self, boot_id: &str, revision: Revision) -> bool {
        let hubs = self.servers.iter().take(CONTROL_PLANES).map(|server| &server.hub).chain(&self.gone);
        hubs.flat_map(|hub| hub.sessions().into_iter().map(|session| (hub.clock().now().uptime, session))).any(
            |(now, session)| {
                let speaks_for_it = session.boot_id == boot_id || session.sidecar.as_str().contains("/relay/");
                speaks_for_it && matches!(standing(&session, revision, now), Standing::Pending(_))
            },
        )
    }

    /// Whether a process follows that server, itself or through a relay that does.
    fn is_under(&self, place: usize, boot_id: &str) -> bool {
        let sessions = self.servers[place].hub.sessions();
        sessions.iter().any(|session| {
            session.boot_id == boot_id
                || session.sidecar.as_str().contains("/relay/")
                    && self.servers.iter().enumerate().skip(CONTROL_PLANES).any(|(relay, server)| {
                        relay != place
                            && server.upstream.as_ref().is_some_and(|c| c.follower.about().boot_id == session.boot_id)
                            && server.hub.sessions().iter().any(|session| session.boot_id == boot_id)
                    })
        })
    }
}

fn soothe(client: &mut Client) {
    client.paused_until = 0;
    if let Some(connection) = &mut client.connection {
        connection.held_until = 0;
    }
}

fn close(connection: &Connection, servers: &[Server]) {
    if let Some(stream) = &connection.stream {
        let now: Uptime = servers[connection.server].clock.now().uptime;
        stream.close(now);
    }
}
