//! How much may be under way: a window that grows while nothing is lost and shrinks when something is (RFC 5681, with
//! RFC 6582's mark of the last loss). The link to a guest is a ring or a queue with an end, and what does not fit is
//! dropped; without this, a sender that fills the guest's window would lose the end of each window.

use super::super::seq::Seq;

/// Bytes that may be under way at first. More than RFC 6928's ten segments: the link is one hop, and this is one
/// super-frame.
const INITIAL: u32 = 64 * 1024;
/// As much as the largest window (RFC 7323).
const MOST: u32 = 1 << 30;
/// Duplicate acknowledgments that tell of a loss.
const DUPLICATES: u8 = 3;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    window: u32,
    threshold: u32,
    mss: u32,
    duplicates: u8,
    /// What had been sent when the last loss was noticed: until it is acknowledged, no other is.
    recover: Option<Seq>,
}

impl Loss {
    pub(super) fn new(mss: u16) -> Self {
        let mss = u32::from(mss);
        Self { window: INITIAL.max(2 * mss), threshold: MOST, mss, duplicates: 0, recover: None }
    }

    /// Bytes that may be under way.
    #[inline]
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// `n` bytes were acknowledged, up to `ack`, when `flight` were under way.
    #[inline]
    pub(super) fn acked(&mut self, n: u32, ack: Seq, flight: u32) {
        self.duplicates = 0;
        if self.recover.is_some_and(|recover| !ack.before(recover)) {
            self.recover = None;
        }
        // A window that is not used says nothing about what would be lost.
        if flight < self.window / 2 {
            return;
        }
        let more = if self.window < self.threshold {
            n
        } else {
            // A segment for each window (RFC 5681, 3.1).
            (u64::from(self.mss) * u64::from(n) / u64::from(self.window)).max(1) as u32
        };
        self.window = self.window.saturating_add(more).min(MOST);
    }

    /// An acknowledgment of nothing new came; true if it tells of a loss, of what was sent up to `max`.
    #[inline]
    pub(super) fn duplicate(&mut self, max: Seq, flight: u32) -> bool {
        self.duplicates = self.duplicates.saturating_add(1);
        if self.duplicates != DUPLICATES || self.recover.is_some() {
            return false;
        }
        self.recover = Some(max);
        self.threshold = (flight / 2).max(2 * self.mss);
        self.window = self.threshold;
        true
    }

    /// The wait for an acknowledgment was in vain.
    pub(super) fn timed_out(&mut self, max: Seq, flight: u32) {
        self.duplicates = 0;
        self.recover = Some(max);
        self.threshold = (flight / 2).max(2 * self.mss);
        self.window = self.threshold.min(INITIAL).max(self.mss);
    }
}
