//! A worker's cache of answers of the table: where a station is, and whether it is to be learned again.
//!
//! Sets of four answers of 16 bytes, one line of the processor's cache each; a key has two sets where its answer may be.
//! An answer is used while its epoch is current and its time has not passed; nothing is ever removed. To be that short, an
//! answer has the index of its port, and the time when its station was seen as a [`Tick`] since the cache was last empty:
//! how long that is good for is the same for all of them. The cache is emptied when an index gets another port, and
//! when the ticks come to their end, after some hours.
//!
//! The cache grows with the table, to at least four times as many places as stations, by doubling. What it held is asked
//! again then. Its memory comes from the system as answers come, a large one's in huge pages, if there are any. A line of
//! a large cache is seldom in the processor's: [`Cache::prefetch`] has those of all frames of a burst fetched at the same
//! time. There are so many places that nearly every answer is in the first of its sets, which is the one that is fetched.

use memmap2::{Advice, MmapMut};
use switch_core::fdb::{Found, Key};
use switch_core::ids::{Id, PortId};
use switch_core::time::Instant;

use std::time::Duration;

/// Sets of the smallest cache: 64 KB.
const SETS_MIN: usize = 1 << 10;
/// Sets of the largest: 64 MB, for [`switch_core::fdb::LIMIT_MAX`] stations.
const SETS_MAX: usize = 1 << 20;
/// Stations that the table is told of in a millisecond, at most.
const REFRESHES_PER_MS: usize = 64;

/// Answers in a set.
const WAYS: usize = 4;
/// Bytes of a set: a line of the processor's cache.
const LINE: usize = 16 * WAYS;
/// Bytes from which on memory is wanted in huge pages.
const HUGE: usize = 2 << 20;

/// A point in time in units of 2^28 ns (268 ms), rounded down, counted from a little before the cache was last empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u16);

impl Tick {
    const BITS: u32 = 28;
    /// The last of them.
    const LAST: Self = Self(u16::MAX - 1);
    /// Stands for a station that is configured.
    const STATIC: Self = Self(u16::MAX);
    /// Ticks that an empty cache begins with: stations that were seen before it was emptied have times too.
    const BEFORE: u64 = 1 << 14;

    /// Whole ticks in a duration.
    fn whole(duration: Duration) -> u32 {
        u32::try_from(duration.as_nanos() >> Self::BITS).unwrap_or(u32::MAX)
    }
}

/// A cached answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    epoch: u32,
    /// [`Id::index`] of the port.
    port: u16,
    seen: Tick,
}

impl Answer {
    fn to_word(self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.port) << 16 | u64::from(self.seen.0)
    }

    #[inline(always)]
    fn from_word(word: u64) -> Self {
        Self { epoch: (word >> 32) as u32, port: (word >> 16) as u16, seen: Tick(word as u16) }
    }
}

/// How long after a station was seen a frame from it need not be told to the table: ages are right to this. A second, and
/// with many stations as long as keeps the table from being told of more than [`REFRESHES_PER_MS`] of them in a
/// millisecond.
fn refresh_after(ageing: Duration, stations: usize) -> Duration {
    Duration::from_secs(1).max(Duration::from_millis((stations / REFRESHES_PER_MS) as u64)).min(ageing / 4)
}

/// Answers: a word with the key, a word with the rest. Those in use stand before those that are not.
type Set = [u8; LINE];

/// A key as a word that is not 0, which stands for no answer. Keys are below 2^60.
#[inline(always)]
fn word_of(key: Key) -> u64 {
    key.to_u64() | 1 << 63
}

#[inline(always)]
fn word(set: &Set, at: usize) -> u64 {
    set.as_chunks::<8>().0.get(at).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// The key of an answer, as a word.
#[inline(always)]
fn key_at(set: &Set, way: usize) -> u64 {
    word(set, 2 * way)
}

#[inline(always)]
fn answer_at(set: &Set, way: usize) -> Answer {
    Answer::from_word(word(set, 2 * way + 1))
}

#[inline(always)]
fn find(set: &Set, key: u64) -> Option<Answer> {
    // Which way it is nobody can foresee, the processor neither, and a wrong guess costs more than the rest of this: so it
    // is calculated, and only whether it is there is a branch.
    let is = |way| usize::from(key_at(set, way) == key);
    let way = is(1) + is(2) * 2 + is(3) * 3;
    (key_at(set, way) == key).then(|| answer_at(set, way))
}

#[inline(always)]
fn was_never_full(set: &Set) -> bool {
    key_at(set, WAYS - 1) == 0
}

/// Memory for so many sets, all of them empty. It comes from the system when it is written. Where there is none, nothing is
/// cached.
fn memory(sets: usize) -> Option<MmapMut> {
    let memory = MmapMut::map_anon(sets * LINE).ok()?;
    if memory.len() >= HUGE {
        // With pages of 4 KB, each look-up also waits for where the page is; it does without huge ones.
        let _ = memory.advise(Advice::HugePage);
    }
    Some(memory)
}

/// The cache. See the module's text.
#[derive(Debug)]
pub(super) struct Cache {
    memory: Option<MmapMut>,
    /// Sets less one.
    mask: usize,
    /// The ports of answers, by their indexes.
    ports: Vec<Option<PortId>>,
    /// What [`Tick`]s are counted from, in their units.
    base: u64,
    now: Tick,
    /// How many ticks after its station was seen an answer may no longer be true.
    ageing: u32,
    /// How many ticks after it was seen a station is to be told to the table.
    refresh: u32,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self::with_sets(SETS_MIN)
    }

    /// A power of two.
    fn with_sets(sets: usize) -> Self {
        let (ports, base, now) = (Vec::new(), 0, Tick(1));
        Self { memory: memory(sets), mask: sets - 1, ports, base, now, ageing: 0, refresh: 0 }
    }

    /// Forgets all answers, and makes room for a number of sets.
    fn renew(&mut self, sets: usize) {
        let (base, now, ageing, refresh) = (self.base, self.now, self.ageing, self.refresh);
        *self = Self { base, now, ageing, refresh, ..Self::with_sets(sets) };
    }

    /// A burst begins.
    #[inline(always)]
    pub(super) fn begin(&mut self, now: Instant) {
        let now = now.as_nanos() >> Tick::BITS;
        if (now + 1).saturating_sub(self.base) >= u64::from(Tick::LAST.0) {
            self.base = now.saturating_sub(Tick::BEFORE);
            self.renew(self.mask + 1);
        }
        self.now = self.tick(now).unwrap_or(Tick(1));
    }

    /// The tick of a time in their units; `None` of one before the first.
    fn tick(&self, time: u64) -> Option<Tick> {
        let since = (time + 1).checked_sub(self.base).filter(|&since| since > 0)?;
        Some(Tick(since.min(u64::from(Tick::LAST.0)) as u16))
    }

    /// Makes room for the answers of so many stations. If it grows, it is empty after it.
    fn make_room(&mut self, stations: usize) {
        if stations > self.mask + 1 && self.mask + 1 < SETS_MAX {
            self.renew(stations.next_power_of_two().min(SETS_MAX));
        }
    }

    /// Has the processor fetch where the answer for a key most probably is.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        let [first, _] = self.places(hash);
        if let Some(memory) = &self.memory {
            prefetch_index::prefetch_index::<u8>(&memory[..], first * LINE);
        }
    }

    /// The answer for a key, true or not.
    #[inline(always)]
    pub(super) fn get(&self, hash: u64, key: Key) -> Option<Answer> {
        let [first, second] = self.places(hash);
        let first = self.set(first)?;
        match find(first, word_of(key)) {
            Some(answer) => Some(answer),
            // Nothing went to its second set while there was room in the first.
            None if was_never_full(first) => None,
            None => find(self.set(second)?, word_of(key)),
        }
    }

    /// The port of an answer, while it is true.
    #[inline(always)]
    pub(super) fn port(&self, answer: Answer, epoch: u32) -> Option<PortId> {
        if (answer.epoch == epoch) & self.is_in_time(answer) {
            *self.ports.get(usize::from(answer.port))?
        } else {
            None
        }
    }

    /// Whether the entry has not aged out.
    #[inline(always)]
    fn is_in_time(&self, answer: Answer) -> bool {
        self.is_within(answer, self.ageing)
    }

    /// True if a frame from the answer's station at its port changes nothing in the table: the entry was refreshed a
    /// moment ago. To be asked while the answer is true.
    #[inline(always)]
    pub(super) fn is_fresh(&self, answer: Answer) -> bool {
        self.is_within(answer, self.refresh)
    }

    /// True if no frame from the answer's station changes anything in the table, wherever it comes from.
    #[inline(always)]
    pub(super) fn is_static(answer: Answer) -> bool {
        answer.seen == Tick::STATIC
    }

    /// Whether the station was seen less than so many ticks ago, or is static.
    #[inline(always)]
    fn is_within(&self, answer: Answer, ticks: u32) -> bool {
        (u32::from(self.now.0.saturating_sub(answer.seen.0)) < ticks) | (answer.seen == Tick::STATIC)
    }

    /// Keeps what the table, of this ageing time and so many stations, said of a key, with the epoch that was current then.
    pub(super) fn put(
        &mut self,
        hash: u64,
        key: Key,
        found: Found,
        epoch: u32,
        (ageing, stations): (Duration, usize),
    ) {
        self.make_room(stations);
        // Answers from before a change of the ageing time are of old epochs.
        self.ageing = Tick::whole(ageing);
        // Times are rounded down: so many ticks apart are at most as far apart as that, and one tick is the least.
        self.refresh = Tick::whole(refresh_after(ageing, stations)).max(1);
        let seen = match found.seen.map(|seen| self.tick(seen.as_nanos() >> Tick::BITS)) {
            Some(Some(seen)) => seen,
            // For longer than a station may be silent: that the cache cannot say.
            Some(None) => return,
            None => Tick::STATIC,
        };
        // Identifiers' indexes come from a registry, which counts in 16 bits.
        let port = found.port.index() as u16;
        self.name(found.port);
        let answer = Answer { epoch, port, seen }.to_word();
        let key = word_of(key);
        let [first, second] = self.places(hash);
        // The key is in one of its sets at most: in the second if it is there, or if only there is room.
        let is_in = |place| self.set(place).is_some_and(|set| find(set, key).is_some());
        let has_room = |place| self.set(place).is_some_and(|set| self.unused(set).is_some());
        let place = if is_in(second) || (!is_in(first) && !has_room(first) && has_room(second)) {
            second
        } else {
            first
        };
        let Some(set) = self.set(place) else { return };
        // In the place of the answer of its key, of one that is not in use, or of the oldest.
        let way =
            (0..WAYS).find(|&way| key_at(set, way) == key).or_else(|| self.unused(set)).unwrap_or(WAYS - 1);
        let Some(memory) = &mut self.memory else { return };
        if let Some(set) = memory.as_chunks_mut::<LINE>().0.get_mut(place) {
            set[..16 * (way + 1)].rotate_right(16);
            set[..8].copy_from_slice(&key.to_ne_bytes());
            set[8..16].copy_from_slice(&answer.to_ne_bytes());
        }
    }

    /// The first answer of a set that is not in use.
    fn unused(&self, set: &Set) -> Option<usize> {
        let is_unused = |&way: &usize| key_at(set, way) == 0 || !self.is_in_time(answer_at(set, way));
        (0..WAYS).find(is_unused)
    }

    /// Notes a port. If another had its index, that one is gone, and all that was known of it.
    fn name(&mut self, port: PortId) {
        let index = port.index();
        if self.ports.get(index).copied().flatten() == Some(port) {
            return;
        }
        if self.ports.get(index).is_some_and(Option::is_some) {
            self.renew(self.mask + 1);
        }
        if self.ports.len() <= index {
            self.ports.resize(index + 1, None);
        }
        self.ports[index] = Some(port);
    }

    #[inline(always)]
    fn set(&self, place: usize) -> Option<&Set> {
        self.memory.as_ref()?.as_chunks::<LINE>().0.get(place)
    }

    /// The sets of a key. Bits that the epoch's shard does not use: keys of one set have different epochs.
    #[inline(always)]
    fn places(&self, hash: u64) -> [usize; 2] {
        [hash as usize & self.mask, (hash >> 26) as usize & self.mask]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING: Duration = Duration::from_secs(300);

    fn key(n: u64) -> Key {
        Key::from_u64(n, None)
    }

    fn ports(n: u16) -> (switch_core::ids::Registry<PortId>, Vec<PortId>) {
        let mut registry = switch_core::ids::Registry::new(n);
        let ports = (0..n).map(|_| registry.mint().unwrap()).collect();
        (registry, ports)
    }

    /// A cache that is used by itself; all keys' epoch is 7.
    struct Rig {
        hash: switch_core::fdb::KeyHash,
        cache: Cache,
        stations: usize,
    }

    impl Rig {
        fn new() -> Self {
            Self { hash: switch_core::fdb::KeyHash::new(), cache: Cache::new(), stations: 1 }
        }

        fn put(&mut self, n: u64, port: PortId, seen: Option<Instant>) {
            let found = Found { port, seen };
            self.cache.put(self.hash.hash(key(n)), key(n), found, 7, (AGEING, self.stations));
        }

        fn get(&self, n: u64) -> Option<Answer> {
            self.cache.get(self.hash.hash(key(n)), key(n))
        }

        fn port(&self, n: u64) -> Option<PortId> {
            self.cache.port(self.get(n)?, 7)
        }
    }

    #[test]
    fn a_set_is_a_line_of_the_processors_cache() {
        assert_eq!(size_of::<Set>(), 64);
        let cache = Cache::new();
        for place in [0, 1, SETS_MIN - 1] {
            assert_eq!(std::ptr::from_ref(cache.set(place).unwrap()).align_offset(64), 0);
        }
    }

    #[test]
    fn a_cache_that_has_grown_holds_nearly_all_stations_where_they_are_fetched_from() {
        let (_, ports) = ports(1);
        let mut rig = Rig::new();
        for stations in [1000, 1024, 40_000, 65_536] {
            rig.stations = stations;
            (0..stations as u64).for_each(|n| rig.put(n, ports[0], None));
            let held = (0..stations as u64).filter(|&n| rig.port(n) == Some(ports[0])).count();
            assert!(held * 1000 > stations * 995, "{held} of {stations}");
            let second = |&n: &u64| {
                let [first, _] = rig.cache.places(rig.hash.hash(key(n)));
                find(rig.cache.set(first).unwrap(), word_of(key(n))).is_none()
            };
            let elsewhere = (0..stations as u64).filter(second).count();
            assert!(elsewhere * 100 <= stations, "{elsewhere} of {stations}");
        }
        assert_eq!(rig.cache.mask + 1, 65_536);
        rig.cache.make_room(usize::MAX >> 1);
        assert_eq!(rig.cache.mask + 1, SETS_MAX);
        assert_eq!(rig.get(1), None);
    }

    #[test]
    fn a_key_has_one_answer() {
        let (_, ports) = ports(2);
        let mut rig = Rig::new();
        for port in ports {
            for n in 0..10_000 {
                rig.put(n, port, None);
                assert_eq!(rig.port(n), Some(port));
            }
        }
        let sets = (0..=rig.cache.mask).filter_map(|place| rig.cache.set(place));
        let mut keys: Vec<u64> = sets.flat_map(|set| (0..WAYS).map(|way| key_at(set, way))).collect();
        keys.retain(|&word| word != 0);
        let all = keys.len();
        assert_eq!(all, (rig.cache.mask + 1) * WAYS);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn an_answer_is_good_for_the_ageing_time_and_fresh_for_less_than_a_second() {
        let (_, ports) = ports(1);
        // The clock may begin anywhere.
        for origin in [0, 100, 1_000_000] {
            let at = |ms| Instant::from_secs(origin) + Duration::from_millis(ms);
            let mut rig = Rig::new();
            rig.cache.begin(at(0));
            rig.put(1, ports[0], Some(at(0)));
            rig.put(2, ports[0], None);
            let of = |rig: &Rig| {
                let answer = rig.get(1).unwrap();
                (rig.port(1).is_some(), rig.cache.is_fresh(answer))
            };
            for (ms, expected) in
                [(0, (true, true)), (500, (true, true)), (1000, (true, false)), (299_000, (true, false))]
            {
                rig.cache.begin(at(ms));
                assert_eq!(of(&rig), expected, "{ms} ms after {origin} s");
            }
            rig.cache.begin(at(300_000));
            assert_eq!(of(&rig), (false, false));
            assert!(rig.port(2).is_some() && Cache::is_static(rig.get(2).unwrap()));
        }
    }

    #[test]
    fn a_cache_is_emptied_before_its_ticks_begin_anew() {
        let (_, ports) = ports(1);
        let mut rig = Rig::new();
        let mut emptied = 0;
        for minutes in 0..60 * 24 {
            let now = Instant::from_secs(minutes * 60);
            rig.cache.begin(now);
            emptied += u32::from(minutes > 0 && rig.get(2).is_none());
            // A station that is silent, in a table that forgets it soon, and one that is configured.
            assert!(minutes < 5 || rig.port(1).is_none(), "after {minutes} minutes");
            if minutes == 0 {
                rig.put(1, ports[0], Some(now));
            }
            rig.put(2, ports[0], None);
            rig.put(3, ports[0], Some(now));
            assert!(rig.port(3).is_some() && rig.cache.is_fresh(rig.get(3).unwrap()));
        }
        assert!((5..=10).contains(&emptied), "{emptied} times a day");
    }

    #[test]
    fn what_was_seen_before_the_ticks_began_is_not_kept() {
        let (_, ports) = ports(1);
        let mut rig = Rig::new();
        rig.cache.begin(Instant::from_secs(1_000_000));
        rig.put(1, ports[0], Some(Instant::from_secs(900_000)));
        assert_eq!(rig.get(1), None);
    }

    #[test]
    fn each_way_of_a_set_is_found_and_only_by_its_whole_key() {
        let set_of = |keys: [u64; WAYS]| {
            let mut set = [0; LINE];
            for (way, key) in keys.into_iter().enumerate() {
                let port = if key == 0 { 0 } else { way as u16 };
                let answer = Answer { epoch: 0, port, seen: Tick(1) }.to_word();
                set[16 * way..16 * way + 8].copy_from_slice(&key.to_ne_bytes());
                set[16 * way + 8..16 * way + 16].copy_from_slice(&answer.to_ne_bytes());
            }
            set
        };
        let keys: [u64; WAYS] = std::array::from_fn(|way| word_of(key(0x0200_0000_0000 + way as u64)));
        for held in 0..=WAYS {
            let set = set_of(std::array::from_fn(|way| if way < held { keys[way] } else { 0 }));
            for (way, key) in keys.into_iter().enumerate() {
                let port = find(&set, key).map(|answer| usize::from(answer.port));
                assert_eq!(port, (way < held).then_some(way), "of {held}");
                // Bits of the address and of the VLAN, all but the lowest two, by which these keys differ.
                for bit in 2..60 {
                    assert_eq!(find(&set, key ^ 1 << bit), None, "bit {bit}");
                }
            }
            assert_eq!(find(&set, word_of(Key::from_u64(0, None))), None);
        }
    }

    #[test]
    fn a_port_that_took_anothers_index_inherits_no_answers() {
        let (mut registry, ports) = ports(2);
        let mut rig = Rig::new();
        rig.put(1, ports[0], None);
        rig.put(2, ports[1], None);
        assert!(registry.retire(ports[0]));
        let next = registry.mint().unwrap();
        assert_eq!(next.index(), ports[0].index());
        rig.put(3, next, None);
        assert_eq!((rig.port(1), rig.port(3)), (None, Some(next)));
    }

    #[test]
    fn many_stations_are_told_of_less_often() {
        assert_eq!(refresh_after(AGEING, 1), Duration::from_secs(1));
        assert_eq!(refresh_after(AGEING, 1_000_000), Duration::from_millis(15_625));
        assert_eq!(refresh_after(Duration::from_secs(15), 1_000_000), Duration::from_millis(3_750));
    }
}
