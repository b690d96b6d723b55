//! One connection as the fuzz targets drive it, as `flow` does, with a model of its socket in place of one.

use std::time::Duration;

use switch_core::Instant;
use switch_core::ip::TcpFlags;

use super::super::segment::{SYN, Segment};
use super::super::seq::Seq;
use super::{Config, Machine, Outcome, Phase, SCALE};

/// A segment of a guest's. Numbers are told from where the connection stands, so that most of them mean something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// From what is expected next.
    pub seq: i32,
    /// From what was sent last.
    pub ack: i32,
    /// As in the header.
    pub flags: u8,
    /// As in the header.
    pub window: u16,
    /// Bytes of the payload.
    pub len: u16,
    /// The maximum segment size option.
    pub mss: Option<u16>,
    /// The window scale option, at most 14.
    pub scale: Option<u8>,
}

/// A connection, and what its socket would have.
#[derive(Debug)]
pub struct Connection {
    machine: Machine,
    now: Instant,
    /// Bytes of the socket's stream that were not taken out, and how many of them were ever looked at.
    held: u32,
    seen: u32,
    /// The socket's stream ends behind those.
    ended: bool,
    /// What the socket is given next, in the guest's numbers.
    next: Seq,
    /// One past the last byte that the guest was ever offered, by the headers that were sent.
    edge: Seq,
    /// Bytes that wait for the socket, and whether the guest's stream ends behind them.
    gathered: u32,
    fin: bool,
    /// The socket's other half is closed.
    shut: bool,
    /// An end of the guest's stream was refused. It had a sequence number, which stays acceptable.
    fin_refused: bool,
}

impl Connection {
    /// A guest asks for it by a SYN, or it is offered to a guest.
    pub fn begin(asks: Option<Said>, iss: u32, mss: u16) -> Self {
        let now = Instant::from_secs(1000);
        let config = Config { mss: mss.max(536), mss_default: 536 };
        let machine = match asks {
            Some(said) => {
                let segment = Segment { flags: TcpFlags(SYN), ..said.segment(Seq(0), Seq(0)) };
                Machine::asked(now, &segment, Seq(iss), config)
            }
            None => Machine::calling(now, Seq(iss), config),
        };
        let mut this = Self {
            machine,
            now,
            held: 0,
            seen: 0,
            ended: false,
            next: Seq(0),
            edge: Seq(0),
            gathered: 0,
            fin: false,
            shut: false,
            fin_refused: false,
        };
        this.meet();
        this
    }

    /// Learns where the guest's stream begins.
    fn meet(&mut self) {
        self.next = self.machine.rcv_nxt;
        self.edge = self.next;
    }

    /// Somebody outside has accepted.
    pub fn connected(&mut self) {
        self.machine.connected(self.now);
    }

    /// The guest sends a segment. False if the connection is over.
    pub fn segment(&mut self, said: &Said) -> bool {
        let segment = said.segment(self.machine.rcv_nxt, self.machine.snd_max);
        if self.machine.gives_way(&segment) {
            return false;
        }
        let begins = matches!(self.machine.phase(), Phase::Opening | Phase::Calling);
        let Outcome { skip, take, fin, acked, end, .. } = self.machine.segment(self.now, &segment);
        if begins {
            assert_eq!((take, fin, acked), (0, false, 0), "nothing flows yet");
            self.meet();
        }
        assert!(acked <= self.seen, "{acked} bytes acknowledged, and {} sent", self.seen);
        self.held -= acked;
        self.seen -= acked;
        if end.is_some() {
            return false;
        }
        if take > 0 || fin {
            assert!(!self.shut && !self.fin, "there is nothing behind the stream's end");
        }
        if take > 0 {
            assert!(u64::from(skip) + u64::from(take) <= u64::from(segment.len), "as long as the payload");
            assert_eq!(segment.seq + skip, self.next, "in order");
            self.next += take;
            assert!(!self.next.after(self.edge + u32::from(self.fin_refused)), "beyond what was offered");
            self.gathered += take;
        }
        self.fin |= fin;
        self.hold();
        true
    }

    /// The socket takes what was gathered but `refused` bytes.
    pub fn give(&mut self, refused: u32) {
        if self.gathered == 0 && !self.fin {
            return;
        }
        let refused = refused.min(self.gathered);
        if refused > 0 {
            self.machine.refuse(refused);
            self.fin_refused |= self.fin;
            self.next -= refused;
        } else {
            self.shut |= self.fin;
        }
        (self.gathered, self.fin) = (0, false);
        self.machine.settle(self.now);
        self.hold();
    }

    /// The socket would take so many bytes.
    pub fn space(&mut self, space: u32) {
        self.machine.set_space(space);
        self.hold();
    }

    /// So many bytes more came from outside.
    pub fn arrived(&mut self, n: u32) {
        if !self.ended {
            self.held = (self.held + n).min(1 << 30);
        }
    }

    /// The outside ended its stream.
    pub fn ended(&mut self) {
        self.ended = true;
    }

    /// The guest is sent what is due, as `flow` and the queue of connections do.
    pub fn serve(&mut self) {
        let mut frames = 0;
        while self.machine.phase() != Phase::Closed && self.machine.sendable() > 0 {
            self.machine.take_rewind();
            let (at, sendable) = (self.machine.offset(), self.machine.sendable());
            let n = sendable.min(self.held.saturating_sub(at)).min(65_000);
            if n == 0 {
                if self.ended {
                    self.machine.finish();
                }
                break;
            }
            let header = self.machine.data(self.now, n, false);
            self.sent(&header);
            self.seen = self.seen.max(self.machine.offset());
            assert!(self.machine.offset() <= self.machine.snd_wnd, "beyond the guest's window");
            frames += 1;
            if frames == 64 {
                break;
            }
        }
        let waits = self.held > self.machine.offset();
        self.machine.set_pending(self.now, waits && self.machine.sendable() == 0);
        let mut controls = 0;
        while let Some(header) = self.machine.control(self.now) {
            self.sent(&header);
            controls += 1;
            assert!(controls <= 16, "answers without end");
        }
        self.hold();
    }

    /// A header went to the guest: its window is an offer.
    fn sent(&mut self, header: &Segment) {
        if matches!(self.machine.phase(), Phase::Opening | Phase::Calling) {
            return;
        }
        let shift = if self.machine.scale.is_some() && !header.flags.syn() { SCALE } else { 0 };
        self.edge = self.edge.max(header.ack + (u32::from(header.window) << shift));
    }

    /// Time passes, and what is due is done. False if the connection is over.
    pub fn pass(&mut self, time: Duration) -> bool {
        self.now = self.now + time;
        for _ in 0..64 {
            if self.machine.deadline().is_none_or(|at| at > self.now) {
                self.hold();
                return true;
            }
            if self.machine.is_over(self.now) || self.machine.timeout(self.now).is_some() {
                return false;
            }
        }
        let stands = self.machine.deadline().is_some_and(|at| at <= self.now);
        assert!(!stands, "a deadline that does not pass: {:?}", self.machine);
        self.hold();
        true
    }

    /// What holds at any time.
    fn hold(&self) {
        let m = &self.machine;
        assert!(!m.snd_una.after(m.snd_nxt) && !m.snd_nxt.after(m.snd_max), "{m:?}");
        assert!(!m.rcv_nxt.after(m.edge) && !m.offered.after(m.edge), "{m:?}");
        let ends = u32::from(self.fin || self.shut);
        assert_eq!(m.rcv_nxt, self.next + ends, "{m:?}");
        assert!(
            !m.edge.after(self.edge + ends.max(self.fin_refused.into())),
            "more is acceptable than was offered: {m:?}"
        );
    }
}

impl Said {
    fn segment(&self, expected: Seq, sent: Seq) -> Segment {
        Segment {
            seq: expected + self.seq.cast_unsigned(),
            ack: sent + self.ack.cast_unsigned(),
            flags: TcpFlags(self.flags),
            window: self.window,
            len: u32::from(self.len),
            mss: self.mss,
            scale: self.scale.map(|shift| shift.min(14)),
        }
    }
}
