//! Inside hosts: which outside address each is paired with (RFC 4787, REQ-2), and how much it has of what is
//! limited (RFC 6888, REQ-4).
//!
//! A guest can send from any address of its subnet. So what is limited is limited for the port that it comes by,
//! too: a port's [`Account`] is charged for what its packets made, whatever their source was, and with so many
//! inside addresses that nobody had before.
//!
//! A host is known while it has a session, a mapping, or a port that rests. So the number of hosts is bounded by
//! that of sessions and ports, and by what all accounts together may have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::HashTable;

use super::access::Protocol;
use super::flow::Address;
use super::ports::External;
use super::random::{KeyedHash, Secret};
use crate::ids::PortId;

/// What the packets of one port made.
#[derive(Debug, Default)]
pub(super) struct Account {
    addresses: AtomicU32,
    sessions: AtomicU32,
    mappings: [AtomicU32; 3],
}

/// An inside host.
#[derive(Debug)]
pub(super) struct Host<A: Address> {
    pub(super) address: A,
    sessions: AtomicU32,
    /// Of these, sessions that came from the outside.
    from_outside: AtomicU32,
    mappings: [AtomicU32; 3],
    /// Weak, because an outside address keeps the hosts whose ports rest there.
    external: Mutex<Weak<External<A>>>,
    /// Whose packet made it known; nobody's if it was one from the outside.
    account: Option<Arc<Account>>,
}

impl<A: Address> Drop for Host<A> {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            account.addresses.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<A: Address> Host<A> {
    /// The outside address of the host, which is `choose`n once, and anew when `stays` says that it is gone.
    pub(super) fn external(
        &self,
        stays: impl FnOnce(&Arc<External<A>>) -> bool,
        choose: impl FnOnce() -> Option<Arc<External<A>>>,
    ) -> Option<Arc<External<A>>> {
        let mut paired = self.external.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(external) = paired.upgrade().filter(stays) {
            return Some(external);
        }
        self.unpair(&mut paired);
        let external = choose()?;
        external.hosts.fetch_add(1, Ordering::Relaxed);
        *paired = Arc::downgrade(&external);
        Some(external)
    }

    fn unpair(&self, paired: &mut Weak<External<A>>) {
        if let Some(external) = std::mem::take(paired).upgrade() {
            external.hosts.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Who is charged: an inside host, and the account of the port whose packet it was, if it was a port's.
#[derive(Debug)]
pub(super) struct Payer<A: Address> {
    pub(super) host: Arc<Host<A>>,
    pub(super) account: Option<Arc<Account>>,
}

impl<A: Address> Clone for Payer<A> {
    fn clone(&self) -> Self {
        Self { host: Arc::clone(&self.host), account: self.account.clone() }
    }
}

impl<A: Address> Payer<A> {
    /// Counts one more session, unless host or account have `limit`; those of a host that are from the outside may
    /// be half of it.
    pub(super) fn take_session(&self, from_outside: bool, limit: u32) -> bool {
        let host = &self.host;
        if from_outside && !take(&host.from_outside, limit / 2) {
            return false;
        }
        let taken = take_both(&host.sessions, self.account.as_ref().map(|a| &a.sessions), limit);
        if from_outside && !taken {
            host.from_outside.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    pub(super) fn release_session(&self, from_outside: bool) {
        release_both(&self.host.sessions, self.account.as_ref().map(|a| &a.sessions));
        if from_outside {
            self.host.from_outside.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts one more mapping of a protocol, unless host or account have `limit`.
    pub(super) fn take_mapping(&self, protocol: Protocol, limit: u32) -> bool {
        let i = protocol as usize;
        take_both(&self.host.mappings[i], self.account.as_ref().map(|a| &a.mappings[i]), limit)
    }

    pub(super) fn release_mapping(&self, protocol: Protocol) {
        let i = protocol as usize;
        release_both(&self.host.mappings[i], self.account.as_ref().map(|a| &a.mappings[i]));
    }
}

/// Adds one to both counts, or to none.
fn take_both(host: &AtomicU32, account: Option<&AtomicU32>, limit: u32) -> bool {
    if !take(host, limit) {
        return false;
    }
    let taken = account.is_none_or(|account| take(account, limit));
    if !taken {
        host.fetch_sub(1, Ordering::Relaxed);
    }
    taken
}

fn release_both(host: &AtomicU32, account: Option<&AtomicU32>) {
    host.fetch_sub(1, Ordering::Relaxed);
    if let Some(account) = account {
        account.fetch_sub(1, Ordering::Relaxed);
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
pub(super) struct Hosts<A: Address> {
    shards: [Mutex<HashTable<Arc<Host<A>>>>; SHARDS],
    accounts: Mutex<HashMap<PortId, Arc<Account>>>,
    hash: KeyedHash,
}

impl<A: Address> Hosts<A> {
    pub(super) fn new(secret: Secret) -> Self {
        Self { shards: Default::default(), accounts: Mutex::default(), hash: KeyedHash::new(secret) }
    }

    /// The account of a port.
    pub(super) fn account(&self, port: PortId) -> Arc<Account> {
        Arc::clone(self.accounts().entry(port).or_default())
    }

    /// The host with an address. If it is new it is made, at the expense of `account`: `None` if that has `limit`
    /// addresses.
    pub(super) fn get(&self, address: A, account: Option<&Arc<Account>>, limit: u32) -> Option<Arc<Host<A>>> {
        let hash = self.hash(address);
        let mut shard = self.shard(hash as usize);
        if let Some(host) = shard.find(hash, |host| host.address == address) {
            return Some(Arc::clone(host));
        }
        if account.is_some_and(|account| !take(&account.addresses, limit)) {
            return None;
        }
        let host = Arc::new(Host {
            address,
            sessions: AtomicU32::new(0),
            from_outside: AtomicU32::new(0),
            mappings: Default::default(),
            external: Mutex::new(Weak::new()),
            account: account.cloned(),
        });
        shard.insert_unique(hash, Arc::clone(&host), |host| self.hash(host.address));
        Some(host)
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
        // Likewise: without a host or a mapping, an account is all zeros.
        self.accounts().retain(|_, account| Arc::strong_count(account) > 1);
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
        let accounts = self.accounts().capacity() * size_of::<(PortId, Account)>();
        (0..SHARDS).map(shard).sum::<usize>() + accounts + size_of::<Self>()
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<PortId, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, address: A) -> u64 {
        self.hash.pair(A::mix(&self.hash, address, A::UNSPECIFIED), 0)
    }

    fn shard(&self, i: usize) -> MutexGuard<'_, HashTable<Arc<Host<A>>>> {
        self.shards[i % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
