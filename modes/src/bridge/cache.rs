//! A worker's cache of answers of the table: where a station is, and whether it is to be learned again.
//!
//! Sets of two answers, one line of the processor's cache each; a key has two sets where its answer may be. An answer is
//! used while its epoch is current and its times have not passed; nothing is ever removed. Times are kept as [`Tick`]s,
//! so that two answers fit.
//!
//! The cache grows with the table, to twice as many places as stations, by doubling. What it held is asked again then.
//! Its memory is taken in pieces, as answers come, so that no burst waits for much of it. A line of a large cache is
//! seldom in the processor's: [`Cache::touch`] reads those of all frames of a burst before the first is needed, so that
//! they are fetched at the same time.

use switch_core::fdb::{Found, Key};
use switch_core::ids::PortId;
use switch_core::time::Instant;

use std::time::Duration;

/// Sets of the smallest cache: 64 KB.
const SETS_MIN: usize = 1 << 10;
/// Sets of the largest: 64 MB, for [`switch_core::fdb::LIMIT_MAX`] stations.
const SETS_MAX: usize = 1 << 20;
/// Stations that the table is told of in a millisecond, at most.
const REFRESHES_PER_MS: usize = 64;
/// Sets of which memory is taken at once: 32 KB.
const PIECE: usize = 1 << PIECE_BITS;
const PIECE_BITS: u32 = 9;

/// A point in time, rounded down to 2^26 ns (67 ms); the last one, nine years after the clock's origin, stands
/// for all after it, and for never where it is an end: from then on nothing is found in the cache any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

impl Tick {
    /// The end of what has none.
    const NEVER: Self = Self(u32::MAX);

    /// The tick that an instant is in.
    #[inline]
    pub(super) fn of(now: Instant) -> Self {
        Self(u32::try_from(now.as_nanos() >> 26).unwrap_or(u32::MAX))
    }
}

/// A cached answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    key: Key,
    port: Option<PortId>,
    epoch: u32,
    /// In this tick and after it the entry may have aged out.
    valid_until: Tick,
    /// In this tick and after it a frame from the station is to be told to the table.
    fresh_until: Tick,
}

impl Answer {
    /// What the table said, with the epoch that was current then.
    /// `stations` is how many the table holds.
    pub(super) fn new(key: Key, found: Found, ageing: Duration, stations: usize, epoch: u32) -> Self {
        let (valid_until, fresh_until) = match found.seen {
            Some(seen) => (Tick::of(seen + ageing), Tick::of(seen + refresh_after(ageing, stations))),
            None => (Tick::NEVER, Tick::NEVER),
        };
        Self { key, port: Some(found.port), epoch, valid_until, fresh_until }
    }

    /// The port, while the answer is true.
    #[inline]
    pub(super) fn port(&self, now: Tick, epoch: u32) -> Option<PortId> {
        if self.epoch == epoch && now < self.valid_until { self.port } else { None }
    }

    /// True if a frame from the station at `ingress` changes nothing in the table: the entry is static, or was
    /// refreshed at this port a moment ago. To be asked while the answer is true.
    #[inline]
    pub(super) fn is_settled(&self, now: Tick, ingress: PortId) -> bool {
        now < self.fresh_until && (self.port == Some(ingress) || self.fresh_until == Tick::NEVER)
    }
}

/// How long after a station was seen a frame from it need not be told to the table: ages are right to this. A second, and
/// with many stations as long as keeps the table from being told of more than [`REFRESHES_PER_MS`] of them in a
/// millisecond.
fn refresh_after(ageing: Duration, stations: usize) -> Duration {
    Duration::from_secs(1).max(Duration::from_millis((stations / REFRESHES_PER_MS) as u64)).min(ageing / 4)
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set([Answer; 2]);

impl Set {
    #[inline]
    fn find(&self, key: Key) -> Option<&Answer> {
        let Set([first, second]) = self;
        if first.key == key {
            Some(first)
        } else if second.key == key {
            Some(second)
        } else {
            None
        }
    }

    #[inline]
    fn was_never_full(&self) -> bool {
        self.0[0].port.is_none() || self.0[1].port.is_none()
    }

    /// Whether the key is here, or there is a place that is not in use.
    fn has_room(&self, key: Key, now: Tick) -> bool {
        self.0.iter().any(|answer| answer.key == key || answer.port.is_none() || answer.valid_until <= now)
    }

    /// Keeps an answer, in the place of the one of its key, of one that is not in use, or of the older one.
    fn put(&mut self, answer: Answer, now: Tick) {
        let Set([first, second]) = self;
        if first.key != answer.key && first.port.is_some() && first.valid_until > now {
            *second = *first;
        }
        *first = answer;
    }
}

/// The cache. See the module's text.
#[derive(Debug)]
pub(super) struct Cache {
    pieces: Box<[Option<Box<[Set; PIECE]>>]>,
    /// Sets less one.
    mask: usize,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self::with_sets(SETS_MIN)
    }

    /// A power of two, at least a piece's.
    fn with_sets(sets: usize) -> Self {
        Self { pieces: (0..sets >> PIECE_BITS).map(|_| None).collect(), mask: sets - 1 }
    }

    /// Makes room for the answers of so many stations. If it grows, it is empty after it.
    pub(super) fn make_room(&mut self, stations: usize) {
        if stations > self.mask + 1 && self.mask + 1 < SETS_MAX {
            *self = Self::with_sets(stations.next_power_of_two().min(SETS_MAX));
        }
    }

    /// True if the processor's own caches cannot be expected to hold it.
    #[inline]
    pub(super) fn is_large(&self) -> bool {
        self.mask + 1 > 4 * SETS_MIN
    }

    /// Reads where the answer for a key most probably is, and returns something of it.
    #[inline(always)]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        let [first, _] = self.places(hash);
        self.set(first).map_or(0, |set| set.0[0].key.to_u64())
    }

    /// The answer for a key, true or not.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: Key) -> Option<&Answer> {
        let [first, second] = self.places(hash);
        let first = self.set(first)?;
        match first.find(key) {
            Some(answer) => Some(answer),
            // Nothing went to its second set while there was room in the first.
            None if first.was_never_full() => None,
            None => self.set(second)?.find(key),
        }
    }

    /// Keeps an answer.
    pub(super) fn put(&mut self, hash: u64, answer: Answer, now: Tick) {
        let [first, second] = self.places(hash);
        // The key is in one of its sets at most: in the second if it is there, or if only there is room.
        let is_in = |place| self.set(place).is_some_and(|set| set.find(answer.key).is_some());
        let has_room = |place| self.set(place).is_none_or(|set| set.has_room(answer.key, now));
        let place = if is_in(second) || (!is_in(first) && !has_room(first) && has_room(second)) {
            second
        } else {
            first
        };
        let piece = self.pieces.get_mut(place >> PIECE_BITS);
        if let Some(piece) = piece {
            let piece = piece.get_or_insert_with(|| Box::new([Set::default(); PIECE]));
            piece[place & (PIECE - 1)].put(answer, now);
        }
    }

    #[inline]
    fn set(&self, place: usize) -> Option<&Set> {
        self.pieces.get(place >> PIECE_BITS)?.as_ref().map(|piece| &piece[place & (PIECE - 1)])
    }

    /// The sets of a key. Bits that the epoch's shard does not use: keys of one set have different epochs.
    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        [hash as usize & self.mask, (hash >> 26) as usize & self.mask]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_a_line_of_the_processors_cache() {
        assert_eq!(size_of::<Set>(), 64);
    }

    fn answer(n: u64, port: PortId) -> Answer {
        let key = Key::from_u64(n, None);
        Answer { key, port: Some(port), epoch: 0, valid_until: Tick::NEVER, fresh_until: Tick::NEVER }
    }

    #[test]
    fn a_cache_that_has_grown_holds_nearly_all_stations() {
        let port = switch_core::ids::Registry::<PortId>::new(1).mint().unwrap();
        let hash = switch_core::fdb::KeyHash::new();
        let mut cache = Cache::new();
        for stations in [1000, 1024, 40_000, 65_536] {
            cache.make_room(stations);
            let answers = || (0..stations as u64).map(|n| answer(n, port));
            answers().for_each(|answer| cache.put(hash.hash(answer.key), answer, Tick(1)));
            let held =
                answers().filter(|answer| cache.get(hash.hash(answer.key), answer.key).is_some()).count();
            assert!(held * 100 > stations * 97, "{held} of {stations}");
        }
        assert_eq!(cache.mask + 1, 65_536);
        cache.make_room(usize::MAX >> 1);
        assert_eq!(cache.mask + 1, SETS_MAX);
        assert!(cache.pieces.iter().all(Option::is_none), "memory is taken as answers come");
    }

    #[test]
    fn a_key_has_one_answer() {
        let mut ports = switch_core::ids::Registry::<PortId>::new(2);
        let (old, new) = (ports.mint().unwrap(), ports.mint().unwrap());
        let hash = switch_core::fdb::KeyHash::new();
        let mut cache = Cache::new();
        for round in [old, new] {
            for n in 0..10_000 {
                let answer = answer(n, round);
                cache.put(hash.hash(answer.key), answer, Tick(1));
                assert_eq!(cache.get(hash.hash(answer.key), answer.key).unwrap().port, Some(round));
            }
        }
        let keys = cache.pieces.iter().flatten().flat_map(|piece| piece.iter()).flat_map(|set| set.0);
        let mut keys: Vec<Key> =
            keys.filter(|answer| answer.port.is_some()).map(|answer| answer.key).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn many_stations_are_told_of_less_often() {
        let ageing = Duration::from_secs(300);
        assert_eq!(refresh_after(ageing, 1), Duration::from_secs(1));
        assert_eq!(refresh_after(ageing, 1_000_000), Duration::from_millis(15_625));
        assert_eq!(refresh_after(Duration::from_secs(15), 1_000_000), Duration::from_millis(3_750));
    }

    #[test]
    fn ticks_round_down_and_saturate() {
        assert_eq!(Tick::of(Instant::from_nanos((1 << 26) - 1)), Tick(0));
        assert_eq!(Tick::of(Instant::from_nanos(1 << 26)), Tick(1));
        assert_eq!(Tick::of(Instant::from_nanos(u64::MAX)), Tick::NEVER);
    }
}
