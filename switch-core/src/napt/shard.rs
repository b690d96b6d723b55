//! A part of the translator's tables: mappings, their sessions, and the wheel of their ends. No lock, no clock.
//!
//! A mapping and all of its sessions are in one shard, decided by the inside endpoint: each packet, in either
//! direction, takes one shard's lock.
//!
//! - **Sessions** are in a slab; a hash table of slot numbers finds them. The table keeps 32 bits of each hash, so
//!   that a search touches no session but the one found, and growth touches none.
//! - **Mappings** likewise, found by their inside endpoint, or by the outside port's holder. A mapping is there
//!   while it has sessions.
//! - **Peers** count the sessions of a mapping with one remote address, for filtering by address.
//! - **The wheel** has a list of sessions for each second to come. A session is moved on it only when its turn
//!   comes and it has lived on, or when its end comes nearer.
//!
//! A session that has ended is absent from every answer at once; [`Shard::advance`] is only what makes room.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashTable;

use super::access::{NatSession, Protocol};
use super::common::Common;
use super::flow::{Address, Endpoint, Key, TcpFlags, hash_inside};
use super::hosts::Payer;
use super::ports::External;
use super::tcp::{Direction, State};
use super::time::Tick;

/// No slot.
const NONE: u32 = u32::MAX;
/// Turns of the wheel ahead: 36 minutes.
const SLOTS: u32 = 2048;
/// Ticks of a turn: about a second.
const TURN_BITS: u32 = 4;

/// A slot and a part of the hash that leads to it.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u32,
    tag: u32,
}

/// A tag as the tables want it: bits of use at both ends.
#[inline]
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A session. 48 bytes for IPv4, 84 for IPv6.
#[derive(Debug)]
pub(super) struct Session<A> {
    inside: A,
    remote: A,
    outside: A,
    inside_port: u16,
    remote_port: u16,
    outside_port: u16,
    protocol: Protocol,
    pub(super) state: State,
    /// The first packet came from the outside.
    from_outside: bool,
    /// [`NONE`] in a slot that is not in use.
    pub(super) mapping: u32,
    /// In this tick and after it the session is no more.
    pub(super) deadline: Tick,
    /// The last packet that was told.
    last: Tick,
    /// The turn of the wheel that it is on.
    turn: u32,
    next: u32,
    prev: u32,
}

impl<A: Address> Session<A> {
    #[inline]
    fn is(&self, key: &Key<A>) -> bool {
        self.inside == key.local.address
            && self.remote == key.remote.address
            && self.inside_port == key.local.port
            && self.remote_port == key.remote.port
            && self.protocol == key.protocol
    }

    fn key(&self) -> Key<A> {
        Key {
            protocol: self.protocol,
            local: Endpoint::new(self.inside, self.inside_port),
            remote: Endpoint::new(self.remote, self.remote_port),
        }
    }

    #[inline]
    pub(super) fn outside(&self) -> Endpoint<A> {
        Endpoint::new(self.outside, self.outside_port)
    }

    /// True if a packet without flags changes nothing but its times.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state, State::Active | State::Established)
    }

    #[inline]
    pub(super) fn is_alive(&self, now: Tick) -> bool {
        now < self.deadline
    }
}

/// What an inside endpoint is translated to.
#[derive(Debug)]
pub(super) struct Mapping<A> {
    pub(super) protocol: Protocol,
    pub(super) inside: Endpoint<A>,
    pub(super) outside: Endpoint<A>,
    /// The forward that it is of; zero if its port was taken from the pool.
    pub(super) forward: u32,
    /// At least one; in a slot that is not in use, the next such slot.
    sessions: u32,
    /// Nothing in a slot that is not in use.
    holds: Option<Holds<A>>,
}

impl<A: Address> Mapping<A> {
    pub(super) fn new(
        protocol: Protocol,
        inside: Endpoint<A>,
        outside: Endpoint<A>,
        forward: u32,
        payer: Payer<A>,
        external: Arc<External<A>>,
    ) -> Self {
        let holds = Some(Holds { payer, external });
        Self { protocol, inside, outside, forward, sessions: 0, holds }
    }

    /// True if this is the mapping of an outside endpoint.
    #[inline]
    pub(super) fn is(&self, protocol: Protocol, outside: Endpoint<A>) -> bool {
        self.outside == outside && self.protocol == protocol
    }
}

#[derive(Debug)]
struct Holds<A> {
    payer: Payer<A>,
    external: Arc<External<A>>,
}

/// The sessions of a mapping with one remote address.
#[derive(Debug)]
struct Peer<A> {
    remote: A,
    mapping: u32,
    sessions: u32,
}

/// A part of the tables. See the module's text.
#[derive(Debug)]
pub(super) struct Shard<A> {
    sessions: Vec<Session<A>>,
    by_flow: HashTable<Place>,
    free_session: u32,
    mappings: Vec<Mapping<A>>,
    /// Of each slot of `mappings`, the inside endpoint, close together: all that most inbound packets need of it.
    insides: Vec<Endpoint<A>>,
    by_inside: HashTable<Place>,
    free_mapping: u32,
    peers: HashTable<Peer<A>>,
    wheel: Vec<u32>,
    /// The turn that is next: everything on turns before it is done.
    cursor: u32,
}

impl<A: Address> Shard<A> {
    pub(super) fn new() -> Self {
        Self {
            sessions: Vec::new(),
            by_flow: HashTable::new(),
            free_session: NONE,
            mappings: Vec::new(),
            insides: Vec::new(),
            by_inside: HashTable::new(),
            free_mapping: NONE,
            peers: HashTable::new(),
            wheel: vec![NONE; SLOTS as usize],
            cursor: 0,
        }
    }

    /// The session of a flow, alive or not.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &Key<A>) -> Option<u32> {
        let tag = hash as u32;
        let is = |place: &Place| place.tag == tag && self.sessions[place.slot as usize].is(key);
        self.by_flow.find(spread(tag), is).map(|place| place.slot)
    }

    #[inline]
    pub(super) fn session(&self, slot: u32) -> &Session<A> {
        &self.sessions[slot as usize]
    }

    /// The inside endpoint of the mapping in a slot, or of the one that was there last.
    #[inline]
    pub(super) fn inside(&self, slot: u32) -> Option<Endpoint<A>> {
        self.insides.get(slot as usize).copied()
    }

    /// The mapping in a slot, if the slot is in use.
    #[inline]
    pub(super) fn mapping(&self, slot: u32) -> Option<&Mapping<A>> {
        self.mappings.get(slot as usize).filter(|mapping| mapping.holds.is_some())
    }

    /// The mapping of an inside endpoint that `is` the one sought.
    pub(super) fn find_mapping(
        &self,
        hash: u64,
        protocol: Protocol,
        inside: Endpoint<A>,
        is: impl Fn(&Mapping<A>) -> bool,
    ) -> Option<u32> {
        let tag = hash as u32;
        let is = |place: &Place| {
            let mapping = &self.mappings[place.slot as usize];
            place.tag == tag && mapping.inside == inside && mapping.protocol == protocol && is(mapping)
        };
        self.by_inside.find(spread(tag), is).map(|place| place.slot)
    }

    /// True if a mapping has a session with a remote address.
    ///
    /// Sessions that ended a moment ago and were not taken off the wheel yet count, but for `ended`.
    pub(super) fn has_peer(&self, common: &Common<A>, mapping: u32, remote: A, ended: bool) -> bool {
        let peer = self.peers.find(peer_hash(common, mapping, remote), |peer| peer.is(mapping, remote));
        peer.is_some_and(|peer| peer.sessions > u32::from(ended))
    }

    /// Adds a mapping; its first session is to follow.
    pub(super) fn add_mapping(&mut self, common: &Common<A>, mapping: Mapping<A>) -> u32 {
        let tag = hash_inside(&common.hash, mapping.protocol, mapping.inside) as u32;
        let slot = match self.free_mapping {
            NONE => {
                grow(&mut self.mappings);
                grow(&mut self.insides);
                self.insides.push(mapping.inside);
                self.mappings.push(mapping);
                (self.mappings.len() - 1) as u32
            }
            free => {
                self.free_mapping = self.mappings[free as usize].sessions;
                self.insides[free as usize] = mapping.inside;
                self.mappings[free as usize] = mapping;
                free
            }
        };
        self.by_inside.insert_unique(spread(tag), Place { slot, tag }, |place| spread(place.tag));
        slot
    }

    /// Mappings that are there, and slots for them.
    pub(super) fn mapping_slots(&self) -> (usize, usize) {
        (self.by_inside.len(), self.mappings.len())
    }

    /// Adds a session to a mapping. Its payer was charged already.
    pub(super) fn add_session(
        &mut self,
        common: &Common<A>,
        now: Tick,
        hash: u64,
        mapping_slot: u32,
        remote: Endpoint<A>,
        direction: Direction,
    ) -> u32 {
        let mapping = &mut self.mappings[mapping_slot as usize];
        mapping.sessions += 1;
        let protocol = mapping.protocol;
        let state = if protocol == Protocol::Tcp { State::opened(direction) } else { State::Active };
        let deadline = now.after(common.times.of(protocol, state));
        let session = Session {
            inside: mapping.inside.address,
            remote: remote.address,
            outside: mapping.outside.address,
            inside_port: mapping.inside.port,
            remote_port: remote.port,
            outside_port: mapping.outside.port,
            protocol,
            state,
            from_outside: direction == Direction::In,
            mapping: mapping_slot,
            deadline,
            last: now,
            turn: 0,
            next: NONE,
            prev: NONE,
        };
        if common.counts_peers(protocol) {
            let peer_hash = peer_hash(common, mapping_slot, remote.address);
            match self.peers.find_mut(peer_hash, |peer| peer.is(mapping_slot, remote.address)) {
                Some(peer) => peer.sessions += 1,
                None => {
                    let peer = Peer { remote: remote.address, mapping: mapping_slot, sessions: 1 };
                    let rehash = |peer: &Peer<A>| self::peer_hash(common, peer.mapping, peer.remote);
                    self.peers.insert_unique(peer_hash, peer, rehash);
                }
            }
        }
        let slot = match self.free_session {
            NONE => {
                grow(&mut self.sessions);
                self.sessions.push(session);
                (self.sessions.len() - 1) as u32
            }
            free => {
                self.free_session = self.sessions[free as usize].next;
                self.sessions[free as usize] = session;
                free
            }
        };
        let tag = hash as u32;
        self.by_flow.insert_unique(spread(tag), Place { slot, tag }, |place| spread(place.tag));
        self.link(slot, deadline);
        slot
    }

    /// Follows a packet of a session that is alive. `hash` is that of its key.
    #[inline]
    pub(super) fn follow(
        &mut self,
        common: &Common<A>,
        now: Tick,
        (slot, hash): (u32, u64),
        direction: Direction,
        flags: TcpFlags,
    ) {
        let session = &mut self.sessions[slot as usize];
        session.last = session.last.max(now);
        let was = session.state;
        let refreshed = match was {
            // RFC 4787, REQ-6: only what comes from the inside keeps a mapping.
            State::Active => direction == Direction::Out,
            _ => {
                let state = was.after(direction, flags);
                if state != was {
                    self.enter(common, now, (slot, hash), state);
                    return;
                }
                match state {
                    State::SynOut => direction == Direction::Out && !flags.any(TcpFlags::RST),
                    state => state.is_established(),
                }
            }
        };
        if refreshed {
            let deadline = now.after(common.times.of(session.protocol, was));
            session.deadline = session.deadline.max(deadline);
        }
    }

    /// Begins a session anew that has ended and was not taken off the wheel yet.
    pub(super) fn renew(
        &mut self,
        common: &Common<A>,
        now: Tick,
        (slot, hash): (u32, u64),
        direction: Direction,
    ) {
        let session = &mut self.sessions[slot as usize];
        session.last = now;
        let state = if session.state == State::Active { State::Active } else { State::opened(direction) };
        self.enter(common, now, (slot, hash), state);
    }

    fn enter(&mut self, common: &Common<A>, now: Tick, (slot, hash): (u32, u64), state: State) {
        let session = &mut self.sessions[slot as usize];
        session.state = state;
        session.deadline = now.after(common.times.of(session.protocol, state));
        common.epochs.advance(hash);
        let deadline = session.deadline;
        if turn_of(deadline) < session.turn {
            self.unlink(slot);
            self.link(slot, deadline);
        }
    }

    /// Ends a session, and its mapping if it was the last one.
    pub(super) fn remove(&mut self, common: &Common<A>, now: Tick, slot: u32) {
        self.unlink(slot);
        let session = &mut self.sessions[slot as usize];
        let (key, mapping_slot, from_outside) = (session.key(), session.mapping, session.from_outside);
        session.mapping = NONE;
        session.next = self.free_session;
        self.free_session = slot;
        let hash = key.hash(&common.hash);
        if let Ok(place) = self.by_flow.find_entry(spread(hash as u32), |place| place.slot == slot) {
            place.remove();
        }
        common.epochs.advance(hash);
        common.sessions.fetch_sub(1, Ordering::Relaxed);
        if common.counts_peers(key.protocol) {
            let remote = key.remote.address;
            let hash = peer_hash(common, mapping_slot, remote);
            if let Ok(mut peer) = self.peers.find_entry(hash, |peer| peer.is(mapping_slot, remote)) {
                peer.get_mut().sessions -= 1;
                if peer.get().sessions == 0 {
                    peer.remove();
                }
            }
        }
        let mapping = &mut self.mappings[mapping_slot as usize];
        mapping.sessions -= 1;
        if let Some(holds) = &mapping.holds {
            holds.payer.release_session(from_outside);
        }
        if mapping.sessions == 0 {
            self.remove_mapping(common, now, mapping_slot);
        }
    }

    fn remove_mapping(&mut self, common: &Common<A>, now: Tick, slot: u32) {
        let mapping = &mut self.mappings[slot as usize];
        let hash = hash_inside(&common.hash, mapping.protocol, mapping.inside);
        mapping.sessions = self.free_mapping;
        self.free_mapping = slot;
        if let Some(Holds { payer, external }) = mapping.holds.take()
            && mapping.forward == 0
        {
            external.free(now, mapping.protocol, mapping.outside.port, payer);
        }
        if let Ok(place) = self.by_inside.find_entry(spread(hash as u32), |place| place.slot == slot) {
            place.remove();
        }
    }

    /// Who is charged for a mapping and its sessions.
    pub(super) fn payer(&self, mapping: u32) -> Option<&Payer<A>> {
        self.mapping(mapping)?.holds.as_ref().map(|holds| &holds.payer)
    }

    /// Takes ended sessions away, at most `budget`, and moves on those that live. What is left of the budget.
    pub(super) fn advance(&mut self, common: &Common<A>, now: Tick, mut budget: usize) -> usize {
        let present = turn_of(now);
        if self.by_flow.is_empty() {
            self.cursor = self.cursor.max(present);
            return budget;
        }
        // Each place on the wheel is passed once, however long nobody called.
        self.cursor = self.cursor.max(present.saturating_sub(SLOTS));
        while self.cursor < present && budget > 0 {
            let slot = self.wheel[(self.cursor % SLOTS) as usize];
            if slot == NONE {
                self.cursor += 1;
                continue;
            }
            budget -= 1;
            let deadline = self.sessions[slot as usize].deadline;
            if deadline <= now {
                self.remove(common, now, slot);
            } else {
                self.unlink(slot);
                self.link(slot, deadline);
            }
        }
        budget
    }

    /// Puts a session on the wheel, for its end or the wheel's.
    fn link(&mut self, slot: u32, deadline: Tick) {
        // A second, at least, from where the wheel is: it never comes to the same place twice in a call.
        let turn = turn_of(deadline).clamp(self.cursor + 1, self.cursor + SLOTS - 1);
        let head = &mut self.wheel[(turn % SLOTS) as usize];
        let next = std::mem::replace(head, slot);
        if let Some(next) = self.sessions.get_mut(next as usize) {
            next.prev = slot;
        }
        let session = &mut self.sessions[slot as usize];
        (session.turn, session.next, session.prev) = (turn, next, NONE);
    }

    fn unlink(&mut self, slot: u32) {
        let Session { turn, next, prev, .. } = self.sessions[slot as usize];
        match self.sessions.get_mut(prev as usize) {
            Some(prev) => prev.next = next,
            None => self.wheel[(turn % SLOTS) as usize] = next,
        }
        if let Some(next) = self.sessions.get_mut(next as usize) {
            next.prev = prev;
        }
    }

    /// Ends the sessions whose mapping is to go.
    pub(super) fn retire(&mut self, common: &Common<A>, now: Tick, is: &impl Fn(&Mapping<A>) -> bool) {
        for slot in 0..self.sessions.len() {
            let mapping = self.sessions[slot].mapping;
            if mapping != NONE && self.mapping(mapping).is_some_and(is) {
                self.remove(common, now, slot as u32);
            }
        }
    }

    /// Appends the sessions of `work` slots from `from` on, up to `limit` in all; where to go on.
    pub(super) fn list(
        &self,
        now: Tick,
        from: usize,
        work: usize,
        limit: usize,
        out: &mut Vec<NatSession>,
    ) -> Option<usize> {
        let end = from.saturating_add(work).min(self.sessions.len());
        for session in self.sessions.get(from..end).unwrap_or_default() {
            if session.mapping != NONE && session.is_alive(now) && out.len() < limit {
                out.push(NatSession {
                    protocol: session.protocol,
                    inside: session.key().local.to_socket(),
                    outside: session.outside().to_socket(),
                    remote: session.key().remote.to_socket(),
                    state: session.state.name(),
                    idle: now.since(session.last),
                });
            }
        }
        (end < self.sessions.len() && out.len() < limit).then_some(end)
    }

    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        self.sessions.capacity() * size_of::<Session<A>>()
            + self.mappings.capacity() * size_of::<Mapping<A>>()
            + self.insides.capacity() * size_of::<Endpoint<A>>()
            + self.by_flow.allocation_size()
            + self.by_inside.allocation_size()
            + self.peers.allocation_size()
            + self.wheel.capacity() * size_of::<u32>()
            + size_of::<Self>()
    }
}

impl<A: Address> Peer<A> {
    fn is(&self, mapping: u32, remote: A) -> bool {
        self.mapping == mapping && self.remote == remote
    }
}

fn peer_hash<A: Address>(common: &Common<A>, mapping: u32, remote: A) -> u64 {
    common.hash.pair(A::mix(&common.hash, remote, A::UNSPECIFIED), u64::from(mapping))
}

/// The turn after which a deadline has passed.
fn turn_of(deadline: Tick) -> u32 {
    deadline.0 >> TURN_BITS
}

/// Makes room for one more: by a quarter, because the tables are large.
fn grow<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 4 + 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn sessions_are_as_small_as_they_are_said_to_be() {
        assert_eq!(size_of::<Session<Ipv4Addr>>(), 48);
        assert_eq!(size_of::<Session<Ipv6Addr>>(), 84);
    }
}
