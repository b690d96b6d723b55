//! Fragments of packets that are translated: what their first fragment became, for those that have no ports.
//!
//! For the slow path, which sees every fragment. A packet's first fragment makes an entry; the others find it. An
//! entry ends after [`LIFETIME`]; when there are too many of one guest, or in all, the oldest of them goes.

use std::collections::{HashMap, VecDeque};
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
struct Entry<A, T> {
    to: T,
    guest: A,
    serial: u64,
}

/// The table. `T` is what a packet became.
#[derive(Debug)]
pub struct Fragments<A, T> {
    entries: HashMap<FragmentKey<A>, Entry<A, T>>,
    /// Oldest first. What was replaced meanwhile has another serial.
    order: VecDeque<(Instant, FragmentKey<A>, u64)>,
    guests: HashMap<A, usize>,
    serial: u64,
}

impl<A: Copy + Eq + Hash, T: Clone> Default for Fragments<A, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Copy + Eq + Hash, T: Clone> Fragments<A, T> {
    /// An empty table.
    pub fn new() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), guests: HashMap::new(), serial: 0 }
    }

    /// A first fragment was translated. `guest` is the inside address, which the entry counts to. False if the
    /// guest has too many already.
    pub fn first(&mut self, now: Instant, key: FragmentKey<A>, guest: A, to: T) -> bool {
        self.expire(now);
        self.remove(&key);
        if self.guests.get(&guest).is_some_and(|&n| n >= ENTRIES_PER_GUEST) {
            return false;
        }
        while self.entries.len() >= ENTRIES_MAX || self.order.len() >= 2 * ENTRIES_MAX {
            if !self.remove_oldest() {
                break;
            }
        }
        self.serial += 1;
        self.entries.insert(key, Entry { to, guest, serial: self.serial });
        *self.guests.entry(guest).or_default() += 1;
        self.order.push_back((now + LIFETIME, key, self.serial));
        true
    }

    /// What the packet of another fragment became.
    pub fn later(&mut self, now: Instant, key: &FragmentKey<A>) -> Option<T> {
        self.expire(now);
        self.entries.get(key).map(|entry| entry.to.clone())
    }

    /// Removes what has ended.
    pub fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, ..)| *until <= now) {
            self.remove_oldest();
        }
    }

    /// When the oldest entry ends.
    pub fn poll_at(&self) -> Option<Instant> {
        self.order.front().map(|(until, ..)| *until)
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
        let Some((_, key, serial)) = self.order.pop_front() else { return false };
        if self.entries.get(&key).is_some_and(|entry| entry.serial == serial) {
            self.remove(&key);
        }
        true
    }

    fn remove(&mut self, key: &FragmentKey<A>) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Some(count) = self.guests.get_mut(&entry.guest) {
            *count -= 1;
            if *count == 0 {
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
        assert!(fragments.first(at(0), key(1, 7), key(1, 0).source, 5));
        assert_eq!(fragments.later(at(59), &key(1, 7)), Some(5));
        assert_eq!(fragments.later(at(59), &key(1, 8)), None);
        // The same identification again: the new packet counts, and lives its own time.
        assert!(fragments.first(at(30), key(1, 7), key(1, 0).source, 6));
        assert_eq!(fragments.later(at(60), &key(1, 7)), Some(6));
        assert_eq!(fragments.poll_at(), Some(at(90)));
        assert_eq!(fragments.later(at(90), &key(1, 7)), None);
        assert!(fragments.is_empty() && fragments.poll_at().is_none() && fragments.guests.is_empty());
    }

    #[test]
    fn a_guest_has_its_share_and_the_table_its_bound() {
        let mut fragments = Fragments::new();
        let now = Instant::ORIGIN;
        for id in 0..2000 {
            assert_eq!(fragments.first(now, key(1, id), key(1, 0).source, ()), id < ENTRIES_PER_GUEST as u32);
        }
        assert_eq!(fragments.len(), ENTRIES_PER_GUEST);
        for guest in 2..=40 {
            for id in 0..ENTRIES_PER_GUEST as u32 {
                assert!(fragments.first(now, key(guest, id), key(guest, 0).source, ()));
            }
        }
        assert_eq!(fragments.len(), ENTRIES_MAX);
        assert!(fragments.order.len() <= 2 * ENTRIES_MAX);
    }
}
