//! A worker's cache of answers of the table: where a station is, and whether it is to be learned again.
//!
//! Two ways, one line of the processor's cache for each set. An answer is used while its epoch is current and
//! its times have not passed; nothing is ever removed. Times are kept as [`Tick`]s, so that two answers fit.

use switch_core::fdb::{Found, Key};
use switch_core::ids::PortId;
use switch_core::time::Instant;

use std::time::Duration;

/// Sets of two answers: 64 KB.
const SETS: usize = 1 << SET_BITS;
const SET_BITS: u32 = 10;

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
    pub(super) fn new(key: Key, found: Found, ageing: Duration, epoch: u32) -> Self {
        let (valid_until, fresh_until) = match found.seen {
            Some(seen) => (Tick::of(seen + ageing), Tick::of(seen + refresh_after(ageing))),
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

/// How long after a station was seen a frame from it need not be told to the table: ages are right to this.
fn refresh_after(ageing: Duration) -> Duration {
    Duration::from_secs(1).min(ageing / 4)
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set([Answer; 2]);

/// The cache. See the module's text.
#[derive(Debug)]
pub(super) struct Cache {
    sets: Box<[Set]>,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { sets: vec![Set::default(); SETS].into_boxed_slice() }
    }

    /// The answer for a key, true or not.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: Key) -> Option<&Answer> {
        let Set([first, second]) = self.sets.get(Self::place(hash))?;
        if first.key == key {
            Some(first)
        } else if second.key == key {
            Some(second)
        } else {
            None
        }
    }

    /// Keeps an answer, in the place of the older one of its set.
    pub(super) fn put(&mut self, hash: u64, answer: Answer) {
        if let Some(Set([first, second])) = self.sets.get_mut(Self::place(hash)) {
            if first.key != answer.key {
                *second = *first;
            }
            *first = answer;
        }
    }

    #[inline]
    fn place(hash: u64) -> usize {
        // Bits that the epoch's shard does not use: keys of one set have different epochs.
        (hash >> 16) as usize & (SETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_a_line_of_the_processors_cache() {
        assert_eq!(size_of::<Set>(), 64);
    }

    #[test]
    fn ticks_round_down_and_saturate() {
        assert_eq!(Tick::of(Instant::from_nanos((1 << 26) - 1)), Tick(0));
        assert_eq!(Tick::of(Instant::from_nanos(1 << 26)), Tick(1));
        assert_eq!(Tick::of(Instant::from_nanos(u64::MAX)), Tick::NEVER);
    }
}
