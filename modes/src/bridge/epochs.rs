//! Tells the workers' caches which of their answers may be no longer true.
//!
//! Each key has, by its hash, one of [`SHARDS`] epochs. When an entry moves, is replaced or goes, the table
//! advances its epoch, under its mutex; an answer that was cached with another epoch is not used any more.
//! A new entry advances nothing, because caches hold no absences.
//!
//! One epoch for all would do, but for a guest that sends from ever new addresses: each evicts an entry (its
//! own), some millions a second, and would make all caches useless. With 4,096 epochs an answer is lost to
//! a neighbour's change a thousand times a second at worst, once in hundreds of frames of a flow that is busy.
//! Exact validation (a version per slot of the table) would need memory in proportion to the table's limit.

use std::sync::atomic::{AtomicU32, Ordering};

use switch_core::fdb::{Key, KeyHash, Watch};

/// How many epochs there are: 16 KB for each bridge.
const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 12;

/// The epochs of a bridge, and the hash that gives each key one, which also places keys in caches.
#[derive(Debug)]
pub(super) struct Epochs {
    hash: KeyHash,
    shards: Box<[AtomicU32; SHARDS]>,
}

impl Epochs {
    pub(super) fn new() -> Self {
        Self { hash: KeyHash::new(), shards: Box::new([const { AtomicU32::new(0) }; SHARDS]) }
    }

    #[inline]
    pub(super) fn hash(&self, key: Key) -> u64 {
        self.hash.hash(key)
    }

    /// The epoch of the keys with this hash. A change that was completed before is seen.
    #[inline]
    pub(super) fn current(&self, hash: u64) -> u32 {
        // Acquire pairs with the Release of `advance`: who sees the epoch of a change sees the change.
        self.shards[(hash >> (64 - SHARD_BITS)) as usize].load(Ordering::Acquire)
    }

    fn advance(shard: &AtomicU32) {
        // Only the holder of the table's mutex writes, so the count of wraps is all that could be confused: an
        // answer would have to stay in a cache, unused, while its epoch advances exactly 2^32 times.
        shard.fetch_add(1, Ordering::Release);
    }
}

impl Watch for Epochs {
    fn changed(&self, key: Key) {
        Epochs::advance(&self.shards[(self.hash(key) >> (64 - SHARD_BITS)) as usize]);
    }

    fn all_changed(&self) {
        self.shards.iter().for_each(Epochs::advance);
    }
}
