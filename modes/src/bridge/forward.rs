//! One worker's view of a bridge: the fast path. It decides from the worker's cache; what the cache cannot
//! answer takes the table's mutex, which is then kept to the end of the burst.

use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};

use switch_core::drop::DropReason;
use switch_core::fdb::{Found, Key, Learned, Table};
use switch_core::head::Head;
use switch_core::ids::{Id, PortId, Vid};
use switch_core::mode::Forwarder;
use switch_core::time::Instant;
use switch_core::verdict::{BURST, Verdict, Verdicts};

use super::Bridge;
use super::cache::Cache;
use super::epochs::Epochs;

/// A worker's view of a bridge.
#[derive(Debug)]
pub(crate) struct BridgeForwarder {
    bridge: Arc<Bridge>,
    cache: Cache,
    /// Ports, by their index modulo 64, whose frames did not come in trains in the last burst.
    mixed: u64,
    /// Room for a burst's destinations and sources.
    stations: Box<[[Station; 2]; BURST]>,
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
    /// Frames that were not like the one before, and that the cache could answer.
    changes: usize,
    #[cfg(test)]
    slow: u64,
}

impl BridgeForwarder {
    pub(crate) fn new(bridge: Arc<Bridge>) -> Self {
        Self {
            bridge,
            cache: Cache::new(),
            mixed: 0,
            stations: Box::new([[Station::default(); 2]; BURST]),
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
            table: None,
            busy: false,
            last: None,
            last_source: None,
            last_destination: None,
            changes: 0,
            #[cfg(test)]
            slow: 0,
        };
        burst.cache.begin(now);
        // Ports are mixed apart, as far as the bits reach.
        let bit = 1 << (ingress.index() % 64);
        let frames = heads.len();
        if self.mixed & bit != 0 {
            burst.decide_mixed(heads, out.as_mut_slice(), &mut self.stations);
        } else {
            for (head, verdict) in heads.iter().zip(out.as_mut_slice()) {
                *verdict = burst.decide(head);
            }
        }
        if burst.changes * TRAIN < frames {
            self.mixed &= !bit;
        } else {
            self.mixed |= bit;
        }
        #[cfg(test)]
        {
            self.slow += burst.slow;
        }
    }
}

/// A frame's first twelve bytes: the addresses of both stations.
type Addresses = [u8; 12];

/// A frame's destination or source.
#[derive(Clone, Copy, Debug, Default)]
struct Station {
    key: Key,
    hash: u64,
}

/// Frames come in trains while fewer than one in so many is not like the one before.
const TRAIN: usize = 8;

/// The group bit of an address as a number.
const GROUP: u64 = 1 << 40;
/// The reserved addresses, without their last four bits.
const RESERVED: u64 = 0x0180_c200_0000;

/// Destination and source as numbers: two words that overlap, without a branch or a call.
#[inline(always)]
fn macs(addresses: &Addresses) -> (u64, u64) {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = addresses;
    let destination = u64::from_be_bytes([d0, d1, d2, d3, d4, d5, s0, s1]) >> 16;
    let source = u64::from_be_bytes([d4, d5, s0, s1, s2, s3, s4, s5]) & (u64::MAX >> 16);
    (destination, source)
}

impl Burst<'_> {
    /// Decides frames of which each is of other stations.
    ///
    /// First the cache's lines for all of them are asked for, so that the processor fetches them at the same time. Then
    /// each is decided by what is there, without a branch that depends on which station it is.
    #[inline(never)]
    fn decide_mixed(
        &mut self,
        heads: &[Head],
        verdicts: &mut [Verdict],
        stations: &mut [[Station; 2]; BURST],
    ) {
        let mut changes = 0;
        let mut last = (0, 0);
        for (head, stations) in heads.iter().zip(stations.iter_mut()) {
            // A checked frame has both; a shorter one is found out below.
            let macs = head.bytes().first_chunk::<12>().map_or((0, 0), macs);
            changes += usize::from(macs != last);
            last = macs;
            *stations = [self.station(macs.0, head.vlan), self.station(macs.1, head.vlan)];
        }
        for ((head, verdict), stations) in heads.iter().zip(verdicts).zip(stations.iter()) {
            *verdict = match self.known(stations) {
                Some(port) => self.to(port),
                // Anything else: a station that is to be learned or not known, a group, what is to be dropped.
                None => match head.bytes().first_chunk::<12>() {
                    Some(addresses) => self.decide_anew(addresses, head.vlan),
                    None => Verdict::Drop(DropReason::Runt),
                },
            };
        }
        self.changes = changes;
    }

    /// A station, and its line of the cache on its way.
    #[inline(always)]
    fn station(&self, mac: u64, vlan: Option<Vid>) -> Station {
        let key = Key::from_u64(mac, vlan);
        let hash = self.bridge.epochs.hash(key);
        self.cache.prefetch(hash);
        Station { key, hash }
    }

    /// The port of a frame's destination, if the cache knows it and there is nothing to be done for the source. It knows
    /// stations only, so neither address is a group's or reserved.
    #[inline(always)]
    fn known(&self, [destination, source]: &[Station; 2]) -> Option<PortId> {
        let from = self.cache.get(source.hash, source.key)?;
        let port = self.cache.port(from, self.bridge.epochs.current(source.hash));
        if (port != Some(self.ingress)) | !self.cache.is_fresh(from) {
            return None;
        }
        let to = self.cache.get(destination.hash, destination.key)?;
        self.cache.port(to, self.bridge.epochs.current(destination.hash))
    }

    /// Decides a frame of a train.
    #[inline(always)]
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
        let (destination, source) = macs(addresses);
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
        // What the cache does not answer is not counted: there is nothing that preparing could hasten.
        self.changes += usize::from(settled);
        verdict
    }

    /// Learns the source, if the table does not know all about it.
    #[inline]
    fn see(&mut self, key: Key) {
        let hash = self.bridge.epochs.hash(key);
        let known = match self.cache.get(hash, key) {
            Some(answer) => {
                let port = self.cache.port(answer, self.bridge.epochs.current(hash));
                let is_here = port == Some(self.ingress);
                if (is_here && self.cache.is_fresh(answer)) || (port.is_some() && Cache::is_static(answer)) {
                    self.last_source = Some(key);
                    return;
                }
                is_here
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
            .and_then(|answer| self.cache.port(answer, self.bridge.epochs.current(hash)));
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
        let of_table = (self.table().ageing(), self.table().len());
        let epoch = self.bridge.epochs.current(hash);
        self.cache.put(hash, key, found, epoch, of_table);
    }
}
