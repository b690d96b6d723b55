//! How long an acknowledgment takes, and how long to wait for one (RFC 6298).

use std::time::Duration;

use switch_core::Instant;

use super::super::seq::Seq;

/// Before anything was measured. The link is short; RFC 6298 (2.1) has a second for the Internet.
const INITIAL: Duration = Duration::from_millis(500);
/// The shortest wait. Longer than the delayed acknowledgments of any guest (RFC 9293, 3.8.6.3: at most half a second; in
/// practice 40 to 200 ms).
const SHORTEST: Duration = Duration::from_millis(250);
/// The shortest wait when two full segments and more are under way: those are acknowledged at once, so only the guest's
/// own pauses matter.
const SHORTEST_OF_MANY: Duration = Duration::from_millis(30);
/// The longest wait (RFC 6298, 2.5).
const LONGEST: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    /// What is being timed: the acknowledgment that ends it, and when it began.
    timed: Option<(Seq, Instant)>,
    /// How often the wait was doubled.
    backoff: u8,
}

impl Rtt {
    /// Something was sent for the first time, that `end` acknowledges.
    #[inline]
    pub(super) fn sent(&mut self, now: Instant, end: Seq) {
        if self.timed.is_none() {
            self.timed = Some((end, now));
        }
    }

    /// Something new was acknowledged.
    #[inline]
    pub(super) fn acked(&mut self, now: Instant, ack: Seq) {
        self.backoff = 0;
        let Some((end, since)) = self.timed else { return };
        if ack.before(end) {
            return;
        }
        self.timed = None;
        let sample = now.since(since);
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// Something is sent again: what is timed cannot be told from it (Karn's algorithm).
    pub(super) fn resent(&mut self) {
        self.timed = None;
    }

    /// The wait was in vain.
    pub(super) fn lost(&mut self) {
        self.timed = None;
        self.backoff = self.backoff.saturating_add(1);
    }

    /// How long to wait, with `many` under way or a little.
    #[inline]
    pub(super) fn wait(&self, many: bool) -> Duration {
        let shortest = if many { SHORTEST_OF_MANY } else { SHORTEST };
        let wait = self.smoothed.map_or(INITIAL, |smoothed| smoothed + self.variation * 4).max(shortest);
        (wait * (1 << self.backoff.min(10))).min(LONGEST)
    }
}
