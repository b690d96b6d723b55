//! Network address and port translation, as RFC 4787, 5382, 5508, 6888 and 7857 want it.
//!
//! The engine answers questions about flows, not about frames: what stands for a guest's endpoint outside, which
//! guest is meant by a packet from the outside, what the headers within an ICMP error become. It is the same code
//! for both versions of IP. There are no application-level gateways, and nothing depends on the load.
//!
//! - **Mapping** is endpoint-independent: an inside endpoint has one outside endpoint, whatever it sends to. An
//!   outside port is one mapping's at a time. An inside host keeps one outside address.
//! - **Filtering** is as [`Filtering`] says. What a filter lets in without a session is translated without one:
//!   the outside cannot fill the tables with UDP. A forward lets everybody in.
//! - **Sessions** end by their timeouts alone, and with the forward or the outside address that they came by.
//!   UDP and ICMP are kept by outbound packets only. `tcp` has TCP's states.
//! - **ICMP errors** are translated if the packet within is of a session; they change nothing.
//! - **Quotas** (sessions, ports) are of each inside address and of each port that packets come by, and are hard.
//!   So is the number of inside addresses of a port.
//! - **Hairpinning** is two questions: the outbound one gives the sender's outside endpoint, which is the remote
//!   end in the inbound one.
//!
//! # Threads
//! All workers share one [`Napt`] and have a [`View`] each. The tables are in 64 shards, each behind a mutex that is
//! held for one packet. A packet that finds its session, and changes nothing of it but its times, takes no lock (see
//! `session`): that is what packets of a burst do together. Locks are taken in this order: a shard; then one of the hosts'
//! or of an outside address' ports. Outside addresses and forwards are an immutable `Outside` behind an epoch; a
//! change takes effect, then what it contradicts is removed shard by shard, and a worker that makes a mapping
//! compares the epoch while it has the shard. So a completed change holds for every packet after it.
//!
//! - [`access`]: what an operator sees and changes. [`fragments`]: fragments of packets that were translated.

pub mod access;
mod ahead;
mod common;
pub mod flow;
mod forwards;
pub mod fragments;
mod hosts;
mod index;
mod ports;
mod random;
mod session;
mod shard;
mod slab;
mod tcp;
#[cfg(test)]
mod tests;
mod time;
mod view;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use access::{Forward, ForwardError, NatAccess, NatSession, Protocol};
pub use ahead::{Hint, Way};
pub use common::{Filtering, Settings};
pub use flow::{Address, Endpoint, Flow, TcpFlags};
pub use forwards::FORWARDS_MAX;
pub use fragments::Fragments;
pub use ports::FIRST_PORT;
pub use view::View;

use crate::time::Instant;
use common::Common;
use forwards::{Entry, Forwards};
use index::Index;
use ports::{External, MAPPINGS_MAX};
use shard::{Mapping, Shard};
use time::{Tick, ticks};

const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;
/// Outside addresses, at most.
pub const EXTERNALS_MAX: usize = 256;
/// Outside addresses that were taken back and are remembered for the ports that rest on them, at most.
const RETIRED_MAX: usize = 16;

/// What a translator is to the outside. Never changed, only replaced.
#[derive(Clone, Debug)]
struct Outside<A: Address> {
    externals: Vec<Arc<External<A>>>,
    /// Addresses that were ours.
    retired: Vec<Arc<External<A>>>,
    forwards: Forwards<A>,
}

impl<A: Address> Outside<A> {
    #[inline]
    fn external(&self, address: A) -> Option<&Arc<External<A>>> {
        self.externals.iter().find(|external| external.address == address)
    }

    fn reserve(&self, forward: &Entry<A>, reserved: bool) {
        for external in self.externals.iter().filter(|external| forward.is_at(external.address)) {
            for port in forward.ports() {
                external.reserve(forward.protocol, port, reserved);
            }
        }
    }
}

/// A translator for one version of IP. See the module's text.
#[derive(Debug)]
pub struct Napt<A: Address> {
    common: Common<A>,
    shards: Box<[Mutex<Shard<A>>]>,
    /// Of each shard, what workers find sessions by.
    indexes: Box<[Arc<Index>]>,
    outside: Mutex<Arc<Outside<A>>>,
    /// Of `outside`.
    epoch: AtomicU32,
    /// Where [`Napt::expire`] goes on.
    next: AtomicUsize,
    next_hosts: AtomicUsize,
}

impl<A: Address> Napt<A> {
    /// A translator that has no outside address yet: until it has one, nothing goes out.
    pub fn new(settings: Settings) -> Self {
        let outside = Outside { externals: Vec::new(), retired: Vec::new(), forwards: Forwards::new() };
        let shards: Vec<_> = (0..SHARDS).map(|_| Shard::new()).collect();
        Self {
            common: Common::new(settings),
            indexes: shards.iter().map(Shard::index).collect(),
            shards: shards.into_iter().map(Mutex::new).collect(),
            outside: Mutex::new(Arc::new(outside)),
            epoch: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            next_hosts: AtomicUsize::new(0),
        }
    }

    /// The outside addresses.
    pub fn externals(&self) -> Vec<A> {
        self.outside().externals.iter().map(|external| external.address).collect()
    }

    /// Sets the outside addresses, at most [`EXTERNALS_MAX`]. Sessions of addresses that are not among them end;
    /// those of the others stay.
    pub fn set_externals(&self, now: Instant, addresses: &[A]) {
        let now = Tick::of(now);
        self.change(|old| {
            let known = |address| {
                old.externals.iter().chain(&old.retired).find(|external| external.address == address)
            };
            let rest = ticks(self.common.settings.port_rest);
            let mut externals: Vec<Arc<External<A>>> = Vec::new();
            for &address in addresses.iter().take(EXTERNALS_MAX) {
                if externals.iter().any(|external| external.address == address) {
                    continue;
                }
                externals.push(known(address).map_or_else(
                    || {
                        let word = A::mix(&self.common.hash, address, A::UNSPECIFIED);
                        Arc::new(External::new(address, self.common.secret.derive(word), rest))
                    },
                    Arc::clone,
                ));
            }
            let gone = |external: &&Arc<External<A>>| !addresses.contains(&external.address);
            let mut retired: Vec<_> =
                old.externals.iter().chain(&old.retired).filter(gone).cloned().collect();
            retired.truncate(RETIRED_MAX);
            let new = Outside { externals, retired, forwards: old.forwards.clone() };
            for forward in new.forwards.iter() {
                new.reserve(forward, true);
            }
            new
        });
        let outside = self.outside();
        self.retire(now, |mapping| outside.external(mapping.outside.address).is_none());
    }

    /// Forwards a port or a range. See [`NatAccess::add_forward`]. A session that has one of the ports ends.
    ///
    /// # Errors
    /// It contradicts a forward that is there, or cannot be.
    pub fn add_forward(&self, now: Instant, forward: &Forward) -> Result<(), ForwardError> {
        let mut added = Err(ForwardError::Impossible("nothing was tried"));
        self.change(|old| {
            let mut new = old.clone();
            added = new.forwards.add(forward);
            if let Ok(entry) = &added {
                new.reserve(entry, true);
            }
            new
        });
        let entry = added?;
        self.retire(Tick::of(now), |mapping| {
            mapping.forward == 0
                && mapping.protocol == entry.protocol
                && entry.is_at(mapping.outside.address)
                && entry.ports().contains(&mapping.outside.port)
        });
        Ok(())
    }

    /// Takes a forward back, with the sessions that came by it; false if it was not there.
    pub fn remove_forward(&self, now: Instant, forward: &Forward) -> bool {
        let mut removed = None;
        self.change(|old| {
            let mut new = old.clone();
            removed = new.forwards.remove(forward);
            if let Some(entry) = &removed {
                new.reserve(entry, false);
            }
            new
        });
        let Some(entry) = removed else { return false };
        self.retire(Tick::of(now), |mapping| mapping.forward == entry.id);
        true
    }

    /// Takes away what has ended, at most about `budget` sessions. True if there is more to do at once. To be
    /// called each second while [`Napt::is_idle`] is false; how often changes nothing but how soon room is made.
    pub fn expire(&self, now: Instant, budget: usize) -> bool {
        let now = Tick::of(now);
        let mut left = budget.max(1);
        for _ in 0..SHARDS {
            let i = self.next.load(Ordering::Relaxed);
            left = self.shard(i).advance(&self.common, now, left);
            if left == 0 {
                return true;
            }
            self.next.store((i + 1) % SHARDS, Ordering::Relaxed);
        }
        let outside = self.outside();
        for external in outside.externals.iter().chain(&outside.retired) {
            external.wake(now);
        }
        self.common.hosts.sweep(self.next_hosts.fetch_add(1, Ordering::Relaxed));
        false
    }

    /// True if nothing is in the tables that could end.
    pub fn is_idle(&self) -> bool {
        let outside = self.outside();
        self.session_count() == 0
            && self.common.hosts.len() == 0
            && !outside.externals.iter().chain(&outside.retired).any(|external| external.has_resting())
    }

    /// Sessions in the tables; those that ended in the last second or two may be among them.
    pub fn session_count(&self) -> usize {
        self.common.sessions.load(Ordering::Relaxed) as usize
    }

    /// Sessions, at most `limit`, in no order. No worker waits meanwhile.
    pub fn sessions(&self, now: Instant, limit: usize) -> Vec<NatSession> {
        let now = Tick::of(now);
        self.common.places.iter().filter_map(|session| session.report(now)).take(limit).collect()
    }

    /// Bytes that the tables hold.
    pub fn memory(&self) -> usize {
        let outside = self.outside();
        let externals = outside.externals.iter().chain(&outside.retired);
        (0..SHARDS).map(|i| self.shard(i).memory()).sum::<usize>()
            + externals.map(|external| external.memory()).sum::<usize>()
            + self.common.hosts.memory()
            + self.common.places.memory()
            + size_of::<Self>()
    }

    /// A shard. It holds its invariants between any two operations.
    #[inline]
    fn shard(&self, i: usize) -> MutexGuard<'_, Shard<A>> {
        self.shards[i % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(&self) -> Arc<Outside<A>> {
        Arc::clone(&self.outside.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces what is outside. When this returns, no mapping is made by the old one any more.
    fn change(&self, new: impl FnOnce(&Outside<A>) -> Outside<A>) {
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        *outside = Arc::new(new(&outside));
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Ends some mappings with their sessions. Each shard is kept while all of it is looked at (0.1 ms with a million
    /// sessions): what a worker adds is either seen here, or made by what is outside now.
    fn retire(&self, now: Tick, is: impl Fn(&Mapping<A>) -> bool) {
        for i in 0..SHARDS {
            self.shard(i).retire(&self.common, now, &is);
        }
    }
}

/// The shard of an inside endpoint, by its hash: bits that tags do not use.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

const _: () = assert!(SHARDS <= 64 && MAPPINGS_MAX < 1 << 26, "a reference to a mapping fits 32 bits");
