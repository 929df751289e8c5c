//! Whether an end is enforced: who has said so, whose evidence ran out, and who may still not know.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::session::Session;
use crate::domain::id::{BackendName, Revision};
use crate::domain::principal::Principal;
use crate::domain::time::Uptime;

/// Which backends something has to do with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// All of them.
    All,
    /// These.
    Only(BTreeSet<BackendName>),
}

impl Of {
    /// Whether a sidecar serves one of them.
    pub fn has(&self, session: &Session) -> bool {
        match self {
            Self::All => true,
            Self::Only(backends) => backends.iter().any(|backend| session.backends.contains(backend)),
        }
    }
}

/// How a sidecar stands to a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It says that it enforces it.
    Enforced,
    /// It cannot have evidence any more, so it denies everything.
    Lapsed,
    /// It may not know yet; it denies from then on at the latest.
    Pending(Uptime),
}

impl Standing {
    /// Whether less can go wrong with it.
    fn is_surer_than(self, other: Self) -> bool {
        match (self, other) {
            (Self::Pending(ours), Self::Pending(theirs)) => ours < theirs,
            (Self::Pending(_), _) | (Self::Lapsed, Self::Lapsed | Self::Enforced) => false,
            (Self::Enforced, other) => other != Self::Enforced,
            (Self::Lapsed, Self::Pending(_)) => true,
        }
    }
}

/// How a sidecar stands to a revision at `now`.
pub fn standing(session: &Session, revision: Revision, now: Uptime) -> Standing {
    if session.enforces(revision) {
        return Standing::Enforced;
    }
    match session.fresh_until() {
        until if until < now => Standing::Lapsed,
        until => Standing::Pending(until),
    }
}

/// A sidecar that may not know of an end yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsure {
    /// Who.
    pub sidecar: Principal,
    /// Which of its processes.
    pub boot_id: String,
    /// Whether its stream is open.
    pub connected: bool,
    /// How long it may serve without knowing; none where some backend is served until its grants end.
    pub denies_within: Option<Duration>,
}

/// How far a revision is enforced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// How many say that they enforce it.
    pub enforced: usize,
    /// How many cannot have evidence any more and so deny everything.
    pub lapsed: usize,
    /// Who may not know yet.
    pub pending: Vec<Unsure>,
}

/// Who is gone for longer than that is not counted among the lapsed.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// How far a revision is enforced by those who serve one of the backends.
pub fn enforcement(sessions: &[Arc<Session>], of: &Of, revision: Revision, now: Uptime) -> Enforcement {
    // Of one process several servers may know something: whatever is least sure counts.
    let mut least: BTreeMap<(&Principal, &str), (Standing, &Session)> = BTreeMap::new();
    for session in sessions.iter().filter(|session| of.has(session)) {
        let (key, stands) = ((&session.sidecar, session.boot_id.as_str()), standing(session, revision, now));
        match least.get_mut(&key) {
            Some(known) if known.0.is_surer_than(stands) => *known = (stands, session),
            Some(_) => {}
            None => drop(least.insert(key, (stands, session))),
        }
    }
    let mut found = Enforcement::default();
    for (stands, session) in least.into_values() {
        match stands {
            Standing::Enforced => found.enforced += 1,
            Standing::Lapsed if session.is_connected() || session.fresh_until().plus(GONE_AFTER) > now => {
                found.lapsed += 1;
            }
            Standing::Lapsed => {}
            Standing::Pending(until) => found.pending.push(Unsure {
                sidecar: session.sidecar.clone(),
                boot_id: session.boot_id.clone(),
                connected: session.is_connected(),
                denies_within: (until != Uptime::MAX).then(|| until.since(now)),
            }),
        }
    }
    found
}

/// Ends that are kept to be asked about.
const ENDINGS_KEPT: usize = 16_384;

#[derive(Debug)]
struct Ending {
    revision: Revision,
    of: Of,
    since: Uptime,
    took: Option<Duration>,
}

/// Ends of late, and how long each took to be enforced by everybody.
#[derive(Debug, Default)]
pub(super) struct Endings {
    all: VecDeque<Ending>,
    open: usize,
}

impl Endings {
    pub(super) fn note(&mut self, revision: Revision, of: Of, since: Uptime) {
        if self.all.len() >= ENDINGS_KEPT {
            let oldest = self.all.pop_front();
            self.open -= usize::from(oldest.is_some_and(|ending| ending.took.is_none()));
        }
        self.all.push_back(Ending { revision, of, since, took: None });
        self.open += 1;
    }

    pub(super) fn are_open(&self) -> bool {
        self.open > 0
    }

    pub(super) fn settle(&mut self, sessions: &[Arc<Session>], now: Uptime) -> Vec<(Revision, Duration)> {
        if self.open == 0 {
            return Vec::new();
        }
        let least = Least::of(sessions, now);
        let mut settled = Vec::new();
        for ending in self.all.iter_mut().filter(|ending| ending.took.is_none()) {
            if least.enforces(&ending.of, ending.revision) {
                let took = now.since(ending.since);
                ending.took = Some(took);
                settled.push((ending.revision, took));
            }
        }
        self.open -= settled.len();
        settled
    }

    pub(super) fn enforced_within(&self, revision: Revision) -> Option<Duration> {
        let place = self.all.partition_point(|ending| ending.revision < revision);
        self.all.get(place).and_then(|ending| ending.took)
    }
}

/// The least that is enforced by those who serve a backend; those who deny everything enforce everything.
struct Least {
    all: Option<Revision>,
    by_backend: HashMap<BackendName, Option<Revision>>,
}

impl Least {
    fn of(sessions: &[Arc<Session>], now: Uptime) -> Self {
        let mut least = Self { all: Some(Revision(u64::MAX)), by_backend: HashMap::new() };
        for session in sessions {
            // INVARIANT: what is denied for want of evidence is enforced; see `standing`.
            if session.fresh_until() < now {
                continue;
            }
            let acked = session.acked();
            least.all = least.all.min(acked);
            for backend in &session.backends {
                match least.by_backend.get_mut(backend) {
                    Some(known) => *known = (*known).min(acked),
                    None => drop(least.by_backend.insert(backend.clone(), acked)),
                }
            }
        }
        least
    }

    fn enforces(&self, of: &Of, revision: Revision) -> bool {
        match of {
            Of::All => self.all >= Some(revision),
            Of::Only(backends) => {
                backends.iter().all(|backend| self.by_backend.get(backend).is_none_or(|least| *least >= Some(revision)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::domain::time::{Clock, Now, Timestamp};
    use crate::domain::view::Snapshot;
    use crate::sync::Sink;
    use crate::sync::hub::Hub;
    use crate::sync::session::Heard;
    use crate::sync::stream::Stream;
    use crate::wire::v1;

    #[derive(Debug)]
    struct Steps(AtomicI64);

    impl Clock for Steps {
        fn now(&self) -> Now {
            let micros = self.0.fetch_add(1, Ordering::Relaxed);
            Now { wall: Timestamp::from_micros(micros), uptime: Uptime::from_micros(micros) }
        }
    }

    const SECOND: i64 = 1_000_000;

    fn hub() -> (Arc<Steps>, Arc<Hub>) {
        let clock = Arc::new(Steps(AtomicI64::new(100 * SECOND)));
        let hub = Arc::new(Hub::new(Arc::clone(&clock) as Arc<dyn Clock>));
        (clock, hub)
    }

    fn sidecar() -> Principal {
        Principal::parse("spiffe://prod.test/sidecar/a").expect("a name")
    }

    fn shop() -> BackendName {
        BackendName::new("shop").expect("a name")
    }

    fn open(hub: &Arc<Hub>) -> Stream {
        let subscribe = v1::Subscribe {
            backends: vec!["shop".to_owned()],
            boot_id: "b1".to_owned(),
            staleness_max_ms: 30_000,
            ..v1::Subscribe::default()
        };
        Stream::open(Arc::clone(hub), sidecar(), subscribe, |_, _| true).expect("a stream")
    }

    /// Asks for evidence; whether it comes once the source was read.
    fn is_answered(hub: &Arc<Hub>, stream: &mut Stream) -> bool {
        let ping = v1::client_frame::Frame::Ping(v1::Ping { nonce: 1 });
        stream.take(v1::ClientFrame { frame: Some(ping) }, hub.clock().now().uptime).expect("taken");
        answered(hub, stream)
    }

    fn answered(hub: &Arc<Hub>, stream: &mut Stream) -> bool {
        hub.prove(hub.clock().now().uptime);
        let frames = std::iter::from_fn(|| stream.next(hub.clock().now()));
        frames.into_iter().any(|frame| matches!(frame.frame, Some(v1::server_frame::Frame::Pong(_))))
    }

    fn heard(connected: bool, acked: u64, fresh_until: i64) -> Heard {
        Heard {
            sidecar: sidecar(),
            boot_id: "b1".to_owned(),
            version: String::new(),
            backends: [shop()].into(),
            staleness_max: Some(Duration::from_secs(30)),
            connected,
            acked: Some(Revision(acked)),
            fresh_until: Uptime::from_micros(fresh_until * SECOND),
        }
    }

    fn report(hub: &Hub, revision: u64) -> (usize, usize, usize) {
        let of = Of::Only([shop()].into());
        let found = enforcement(&hub.everybody(), &of, Revision(revision), hub.clock().now().uptime);
        (found.enforced, found.lapsed, found.pending.len())
    }

    #[test]
    fn nobody_gets_evidence_before_others_could_have_heard_of_them() {
        let (clock, hub) = hub();
        hub.share();
        hub.replace(Snapshot::default()).expect("a view");
        let mut stream = open(&hub);
        assert!(!is_answered(&hub, &mut stream), "nobody was told anything");
        hub.told(&[], clock.now().uptime, Duration::from_secs(5));
        assert!(!answered(&hub, &mut stream), "others were told, and not of this one");
        hub.told(&hub.sessions(), clock.now().uptime, Duration::from_secs(5));
        assert!(answered(&hub, &mut stream));
        clock.0.fetch_add(6 * SECOND, Ordering::Relaxed);
        assert!(!is_answered(&hub, &mut stream), "it was not said for too long");
        hub.told(&hub.sessions(), clock.now().uptime, Duration::from_secs(5));
        assert!(answered(&hub, &mut stream));
    }

    #[test]
    fn what_several_servers_say_of_one_process_is_put_together() {
        let (clock, hub) = hub();
        hub.hear(vec![heard(true, 4, 130)]);
        assert_eq!((report(&hub, 4), report(&hub, 5)), ((1, 0, 0), (0, 0, 1)));
        hub.hear(vec![heard(false, 4, 130), heard(true, 5, 120)]);
        assert_eq!((report(&hub, 5), report(&hub, 6)), ((1, 0, 0), (0, 0, 1)));
        // It comes here, and what it had elsewhere counts until it is over.
        hub.replace(Snapshot { revision: Revision(6), ..Snapshot::default() }).expect("a view");
        let stream = open(&hub);
        hub.hear(vec![heard(false, 5, 140)]);
        assert_eq!((report(&hub, 5), report(&hub, 6)), ((1, 0, 0), (0, 0, 1)));
        clock.0.fetch_add(35 * SECOND, Ordering::Relaxed);
        assert_eq!(report(&hub, 6), (0, 0, 1), "it may have evidence from elsewhere");
        clock.0.fetch_add(6 * SECOND, Ordering::Relaxed);
        assert_eq!(report(&hub, 6), (0, 1, 0));
        drop(stream);
        hub.hear(Vec::new());
        assert_eq!(report(&hub, 6), (0, 1, 0));
    }
}
