//! A packed ring against the specification, as naively as can be: the model counts slots from the first lap on and
//! never looks at what the device keeps. What a driver may do it does at random: buffers of one descriptor, of several,
//! of a table; bursts of all lengths; buffers taken back soon or late; events asked for here and there; the ring
//! stopped and resumed by front-ends that remember more or less.

use std::collections::VecDeque;

use datapath::port::RxDrops;
use datapath::{Armed, Burst, RxQueue};
use switch_core::verdict::BURST;

use super::packed_driver::{AVAIL, Driver, INDIRECT, NEXT, USED, WRITE, counter, rx, tx};
use super::{MODERN, push};
use crate::features;
use crate::vring::notify::Event;
use crate::vring::packed::PackedRing;
use crate::vring::rx::RxRing;
use crate::vring::tx::TxQueue;

const STEPS: usize = 3000;

/// Numbers that a seed gives.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A buffer that the driver has made available and not taken back.
struct Buffer {
    id: u16,
    slots: u64,
    parts: Vec<(u64, u32)>,
}

impl Buffer {
    fn capacity(&self) -> usize {
        self.parts.iter().map(|p| p.1 as usize).sum()
    }
}

/// What the driver wants to be called for.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Always,
    Never,
    /// The slot of this number.
    At(u64),
}

struct Model {
    random: Random,
    driver: Driver,
    features: u64,
    writable: bool,
    /// Slots that the driver made available, that the device used, and that the driver took back, from the beginning.
    available: u64,
    used: u64,
    taken_back: u64,
    /// Made available, not taken back; the first `given` of them were used.
    buffers: VecDeque<Buffer>,
    given: usize,
    wish: Wish,
    /// Nothing was published since the ring was started.
    first: bool,
    call: std::os::fd::OwnedFd,
}

impl Model {
    fn new(seed: u64, features: u64, size: u16, writable: bool) -> Self {
        let driver = Driver::new(size);
        let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        driver.shared().call.set(Some(Event::from_peer(call.try_clone().unwrap().into()).unwrap()));
        Self {
            random: Random(seed),
            driver,
            features: MODERN | features,
            writable,
            available: 0,
            used: 0,
            taken_back: 0,
            buffers: VecDeque::new(),
            given: 0,
            wish: Wish::Always,
            first: true,
            call,
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    fn size(&self) -> u64 {
        u64::from(self.driver.size)
    }

    fn slot(&self, number: u64) -> u16 {
        (number % self.size()) as u16
    }

    /// The wrap counter at a slot's number: 1 in the first lap.
    fn counter(&self, number: u64) -> bool {
        counter((number / self.size()) as u32)
    }

    fn place(&self, number: u64) -> u16 {
        self.slot(number) | u16::from(self.counter(number)) << 15
    }

    /// Makes a buffer of these bytes or this many available, in any form that there is room for.
    fn offer(&mut self, bytes: &[u8], len: usize) {
        let room = self.size() - (self.available - self.taken_back);
        if room == 0 {
            return;
        }
        let first = self.available;
        let at = Driver::BUFFERS + 2048 * u64::from(self.slot(first));
        let indirect = self.has(features::INDIRECT_DESC) && self.random.below(3) == 0;
        let most = if indirect { 6 } else { room.min(4) };
        let count = if self.random.below(2) == 0 { 1 } else { self.random.between(1, most) };
        let mut parts = Vec::new();
        let mut done = 0;
        for i in 0..count {
            let part =
                if i + 1 == count { len - done } else { self.random.below((len - done) as u64 + 1) as usize };
            parts.push((at + done as u64, part as u32));
            done += part;
        }
        if !self.writable {
            self.driver.mock.guest.write(at, bytes).unwrap();
        }
        // Any number that no other buffer has.
        let id = loop {
            let id = self.random.next() as u16;
            if self.buffers.iter().all(|b| b.id != id) {
                break id;
            }
        };
        let write = if self.writable { WRITE } else { 0 };
        let lap = |n| if self.counter(n) { AVAIL } else { USED };
        let slots = if indirect {
            let table = Driver::TABLES + 256 * u64::from(self.slot(first));
            let list: Vec<_> = parts.iter().map(|&(addr, len)| (addr, len, write)).collect();
            self.driver.write_table(table, &list);
            self.driver.set(self.slot(first), table, 16 * count as u32, id, INDIRECT | lap(first));
            1
        } else {
            // The first one last, as the device may look at any time. IDs but the last one's are anything.
            for i in (0..count).rev() {
                let (addr, len) = parts[i as usize];
                let (next, id) = if i + 1 < count { (NEXT, !id) } else { (0, id) };
                let n = first + i;
                self.driver.set(self.slot(n), addr, len, id, write | next | lap(n));
            }
            count
        };
        self.available += slots;
        self.buffers.push_back(Buffer { id, slots, parts });
    }

    fn wish(&mut self) {
        self.wish = match self.random.below(3) {
            0 => Wish::Always,
            1 => Wish::Never,
            _ if self.has(features::EVENT_IDX) => Wish::At(self.used + self.random.below(self.size() + 3)),
            _ => Wish::Never,
        };
        match self.wish {
            Wish::Always => self.driver.set_driver_event(0, self.random.next() as u16),
            Wish::Never => self.driver.set_driver_event(1, self.random.next() as u16),
            Wish::At(number) => self.driver.set_driver_event(2, self.place(number)),
        }
    }

    /// The device has used the next `n` buffers.
    fn was_used(&mut self, n: usize) {
        let slots: u64 = self.buffers.range(self.given..self.given + n).map(|b| b.slots).sum();
        let (old, new) = (self.used, self.used + slots);
        self.given += n;
        self.used = new;
        let mut count = [0; 8];
        let calls = match rustix::io::read(&self.call, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        };
        let wanted = match self.wish {
            Wish::Always => n > 0,
            Wish::Never => false,
            // The number that is wished for has come around, in whatever lap of this parity.
            Wish::At(number) => (old..new).any(|n| self.place(n) == self.place(number)),
        };
        let expected = wanted || (self.first && n > 0);
        self.first &= n == 0;
        assert_eq!(calls, u64::from(expected), "{:?}, used from {old} to {new}", self.wish);
        // Where the device stands it says, whoever reads it.
        assert_eq!(self.driver.shared().next(), self.place(self.used));
        assert_eq!(self.driver.device_event().1, self.place(self.used));
    }

    /// Takes back what was used; the bytes written into each buffer.
    fn take_back(&mut self) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        loop {
            let at = self.taken_back;
            let flags = self.driver.flags(self.slot(at));
            let lap = self.counter(at);
            if (flags & AVAIL != 0) != lap || (flags & USED != 0) != lap {
                break;
            }
            assert_eq!(flags & WRITE != 0, self.writable, "the flag says whether something was written");
            let (id, len) = (self.driver.id(self.slot(at)), self.driver.len(self.slot(at)) as usize);
            // In order, an ID stands for all before it.
            let last = if self.has(features::IN_ORDER) && !self.writable {
                self.buffers.iter().position(|b| b.id == id).expect("an ID that the driver gave")
            } else {
                assert_eq!(self.buffers[0].id, id, "another buffer's turn");
                0
            };
            assert!(last < self.given, "a buffer that the device has not come to yet");
            for _ in 0..=last {
                let buffer = self.buffers.pop_front().unwrap();
                self.given -= 1;
                self.taken_back += buffer.slots;
                if self.writable {
                    assert!(len <= buffer.capacity());
                    let mut bytes = Vec::new();
                    for (addr, n) in buffer.parts {
                        let mut part = vec![0; n as usize];
                        self.driver.mock.guest.read(addr, &mut part).unwrap();
                        bytes.extend_from_slice(&part);
                    }
                    bytes.truncate(len);
                    written.push(bytes);
                }
            }
        }
        assert_eq!(self.taken_back, self.used, "all that was used is seen");
        written
    }

    /// What a front-end tells the next run of the ring: all, half, nothing, or what it knew at the beginning.
    fn told(&mut self) -> Option<u32> {
        self.first = true;
        let here = u32::from(self.place(self.used));
        match self.random.below(4) {
            0 => Some(here | here << 16),
            1 => Some(here),
            2 => None,
            _ => Some(0x8000_8000),
        }
    }
}

/// All combinations of features that change what a ring does, and rings of many sizes.
fn each_ring(run: impl Fn(&str, u64, u64, u16)) {
    let bits = [features::IN_ORDER, features::MRG_RXBUF, features::INDIRECT_DESC, features::EVENT_IDX];
    let sizes = [1, 2, 3, 7, 8, 64, 100, 256];
    for combination in 0..16u64 {
        let chosen = bits.iter().enumerate().filter(|(i, _)| combination >> i & 1 != 0);
        let features = chosen.fold(1 << features::RING_PACKED, |all, (_, bit)| all | 1 << bit);
        for pick in 0..2 {
            let size = sizes[((combination * 2 + pick) * 3 % 8) as usize];
            let seed = 1000 * combination + pick;
            run(&format!("seed {seed}, features {features:#x}, size {size}"), seed, features, size);
        }
    }
}

/// Says which run it was, if it fails.
struct Named<'a>(&'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the run of {}", self.0);
        }
    }
}

#[test]
fn what_drivers_send_arrives_once_whole_and_in_order() {
    each_ring(|name, seed, features, size| {
        let _named = Named(name);
        let mut model = Model::new(seed, features, size, false);
        // Frames that are in the ring; empty those that are too short to be one.
        let mut sent: VecDeque<Vec<u8>> = VecDeque::new();
        let mut queue: RxRing<PackedRing> = rx(&model.driver, model.features, Some(0x8000_8000));
        let mut burst = Burst::new();
        for _ in 0..STEPS {
            match model.random.below(8) {
                0..4 => {
                    for _ in 0..model.random.between(1, 40) {
                        let len = if model.random.below(20) == 0 {
                            model.random.below(13)
                        } else {
                            model.random.between(13, 1500)
                        };
                        let mut bytes = model.random.bytes(len as usize);
                        let header = bytes.len().min(12);
                        bytes[..header].fill(0);
                        let before = model.available;
                        model.offer(&bytes, bytes.len());
                        if model.available > before {
                            sent.push_back(bytes.split_off(header));
                        }
                    }
                }
                4 => {
                    model.take_back();
                }
                5 => model.wish(),
                6 => {
                    let work = queue.arm().unwrap() == Armed::Work;
                    assert_eq!(work, !sent.is_empty());
                    let wish = if model.has(features::EVENT_IDX) { 2 } else { 0 };
                    let expected = (if work { 1 } else { wish }, model.place(model.used));
                    assert_eq!(model.driver.device_event(), expected);
                    queue.disarm();
                    assert_eq!(model.driver.device_event().0, 1);
                    if model.random.below(10) == 0 {
                        drop(queue);
                        let told = model.told();
                        queue = rx(&model.driver, model.features, told);
                    }
                }
                _ => {
                    burst.clear();
                    let mut drops = RxDrops::default();
                    let n = queue.rx_burst(&mut burst, &mut drops).unwrap();
                    let count = n + drops.short_header as usize;
                    assert!(count <= BURST && count == sent.len().min(count));
                    assert_eq!(count == 0, sent.is_empty(), "what is there is taken");
                    let frames = sent.drain(..count).filter(|f| !f.is_empty());
                    for (i, expected) in frames.enumerate() {
                        let frame = burst.frame(i);
                        let mut got = frame.head.bytes().to_vec();
                        for segment in frame.tail {
                            let at = got.len();
                            got.resize(at + segment.len(), 0);
                            segment.read(&mut got[at..]);
                        }
                        assert!(got == expected, "a frame of {} bytes came as {}", expected.len(), got.len());
                    }
                    queue.release();
                    model.was_used(count);
                }
            }
        }
        assert!(model.used > model.size() * 10, "only {} slots were used", model.used);
    });
}

#[test]
fn what_drivers_receive_is_whole_and_in_order() {
    each_ring(|name, seed, features, size| {
        let _named = Named(name);
        let mut model = Model::new(seed, features, size, true);
        let mergeable = model.has(features::MRG_RXBUF);
        // Frames that are in used buffers.
        let mut delivered: VecDeque<Vec<u8>> = VecDeque::new();
        let mut ring: TxQueue<PackedRing> = tx(&model.driver, model.features, Some(0x8000_8000));
        let mut burst = Burst::new();
        for _ in 0..STEPS {
            match model.random.below(8) {
                0..4 => {
                    for _ in 0..model.random.between(1, 40) {
                        // One that is too small for every frame would stay for ever.
                        let least = if mergeable { 12 } else { 100 };
                        let most = if model.random.below(3) == 0 { 200 } else { 2048 };
                        let len = model.random.between(least, most);
                        model.offer(&[], len as usize);
                    }
                }
                4 => {
                    let mut written = model.take_back().into_iter();
                    while let Some(mut bytes) = written.next() {
                        let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
                        assert!(buffers == 1 || mergeable);
                        for _ in 1..buffers {
                            bytes.extend(written.next().expect("a frame's buffers are used together"));
                        }
                        let expected = delivered.pop_front().expect("a frame that was transmitted");
                        assert!(bytes[12..] == expected, "a frame of {} bytes", expected.len());
                    }
                    assert!(delivered.is_empty());
                }
                5 => model.wish(),
                6 => {
                    if model.random.below(4) == 0 {
                        drop(ring);
                        let told = model.told();
                        ring = tx(&model.driver, model.features, told);
                        assert_eq!(model.driver.device_event().0, 1, "kicks are not wanted");
                    }
                }
                _ => {
                    let count = model.random.between(1, BURST as u64) as usize;
                    let mut lens = Vec::new();
                    for _ in 0..count {
                        let most = if model.random.below(3) == 0 { 88 } else { 2500 };
                        lens.push(model.random.between(14, most) as usize);
                    }
                    let frames: Vec<Vec<u8>> = lens.iter().map(|&n| model.random.bytes(n)).collect();
                    burst.clear();
                    frames.iter().for_each(|f| push(&mut burst, f));
                    let members: Vec<u8> = (0..count as u8).collect();
                    let report = ring.transmit(&mut burst.bucket(&members)).unwrap();
                    let refused = report.dropped();
                    let mut next = model.given;
                    // Frames as long as one that was refused need not be tried.
                    let mut refused_from = usize::MAX;
                    for (i, frame) in frames.into_iter().enumerate() {
                        let total = frame.len() + 12;
                        let most = if mergeable { 64 } else { 1 };
                        let mut capacity = 0;
                        let mut enough = 0;
                        for buffer in model.buffers.iter().skip(next).take(most) {
                            capacity += buffer.capacity();
                            enough += 1;
                            if capacity >= total {
                                break;
                            }
                        }
                        if refused >> i & 1 == 0 {
                            assert!(capacity >= total, "{total} bytes are in buffers of {capacity}");
                            next += enough;
                            delivered.push_back(frame);
                        } else {
                            let fits = capacity >= total && total < refused_from;
                            assert!(!fits, "{total} bytes were refused, with {capacity} there");
                            refused_from = refused_from.min(total);
                        }
                    }
                    model.was_used(next - model.given);
                }
            }
        }
        assert!(model.used > model.size() * 10, "only {} slots were used", model.used);
    });
}
