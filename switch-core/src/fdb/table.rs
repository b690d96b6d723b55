//! The forwarding database itself: no lock, no clock.
//!
//! - **Entries** are in a slab; a hash table of slot numbers finds them by [`Key`]. All operations on one entry
//!   take constant time, however many there are: room for the limit is reserved when that is set.
//! - **Learned entries** are on two lists: their port's, and one of all, both least recently seen first. The
//!   latter makes ageing a walk from its old end.
//! - **When the table is full**, a new station takes the place of an entry that has aged out, else of the least
//!   recently seen learned one *of the port that holds most*. So a port that floods the table with addresses
//!   evicts its own, and cannot push others below an even share less one (Open vSwitch, `mac-learning`).
//! - **Static entries** are configured: they are never evicted, aged or moved, and a frame from their station
//!   at another port changes nothing.
//!
//! An entry that has aged out is absent from every answer at once; [`Table::tick`] is only what makes room.
//!
//! Time may run backwards by a little between callers (each worker takes it once per burst): the table never
//! lets it, so that its lists stay in order.
//!
//! Whoever keeps a copy of an answer learns of its end by [`Watch`].

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashTable;

use super::key::{Key, KeyHash};
use super::list::{Link, Linked, List, NONE};
use super::ranks::{BY_PORT, PortSlot, Ranks};
use super::{FdbEntry, FdbError};
use crate::ids::{MacAddr, PortId, Vid};
use crate::time::Instant;

/// The ageing time that IEEE 802.1Q recommends (table 8-6).
pub const AGEING_DEFAULT: Duration = Duration::from_secs(300);
/// Entries at most, unless configured.
pub const LIMIT_DEFAULT: usize = 8192;
/// The highest limit that can be configured.
pub const LIMIT_MAX: usize = 1_000_000;

/// The link of learned entries on the list of all.
const BY_AGE: usize = 1;

/// Is told when an answer that the table gave before is no longer true. Called before the operation that
/// changes the table returns.
pub trait Watch {
    /// The station's entry moved, was replaced, or is gone.
    fn changed(&self, key: Key);
    /// Any entry may have.
    fn all_changed(&self);
}

/// Nobody keeps copies.
impl Watch for () {
    fn changed(&self, _: Key) {}
    fn all_changed(&self) {}
}

impl<W: Watch> Watch for Arc<W> {
    fn changed(&self, key: Key) {
        (**self).changed(key);
    }
    fn all_changed(&self) {
        (**self).all_changed();
    }
}

/// What became of a station that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It had no entry.
    New,
    /// It is where it was.
    Refreshed,
    /// It was at another port, this one.
    Moved(PortId),
    /// Its entry is configured, with this port, and stays as it is.
    Static(PortId),
    /// Static entries fill the table: it was not learned.
    Full,
}

/// Where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The port that it is behind.
    pub port: PortId,
    /// When it was last seen; `None` if the entry is static.
    pub seen: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    /// When it was last seen. Of no meaning for static entries.
    seen: Instant,
    /// On the list of its port: `learned` or `statics`.
    by_port: Link,
    /// On the list of all learned entries. Free slots are chained by `next`.
    by_age: Link,
    port: PortSlot,
    is_static: bool,
}

impl Linked<BY_PORT> for Entry {
    fn link(&mut self) -> &mut Link {
        &mut self.by_port
    }
}

impl Linked<BY_AGE> for Entry {
    fn link(&mut self) -> &mut Link {
        &mut self.by_age
    }
}

/// A forwarding database. See the module's text.
#[derive(Debug)]
pub struct Table<W = ()> {
    index: HashTable<u32>,
    hash: KeyHash,
    entries: Vec<Entry>,
    /// The first of the slots in `entries` that are not in use.
    free: u32,
    by_age: List<BY_AGE>,
    ports: Ranks,
    statics: usize,
    ageing: Duration,
    limit: usize,
    /// The latest time that the table was told.
    latest: Instant,
    watch: W,
}

impl<W: Watch> Table<W> {
    /// An empty table. The limit is cut to 1 to [`LIMIT_MAX`]. Address space for as many entries is taken at once, so
    /// that nobody waits while a table that has grown is moved; most of it becomes memory as entries come.
    pub fn new(ageing: Duration, limit: usize, watch: W) -> Self {
        let mut this = Self {
            index: HashTable::new(),
            hash: KeyHash::new(),
            entries: Vec::new(),
            free: NONE,
            by_age: List::EMPTY,
            ports: Ranks::default(),
            statics: 0,
            ageing,
            limit: limit.clamp(1, LIMIT_MAX),
            latest: Instant::ORIGIN,
            watch,
        };
        this.reserve();
        this
    }

    /// Takes the room that the limit may need.
    fn reserve(&mut self) {
        let more = self.limit.saturating_sub(self.len());
        let (entries, hasher) = (&self.entries, &self.hash);
        self.index.reserve(more, |&i| hasher.hash(entries[i as usize].key));
        self.entries.reserve(self.limit.saturating_sub(self.entries.len()));
        self.ports.reserve(self.limit);
    }

    /// Entries that take room in the table: aged ones do until [`Table::tick`] finds them.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Entries at most. After [`Table::configure`] there can be more until [`Table::shrink`] is done, and as
    /// many more as static entries are beyond the limit.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The time without a frame after which a learned entry is gone.
    pub fn ageing(&self) -> Duration {
        self.ageing
    }

    /// A frame from a station came in at a port. The caller has made sure that the address is a station's.
    pub fn learn(&mut self, now: Instant, key: Key, port: PortId) -> Learned {
        let now = self.advance(now);
        let hash = self.hash.hash(key);
        if let Some(i) = self.find(hash, key) {
            return self.see_again(now, i, port);
        }
        if self.len() >= self.limit && !self.evict(now, Some(port)) {
            return Learned::Full;
        }
        self.insert(hash, key, now, port, false);
        Learned::New
    }

    /// Where a station is.
    pub fn lookup(&self, now: Instant, key: Key) -> Option<Found> {
        let entry = &self.entries[self.find(self.hash.hash(key), key)? as usize];
        let port = self.ports.get(entry.port).port;
        if entry.is_static {
            return Some(Found { port, seen: None });
        }
        (!self.is_aged(entry, now)).then_some(Found { port, seen: Some(entry.seen) })
    }

    /// Adds a static entry, or replaces the entry that the station has.
    pub fn add_static(&mut self, mac: MacAddr, vlan: Option<Vid>, port: PortId) -> Result<(), FdbError> {
        if !mac.is_station() {
            return Err(FdbError::NotAStation(mac));
        }
        let key = Key::new(mac, vlan);
        let hash = self.hash.hash(key);
        if let Some(i) = self.find(hash, key) {
            self.discard(i);
        } else if self.len() >= self.limit && !self.evict(self.latest, None) {
            return Err(FdbError::Full(self.limit));
        }
        self.insert(hash, key, self.latest, port, true);
        Ok(())
    }

    /// Removes an entry, static or learned. False if there was none.
    pub fn remove(&mut self, key: Key) -> bool {
        let Some(i) = self.find(self.hash.hash(key), key) else {
            return false;
        };
        let aged = self.is_aged(&self.entries[i as usize], self.latest);
        self.discard(i);
        !aged
    }

    /// Removes the learned entries of a port, or of all; how many. For a port it takes time in proportion to
    /// their number. All are dropped at once, whatever their number, if there are no static entries, else the
    /// table is walked once for these.
    pub fn flush(&mut self, port: Option<PortId>) -> usize {
        match port {
            Some(port) => {
                let mut flushed = 0;
                while let Some(slot) = self.ports.find(port)
                    && !self.ports.get(slot).learned.is_empty()
                {
                    self.discard(self.ports.get(slot).learned.first);
                    flushed += 1;
                }
                flushed
            }
            None => self.flush_all(),
        }
    }

    /// Removes the entries of a port, learned and static, at most `work` of them; how many.
    pub fn remove_port(&mut self, port: PortId, work: usize) -> usize {
        for removed in 0..work {
            let Some(slot) = self.ports.find(port) else {
                return removed;
            };
            let usage = self.ports.get(slot);
            let list = if usage.learned.is_empty() { usage.statics } else { usage.learned };
            self.discard(list.first);
        }
        work
    }

    /// Changes the ageing time and the limit, which is cut to 1 to [`LIMIT_MAX`]. If there are more entries
    /// than that, [`Table::shrink`] is to follow.
    pub fn configure(&mut self, ageing: Duration, limit: usize) {
        self.limit = limit.clamp(1, LIMIT_MAX);
        self.reserve();
        if ageing != self.ageing {
            self.ageing = ageing;
            // Entries now end at another time than their copies say.
            self.watch.all_changed();
        }
    }

    /// Evicts learned entries in the order that learning evicts them while there are more than the limit, at
    /// most `work` of them; how many.
    pub fn shrink(&mut self, work: usize) -> usize {
        (0..work).find(|_| self.len() <= self.limit || !self.evict(self.latest, None)).unwrap_or(work)
    }

    /// Removes entries that have aged out, at most `work` of them; how many.
    pub fn tick(&mut self, now: Instant, work: usize) -> usize {
        let now = self.advance(now);
        (0..work).find(|_| !self.remove_aged(now)).unwrap_or(work)
    }

    /// When [`Table::tick`] next has something to do.
    pub fn poll_at(&self) -> Option<Instant> {
        self.oldest().map(|i| self.entries[i as usize].seen + self.ageing)
    }

    /// Appends the entries of `work` slots from `from` on; returns where to go on, until there is no more.
    /// An entry that is there from the first call to the last is appended once.
    pub fn entries_from(
        &self,
        now: Instant,
        from: usize,
        work: usize,
        out: &mut Vec<FdbEntry>,
    ) -> Option<usize> {
        let end = from.saturating_add(work).min(self.entries.len());
        for entry in self.entries.get(from..end).unwrap_or_default() {
            if entry.port == NONE || (!entry.is_static && self.is_aged(entry, now)) {
                continue;
            }
            let age = if entry.is_static { Duration::ZERO } else { now.since(entry.seen) };
            out.push(FdbEntry {
                mac: entry.key.mac(),
                vlan: entry.key.vlan(),
                port: self.ports.get(entry.port).port,
                age,
                is_static: entry.is_static,
            });
        }
        (end < self.entries.len()).then_some(end)
    }

    /// All entries, in no order.
    pub fn entries(&self, now: Instant) -> Vec<FdbEntry> {
        let mut out = Vec::with_capacity(self.len());
        self.entries_from(now, 0, usize::MAX, &mut out);
        out
    }

    fn advance(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn find(&self, hash: u64, key: Key) -> Option<u32> {
        self.index.find(hash, |&i| self.entries[i as usize].key == key).copied()
    }

    fn is_aged(&self, entry: &Entry, now: Instant) -> bool {
        !entry.is_static && now.since(entry.seen) >= self.ageing
    }

    fn oldest(&self) -> Option<u32> {
        Some(self.by_age.first).filter(|&i| i != NONE)
    }

    fn see_again(&mut self, now: Instant, i: u32, port: PortId) -> Learned {
        let entry = &self.entries[i as usize];
        let slot = entry.port;
        let from = self.ports.get(slot).port;
        if entry.is_static {
            return Learned::Static(from);
        }
        let aged = self.is_aged(entry, now);
        self.by_age.unlink(&mut self.entries, i);
        self.by_age.push(&mut self.entries, i);
        self.entries[i as usize].seen = now;
        self.ports.get_mut(slot).learned.unlink(&mut self.entries, i);
        if from == port {
            self.ports.get_mut(slot).learned.push(&mut self.entries, i);
            return if aged { Learned::New } else { Learned::Refreshed };
        }
        self.ports.shrank(slot);
        self.ports.release(slot);
        let slot = self.ports.find_or_insert(port);
        self.entries[i as usize].port = slot;
        self.ports.get_mut(slot).learned.push(&mut self.entries, i);
        self.ports.grew(slot);
        self.watch.changed(self.entries[i as usize].key);
        if aged { Learned::New } else { Learned::Moved(from) }
    }

    /// Makes room for one entry; false if there is no learned one.
    fn evict(&mut self, now: Instant, learner: Option<PortId>) -> bool {
        if self.remove_aged(now) {
            return true;
        }
        let Some(slot) = self.ports.most(learner) else {
            return false;
        };
        self.discard(self.ports.get(slot).learned.first);
        true
    }

    /// Removes the least recently seen entry, if it has aged out.
    fn remove_aged(&mut self, now: Instant) -> bool {
        match self.oldest() {
            Some(i) if self.is_aged(&self.entries[i as usize], now) => {
                self.discard(i);
                true
            }
            _ => false,
        }
    }

    fn insert(&mut self, hash: u64, key: Key, seen: Instant, port: PortId, is_static: bool) {
        let port = self.ports.find_or_insert(port);
        let entry = Entry { key, seen, by_port: Link::UNLINKED, by_age: Link::UNLINKED, port, is_static };
        let i = match self.free {
            NONE => {
                self.entries.push(entry);
                // The limit is far below 2^32.
                (self.entries.len() - 1) as u32
            }
            free => {
                self.free = self.entries[free as usize].by_age.next;
                self.entries[free as usize] = entry;
                free
            }
        };
        if is_static {
            self.ports.get_mut(port).statics.push(&mut self.entries, i);
            self.statics += 1;
        } else {
            self.ports.get_mut(port).learned.push(&mut self.entries, i);
            self.ports.grew(port);
            self.by_age.push(&mut self.entries, i);
        }
        let (entries, hasher) = (&self.entries, &self.hash);
        self.index.insert_unique(hash, i, |&j| hasher.hash(entries[j as usize].key));
    }

    fn discard(&mut self, i: u32) {
        let Entry { key, port, is_static, .. } = self.entries[i as usize];
        if is_static {
            self.ports.get_mut(port).statics.unlink(&mut self.entries, i);
            self.statics -= 1;
        } else {
            self.ports.get_mut(port).learned.unlink(&mut self.entries, i);
            self.ports.shrank(port);
            self.by_age.unlink(&mut self.entries, i);
        }
        self.ports.release(port);
        if let Ok(place) = self.index.find_entry(self.hash.hash(key), |&j| j == i) {
            place.remove();
        }
        let entry = &mut self.entries[i as usize];
        entry.port = NONE;
        entry.by_age.next = self.free;
        self.free = i;
        self.watch.changed(key);
    }

    /// Takes all but the static entries away at once: they are put into an empty table.
    fn flush_all(&mut self) -> usize {
        let flushed = self.len() - self.statics;
        if flushed == 0 {
            return 0;
        }
        let mut kept = Vec::new();
        if self.statics > 0 {
            kept = self.entries(self.latest);
            kept.retain(|e| e.is_static);
        }
        self.index.clear();
        self.entries.clear();
        self.free = NONE;
        self.by_age = List::EMPTY;
        self.ports.clear();
        self.statics = 0;
        for entry in kept {
            let key = Key::new(entry.mac, entry.vlan);
            self.insert(self.hash.hash(key), key, self.latest, entry.port, true);
        }
        self.watch.all_changed();
        flushed
    }
}
