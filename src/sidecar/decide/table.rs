//! The hot grant table: who may do what, right now.
//!
//! Two indexes behind a swap: one by a keyed hash of (principal, backend), in which overlapping grants are a union and
//! each permit can name the one it used; one by id, for whoever ends a grant.
//!
//! A hash is only a place to look: every entry found is compared in full. Deadlines are compared at every read; dropping
//! what is over ([`Table::sweep`]) only frees memory. An entry that ended stays as a tombstone until its own expiry, so a
//! late or repeated upsert cannot revive it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::entry::{Entry, Terms};
use super::index::Index;
use super::refused::Refused;
use crate::domain::grant::GrantState;
use crate::domain::id::{BackendName, Borrowed, GrantId, Revision};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::time::Now;
use crate::domain::view::{Snapshot, Stated, StatedGrants};

/// Most grants that one principal can hold on one backend; a call looks at each of them.
pub const GRANTS_PER_PRINCIPAL_MAX: usize = 1024;

/// From so many grants on both indexes are filled at once.
const APART_MIN: usize = 10_000;

/// All entries of one snapshot and what was added to it since.
#[derive(Debug)]
struct Indexes {
    by_holder: Index,
    by_id: Index,
    revision: AtomicU64,
}

impl Indexes {
    fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::SeqCst))
    }

    fn with_capacity(grants: usize, revision: Revision) -> Self {
        Self {
            by_holder: Index::with_capacity(grants),
            by_id: Index::with_capacity(grants),
            revision: AtomicU64::new(revision.0),
        }
    }
}

/// The grant table and the locks over it. One writer (the sync step), many readers.
#[derive(Debug)]
pub struct Table {
    indexes: ArcSwap<Indexes>,
    locks: ArcSwap<Vec<Lock>>,
    hasher: ahash::RandomState,
    /// Terms in use, so that a million grants of one entitlement share them.
    terms: Mutex<AllTerms>,
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
            indexes: ArcSwap::from_pointee(Indexes::with_capacity(0, Revision(0))),
            locks: ArcSwap::from_pointee(Vec::new()),
            hasher: ahash::RandomState::new(),
            terms: Mutex::default(),
        }
    }

    /// The revision in force.
    pub fn revision(&self) -> Revision {
        self.indexes.load().revision()
    }

    /// Everything up to that revision is in force. It never goes back.
    pub fn advance(&self, revision: Revision) {
        self.indexes.load().revision.fetch_max(revision.0, Ordering::SeqCst);
    }

    /// The locks in force.
    pub fn locks(&self) -> arc_swap::Guard<Arc<Vec<Lock>>> {
        self.locks.load()
    }

    fn holder_hash(&self, principal: Borrowed<'_, Principal>, backend: &BackendName) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(principal.as_str().as_bytes());
        hasher.write_u8(0);
        hasher.write(backend.as_str().as_bytes());
        hasher.finish()
    }

    fn id_hash(&self, id: Borrowed<'_, GrantId>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(id.as_str().as_bytes());
        hasher.finish()
    }

    fn find_in(&self, indexes: &Indexes, id: Borrowed<'_, GrantId>) -> Option<Arc<Entry>> {
        find_hashed(indexes, self.id_hash(id), id)
    }

    /// Calls `look` with every grant of the principal on the backend, ended ones included. `look` runs under a read lock
    /// of one shard and must be short.
    pub(super) fn each(&self, principal: &Principal, backend: &BackendName, mut look: impl FnMut(&Arc<Entry>)) {
        self.indexes.load().by_holder.each(self.holder_hash(principal.into(), backend), |entry| {
            if entry.principal() == *principal && entry.backend() == backend {
                look(entry);
            }
        });
    }

    /// The grant of that id, ended or not.
    pub fn find(&self, id: &GrantId) -> Option<Arc<Entry>> {
        self.find_in(&self.indexes.load(), id.into())
    }

    /// Every grant in the table, ended ones included; a copy of the pointers, for reports.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let mut entries = Vec::new();
        self.indexes.load().by_id.each_of_all(|entry| entries.push(Arc::clone(entry)));
        entries
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
    pub fn upsert(&self, stated: Stated<'_>, now: Now) -> Result<(), Refused> {
        let indexes = self.indexes.load();
        match self.find_in(&indexes, stated.id) {
            Some(entry) => {
                same_content(&entry, &stated)?;
                entry.narrow(stated, now);
                Ok(())
            }
            None => self.add(&indexes, &mut self.terms(), stated, now),
        }
    }

    /// Applies everything a source states, as one change: refused as a whole or in force as a whole.
    ///
    /// What runs is not looked at here: whoever calls this then has the running calls rechecked.
    ///
    /// # Errors
    /// [`Refused`]; the table is as it was.
    pub fn apply(&self, snapshot: Snapshot, now: Now) -> Result<(), Refused> {
        let old = self.indexes.load_full();
        if snapshot.revision < old.revision() {
            return Err(Refused::Older { given: snapshot.revision, held: old.revision() });
        }
        let new = Indexes::with_capacity(snapshot.grants.len(), snapshot.revision);
        let mut terms = self.terms();
        let (entries, known) = self.entries_of(&snapshot.grants, &old, &mut terms, now)?;
        self.fill(&new, &entries)?;
        drop(entries);
        // Nothing is refused from here on: first what both tables share, then the swap.
        for (entry, stated) in known {
            entry.narrow(stated, now);
        }
        self.bury_the_missing(&old, &new, now);
        self.locks.store(Arc::new(snapshot.locks));
        self.indexes.store(Arc::new(new));
        drop(old);
        forget_unused(&mut terms);
        Ok(())
    }

    /// The entry of each of these grants: the one there is, or a new one. Those that there are come once more, with what is
    /// stated of them now.
    fn entries_of<'a>(
        &self,
        grants: &'a StatedGrants,
        old: &Indexes,
        terms: &mut AllTerms,
        now: Now,
    ) -> Result<(Vec<Hashed>, Vec<Known<'a>>), Refused> {
        let mut entries = Vec::with_capacity(grants.len());
        let mut known = Vec::new();
        let first = old.by_id.is_empty();
        // Whoever reads very many grants shares the scopes of those that say the same.
        let mut shared: HashMap<_, _, ahash::RandomState> = HashMap::default();
        for stated in grants.iter() {
            let (hash, holder) = (self.id_hash(stated.id), self.holder_hash(stated.principal, stated.backend));
            // At the start a million grants are not looked for where none can be.
            let entry = match if first { None } else { find_hashed(old, hash, stated.id) } {
                Some(entry) => {
                    same_content(&entry, &stated)?;
                    known.push((Arc::clone(&entry), stated));
                    entry
                }
                None => {
                    let seen = shared.entry((Arc::as_ptr(stated.scope), stated.backend));
                    let terms = Arc::clone(seen.or_insert_with(|| intern(terms, &stated)));
                    Arc::new(Entry::new(stated, terms, now))
                }
            };
            entries.push(Hashed { id: hash, holder, entry });
        }
        Ok((entries, known))
    }

    /// Ends what the new table does not have, and keeps it there as a tombstone until it would have ended by itself.
    fn bury_the_missing(&self, old: &Indexes, new: &Indexes, now: Now) {
        old.by_id.each_of_all(|entry| {
            let hash = self.id_hash(entry.id());
            if !new.by_id.has(hash, |other| other.id() == entry.id()) {
                entry.end(GrantState::Revoked);
                if !entry.is_over(now) {
                    self.put_to_holder(new, self.hash_of_holder(entry), Arc::clone(entry));
                    self.add_id(new, hash, Arc::clone(entry));
                }
            }
        });
    }

    /// Brings the end of every grant forward to what it is by `now`.
    pub(super) fn anchor_again(&self, now: Now) {
        self.indexes.load().by_id.each_of_all(|entry| entry.anchor_again(now));
    }

    /// Drops what is over, so that memory follows what lives. Nothing depends on when, or whether, this runs.
    pub fn sweep(&self, now: Now) {
        let indexes = self.indexes.load();
        indexes.by_holder.retain(|entry| !entry.is_over(now), |entry| self.hash_of_holder(entry));
        indexes.by_id.retain(|entry| !entry.is_over(now), |entry| self.id_hash(entry.id()));
        forget_unused(&mut self.terms());
    }

    /// Counts the grants by state. Walks the whole table: for reports, not for calls.
    pub fn census(&self, now: Now) -> Census {
        let mut census = Census { locks: self.locks.load().len(), ..Census::default() };
        self.indexes.load().by_id.each_of_all(|entry| {
            let state = entry.state(now);
            census.by_state[state as usize] += 1;
            if state == GrantState::Active {
                let remaining = entry.window().remaining(now);
                census.next_expiry = Some(census.next_expiry.map_or(remaining, |next| next.min(remaining)));
            }
        });
        census
    }

    fn add(&self, indexes: &Indexes, terms: &mut AllTerms, stated: Stated<'_>, now: Now) -> Result<(), Refused> {
        let hash = self.id_hash(stated.id);
        let shared = intern(terms, &stated);
        let entry = Arc::new(Entry::new(stated, shared, now));
        self.add_to_holder(indexes, self.hash_of_holder(&entry), &entry)?;
        self.add_id(indexes, hash, entry);
        Ok(())
    }

    /// Puts entries into indexes that nobody sees yet. Very many go into both at once: what
    /// takes the time is waiting for memory.
    fn fill(&self, indexes: &Indexes, entries: &[Hashed]) -> Result<(), Refused> {
        let by_id = || {
            entries.iter().try_for_each(|Hashed { id, entry, .. }| {
                if indexes.by_id.has(*id, |other| other.id() == entry.id()) {
                    return Err(Refused::Twice(entry.id().to_owned()));
                }
                self.add_id(indexes, *id, Arc::clone(entry));
                Ok(())
            })
        };
        let by_holder =
            || entries.iter().try_for_each(|hashed| self.add_to_holder(indexes, hashed.holder, &hashed.entry));
        if entries.len() < APART_MIN {
            by_id()?;
            return by_holder();
        }
        std::thread::scope(|scope| {
            let ids = scope.spawn(by_id);
            let holders = by_holder();
            ids.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(holders)
        })
    }

    fn add_to_holder(&self, indexes: &Indexes, hash: u64, entry: &Arc<Entry>) -> Result<(), Refused> {
        let mut held = 0;
        indexes.by_holder.each(hash, |other| {
            held += usize::from(other.principal() == entry.principal() && other.backend() == entry.backend());
        });
        if held >= GRANTS_PER_PRINCIPAL_MAX {
            return Err(Refused::TooMany { principal: entry.principal().to_owned(), backend: entry.backend().clone() });
        }
        self.put_to_holder(indexes, hash, Arc::clone(entry));
        Ok(())
    }

    fn put_to_holder(&self, indexes: &Indexes, hash: u64, entry: Arc<Entry>) {
        indexes.by_holder.insert(hash, entry, |entry| self.hash_of_holder(entry));
    }

    fn add_id(&self, indexes: &Indexes, hash: u64, entry: Arc<Entry>) {
        indexes.by_id.insert(hash, entry, |entry| self.id_hash(entry.id()));
    }

    fn hash_of_holder(&self, entry: &Entry) -> u64 {
        self.holder_hash(entry.principal(), entry.backend())
    }

    fn terms(&self) -> MutexGuard<'_, AllTerms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find_hashed(indexes: &Indexes, hash: u64, id: Borrowed<'_, GrantId>) -> Option<Arc<Entry>> {
    indexes.by_id.find(hash, |entry| entry.id() == id)
}

/// An entry, and where it is looked for: told when its names are at hand, for later each of them is a look at far memory.
struct Hashed {
    id: u64,
    holder: u64,
    entry: Arc<Entry>,
}

/// An entry that there was, and what is stated of it now.
type Known<'a> = (Arc<Entry>, Stated<'a>);

type AllTerms = HashSet<Arc<Terms>, ahash::RandomState>;

fn intern(all: &mut AllTerms, stated: &Stated<'_>) -> Arc<Terms> {
    let terms = Terms { backend: stated.backend.clone(), scope: Arc::clone(stated.scope) };
    if let Some(known) = all.get(&terms) {
        return Arc::clone(known);
    }
    let terms = Arc::new(terms);
    all.insert(Arc::clone(&terms));
    terms
}

fn forget_unused(all: &mut AllTerms) {
    all.retain(|terms| Arc::strong_count(terms) > 1);
}

fn same_content(entry: &Entry, stated: &Stated<'_>) -> Result<(), Refused> {
    let what = if entry.principal() != stated.principal {
        "principal"
    } else if entry.backend() != stated.backend {
        "backend"
    } else if *entry.scope() != **stated.scope {
        "scope"
    } else if entry.task() != stated.task {
        "task"
    } else {
        return Ok(());
    };
    Err(Refused::Changed { id: entry.id().to_owned(), what })
}
