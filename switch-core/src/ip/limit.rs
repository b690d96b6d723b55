//! How many ICMP errors a router sends (RFC 1812, 4.3.2.8; RFC 4443, 2.4 (f)): so many a second in all, and so
//! many for each port that asks for them, so that one guest cannot use up what others need.
//!
//! Each limit is a token bucket, kept as the time at which it will be full again.

use std::time::Duration;

use crate::ids::{Id, PortId};
use crate::time::Instant;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// When it is full, if nothing is taken.
    full_at: Instant,
}

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Between two tokens.
    interval: Duration,
    /// Time that a full bucket's tokens take to come back.
    depth: Duration,
}

impl Rate {
    /// `per_second` tokens a second, at least one, and `burst` of them at once, at least one.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, depth: interval * burst.max(1) }
    }
}

impl Bucket {
    fn has(&self, now: Instant, rate: Rate) -> bool {
        self.full_at.max(now).since(now) + rate.interval <= rate.depth
    }

    fn take(&mut self, now: Instant, rate: Rate) {
        self.full_at = self.full_at.max(now) + rate.interval;
    }
}

/// The limit of ICMP errors. Owned by the thread of the slow path.
#[derive(Debug)]
pub struct ErrorLimit {
    all: Rate,
    each: Rate,
    total: Bucket,
    /// By the port's index: no more than there are indexes. A port that took another's slot has its own bucket.
    ports: Vec<Option<(PortId, Bucket)>>,
    /// Errors that were not sent.
    pub suppressed: u64,
}

impl Default for ErrorLimit {
    /// 1,000 a second in all and 100 a second for each port, in bursts of 50 and 10.
    fn default() -> Self {
        Self::new(Rate::new(1000, 50), Rate::new(100, 10))
    }
}

impl ErrorLimit {
    /// A limit of all errors and of those that each port causes.
    pub fn new(all: Rate, each: Rate) -> Self {
        let total = Bucket { full_at: Instant::ORIGIN };
        Self { all, each, total, ports: Vec::new(), suppressed: 0 }
    }

    /// Whether an error may be sent about a frame that `port` received; if so, it counts as sent.
    pub fn allow(&mut self, now: Instant, port: PortId) -> bool {
        if port.index() >= self.ports.len() {
            self.ports.resize(port.index() + 1, None);
        }
        let Some(slot) = self.ports.get_mut(port.index()) else { return false };
        let fresh = Bucket { full_at: Instant::ORIGIN };
        let mut bucket = slot.filter(|(owner, _)| *owner == port).map_or(fresh, |(_, bucket)| bucket);
        let allowed = bucket.has(now, self.each) && self.total.has(now, self.all);
        if allowed {
            bucket.take(now, self.each);
            self.total.take(now, self.all);
        } else {
            self.suppressed += 1;
        }
        *slot = Some((port, bucket));
        allowed
    }
}
