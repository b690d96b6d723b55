//! To the guest: what may be sent, what was acknowledged, what is sent again.

use std::time::Duration;

use switch_core::Instant;
use switch_core::ip::TcpFlags;

use super::super::segment::{ACK, FIN, PSH, SYN, Segment};
use super::super::seq::Seq;
use super::{Machine, Outcome, Phase, SCALE};

/// Between the first two questions for a closed window; then twice as long each time (RFC 9293, 3.8.6.1).
const PROBE_FIRST: Duration = Duration::from_millis(250);
/// The longest wait between two questions.
const PROBE_LONGEST: Duration = Duration::from_secs(60);

impl Machine {
    /// Takes in what a segment acknowledges. False if the segment is not to be looked at any further.
    #[inline]
    pub(super) fn acknowledge(&mut self, now: Instant, segment: &Segment, out: &mut Outcome) -> bool {
        let ack = segment.ack;
        if ack.after(self.snd_max) {
            self.acks = self.acks.max(1);
            return false;
        }
        // RFC 5961, 5.2: older than anything that can be under way.
        if ack.before(self.snd_una - self.snd_wnd_max.max(65_535)) {
            self.acks = self.acks.max(1);
            return false;
        }
        let window = u32::from(segment.window) << self.scale.unwrap_or(0);
        if ack.after(self.snd_una) {
            self.advance(now, ack, out);
        } else if ack == self.snd_una
            && segment.sequence_len() == 0
            && window == self.snd_wnd
            && self.snd_max != self.snd_una
            && self.loss.duplicate(self.snd_max, self.snd_max - self.snd_una)
        {
            self.rewind();
        }
        self.learn_window(segment, window);
        true
    }

    /// The guest has everything before `ack`.
    #[inline]
    fn advance(&mut self, now: Instant, ack: Seq, out: &mut Outcome) {
        let n = ack - self.snd_una;
        let flight = self.snd_max - self.snd_una;
        self.snd_una = ack;
        // What the guest kept of before a rewind need not be sent again.
        self.snd_nxt = self.snd_nxt.max(ack);
        out.acked = n - u32::from(self.fin_at.is_some_and(|fin| ack == fin + 1));
        self.rtt.acked(now, ack);
        self.loss.acked(n, ack, flight);
        self.stuck_since = now;
        self.resend_at = (self.snd_max != self.snd_una).then(|| now + self.wait());
    }

    fn learn_window(&mut self, segment: &Segment, window: u32) {
        // Newer is what acknowledges more (then a window that was kept would begin later, and reach too far), or as much, and
        // was sent later (RFC 9293, 3.10.7.4). What was overtaken is of a window that begins earlier.
        let (seq, ack) = self.window_from;
        let later = segment.seq.after(seq) || (segment.seq == seq && !segment.ack.before(ack));
        if segment.ack.before(self.snd_una) || !(segment.ack.after(ack) || later) {
            return;
        }
        self.window_from = (segment.seq, segment.ack);
        self.snd_wnd = window;
        self.snd_wnd_max = self.snd_wnd_max.max(window);
        if window > 0 {
            self.probes = 0;
        }
    }

    /// How long to wait for an acknowledgment.
    #[inline]
    fn wait(&self) -> Duration {
        self.rtt.wait(self.snd_max - self.snd_una >= 2 * u32::from(self.mss))
    }

    /// Everything that is not acknowledged is to be sent again.
    fn rewind(&mut self) {
        self.snd_nxt = self.snd_una;
        self.rewound = true;
        self.rtt.resent();
    }

    /// Nothing was acknowledged for as long as one waits.
    pub(super) fn resend(&mut self, now: Instant) {
        let flight = self.snd_max - self.snd_una;
        self.resend_at = None;
        if flight == 0 {
            return;
        }
        if self.snd_wnd == 0 {
            // It is not lost, but not wanted: the guest is asked when it is.
            self.rewind();
            self.watch_window(now);
            return;
        }
        self.loss.timed_out(self.snd_max, flight);
        self.rtt.lost();
        self.rewind();
        self.resend_at = Some(now + self.wait());
    }

    /// True if [`Machine::take_rewind`] is.
    #[inline]
    pub(crate) fn is_rewound(&self) -> bool {
        self.rewound
    }

    /// True, once, after a rewind: who peeks at the socket's stream is to begin again where the guest's acknowledgments end.
    pub(crate) fn take_rewind(&mut self) -> bool {
        std::mem::take(&mut self.rewound)
    }

    /// Payload bytes of the guest's segments.
    #[inline]
    pub(crate) fn mss(&self) -> u16 {
        self.mss
    }

    /// Bytes from `snd_una` to what is sent next.
    #[inline]
    pub(crate) fn offset(&self) -> u32 {
        self.snd_nxt - self.snd_una
    }

    /// Lets at most `most` bytes be under way.
    pub(crate) fn limit_flight(&mut self, most: u32) {
        self.flight_max = most;
    }

    /// How many bytes of the socket's stream may be sent now.
    #[inline]
    pub(crate) fn sendable(&self) -> u32 {
        if self.phase != Phase::Open {
            return 0;
        }
        let under_way = self.snd_nxt - self.snd_una;
        let window = self.snd_wnd.min(self.loss.window()).min(self.flight_max);
        let left = window.saturating_sub(under_way);
        // No silly windows (RFC 9293, 3.8.6.2.1): a full segment, or as much as the guest is likely to offer, or all if
        // nothing is under way.
        let worth = u32::from(self.mss).min(self.snd_wnd_max / 2).max(1);
        if left < worth && under_way != 0 {
            return 0;
        }
        match self.fin_at {
            Some(fin) => left.min(fin - self.snd_nxt),
            None => left,
        }
    }

    /// Sends the next `n` bytes, at most [`Machine::sendable`]: their segment's header. `push` says that no more are there.
    #[inline]
    pub(crate) fn data(&mut self, now: Instant, n: u32, push: bool) -> Segment {
        let flags = TcpFlags(ACK | if push { PSH } else { 0 });
        let mut segment = Segment { seq: self.snd_nxt, flags, len: n, ..Segment::default() };
        self.acknowledge_in(&mut segment);
        self.sent(now, n);
        segment
    }

    fn sent(&mut self, now: Instant, n: u32) {
        self.snd_nxt += n;
        if self.snd_nxt.after(self.snd_max) {
            if self.snd_max == self.snd_una {
                self.stuck_since = now;
            }
            self.snd_max = self.snd_nxt;
            self.rtt.sent(now, self.snd_nxt);
        }
        if self.resend_at.is_none() {
            self.resend_at = Some(now + self.wait());
        }
    }

    /// The socket's stream ends after what was sent last.
    pub(crate) fn finish(&mut self) {
        if self.fin_at.is_none() {
            self.fin_at = Some(self.snd_nxt);
        }
    }

    /// True if the end of the socket's stream is known.
    #[inline]
    pub(crate) fn is_finished(&self) -> bool {
        self.fin_at.is_some()
    }

    /// Whether the socket has bytes that could not be sent yet.
    pub(crate) fn set_pending(&mut self, now: Instant, pending: bool) {
        self.pending = pending;
        self.watch_window(now);
    }

    /// Sees to it that the guest is asked for its window from time to time while that is closed and there is something to
    /// send.
    #[inline]
    pub(super) fn watch_window(&mut self, now: Instant) {
        let asks = self.snd_wnd == 0
            && self.phase == Phase::Open
            && self.snd_nxt == self.snd_una
            && (self.pending
                || self.snd_max != self.snd_una
                || self.fin_at.is_some_and(|fin| self.snd_una != fin + 1));
        if !asks {
            self.probe_at = None;
        } else if self.probe_at.is_none() {
            self.probe_at = Some(now + PROBE_FIRST);
        }
    }

    /// Asks for the guest's window.
    pub(super) fn probe(&mut self, now: Instant) {
        self.probes = self.probes.saturating_add(1);
        self.probe_due = true;
        let wait = PROBE_FIRST * (1 << self.probes.min(10));
        self.probe_at = Some(now + wait.min(PROBE_LONGEST));
    }

    /// The next segment without payload that is to be sent now. To be asked for after the data.
    pub(crate) fn control(&mut self, now: Instant) -> Option<Segment> {
        if std::mem::take(&mut self.syn_due) {
            return Some(self.syn(now));
        }
        if self.phase == Phase::Opening || self.phase == Phase::Calling {
            return None;
        }
        if self.may_send_fin() {
            let mut segment = Segment { seq: self.snd_nxt, flags: TcpFlags(FIN | ACK), ..Segment::default() };
            self.acknowledge_in(&mut segment);
            self.sent(now, 1);
            return Some(segment);
        }
        if std::mem::take(&mut self.probe_due) {
            // A byte that the guest has: it answers by what it expects, and its window.
            let mut segment = Segment { seq: self.snd_una - 1, flags: TcpFlags(ACK), ..Segment::default() };
            self.acknowledge_in(&mut segment);
            return Some(segment);
        }
        if self.acks == 0 {
            return None;
        }
        let mut segment = Segment { seq: self.snd_nxt, flags: TcpFlags(ACK), ..Segment::default() };
        self.acknowledge_in(&mut segment);
        Some(segment)
    }

    /// True if [`Machine::control`] has something.
    #[inline]
    pub(crate) fn has_control(&self) -> bool {
        self.syn_due
            || (self.phase != Phase::Opening
                && self.phase != Phase::Calling
                && (self.acks > 0 || self.probe_due || self.may_send_fin()))
    }

    /// True if all data was sent, the stream's end was not, and the guest's window has room for it.
    fn may_send_fin(&self) -> bool {
        self.phase == Phase::Open
            && self.fin_at == Some(self.snd_nxt)
            && self.snd_nxt - self.snd_una < self.snd_wnd
    }

    /// The guest's SYN is answered, or a SYN sent to it.
    fn syn(&mut self, now: Instant) -> Segment {
        let answers = self.phase == Phase::Answered;
        let mut segment = Segment {
            seq: self.snd_una,
            flags: TcpFlags(if answers { SYN | ACK } else { SYN }),
            window: self.space.min(65_535) as u16,
            mss: Some(self.config.mss),
            scale: (!answers || self.scale.is_some()).then_some(SCALE),
            ..Segment::default()
        };
        if answers {
            self.acknowledge_in(&mut segment);
        }
        if self.snd_max == self.snd_una {
            self.snd_max = self.snd_una + 1;
            self.rtt.sent(now, self.snd_max);
        }
        self.snd_nxt = self.snd_max;
        self.resend_at = Some(now + self.rtt.wait(false));
        segment
    }
}
