//! The ports of one outside address: who has which, which rest, and which is chosen next.
//!
//! - Ports 1024 to 65535 are given out for TCP and UDP; those below belong to forwards and to the host itself.
//!   Identifiers of ICMP queries are all given out. No port is given out twice at a time (RFC 4787, REQ-3).
//! - The choice is random (RFC 6056); for UDP it keeps the parity of the inside port while a port of that parity is
//!   free (RFC 4787, REQ-4). Contiguity is not kept: RFC 4787 (4.2.3) recommends against relying on it.
//! - A port that was freed rests before it is given out again (RFC 6888, REQ-8), and counts as its last holder's
//!   until then: a guest that opens and drops mappings in haste uses up its own share.
//!
//! Who has a port is in atomic words for each, read without a lock for each packet from the outside. It is a hint:
//! the session that it leads to, or the mapping under the lock of its shard, is compared with the port.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::access::Protocol;
use super::flow::{Address, Endpoint};
use super::hosts::Payer;
use super::random::{Random, Secret};
use super::time::Tick;

const PORTS: usize = 1 << 16;
const WORDS: usize = PORTS / 64;
/// Random ports that are tried one by one before the words are searched.
const TRIES: usize = 4;
/// The first port that is given out for TCP and UDP.
pub const FIRST_PORT: u16 = 1024;

/// Where a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappingRef {
    pub(super) shard: usize,
    pub(super) slot: u32,
}

/// Who has a port: where its mapping is, or zero; and the inside endpoint, or what it was.
#[derive(Debug)]
struct Holder<A: Address> {
    mapping: AtomicU32,
    address: A::Cell,
    port: AtomicU16,
}

impl<A: Address> Default for Holder<A> {
    /// Nobody.
    fn default() -> Self {
        Self { mapping: AtomicU32::new(0), address: A::Cell::default(), port: AtomicU16::new(0) }
    }
}

/// Bits of a slot in a word of the port table.
const SLOT_BITS: u32 = 26;
/// Mappings of a shard, at most: a slot and one more fit their bits.
pub(super) const MAPPINGS_MAX: usize = (1 << SLOT_BITS) - 1;

/// An outside address.
#[derive(Debug)]
pub(super) struct External<A: Address> {
    pub(super) address: A,
    /// Inside hosts that are paired with it.
    pub(super) hosts: AtomicU32,
    protocols: [OnceLock<Ports<A>>; 3],
    secret: Secret,
    rest: u32,
}

/// The ports of one protocol. Made when the first is used: almost a megabyte for IPv4.
#[derive(Debug)]
struct Ports<A: Address> {
    holders: Box<[Holder<A>]>,
    pool: Mutex<Pool<A>>,
}

#[derive(Debug)]
struct Pool<A: Address> {
    /// Given out, or resting.
    taken: Box<[u64; WORDS]>,
    /// Never given out: below [`FIRST_PORT`], or forwarded.
    reserved: Box<[u64; WORDS]>,
    resting: VecDeque<Resting<A>>,
    random: Random,
}

#[derive(Debug)]
struct Resting<A: Address> {
    until: Tick,
    port: u16,
    holder: Payer<A>,
}

impl<A: Address> External<A> {
    pub(super) fn new(address: A, secret: Secret, rest: u32) -> Self {
        Self { address, hosts: AtomicU32::new(0), protocols: Default::default(), secret, rest }
    }

    fn ports(&self, protocol: Protocol) -> &Ports<A> {
        self.protocols[protocol as usize].get_or_init(|| Ports::new(protocol, self.secret))
    }

    /// Whose a port may be, and which inside endpoint it may stand for.
    #[inline]
    pub(super) fn holder(&self, protocol: Protocol, port: u16) -> Option<(MappingRef, Endpoint<A>)> {
        let ports = self.protocols[protocol as usize].get()?;
        let holder = ports.holders.get(usize::from(port))?;
        let word = holder.mapping.load(Ordering::Acquire);
        let slot = (word & ((1 << SLOT_BITS) - 1)).checked_sub(1)?;
        let inside = Endpoint::new(A::load(&holder.address), holder.port.load(Ordering::Relaxed));
        Some((MappingRef { shard: (word >> SLOT_BITS) as usize, slot }, inside))
    }

    /// Says whose a port is that [`External::take`] gave.
    pub(super) fn hold(&self, protocol: Protocol, port: u16, mapping: MappingRef, inside: Endpoint<A>) {
        let word = (mapping.shard as u32) << SLOT_BITS | (mapping.slot + 1);
        if let Some(holder) = self.ports(protocol).holders.get(usize::from(port)) {
            A::store(&holder.address, inside.address);
            holder.port.store(inside.port, Ordering::Relaxed);
            holder.mapping.store(word, Ordering::Release);
        }
    }

    /// Gives out a port for an inside port. `None` if none is free.
    pub(super) fn take(&self, now: Tick, protocol: Protocol, inside: u16) -> Option<u16> {
        let mut pool = self.ports(protocol).lock();
        pool.wake(now, protocol);
        let port = match protocol {
            Protocol::Udp => {
                pool.choose(0x5555_5555_5555_5555 << (inside & 1)).or_else(|| pool.choose(u64::MAX))
            }
            Protocol::Tcp | Protocol::Icmp => pool.choose(u64::MAX),
        }?;
        set(&mut pool.taken, port, true);
        Some(port)
    }

    /// Takes a port back from its holder; it rests from now on.
    pub(super) fn free(&self, now: Tick, protocol: Protocol, port: u16, holder: Payer<A>) {
        let ports = self.ports(protocol);
        if let Some(place) = ports.holders.get(usize::from(port)) {
            place.mapping.store(0, Ordering::Release);
        }
        let until = now.after(self.rest);
        ports.lock().resting.push_back(Resting { until, port, holder });
    }

    /// Lets ports that have rested be given out again.
    pub(super) fn wake(&self, now: Tick) {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            if let Some(ports) = self.protocols[protocol as usize].get() {
                ports.lock().wake(now, protocol);
            }
        }
    }

    /// True if ports rest.
    pub(super) fn has_resting(&self) -> bool {
        self.protocols.iter().filter_map(OnceLock::get).any(|ports| !ports.lock().resting.is_empty())
    }

    /// Keeps a port from being given out, or no longer.
    pub(super) fn reserve(&self, protocol: Protocol, port: u16, reserved: bool) {
        let first = if protocol == Protocol::Icmp { 0 } else { FIRST_PORT };
        set(&mut self.ports(protocol).lock().reserved, port, reserved || port < first);
    }

    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        let ports = |ports: &Ports<A>| {
            let resting = ports.lock().resting.capacity() * size_of::<Resting<A>>();
            PORTS * size_of::<Holder<A>>() + 2 * WORDS * size_of::<u64>() + resting
        };
        self.protocols.iter().filter_map(OnceLock::get).map(ports).sum::<usize>() + size_of::<Self>()
    }
}

impl<A: Address> Ports<A> {
    fn new(protocol: Protocol, secret: Secret) -> Self {
        let mut reserved = Box::new([0; WORDS]);
        if protocol != Protocol::Icmp {
            reserved[..usize::from(FIRST_PORT) / 64].fill(u64::MAX);
        }
        Self {
            holders: (0..PORTS).map(|_| Holder::default()).collect(),
            pool: Mutex::new(Pool {
                taken: Box::new([0; WORDS]),
                reserved,
                resting: VecDeque::new(),
                random: Random::new(secret.derive(protocol as u64)),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pool<A>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Pool<A> {
    fn wake(&mut self, now: Tick, protocol: Protocol) {
        while self.resting.front().is_some_and(|resting| resting.until <= now) {
            if let Some(Resting { port, holder, .. }) = self.resting.pop_front() {
                set(&mut self.taken, port, false);
                holder.release_mapping(protocol);
            }
        }
    }

    /// Which ports of a word are free, of those in `mask`.
    fn free(&self, word: usize, mask: u64) -> u64 {
        let unavailable = |words: &[u64; WORDS]| words.get(word).copied().unwrap_or(u64::MAX);
        !(unavailable(&self.taken) | unavailable(&self.reserved)) & mask
    }

    /// A random free port of those whose place in its word is in `mask`.
    fn choose(&mut self, mask: u64) -> Option<u16> {
        let mut start = 0;
        let mut turn = 0;
        for _ in 0..TRIES {
            let random = self.random.draw();
            (start, turn) = (random as usize % WORDS, (random >> 32) as u32 % 64);
            if self.free(start, mask) & 1 << turn != 0 {
                return Some((start * 64) as u16 + turn as u16);
            }
        }
        // All words once, from a random one, and in the word from a random place on.
        (start..start + WORDS).map(|word| word % WORDS).find_map(|word| {
            let free = self.free(word, mask).rotate_right(turn);
            (free != 0).then(|| (word * 64) as u16 + ((free.trailing_zeros() + turn) % 64) as u16)
        })
    }
}

fn set(words: &mut [u64; WORDS], port: u16, on: bool) {
    if let Some(word) = words.get_mut(usize::from(port) / 64) {
        let bit = 1 << (port % 64);
        *word = if on { *word | bit } else { *word & !bit };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::napt::hosts::Hosts;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    fn external() -> External<Ipv4Addr> {
        External::new(Ipv4Addr::new(192, 0, 2, 1), Secret::new([3, 4]), 10)
    }

    #[test]
    fn every_port_is_given_out_once() {
        for (protocol, count) in [(Protocol::Tcp, 64512), (Protocol::Udp, 64512), (Protocol::Icmp, 65536)] {
            let external = external();
            let mut given = HashSet::new();
            while let Some(port) = external.take(Tick::ZERO, protocol, given.len() as u16) {
                assert!(given.insert(port), "{protocol} {port} was given out twice");
                assert!(protocol == Protocol::Icmp || port >= FIRST_PORT);
            }
            assert_eq!(given.len(), count);
        }
    }

    #[test]
    fn a_freed_port_rests_and_a_reserved_one_is_never_given() {
        let external = external();
        let host = Hosts::new(Secret::new([1, 2])).get(Ipv4Addr::LOCALHOST, None, 0).unwrap();
        let holder = Payer { host, account: None };
        assert!(holder.take_mapping(Protocol::Tcp, 1));
        let mut given = HashSet::new();
        external.reserve(Protocol::Tcp, 5000, true);
        while let Some(port) = external.take(Tick::ZERO, Protocol::Tcp, 1) {
            given.insert(port);
        }
        assert!(!given.contains(&5000) && given.len() == 64511);
        external.free(Tick::ZERO, Protocol::Tcp, 7000, holder);
        assert_eq!(external.take(Tick::ZERO.after(9), Protocol::Tcp, 1), None);
        assert_eq!(external.take(Tick::ZERO.after(10), Protocol::Tcp, 1), Some(7000));
        external.reserve(Protocol::Tcp, 5000, false);
        assert_eq!(external.take(Tick::ZERO, Protocol::Tcp, 1), Some(5000));
        external.reserve(Protocol::Tcp, 80, false);
        assert_eq!(external.take(Tick::ZERO, Protocol::Tcp, 1), None, "low ports are not given out");
    }
}
