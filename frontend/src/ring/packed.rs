//! The driver's side of a packed virtqueue (virtio 1.3, 2.8).
//!
//! Driver and device write one ring of descriptors, each at a place of its own that goes round. Here a place is a count of
//! descriptors since the start, of which the ring's index is the low bits, and the bit above them the lap: the wrap
//! counter is 1 on even laps (2.8.1). Buffers are *added* in any number; the flags of the first are written last, by
//! *publish*, so that the device sees all of them or none. What the device may write into a used descriptor is held
//! against what this side remembers: what breaks the specification comes back as a [`RingError`].
//!
//! Owned by one thread. It knows no eventfd and no vhost-user message: `device` has those.

use std::sync::atomic::{Ordering, fence};

use super::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE};
use super::{RingAddresses, RingError, Segment, Setup, Used};
use crate::error::Result;
use crate::memory::{GuestMemory, Rows, Window};

/// Descriptor flag: equal to the driver's wrap counter in a descriptor that was made available.
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// Descriptor flag: equal to the device's wrap counter, as [`DESC_F_AVAIL`] is, in a descriptor that was used.
pub const DESC_F_USED: u16 = 1 << 15;

/// Event suppression: notifications are wanted.
pub const EVENT_ENABLE: u16 = 0;
/// Event suppression: none are.
pub const EVENT_DISABLE: u16 = 1;
/// Event suppression: one is, when a certain descriptor is reached (only with `VIRTIO_F_EVENT_IDX`).
pub const EVENT_DESC: u16 = 2;

type RingResult<T> = std::result::Result<T, RingError>;

/// What the driver remembers of a buffer id.
#[derive(Clone, Copy, Debug, Default)]
struct Buffer {
    /// Descriptors of the ring in use; 0 when not in flight.
    descs: u16,
    /// Bytes that the device may write.
    writable: u32,
    /// The buffer's only descriptor without the flags of its lap: address, then length, id and flags.
    words: [u64; 2],
}

/// The driver's side of a packed virtqueue.
#[derive(Debug)]
pub struct PackedQueue {
    size: u16,
    mask: u16,
    setup: Setup,
    desc: Window,
    /// The driver's event suppression, which the device reads, and the device's.
    driver: Window,
    device: Window,
    ring: Rows<16, 16>,
    tables: Option<(u64, Window)>,
    addresses: RingAddresses,
    buffers: Vec<Buffer>,
    /// Ids that are free, first in, first out: a ring indexed modulo its size.
    ids: Vec<u16>,
    ids_out: u16,
    ids_in: u16,
    /// Ids in flight in the order of their publication (only with `in_order`), a ring of the same kind.
    order: Vec<u16>,
    order_in: u16,
    order_out: u16,
    avail_next: u16,
    avail_published: u16,
    kicked_at: u16,
    used_next: u16,
    /// The first descriptor since the last publication: its place and second word.
    unpublished: Option<(u16, u64)>,
    /// With `in_order`: buffers that were used, but had no descriptor of their own, are given out until this id.
    batch_last: Option<Used>,
    fixed: bool,
}

impl PackedQueue {
    /// Allocates a queue's areas in `memory` and initialises them.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] when there is no room, [`crate::Error::Config`] for a size that is not allowed.
    pub fn new(memory: &mut GuestMemory, setup: Setup) -> Result<Self> {
        let size = setup.checked_size()?;
        let n = u64::from(size);
        // A page each, so that the areas share no cache line.
        let (desc_gpa, desc) = memory.alloc_window(16 * n, 4096)?;
        let (driver_gpa, driver) = memory.alloc_window(4, 4096)?;
        let (device_gpa, device) = memory.alloc_window(4, 4096)?;
        let tables = setup.alloc_tables(memory)?;
        let mut queue = PackedQueue {
            size,
            mask: size - 1,
            setup,
            ring: Rows::new(&desc, 0, DESC_SIZE, usize::from(size))?,
            desc,
            driver,
            device,
            tables,
            addresses: RingAddresses { desc: desc_gpa, avail: driver_gpa, used: device_gpa },
            buffers: vec![Buffer::default(); usize::from(size)],
            ids: vec![0; usize::from(size)],
            ids_out: 0,
            ids_in: 0,
            order: vec![0; usize::from(size)],
            order_in: 0,
            order_out: 0,
            avail_next: 0,
            avail_published: 0,
            kicked_at: 0,
            used_next: 0,
            unpublished: None,
            batch_last: None,
            fixed: false,
        };
        queue.reset(setup.base);
        Ok(queue)
    }

    /// Forgets everything in flight and starts at the place `base`, as a driver does after a device reset.
    pub fn reset(&mut self, base: u16) {
        for place in (0..self.size).map(|i| base.wrapping_add(i)) {
            // As a used descriptor of the lap before, which is neither available nor used when its turn comes.
            let before = place.wrapping_sub(self.size);
            let word = u64::from(self.lap_flags(before, true)) << 48;
            self.ring.store_u64::<0>(usize::from(place), 0, Ordering::Relaxed);
            self.ring.store_u64::<8>(usize::from(place), word, Ordering::Relaxed);
        }
        self.buffers.fill(Buffer::default());
        for (i, id) in self.ids.iter_mut().enumerate() {
            *id = i as u16;
        }
        (self.ids_out, self.ids_in) = (0, self.size);
        (self.order_in, self.order_out) = (0, 0);
        self.avail_next = base;
        self.avail_published = base;
        self.kicked_at = base;
        self.used_next = base;
        self.unpublished = None;
        self.batch_last = None;
        self.fixed = false;
        self.device.fill(0, 4, 0);
        self.disarm();
        fence(Ordering::SeqCst);
    }

    /// The flags that make the descriptor at `place` available, or used.
    #[inline]
    fn lap_flags(&self, place: u16, used: bool) -> u16 {
        match (place & self.size == 0, used) {
            (true, false) => DESC_F_AVAIL,
            (true, true) => DESC_F_AVAIL | DESC_F_USED,
            (false, false) => DESC_F_USED,
            (false, true) => 0,
        }
    }

    /// A place as the ring's index and, in the high bit, the wrap counter.
    #[inline]
    fn wrapped(&self, place: u16) -> u16 {
        let wrap = u16::from(place & self.size == 0);
        (place & self.mask) | (wrap << 15)
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the areas are.
    #[must_use]
    pub fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// Descriptors that no buffer uses.
    #[must_use]
    pub fn free_descriptors(&self) -> u16 {
        self.size - self.avail_next.wrapping_sub(self.used_next)
    }

    /// Where a device goes on that knows nothing of this ring: what `SET_VRING_BASE` wants, the same place for what is
    /// available and for what is used. That the ring tells it, other than by the descriptors themselves, is not
    /// provided for: it holds for a device that used the buffers in order.
    #[must_use]
    pub fn base(&self) -> u32 {
        let mut place = self.used_next;
        let mut order = self.order_out;
        if let Some(last) = self.batch_last {
            // The descriptor is taken, its buffers are not all given out.
            place = place.wrapping_add(self.span(last.id, &mut order));
        }
        while place != self.avail_published {
            let word = self.ring.load_u64::<8>(usize::from(place), Ordering::Acquire);
            if (word >> 48) as u16 & (DESC_F_AVAIL | DESC_F_USED) != self.lap_flags(place, true) {
                break;
            }
            let descs = self.span((word >> 32) as u16, &mut order);
            if descs == 0 {
                break;
            }
            place = place.wrapping_add(descs);
        }
        u32::from(self.wrapped(place)) * 0x1_0001
    }

    /// How many descriptors a used one stands for: those of its buffer, in order also those of the buffers before it,
    /// from `order` on, which moves behind it.
    fn span(&self, last: u16, order: &mut u16) -> u16 {
        if !self.setup.in_order {
            return self.buffers.get(usize::from(last)).map_or(0, |buffer| buffer.descs);
        }
        let mut descs = 0u16;
        while *order != self.order_in {
            let id = self.order[usize::from(*order & self.mask)];
            *order = order.wrapping_add(1);
            descs = descs.wrapping_add(self.buffers[usize::from(id)].descs);
            if id == last {
                break;
            }
        }
        descs
    }

    /// How many descriptors of the ring a buffer of `pieces` takes.
    #[must_use]
    pub fn descriptors_for(&self, pieces: usize) -> usize {
        if self.setup.goes_indirect(pieces) { 1 } else { pieces }
    }

    /// Puts a buffer into the ring, and gives its id. The device sees it at the next [`PackedQueue::publish`].
    ///
    /// # Errors
    /// [`RingError::Full`] when descriptors are lacking, or the buffer has no piece.
    pub fn add(&mut self, pieces: &[Segment]) -> RingResult<u16> {
        let descs = self.descriptors_for(pieces.len());
        if descs == 0 || descs > usize::from(self.free_descriptors()) {
            return Err(RingError::Full(pieces.len()));
        }
        let id = self.ids[usize::from(self.ids_out & self.mask)];
        self.ids_out = self.ids_out.wrapping_add(1);
        let words = self.only_descriptor(id, pieces);
        self.buffers[usize::from(id)] = Buffer {
            descs: descs as u16,
            writable: super::writable(pieces),
            words: words.unwrap_or_default(),
        };
        match words {
            Some(words) => self.push(words),
            None => {
                for (i, piece) in pieces.iter().enumerate() {
                    let next = if i + 1 < pieces.len() { DESC_F_NEXT } else { 0 };
                    self.push(descriptor(piece, id, next));
                }
            }
        }
        self.note_order(id);
        Ok(id)
    }

    /// The descriptor of a buffer that takes one; an indirect table is written.
    fn only_descriptor(&self, id: u16, pieces: &[Segment]) -> Option<[u64; 2]> {
        if let (true, Some((gpa, tables))) = (self.setup.goes_indirect(pieces.len()), &self.tables) {
            let base = usize::from(id) * usize::from(self.setup.indirect_max.max(1)) * DESC_SIZE;
            for (i, piece) in pieces.iter().enumerate() {
                // In a table the order is the chain, and ids mean nothing (2.8.8).
                let words = descriptor(piece, 0, 0);
                tables.store_u64(base + i * DESC_SIZE, words[0], Ordering::Relaxed);
                tables.store_u64(base + i * DESC_SIZE + 8, words[1], Ordering::Relaxed);
            }
            let table = Segment::readable(gpa + base as u64, (pieces.len() * DESC_SIZE) as u32);
            return Some(descriptor(&table, id, DESC_F_INDIRECT));
        }
        match pieces {
            [piece] => Some(descriptor(piece, id, 0)),
            _ => None,
        }
    }

    #[inline]
    fn push(&mut self, words: [u64; 2]) {
        let place = self.avail_next;
        let row = usize::from(place);
        let word = words[1] | (u64::from(self.lap_flags(place, false)) << 48);
        self.ring.store_u64::<0>(row, words[0], Ordering::Relaxed);
        if self.unpublished.is_none() {
            // Until this one's flags are there, the device does not look at the next ones.
            self.unpublished = Some((place, word));
        } else {
            self.ring.store_u64::<8>(row, word, Ordering::Relaxed);
        }
        self.avail_next = place.wrapping_add(1);
    }

    #[inline]
    fn note_order(&mut self, id: u16) {
        if self.setup.in_order {
            self.order[usize::from(self.order_in & self.mask)] = id;
            self.order_in = self.order_in.wrapping_add(1);
        }
    }

    /// Turns the queue to *fixed* buffers: id `i` stands for `buffers[i]`, of one piece or by an indirect table, and
    /// [`PackedQueue::add_fixed`] makes it available. Nothing may be in flight.
    ///
    /// # Errors
    /// [`RingError::Full`] when something is in flight, there are more buffers than descriptors, or one would need a
    /// chain.
    pub fn fix(&mut self, buffers: &[Vec<Segment>]) -> RingResult<()> {
        if self.free_descriptors() != self.size || buffers.len() > usize::from(self.size) {
            return Err(RingError::Full(buffers.len()));
        }
        for (i, pieces) in buffers.iter().enumerate() {
            let words = self.only_descriptor(i as u16, pieces).ok_or(RingError::Full(pieces.len()))?;
            self.buffers[i] = Buffer { descs: 0, writable: super::writable(pieces), words };
        }
        self.fixed = true;
        Ok(())
    }

    /// As [`PackedQueue::fix`], of the buffers that are in flight already: each keeps its id.
    ///
    /// # Errors
    /// [`RingError::Full`] when one of them takes several descriptors.
    pub fn fix_in_flight(&mut self) -> RingResult<()> {
        match self.buffers.iter().find(|buffer| buffer.descs > 1) {
            Some(buffer) => Err(RingError::Full(buffer.descs.into())),
            None => {
                self.fixed = true;
                Ok(())
            }
        }
    }

    /// Makes the fixed buffer `id` available. The caller owns the ids: one that is in flight already is not detected.
    #[inline]
    pub fn add_fixed(&mut self, id: u16) {
        let buffer = &mut self.buffers[usize::from(id)];
        buffer.descs = 1;
        let words = buffer.words;
        self.push(words);
        self.note_order(id);
    }

    /// Lets the device see everything that was added.
    #[inline]
    pub fn publish(&mut self) {
        if let Some((place, word)) = self.unpublished.take() {
            // Release: everything else is visible before the flags that make the first of it available (2.8.13.1).
            self.ring.store_u64::<8>(usize::from(place), word, Ordering::Release);
            self.avail_published = self.avail_next;
        }
    }

    /// Whether the device wants a notification for what was published since this was last asked.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        if self.kicked_at == self.avail_published {
            return false;
        }
        // The descriptors must be visible before the device's wish is read (2.8.21.3.1), or both sides could sleep.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked_at, self.avail_published);
        let wish = self.device.load_u32(0, Ordering::Relaxed);
        match (wish >> 16) as u16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.setup.event_idx => self.passes(wish as u16, old, self.avail_published),
            _ => true,
        }
    }

    /// Whether moving on from `old` to `new` passes the descriptor that `event` names, index and wrap counter (2.8.10).
    fn passes(&self, event: u16, old: u16, new: u16) -> bool {
        // Places matter modulo two laps.
        let laps = self.size.wrapping_mul(2).wrapping_sub(1);
        let event = (event & 0x7fff).wrapping_add(if event >> 15 == 1 { 0 } else { self.size });
        new.wrapping_sub(event).wrapping_sub(1) & laps < new.wrapping_sub(old) & laps
    }

    /// Whether the device gave something back that was not taken yet.
    #[inline]
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.batch_last.is_some() || {
            let word = self.ring.load_u64::<8>(usize::from(self.used_next), Ordering::Acquire);
            (word >> 48) as u16 & (DESC_F_AVAIL | DESC_F_USED) == self.lap_flags(self.used_next, true)
        }
    }

    /// Takes the next buffer that the device gave back.
    ///
    /// # Errors
    /// What the device did that the specification does not allow. The ring is not usable afterwards.
    #[inline]
    pub fn pop_used(&mut self) -> RingResult<Option<Used>> {
        if let Some(last) = self.batch_last {
            return self.pop_batch(last).map(Some);
        }
        let place = self.used_next;
        // Acquire: the rest of the descriptor and the buffer's contents are read after the flags.
        let word = self.ring.load_u64::<8>(usize::from(place), Ordering::Acquire);
        let flags = (word >> 48) as u16;
        let lap = flags & (DESC_F_AVAIL | DESC_F_USED);
        if lap != self.lap_flags(place, true) {
            // What is published and not used has been written by this side on this lap.
            if place != self.avail_published && lap != self.lap_flags(place, false) {
                return Err(RingError::Flags { index: place & self.mask, flags });
            }
            return Ok(None);
        }
        let id = (word >> 32) as u16;
        let descs = self.buffers.get(usize::from(id)).map_or(0, |buffer| buffer.descs);
        let in_flight = self.avail_published.wrapping_sub(place);
        if descs == 0 || descs > in_flight {
            return Err(RingError::UsedId(id.into()));
        }
        // Without the flag nothing was written, and the length is none (2.8.5).
        let len = if flags & DESC_F_WRITE != 0 { word as u32 } else { 0 };
        if self.setup.in_order {
            return self.pop_batch(Used { id, len }).map(Some);
        }
        self.finish(id, Some(len)).map(Some)
    }

    /// In order, the device may write one descriptor for several buffers, with the last one's id; those before it count
    /// as completely used (2.8.7).
    fn pop_batch(&mut self, last: Used) -> RingResult<Used> {
        if self.order_out == self.order_in {
            return Err(RingError::UsedId(last.id.into()));
        }
        let front = self.order[usize::from(self.order_out & self.mask)];
        self.order_out = self.order_out.wrapping_add(1);
        if front == last.id {
            self.batch_last = None;
            self.finish(front, Some(last.len))
        } else {
            self.batch_last = Some(last);
            self.finish(front, None)
        }
    }

    /// Ends a buffer's flight. `None` for the length means: all of it was written.
    #[inline]
    fn finish(&mut self, id: u16, len: Option<u32>) -> RingResult<Used> {
        let buffer = &mut self.buffers[usize::from(id)];
        let capacity = buffer.writable;
        let len = len.unwrap_or(capacity);
        if len > capacity {
            return Err(RingError::UsedLen { id, len, capacity });
        }
        self.used_next = self.used_next.wrapping_add(std::mem::take(&mut buffer.descs));
        if !self.fixed {
            self.ids[usize::from(self.ids_in & self.mask)] = id;
            self.ids_in = self.ids_in.wrapping_add(1);
        }
        Ok(Used { id, len })
    }

    /// Asks for an interrupt at the next used buffer. Gives `true` when there is one already: then none may come.
    pub fn arm(&mut self) -> bool {
        let wish = if self.setup.event_idx {
            u32::from(self.wrapped(self.used_next)) | (u32::from(EVENT_DESC) << 16)
        } else {
            u32::from(EVENT_ENABLE) << 16
        };
        self.driver.store_u32(0, wish, Ordering::Relaxed);
        // The wish must be visible before the ring is read again, or both sides could sleep.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        self.driver.store_u32(0, u32::from(EVENT_DISABLE) << 16, Ordering::Relaxed);
    }

    /// The areas as windows, for those who corrupt them on purpose.
    #[must_use]
    pub fn windows(&self) -> (Window, Window, Window) {
        (self.desc.clone(), self.driver.clone(), self.device.clone())
    }
}

/// The two words of a descriptor, without the flags of its lap.
#[inline]
fn descriptor(piece: &Segment, id: u16, flags: u16) -> [u64; 2] {
    let flags = flags | if piece.writable { DESC_F_WRITE } else { 0 };
    [piece.gpa, u64::from(piece.len) | (u64::from(id) << 32) | (u64::from(flags) << 48)]
}

#[cfg(test)]
mod tests;
