//! How often a service answers what comes from one port: a token bucket for each.
//!
//! A guest that asks without end uses up its own bucket and nobody else's. Memory is bounded by the number of ports:
//! a bucket that is full again is as good as none, and is forgotten when the table is full.

use std::collections::HashMap;
use std::time::Duration;

use switch_core::{Instant, PortId};

/// Buckets that are kept, at most.
const BUCKETS_MAX: usize = 8192;

/// Answers that are left to each port.
#[derive(Debug)]
pub(super) struct Budget {
    /// Answers at once, after a time of none.
    burst: u32,
    /// The time in which one answer comes back.
    interval: Duration,
    /// For each port, when its bucket will be full again: as good as the number of answers in it.
    full_at: HashMap<PortId, Instant>,
}

impl Budget {
    /// `burst` answers at once, then one in each `interval`.
    pub(super) fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: HashMap::new() }
    }

    /// Takes an answer out of the port's bucket. False if none is left.
    pub(super) fn take(&mut self, now: Instant, port: PortId) -> bool {
        if self.full_at.len() >= BUCKETS_MAX && !self.full_at.contains_key(&port) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= BUCKETS_MAX {
                return false;
            }
        }
        let full_at = self.full_at.entry(port).or_insert(now);
        let after = (*full_at).max(now) + self.interval;
        let left = after.since(now) <= self.interval.saturating_mul(self.burst);
        if left {
            *full_at = after;
        }
        left
    }

    /// Forgets a port that is gone.
    pub(super) fn forget(&mut self, port: PortId) {
        self.full_at.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_core::ids::Registry;

    #[test]
    fn a_bucket_empties_and_fills_and_is_its_ports_own() {
        let mut registry = Registry::<PortId>::new(2);
        let (a, b) = (registry.mint().unwrap(), registry.mint().unwrap());
        let mut budget = Budget::new(3, Duration::from_secs(2));
        let at = Instant::from_secs;
        let taken = (0..5).filter(|_| budget.take(at(10), a)).count();
        assert_eq!(taken, 3);
        assert!(budget.take(at(10), b), "another port's bucket is full");
        assert!(!budget.take(at(11), a));
        assert!(budget.take(at(12), a), "one came back");
        assert!(!budget.take(at(12), a));
        let taken = (0..5).filter(|_| budget.take(at(100), a)).count();
        assert_eq!(taken, 3, "no more than the burst came back");
        budget.forget(a);
        assert!(budget.take(at(100), a));
    }

    #[test]
    fn buckets_are_bounded_and_full_ones_make_room() {
        let ports = BUCKETS_MAX + 10;
        let mut registry = Registry::<PortId>::new(u16::MAX);
        let mut budget = Budget::new(1, Duration::from_secs(1));
        let ports: Vec<PortId> = (0..ports).map(|_| registry.mint().unwrap()).collect();
        let taken = ports.iter().filter(|&&port| budget.take(Instant::from_secs(5), port)).count();
        assert_eq!(taken, BUCKETS_MAX);
        assert!(budget.take(Instant::from_secs(6), ports[BUCKETS_MAX]));
        assert_eq!(budget.full_at.len(), 1);
    }
}
