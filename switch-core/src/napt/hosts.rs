//! Inside hosts: which outside address each is paired with (RFC 4787, REQ-2), and how much it has of what is
//! limited (RFC 6888, REQ-4).
//!
//! A host is known while it has a session, a mapping, or a port that rests. So the number of hosts is bounded by
//! that of sessions and ports.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::access::Protocol;
use super::flow::Address;
use super::ports::External;
use super::random::{KeyedHash, Secret};

/// An inside host.
#[derive(Debug)]
pub(super) struct Host<A> {
    pub(super) address: A,
    sessions: AtomicU32,
    /// Of these, sessions that came from the outside.
    from_outside: AtomicU32,
    mappings: [AtomicU32; 3],
    external: Mutex<Option<Arc<External<A>>>>,
}

impl<A: Address> Host<A> {
    /// The outside address of the host, which is `choose`n once, and anew when `stays` says that it is gone.
    pub(super) fn external(
        &self,
        stays: impl FnOnce(&Arc<External<A>>) -> bool,
        choose: impl FnOnce() -> Option<Arc<External<A>>>,
    ) -> Option<Arc<External<A>>> {
        let mut paired = self.external.lock().unwrap_or_else(PoisonError::into_inner);
        if !paired.as_ref().is_some_and(stays) {
            self.unpair(&mut paired);
            *paired = choose();
            if let Some(external) = &*paired {
                external.hosts.fetch_add(1, Ordering::Relaxed);
            }
        }
        paired.clone()
    }

    fn unpair(&self, paired: &mut Option<Arc<External<A>>>) {
        if let Some(external) = paired.take() {
            external.hosts.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts one more session, unless the host has `limit`; those from the outside may be half of it.
    pub(super) fn take_session(&self, from_outside: bool, limit: u32) -> bool {
        if from_outside && !take(&self.from_outside, limit / 2) {
            return false;
        }
        let taken = take(&self.sessions, limit);
        if from_outside && !taken {
            self.from_outside.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    pub(super) fn release_session(&self, from_outside: bool) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        if from_outside {
            self.from_outside.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts one more mapping of a protocol, unless the host has `limit`.
    pub(super) fn take_mapping(&self, protocol: Protocol, limit: u32) -> bool {
        take(&self.mappings[protocol as usize], limit)
    }

    pub(super) fn release_mapping(&self, protocol: Protocol) {
        self.mappings[protocol as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds one to a count that is below its limit.
pub(super) fn take(count: &AtomicU32, limit: u32) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then(|| n + 1)).is_ok()
}

const SHARDS: usize = 16;

/// The hosts. Their locks are taken last: while one is held, no other lock of the translator is taken, but a host's
/// own.
#[derive(Debug)]
pub(super) struct Hosts<A> {
    shards: [Mutex<HashTable<Arc<Host<A>>>>; SHARDS],
    hash: KeyedHash,
}

impl<A: Address> Hosts<A> {
    pub(super) fn new(secret: Secret) -> Self {
        Self { shards: Default::default(), hash: KeyedHash::new(secret) }
    }

    /// The host with an address, which is made if it is new.
    pub(super) fn get(&self, address: A) -> Arc<Host<A>> {
        let hash = self.hash(address);
        let mut shard = self.shard(hash as usize);
        if let Some(host) = shard.find(hash, |host| host.address == address) {
            return Arc::clone(host);
        }
        let host = Arc::new(Host {
            address,
            sessions: AtomicU32::new(0),
            from_outside: AtomicU32::new(0),
            mappings: Default::default(),
            external: Mutex::new(None),
        });
        shard.insert_unique(hash, Arc::clone(&host), |host| self.hash(host.address));
        host
    }

    /// Forgets the hosts of one part of the table that have nothing; part `i % 16`.
    pub(super) fn sweep(&self, i: usize) {
        self.shard(i).retain(|host| {
            // Whoever finds a host here takes a reference under this lock: none but the table's means none at all.
            let in_use = Arc::strong_count(host) > 1;
            if !in_use {
                let mut paired = host.external.lock().unwrap_or_else(PoisonError::into_inner);
                host.unpair(&mut paired);
            }
            in_use
        });
    }

    /// Hosts that are known.
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).map(|i| self.shard(i).len()).sum()
    }

    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        let shard = |i| {
            let shard = self.shard(i);
            shard.allocation_size() + shard.len() * (size_of::<Host<A>>() + 2 * size_of::<usize>())
        };
        (0..SHARDS).map(shard).sum::<usize>() + size_of::<Self>()
    }

    fn hash(&self, address: A) -> u64 {
        self.hash.pair(A::mix(&self.hash, address, A::UNSPECIFIED), 0)
    }

    fn shard(&self, i: usize) -> MutexGuard<'_, HashTable<Arc<Host<A>>>> {
        self.shards[i % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
