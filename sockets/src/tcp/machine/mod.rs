//! One connection as its guest sees it: a TCP endpoint without I/O (RFC 9293), whose streams are somebody else's. What the
//! guest sends is offered to a socket and acknowledged as far as the socket took it; what the socket has is sent, and
//! stays there until the guest acknowledges it. So nothing is stored here, and the flow control of each side is the other
//! side's.
//!
//! Whoever drives it
//! 1. hands in segments ([`Machine::segment`]) and does what the [`Outcome`] says; tells what the socket did not take
//!    ([`Machine::refuse`]) before anything is sent, and how much it would take ([`Machine::set_space`]);
//! 2. asks what may be sent ([`Machine::sendable`], [`Machine::data`], [`Machine::control`]) until there is nothing;
//! 3. calls [`Machine::timeout`] at [`Machine::deadline`].
//!
//! Invariants: `snd_una <= snd_nxt <= snd_max`; the socket's stream begins, for who peeks, at `snd_una`, and what is sent
//! next is `snd_nxt - snd_una` bytes from there; `rcv_nxt` never passes what the guest was offered (`edge`).
//!
//! Segments out of order are not kept: a virtual link does not reorder, so one that comes early tells of a loss, and a
//! guest sends again from there. The urgent mark is not passed on (RFC 6093 tells applications not to use it); the bytes
//! stay in the stream.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod loss;
mod receive;
mod rtt;
mod send;
#[cfg(test)]
mod tests;

use std::time::Duration;

use switch_core::Instant;
use switch_core::ip::TcpFlags;

use self::loss::Loss;
use self::rtt::Rtt;
use super::segment::{self, ACK, Segment, reset_for};
use super::seq::Seq;

/// The shift of the windows that guests are offered.
pub(crate) const SCALE: u8 = 7;
/// The largest window that a guest is offered.
const WINDOW_MAX: u32 = 65_535 << SCALE;

/// How long a connection may be silent before its guest is asked whether it is there. RFC 5382 (REQ-5) wants 2 h 4 min at
/// the least.
const IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// The same, when one side has closed (RFC 5382's transitory connections: 4 min).
const IDLE_HALF_CLOSED: Duration = Duration::from_secs(4 * 60);
/// Between two questions to a silent guest.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(75);
/// Questions without an answer, after which a guest is taken for gone.
const KEEPALIVE_MOST: u8 = 9;
/// How long the outside may take to accept.
const OPENING: Duration = Duration::from_secs(75);
/// How long an answer to a SYN waits for the guest, or a SYN to a guest for its answer.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// How long a guest may not acknowledge anything of what it was sent again and again (RFC 9293, 3.8.3: R2 is 100 s at the
/// least).
const GIVE_UP: Duration = Duration::from_secs(5 * 60);
/// How long a closed connection is remembered, to acknowledge its guest's FIN once more. The link's round trip and the
/// guest's timer are what it depends on, not a network's 2 MSL.
const LINGER: Duration = Duration::from_secs(2);

/// What is announced to guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Payload bytes of the longest segment, either way.
    pub(crate) mss: u16,
    /// What a guest takes that says nothing (RFC 9293, 3.7.1).
    pub(crate) mss_default: u16,
}

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest has sent a SYN, which nobody has accepted yet.
    Opening,
    /// A SYN goes to the guest.
    Calling,
    /// The guest's SYN is answered, and the answer waits for its acknowledgment.
    Answered,
    /// Streams flow, or one of them does.
    Open,
    /// Both streams have ended, and everything is acknowledged.
    Closed,
}

/// How a connection ends before its streams do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest reset it.
    Reset,
    /// The guest does not answer.
    Gone,
    /// The outside did not answer.
    Unanswered,
}

/// What a segment asks of the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Bytes at the payload's beginning that the socket has already.
    pub(crate) skip: u32,
    /// Bytes after those, to be given to the socket.
    pub(crate) take: u32,
    /// The guest's stream ends after that.
    pub(crate) fin: bool,
    /// Bytes of the socket's stream that the guest has, and that are to be taken out of it.
    pub(crate) acked: u32,
    /// The connection ends here.
    pub(crate) end: Option<End>,
    /// A segment that is answered at once, past the connection.
    pub(crate) answer: Option<Segment>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    config: Config,

    // From the guest.
    rcv_nxt: Seq,
    /// One past the last byte that the guest is offered to send now.
    offered: Seq,
    /// The same of any time: what is acceptable.
    edge: Seq,
    /// Bytes that the socket would take now.
    space: u32,
    /// The guest's stream has ended.
    guest_fin: bool,
    /// The end was taken with the bytes that the socket has yet to take.
    fin_fresh: bool,
    /// The socket has not taken what the guest was offered to send.
    starved: bool,
    /// Acknowledgments to be sent.
    acks: u8,

    // To the guest.
    snd_una: Seq,
    snd_nxt: Seq,
    snd_max: Seq,
    snd_wnd: u32,
    /// The largest window that the guest has offered.
    snd_wnd_max: u32,
    /// The segment that the window is from: its sequence and acknowledgment numbers.
    window_from: (Seq, Seq),
    /// What the guest's windows are shifted by; `None` if it does not scale, and then neither do we.
    scale: Option<u8>,
    mss: u16,
    /// Where the socket's stream ends.
    fin_at: Option<Seq>,
    /// A SYN, or an answer to one, is to be sent.
    syn_due: bool,
    /// A question for the guest's window, or whether it is there, is to be sent.
    probe_due: bool,
    /// Whoever peeks is to begin again at `snd_una`.
    rewound: bool,
    /// The socket has bytes that the guest's window has no room for.
    pending: bool,
    /// Bytes that may be under way, whatever the guest's window.
    flight_max: u32,
    loss: Loss,
    rtt: Rtt,

    // Time.
    /// When the oldest byte that is under way is sent again.
    resend_at: Option<Instant>,
    /// When the guest is asked for its window.
    probe_at: Option<Instant>,
    probes: u8,
    /// When the guest was heard last.
    heard: Instant,
    /// Questions since then whether it is there.
    questions: u8,
    /// Since when nothing has moved although something is under way, or the handshake lasts.
    stuck_since: Instant,
    /// When the connection was closed.
    closed: Option<Instant>,
}

impl Machine {
    fn new(now: Instant, phase: Phase, config: Config, iss: Seq) -> Self {
        Self {
            phase,
            config,
            rcv_nxt: Seq(0),
            offered: Seq(0),
            edge: Seq(0),
            space: 0,
            guest_fin: false,
            fin_fresh: false,
            starved: false,
            acks: 0,
            snd_una: iss,
            snd_nxt: iss,
            snd_max: iss,
            snd_wnd: 0,
            snd_wnd_max: 0,
            window_from: (Seq(0), iss),
            scale: None,
            mss: config.mss_default,
            fin_at: None,
            syn_due: false,
            probe_due: false,
            rewound: false,
            pending: false,
            flight_max: u32::MAX,
            loss: Loss::new(config.mss),
            rtt: Rtt::default(),
            resend_at: None,
            probe_at: None,
            probes: 0,
            heard: now,
            questions: 0,
            stuck_since: now,
            closed: None,
        }
    }

    /// A connection that a guest asks for by `syn`, for which somebody outside is asked first.
    pub(crate) fn asked(now: Instant, syn: &Segment, iss: Seq, config: Config) -> Self {
        let mut this = Self::new(now, Phase::Opening, config, iss);
        this.meet(syn);
        // A guest that does not scale its windows is answered likewise.
        this.scale = syn.scale;
        this
    }

    /// A connection that somebody outside has opened to a guest.
    pub(crate) fn calling(now: Instant, iss: Seq, config: Config) -> Self {
        let mut this = Self::new(now, Phase::Calling, config, iss);
        this.syn_due = true;
        this
    }

    /// Learns from a SYN.
    fn meet(&mut self, syn: &Segment) {
        self.rcv_nxt = syn.seq + 1;
        self.offered = self.rcv_nxt;
        self.edge = self.rcv_nxt;
        self.snd_wnd = u32::from(syn.window);
        self.snd_wnd_max = self.snd_wnd;
        self.window_from = (syn.seq, self.snd_una);
        // Below 64 nobody's headers are worth it, and a super-frame has a bound of segments.
        self.mss = syn.mss.unwrap_or(self.config.mss_default).clamp(64, self.config.mss);
        self.loss = Loss::new(self.mss);
    }

    /// Somebody outside has accepted: the guest's SYN is answered.
    pub(crate) fn connected(&mut self, now: Instant) {
        if self.phase == Phase::Opening {
            self.phase = Phase::Answered;
            self.syn_due = true;
            self.stuck_since = now;
        }
    }

    /// When the guest was heard last.
    #[inline]
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    /// Where the connection is.
    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The SYN by which the guest asked for the connection, as far as it matters to who is told about it.
    pub(crate) fn asked_by(&self) -> Segment {
        Segment { seq: self.rcv_nxt - 1, flags: TcpFlags(segment::SYN), ..Segment::default() }
    }

    /// The segment that ends the connection for the guest, whatever it thinks of it now.
    pub(crate) fn reset(&self) -> Segment {
        // If the guest expects another byte, it asks, and the answer to that is a reset that fits (RFC 5961, 3.2).
        Segment {
            seq: self.snd_max,
            ack: self.rcv_nxt,
            flags: TcpFlags(segment::RST | ACK),
            ..Segment::default()
        }
    }

    /// Hands in a segment of the guest's.
    pub(crate) fn segment(&mut self, now: Instant, segment: &Segment) -> Outcome {
        let mut out = Outcome::default();
        match self.phase {
            Phase::Opening => self.while_opening(segment, &mut out),
            Phase::Calling => self.while_calling(now, segment, &mut out),
            Phase::Answered | Phase::Open | Phase::Closed => self.once_open(now, segment, &mut out),
        }
        self.watch_window(now);
        out
    }

    /// The guest has asked, and has no answer yet.
    fn while_opening(&mut self, segment: &Segment, out: &mut Outcome) {
        let flags = segment.flags;
        if flags.rst() {
            let last = segment.seq.from(self.rcv_nxt);
            if (-1..=0).contains(&last) {
                out.end = Some(End::Reset);
            }
        } else if flags.syn() && !flags.ack() && segment.seq + 1 != self.rcv_nxt {
            // It has begun anew, and nobody has told it anything yet.
            self.meet(segment);
            self.scale = segment.scale;
        }
    }

    /// A SYN went to the guest (RFC 9293, 3.10.7.3).
    fn while_calling(&mut self, now: Instant, segment: &Segment, out: &mut Outcome) {
        let flags = segment.flags;
        let acks = flags.ack() && self.snd_max != self.snd_una && segment.ack == self.snd_max;
        if flags.ack() && !acks {
            out.answer = reset_for(segment);
            return;
        }
        if flags.rst() {
            if acks {
                out.end = Some(End::Reset);
            }
            return;
        }
        if !flags.syn() || !acks {
            // A SYN that crosses ours would be a simultaneous open: of a port that listens there is none.
            return;
        }
        self.meet(segment);
        self.scale = segment.scale;
        self.snd_una = segment.ack;
        self.snd_nxt = segment.ack;
        self.window_from = (segment.seq, segment.ack);
        self.phase = Phase::Open;
        self.resend_at = None;
        self.rtt.acked(now, segment.ack);
        self.hear(now);
        self.acks = 1;
    }

    /// The guest is there.
    fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.questions = 0;
    }

    /// When [`Machine::timeout`] is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let standing = match (self.phase, self.closed) {
            (Phase::Closed, Some(closed)) => Some(closed + LINGER),
            (Phase::Closed, None) => None,
            (Phase::Opening, _) => Some(self.stuck_since + OPENING),
            (Phase::Calling | Phase::Answered, _) => Some(self.stuck_since + HANDSHAKE),
            (Phase::Open, _) => Some(self.question_at()),
        };
        [self.resend_at, self.probe_at, standing].into_iter().flatten().min()
    }

    /// When a silent guest is asked whether it is there.
    fn question_at(&self) -> Instant {
        let half = self.guest_fin || self.fin_at.is_some();
        let idle = if half { IDLE_HALF_CLOSED } else { IDLE };
        self.heard + idle + KEEPALIVE_EVERY * u32::from(self.questions)
    }

    /// Does what is due; how the connection ends, if it does.
    pub(crate) fn timeout(&mut self, now: Instant) -> Option<End> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match self.phase {
            Phase::Closed => return None,
            Phase::Opening => {
                return (now.since(self.stuck_since) >= OPENING).then_some(End::Unanswered);
            }
            Phase::Calling | Phase::Answered => {
                if now.since(self.stuck_since) >= HANDSHAKE {
                    return Some(End::Gone);
                }
                if due(self.resend_at) {
                    self.resend_at = None;
                    self.rtt.lost();
                    self.syn_due = true;
                }
                return None;
            }
            Phase::Open => {}
        }
        if due(self.resend_at) {
            if now.since(self.stuck_since.max(self.heard)) >= GIVE_UP {
                return Some(End::Gone);
            }
            self.resend(now);
        }
        if due(self.probe_at) {
            self.probe(now);
        }
        if self.question_at() <= now {
            if self.questions >= KEEPALIVE_MOST {
                return Some(End::Gone);
            }
            self.questions += 1;
            self.probe_due = true;
        }
        None
    }

    /// True if a closed connection need not be remembered any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.closed.is_some_and(|closed| now.since(closed) >= LINGER)
    }

    /// True if the guest may begin a new connection by `syn` in place of this one (RFC 9293, 3.10.7.4; RFC 6191).
    pub(crate) fn gives_way(&self, syn: &Segment) -> bool {
        self.phase == Phase::Closed && syn.flags.syn() && !syn.flags.ack() && syn.seq.after(self.rcv_nxt)
    }

    /// Ends the connection if both streams have ended and nothing is under way.
    fn close_if_done(&mut self, now: Instant) {
        let all_acked = self.fin_at.is_some_and(|fin| self.snd_una == fin + 1);
        if self.phase == Phase::Open && self.guest_fin && !self.fin_fresh && all_acked {
            self.phase = Phase::Closed;
            self.closed = Some(now);
            self.resend_at = None;
            self.probe_at = None;
        }
    }
}
