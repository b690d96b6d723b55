//! The machine against a guest that is written as naively as can be, over a link that loses, doubles and reorders, with a
//! socket that takes what it likes; time is whatever is due next. Streams must arrive whole, both of them, and end.

use std::collections::VecDeque;

use proptest::prelude::*;
use switch_core::Instant;
use switch_core::ip::TcpFlags;

use super::super::segment::{ACK, FIN, RST, SYN, Segment};
use super::super::seq::Seq;
use super::*;

const CONFIG: Config = Config { mss: 1000, mss_default: 536 };
const SCALED: u8 = 3;

/// Random numbers, and their like for every run of a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A guest: keeps what comes early in a map of bytes, sends everything again when a timer says so.
struct Naive {
    iss: Seq,
    /// Next byte of its stream to be acknowledged, and to be sent.
    una: usize,
    next: usize,
    out: Vec<u8>,
    fin_acked: bool,
    window: u32,
    scale: u8,
    /// What it has received: by place, and how far without holes.
    peer: Option<Seq>,
    got: Vec<Option<u8>>,
    whole: usize,
    read: usize,
    buffer: usize,
    peer_fin: Option<usize>,
    fin_seen: bool,
    open: bool,
    acks: u32,
}

impl Naive {
    fn syn(&self) -> Segment {
        Segment {
            seq: self.iss,
            flags: TcpFlags(SYN),
            window: self.buffer.min(65_535) as u16,
            mss: Some(1000),
            scale: Some(SCALED),
            ..Segment::default()
        }
    }

    fn ack(&self) -> Seq {
        self.peer.map_or(Seq(0), |peer| peer + 1 + self.whole as u32 + u32::from(self.fin_seen))
    }

    fn window_field(&self) -> u16 {
        let room = self.buffer - (self.whole - self.read);
        (room >> SCALED).min(65_535) as u16
    }

    fn take(&mut self, segment: &Segment, payload: &[u8]) {
        if segment.flags.syn() {
            self.peer = Some(segment.seq);
            self.scale = segment.scale.unwrap_or(0);
            self.open = true;
            self.window = u32::from(segment.window);
            self.acks += 1;
            return;
        }
        let Some(peer) = self.peer else { return };
        assert!(!segment.flags.rst(), "the machine must not reset");
        let at = segment.seq.from(peer + 1);
        if segment.len > 0 || segment.flags.fin() || at < self.whole as i32 + i32::from(self.fin_seen) {
            self.acks += 1;
        }
        for (i, &byte) in payload.iter().enumerate() {
            let Ok(place) = usize::try_from(at + i as i32) else { continue };
            assert!(place < self.read + self.buffer + 8, "byte {place} is beyond the window");
            if place >= self.got.len() {
                self.got.resize(place + 1, None);
            }
            self.got[place] = Some(byte);
        }
        while self.got.get(self.whole).is_some_and(Option::is_some) {
            self.whole += 1;
        }
        if segment.flags.fin() {
            self.peer_fin = Some((at + payload.len() as i32) as usize);
        }
        if self.peer_fin == Some(self.whole) {
            self.fin_seen = true;
        }
        let acked = segment.ack.from(self.iss + 1);
        if acked >= self.una as i32 {
            let acked = acked as usize;
            self.fin_acked |= acked == self.out.len() + 1;
            self.una = acked.min(self.out.len());
            self.next = self.next.max(self.una);
            self.window = u32::from(segment.window) << self.scale;
        }
    }
}

/// The socket: what the guest's stream became, and what is to be sent.
struct Sink {
    took: Vec<u8>,
    ended: bool,
    source: Vec<u8>,
    /// Bytes that the guest has acknowledged, and the place that is peeked at next.
    consumed: usize,
    peek: usize,
}

struct World {
    now: Instant,
    dice: Dice,
    machine: Machine,
    guest: Naive,
    sink: Sink,
    to_guest: VecDeque<(Segment, Vec<u8>)>,
    to_machine: VecDeque<(Segment, Vec<u8>)>,
    /// In a thousand.
    loss: u64,
}

impl World {
    fn new(seed: u64, up: usize, down: usize, buffer: usize, loss: u64) -> Self {
        let mut dice = Dice(seed);
        let iss = Seq(dice.roll(1 << 32) as u32 | 0xff00_0000);
        let guest = Naive {
            iss,
            una: 0,
            next: 0,
            out: (0..up).map(|i| (i * 7 + i / 251) as u8).collect(),
            fin_acked: false,
            window: 0,
            scale: 0,
            peer: None,
            got: Vec::new(),
            whole: 0,
            read: 0,
            buffer,
            peer_fin: None,
            fin_seen: false,
            open: false,
            acks: 0,
        };
        let now = Instant::from_secs(1);
        let machine = Machine::asked(now, &guest.syn(), Seq(dice.roll(1 << 32) as u32 | 0xfff0_0000), CONFIG);
        let source = (0..down).map(|i| (i * 13 + i / 509) as u8).collect();
        let sink = Sink { took: Vec::new(), ended: false, source, consumed: 0, peek: 0 };
        Self { now, dice, machine, guest, sink, to_guest: VecDeque::new(), to_machine: VecDeque::new(), loss }
    }

    /// Puts a segment on the link: it may be lost, doubled, or overtaken.
    fn post(&mut self, to_guest: bool, segment: Segment, payload: Vec<u8>) {
        let link = if to_guest { &mut self.to_guest } else { &mut self.to_machine };
        if self.dice.roll(1000) < self.loss {
            return;
        }
        if self.dice.roll(1000) < self.loss / 2 {
            link.push_back((segment, payload.clone()));
        }
        link.push_back((segment, payload));
        if self.dice.roll(1000) < self.loss && link.len() >= 2 {
            let (a, b) = (link.len() - 1, self.dice.roll(link.len() as u64) as usize);
            link.swap(a, b);
        }
    }

    /// The machine takes a segment, and the socket as much of it as it likes.
    fn machine_takes(&mut self, segment: &Segment, payload: &[u8]) {
        let out = self.machine.segment(self.now, segment);
        assert_eq!((out.end, out.answer), (None, None), "nobody ends it");
        self.sink.consumed += out.acked as usize;
        self.sink.peek = self.sink.peek.max(self.sink.consumed);
        assert!(self.sink.consumed <= self.sink.source.len());
        let (skip, take) = (out.skip as usize, out.take as usize);
        let taken = if self.dice.roll(8) == 0 { self.dice.roll(take as u64 + 1) as usize } else { take };
        self.sink.took.extend(&payload[skip..skip + taken]);
        if taken < take {
            self.machine.refuse((take - taken) as u32);
        } else if out.fin {
            assert!(!self.sink.ended, "a stream ends once");
            self.sink.ended = true;
        }
        self.machine.settle(self.now);
        let space = [0, 500, 5000, 100_000][self.dice.roll(4) as usize];
        self.machine.set_space(space);
    }

    fn machine_sends(&mut self) {
        loop {
            if self.machine.take_rewind() {
                self.sink.peek = self.sink.consumed;
            }
            let n = (self.machine.sendable() as usize).min(5000);
            let left = self.sink.source.len() - self.sink.peek;
            if n > 0 && left == 0 && !self.machine.is_finished() {
                self.machine.finish();
            }
            let n = n.min(left);
            if n == 0 {
                break;
            }
            let payload = self.sink.source[self.sink.peek..self.sink.peek + n].to_vec();
            let segment = self.machine.data(self.now, n as u32, false);
            self.sink.peek += n;
            self.post(true, segment, payload);
        }
        while let Some(segment) = self.machine.control(self.now) {
            self.post(true, segment, Vec::new());
        }
        let pending = self.sink.peek < self.sink.source.len();
        self.machine.set_pending(self.now, pending);
    }

    fn guest_sends(&mut self) {
        if !self.guest.open {
            return;
        }
        // It reads when it likes, and says so by its next acknowledgment.
        if self.dice.roll(3) == 0 && self.guest.read < self.guest.whole {
            self.guest.read = self.guest.whole;
            self.guest.acks += 1;
        }
        let stamp = |guest: &Naive, segment: Segment| Segment {
            ack: guest.ack(),
            window: guest.window_field(),
            ..segment
        };
        let edge = self.guest.una + self.guest.window as usize;
        while self.guest.next < self.guest.out.len().min(edge) {
            let n = (self.guest.out.len().min(edge) - self.guest.next).min(1000);
            let payload = self.guest.out[self.guest.next..self.guest.next + n].to_vec();
            let segment = Segment {
                seq: self.guest.iss + 1 + self.guest.next as u32,
                flags: TcpFlags(ACK),
                len: n as u32,
                ..Segment::default()
            };
            self.guest.next += n;
            self.guest.acks = 0;
            self.post(false, stamp(&self.guest, segment), payload);
        }
        let end = self.guest.next == self.guest.out.len() && !self.guest.fin_acked;
        let seq = self.guest.iss + 1 + self.guest.next as u32 + u32::from(self.guest.fin_acked);
        if end && self.dice.roll(4) == 0 {
            let segment = Segment { seq, flags: TcpFlags(FIN | ACK), ..Segment::default() };
            self.post(false, stamp(&self.guest, segment), Vec::new());
        } else if self.guest.acks > 0 {
            self.guest.acks -= 1;
            let segment = Segment { seq, flags: TcpFlags(ACK), ..Segment::default() };
            self.post(false, stamp(&self.guest, segment), Vec::new());
        }
    }

    fn is_done(&self) -> bool {
        self.machine.phase() == Phase::Closed && self.guest.fin_acked && self.guest.fin_seen
    }

    fn run(&mut self) {
        self.machine.connected(self.now);
        let mut idle = 0;
        for _ in 0..200_000 {
            if self.is_done() {
                break;
            }
            self.machine_sends();
            self.guest_sends();
            let mut moved = false;
            for _ in 0..=self.dice.roll(4) {
                if let Some((segment, payload)) = self.to_guest.pop_front() {
                    self.guest.take(&segment, &payload);
                    moved = true;
                }
                if let Some((segment, payload)) = self.to_machine.pop_front() {
                    self.machine_takes(&segment, &payload);
                    moved = true;
                }
            }
            self.now = self.now + std::time::Duration::from_micros(20);
            if moved {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < 4 {
                continue;
            }
            idle = 0;
            // Nothing moves: the next timer, the socket's space, the guest's timer.
            if let Some(at) = self.machine.deadline() {
                self.now = self.now.max(at);
                assert_eq!(self.machine.timeout(self.now), None, "nobody is gone");
            }
            self.machine.set_space(100_000);
            self.guest.next = self.guest.una;
            self.guest.acks += 1;
        }
        let guest = &self.guest;
        assert!(
            self.is_done(),
            "stuck: up {}/{} down {}/{} {:?}",
            self.sink.took.len(),
            guest.out.len(),
            guest.whole,
            self.sink.source.len(),
            self.machine
        );
        assert!(self.sink.took == guest.out && self.sink.ended, "the guest's stream");
        let got: Vec<u8> = guest.got.iter().map(|byte| byte.unwrap()).collect();
        assert!(got == self.sink.source, "the socket's stream");
        assert_eq!(self.sink.consumed, self.sink.source.len(), "all of it was taken out");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn both_streams_arrive_whole_whatever_the_link_does(
        seed: u64,
        up in 0_usize..60_000,
        down in 0_usize..60_000,
        buffer in 1000_usize..40_000,
        loss in 0_u64..150,
    ) {
        World::new(seed, up, down, buffer, loss).run();
    }

    /// Whatever a guest makes up: no panic, and what is taken is in order and within what was offered.
    #[test]
    fn segments_that_somebody_made_up_do_no_harm(
        segments in prop::collection::vec((any::<(u32, u32, u8, u16)>(), 0_u32..3000, any::<bool>(), 0_u64..1000), 1..200),
    ) {
        let now = Instant::from_secs(1);
        let syn = Segment { seq: Seq(0), flags: TcpFlags(SYN), window: 100, ..Segment::default() };
        let mut machine = Machine::asked(now, &syn, Seq(5), CONFIG);
        machine.connected(now);
        machine.set_space(10_000);
        let mut now = now;
        let (mut taken, mut acked, mut sent) = (0_u64, 0_u64, 0_u64);
        for ((seq, ack, flags, window), len, near, wait) in segments {
            let (seq, ack) = if near { (Seq(1) + seq % 5000, Seq(6) + ack % 3000) } else { (Seq(seq), Seq(ack)) };
            let flags = TcpFlags(if near { flags & !(RST | SYN) | ACK } else { flags });
            let segment = Segment { seq, ack, flags, window, len, ..Segment::default() };
            let out = machine.segment(now, &segment);
            prop_assert!(out.skip + out.take <= len);
            taken += u64::from(out.take);
            acked += u64::from(out.acked);
            machine.settle(now);
            machine.set_space(2000);
            if out.end.is_some() {
                break;
            }
            let n = machine.sendable().min(1000);
            if n > 0 {
                machine.take_rewind();
                machine.data(now, n, true);
                sent += u64::from(n);
            }
            while machine.control(now).is_some() {}
            prop_assert!(acked <= sent);
            now = now + std::time::Duration::from_millis(wait);
            if machine.deadline().is_some_and(|at| at <= now) && machine.timeout(now).is_some() {
                break;
            }
            let spin = machine.deadline().is_some_and(|at| at <= now) && machine.timeout(now).is_none();
            prop_assert!(!spin || machine.deadline().is_none_or(|at| at > now) || machine.is_over(now), "a timer that stays due");
        }
        prop_assert!(taken <= 200 * 10_000);
    }
}

fn open() -> (Machine, Instant) {
    let now = Instant::from_secs(1);
    let syn = Segment {
        seq: Seq(100),
        flags: TcpFlags(SYN),
        window: 8000,
        mss: Some(1000),
        scale: Some(0),
        ..Segment::default()
    };
    let mut machine = Machine::asked(now, &syn, Seq(500), CONFIG);
    machine.connected(now);
    machine.set_space(10_000);
    let answer = machine.control(now).unwrap();
    assert_eq!((answer.seq, answer.ack, answer.flags), (Seq(500), Seq(101), TcpFlags(SYN | ACK)));
    machine.segment(now, &from_guest(101, 501));
    assert_eq!(machine.phase(), Phase::Open);
    (machine, now)
}

fn from_guest(seq: u32, ack: u32) -> Segment {
    Segment { seq: Seq(seq), ack: Seq(ack), flags: TcpFlags(ACK), window: 8000, ..Segment::default() }
}

#[test]
fn only_the_very_next_number_resets() {
    for (seq, ends) in [(101, true), (102, false), (100, false), (5000, false), (900_000, false)] {
        let (mut machine, now) = open();
        let reset = Segment { flags: TcpFlags(RST), ..from_guest(seq, 501) };
        let out = machine.segment(now, &reset);
        assert_eq!(out.end.is_some(), ends, "{seq}");
        // RFC 5961: one within the window is asked about.
        assert_eq!(machine.control(now).is_some(), seq == 102 || seq == 5000, "{seq}");
    }
}

#[test]
fn a_syn_in_the_middle_is_asked_about() {
    let (mut machine, now) = open();
    let out = machine.segment(now, &Segment { flags: TcpFlags(SYN), ..from_guest(3000, 0) });
    assert_eq!(out, Outcome::default());
    let answer = machine.control(now).unwrap();
    assert_eq!((answer.seq, answer.ack, answer.flags), (Seq(501), Seq(101), TcpFlags(ACK)));
}

#[test]
fn keepalives_and_questions_for_a_window_are_answered() {
    let (mut machine, now) = open();
    machine.segment(now, &from_guest(100, 501));
    assert_eq!(machine.control(now).unwrap().ack, Seq(101));
    assert_eq!(machine.control(now), None, "once");
}

#[test]
fn three_duplicates_send_again_from_what_is_missing() {
    let (mut machine, now) = open();
    for _ in 0..4 {
        machine.data(now, 1000, false);
    }
    for n in 1..=3 {
        assert!(!machine.take_rewind(), "after {}", n - 1);
        machine.segment(now, &from_guest(101, 501));
    }
    assert!(machine.take_rewind());
    assert_eq!(machine.data(now, 1000, false).seq, Seq(501));
    // What the guest had kept is not sent again.
    machine.segment(now, &from_guest(101, 4501));
    assert_eq!(machine.data(now, 1000, false).seq, Seq(4501));
}

#[test]
fn what_nobody_acknowledges_is_sent_again_ever_more_slowly_and_then_given_up() {
    let (mut machine, mut now) = open();
    machine.data(now, 1000, true);
    let mut waits = Vec::new();
    let end = loop {
        let at = machine.deadline().unwrap();
        waits.push(at.since(now));
        now = at;
        if let Some(end) = machine.timeout(now) {
            break end;
        }
        if machine.take_rewind() {
            assert_eq!(machine.data(now, 1000, true).seq, Seq(501));
        }
    };
    assert_eq!(end, End::Gone);
    assert!(waits.windows(2).take(6).all(|pair| pair[1] >= pair[0]), "{waits:?}");
    assert!(now.since(Instant::from_secs(1)) >= GIVE_UP);
}

#[test]
fn a_closed_window_is_asked_about_and_an_idle_guest_whether_it_is_there() {
    let (mut machine, now) = open();
    machine.segment(now, &Segment { window: 0, ..from_guest(101, 501) });
    machine.set_pending(now, true);
    assert_eq!(machine.sendable(), 0);
    let at = machine.deadline().unwrap();
    assert_eq!(machine.timeout(at), None);
    assert_eq!(machine.control(at).unwrap().seq, Seq(500), "a byte that the guest has");
    machine.segment(at, &from_guest(101, 501));
    assert_eq!(machine.sendable(), 8000);
    machine.set_pending(at, false);
    let idle = machine.deadline().unwrap();
    assert_eq!(idle.since(at), IDLE);
    assert_eq!(machine.timeout(idle), None);
    assert!(machine.control(idle).is_some());
    machine.segment(idle, &from_guest(101, 501));
    let (now, end) = loop {
        let now = machine.deadline().unwrap();
        if let Some(end) = machine.timeout(now) {
            break (now, end);
        }
    };
    assert_eq!(end, End::Gone);
    assert!(now.since(idle) > IDLE);
}

#[test]
fn what_the_socket_does_not_take_is_asked_for_when_it_has_room() {
    let (mut machine, now) = open();
    let out = machine.segment(now, &Segment { len: 3000, ..from_guest(101, 501) });
    assert_eq!((out.skip, out.take), (0, 3000));
    machine.refuse(2000);
    machine.settle(now);
    let ack = machine.control(now).unwrap();
    assert_eq!((ack.ack, ack.window), (Seq(1101), 0), "the window shrinks to what the socket took");
    assert!(!machine.set_space(100), "too little to be worth it");
    assert!(machine.set_space(9000));
    let acks: Vec<_> = std::iter::from_fn(|| machine.control(now)).collect();
    assert_eq!(acks.len(), 4, "a window, and three duplicates");
    assert!(acks.iter().all(|ack| ack.ack == Seq(1101) && ack.window > 0));
}

#[test]
fn a_connection_that_nobody_accepts_ends_some_time_after_the_guests_first_word() {
    let begun = Instant::from_nanos(1);
    let syn = Segment { seq: Seq(100), flags: TcpFlags(SYN), window: 1000, ..Segment::default() };
    let mut machine = Machine::asked(begun, &syn, Seq(500), CONFIG);
    let end = machine.deadline().expect("it does not wait for ever");
    assert_eq!(machine.timeout(begun + OPENING / 2), None);
    assert_eq!(machine.timeout(end), Some(End::Unanswered));
    assert_eq!(end, begun + OPENING);
}

#[test]
fn a_closed_connection_is_remembered_for_a_while_and_gives_way() {
    let (mut machine, now) = open();
    machine.finish();
    assert_eq!(machine.control(now).unwrap().flags, TcpFlags(FIN | ACK));
    let fin = Segment { flags: TcpFlags(FIN | ACK), ..from_guest(101, 502) };
    assert!(machine.segment(now, &fin).fin);
    machine.settle(now);
    assert_eq!(machine.phase(), Phase::Closed);
    assert_eq!(machine.control(now).unwrap().ack, Seq(102));
    // The guest has not got that.
    machine.segment(now, &fin);
    assert_eq!(machine.control(now).unwrap().ack, Seq(102));
    let syn = |seq| Segment { seq: Seq(seq), flags: TcpFlags(SYN), ..Segment::default() };
    assert!(machine.gives_way(&syn(5000)) && !machine.gives_way(&syn(50)));
    assert!(!machine.is_over(now) && machine.is_over(now + LINGER));
}
