//! The hot grant table: who may do what, right now.
//!
//! One concurrent map behind a swap. The key is a keyed hash of (principal, backend); the value is the short list of that
//! principal's grants on that backend, so overlapping grants are a union and each permit can name the one it used. A
//! second map finds a grant by its id, for whoever ends it.
//!
//! A hash is only a place to look: every entry found is compared in full. Deadlines are compared at every read; dropping
//! what is over ([`Table::sweep`]) only frees memory. An entry that ended stays as a tombstone until its own expiry, so a
//! late or repeated upsert cannot revive it.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use crate::domain::action::Scope;
use crate::domain::grant::{Grant, GrantState};
use crate::domain::id::{BackendName, GrantId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::time::{Anchored, Now, Position, Timestamp, Uptime, Window};

/// Most grants that one principal can hold on one backend; a call looks at each of them.
pub const GRANTS_PER_PRINCIPAL_MAX: usize = 1024;

/// One grant in the table. Its state and its end only move one way.
#[derive(Debug)]
pub struct Entry {
    id: GrantId,
    principal: Principal,
    backend: BackendName,
    scope: Arc<Scope>,
    task: Option<TaskRef>,
    not_before: Timestamp,
    expires_at: AtomicI64,
    ends_uptime: AtomicI64,
    /// The latest end any statement of this grant ever gave it, on the uptime clock: until then it is remembered.
    remembered_until: AtomicI64,
    serial: u64,
    uses_max: AtomicU32,
    uses: AtomicU32,
    state: AtomicU8,
}

/// What `uses_max` holds for a grant that is not counted.
const UNCOUNTED: u32 = u32::MAX;

static SERIAL: AtomicU64 = AtomicU64::new(1);

impl Entry {
    fn new(stated: StatedGrant, scope: Arc<Scope>, now: Now) -> Self {
        let StatedGrant { grant, state } = stated;
        let anchored = grant.window.anchor(now);
        Self {
            id: grant.id,
            principal: grant.principal,
            backend: grant.backend,
            scope,
            task: grant.task,
            not_before: grant.window.not_before,
            expires_at: AtomicI64::new(grant.window.expires_at.as_micros()),
            ends_uptime: AtomicI64::new(anchored.ends_uptime().as_micros()),
            remembered_until: AtomicI64::new(anchored.ends_uptime().as_micros()),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            uses_max: AtomicU32::new(grant.uses_max.map_or(UNCOUNTED, |n| n.min(UNCOUNTED - 1))),
            uses: AtomicU32::new(0),
            state: AtomicU8::new(state as u8),
        }
    }

    /// The grant's id.
    pub fn id(&self) -> &GrantId {
        &self.id
    }

    /// Who may act.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// On which backend.
    pub fn backend(&self) -> &BackendName {
        &self.backend
    }

    /// Which actions on which resources.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What justifies it.
    pub fn task(&self) -> Option<&TaskRef> {
        self.task.as_ref()
    }

    /// A number of this entry that no other entry of this process ever had.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// When it holds, on both clocks.
    pub fn window(&self) -> Anchored {
        let window = Window {
            not_before: self.not_before,
            expires_at: Timestamp::from_micros(self.expires_at.load(Ordering::Acquire)),
        };
        Anchored::from_parts(window, Uptime::from_micros(self.ends_uptime.load(Ordering::Acquire)))
    }

    /// How many calls it is good for, and how many it had.
    pub fn uses(&self) -> (Option<u32>, u32) {
        let max = self.uses_max.load(Ordering::Acquire);
        ((max != UNCOUNTED).then_some(max), self.uses.load(Ordering::Acquire))
    }

    /// Whether it is good for a number of calls only.
    pub fn is_counted(&self) -> bool {
        self.uses_max.load(Ordering::Acquire) != UNCOUNTED
    }

    /// The state at `now`. A grant seen past its end stays expired, whatever the clocks say later.
    pub fn state(&self, now: Now) -> GrantState {
        let state = GrantState::from_number(self.state.load(Ordering::SeqCst));
        if state == GrantState::Active && self.window().position(now) == Position::After {
            self.end(GrantState::Expired);
            return GrantState::from_number(self.state.load(Ordering::SeqCst));
        }
        state
    }

    /// Ends the grant, if nothing ended it before. Returns whether this call did.
    pub(super) fn end(&self, state: GrantState) -> bool {
        self.state.compare_exchange(GrantState::Active as u8, state as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Takes one use. At most `uses_max` calls of this ever return `true`; a use is never given back.
    pub(super) fn take_use(&self) -> bool {
        let max = self.uses_max.load(Ordering::Acquire);
        if max == UNCOUNTED {
            return true;
        }
        self.uses.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < max).then_some(used + 1)).is_ok()
    }

    /// Whether a use is left.
    pub(super) fn has_use(&self) -> bool {
        let max = self.uses_max.load(Ordering::Acquire);
        max == UNCOUNTED || self.uses.load(Ordering::Acquire) < max
    }

    /// The same grant was read again: whatever it says now can only shorten what stands here.
    fn narrow(&self, stated: &StatedGrant, now: Now) {
        let grant = &stated.grant;
        let read_again = grant.window.anchor(now);
        self.expires_at.fetch_min(grant.window.expires_at.as_micros(), Ordering::AcqRel);
        self.ends_uptime.fetch_min(read_again.ends_uptime().as_micros(), Ordering::AcqRel);
        self.remembered_until.fetch_max(read_again.ends_uptime().as_micros(), Ordering::AcqRel);
        if let Some(max) = grant.uses_max {
            self.uses_max.fetch_min(max, Ordering::AcqRel);
        }
        if stated.state != GrantState::Active {
            self.end(stated.state);
        }
    }
}

/// A grant as a source states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedGrant {
    /// The grant.
    pub grant: Grant,
    /// Its state according to the source.
    pub state: GrantState,
}

/// Everything a source states at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Its number; it never goes back.
    pub revision: Revision,
    /// All grants; what is missing has ended.
    pub grants: Vec<StatedGrant>,
    /// All locks; what is missing is lifted.
    pub locks: Vec<Lock>,
}

/// Why a snapshot was refused as a whole; the table is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Two grants have one id.
    #[error("two grants have the id `{0}`; give each its own")]
    Twice(GrantId),
    /// A known grant came back with another content.
    #[error("grant `{id}` changed its {what}; a grant never changes: state a new one with a new id and drop this one")]
    Changed {
        /// Which grant.
        id: GrantId,
        /// What is different.
        what: &'static str,
    },
    /// An older state of the source.
    #[error("revision {given} is older than the revision {held} held already")]
    Older {
        /// The revision of the refused snapshot.
        given: Revision,
        /// The revision in force.
        held: Revision,
    },
    /// Too many grants for one principal on one backend.
    #[error(
        "`{principal}` has more than {GRANTS_PER_PRINCIPAL_MAX} grants on `{backend}`; join their scopes in fewer grants"
    )]
    TooMany {
        /// Whose.
        principal: Principal,
        /// Where.
        backend: BackendName,
    },
}

/// The grants of one (principal, backend); nearly always one.
#[derive(Debug, Clone)]
enum Slot {
    One(Arc<Entry>),
    Many(Box<[Arc<Entry>]>),
}

impl Slot {
    fn entries(&self) -> &[Arc<Entry>] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    fn push(&mut self, entry: Arc<Entry>) {
        match self {
            Self::One(first) => *self = Self::Many(Box::new([Arc::clone(first), entry])),
            Self::Many(entries) => {
                // A list this short is copied rather than kept with room to grow: most slots never get a second entry.
                let mut longer = std::mem::take(entries).into_vec();
                longer.push(entry);
                *entries = longer.into_boxed_slice();
            }
        }
    }
}

/// Hands the key on as it is: it is a hash already.
#[derive(Debug, Default, Clone, Copy)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys of the table are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct BuildPassThrough;

impl BuildHasher for BuildPassThrough {
    type Hasher = PassThrough;

    fn build_hasher(&self) -> PassThrough {
        PassThrough::default()
    }
}

type Map<V> = DashMap<u64, V, BuildPassThrough>;

#[derive(Debug)]
struct Maps {
    by_holder: Map<Slot>,
    by_id: Map<Slot>,
    revision: Revision,
}

impl Maps {
    fn with_capacity(grants: usize) -> Self {
        Self {
            by_holder: Map::with_capacity_and_hasher(grants, BuildPassThrough),
            by_id: Map::with_capacity_and_hasher(grants, BuildPassThrough),
            revision: Revision(0),
        }
    }
}

/// The grant table and the locks over it. One writer (the sync step), many readers.
#[derive(Debug)]
pub struct Table {
    maps: ArcSwap<Maps>,
    locks: ArcSwap<Vec<Lock>>,
    hasher: ahash::RandomState,
    /// Scopes in use, so that a million grants of one entitlement share one.
    scopes: std::sync::Mutex<HashSet<Arc<Scope>, ahash::RandomState>>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// How many grants are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// By the number of [`GrantState`].
    pub by_state: [usize; 5],
    /// How many locks stand.
    pub locks: usize,
    /// How long until the next active grant ends.
    pub next_expiry: Option<std::time::Duration>,
}

impl Table {
    /// A table that permits nothing.
    pub fn new() -> Self {
        Self {
            maps: ArcSwap::from_pointee(Maps::with_capacity(0)),
            locks: ArcSwap::from_pointee(Vec::new()),
            hasher: ahash::RandomState::new(),
            scopes: std::sync::Mutex::default(),
        }
    }

    /// The revision in force.
    pub fn revision(&self) -> Revision {
        self.maps.load().revision
    }

    /// The locks in force.
    pub fn locks(&self) -> arc_swap::Guard<Arc<Vec<Lock>>> {
        self.locks.load()
    }

    fn holder_key(&self, principal: &Principal, backend: &BackendName) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(principal.as_str().as_bytes());
        hasher.write_u8(0);
        hasher.write(backend.as_str().as_bytes());
        hasher.finish()
    }

    fn id_key(&self, id: &GrantId) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(id.as_str().as_bytes());
        hasher.finish()
    }

    /// Calls `look` with every grant of the principal on the backend, ended ones included. `look` runs under a read lock
    /// of one shard and must be short.
    pub(super) fn each(&self, principal: &Principal, backend: &BackendName, mut look: impl FnMut(&Arc<Entry>)) {
        let maps = self.maps.load();
        if let Some(slot) = maps.by_holder.get(&self.holder_key(principal, backend)) {
            for entry in slot.entries() {
                if entry.principal == *principal && entry.backend == *backend {
                    look(entry);
                }
            }
        }
    }

    /// The grant of that id, ended or not.
    pub fn find(&self, id: &GrantId) -> Option<Arc<Entry>> {
        find_in(&self.maps.load(), self.id_key(id), id)
    }

    /// Every grant in the table, ended ones included; a copy of the pointers, for reports.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.maps.load().by_holder.iter().flat_map(|slot| slot.entries().to_vec()).collect()
    }

    /// Ends one grant at once. Returns whether it was there and active. Whoever calls this then has the running calls
    /// rechecked.
    pub fn end(&self, id: &GrantId, state: GrantState) -> bool {
        self.find(id).is_some_and(|entry| entry.end(state))
    }

    /// Replaces the locks. Whoever calls this then has the running calls rechecked.
    pub fn set_locks(&self, locks: Vec<Lock>) {
        self.locks.store(Arc::new(locks));
    }

    /// Adds one grant, or narrows the one of that id. A grant that has ended is not revived.
    ///
    /// # Errors
    /// [`Refused`] when a grant of that id has another content, or the principal has too many.
    pub fn upsert(&self, stated: StatedGrant, now: Now) -> Result<(), Refused> {
        let maps = self.maps.load();
        match find_in(&maps, self.id_key(&stated.grant.id), &stated.grant.id) {
            Some(entry) => {
                same_content(&entry, &stated.grant)?;
                entry.narrow(&stated, now);
                Ok(())
            }
            None => self.add(&maps, stated, now),
        }
    }

    /// Applies everything a source states, as one change: refused as a whole or in force as a whole.
    ///
    /// What runs is not looked at here: whoever calls this then has the running calls rechecked.
    ///
    /// # Errors
    /// [`Refused`]; the table is as it was.
    pub fn apply(&self, snapshot: Snapshot, now: Now) -> Result<(), Refused> {
        let old = self.maps.load_full();
        if snapshot.revision < old.revision {
            return Err(Refused::Older { given: snapshot.revision, held: old.revision });
        }
        let mut new = Maps::with_capacity(snapshot.grants.len());
        new.revision = snapshot.revision;
        let mut known = Vec::new();
        for stated in snapshot.grants {
            let key = self.id_key(&stated.grant.id);
            if find_in(&new, key, &stated.grant.id).is_some() {
                return Err(Refused::Twice(stated.grant.id));
            }
            match find_in(&old, key, &stated.grant.id) {
                Some(entry) => {
                    same_content(&entry, &stated.grant)?;
                    self.insert(&new, Arc::clone(&entry))?;
                    known.push((entry, stated));
                }
                None => self.add(&new, stated, now)?,
            }
        }
        // Nothing is refused from here on: first what both tables share, then the swap.
        for (entry, stated) in known {
            entry.narrow(&stated, now);
        }
        self.bury_the_missing(&old, &new, now);
        self.locks.store(Arc::new(snapshot.locks));
        self.maps.store(Arc::new(new));
        self.forget_scopes();
        Ok(())
    }

    /// Ends what the new table does not have, and keeps it there as a tombstone until it would have ended by itself.
    fn bury_the_missing(&self, old: &Maps, new: &Maps, now: Now) {
        for slot in &old.by_id {
            for entry in slot.entries() {
                if find_in(new, *slot.key(), &entry.id).is_none() {
                    entry.end(GrantState::Revoked);
                    if !is_over(entry, now) {
                        push(&new.by_id, *slot.key(), Arc::clone(entry));
                        push(&new.by_holder, self.holder_key(&entry.principal, &entry.backend), Arc::clone(entry));
                    }
                }
            }
        }
    }

    /// Drops what is over, so that memory follows what lives. Nothing depends on when, or whether, this runs.
    pub fn sweep(&self, now: Now) {
        let over = |entry: &Arc<Entry>| is_over(entry, now);
        let maps = self.maps.load();
        for map in [&maps.by_holder, &maps.by_id] {
            map.retain(|_, slot| match slot {
                Slot::One(entry) => !over(entry),
                Slot::Many(entries) => {
                    let mut left = std::mem::take(entries).into_vec();
                    left.retain(|entry| !over(entry));
                    *entries = left.into_boxed_slice();
                    !entries.is_empty()
                }
            });
        }
        drop(maps);
        self.forget_scopes();
    }

    /// Counts the grants by state. Walks the whole table: for reports, not for calls.
    pub fn census(&self, now: Now) -> Census {
        let mut census = Census { locks: self.locks.load().len(), ..Census::default() };
        for slot in &self.maps.load().by_holder {
            for entry in slot.entries() {
                let state = entry.state(now);
                census.by_state[state as usize] += 1;
                if state == GrantState::Active {
                    let remaining = entry.window().remaining(now);
                    census.next_expiry = Some(census.next_expiry.map_or(remaining, |next| next.min(remaining)));
                }
            }
        }
        census
    }

    fn add(&self, maps: &Maps, stated: StatedGrant, now: Now) -> Result<(), Refused> {
        let scope = self.intern(&stated.grant.scope);
        self.insert(maps, Arc::new(Entry::new(stated, scope, now)))
    }

    fn insert(&self, maps: &Maps, entry: Arc<Entry>) -> Result<(), Refused> {
        let holder = self.holder_key(&entry.principal, &entry.backend);
        if maps.by_holder.get(&holder).is_some_and(|slot| slot.entries().len() >= GRANTS_PER_PRINCIPAL_MAX) {
            return Err(Refused::TooMany { principal: entry.principal.clone(), backend: entry.backend.clone() });
        }
        push(&maps.by_id, self.id_key(&entry.id), Arc::clone(&entry));
        push(&maps.by_holder, holder, entry);
        Ok(())
    }

    fn intern(&self, scope: &Scope) -> Arc<Scope> {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = scopes.get(scope) {
            return Arc::clone(known);
        }
        let new = Arc::new(scope.clone());
        scopes.insert(Arc::clone(&new));
        new
    }

    fn forget_scopes(&self) {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).retain(|scope| Arc::strong_count(scope) > 1);
    }
}

/// Whether nothing could take the entry for a live grant any more. Only time that has passed counts: a wall clock that
/// jumped ahead and back must find the tombstone where it was.
fn is_over(entry: &Entry, now: Now) -> bool {
    now.uptime.as_micros() >= entry.remembered_until.load(Ordering::Acquire)
}

fn find_in(maps: &Maps, key: u64, id: &GrantId) -> Option<Arc<Entry>> {
    maps.by_id.get(&key).and_then(|slot| slot.entries().iter().find(|entry| entry.id == *id).cloned())
}

fn push(map: &Map<Slot>, key: u64, entry: Arc<Entry>) {
    match map.entry(key) {
        dashmap::Entry::Occupied(mut slot) => slot.get_mut().push(entry),
        dashmap::Entry::Vacant(place) => {
            place.insert(Slot::One(entry));
        }
    }
}

fn same_content(entry: &Entry, grant: &Grant) -> Result<(), Refused> {
    let what = if entry.principal != grant.principal {
        "principal"
    } else if entry.backend != grant.backend {
        "backend"
    } else if *entry.scope != grant.scope {
        "scope"
    } else if entry.task != grant.task {
        "task"
    } else {
        return Ok(());
    };
    Err(Refused::Changed { id: entry.id.clone(), what })
}
