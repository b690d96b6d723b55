//! A part of the translator's tables: mappings, their sessions, and the wheel of their ends. No lock, no clock.
//!
//! A mapping and all of its sessions are in one shard, decided by the inside endpoint: each packet, in either
//! direction, takes one shard's lock.
//!
//! - **Sessions** are in a slab that all shards share; an `index` of their places finds them. It keeps 32 bits of each
//!   hash, so that a search touches no session but the one found, and growth touches none. Workers read both without
//!   the shard's lock (see `session`, `index`); nothing is changed without it but a session's times.
//! - **Mappings** are in a slab of the shard's own, found by their inside endpoint, or by the outside port's holder. A
//!   mapping is there while it has sessions.
//! - **Peers** count the sessions of a mapping with one remote address, for filtering by address.
//! - **The wheel** has a list of sessions for each second to come. A session is moved on it only when its turn
//!   comes and it has lived on, or when its end comes nearer.
//!
//! A session that has ended is absent from every answer at once; [`Shard::advance`] is only what makes room.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashTable;

use super::access::Protocol;
use super::common::Common;
use super::flow::{Address, Endpoint, Key, TcpFlags, hash_inside};
use super::hosts::Payer;
use super::index::{Index, Writer};
use super::ports::External;
use super::session::{NONE, OnWheel};
use super::slab::RUN;
use super::tcp::{Direction, State};
use super::time::Tick;

/// Turns of the wheel ahead: 36 minutes.
const SLOTS: u32 = 2048;
/// Ticks of a turn: about a second.
const TURN_BITS: u32 = 4;

/// A mapping's slot and a part of the hash that leads to it.
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

/// What an inside endpoint is translated to.
#[derive(Debug)]
pub(super) struct Mapping<A: Address> {
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
struct Holds<A: Address> {
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
pub(super) struct Shard<A: Address> {
    by_flow: Writer,
    /// Sessions' places that are free: a list of those that were used, and what is left of a run.
    free_session: u32,
    fresh: Range<u32>,
    mappings: Vec<Mapping<A>>,
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
            by_flow: Writer::new(),
            free_session: NONE,
            fresh: 0..0,
            mappings: Vec::new(),
            by_inside: HashTable::new(),
            free_mapping: NONE,
            peers: HashTable::new(),
            wheel: vec![NONE; SLOTS as usize],
            cursor: 0,
        }
    }

    /// What workers find sessions by.
    pub(super) fn index(&self) -> Arc<Index> {
        self.by_flow.index()
    }

    /// The session of a flow, alive or not.
    #[inline]
    pub(super) fn find(&self, common: &Common<A>, hash: u64, key: &Key<A>) -> Option<u32> {
        let is = |slot| common.places.get(slot).is_some_and(|session| session.is(key).is_some());
        self.by_flow.find(hash as u32, is)
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
                self.mappings.push(mapping);
                (self.mappings.len() - 1) as u32
            }
            free => {
                self.free_mapping = self.mappings[free as usize].sessions;
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

    /// Makes sure that there is a place for one more session; false if there is none in all the world.
    #[must_use]
    pub(super) fn has_place(&mut self, common: &Common<A>) -> bool {
        if self.free_session == NONE && self.fresh.is_empty() {
            let Some(first) = common.places.claim() else { return false };
            self.fresh = first..first + RUN;
        }
        true
    }

    /// Adds a session to a mapping. Its payer was charged already, and there is a place.
    pub(super) fn add_session(
        &mut self,
        common: &Common<A>,
        now: Tick,
        hash: u64,
        mapping_slot: u32,
        remote: Endpoint<A>,
        direction: Direction,
    ) {
        let slot = match self.free_session {
            NONE => self.fresh.next().unwrap_or(NONE),
            free => free,
        };
        let session = common.session(slot);
        if slot == self.free_session {
            self.free_session = session.on_wheel().next;
        }
        let mapping = &mut self.mappings[mapping_slot as usize];
        mapping.sessions += 1;
        let protocol = mapping.protocol;
        let state = if protocol == Protocol::Tcp { State::opened(direction) } else { State::Active };
        let deadline = now.after(common.times.of(protocol, state));
        let key = Key { protocol, local: mapping.inside, remote };
        let from_outside = direction == Direction::In;
        session.open(&key, mapping.outside, mapping_slot, (state, from_outside), (now, deadline));
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
        self.by_flow.insert(hash as u32, slot);
        self.link(common, slot, deadline);
    }

    /// Follows a packet of a session that is alive.
    #[inline]
    pub(super) fn follow(
        &mut self,
        common: &Common<A>,
        now: Tick,
        slot: u32,
        direction: Direction,
        flags: TcpFlags,
    ) {
        let session = common.session(slot);
        session.set_last(session.last().max(now));
        let was = session.word().state();
        let refreshed = match was {
            // RFC 4787, REQ-6: only what comes from the inside keeps a mapping.
            State::Active => direction == Direction::Out,
            _ => {
                let state = was.after(direction, flags);
                if state != was {
                    self.enter(common, now, slot, state);
                    return;
                }
                match state {
                    State::SynOut => direction == Direction::Out && !flags.any(TcpFlags::RST),
                    state => state.is_established(),
                }
            }
        };
        if refreshed {
            let deadline = now.after(common.times.of(session.key().protocol, was));
            session.set_deadline(session.deadline().max(deadline));
        }
    }

    /// Begins a session anew that has ended and was not taken off the wheel yet.
    pub(super) fn renew(&mut self, common: &Common<A>, now: Tick, slot: u32, direction: Direction) {
        let session = common.session(slot);
        session.set_last(now);
        let is_active = session.word().state() == State::Active;
        let state = if is_active { State::Active } else { State::opened(direction) };
        self.enter(common, now, slot, state);
    }

    fn enter(&mut self, common: &Common<A>, now: Tick, slot: u32, state: State) {
        let session = common.session(slot);
        let deadline = now.after(common.times.of(session.key().protocol, state));
        session.enter(state, deadline);
        if turn_of(deadline) < session.on_wheel().turn {
            self.unlink(common, slot);
            self.link(common, slot, deadline);
        }
    }

    /// Ends a session, and its mapping if it was the last one.
    pub(super) fn remove(&mut self, common: &Common<A>, now: Tick, slot: u32) {
        self.unlink(common, slot);
        let session = common.session(slot);
        let (key, mapping_slot) = (session.key(), session.mapping());
        let from_outside = session.word().is_from_outside();
        session.close();
        session.set_next(self.free_session);
        self.free_session = slot;
        self.by_flow.remove(key.hash(&common.hash) as u32, slot);
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
        if self.by_flow.len() == 0 {
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
            let deadline = common.session(slot).deadline();
            if deadline <= now {
                self.remove(common, now, slot);
            } else {
                self.unlink(common, slot);
                self.link(common, slot, deadline);
            }
        }
        budget
    }

    /// Puts a session on the wheel, for its end or the wheel's.
    fn link(&mut self, common: &Common<A>, slot: u32, deadline: Tick) {
        // A second, at least, from where the wheel is: it never comes to the same place twice in a call.
        let turn = turn_of(deadline).clamp(self.cursor + 1, self.cursor + SLOTS - 1);
        let head = &mut self.wheel[(turn % SLOTS) as usize];
        let next = std::mem::replace(head, slot);
        if let Some(next) = common.places.get(next) {
            next.set_prev(slot);
        }
        common.session(slot).set_on_wheel(OnWheel { turn, next, prev: NONE });
    }

    fn unlink(&mut self, common: &Common<A>, slot: u32) {
        let OnWheel { turn, next, prev } = common.session(slot).on_wheel();
        match common.places.get(prev) {
            Some(prev) => prev.set_next(next),
            None => self.wheel[(turn % SLOTS) as usize] = next,
        }
        if let Some(next) = common.places.get(next) {
            next.set_prev(prev);
        }
    }

    /// Ends the sessions whose mapping is to go.
    pub(super) fn retire(&mut self, common: &Common<A>, now: Tick, is: &impl Fn(&Mapping<A>) -> bool) {
        let of_mapping = |slot: &u32| self.mapping(common.session(*slot).mapping()).is_some_and(is);
        let gone: Vec<u32> = self.by_flow.sessions().filter(of_mapping).collect();
        for slot in gone {
            self.remove(common, now, slot);
        }
    }

    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        self.mappings.capacity() * size_of::<Mapping<A>>()
            + self.by_flow.memory()
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
