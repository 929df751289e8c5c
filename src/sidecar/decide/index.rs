//! Entries by hash: many readers, one writer, few bytes.

use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashTable;

use super::entry::Entry;

/// At least so many shards: a reader seldom meets the writer, and waits briefly when a shard grows.
const SHARDS_MIN: usize = 256;

/// What a shard made for very many entries is filled with, of what it has room for: the rest is for chance.
const FILL: (usize, usize) = (15, 16);

type Shard = RwLock<HashTable<Arc<Entry>>>;

/// A hash table in shards that holds nothing but pointers: what an entry is found by is read from the entry itself.
///
/// A hash is only a place to look. Entries of one hash are told apart by the caller, who gets each of them.
#[derive(Debug)]
pub(super) struct Index(Box<[Shard]>);

impl Index {
    /// Room for about so many entries. A shard's room is seven eighths of a power of two; there are as many shards as make
    /// use of it, because a shard that is half empty costs as much as one that is full.
    pub(super) fn with_capacity(entries: usize) -> Self {
        let capacity = HashTable::<Arc<Entry>>::with_capacity(entries / SHARDS_MIN / 2 + 1).capacity();
        let shards = entries.div_ceil((capacity * FILL.0 / FILL.1).max(1)).max(SHARDS_MIN);
        let capacity = if entries < SHARDS_MIN { 0 } else { capacity };
        Self((0..shards).map(|_| RwLock::new(HashTable::with_capacity(capacity))).collect())
    }

    /// The table itself uses the lowest and the highest bits of the hash; these lie between.
    fn shard(&self, hash: u64) -> &Shard {
        let place = u64::from((hash >> 16) as u32) * self.0.len() as u64;
        &self.0[(place >> 32) as usize]
    }

    /// Calls `look` with every entry of that hash, under the read lock of one shard: it must be short.
    pub(super) fn each(&self, hash: u64, mut look: impl FnMut(&Arc<Entry>)) {
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.iter_hash(hash).for_each(&mut look);
    }

    /// The entry of that hash for which `is` says yes.
    pub(super) fn find(&self, hash: u64, is: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, |entry| is(entry)).cloned()
    }

    /// Whether there is an entry of that hash for which `is` says yes.
    pub(super) fn has(&self, hash: u64, is: impl Fn(&Entry) -> bool) -> bool {
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, |entry| is(entry)).is_some()
    }

    /// Whether there is no entry at all.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).is_empty())
    }

    /// Adds an entry, whatever else has that hash. `hash_of` gives the hash of any entry, for when the shard grows.
    pub(super) fn insert(&self, hash: u64, entry: Arc<Entry>, hash_of: impl Fn(&Entry) -> u64) {
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        shard.insert_unique(hash, entry, |entry| hash_of(entry));
    }

    /// Keeps what `keep` says yes to, one shard at a time.
    pub(super) fn retain(&self, keep: impl Fn(&Entry) -> bool, hash_of: impl Fn(&Entry) -> u64) {
        for shard in &self.0 {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|entry| keep(entry));
            if shard.len() < shard.capacity() / 4 {
                shard.shrink_to_fit(|entry| hash_of(entry));
            }
        }
    }

    /// Calls `look` with every entry, under the read lock of one shard after the other.
    pub(super) fn each_of_all(&self, mut look: impl FnMut(&Arc<Entry>)) {
        for shard in &self.0 {
            shard.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(&mut look);
        }
    }
}
