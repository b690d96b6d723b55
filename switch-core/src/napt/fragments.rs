//! Fragments of packets that are translated: what their first fragment became, for those that have no ports.
//!
//! For the slow path, which sees every fragment. A packet's first fragment makes an entry; the others find it. An
//! entry ends after [`LIFETIME`]; when there are too many of one guest, or in all, the oldest of them goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use crate::time::Instant;

/// How long an entry lives: what a receiver waits at most for the rest of a packet (RFC 1122, 3.3.2; RFC 8200, 4.5).
pub const LIFETIME: Duration = Duration::from_secs(60);
/// Entries in all, at most.
pub const ENTRIES_MAX: usize = 8192;
/// Entries of one guest, at most.
pub const ENTRIES_PER_GUEST: usize = 512;

/// What the fragments of a packet have in common (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// The source before translation.
    pub source: A,
    /// The destination before translation.
    pub destination: A,
    /// The identification.
    pub id: u32,
    /// The protocol's number; zero for IPv6.
    pub protocol: u8,
}

#[derive(Debug)]
struct Entry<G, T> {
    to: T,
    guest: G,
    serial: u64,
}

/// The table. `G` is what a guest is known by, `T` is what a packet became.
#[derive(Debug)]
pub struct Fragments<A, G, T> {
    entries: HashMap<FragmentKey<A>, Entry<G, T>>,
    /// When each entry ends, by its serial: oldest first.
    order: BTreeMap<u64, (Instant, FragmentKey<A>)>,
    /// The serials of each guest's entries.
    guests: HashMap<G, BTreeSet<u64>>,
    serial: u64,
}

impl<A: Copy + Eq + Hash, G: Copy + Eq + Hash, T: Clone> Default for Fragments<A, G, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Copy + Eq + Hash, G: Copy + Eq + Hash, T: Clone> Fragments<A, G, T> {
    /// An empty table.
    pub fn new() -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), guests: HashMap::new(), serial: 0 }
    }

    /// A first fragment was translated. The entry counts to `guest`.
    pub fn first(&mut self, now: Instant, key: FragmentKey<A>, guest: G, to: T) {
        self.expire(now);
        self.remove(&key);
        let of_guest = self.guests.get(&guest).filter(|serials| serials.len() >= ENTRIES_PER_GUEST);
        if let Some(&oldest) = of_guest.and_then(|serials| serials.first()) {
            self.remove_serial(oldest);
        }
        while self.entries.len() >= ENTRIES_MAX && self.remove_oldest() {}
        self.serial += 1;
        self.entries.insert(key, Entry { to, guest, serial: self.serial });
        self.guests.entry(guest).or_default().insert(self.serial);
        self.order.insert(self.serial, (now + LIFETIME, key));
    }

    /// What the packet of another fragment became.
    pub fn later(&mut self, now: Instant, key: &FragmentKey<A>) -> Option<T> {
        self.expire(now);
        self.entries.get(key).map(|entry| entry.to.clone())
    }

    /// Removes what has ended.
    pub fn expire(&mut self, now: Instant) {
        while self.poll_at().is_some_and(|until| until <= now) {
            self.remove_oldest();
        }
    }

    /// When the oldest entry ends.
    pub fn poll_at(&self) -> Option<Instant> {
        self.order.first_key_value().map(|(_, (until, _))| *until)
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn remove_oldest(&mut self) -> bool {
        let Some((&oldest, _)) = self.order.first_key_value() else { return false };
        self.remove_serial(oldest);
        true
    }

    fn remove_serial(&mut self, serial: u64) {
        if let Some((_, key)) = self.order.remove(&serial) {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &FragmentKey<A>) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.order.remove(&entry.serial);
        if let Some(serials) = self.guests.get_mut(&entry.guest) {
            serials.remove(&entry.serial);
            if serials.is_empty() {
                self.guests.remove(&entry.guest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(guest: u8, id: u32) -> FragmentKey<Ipv4Addr> {
        FragmentKey {
            source: Ipv4Addr::new(10, 0, 0, guest),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            id,
            protocol: 17,
        }
    }

    #[test]
    fn later_fragments_find_what_the_first_made_for_a_minute() {
        let mut fragments = Fragments::new();
        let at = Instant::from_secs;
        assert_eq!(fragments.later(at(0), &key(1, 7)), None);
        fragments.first(at(0), key(1, 7), key(1, 0).source, 5);
        assert_eq!(fragments.later(at(59), &key(1, 7)), Some(5));
        assert_eq!(fragments.later(at(59), &key(1, 8)), None);
        // The same identification again: the new packet counts, and lives its own time.
        fragments.first(at(30), key(1, 7), key(1, 0).source, 6);
        assert_eq!(fragments.later(at(60), &key(1, 7)), Some(6));
        assert_eq!(fragments.poll_at(), Some(at(90)));
        assert_eq!(fragments.later(at(90), &key(1, 7)), None);
        assert!(fragments.is_empty() && fragments.poll_at().is_none() && fragments.guests.is_empty());
    }

    #[test]
    fn a_guest_has_its_share_and_the_table_its_bound() {
        let mut fragments = Fragments::new();
        let now = Instant::ORIGIN;
        let share = ENTRIES_PER_GUEST as u32;
        fragments.first(now, key(2, 0), key(2, 0).source, ());
        // However many packets a guest has in fragments, its latest are known, and others lose nothing.
        for id in 0..20_000 {
            fragments.first(now, key(1, id), key(1, 0).source, ());
            assert_eq!(fragments.later(now, &key(1, id)), Some(()));
            assert_eq!(fragments.later(now, &key(1, id.wrapping_sub(share))), None);
        }
        assert_eq!(fragments.later(now, &key(1, 20_000 - share)), Some(()));
        assert_eq!(fragments.later(now, &key(2, 0)), Some(()));
        assert_eq!(fragments.len(), ENTRIES_PER_GUEST + 1);
        for guest in 2..=40 {
            for id in 0..share {
                fragments.first(now, key(guest, id), key(guest, 0).source, ());
            }
        }
        assert_eq!(fragments.len(), ENTRIES_MAX);
        assert_eq!(fragments.order.len(), ENTRIES_MAX);
        assert_eq!(fragments.guests.values().map(BTreeSet::len).sum::<usize>(), ENTRIES_MAX);
    }
}
