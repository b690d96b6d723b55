//! Packets that guests send in fragments, put together again (RFC 791, 3.2; RFC 8200, 4.5).
//!
//! A packet's fragments are those of one guest's port with the same addresses and identification, and in IPv4 the same
//! protocol. The packet is there when every byte is. What does not come in time is forgotten, and its sender is told if
//! the first fragment came (RFC 1122, 3.3.2; RFC 8200, 4.5).
//!
//! Fragments that overlap end their packet, in both families: nothing of it is kept, and what else comes of it is dropped
//! until its time is over (RFC 5722). A fragment that is the very same as one that came is ignored. Of a first fragment
//! the whole transport header is asked (RFC 1858, RFC 7112).
//!
//! Bounds: [`BYTES`] of memory and [`PACKETS`] packets in all, and for each guest; [`PIECES`] fragments of a packet. Where
//! a guest's share is used up, its own oldest packet goes; where all is used up, the oldest of who has most. So no guest
//! takes anything from one that has less.
//!
//! Not a library's: etherparse's `defrag` lets later fragments overwrite earlier ones and bounds neither packets nor
//! pieces, smoltcp's assembler is not public. Neither knows whose memory it is.

mod packet;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::time::Duration;

use switch_core::ip::{Addresses, Packet};
use switch_core::{Instant, PortId};

use self::packet::{Fragment, whole};
use crate::counters::{Counter, Counters};

/// Bytes of memory that incomplete packets take at most: of one guest, and in all.
pub(crate) const BYTES: (usize, usize) = (1 << 20, 4 << 20);
/// Incomplete packets: of one guest, and in all.
pub(crate) const PACKETS: (usize, usize) = (128, 512);
/// Fragments of one packet: 64 KB over an MTU of 576 are 119.
pub(crate) const PIECES: usize = 128;
/// What is charged for a packet, and for each of its fragments, besides the bytes.
const OVERHEAD: usize = 128;
/// How long a packet's fragments may take: IPv4's as Linux has it, IPv6's as RFC 8200 (4.5).
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

/// Which packet a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    owner: Option<PortId>,
    addresses: Addresses,
    id: u32,
    /// In IPv6 zero: the identification is the protocols' together.
    protocol: u8,
}

/// A packet that is not whole.
#[derive(Debug)]
struct Partial {
    /// By where they begin. None of them overlap.
    pieces: BTreeMap<u16, Fragment>,
    /// Bytes of the packet that are there.
    held: usize,
    /// Where the packet ends, if its last fragment came.
    end: Option<usize>,
    /// Memory that it takes.
    charged: usize,
    deadline: Instant,
    /// Packets are numbered as they begin.
    serial: u64,
    /// It had fragments that overlap.
    is_refused: bool,
}

/// What a guest has.
#[derive(Debug, Default)]
struct Share {
    bytes: usize,
    /// Its packets, the oldest first.
    ages: BTreeMap<u64, Key>,
}

/// A packet whose time is over.
#[derive(Debug)]
pub(crate) struct Overdue {
    /// The port that its fragments came from.
    pub(crate) owner: Option<PortId>,
    /// The frame of its first fragment, if that came.
    pub(crate) first: Option<Vec<u8>>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    packets: HashMap<Key, Partial>,
    owners: HashMap<Option<PortId>, Share>,
    deadlines: BTreeMap<(Instant, u64), Key>,
    bytes: usize,
    serials: u64,
}

impl Reassembly {
    /// Takes a fragment: its frame, whole, and what that says. Gives back the frame of the packet that it completes,
    /// without options, extension headers in front of the fragment header, or padding.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        owner: Option<PortId>,
        packet: &Packet,
        frame: Vec<u8>,
        counters: &Counters,
    ) -> Option<Vec<u8>> {
        let fragment = match Fragment::of(packet, frame) {
            Ok(fragment) => fragment,
            Err(refusal) => {
                counters.add(refusal);
                return None;
            }
        };
        let protocol = if packet.is_v6() { 0 } else { packet.protocol() };
        let key = Key { owner, addresses: packet.addresses(), id: packet.fragment_id(), protocol };
        self.begin(now, key, counters);
        let partial = self.packets.get_mut(&key)?;
        if partial.is_refused {
            return None;
        }
        if let Some(same) = partial.pieces.get(&fragment.offset())
            && same.is_the_same_as(&fragment)
        {
            return None;
        }
        let refusal = if partial.is_at_odds_with(&fragment) {
            Some(Counter::FragmentOverlap)
        } else if partial.pieces.len() >= PIECES {
            Some(Counter::FragmentTiny)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            counters.add(refusal);
            self.refuse(&key);
            return None;
        }
        if !self.make_room(&key, OVERHEAD + fragment.frame_len(), counters) {
            return None;
        }
        let partial = self.packets.get_mut(&key)?;
        let cost = OVERHEAD + fragment.frame_len();
        partial.charged += cost;
        partial.held += fragment.len();
        if fragment.is_last() {
            partial.end = Some(fragment.end());
        }
        partial.pieces.insert(fragment.offset(), fragment);
        let is_whole = partial.end == Some(partial.held);
        self.charge(owner, cost);
        if !is_whole {
            return None;
        }
        let partial = self.remove(&key)?;
        counters.add(Counter::Reassembled);
        whole(partial.pieces.values(), packet.addresses(), partial.held)
    }

    /// Sees to it that there is an entry for a packet.
    fn begin(&mut self, now: Instant, key: Key, counters: &Counters) {
        if self.packets.contains_key(&key) {
            return;
        }
        let share = self.owners.get(&key.owner);
        let held = share.map_or(0, |share| share.ages.len());
        let loser = if held >= PACKETS.0 {
            Some(key.owner)
        } else if self.packets.len() >= PACKETS.1 {
            Some(self.fair(key.owner, held, |share| share.ages.len()))
        } else {
            None
        };
        if let Some(loser) = loser {
            self.evict(loser, counters);
        }
        let Entry::Vacant(place) = self.packets.entry(key) else { return };
        self.serials += 1;
        let serial = self.serials;
        let timeout = if matches!(key.addresses, Addresses::V4 { .. }) { TIMEOUT.0 } else { TIMEOUT.1 };
        let deadline = now + timeout;
        place.insert(Partial {
            pieces: BTreeMap::new(),
            held: 0,
            end: None,
            charged: OVERHEAD,
            deadline,
            serial,
            is_refused: false,
        });
        self.deadlines.insert((deadline, serial), key);
        self.owners.entry(key.owner).or_default().ages.insert(serial, key);
        self.charge(key.owner, OVERHEAD);
    }

    /// Makes room for more of a packet; false if the packet itself had to go.
    fn make_room(&mut self, key: &Key, cost: usize, counters: &Counters) -> bool {
        loop {
            let held = self.owners.get(&key.owner).map_or(0, |share| share.bytes);
            let loser = if held + cost > BYTES.0 {
                key.owner
            } else if self.bytes + cost > BYTES.1 {
                self.fair(key.owner, held, |share| share.bytes)
            } else {
                return true;
            };
            // Each turn takes a packet out: this ends.
            if !self.evict(loser, counters) || !self.packets.contains_key(key) {
                return false;
            }
        }
    }

    /// Who is to lose where all is used up: who has most, unless whoever asks, and has `held`, has as much.
    fn fair(&self, asks: Option<PortId>, held: usize, of: impl Fn(&Share) -> usize) -> Option<PortId> {
        let most = self.owners.iter().map(|(&owner, share)| (of(share), owner)).max_by_key(|(n, _)| *n);
        most.map_or(asks, |(n, owner)| if n > held { owner } else { asks })
    }

    /// Takes out an owner's oldest packet; false if it has none.
    fn evict(&mut self, owner: Option<PortId>, counters: &Counters) -> bool {
        let oldest = self.owners.get(&owner).and_then(|share| share.ages.first_key_value());
        let Some(oldest) = oldest.map(|(_, key)| *key) else { return false };
        if self.remove(&oldest).is_some_and(|partial| !partial.is_refused) {
            counters.add(Counter::FragmentEvicted);
        }
        true
    }

    /// Drops what there is of a packet, and what else comes of it.
    fn refuse(&mut self, key: &Key) {
        let Some(partial) = self.packets.get_mut(key) else { return };
        partial.pieces = BTreeMap::new();
        partial.is_refused = true;
        let given_back = partial.charged - OVERHEAD;
        partial.charged = OVERHEAD;
        self.discharge(key.owner, given_back);
    }

    fn remove(&mut self, key: &Key) -> Option<Partial> {
        let partial = self.packets.remove(key)?;
        self.deadlines.remove(&(partial.deadline, partial.serial));
        self.discharge(key.owner, partial.charged);
        if let Some(share) = self.owners.get_mut(&key.owner) {
            share.ages.remove(&partial.serial);
            if share.ages.is_empty() {
                self.owners.remove(&key.owner);
            }
        }
        Some(partial)
    }

    fn charge(&mut self, owner: Option<PortId>, bytes: usize) {
        self.bytes += bytes;
        if let Some(share) = self.owners.get_mut(&owner) {
            share.bytes += bytes;
        }
    }

    fn discharge(&mut self, owner: Option<PortId>, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(share) = self.owners.get_mut(&owner) {
            share.bytes = share.bytes.saturating_sub(bytes);
        }
    }

    /// When [`Reassembly::expire`] next has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes out a packet whose time is over; one that was refused before is not told of.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Overdue> {
        while self.due().is_some_and(|at| at <= now) {
            let (_, key) = self.deadlines.pop_first()?;
            let Some(mut partial) = self.remove(&key).filter(|partial| !partial.is_refused) else { continue };
            let first = partial.pieces.remove(&0).map(Fragment::into_frame);
            return Some(Overdue { owner: key.owner, first });
        }
        None
    }
}

impl Partial {
    /// Whether a fragment overlaps with others, or contradicts what they say of the packet's end.
    fn is_at_odds_with(&self, fragment: &Fragment) -> bool {
        let (start, end) = (fragment.offset(), fragment.end());
        let before =
            self.pieces.range(..=start).next_back().is_some_and(|(_, p)| p.end() > usize::from(start));
        let behind = self.pieces.range(start..).next().is_some_and(|(_, p)| usize::from(p.offset()) < end);
        let beyond = match self.end {
            Some(known) => end > known || fragment.is_last(),
            None => fragment.is_last() && self.pieces.last_key_value().is_some_and(|(_, p)| p.end() > end),
        };
        before || behind || beyond
    }
}
