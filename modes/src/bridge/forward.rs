//! One worker's view of a bridge: the fast path. It decides from the worker's cache; what the cache cannot
//! answer takes the table's mutex, which is then kept to the end of the burst.

use std::hint::black_box;
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};

use switch_core::drop::DropReason;
use switch_core::fdb::{Found, Key, Learned, Table};
use switch_core::head::Head;
use switch_core::ids::{PortId, Vid};
use switch_core::mode::Forwarder;
use switch_core::time::Instant;
use switch_core::verdict::{BURST, Verdict, Verdicts};

use super::Bridge;
use super::cache::{Answer, Cache, Tick};
use super::epochs::Epochs;

/// A worker's view of a bridge.
#[derive(Debug)]
pub(crate) struct BridgeForwarder {
    bridge: Arc<Bridge>,
    cache: Cache,
    /// Frames that the cache could not decide.
    #[cfg(test)]
    pub(super) slow: u64,
}

/// A burst on its way.
struct Burst<'a> {
    bridge: &'a Bridge,
    cache: &'a mut Cache,
    ingress: PortId,
    now: Instant,
    tick: Tick,
    /// The table, once a frame of this burst needed it.
    table: Option<MutexGuard<'a, Table<Arc<Epochs>>>>,
    /// Another worker has the table: stations that are only to be refreshed are left for a later burst.
    busy: bool,
    /// The frame before: its addresses as they stand in it, its VLAN, and what became of it, if there was nothing to be
    /// done for either station. Frames come in trains.
    last: Option<(Addresses, Option<Vid>, Verdict)>,
    /// The station that the frame before came from, if nothing is to be done for it.
    last_source: Option<Key>,
    /// Where the frame before went.
    last_destination: Option<(Key, Verdict)>,
    #[cfg(test)]
    slow: u64,
}

impl BridgeForwarder {
    pub(crate) fn new(bridge: Arc<Bridge>) -> Self {
        Self {
            bridge,
            cache: Cache::new(),
            #[cfg(test)]
            slow: 0,
        }
    }
}

impl Forwarder for BridgeForwarder {
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts) {
        if out.as_slice().len() != heads.len() {
            out.begin(heads.len());
        }
        let mut burst = Burst {
            bridge: &self.bridge,
            cache: &mut self.cache,
            ingress,
            now,
            tick: Tick::of(now),
            table: None,
            busy: false,
            last: None,
            last_source: None,
            last_destination: None,
            #[cfg(test)]
            slow: 0,
        };
        if burst.cache.is_large() {
            burst.touch(heads);
        }
        for (head, verdict) in heads.iter().zip(out.as_mut_slice()) {
            *verdict = burst.decide(head);
        }
        #[cfg(test)]
        {
            self.slow += burst.slow;
        }
    }
}

/// A frame's first twelve bytes: the addresses of both stations.
type Addresses = [u8; 12];

/// The group bit of an address as a number.
const GROUP: u64 = 1 << 40;
/// The reserved addresses, without their last four bits.
const RESERVED: u64 = 0x0180_c200_0000;

/// Destination and source as numbers.
#[inline(always)]
fn macs(addresses: &Addresses) -> [u64; 2] {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = addresses;
    [[d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]]
        .map(|[a, b, c, d, e, f]| u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

impl Burst<'_> {
    /// Has the cache's lines for all frames fetched at the same time. First the hashes of all, then the reads, with
    /// nothing between them that waits for one.
    #[inline(never)]
    fn touch(&self, heads: &[Head]) {
        let mut hashes = [0; 2 * BURST];
        let mut n = 0;
        let mut last = [0; 2];
        for head in heads {
            let Some(addresses) = head.bytes().first_chunk::<12>() else { continue };
            let macs = macs(addresses);
            for (mac, last) in macs.into_iter().zip(&mut last) {
                // A frame that is like the one before needs nothing.
                if mac != *last
                    && let Some(hash) = hashes.get_mut(n)
                {
                    *hash = self.bridge.epochs.hash(Key::from_u64(mac, head.vlan));
                    *last = mac;
                    n += 1;
                }
            }
        }
        let sum = hashes[..n].iter().fold(0, |sum, &hash| sum ^ self.cache.touch(hash));
        // The reads are what is wanted, not what was read.
        black_box(sum);
    }

    #[inline]
    fn decide(&mut self, head: &Head) -> Verdict {
        // A checked frame has both addresses; they are read as two words of which a part is the address.
        let Some(addresses) = head.bytes().first_chunk::<12>() else {
            return Verdict::Drop(DropReason::Runt);
        };
        if let Some((last, vlan, verdict)) = &self.last
            && last == addresses
            && *vlan == head.vlan
        {
            return *verdict;
        }
        self.decide_anew(addresses, head.vlan)
    }

    /// Decides a frame that is not like the one before. Apart, so that trains run through little code.
    #[inline(never)]
    fn decide_anew(&mut self, addresses: &Addresses, vlan: Option<Vid>) -> Verdict {
        let [destination, source] = macs(addresses);
        if destination & !0xf == RESERVED {
            return Verdict::Drop(DropReason::ReservedAddress);
        }
        if source & GROUP != 0 || source == 0 {
            return Verdict::Drop(DropReason::BadSource);
        }
        let source = Key::from_u64(source, vlan);
        if self.last_source != Some(source) {
            self.see(source);
        }
        if destination & GROUP != 0 {
            return Verdict::Flood;
        }
        let destination = Key::from_u64(destination, vlan);
        let verdict = match self.last_destination {
            Some((last, verdict)) if last == destination => verdict,
            _ => self.look_up(destination),
        };
        // What is not settled is asked again for each frame, as if the one before had not been there.
        let settled = self.last_source == Some(source)
            && self.last_destination.is_some_and(|(last, _)| last == destination);
        self.last = settled.then_some((*addresses, vlan, verdict));
        verdict
    }

    /// Learns the source, if the table does not know all about it.
    #[inline]
    fn see(&mut self, key: Key) {
        let hash = self.bridge.epochs.hash(key);
        let known = match self.cache.get(hash, key) {
            Some(answer) => {
                let port = answer.port(self.tick, self.bridge.epochs.current(hash));
                if port.is_some() && answer.is_settled(self.tick, self.ingress) {
                    self.last_source = Some(key);
                    return;
                }
                port == Some(self.ingress)
            }
            None => false,
        };
        self.learn(hash, key, known);
    }

    /// Where a frame to a station goes.
    #[inline]
    fn look_up(&mut self, key: Key) -> Verdict {
        let hash = self.bridge.epochs.hash(key);
        let cached = self
            .cache
            .get(hash, key)
            .and_then(|answer| answer.port(self.tick, self.bridge.epochs.current(hash)));
        let verdict = match cached {
            Some(port) => self.to(port),
            None => match self.find(hash, key) {
                Some(port) => self.to(port),
                None => return Verdict::Flood,
            },
        };
        self.last_destination = Some((key, verdict));
        verdict
    }

    #[inline]
    fn to(&self, port: PortId) -> Verdict {
        if port == self.ingress { Verdict::Drop(DropReason::SamePort) } else { Verdict::Unicast(port) }
    }

    /// Tells the table that a station was seen. `known`: at this port, as before, and it can wait.
    #[cold]
    #[inline(never)]
    fn learn(&mut self, hash: u64, key: Key, known: bool) {
        #[cfg(test)]
        {
            self.slow += 1;
        }
        if known && self.table.is_none() {
            if self.busy {
                return;
            }
            self.table = match self.bridge.table.try_lock() {
                Ok(table) => Some(table),
                Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    self.busy = true;
                    return;
                }
            };
        }
        // The destination of the frame before may be the station that is learned here.
        self.last_destination = None;
        self.last_source = None;
        let (now, ingress) = (self.now, self.ingress);
        let found = match self.table().learn(now, key, ingress) {
            // Not cached before it is seen again: a storm of addresses that are used once does not get into
            // the cache.
            Learned::New | Learned::Full => return,
            Learned::Refreshed | Learned::Moved(_) => Found { port: ingress, seen: Some(now) },
            Learned::Static(port) => Found { port, seen: None },
        };
        self.keep(hash, key, found);
    }

    /// Asks the table where a station is.
    #[cold]
    #[inline(never)]
    fn find(&mut self, hash: u64, key: Key) -> Option<PortId> {
        #[cfg(test)]
        {
            self.slow += 1;
        }
        let now = self.now;
        let found = self.table().lookup(now, key)?;
        self.keep(hash, key, found);
        Some(found.port)
    }

    fn table(&mut self) -> &mut Table<Arc<Epochs>> {
        let bridge = self.bridge;
        self.table.get_or_insert_with(|| bridge.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Caches what the table just said. The table is still held, so nothing has changed since.
    fn keep(&mut self, hash: u64, key: Key, found: Found) {
        let ageing = self.table().ageing();
        let epoch = self.bridge.epochs.current(hash);
        let stations = self.table().len();
        self.cache.make_room(stations);
        self.cache.put(hash, Answer::new(key, found, ageing, stations, epoch), self.tick);
    }
}
