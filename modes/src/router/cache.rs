//! A worker's cache of the [`Neighbors`]: one line of the processor's cache for each answer.
//!
//! An answer is used while the table's epoch is what it was before the answer was read, and for a second at most:
//! then the table is asked again and so learns that the entry is in use. "Not known" is not cached, because the
//! frames that it concerns go to the slow path anyway.

use std::net::IpAddr;
use std::sync::Arc;

use switch_core::time::Instant;

use super::neighbors::{NOTE_EVERY, Neighbors};
use super::{Link, Station};

/// Answers: 64 KB.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 10;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Answer {
    link: Link,
    address: IpAddr,
    station: Station,
    until: Instant,
}

/// One worker's view of the neighbours.
#[derive(Debug)]
pub struct Cache {
    neighbors: Arc<Neighbors>,
    slots: Box<[Option<Answer>]>,
    epoch: u64,
    now: Instant,
}

impl Cache {
    /// An empty cache.
    pub fn new(neighbors: Arc<Neighbors>) -> Self {
        Self { neighbors, slots: vec![None; SLOTS].into(), epoch: 0, now: Instant::ORIGIN }
    }

    /// Begins a burst: what was changed before is seen from here on.
    #[inline]
    pub fn begin(&mut self, now: Instant) {
        self.now = now;
        let epoch = self.neighbors.epoch();
        if epoch != self.epoch {
            self.slots.fill(None);
            self.epoch = epoch;
        }
    }

    /// Where a neighbour is.
    #[inline]
    pub fn get(&mut self, link: Link, address: IpAddr) -> Option<Station> {
        let slot = self.slots.get_mut(slot(link, address))?;
        match slot {
            Some(a) if a.address == address && a.link == link && self.now < a.until => Some(a.station),
            _ => {
                let station = self.neighbors.get(self.now, link, address)?;
                *slot = Some(Answer { link, address, station, until: self.now + NOTE_EVERY });
                Some(station)
            }
        }
    }

    /// Notes traffic from a station, at most once a second for each. False if its address is known to be behind
    /// another port.
    #[inline]
    pub fn confirm(&mut self, link: Link, address: IpAddr, station: Station) -> bool {
        let Some(slot) = self.slots.get_mut(slot(link, address)) else { return true };
        match slot {
            Some(a) if a.address == address && a.link == link && self.now < a.until => {
                a.station.port == station.port
            }
            _ => match self.neighbors.confirm(self.now, link, address, station) {
                Some(known) => {
                    if known == station {
                        *slot = Some(Answer { link, address, station, until: self.now + NOTE_EVERY });
                    }
                    known.port == station.port
                }
                None => true,
            },
        }
    }
}

/// Where an answer is. Addresses that collide only cost one another a look into the table.
#[inline]
fn slot(link: Link, address: IpAddr) -> usize {
    use switch_core::ids::Id;
    let link = match link {
        Link::Port(port) => port.index() as u64,
        Link::Shared(n) => u64::from(n) | 1 << 32,
    };
    let address = match address {
        IpAddr::V4(a) => u64::from(a.to_bits()),
        IpAddr::V6(a) => {
            let bits = a.to_bits();
            ((bits >> 64) as u64).rotate_left(29) ^ bits as u64
        }
    };
    let hash = (address ^ link.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (u64::BITS - SLOT_BITS)) as usize
}
