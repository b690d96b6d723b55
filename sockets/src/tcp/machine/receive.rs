//! From the guest: which segments are acceptable, what of them is new, and the window that the guest is offered.

use switch_core::Instant;

use super::super::segment::{Segment, reset_for};
use super::{End, Machine, Outcome, Phase, SCALE, WINDOW_MAX};

/// A window is opened by as much as this, or as there is, at once (RFC 9293, 3.8.6.2.2).
const OPEN_BY: u32 = 4096;
/// Acknowledgments that make a guest send again at once what was not taken (RFC 5681, 3.2): the first opens the window,
/// three more are duplicates.
const ASK_AGAIN: u8 = 4;

impl Machine {
    /// A segment, once the guest's SYN is answered (RFC 9293, 3.10.7.4).
    pub(super) fn once_open(&mut self, now: Instant, segment: &Segment, out: &mut Outcome) {
        let flags = segment.flags;
        if self.phase == Phase::Answered && flags.syn() && segment.seq + 1 == self.rcv_nxt {
            self.syn_due = true;
            return;
        }
        if !self.is_acceptable(segment) {
            // Also how a guest's keepalives and questions for the window are answered.
            if !flags.rst() {
                self.hear(now);
                self.ack_now();
            }
            return;
        }
        if flags.rst() {
            // RFC 5961, 3.2: only the very next sequence number resets; others within the window are asked about.
            if segment.seq == self.rcv_nxt {
                out.end = Some(End::Reset);
            } else {
                self.ack_now();
            }
            return;
        }
        if flags.syn() {
            // RFC 5961, 4.2.
            self.ack_now();
            return;
        }
        if !flags.ack() {
            return;
        }
        if self.phase == Phase::Answered {
            if segment.ack != self.snd_max || self.snd_max == self.snd_una {
                out.answer = reset_for(segment);
                return;
            }
            self.snd_una = segment.ack;
            self.snd_nxt = segment.ack;
            self.window_from = (segment.seq, segment.ack);
            self.snd_wnd = u32::from(segment.window) << self.scale.unwrap_or(0);
            self.snd_wnd_max = self.snd_wnd_max.max(self.snd_wnd);
            self.phase = Phase::Open;
            self.resend_at = None;
            self.rtt.acked(now, segment.ack);
        } else if !self.acknowledge(now, segment, out) {
            return;
        }
        self.hear(now);
        self.take(segment, out);
        self.close_if_done(now);
    }

    /// Whether a segment has any part in the window (RFC 9293, 3.10.7.4), which is all that the guest was ever offered.
    #[inline]
    fn is_acceptable(&self, segment: &Segment) -> bool {
        let end = segment.seq + segment.sequence_len();
        if segment.sequence_len() == 0 {
            return !segment.seq.before(self.rcv_nxt) && !segment.seq.after(self.edge);
        }
        let begins = segment.seq.before(self.edge) || segment.seq == self.rcv_nxt;
        begins && end.after(self.rcv_nxt)
    }

    /// Takes what is new and in order.
    #[inline]
    fn take(&mut self, segment: &Segment, out: &mut Outcome) {
        if segment.sequence_len() == 0 {
            return;
        }
        self.ack_now();
        if segment.seq.after(self.rcv_nxt) || self.guest_fin {
            return;
        }
        let skip = self.rcv_nxt - segment.seq;
        // Not negative: the segment's end is behind `rcv_nxt`, or at it with a FIN still to come.
        let new = segment.len.saturating_sub(skip);
        let take = new.min(self.edge - self.rcv_nxt);
        if take > 0 {
            out.skip = skip;
            out.take = take;
            self.rcv_nxt += take;
        }
        if segment.flags.fin() && take == new {
            self.rcv_nxt += 1;
            self.offered = self.offered.max(self.rcv_nxt);
            self.edge = self.edge.max(self.rcv_nxt);
            self.guest_fin = true;
            self.fin_fresh = true;
            out.fin = true;
        }
    }

    /// The socket did not take the last `n` bytes of what it was to be given since [`Machine::settle`], and so not the end
    /// of the stream either.
    pub(crate) fn refuse(&mut self, n: u32) {
        self.rcv_nxt -= n + u32::from(self.fin_fresh);
        self.guest_fin &= !self.fin_fresh;
        self.fin_fresh = false;
        self.starved = true;
        // What was offered is taken back: the one case where a window shrinks (RFC 9293, 3.8.6).
        self.offered = self.rcv_nxt;
        self.space = 0;
        self.ack_now();
    }

    /// The socket has taken everything that it was given, also the stream's end if there was one.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.fin_fresh = false;
        self.close_if_done(now);
    }

    /// The socket would take `space` bytes. True if the guest is to be told at once.
    pub(crate) fn set_space(&mut self, space: u32) -> bool {
        self.space = space.min(WINDOW_MAX);
        if self.phase != Phase::Open || self.guest_fin {
            return false;
        }
        if self.starved {
            if self.space < OPEN_BY {
                return false;
            }
            self.starved = false;
            self.acks = ASK_AGAIN;
            return true;
        }
        let window = self.offered - self.rcv_nxt;
        let opens = self.space >= OPEN_BY && self.space / 2 >= window;
        if opens {
            self.ack_now();
        }
        opens
    }

    #[inline]
    fn ack_now(&mut self) {
        self.acks = self.acks.max(1);
    }

    /// Writes the acknowledgment and the window into a segment that is about to be sent.
    #[inline]
    pub(super) fn acknowledge_in(&mut self, segment: &mut Segment) {
        segment.ack = self.rcv_nxt;
        let syn = segment.flags.syn();
        let shift = if self.scale.is_some() && !syn { SCALE } else { 0 };
        let promised = self.offered - self.rcv_nxt;
        let more = self.space.saturating_sub(promised);
        let window = if more >= OPEN_BY || promised == 0 { promised + more } else { promised };
        // Up to the next step of the scale, so that the edge does not go back.
        let steps = u64::from(window).div_ceil(1 << shift).min(65_535) as u32;
        segment.window = steps as u16;
        self.offered = self.offered.max(self.rcv_nxt + (steps << shift));
        self.edge = self.edge.max(self.offered);
        self.acks = self.acks.saturating_sub(1);
    }
}
