//! What a guest may ask for, and what all of them together may hold.
//!
//! A guest is a port. Its rate is a token bucket, kept as the one instant at which the bucket would be full again
//! (the generic cell rate algorithm): no division of time, no drift. How many of its queries may wait for the outside
//! shrinks as the whole fills up, so that guests who ask for everything leave room for those who ask for little.

use std::time::Duration;

use switch_core::Instant;

/// Bounds on what the service holds and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queries per second of one port, in the long run. Zero counts as one.
    pub rate: u32,
    /// Queries of one port at once, above its rate. Zero counts as one.
    pub burst: u32,
    /// Queries of one port that wait for the outside at a time.
    pub in_flight: usize,
    /// Queries of all ports that wait for the outside at a time.
    pub waiting: usize,
    /// Questions that the outside is asked at a time.
    pub asked: usize,
    /// Answers that the cache remembers.
    pub cache_entries: usize,
    /// Octets of answers and their names that the cache remembers.
    pub cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate: 500,
            burst: 1000,
            in_flight: 64,
            waiting: 4096,
            asked: 256,
            cache_entries: 10_000,
            cache_bytes: 4 << 20,
        }
    }
}

impl Limits {
    /// How many queries a port may have in flight while all ports have `waiting`.
    pub(super) fn share(&self, waiting: usize) -> usize {
        // A quarter of what is left: with n greedy ports, a newcomer still finds as much room as each of them has.
        self.in_flight.min(self.waiting.saturating_sub(waiting).div_ceil(4))
    }
}

/// A token bucket of one port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// When it is full again.
    full_at: Instant,
}

impl Bucket {
    /// Takes one token, if there is one.
    pub(super) fn take(&mut self, now: Instant, limits: &Limits) -> bool {
        let cost = Duration::from_secs(1) / limits.rate.max(1);
        let full_at = self.full_at.max(now) + cost;
        let allowed = full_at.since(now) <= cost.saturating_mul(limits.burst.max(1));
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }

    /// True if it is full, so that a new one is as good.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}
