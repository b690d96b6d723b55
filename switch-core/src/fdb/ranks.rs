//! The ports of a table, and which of them holds most learned entries.
//!
//! A count changes by one at a time, so ports are kept in one list per count: a change moves a port to a
//! neighbouring list, and the highest count that has a port moves with it. Everything is constant time, but to
//! find a port by its identifier, which takes the logarithm of the number of ports.

use std::collections::BTreeMap;

use super::list::{Link, Linked, List, NONE};
use crate::ids::PortId;

/// Names a port's [`Usage`] for as long as the port has entries.
pub(super) type PortSlot = u32;

/// The link of entries on the list of their port.
pub(super) const BY_PORT: usize = 0;
/// The link of ports on the list of their count.
const BY_COUNT: usize = 0;

/// A port that has entries.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) port: PortId,
    /// Its learned entries, least recently seen first.
    pub(super) learned: List<BY_PORT>,
    /// Its static entries.
    pub(super) statics: List<BY_PORT>,
    /// How many are on `learned`.
    count: u32,
    rank: Link,
}

impl Linked<BY_COUNT> for Usage {
    fn link(&mut self) -> &mut Link {
        &mut self.rank
    }
}

/// The ports that have entries.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    slots: BTreeMap<PortId, PortSlot>,
    usages: Vec<Usage>,
    free: Vec<PortSlot>,
    /// Lists of ports by count. The list of ports without learned entries is not kept.
    by_count: Vec<List<BY_COUNT>>,
    /// The highest count that a port has.
    most: usize,
}

impl Ranks {
    /// Takes room for counts up to `limit`.
    pub(super) fn reserve(&mut self, limit: usize) {
        self.by_count.reserve((limit + 1).saturating_sub(self.by_count.len()));
    }

    /// Forgets all ports, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.usages.clear();
        self.free.clear();
        self.by_count.clear();
        self.most = 0;
    }

    pub(super) fn get(&self, slot: PortSlot) -> &Usage {
        &self.usages[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: PortSlot) -> &mut Usage {
        &mut self.usages[slot as usize]
    }

    /// The slot of a port, if it has entries.
    pub(super) fn find(&self, port: PortId) -> Option<PortSlot> {
        self.slots.get(&port).copied()
    }

    /// The slot of a port that is about to have an entry.
    pub(super) fn find_or_insert(&mut self, port: PortId) -> PortSlot {
        if let Some(slot) = self.find(port) {
            return slot;
        }
        let usage =
            Usage { port, learned: List::EMPTY, statics: List::EMPTY, count: 0, rank: Link::UNLINKED };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.usages[slot as usize] = usage;
                slot
            }
            None => {
                self.usages.push(usage);
                // There are no more ports than PortId has values.
                (self.usages.len() - 1) as u32
            }
        };
        self.slots.insert(port, slot);
        slot
    }

    /// Forgets a port that has no entries any more.
    pub(super) fn release(&mut self, slot: PortSlot) {
        let Usage { port, learned, statics, .. } = *self.get(slot);
        if learned.is_empty() && statics.is_empty() && self.slots.remove(&port).is_some() {
            self.free.push(slot);
        }
    }

    /// The port has one learned entry more.
    pub(super) fn grew(&mut self, slot: PortSlot) {
        let count = self.get(slot).count as usize;
        self.leave(slot, count);
        self.enter(slot, count + 1);
        self.most = self.most.max(count + 1);
    }

    /// The port has one learned entry less.
    pub(super) fn shrank(&mut self, slot: PortSlot) {
        let count = self.get(slot).count as usize;
        self.leave(slot, count);
        self.enter(slot, count - 1);
        if self.most == count && self.by_count[count].is_empty() {
            self.most = count - 1;
        }
    }

    /// The port with most learned entries; of several, not `spare` if it can be helped: a port that is even with
    /// others and learns gets one more, and pays for the next itself. `None` if no port has learned entries.
    pub(super) fn most(&self, spare: Option<PortId>) -> Option<PortSlot> {
        let first = self.by_count.get(self.most).filter(|_| self.most > 0)?.first;
        let next = self.get(first).rank.next;
        let spared = Some(self.get(first).port) == spare && next != NONE;
        Some(if spared { next } else { first })
    }

    fn leave(&mut self, slot: PortSlot, count: usize) {
        if count > 0 {
            self.by_count[count].unlink(&mut self.usages, slot);
        }
    }

    fn enter(&mut self, slot: PortSlot, count: usize) {
        // Counts are bounded by the table's limit.
        self.usages[slot as usize].count = count as u32;
        if count > 0 {
            if self.by_count.len() <= count {
                self.by_count.resize(count + 1, List::EMPTY);
            }
            self.by_count[count].push(&mut self.usages, slot);
        }
    }
}
