//! Time as entries keep it: in ticks of 2^26 ns (67 ms), 32 bits of them, nine years from the clock's origin.

use std::time::Duration;

use crate::time::Instant;

const SHIFT: u32 = 26;

/// A tick of the clock, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(pub(super) u32);

impl Tick {
    #[cfg(test)]
    pub(super) const ZERO: Self = Self(0);

    /// The tick that an instant is in.
    #[inline]
    pub(super) fn of(now: Instant) -> Self {
        Self(u32::try_from(now.as_nanos() >> SHIFT).unwrap_or(u32::MAX))
    }

    /// Some ticks later; never past the end.
    #[inline]
    pub(super) const fn after(self, ticks: u32) -> Self {
        Self(self.0.saturating_add(ticks))
    }

    /// Time from an earlier tick.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::from(self.0.saturating_sub(earlier.0)) << SHIFT)
    }
}

/// The ticks of a duration, such that what is begun in a tick has not ended before the duration is over.
pub(super) fn ticks(duration: Duration) -> u32 {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    u32::try_from(nanos.div_ceil(1 << SHIFT)).unwrap_or(u32::MAX).saturating_add(1)
}
