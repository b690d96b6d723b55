//! Mappings of guests' endpoints to sockets of the host, for protocols without connections.
//!
//! Bounds: so many mappings in all, and so many of one owner, the port that the guest's frames come from. Who has its
//! share loses its own oldest mapping to its newest; where all are taken, whoever has most of them does. So no guest
//! takes anything from one that has less.
//!
//! Every owner's mappings are in a list, the one that was used least lately first. What has not been used for the table's
//! timeout ends; the lists make it cheap to find.
//!
//! The mappings whose sockets have something to receive take their [`Turns`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use switch_core::{Instant, PortId};

use crate::token::{Kind, Token};
use crate::turns::{Stands, Turns};

/// How exactly the use of a mapping is noted. So a flow's packets do not write to the list, one each.
const GRAIN: Duration = Duration::from_secs(1);

/// Whose mapping it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The port that the guest's frames come from.
    pub(crate) owner: Option<PortId>,
    /// The guest's address and port, or identifier.
    pub(crate) inside: SocketAddr,
}

#[derive(Debug)]
struct Entry<M> {
    key: Key,
    used: Instant,
    before: Option<u32>,
    after: Option<u32>,
    stands: Stands,
    value: M,
}

#[derive(Debug)]
struct Slot<M> {
    generation: u16,
    entry: Option<Entry<M>>,
}

/// The list of an owner's mappings. Never empty.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: u32,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Table<M> {
    kind: Kind,
    timeout: Duration,
    slots: Vec<Slot<M>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    owners: HashMap<Option<PortId>, List>,
    turns: Turns,
    /// No mapping ends before.
    due: Option<Instant>,
}

impl<M> Table<M> {
    /// A table whose mappings' events have tokens of `kind`.
    pub(crate) fn new(kind: Kind, timeout: Duration) -> Self {
        Self {
            kind,
            timeout,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            owners: HashMap::new(),
            turns: Turns::default(),
            due: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// A mapping's slot.
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<(&Key, &mut M)> {
        let entry = self.slots.get_mut(slot as usize)?.entry.as_mut()?;
        Some((&entry.key, &mut entry.value))
    }

    /// The entry of a token, if it is the one that the token is about.
    fn named(&mut self, token: Token) -> Option<&mut Entry<M>> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        if slot.generation == token.generation { slot.entry.as_mut() } else { None }
    }

    /// Hears what the kernel says of a socket: the mapping, if something was said of what it sent.
    pub(crate) fn event(&mut self, token: Token, flags: EventFlags) -> Option<(&Key, &mut M)> {
        // As `named`, but of one field, for `turns` to be another.
        let slot = self.slots.get_mut(token.slot as usize)?;
        let entry = slot.entry.as_mut().filter(|_| slot.generation == token.generation)?;
        if flags.contains(EventFlags::IN) {
            self.turns.call(&mut entry.stands, token);
        }
        flags.contains(EventFlags::ERR).then_some((&entry.key, &mut entry.value))
    }

    /// The mapping whose turn it is to receive. Its turn ends with [`Table::received`].
    pub(crate) fn next_ready(&mut self) -> Option<(Token, &Key, &mut M)> {
        // Those that are gone have no turn.
        let token = loop {
            let token = self.turns.next()?;
            if self.named(token).is_some() {
                break token;
            }
        };
        self.named(token).map(|entry| (token, &entry.key, &mut entry.value))
    }

    /// A mapping had its turn, and what became of it.
    pub(crate) fn received(&mut self, now: Instant, token: Token, failed: Option<Errno>) {
        let Some(slot) = self.slots.get_mut(token.slot as usize) else { return };
        if let Some(entry) = slot.entry.as_mut().filter(|_| slot.generation == token.generation) {
            self.turns.done(now, &mut entry.stands, token, failed);
        }
    }

    /// True if any mapping has something to receive, as far as is known without asking the kernel.
    pub(crate) fn has_work(&self) -> bool {
        self.turns.has_work()
    }

    /// All, with when they were used.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, Instant, &M)> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref().map(|e| (&e.key, e.used, &e.value)))
    }

    /// Makes room for one more mapping of an owner, of `each` that one may have and `all` that there may be; how many had
    /// to end.
    pub(crate) fn make_room(&mut self, owner: Option<PortId>, each: u32, all: u32) -> usize {
        let held = self.owners.get(&owner).map_or(0, |list| list.len);
        let loser = if held >= each.max(1) {
            Some(owner)
        } else if self.len() >= all.max(1) as usize {
            let most = self.owners.iter().max_by_key(|(_, list)| list.len);
            // Whoever asks is not to gain by it what another has no more of than itself.
            most.map(|(&biggest, list)| if list.len > held { biggest } else { owner })
        } else {
            None
        };
        match loser.and_then(|owner| self.owners.get(&owner)).map(|list| list.first) {
            Some(oldest) => {
                self.remove(oldest);
                1
            }
            None => 0,
        }
    }

    /// Puts a mapping in, made by `make` with the token of its events. The key is not in the table.
    pub(crate) fn insert<E>(
        &mut self,
        now: Instant,
        key: Key,
        make: impl FnOnce(Token) -> Result<M, E>,
    ) -> Result<u32, E> {
        let slot = match self.free.last() {
            Some(&slot) => slot,
            None => self.slots.len() as u32,
        };
        let generation = self.slots.get(slot as usize).map_or(0, |slot| slot.generation);
        let value = make(Token::new(self.kind, slot, generation))?;
        let entry =
            Some(Entry { key, used: now, before: None, after: None, stands: Stands::default(), value });
        match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    place.entry = entry;
                }
            }
            None => self.slots.push(Slot { generation, entry }),
        }
        self.by_key.insert(key, slot);
        self.append(slot);
        self.due = self.due.or(Some(now + self.timeout));
        Ok(slot)
    }

    /// Notes that a mapping is used.
    pub(crate) fn touch(&mut self, now: Instant, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(|slot| slot.entry.as_mut()) else {
            return;
        };
        if now.since(entry.used) >= GRAIN {
            entry.used = now;
            self.unlink(slot);
            self.append(slot);
        }
    }

    /// Takes a mapping out.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<M> {
        self.slots.get(slot as usize)?.entry.as_ref()?;
        self.unlink(slot);
        let place = self.slots.get_mut(slot as usize)?;
        place.generation = place.generation.wrapping_add(1);
        let entry = place.entry.take()?;
        self.free.push(slot);
        self.by_key.remove(&entry.key);
        Some(entry.value)
    }

    /// When [`Table::timeout`] next has something to do, at the earliest.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        [self.due, self.turns.due()].into_iter().flatten().min()
    }

    /// Does what is due: ends the mappings that nobody used for the timeout; how many.
    pub(crate) fn timeout(&mut self, now: Instant) -> usize {
        self.turns.timeout(now);
        if self.due.is_none_or(|due| due > now) {
            return 0;
        }
        let mut ended = 0;
        let owners: Vec<_> = self.owners.keys().copied().collect();
        for owner in owners {
            while let Some(oldest) = self.owners.get(&owner).map(|list| list.first) {
                if self.used(oldest).is_some_and(|used| used + self.timeout > now) {
                    break;
                }
                self.remove(oldest);
                ended += 1;
            }
        }
        let oldest = self.owners.values().filter_map(|list| self.used(list.first)).min();
        self.due = oldest.map(|used| used + self.timeout);
        ended
    }

    fn used(&self, slot: u32) -> Option<Instant> {
        self.slots.get(slot as usize)?.entry.as_ref().map(|entry| entry.used)
    }

    fn entry(&mut self, slot: Option<u32>) -> Option<&mut Entry<M>> {
        self.slots.get_mut(slot? as usize)?.entry.as_mut()
    }

    /// Puts a mapping at the end of its owner's list.
    fn append(&mut self, slot: u32) {
        let Some(owner) = self.entry(Some(slot)).map(|entry| entry.key.owner) else { return };
        let mut before = None;
        self.owners
            .entry(owner)
            .and_modify(|list| {
                before = Some(list.last);
                list.last = slot;
                list.len += 1;
            })
            .or_insert(List { first: slot, last: slot, len: 1 });
        if let Some(last) = self.entry(before) {
            last.after = Some(slot);
        }
        if let Some(entry) = self.entry(Some(slot)) {
            (entry.before, entry.after) = (before, None);
        }
    }

    /// Takes a mapping out of its owner's list.
    fn unlink(&mut self, slot: u32) {
        let Some(entry) = self.entry(Some(slot)) else { return };
        let (owner, before, after) = (entry.key.owner, entry.before, entry.after);
        if let Some(entry) = self.entry(before) {
            entry.after = after;
        }
        if let Some(entry) = self.entry(after) {
            entry.before = before;
        }
        match (before, after) {
            (None, None) => {
                self.owners.remove(&owner);
            }
            _ => {
                if let Some(list) = self.owners.get_mut(&owner) {
                    list.len -= 1;
                    list.first = before.map_or(after.unwrap_or(list.first), |_| list.first);
                    list.last = after.map_or(before.unwrap_or(list.last), |_| list.last);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_core::ids::Registry;

    const TIMEOUT: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Instant {
        Instant::ORIGIN + Duration::from_secs(seconds)
    }

    fn key(owner: Option<PortId>, port: u16) -> Key {
        Key { owner, inside: SocketAddr::from(([10, 0, 0, 1], port)) }
    }

    fn table() -> (Table<u16>, Vec<Option<PortId>>) {
        let mut ids = Registry::new(8);
        (Table::new(Kind::Udp, TIMEOUT), (0..3).map(|_| ids.mint()).collect())
    }

    fn add(table: &mut Table<u16>, now: Instant, key: Key, each: u32, all: u32) -> Token {
        table.make_room(key.owner, each, all);
        let mut named = None;
        let made: Result<u32, ()> = table.insert(now, key, |token| {
            named = Some(token);
            Ok(key.inside.port())
        });
        made.unwrap();
        named.unwrap()
    }

    fn ports(table: &Table<u16>, owner: Option<PortId>) -> Vec<u16> {
        let mut ports: Vec<u16> = table.iter().filter(|(k, ..)| k.owner == owner).map(|(.., &m)| m).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn an_owner_loses_its_own_oldest() {
        let (mut table, owner) = table();
        for n in 0..4 {
            add(&mut table, at(n.into()), key(owner[0], n), 4, 100);
        }
        add(&mut table, at(5), key(owner[1], 9), 4, 100);
        // The oldest is used, and is the youngest then.
        let first = table.find(&key(owner[0], 0)).unwrap();
        table.touch(at(6), first);
        add(&mut table, at(7), key(owner[0], 4), 4, 100);
        assert_eq!((ports(&table, owner[0]), ports(&table, owner[1])), (vec![0, 2, 3, 4], vec![9]));
    }

    #[test]
    fn where_all_are_taken_who_has_most_loses() {
        let (mut table, owner) = table();
        for n in 0..6 {
            add(&mut table, at(0), key(owner[0], n), 8, 8);
        }
        add(&mut table, at(0), key(owner[1], 10), 8, 8);
        add(&mut table, at(0), key(owner[1], 11), 8, 8);
        // Who comes without any gets one, and of the one who has most.
        add(&mut table, at(1), key(owner[2], 20), 8, 8);
        assert_eq!([0, 1, 2].map(|n| ports(&table, owner[n]).len()), [5, 2, 1]);
        // Who has most gains nothing by asking for more.
        for n in 30..60 {
            add(&mut table, at(2), key(owner[0], n), 8, 8);
        }
        assert_eq!([0, 1, 2].map(|n| ports(&table, owner[n]).len()), [5, 2, 1]);
    }

    #[test]
    fn what_nobody_uses_ends_and_its_events_name_nothing() {
        let (mut table, owner) = table();
        let old = add(&mut table, at(0), key(owner[0], 1), 8, 8);
        let used = add(&mut table, at(0), key(owner[1], 2), 8, 8);
        assert_eq!(table.next_timeout(), Some(at(300)));
        table.touch(at(100), used.slot);
        assert_eq!((table.timeout(at(299)), table.timeout(at(300))), (0, 1));
        assert!(table.named(old).is_none() && table.named(used).is_some());
        assert_eq!(table.next_timeout(), Some(at(400)));
        // The slot's next owner is another.
        let next = add(&mut table, at(301), key(owner[0], 3), 8, 8);
        assert!(next.slot == old.slot && table.named(old).is_none() && table.named(next).is_some());
        // An event about the former owner's socket is nobody's, and so is a turn that it had.
        assert!(table.event(old, EventFlags::IN | EventFlags::ERR).is_none() && !table.has_work());
        table.event(next, EventFlags::IN);
        assert_eq!(table.timeout(at(1000)), 2);
        assert!(table.next_ready().is_none());
        assert_eq!((table.next_timeout(), table.len()), (None, 0));
    }
}
