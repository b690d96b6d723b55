//! One device of the generator: what it sends and what it receives.
//!
//! This is the way of each frame. Every access to guest memory is to a row whose bounds were checked once, the shape of
//! each transmit buffer is known by its slot, and whatever a frame in one buffer needs fits two cache lines.

use std::time::Duration;

use super::frame::{SEQ_BITS, UDP_HEADERS, WORDS, check_word, pattern, sign, tail, template};
use super::stations::{Addresses, Draw};
use super::{PortReport, TCP_HEADERS, TrafficConfig};
use crate::device::{Frames, NetDevice, RxQueue, TxQueue};
use crate::error::{Error, Result};
use crate::features;
use crate::memory::{Rows, Window};
use crate::ring::Used;
use crate::wire::Flow;

/// The longest burst, frames.
pub(super) const BURST_MAX: usize = 64;
/// The receiver of a broadcast.
pub(super) const EVERYBODY: usize = 0xffff;
/// Of so many frames, the whole payload of one is compared.
const SAMPLE: u64 = 64;
const NONE: Used = Used { id: 0, len: 0 };

/// One device.
#[derive(Debug)]
pub(super) struct End {
    device: NetDevice,
    sender: Option<Sender>,
    receiver: Receiver,
    /// What came back at once.
    used: Box<[Used; BURST_MAX]>,
}

impl End {
    pub(super) fn new(
        mut device: NetDevice,
        port: usize,
        macs: &[[u8; 6]],
        config: &TrafficConfig,
    ) -> Result<Self> {
        let needed = features::CSUM | features::GUEST_CSUM | features::HOST_TSO4 | features::GUEST_TSO4;
        if config.gso_size.is_some() && !device.has(needed) {
            return Err(Error::Config(
                "super-frames for a device without checksum and TCPv4 segmentation".into(),
            ));
        }
        let mergeable = device.has(features::MRG_RXBUF);
        let pair = &mut device.pairs_mut()[0];
        let destinations = config.pattern.destinations(port, macs.len());
        let sender = if destinations.is_empty() {
            None
        } else {
            Some(Sender::new(&mut pair.tx, port, &destinations, macs, config)?)
        };
        let receiver = Receiver::new(&mut pair.rx, port, macs.len(), mergeable, config)?;
        Ok(End { device, sender, receiver, used: Box::new([NONE; BURST_MAX]) })
    }

    pub(super) fn device(&self) -> &NetDevice {
        &self.device
    }

    pub(super) fn timeout(&self) -> Duration {
        self.device.config().timeout
    }

    pub(super) fn can_send(&self) -> bool {
        self.sender.is_some()
    }

    /// The sequence number of the next frame.
    pub(super) fn next_seq(&self) -> u64 {
        self.sender.as_ref().map_or(0, |sender| sender.next_seq)
    }

    /// Begins a run: frames with lower numbers than each sender's of `firsts` were given up by the run before.
    pub(super) fn begin(&mut self, firsts: &[u64]) {
        for (source, first) in self.receiver.sources.iter_mut().zip(firsts) {
            source.first = *first;
        }
        if let Some(sender) = &mut self.sender {
            sender.accounted = 0;
        }
    }

    /// Has the next frames be those of the stations from `first` on, and to them.
    pub(super) fn name_stations(&mut self, first: u32) {
        if let Some(sender) = &mut self.sender {
            sender.name(Some(first));
        }
    }

    /// Goes back to stations drawn at random.
    pub(super) fn draw_stations(&mut self) {
        if let Some(sender) = &mut self.sender {
            sender.name(None);
        }
    }

    /// Sends up to `n` frames, and gives how many.
    #[inline]
    pub(super) fn send(&mut self, n: usize, stamp: u32, report: &mut PortReport) -> Result<usize> {
        let Some(sender) = &mut self.sender else { return Ok(0) };
        let n = sender.send(&mut self.device.pairs_mut()[0].tx, n, stamp)?;
        report.sent += n as u64;
        Ok(n)
    }

    /// Sends what is due of `due` frames since the run's beginning, at most a burst. What waits longer than for one
    /// burst's room is given up: refused where the ring was full, else skipped, because nobody would send it in a bunch.
    #[inline]
    pub(super) fn send_due(
        &mut self,
        due: u64,
        burst: usize,
        stamp: u32,
        report: &mut PortReport,
    ) -> Result<usize> {
        let Some(sender) = &mut self.sender else { return Ok(0) };
        let waiting = due.saturating_sub(sender.accounted);
        if waiting == 0 {
            return Ok(0);
        }
        let wanted = waiting.min(burst as u64);
        let n = sender.send(&mut self.device.pairs_mut()[0].tx, wanted as usize, stamp)?;
        report.sent += n as u64;
        let over = (waiting - n as u64).saturating_sub(burst as u64);
        if (n as u64) < wanted {
            report.refused += over;
        } else {
            report.skipped += over;
        }
        sender.accounted += n as u64 + over;
        Ok(n)
    }

    /// Takes up to `n` received buffers, and gives how many.
    #[inline]
    pub(super) fn receive(&mut self, n: usize, now: u32, report: &mut PortReport) -> Result<usize> {
        let used = &mut self.used[..n.min(BURST_MAX)];
        self.receiver.receive(&mut self.device.pairs_mut()[0].rx, used, now, report)
    }
}

/// A transmit buffer: what is in it for good.
#[derive(Clone, Copy, Debug)]
struct Slot {
    len: u32,
    sign: u32,
    /// Which of the sender's destinations it is for.
    to: u16,
}

/// What a device sends.
#[derive(Debug)]
struct Sender {
    words: Rows<WORDS, 1>,
    addresses: Rows<12, 1>,
    slots: Vec<Slot>,
    /// Slots that are not in flight, first in, first out, because in-order rings want them so: a ring of their number.
    free: Vec<u16>,
    free_in: usize,
    free_out: usize,
    /// The sender's number, where the first word has it.
    port: u64,
    next_seq: u64,
    /// Of a paced run: frames sent, refused or skipped.
    accounted: u64,
    /// Where there are several stations: those of the frames' source and destination.
    draws: Option<[Draw; 2]>,
    own: Addresses,
    theirs: Vec<Option<Addresses>>,
    used: [Used; BURST_MAX],
}

impl Sender {
    fn new(
        tx: &mut TxQueue,
        port: usize,
        destinations: &[usize],
        macs: &[[u8; 6]],
        config: &TrafficConfig,
    ) -> Result<Self> {
        let longest = config.sizes.longest();
        if longest > tx.frame_max() {
            return Err(Error::Config(format!(
                "frames of {longest} bytes for buffers of {}",
                tx.frame_max()
            )));
        }
        let pattern = pattern(longest);
        let count = tx.room();
        let lengths: Vec<usize> = (0..count).map(|slot| config.sizes.of(slot)).collect();
        let to = |slot: usize| slot % destinations.len();
        let frames: Vec<_> = (0..count)
            .map(|slot| {
                let mac = macs.get(destinations[to(slot)]).copied().unwrap_or([0xff; 6]);
                template(&Flow::between(macs[port], mac), lengths[slot], config.gso_size, &pattern)
            })
            .collect();
        let headers: Vec<_> = frames.iter().map(|(header, _)| *header).collect();
        let at = tx.fix(&headers, &lengths)?;
        for (slot, (_, frame)) in frames.iter().enumerate() {
            at.window.write(at.first + slot * at.stride, frame);
        }
        let slot = |slot: usize| Slot {
            len: lengths[slot] as u32,
            sign: sign(port, destinations[to(slot)]),
            to: to(slot) as u16,
        };
        let theirs = destinations.iter().map(|&to| Some(Addresses::new(to, *macs.get(to)?)));
        let draw = |seed| Draw::new(config.stations, seed);
        Ok(Sender {
            words: words(&at, config)?,
            addresses: Rows::new(&at.window, at.first, at.stride, at.count)?,
            slots: (0..count).map(slot).collect(),
            free: (0..count as u16).collect(),
            free_in: count,
            free_out: 0,
            port: (port as u64) << SEQ_BITS,
            next_seq: 0,
            accounted: 0,
            draws: (config.stations.count > 1).then(|| [draw(2 * port as u64), draw(2 * port as u64 + 1)]),
            own: Addresses::new(port, macs[port]),
            theirs: theirs.collect(),
            used: [NONE; BURST_MAX],
        })
    }

    fn name(&mut self, first: Option<u32>) {
        self.draws.iter_mut().flatten().for_each(|draw| draw.name(first));
    }

    fn reclaim(&mut self, tx: &mut TxQueue) -> Result<()> {
        loop {
            let n = tx.vq.take_used(&mut self.used)?;
            for used in &self.used[..n] {
                let at = self.free_in & (self.free.len() - 1);
                self.free[at] = used.id;
                self.free_in += 1;
            }
            if n < BURST_MAX {
                return Ok(());
            }
        }
    }

    #[inline]
    fn send(&mut self, tx: &mut TxQueue, n: usize, stamp: u32) -> Result<usize> {
        if self.free_in - self.free_out < n {
            self.reclaim(tx)?;
        }
        let n = n.min(self.free_in - self.free_out).min(BURST_MAX);
        if n == 0 {
            return Ok(0);
        }
        let mut ids = [0; BURST_MAX];
        let mask = self.free.len() - 1;
        for (i, id) in ids[..n].iter_mut().enumerate() {
            *id = self.free[(self.free_out + i) & mask];
        }
        self.free_out += n;
        if self.draws.is_some() {
            self.address(&ids[..n]);
        }
        let firsts = self.port | self.next_seq..;
        for (&id, first) in ids[..n].iter().zip(firsts) {
            let (row, slot) = (usize::from(id), self.slots[usize::from(id)]);
            let check = check_word(first, stamp, slot.len, slot.sign);
            self.words.write_u64::<0>(row, first);
            self.words.write_u64::<8>(row, u64::from(stamp) | (u64::from(check) << 32));
        }
        self.next_seq += n as u64;
        tx.vq.ring.add_fixed(ids[..n].iter().copied());
        tx.vq.flush();
        Ok(n)
    }

    /// Writes destination and source into the frames.
    fn address(&mut self, ids: &[u16]) {
        let Some([own, their]) = &mut self.draws else { return };
        for &id in ids {
            let row = usize::from(id);
            let source = self.own.of(own.next());
            let station = their.next();
            let to = usize::from(self.slots[row].to);
            let destination = self.theirs[to].map_or((1 << 48) - 1, |addresses| addresses.of(station));
            self.addresses.write_u64::<0>(row, destination | (source << 48));
            self.addresses.write_u32::<8>(row, (source >> 16) as u32);
        }
    }
}

/// Where the words of a queue's frames are.
fn words(at: &Frames, config: &TrafficConfig) -> Result<Rows<WORDS, 1>> {
    Rows::new(&at.window, at.first + words_at(config), at.stride, at.count)
}

/// Where in a frame its words are.
fn words_at(config: &TrafficConfig) -> usize {
    if config.gso_size.is_some() { TCP_HEADERS } else { UDP_HEADERS }
}

/// What a receiver knows of a sender.
#[derive(Clone, Copy, Debug)]
struct Source {
    sign: u32,
    /// The first number of this run: what is older was given up by the run before.
    first: u64,
    /// One more than the highest number that came.
    next: u64,
}

/// A frame of which not all buffers have come.
#[derive(Clone, Copy, Debug)]
struct Open {
    words: [u64; 2],
    len: usize,
    missing: u16,
    /// Whether its bytes are gathered to be compared.
    gather: bool,
}

/// What a device receives.
#[derive(Debug)]
struct Receiver {
    words: Rows<WORDS, 1>,
    /// Over how many buffers a frame is spread; where buffers are merged.
    counts: Option<Rows<2, 1>>,
    window: Window,
    first: usize,
    stride: usize,
    header_len: usize,
    buffer_len: usize,
    words_at: usize,
    /// Which buffer an id stands for.
    rows: Vec<u16>,
    sources: Vec<Source>,
    pattern: Vec<u8>,
    open: Option<Open>,
    scratch: Vec<u8>,
    verify: bool,
}

impl Receiver {
    fn new(
        rx: &mut RxQueue,
        port: usize,
        ports: usize,
        mergeable: bool,
        config: &TrafficConfig,
    ) -> Result<Self> {
        let (at, rows) = rx.fix()?;
        let longest = config.sizes.longest();
        let source = |sender: usize| {
            let to = config.pattern.destinations(sender, ports);
            let receiver = if to == [EVERYBODY] { EVERYBODY } else { port };
            Source { sign: sign(sender, receiver), first: 0, next: 0 }
        };
        Ok(Receiver {
            words: words(&at, config)?,
            counts: if mergeable {
                Some(Rows::new(&at.window, at.first - 2, at.stride, at.count)?)
            } else {
                None
            },
            first: at.first,
            stride: at.stride,
            header_len: at.header_len,
            buffer_len: at.buffer_len,
            window: at.window,
            words_at: words_at(config),
            rows,
            sources: (0..ports).map(source).collect(),
            pattern: pattern(longest),
            open: None,
            scratch: Vec::with_capacity(longest),
            verify: config.verify,
        })
    }

    /// Takes as many buffers as `used` has room for, which is for nothing else, and gives how many.
    #[inline]
    fn receive(
        &mut self,
        rx: &mut RxQueue,
        used: &mut [Used],
        now: u32,
        report: &mut PortReport,
    ) -> Result<usize> {
        let n = rx.vq.take_used(used)?;
        if n == 0 {
            return Ok(0);
        }
        for used in &used[..n] {
            self.words.prefetch::<0>(self.row(used.id));
        }
        for used in &used[..n] {
            let (row, len) = (self.row(used.id), used.len as usize);
            // A frame that does not fill its buffer has no second one (5.1.6.4.1).
            if self.open.is_none() && (len < self.buffer_len || self.counts.is_none()) {
                let words = [self.words.read_u64::<0>(row), self.words.read_u64::<8>(row)];
                if let Some(seq) = self.judge(words, len.wrapping_sub(self.header_len), now, report) {
                    self.examine(row, len - self.header_len, seq, report);
                }
            } else {
                self.part(row, len, now, report);
            }
        }
        rx.vq.ring.add_fixed(used[..n].iter().map(|used| used.id));
        rx.vq.flush();
        Ok(n)
    }

    #[inline(always)]
    fn row(&self, id: u16) -> usize {
        self.rows[usize::from(id)].into()
    }

    /// Counts a frame of `len` bytes with these words, and gives its number if it is a good one of this run.
    #[inline(always)]
    fn judge(&mut self, words: [u64; 2], len: usize, now: u32, report: &mut PortReport) -> Option<u64> {
        let (stamp, check) = (words[1] as u32, (words[1] >> 32) as u32);
        let source = self.sources.get_mut((words[0] >> SEQ_BITS) as usize);
        let Some(source) =
            source.filter(|source| check == check_word(words[0], stamp, len as u32, source.sign))
        else {
            report.unrecognised += 1;
            return None;
        };
        let seq = words[0] & ((1 << SEQ_BITS) - 1);
        if seq < source.first {
            return None;
        }
        report.received += 1;
        report.bytes += len as u64;
        if seq < source.next {
            report.reordered += 1;
        } else {
            source.next = seq + 1;
        }
        if seq.is_multiple_of(8) {
            report.latency.record_many(u64::from(now.wrapping_sub(stamp)), 1);
        }
        Some(seq)
    }

    /// Looks at the end of a frame in one buffer, and now and then at all of it.
    #[inline(always)]
    fn examine(&mut self, row: usize, len: usize, seq: u64, report: &mut PortReport) {
        let at = self.first + row * self.stride;
        let (expected, mask) = tail(&self.pattern, self.words_at, len);
        // The check word holds the length, so it is one that was sent, and at least 60.
        let mut good = (self.window.read_u64(at + len - 8) ^ expected) & mask == 0;
        if seq.is_multiple_of(SAMPLE) || self.verify {
            self.scratch.clear();
            self.window.read_into(at, len, &mut self.scratch);
            let merged = self.counts.as_ref().is_some_and(|counts| counts.read_u16::<0>(row) != 1);
            good &= !merged && self.matches();
        }
        if !good {
            disown(len, report);
        }
    }

    /// Takes a buffer of a frame that may have several.
    fn part(&mut self, row: usize, len: usize, now: u32, report: &mut PortReport) {
        let at = self.first + row * self.stride;
        let mut open = match self.open.take() {
            Some(open) => {
                if open.gather {
                    // Only the first has a header.
                    self.window.read_into(at - self.header_len, len, &mut self.scratch);
                }
                Open { len: open.len + len, missing: open.missing.saturating_sub(1), ..open }
            }
            None => {
                let words = [self.words.read_u64::<0>(row), self.words.read_u64::<8>(row)];
                let missing =
                    self.counts.as_ref().map_or(0, |counts| counts.read_u16::<0>(row).saturating_sub(1));
                let gather = self.verify || words[0].is_multiple_of(SAMPLE);
                let len = len.saturating_sub(self.header_len);
                self.scratch.clear();
                if gather {
                    self.window.read_into(at, len, &mut self.scratch);
                }
                Open { words, len, missing, gather }
            }
        };
        // What is longer than any frame is the work of a device that counts wrong.
        if open.len > self.pattern.len() {
            open.gather = false;
            self.scratch.clear();
        }
        if open.missing > 0 {
            self.open = Some(open);
            return;
        }
        if self.judge(open.words, open.len, now, report).is_some() && open.gather && !self.matches() {
            disown(open.len, report);
        }
    }

    /// Whether the frame gathered in `scratch` has the pattern behind its words.
    fn matches(&self) -> bool {
        let from = self.words_at + WORDS;
        self.scratch.get(from..).is_none_or(|bytes| self.pattern.get(from..from + bytes.len()) == Some(bytes))
    }
}

/// Takes a frame back that was counted as received.
fn disown(len: usize, report: &mut PortReport) {
    report.unrecognised += 1;
    report.received -= 1;
    report.bytes -= len as u64;
}
