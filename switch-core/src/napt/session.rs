//! A session, as all workers read it without a lock.
//!
//! Whoever holds the lock of its shard writes it. [`Word`] says what it is: ports, protocol, state, and how often the
//! place was used. It is the last thing that is written of a new session and the first that goes with an old one; so
//! who reads the same word before and after everything else has read one session, as it was at one time.
//!
//! Two things are written without the lock, by a packet that changes nothing else: when the last packet was, which
//! is only shown; and the end, in exchange for the end that was read. Both are late by `FRESH` at most.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::access::{NatSession, Protocol};
use super::flow::{Address, Endpoint, Key};
use super::tcp::State;
use super::time::Tick;

/// No session, no place.
pub(super) const NONE: u32 = u32::MAX;

/// What a session is; zero if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Word(u64);

const PROTOCOL_AT: u32 = 48;
const STATE_AT: u32 = 50;
const FROM_OUTSIDE: u64 = 1 << 53;
const IN_USE: u64 = 1 << 54;
/// The uses of the place, modulo 512.
const USES_AT: u32 = 55;
/// What a flow says.
const FLOW: u64 = 0xffff_ffff | 3 << PROTOCOL_AT | IN_USE;
/// What a flow says whose local end is outside.
const FLOW_OUTSIDE: u64 = 0xffff_ffff_0000 | 3 << PROTOCOL_AT | IN_USE;

impl Word {
    fn of<A>(key: &Key<A>) -> u64 {
        u64::from(key.local.port)
            | u64::from(key.remote.port) << 16
            | (key.protocol as u64) << PROTOCOL_AT
            | IN_USE
    }

    /// Of a session that was not there before.
    fn new<A>(key: &Key<A>, outside_port: u16, state: State, from_outside: bool) -> Self {
        let from_outside = if from_outside { FROM_OUTSIDE } else { 0 };
        Self(Self::of(key) | u64::from(outside_port) << 32 | from_outside).with_state(state)
    }

    pub(super) fn is_in_use(self) -> bool {
        self.0 & IN_USE != 0
    }

    #[inline]
    pub(super) fn protocol(self) -> Protocol {
        match self.0 >> PROTOCOL_AT & 3 {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            _ => Protocol::Icmp,
        }
    }

    #[inline]
    pub(super) fn state(self) -> State {
        State::from_bits((self.0 >> STATE_AT) as u8)
    }

    fn with_state(self, state: State) -> Self {
        Self(self.0 & !(7 << STATE_AT) | (state as u64) << STATE_AT)
    }

    /// The first packet came from the outside.
    pub(super) fn is_from_outside(self) -> bool {
        self.0 & FROM_OUTSIDE != 0
    }

    /// True if a packet without flags changes nothing but its times.
    #[inline]
    pub(super) fn is_settled(self) -> bool {
        matches!(self.state(), State::Active | State::Established)
    }
}

const _: () = assert!(Protocol::Tcp as u8 == 0 && Protocol::Udp as u8 == 1 && Protocol::Icmp as u8 == 2);

/// A session, or a place for one. 48 bytes for IPv4, 80 for IPv6.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Session<A: Address> {
    word: AtomicU64,
    inside: A::Cell,
    remote: A::Cell,
    outside: A::Cell,
    deadline: AtomicU32,
    last: AtomicU32,
    /// Its mapping. From here on nothing is read without the lock.
    mapping: AtomicU32,
    /// The turn of the wheel that it is on, and its neighbours there; `next` is also the next free place.
    turn: AtomicU32,
    next: AtomicU32,
    prev: AtomicU32,
}

impl<A: Address> Default for Session<A> {
    /// A place.
    fn default() -> Self {
        Self {
            word: AtomicU64::new(0),
            inside: A::Cell::default(),
            remote: A::Cell::default(),
            outside: A::Cell::default(),
            deadline: AtomicU32::new(0),
            last: AtomicU32::new(0),
            mapping: AtomicU32::new(NONE),
            turn: AtomicU32::new(0),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
        }
    }
}

/// Where a session is on the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnWheel {
    pub(super) turn: u32,
    pub(super) next: u32,
    pub(super) prev: u32,
}

impl<A: Address> Session<A> {
    /// What the session is, if it is the one of a flow.
    #[inline]
    pub(super) fn is(&self, key: &Key<A>) -> Option<Word> {
        let word = self.word.load(Ordering::Acquire);
        let same = word & FLOW == Word::of(key)
            && A::load(&self.remote) == key.remote.address
            && A::load(&self.inside) == key.local.address;
        same.then_some(Word(word))
    }

    /// What the session is, and its inside endpoint, if it is the one of a flow whose local end is outside.
    #[inline]
    pub(super) fn is_outside(&self, key: &Key<A>) -> Option<(Word, Endpoint<A>)> {
        let word = self.word.load(Ordering::Acquire);
        let sought = u64::from(key.local.port) << 32 | Word::of(key) & !0xffff;
        let same = word & FLOW_OUTSIDE == sought
            && A::load(&self.remote) == key.remote.address
            && A::load(&self.outside) == key.local.address;
        same.then(|| (Word(word), Endpoint::new(A::load(&self.inside), word as u16)))
    }

    /// Something of the session: to have it in the processor's cache.
    #[inline]
    pub(super) fn touch(&self) -> u64 {
        self.word.load(Ordering::Relaxed) ^ u64::from(self.last.load(Ordering::Relaxed))
    }

    /// What the session is.
    #[inline]
    pub(super) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Relaxed))
    }

    /// The outside endpoint and the end, if the session is what it was when `word` was read.
    #[inline]
    pub(super) fn read(&self, word: Word) -> Option<(Endpoint<A>, Tick)> {
        let outside = Endpoint::new(A::load(&self.outside), (word.0 >> 32) as u16);
        let deadline = Tick(self.deadline.load(Ordering::Relaxed));
        // Pairs with the fence of `open`: who read anything of the next session sees that this one is gone.
        fence(Ordering::Acquire);
        (self.word() == word).then_some((outside, deadline))
    }

    /// Notes a packet without the lock. `end` is the one that was read, and the one that is to be.
    #[inline]
    pub(super) fn note(&self, now: Tick, fresh: u32, end: Option<(Tick, Tick)>) {
        let stale = |then: u32| now.0.saturating_sub(then) >= fresh;
        if stale(self.last.load(Ordering::Relaxed)) {
            self.last.store(now.0, Ordering::Relaxed);
        }
        if let Some((old, new)) = end
            && new.0.saturating_sub(old.0) >= fresh
        {
            // Whoever was quicker has said as much, or has the lock and knows more.
            let _ = self.deadline.compare_exchange(old.0, new.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What an operator is told, if there is a session and it is alive.
    pub(super) fn report(&self, now: Tick) -> Option<NatSession> {
        let word = Word(self.word.load(Ordering::Acquire));
        let (key, last) = (self.key_of(word), self.last());
        let (outside, deadline) = self.read(word)?;
        (word.is_in_use() && now < deadline).then(|| NatSession {
            protocol: key.protocol,
            inside: key.local.to_socket(),
            outside: outside.to_socket(),
            remote: key.remote.to_socket(),
            state: word.state().name(),
            idle: now.since(last),
        })
    }

    pub(super) fn key(&self) -> Key<A> {
        self.key_of(self.word())
    }

    fn key_of(&self, word: Word) -> Key<A> {
        Key {
            protocol: word.protocol(),
            local: Endpoint::new(A::load(&self.inside), word.0 as u16),
            remote: Endpoint::new(A::load(&self.remote), (word.0 >> 16) as u16),
        }
    }

    #[inline]
    pub(super) fn outside(&self) -> Endpoint<A> {
        Endpoint::new(A::load(&self.outside), (self.word().0 >> 32) as u16)
    }

    /// In this tick and after it the session is no more.
    #[inline]
    pub(super) fn deadline(&self) -> Tick {
        Tick(self.deadline.load(Ordering::Relaxed))
    }

    /// The last packet that was told.
    pub(super) fn last(&self) -> Tick {
        Tick(self.last.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn is_alive(&self, now: Tick) -> bool {
        now < self.deadline()
    }

    /// [`NONE`] in a place that is not in use.
    pub(super) fn mapping(&self) -> u32 {
        self.mapping.load(Ordering::Relaxed)
    }

    pub(super) fn on_wheel(&self) -> OnWheel {
        OnWheel {
            turn: self.turn.load(Ordering::Relaxed),
            next: self.next.load(Ordering::Relaxed),
            prev: self.prev.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set_on_wheel(&self, place: OnWheel) {
        self.turn.store(place.turn, Ordering::Relaxed);
        self.next.store(place.next, Ordering::Relaxed);
        self.prev.store(place.prev, Ordering::Relaxed);
    }

    pub(super) fn set_next(&self, next: u32) {
        self.next.store(next, Ordering::Relaxed);
    }

    pub(super) fn set_prev(&self, prev: u32) {
        self.prev.store(prev, Ordering::Relaxed);
    }

    pub(super) fn set_last(&self, now: Tick) {
        self.last.store(now.0, Ordering::Relaxed);
    }

    pub(super) fn set_deadline(&self, deadline: Tick) {
        self.deadline.store(deadline.0, Ordering::Relaxed);
    }

    /// Changes the state and, with it, the end.
    pub(super) fn enter(&self, state: State, deadline: Tick) {
        self.word.store(self.word().with_state(state).0, Ordering::Relaxed);
        // After the word: a reader that sees the new end knows that its word is old.
        fence(Ordering::Release);
        self.set_deadline(deadline);
    }

    /// Takes a place into use: how often, the word knows. Returns what the session is.
    pub(super) fn open(
        &self,
        key: &Key<A>,
        outside: Endpoint<A>,
        mapping: u32,
        (state, from_outside): (State, bool),
        (now, deadline): (Tick, Tick),
    ) {
        let uses = self.word.load(Ordering::Relaxed) & !((1 << USES_AT) - 1);
        let word = Word::new(key, outside.port, state, from_outside);
        // What is written from here on is seen by nobody who has not seen that the place was left.
        fence(Ordering::Release);
        A::store(&self.inside, key.local.address);
        A::store(&self.remote, key.remote.address);
        A::store(&self.outside, outside.address);
        self.set_deadline(deadline);
        self.set_last(now);
        self.mapping.store(mapping, Ordering::Relaxed);
        self.word.store(word.0 | uses, Ordering::Release);
    }

    /// Leaves a place.
    pub(super) fn close(&self) {
        let uses = (self.word().0 >> USES_AT).wrapping_add(1) << USES_AT;
        self.word.store(uses, Ordering::Relaxed);
        self.mapping.store(NONE, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn sessions_are_as_small_as_they_are_said_to_be() {
        assert_eq!(size_of::<Session<Ipv4Addr>>(), 48);
        assert_eq!(size_of::<Session<Ipv6Addr>>(), 80);
    }

    fn key(port: u16) -> Key<Ipv4Addr> {
        Key {
            protocol: Protocol::Udp,
            local: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), port),
            remote: Endpoint::new(Ipv4Addr::new(203, 0, 113, 1), 53),
        }
    }

    #[test]
    fn what_was_read_of_a_session_is_refused_once_it_changed() {
        let session = Session::<Ipv4Addr>::default();
        assert!(!session.word().is_in_use() && session.is(&key(0)).is_none());
        let outside = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), 4000);
        let open = || session.open(&key(7), outside, 3, (State::Active, false), (Tick(5), Tick(9)));
        open();
        let word = session.is(&key(7)).expect("the session");
        assert!(session.is(&key(8)).is_none());
        assert_eq!(session.read(word), Some((outside, Tick(9))));
        assert_eq!((session.key(), session.outside(), session.mapping()), (key(7), outside, 3));
        session.close();
        assert_eq!(session.read(word), None);
        assert!(session.is(&key(7)).is_none() && session.mapping() == NONE);
        open();
        assert_eq!(session.read(word), None, "the same again is another session");
        let word = session.is(&key(7)).expect("the session");
        session.enter(State::Reset, Tick(20));
        assert_eq!(session.read(word), None, "another state");
        assert_eq!((session.word().state(), session.deadline()), (State::Reset, Tick(20)));
    }

    /// An index leads to a session by 32 bits of a hash: it may be another's, and then only the key tells.
    #[test]
    fn a_session_is_that_of_its_whole_key_and_of_no_other() {
        let session = Session::<Ipv4Addr>::default();
        let at = |host, port| Endpoint::new(Ipv4Addr::new(192, 0, 2, host), port);
        let own = Key { protocol: Protocol::Udp, local: at(1, 10), remote: at(2, 20) };
        session.open(&own, at(3, 30), 0, (State::Active, false), (Tick(5), Tick(9)));
        let others = |key: Key<Ipv4Addr>| {
            let Key { local, remote, protocol } = key;
            [
                Key { local: Endpoint::new(at(9, 0).address, local.port), ..key },
                Key { local: Endpoint::new(local.address, 99), ..key },
                Key { remote: Endpoint::new(at(9, 0).address, remote.port), ..key },
                Key { remote: Endpoint::new(remote.address, 99), ..key },
                Key {
                    protocol: if protocol == Protocol::Udp { Protocol::Tcp } else { Protocol::Udp },
                    ..key
                },
            ]
        };
        assert!(session.is(&own).is_some());
        for other in others(own) {
            assert!(session.is(&other).is_none(), "{other:?}");
        }
        let from_outside = Key { local: at(3, 30), ..own };
        assert_eq!(session.is_outside(&from_outside).map(|(_, inside)| inside), Some(own.local));
        for other in others(from_outside) {
            assert!(session.is_outside(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn an_end_is_only_put_off_from_where_it_was_read() {
        let session = Session::<Ipv4Addr>::default();
        session.set_deadline(Tick(100));
        session.note(Tick(50), 10, Some((Tick(100), Tick(109))));
        assert_eq!((session.deadline(), session.last()), (Tick(100), Tick(50)), "not worth it");
        session.note(Tick(55), 10, Some((Tick(90), Tick(200))));
        assert_eq!((session.deadline(), session.last()), (Tick(100), Tick(50)), "it was changed meanwhile");
        session.note(Tick(60), 10, Some((Tick(100), Tick(110))));
        assert_eq!((session.deadline(), session.last()), (Tick(110), Tick(60)));
    }

    #[test]
    fn who_reads_while_sessions_come_and_go_reads_one_of_them() {
        let session = Session::<Ipv4Addr>::default();
        let outside = |n: u16| Endpoint::new(Ipv4Addr::new(192, 0, 2, n as u8), 1000 + n);
        let done = AtomicU32::new(0);
        let read = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in (0..16).cycle().take(200_000) {
                    let end = Tick(1000 + u32::from(n));
                    session.open(&key(n), outside(n), 1, (State::Active, false), (Tick(0), end));
                    session.close();
                }
                done.store(1, Ordering::Release);
            });
            let mut read = 0;
            while done.load(Ordering::Acquire) == 0 {
                for n in 0..16 {
                    let Some(word) = session.is(&key(n)) else { continue };
                    let Some((end, deadline)) = session.read(word) else { continue };
                    assert_eq!((end, deadline), (outside(n), Tick(1000 + u32::from(n))));
                    read += 1;
                }
            }
            read
        });
        // Whether the other thread let this one see any is the machine's affair.
        println!("{read} sessions were read");
    }
}
