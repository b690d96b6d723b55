//! The benchmark's generator: one thread drives two devices as fast as the peer takes frames.
//!
//! Each transmit buffer is a frame written once; sending it again changes its sequence number, its time stamp and their
//! check word, sixteen bytes. Descriptors are written once too. Received frames are recognised by the check word,
//! counted, put in order, and their buffers go back in batches. Nothing is allocated while it runs.
//!
//! The payload stands behind an Ethernet/IPv4/UDP header (TCP for segmentation offload), so that a switch that looks
//! into frames finds sound ones:
//!
//! | offset in the payload | field |
//! |---|---|
//! | 0 | sequence number, 64 bits |
//! | 8 | time stamp, nanoseconds modulo 2^32 |
//! | 12 | check word over sequence number, stamp, direction and length |
//! | 16 | a fixed pattern |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::device::{GSO_TCPV4, NetDevice, RxQueue, TxQueue, VnetHeader};
use crate::error::{Error, Result};
use crate::features;
use crate::hash::Pattern;
use crate::histogram::Histogram;
use crate::memory::Window;
use crate::wire::{self, Flow};

/// Length of the headers before the payload, UDP and TCP.
const UDP_HEADERS: usize = 42;
const TCP_HEADERS: usize = 54;
/// Length of the words at the payload's start.
const WORDS: usize = 16;

/// The frames' lengths, bytes without check sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All of one length, 60 to 65,549.
    Fixed(usize),
    /// These in turn.
    Mix(Vec<usize>),
}

impl Sizes {
    /// The "Internet mix": seven of 64 bytes, four of 594, one of 1518, each less the check sequence's four.
    #[must_use]
    pub fn imix() -> Self {
        Sizes::Mix(vec![60, 590, 60, 590, 60, 1514, 60, 590, 60, 590, 60, 60])
    }

    fn of(&self, slot: usize) -> usize {
        match self {
            Sizes::Fixed(n) => *n,
            Sizes::Mix(list) => list.get(slot % list.len().max(1)).copied().unwrap_or(60),
        }
    }

    fn shortest(&self) -> usize {
        match self {
            Sizes::Fixed(n) => *n,
            Sizes::Mix(list) => list.iter().copied().min().unwrap_or(0),
        }
    }

    fn longest(&self) -> usize {
        match self {
            Sizes::Fixed(n) => *n,
            Sizes::Mix(list) => list.iter().copied().max().unwrap_or(0),
        }
    }
}

/// What traffic to make.
#[derive(Clone, Debug)]
pub struct TrafficConfig {
    /// The frames' lengths.
    pub sizes: Sizes,
    /// Frames put into a ring at once.
    pub burst: usize,
    /// Whether the second device sends too.
    pub bidirectional: bool,
    /// Frames per second and direction; `None` for as many as go.
    pub rate: Option<f64>,
    /// Whether every received byte is compared.
    pub verify: bool,
    /// Makes the frames TCP (of 70 bytes at least) with partial checksums, and those with more payload than this
    /// super-frames to be cut so. Both devices must have `CSUM`, `GUEST_CSUM`, `HOST_TSO4` and `GUEST_TSO4`: the
    /// generator recognises whole frames only.
    pub gso_size: Option<u16>,
    /// How long missing frames are waited for, counted from the last that came.
    pub quiet: Duration,
}

impl Default for TrafficConfig {
    fn default() -> Self {
        TrafficConfig {
            sizes: Sizes::Fixed(64),
            burst: 32,
            bidirectional: true,
            rate: None,
            verify: false,
            gso_size: None,
            quiet: Duration::from_millis(100),
        }
    }
}

/// What one direction did.
#[derive(Clone, Debug, Default)]
pub struct Direction {
    /// Frames sent.
    pub sent: u64,
    /// Frames received, each counted once.
    pub received: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Frames that came after one with a higher number.
    pub reordered: u64,
    /// Frames that are not the generator's, or whose bytes changed.
    pub unrecognised: u64,
    /// One-way latencies, of every eighth frame.
    pub latency: Histogram,
}

impl Direction {
    /// Frames that did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From the first device to the second.
    pub forward: Direction,
    /// From the second device to the first.
    pub backward: Direction,
    /// How long frames were sent.
    pub elapsed: Duration,
}

impl Report {
    /// Frames received per second, both directions together.
    #[must_use]
    pub fn frames_per_second(&self) -> f64 {
        (self.forward.received + self.backward.received) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Bits of frames received per second, both directions together.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        (self.forward.bytes + self.backward.bytes) as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The part of the frames that was lost, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let sent = self.forward.sent + self.backward.sent;
        (self.forward.lost() + self.backward.lost()) as f64 / sent.max(1) as f64
    }
}

/// The generator: two devices, of each its first queue pair.
#[derive(Debug)]
pub struct Generator {
    ends: [End; 2],
    config: TrafficConfig,
    epoch: Instant,
}

/// One device's side.
#[derive(Debug)]
struct End {
    device: NetDevice,
    tx_window: Window,
    tx_frames: Vec<usize>,
    tx_len: Vec<u32>,
    /// First in, first out: in order, descriptors must be offered in the ring's order.
    free: VecDeque<u16>,
    rx_window: Window,
    rx_frames: Vec<usize>,
    header_len: usize,
    mergeable: bool,
    next_seq: u64,
    /// The first number of this run in the other direction: what is older was given up by the run before.
    first_seq: u64,
    /// Received buffers that only continue a frame.
    skip: u16,
    /// Whether the frame that is going on is the generator's.
    recognised: bool,
    highest: Option<u64>,
    words_at: usize,
    sign: u32,
    peer_sign: u32,
    scratch: Vec<u8>,
    pattern: Vec<u8>,
    verify: bool,
}

/// The check word of a frame. `sign` tells the direction.
#[inline]
fn check_word(seq: u64, stamp: u32, len: u32, sign: u32) -> u32 {
    let mixed = (seq ^ (u64::from(stamp) << 24) ^ (u64::from(len) << 40) ^ u64::from(sign))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 ^ sign
}

impl Generator {
    /// Takes two devices, which serve nothing else from then on, and writes the frames.
    ///
    /// # Errors
    /// [`Error::Config`] for lengths that do not fit the devices' buffers, or devices that are in use; [`Error::Ring`].
    pub fn new(a: NetDevice, b: NetDevice, config: TrafficConfig) -> Result<Self> {
        let shortest = if config.gso_size.is_some() { TCP_HEADERS + WORDS } else { 60 };
        if config.sizes.longest() > 65_549 || config.sizes.shortest() < shortest {
            return Err(Error::Config(format!("frames are {shortest} to 65549 bytes long")));
        }
        if config.burst == 0 {
            return Err(Error::Config("a burst has at least one frame".into()));
        }
        let flow = Flow::between(a.mac(), b.mac());
        let ends = [
            End::new(a, flow, 0x5eed_0001, 0x5eed_0002, &config)?,
            End::new(b, flow.reversed(), 0x5eed_0002, 0x5eed_0001, &config)?,
        ];
        Ok(Generator { ends, config, epoch: Instant::now() })
    }

    /// Sends and receives for `duration`, then waits for what is under way. May be called again.
    ///
    /// # Errors
    /// What broke a device.
    pub fn run(&mut self, duration: Duration) -> Result<Report> {
        let mut report = Report::default();
        let started = Instant::now();
        let mut now = started;
        let two_way = self.config.bidirectional;
        let burst = self.config.burst;
        let [a, b] = &mut self.ends;
        (a.first_seq, b.first_seq) = (b.next_seq, a.next_seq);
        while now - started < duration {
            let elapsed = now - started;
            let allowed = |sent: u64| match self.config.rate {
                None => burst,
                Some(rate) => {
                    ((rate * elapsed.as_secs_f64()) as u64).saturating_sub(sent).min(burst as u64) as usize
                }
            };
            let stamp = (now - self.epoch).as_nanos() as u32;
            let mut moved = a.send(allowed(report.forward.sent), stamp, &mut report.forward)?;
            if two_way {
                moved += b.send(allowed(report.backward.sent), stamp, &mut report.backward)?;
            }
            let stamp = self.epoch.elapsed().as_nanos() as u32;
            moved += b.receive(burst, stamp, &mut report.forward)?;
            moved += a.receive(burst, stamp, &mut report.backward)?;
            if moved == 0 {
                std::hint::spin_loop();
            }
            now = Instant::now();
        }
        report.elapsed = now - started;
        let mut last = now;
        while last.elapsed() < self.config.quiet && report.forward.lost() + report.backward.lost() > 0 {
            let stamp = self.epoch.elapsed().as_nanos() as u32;
            let moved = b.receive(burst, stamp, &mut report.forward)?
                + a.receive(burst, stamp, &mut report.backward)?;
            if moved > 0 {
                last = Instant::now();
            } else {
                std::thread::yield_now();
            }
        }
        Ok(report)
    }

    /// One frame at a time from the first device to the second, each after the one before arrived, `count` times: the
    /// latency of an idle switch.
    ///
    /// # Errors
    /// [`Error::Timeout`] when a frame does not arrive within the device's timeout; else what broke a device.
    pub fn one_by_one(&mut self, count: u64) -> Result<Histogram> {
        let mut histogram = Histogram::new();
        let [a, b] = &mut self.ends;
        let timeout = a.device.config().timeout;
        for _ in 0..count {
            let mut direction = Direction::default();
            let sent = Instant::now();
            while a.send(1, 0, &mut direction)? == 0 {
                if sent.elapsed() > timeout {
                    return Err(Error::Timeout { what: "room in the transmit queue", after: timeout });
                }
            }
            while direction.received == 0 {
                b.receive(32, 0, &mut direction)?;
                if sent.elapsed() > timeout {
                    return Err(Error::Timeout { what: "frame of the generator", after: timeout });
                }
                std::hint::spin_loop();
            }
            histogram.record(sent.elapsed());
        }
        Ok(histogram)
    }

    /// The devices, to look at their counters.
    #[must_use]
    pub fn devices(&self) -> (&NetDevice, &NetDevice) {
        (&self.ends[0].device, &self.ends[1].device)
    }
}

impl End {
    fn new(
        mut device: NetDevice,
        flow: Flow,
        sign: u32,
        peer_sign: u32,
        config: &TrafficConfig,
    ) -> Result<Self> {
        let needed = features::CSUM | features::GUEST_CSUM | features::HOST_TSO4 | features::GUEST_TSO4;
        if config.gso_size.is_some() && !device.has(needed) {
            return Err(Error::Config(
                "super-frames for a device without checksum and TCPv4 segmentation".into(),
            ));
        }
        let mergeable = device.has(features::MRG_RXBUF);
        let longest = config.sizes.longest();
        let pair = &mut device.pairs_mut()[0];
        if longest > pair.tx.frame_max() {
            return Err(Error::Config(format!(
                "frames of {longest} bytes for buffers of {}",
                pair.tx.frame_max()
            )));
        }
        let pattern_of = |sign: u32| {
            let mut pattern = vec![0; longest];
            Pattern::new(u64::from(sign)).fill(&mut pattern);
            pattern
        };
        let own = pattern_of(sign);
        let lengths: Vec<usize> = (0..pair.tx.room()).map(|slot| config.sizes.of(slot)).collect();
        let frames: Vec<_> = lengths.iter().map(|&len| template(&flow, len, config.gso_size, &own)).collect();
        let headers: Vec<VnetHeader> = frames.iter().map(|(header, _)| *header).collect();
        let (tx_window, tx_frames) = pair.tx.fix(&headers, &lengths)?;
        for (at, (_, frame)) in tx_frames.iter().zip(&frames) {
            tx_window.write(*at, frame);
        }
        let header_len = pair.rx.header_len();
        let (rx_window, rx_frames) = pair.rx.fix()?;
        Ok(End {
            free: (0..tx_frames.len() as u16).collect(),
            device,
            tx_window,
            tx_frames,
            tx_len: lengths.iter().map(|&n| n as u32).collect(),
            rx_window,
            rx_frames,
            header_len,
            mergeable,
            next_seq: 0,
            first_seq: 0,
            skip: 0,
            recognised: false,
            highest: None,
            words_at: if config.gso_size.is_some() { TCP_HEADERS } else { UDP_HEADERS },
            sign,
            peer_sign,
            scratch: Vec::with_capacity(longest),
            pattern: pattern_of(peer_sign),
            verify: config.verify,
        })
    }

    /// Sends up to `n` frames, and gives how many.
    #[inline]
    fn send(&mut self, n: usize, stamp: u32, direction: &mut Direction) -> Result<usize> {
        let tx: &mut TxQueue = &mut self.device.pairs_mut()[0].tx;
        while let Some(used) = tx.vq.pop_used()? {
            self.free.push_back(used.id);
        }
        let n = n.min(self.free.len());
        for _ in 0..n {
            let Some(slot) = self.free.pop_front() else { break };
            let at = self.tx_frames[usize::from(slot)] + self.words_at;
            let seq = self.next_seq;
            let check = check_word(seq, stamp, self.tx_len[usize::from(slot)], self.sign);
            self.tx_window.write_u64(at, seq);
            self.tx_window.write_u64(at + 8, u64::from(stamp) | (u64::from(check) << 32));
            self.next_seq = seq + 1;
            tx.vq.ring.add_fixed(slot);
        }
        if n > 0 {
            tx.vq.flush();
        }
        direction.sent += n as u64;
        Ok(n)
    }

    /// Takes up to `n` received buffers, and gives how many.
    #[inline]
    fn receive(&mut self, n: usize, now: u32, direction: &mut Direction) -> Result<usize> {
        let mut done = 0;
        while done < n {
            let rx: &mut RxQueue = &mut self.device.pairs_mut()[0].rx;
            let Some(used) = rx.vq.pop_used()? else { break };
            done += 1;
            if self.skip > 0 {
                self.skip -= 1;
                if self.verify {
                    self.rx_window.read_into(
                        self.rx_frames[usize::from(used.id)] - self.header_len,
                        used.len as usize,
                        &mut self.scratch,
                    );
                }
            } else {
                self.first_buffer(used.id, used.len as usize, now, direction);
            }
            if self.verify && self.skip == 0 && self.recognised {
                self.compare(direction);
            }
            self.device.pairs_mut()[0].rx.vq.ring.add_fixed(used.id);
        }
        if done > 0 {
            self.device.pairs_mut()[0].rx.vq.flush();
        }
        Ok(done)
    }

    #[inline]
    fn first_buffer(&mut self, id: u16, len: usize, now: u32, direction: &mut Direction) {
        let at = self.rx_frames[usize::from(id)];
        let in_buffer = len.saturating_sub(self.header_len);
        if self.mergeable {
            let mut count = [0; 2];
            self.rx_window.read(at - 2, &mut count);
            self.skip = u16::from_le_bytes(count).saturating_sub(1);
        }
        self.scratch.clear();
        self.recognised = false;
        if in_buffer < self.words_at + WORDS {
            direction.unrecognised += 1;
            return;
        }
        let seq = self.rx_window.read_u64(at + self.words_at);
        let word = self.rx_window.read_u64(at + self.words_at + 8);
        let (stamp, check) = (word as u32, (word >> 32) as u32);
        // A merged frame's length is in its IP header; it is the rest that the first buffer does not have.
        let total = if self.skip == 0 { in_buffer } else { self.ip_length(at) };
        if check != check_word(seq, stamp, total as u32, self.peer_sign) {
            direction.unrecognised += 1;
            return;
        }
        if seq < self.first_seq {
            return;
        }
        self.recognised = true;
        direction.received += 1;
        direction.bytes += total as u64;
        match self.highest {
            Some(highest) if seq < highest => direction.reordered += 1,
            _ => self.highest = Some(seq),
        }
        if seq.is_multiple_of(8) {
            direction.latency.record_many(u64::from(now.wrapping_sub(stamp)), 1);
        }
        if self.verify {
            self.rx_window.read_into(at, in_buffer, &mut self.scratch);
        }
    }

    fn ip_length(&self, at: usize) -> usize {
        let mut bytes = [0; 2];
        self.rx_window.read(at + 16, &mut bytes);
        usize::from(u16::from_be_bytes(bytes)) + wire::ETH_LEN
    }

    /// Compares the frame gathered in `scratch` with the pattern.
    fn compare(&mut self, direction: &mut Direction) {
        let (from, to) = (self.words_at + WORDS, self.scratch.len());
        if self.pattern.get(from..to) != self.scratch.get(from..) {
            direction.unrecognised += 1;
            direction.received -= 1;
            direction.bytes -= self.scratch.len() as u64;
        }
        self.scratch.clear();
    }
}

/// A frame of `len` bytes whose words are still to be written, and its header.
fn template(flow: &Flow, len: usize, gso_size: Option<u16>, pattern: &[u8]) -> (VnetHeader, Vec<u8>) {
    let Some(gso_size) = gso_size else {
        // The words change from frame to frame, so a checksum would too; UDP over IPv4 may have none.
        let mut frame = wire::udp(flow, &pattern[UDP_HEADERS..len]);
        frame[UDP_HEADERS - 2..UDP_HEADERS].fill(0);
        return (VnetHeader::PLAIN, frame);
    };
    let mut frame = wire::tcp(flow, 0, 1, &pattern[TCP_HEADERS..len]);
    let (start, offset) = wire::prepare_partial(&mut frame).unwrap_or_default();
    let mut header = VnetHeader::partial_csum(start, offset);
    if len - TCP_HEADERS > usize::from(gso_size) {
        header.gso_type = GSO_TCPV4;
        header.gso_size = gso_size;
        header.hdr_len = TCP_HEADERS as u16;
    }
    (header, frame)
}
