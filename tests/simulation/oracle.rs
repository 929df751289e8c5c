//! What is true, and what a sidecar may believe of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use leasehold::domain::action::{ActionClass, ActionPattern, Scope};
use leasehold::domain::grant::{Grant, GrantState};
use leasehold::domain::id::{ActionName, BackendName, GrantId, LockId, Revision};
use leasehold::domain::lock::Lock;
use leasehold::domain::principal::Principal;
use leasehold::domain::resource::{Resource, ResourcePattern};
use leasehold::domain::time::{Clock, Timestamp, Window};
use leasehold::domain::view::{Change, Snapshot, StatedGrant};
use leasehold::sidecar::decide::{Arguments, BackendRules, Basis, Mode, Question};
use leasehold::sidecar::resolve::ActionSpec;

use crate::machine::{STALENESS_MAX, Sidecar};
use crate::random::Random;

/// The store: what was committed, and when.
pub struct Store {
    pub changes: Vec<(i64, Change)>,
    pub floor: Revision,
    pub active: BTreeMap<GrantId, Grant>,
    pub ended: HashMap<GrantId, i64>,
    pub locks: BTreeMap<LockId, (i64, Lock)>,
    /// When which backend got which bundle.
    bundles: Vec<(Revision, BackendName, String)>,
    next: u64,
}

pub fn backend(number: u64) -> BackendName {
    BackendName::new(&format!("backend-{number}")).unwrap()
}

pub const BACKENDS: u64 = 3;

/// Who holds the grants of a world: one grant each, so that what is let through names the grant.
fn holder(id: &GrantId) -> Principal {
    Principal::token("https://idp.test", id.as_str()).unwrap()
}

impl Store {
    pub fn new() -> Self {
        let bundles = (0..BACKENDS).map(|number| (Revision(0), backend(number), "0".to_owned())).collect();
        Self {
            changes: Vec::new(),
            floor: Revision(0),
            active: BTreeMap::new(),
            ended: HashMap::new(),
            locks: BTreeMap::new(),
            bundles,
            next: 0,
        }
    }

    pub fn head_at(&self, time: i64) -> Revision {
        Revision(self.changes.partition_point(|(at, _)| *at <= time) as u64)
    }

    fn commit(&mut self, now: i64, change: Change) {
        match &change {
            Change::Grant(grant) => drop(self.active.insert(grant.id.clone(), (**grant).clone())),
            Change::End { id, .. } => {
                self.active.remove(id);
                self.ended.insert(id.clone(), now);
            }
            Change::Lock(lock) => drop(self.locks.insert(lock.id.clone(), (now, (**lock).clone()))),
            Change::Unlock(id) => drop(self.locks.remove(id)),
            Change::Declared => {}
        }
        self.changes.push((now, change));
    }

    /// Something happens, as in a busy house.
    pub fn work(&mut self, now: i64, random: &mut Random) {
        self.next += 1;
        let ids: Vec<GrantId> = self.active.keys().cloned().collect();
        match random.below(10) {
            0..4 => self.grant(now, random),
            4..7 => self.end(now, random),
            7 => {
                let one = random.pick(&ids).filter(|_| random_half(self.next)).cloned();
                // A lock may be stated again; it never moves to another backend.
                let number = random.below(5);
                let of = number.checked_sub(2).map(backend);
                // A lock on nothing else would hide everything else.
                let grant = one.or_else(|| ids.first().cloned());
                let lock = Lock {
                    id: LockId::new(&format!("lock-{number}")).unwrap(),
                    principal: None,
                    backend: of,
                    action: None,
                    resource: None,
                    grant,
                    task: None,
                    message: String::new(),
                    expires_at: None,
                };
                self.commit(now, Change::Lock(Box::new(lock)));
            }
            8 => {
                if let Some(id) = self.locks.keys().next().cloned() {
                    self.commit(now, Change::Unlock(id));
                }
            }
            _ => {
                self.commit(now, Change::Declared);
                // Few of them, so that one comes again.
                let digest = random.below(6).to_string();
                self.bundles.push((Revision(self.changes.len() as u64), backend(self.next % BACKENDS), digest));
            }
        }
        if random.once_in(200) {
            self.floor = Revision(self.changes.len() as u64 - random.below(self.changes.len() as u64 / 2 + 1));
        }
    }

    /// The bundles at a revision.
    pub fn bundles_at(&self, revision: Revision) -> BTreeMap<BackendName, String> {
        let then = self.bundles.iter().filter(|(at, _, _)| *at <= revision);
        then.map(|(_, of, digest)| (of.clone(), digest.clone())).collect()
    }

    /// The bundles of a backend that were in force at that revision, or later.
    pub fn bundles_since(&self, of: &BackendName, revision: Revision) -> HashSet<&str> {
        let mine = self.bundles.iter().filter(|(_, backend, _)| backend == of);
        let first = mine.clone().rfind(|(at, _, _)| *at <= revision);
        mine.filter(|(at, _, _)| *at > revision).chain(first).map(|(_, _, digest)| digest.as_str()).collect()
    }

    fn grant(&mut self, now: i64, random: &mut Random) {
        let times = if random.once_in(20) { 300 } else { 1 };
        for time in 0..times {
            let id = GrantId::new(&format!("g{}-{time}", self.next)).unwrap();
            let scope = Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]);
            let grant = Grant {
                principal: holder(&id),
                id,
                backend: backend(random.below(BACKENDS)),
                scope: Arc::new(scope),
                window: Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX },
                uses_max: None,
                task: None,
            };
            self.commit(now, Change::Grant(Box::new(grant)));
        }
    }

    fn end(&mut self, now: i64, random: &mut Random) {
        let times = if random.once_in(20) { 300 } else { 1 };
        for _ in 0..times {
            let ids: Vec<&GrantId> = self.active.keys().collect();
            let Some(id) = random.pick(&ids).copied().cloned() else { return };
            let (backend, state) = (self.active[&id].backend.clone(), GrantState::Revoked);
            self.commit(now, Change::End { id, backend, state });
        }
    }

    /// Everything at a revision that was the head a moment ago.
    pub fn snapshot(&self, revision: Revision) -> Snapshot {
        let mut then = Self::new();
        for (at, change) in &self.changes[..usize::try_from(revision.0).unwrap()] {
            then.commit(*at, change.clone());
        }
        let state = GrantState::Active;
        let grants = then.active.into_values().map(|grant| StatedGrant { grant, state }).collect();
        Snapshot { revision, grants, locks: then.locks.into_values().map(|(_, lock)| lock).collect() }
    }
}

fn random_half(number: u64) -> bool {
    number.is_multiple_of(2)
}

/// What each process was once seen to refuse as ended.
#[derive(Default)]
pub struct Oracle {
    refused: HashSet<(String, GrantId)>,
}

/// What a sidecar would do with a call of the holder of `grant`.
pub fn lets_through(sidecar: &Sidecar, grant: &GrantId, backend: &BackendName) -> Result<GrantId, String> {
    let rules = BackendRules {
        name: backend.clone(),
        mode: Mode::Enforce,
        baselines: Vec::new(),
        credential: None,
        serve_stale: false,
    };
    let action = ActionSpec {
        name: ActionName::new("any").unwrap(),
        class: ActionClass::Write,
        index: 0,
        streaming: false,
        upgrade: None,
    };
    let always = Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX };
    let question = Question {
        principal: &holder(grant),
        identity: always.anchor(sidecar.clock.now()),
        task: None,
        backend: &Arc::new(rules),
        action: Some(&Arc::new(action)),
        resource: &Resource::exact("x"),
        arguments: &Arguments::Unread,
    };
    match sidecar.decider.foresee(&question) {
        Ok(Basis::Grant(entry)) => Ok(entry.id().to_owned()),
        Ok(_) => Err("without a grant".to_owned()),
        Err(denial) => Err(denial.reason.to_string()),
    }
}

impl Oracle {
    /// Looks at one call. Nothing is let through later than the bound after its end, or after it was refused as ended.
    pub fn look(&mut self, store: &Store, sidecar: &Sidecar, id: &GrantId, of: &BackendName, now: i64) {
        let process = sidecar.client.follower.about().boot_id.clone();
        let outcome = lets_through(sidecar, id, of);
        let key = (format!("{}/{process}", sidecar.name), id.clone());
        match outcome {
            Ok(_) => {
                let bound = i64::try_from(STALENESS_MAX.as_micros()).unwrap();
                if let Some(ended) = store.ended.get(id) {
                    let late = now - ended;
                    assert!(late <= bound, "{} let {id} through {late} us after its end", sidecar.name);
                }
                let selects = |lock: &Lock| {
                    lock.grant.as_ref().is_none_or(|grant| grant == id) && lock.backend.as_ref().is_none_or(|b| b == of)
                };
                for (since, lock) in store.locks.values().filter(|(_, lock)| selects(lock)) {
                    let late = now - since;
                    assert!(late <= bound, "{} passed lock {} {late} us after it", sidecar.name, lock.id);
                }
                assert!(!self.refused.contains(&key), "{} revived {id}", sidecar.name);
            }
            Err(reason) if reason == "revoked" => drop(self.refused.insert(key)),
            Err(_) => {}
        }
    }
}
