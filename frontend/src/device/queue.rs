//! A receive queue and a transmit queue: a ring, its buffers, its two eventfds.
//!
//! Each has a fixed set of buffers (*slots*) in guest memory. A slot is either with the device or here.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{Shape, TxLayout};
use super::header::VnetHeader;
use crate::error::{Error, Result};
use crate::eventfd::{Event, wait_readable};
use crate::memory::{GuestMemory, Window};
use crate::raw::RingAccess;
use crate::ring::{Indirect, Queue, RingError, Segment, Setup, Used};

/// A ring with its eventfds.
#[derive(Debug)]
pub(crate) struct Virtqueue {
    pub(crate) index: u16,
    pub(crate) ring: Queue,
    pub(crate) kick: Arc<Event>,
    pub(crate) call: Arc<Event>,
    pub(crate) kicks: u64,
}

impl Virtqueue {
    fn new(memory: &mut GuestMemory, shape: &Shape, index: u16, pieces: u16, base: u16) -> Result<Self> {
        let has = |bit: u64| shape.features & bit != 0;
        let setup = Setup {
            size: shape.queue_size,
            event_idx: has(crate::features::EVENT_IDX),
            in_order: has(crate::features::IN_ORDER),
            indirect: shape.indirect,
            indirect_max: pieces,
            base,
        };
        let ring = Queue::new(memory, has(crate::features::RING_PACKED), setup)?;
        Ok(Virtqueue { index, ring, kick: Arc::new(Event::new()?), call: Arc::new(Event::new()?), kicks: 0 })
    }

    fn error(&self, source: RingError) -> Error {
        Error::Ring { queue: self.index, source }
    }

    /// Publishes what was added, and kicks the device if it wants that.
    #[inline]
    pub(crate) fn flush(&mut self) {
        self.ring.publish();
        if self.ring.needs_kick() {
            self.kick.signal();
            self.kicks += 1;
        }
    }

    #[inline]
    pub(crate) fn pop_used(&mut self) -> Result<Option<Used>> {
        self.ring.pop_used().map_err(|e| self.error(e))
    }

    #[inline]
    pub(crate) fn take_used(&mut self, out: &mut [Used]) -> Result<usize> {
        self.ring.take_used(out).map_err(|e| self.error(e))
    }

    pub(crate) fn access(&self) -> RingAccess {
        RingAccess::of(self.ring.size(), self.ring.windows(), Arc::clone(&self.kick))
    }

    /// Waits for a used buffer until `deadline`. Gives whether there is one.
    pub(crate) fn wait_used(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            if self.ring.arm() {
                self.ring.disarm();
                return Ok(true);
            }
            let woken = wait_readable(&[self.call.as_fd()], deadline)?;
            self.call.drain();
            if self.ring.has_used() {
                self.ring.disarm();
                return Ok(true);
            }
            if !woken {
                self.ring.disarm();
                return Ok(false);
            }
        }
    }
}

/// Buffers of equal length, one after the other.
#[derive(Debug)]
struct Slots {
    window: Window,
    gpa: u64,
    stride: usize,
    /// Where in its place a buffer begins.
    lead: usize,
    len: usize,
    /// The slot that a ring's id stands for.
    of_id: Vec<u16>,
}

impl Slots {
    fn new(memory: &mut GuestMemory, shape: &Shape, count: u16, len: u32) -> Result<Self> {
        let stride = shape.stride(len);
        let (gpa, window) = memory.alloc_window(u64::from(count) * u64::from(stride), 64)?;
        let of_id = vec![0; usize::from(shape.queue_size)];
        Ok(Slots {
            window,
            gpa,
            stride: stride as usize,
            lead: shape.lead as usize,
            len: len as usize,
            of_id,
        })
    }

    #[inline]
    fn offset(&self, slot: u16) -> usize {
        self.lead + usize::from(slot) * self.stride
    }

    fn gpa(&self, slot: u16) -> u64 {
        self.gpa + self.offset(slot) as u64
    }

    fn frames(&self, header_len: usize) -> Frames {
        Frames {
            window: self.window.clone(),
            first: self.lead + header_len,
            stride: self.stride,
            count: self.window.len() / self.stride,
            header_len,
            buffer_len: self.len,
        }
    }
}

/// Cuts `len` bytes at `gpa` into `pieces` of about equal length, none of them empty.
fn cut(gpa: u64, len: usize, pieces: usize, writable: bool, out: &mut Vec<Segment>) {
    let pieces = pieces.clamp(1, len.max(1));
    let mut at = 0;
    for i in 0..pieces {
        let n = (len - at) / (pieces - i);
        out.push(Segment { gpa: gpa + at as u64, len: n as u32, writable });
        at += n;
    }
}

/// A transmit queue.
#[derive(Debug)]
pub struct TxQueue {
    pub(crate) vq: Virtqueue,
    slots: Slots,
    free: Vec<u16>,
    slot_count: u16,
    header_len: usize,
    layout: TxLayout,
    pieces: Vec<Segment>,
    timeout: Duration,
    sent: u64,
    completed: u64,
}

impl TxQueue {
    pub(super) fn new(
        memory: &mut GuestMemory,
        shape: &Shape,
        index: u16,
        base: u16,
        timeout: Duration,
    ) -> Result<Self> {
        let vq = Virtqueue::new(memory, shape, index, shape.tx_pieces(), base)?;
        let count = shape.tx_slots();
        let slots = Slots::new(memory, shape, count, shape.tx_buffer)?;
        Ok(TxQueue {
            vq,
            slots,
            free: (0..count).rev().collect(),
            slot_count: count,
            header_len: shape.header_len,
            layout: shape.tx_layout,
            pieces: Vec::new(),
            timeout,
            sent: 0,
            completed: 0,
        })
    }

    pub(super) fn restart(&mut self, base: u16) {
        self.vq.ring.reset(base);
        self.free = (0..self.slot_count).rev().collect();
        self.completed = self.sent;
    }

    /// Frames that were handed to the device.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Notifications that the device asked for.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.vq.kicks
    }

    /// The longest frame that a buffer takes, bytes.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.slots.len - self.header_len
    }

    /// Takes back what the device has finished. Gives how many frames that were.
    ///
    /// # Errors
    /// [`Error::Ring`].
    pub fn reclaim(&mut self) -> Result<usize> {
        let mut n = 0;
        while let Some(used) = self.vq.pop_used()? {
            self.free.push(self.slots.of_id[usize::from(used.id)]);
            n += 1;
        }
        self.completed += n as u64;
        Ok(n)
    }

    /// Room for frames now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Puts a frame (its bytes are `parts`, one after the other) into the ring without telling the device; gives
    /// `false` when there is no room. [`TxQueue::flush`] tells it.
    ///
    /// # Errors
    /// [`Error::Config`] for a frame longer than [`TxQueue::frame_max`], [`Error::Ring`].
    pub fn push(&mut self, header: &VnetHeader, parts: &[&[u8]]) -> Result<bool> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        self.push_with(header, len, |window, mut at| {
            for part in parts {
                window.write(at, part);
                at += part.len();
            }
        })
    }

    /// As [`TxQueue::push`]; `write` puts `len` bytes of the frame at the offset it is given.
    pub(crate) fn push_with(
        &mut self,
        header: &VnetHeader,
        len: usize,
        write: impl FnOnce(&Window, usize),
    ) -> Result<bool> {
        if len > self.frame_max() {
            return Err(Error::Config(format!("frame of {len} bytes for buffers of {}", self.frame_max())));
        }
        if self.free.is_empty() {
            self.reclaim()?;
        }
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let at = self.slots.offset(slot);
        self.slots.window.write(at, &header.bytes()[..self.header_len]);
        write(&self.slots.window, at + self.header_len);
        let gpa = self.slots.gpa(slot);
        let total = self.header_len + len;
        self.pieces.clear();
        match self.layout {
            TxLayout::Inline => self.pieces.push(Segment::readable(gpa, total as u32)),
            TxLayout::HeaderApart => {
                self.pieces.push(Segment::readable(gpa, self.header_len as u32));
                if len > 0 {
                    self.pieces.push(Segment::readable(gpa + self.header_len as u64, len as u32));
                }
            }
            TxLayout::Pieces(n) => cut(gpa, total, usize::from(n), false, &mut self.pieces),
        }
        match self.vq.ring.add(&self.pieces) {
            Ok(id) => {
                self.slots.of_id[usize::from(id)] = slot;
                self.sent += 1;
                Ok(true)
            }
            Err(RingError::Full(_)) => {
                self.free.push(slot);
                Ok(false)
            }
            Err(e) => Err(self.vq.error(e)),
        }
    }

    /// Publishes what was pushed, and kicks the device if it wants that.
    pub fn flush(&mut self) {
        self.vq.flush();
    }

    /// Sends one frame, waiting for room up to the device's timeout.
    ///
    /// # Errors
    /// [`Error::Timeout`] when no room comes; else as for [`TxQueue::push`].
    pub fn send(&mut self, header: &VnetHeader, parts: &[&[u8]]) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        while !self.push(header, parts)? {
            self.vq.flush();
            if !self.vq.wait_used(deadline)? {
                return Err(Error::Timeout { what: "room in the transmit queue", after: self.timeout });
            }
        }
        self.vq.flush();
        Ok(())
    }

    /// Waits until the device has finished every frame.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Ring`].
    pub fn drain(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.vq.flush();
        loop {
            self.reclaim()?;
            if self.completed == self.sent {
                return Ok(());
            }
            if !self.vq.wait_used(deadline)? {
                return Err(Error::Timeout { what: "completion of the transmitted frames", after: timeout });
            }
        }
    }

    /// Turns the queue to fixed buffers for a generator: slot `i` has `headers[i]` and a frame of `lengths[i]` bytes.
    /// The slot's number is the buffer's id.
    pub(crate) fn fix(&mut self, headers: &[VnetHeader], lengths: &[usize]) -> Result<Frames> {
        let piece = |slot: u16, len: &usize| {
            let (gpa, header) = (self.slots.gpa(slot), self.header_len as u32);
            match self.layout {
                TxLayout::HeaderApart => {
                    vec![
                        Segment::readable(gpa, header),
                        Segment::readable(gpa + u64::from(header), *len as u32),
                    ]
                }
                _ => vec![Segment::readable(gpa, header + *len as u32)],
            }
        };
        if matches!(self.layout, TxLayout::Pieces(_)) {
            return Err(Error::Config(
                "a generator's frames are in one piece, or two with the header".into(),
            ));
        }
        let buffers: Vec<Vec<Segment>> =
            (0..self.slot_count).zip(lengths).map(|(s, len)| piece(s, len)).collect();
        self.vq.ring.fix(&buffers).map_err(|e| self.vq.error(e))?;
        for (slot, header) in (0..self.slot_count).zip(headers) {
            self.slots.window.write(self.slots.offset(slot), &header.bytes()[..self.header_len]);
        }
        Ok(self.slots.frames(self.header_len))
    }
}

/// Where the frames of a queue's fixed buffers are, by the buffers' ids.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    pub(crate) window: Window,
    /// Where the first frame begins.
    pub(crate) first: usize,
    /// From one to the next.
    pub(crate) stride: usize,
    /// How many there are.
    pub(crate) count: usize,
    /// How many bytes of a buffer are the header's.
    pub(crate) header_len: usize,
    /// Length of a buffer, the header's bytes among them.
    pub(crate) buffer_len: usize,
}

/// A receive queue.
#[derive(Debug)]
pub struct RxQueue {
    pub(crate) vq: Virtqueue,
    slots: Slots,
    slot_count: u16,
    slot_pieces: u16,
    header_len: usize,
    mergeable: bool,
    pieces: Vec<Segment>,
    /// Slots that are here and wait to be given to the device.
    idle: Vec<u16>,
    /// How many slots gather before they are published together.
    batch: usize,
    frame: Vec<u8>,
    header: VnetHeader,
    /// Buffers that the frame under assembly still wants.
    missing: u16,
    received: u64,
    posted: bool,
}

impl RxQueue {
    pub(super) fn new(memory: &mut GuestMemory, shape: &Shape, index: u16, base: u16) -> Result<Self> {
        let vq = Virtqueue::new(memory, shape, index, shape.rx_pieces, base)?;
        let count = shape.slots(shape.rx_pieces);
        let slots = Slots::new(memory, shape, count, shape.rx_buffer)?;
        debug_assert!(shape.indirect == Indirect::Never || count == shape.queue_size || shape.rx_pieces > 1);
        Ok(RxQueue {
            vq,
            slots,
            slot_count: count,
            slot_pieces: shape.rx_pieces,
            header_len: shape.header_len,
            mergeable: shape.features & crate::features::MRG_RXBUF != 0,
            pieces: Vec::new(),
            idle: (0..count).collect(),
            batch: usize::from(count / 4).clamp(1, 32),
            frame: Vec::new(),
            header: VnetHeader::default(),
            missing: 0,
            received: 0,
            posted: false,
        })
    }

    pub(super) fn restart(&mut self, base: u16) {
        self.vq.ring.reset(base);
        self.idle = (0..self.slot_count).collect();
        self.missing = 0;
        self.posted = false;
    }

    /// Frames that came in.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many receive buffers the queue has.
    #[must_use]
    pub fn buffers(&self) -> usize {
        usize::from(self.slot_count)
    }

    /// Gives all idle buffers to the device. It happens by itself; a test that wants to see a queue without buffers
    /// makes its device with [`NetDevice::connect_without_buffers`](super::NetDevice::connect_without_buffers) and
    /// calls [`RxQueue::post`] when it likes.
    ///
    /// # Errors
    /// [`Error::Ring`].
    pub fn fill(&mut self) -> Result<()> {
        let n = self.idle.len();
        self.post(n).map(|_| ())
    }

    /// Gives up to `n` idle buffers to the device, and gives how many that were.
    ///
    /// # Errors
    /// [`Error::Ring`].
    pub fn post(&mut self, n: usize) -> Result<usize> {
        self.posted = true;
        let mut done = 0;
        while done < n {
            let Some(slot) = self.idle.pop() else { break };
            self.pieces.clear();
            cut(self.slots.gpa(slot), self.slots.len, usize::from(self.slot_pieces), true, &mut self.pieces);
            match self.vq.ring.add(&self.pieces) {
                Ok(id) => self.slots.of_id[usize::from(id)] = slot,
                Err(RingError::Full(_)) => {
                    self.idle.push(slot);
                    break;
                }
                Err(e) => return Err(self.vq.error(e)),
            }
            done += 1;
        }
        self.vq.flush();
        Ok(done)
    }

    /// Takes the next frame, if one is there: `frame` is replaced by its bytes.
    ///
    /// # Errors
    /// [`Error::Ring`]; [`Error::Device`] for a frame that breaks the specification.
    pub fn try_recv(&mut self, frame: &mut Vec<u8>) -> Result<Option<VnetHeader>> {
        loop {
            let Some(used) = self.vq.pop_used()? else {
                if self.posted && !self.idle.is_empty() {
                    self.fill()?;
                }
                return Ok(None);
            };
            let slot = self.slots.of_id[usize::from(used.id)];
            let whole = self.take_buffer(slot, used.len as usize);
            self.idle.push(slot);
            if self.posted && self.idle.len() >= self.batch {
                self.fill()?;
            }
            if whole? {
                self.received += 1;
                std::mem::swap(frame, &mut self.frame);
                return Ok(Some(self.header));
            }
        }
    }

    /// Adds a buffer to the frame under assembly. Gives whether the frame is whole.
    fn take_buffer(&mut self, slot: u16, len: usize) -> Result<bool> {
        let at = self.slots.offset(slot);
        if self.missing == 0 {
            self.frame.clear();
            if len < self.header_len {
                return Err(Error::Device(format!("a buffer with {len} bytes has no header")));
            }
            let mut bytes = [0; 12];
            self.slots.window.read(at, &mut bytes[..self.header_len]);
            self.header = VnetHeader::parse(&bytes);
            self.missing = if self.mergeable { self.header.num_buffers } else { 1 };
            if self.missing == 0 || self.missing > self.slot_count {
                let n = std::mem::take(&mut self.missing);
                return Err(Error::Device(format!("a frame of {n} merged buffers")));
            }
            self.slots.window.read_into(at + self.header_len, len - self.header_len, &mut self.frame);
        } else {
            self.slots.window.read_into(at, len, &mut self.frame);
        }
        self.missing -= 1;
        Ok(self.missing == 0)
    }

    /// Waits for the next frame: `frame` is replaced by its bytes.
    ///
    /// # Errors
    /// [`Error::Timeout`]; else as for [`RxQueue::try_recv`].
    pub fn recv(&mut self, frame: &mut Vec<u8>, timeout: Duration) -> Result<VnetHeader> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(header) = self.try_recv(frame)? {
                return Ok(header);
            }
            if !self.vq.wait_used(deadline)? {
                return Err(Error::Timeout { what: "frame", after: timeout });
            }
        }
    }

    /// Turns the queue to fixed buffers for a generator: what comes back goes in again by its id. Gives the frames, and
    /// which is the one of each id.
    pub(crate) fn fix(&mut self) -> Result<(Frames, Vec<u16>)> {
        self.fill()?;
        if !self.idle.is_empty() || self.missing != 0 {
            return Err(Error::Config("a generator needs receive queues at rest".into()));
        }
        self.vq.ring.fix_in_flight().map_err(|e| self.vq.error(e))?;
        Ok((self.slots.frames(self.header_len), self.slots.of_id.clone()))
    }
}
