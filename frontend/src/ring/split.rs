//! The driver's side of a split virtqueue (virtio 1.3, 2.7).
//!
//! A [`SplitQueue`] writes descriptors and the available ring, and reads the used ring. Buffers are *added* in any
//! number, *published* by one store of the available index, and the device is *kicked* once if it asked for that. A
//! shadow of each chain is kept in this process's own memory, so that nothing the device writes can mislead the
//! driver: what breaks the specification comes back as a [`RingError`].
//!
//! Owned by one thread. It knows no eventfd and no vhost-user message: `device` has those.

use std::sync::atomic::{Ordering, fence};

use super::{RingAddresses, RingError, Segment, Setup, Used, needs_event};
use crate::error::Result;
use crate::memory::{GuestMemory, Rows, Window};

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;
/// Size of a descriptor in bytes.
pub const DESC_SIZE: usize = 16;

/// What the driver remembers of a buffer that starts at a descriptor.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    /// Descriptors of the ring in use; 0 when not in flight.
    descs: u16,
    /// Bytes that the device may write.
    writable: u32,
}

/// The driver's side of a split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    size: u16,
    mask: u16,
    event_idx: bool,
    in_order: bool,
    setup: Setup,
    desc: Window,
    avail: Window,
    used: Window,
    avail_ring: Rows<2, 2>,
    used_ring: Rows<8, 4>,
    tables: Option<(u64, Window)>,
    addresses: RingAddresses,
    chains: Vec<Chain>,
    /// The shadow of each descriptor's `next`, and of the free list.
    next: Vec<u16>,
    free_head: u16,
    free: u16,
    /// Ids in flight in the order of their publication (only with `in_order`), indexed by available index.
    order: Vec<u16>,
    avail_next: u16,
    avail_published: u16,
    kicked_at: u16,
    used_next: u16,
    used_seen: u16,
    /// With `in_order`: buffers that were used, but had no element of their own, are given out until this id.
    batch_last: Option<Used>,
    order_front: u16,
    fixed: bool,
}

impl SplitQueue {
    /// Allocates a queue's areas in `memory` and initialises them.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] when there is no room, [`crate::Error::Config`] for a size that is not allowed.
    pub fn new(memory: &mut GuestMemory, setup: Setup) -> Result<Self> {
        let size = setup.checked_size()?;
        let n = u64::from(size);
        // A page each, so that the areas share no cache line, and legacy front-ends' alignment holds as well.
        let (desc_gpa, desc) = memory.alloc_window(16 * n, 4096)?;
        let (avail_gpa, avail) = memory.alloc_window(6 + 2 * n, 4096)?;
        let (used_gpa, used) = memory.alloc_window(6 + 8 * n, 4096)?;
        let tables = setup.alloc_tables(memory)?;
        let mut queue = SplitQueue {
            size,
            mask: size - 1,
            event_idx: setup.event_idx,
            in_order: setup.in_order,
            setup,
            avail_ring: Rows::new(&avail, 4, 2, usize::from(size))?,
            used_ring: Rows::new(&used, 4, 8, usize::from(size))?,
            desc,
            avail,
            used,
            tables,
            addresses: RingAddresses { desc: desc_gpa, avail: avail_gpa, used: used_gpa },
            chains: vec![Chain::default(); usize::from(size)],
            next: vec![0; usize::from(size)],
            free_head: 0,
            free: 0,
            order: vec![0; usize::from(size)],
            avail_next: 0,
            avail_published: 0,
            kicked_at: 0,
            used_next: 0,
            used_seen: 0,
            batch_last: None,
            order_front: 0,
            fixed: false,
        };
        queue.reset(setup.base);
        Ok(queue)
    }

    /// Forgets everything in flight and starts both indexes at `base`, as a driver does after a device reset.
    pub fn reset(&mut self, base: u16) {
        self.desc.fill(0, self.desc.len(), 0);
        self.avail.fill(0, self.avail.len(), 0);
        self.used.fill(0, self.used.len(), 0);
        self.chains.fill(Chain::default());
        for (i, next) in self.next.iter_mut().enumerate() {
            *next = (i as u16 + 1) & self.mask;
        }
        self.free_head = 0;
        self.free = self.size;
        self.avail_next = base;
        self.avail_published = base;
        self.kicked_at = base;
        self.used_next = base;
        self.used_seen = base;
        self.order_front = base;
        self.batch_last = None;
        self.fixed = false;
        self.avail.store_u16(2, base, Ordering::Relaxed);
        self.used.store_u16(2, base, Ordering::Relaxed);
        self.disarm();
        fence(Ordering::SeqCst);
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
        self.free
    }

    /// Buffers that were published and not yet taken back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.avail_published.wrapping_sub(self.used_next)
    }

    /// The index at which the device goes on: what `SET_VRING_BASE` of a resumed session wants.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.used.load_u16(2, Ordering::Acquire)
    }

    /// How many descriptors of the ring a buffer of `pieces` takes.
    #[must_use]
    pub fn descriptors_for(&self, pieces: usize) -> usize {
        if self.goes_indirect(pieces) { 1 } else { pieces }
    }

    fn goes_indirect(&self, pieces: usize) -> bool {
        self.setup.goes_indirect(pieces)
    }

    /// The bytes from one buffer's indirect table to the next one's.
    fn table_stride(&self) -> usize {
        usize::from(self.setup.indirect_max.max(1)) * DESC_SIZE
    }

    /// Puts a buffer into the ring, and gives its id. The device sees it at the next [`SplitQueue::publish`].
    ///
    /// # Errors
    /// [`RingError::Full`] when descriptors are lacking, or the buffer has no piece.
    pub fn add(&mut self, pieces: &[Segment]) -> std::result::Result<u16, RingError> {
        let descs = self.descriptors_for(pieces.len());
        if descs == 0 || descs > usize::from(self.free) {
            return Err(RingError::Full(pieces.len()));
        }
        let head = self.free_head;
        let writable = super::writable(pieces);
        if let (true, Some((tables_gpa, tables))) = (self.goes_indirect(pieces.len()), &self.tables) {
            self.write_indirect(head, pieces, *tables_gpa, tables);
            self.free_head = self.next[usize::from(head)];
        } else {
            let mut at = head;
            for (i, piece) in pieces.iter().enumerate() {
                let follows = self.next[usize::from(at)];
                let last = i + 1 == pieces.len();
                let offset = usize::from(at) * DESC_SIZE;
                write_desc(&self.desc, offset, piece, if last { None } else { Some(follows) });
                at = follows;
            }
            self.free_head = at;
        }
        self.free -= descs as u16;
        self.chains[usize::from(head)] = Chain { descs: descs as u16, writable };
        self.push_avail(head);
        Ok(head)
    }

    /// Writes the indirect table that belongs to descriptor `index`, and the descriptor.
    fn write_indirect(&self, index: u16, pieces: &[Segment], tables_gpa: u64, tables: &Window) {
        let base = usize::from(index) * self.table_stride();
        for (i, piece) in pieces.iter().enumerate() {
            let last = i + 1 == pieces.len();
            write_desc(tables, base + i * DESC_SIZE, piece, if last { None } else { Some(i as u16 + 1) });
        }
        let table = tables_gpa + base as u64;
        self.write_raw_desc(index, table, (pieces.len() * DESC_SIZE) as u32, DESC_F_INDIRECT, 0);
    }

    #[inline]
    fn push_avail(&mut self, head: u16) {
        let slot = self.avail_next & self.mask;
        self.avail_ring.store_u16::<0>(usize::from(slot), head, Ordering::Relaxed);
        if self.in_order {
            self.order[usize::from(slot)] = head;
        }
        self.avail_next = self.avail_next.wrapping_add(1);
    }

    fn write_raw_desc(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let offset = usize::from(index) * DESC_SIZE;
        self.desc.store_u64(offset, gpa, Ordering::Relaxed);
        self.desc.store_u64(
            offset + 8,
            u64::from(len) | (u64::from(flags) << 32) | (u64::from(next) << 48),
            Ordering::Relaxed,
        );
    }

    /// Turns the queue to *fixed* buffers: descriptor `i` describes `buffers[i]`, of one piece or by an indirect table,
    /// for good, and [`SplitQueue::add_fixed`] makes it available without writing it again. Nothing may be in flight.
    ///
    /// # Errors
    /// [`RingError::Full`] when something is in flight, there are more buffers than descriptors, or one would need a
    /// chain.
    pub fn fix(&mut self, buffers: &[Vec<Segment>]) -> std::result::Result<(), RingError> {
        let chain = buffers.iter().find(|pieces| self.descriptors_for(pieces.len()) != 1);
        if self.free != self.size || buffers.len() > usize::from(self.size) || chain.is_some() {
            return Err(RingError::Full(chain.map_or(buffers.len(), Vec::len)));
        }
        for (i, pieces) in buffers.iter().enumerate() {
            match &self.tables {
                Some((gpa, tables)) if self.goes_indirect(pieces.len()) => {
                    self.write_indirect(i as u16, pieces, *gpa, tables);
                }
                _ => write_desc(&self.desc, i * DESC_SIZE, &pieces[0], None),
            }
            self.chains[i] = Chain { descs: 0, writable: super::writable(pieces) };
        }
        self.fixed = true;
        Ok(())
    }

    /// As [`SplitQueue::fix`], of the buffers that are in flight already: each keeps its id and its descriptors.
    pub fn fix_in_flight(&mut self) {
        self.fixed = true;
    }

    /// Makes the fixed buffer `id` available. The caller owns the ids: one that is in flight already is not detected.
    #[inline]
    pub fn add_fixed(&mut self, id: u16) {
        self.chains[usize::from(id)].descs = 1;
        self.push_avail(id);
    }

    /// Lets the device see everything that was added.
    #[inline]
    pub fn publish(&mut self) {
        if self.avail_published != self.avail_next {
            // Release: the descriptors and ring entries are visible before the index that covers them.
            self.avail.store_u16(2, self.avail_next, Ordering::Release);
            self.avail_published = self.avail_next;
        }
    }

    /// Whether the device wants a notification for what was published since this was last asked.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        if self.kicked_at == self.avail_published {
            return false;
        }
        // The index must be visible before the device's wish is read (2.7.13.4.1), or both sides could sleep.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked_at, self.avail_published);
        if self.event_idx {
            let event = self.used.load_u16(4 + 8 * usize::from(self.size), Ordering::Relaxed);
            needs_event(event, self.avail_published, old)
        } else {
            self.used.load_u16(0, Ordering::Relaxed) & USED_F_NO_NOTIFY == 0
        }
    }

    /// Whether the device gave something back that was not taken yet.
    #[inline]
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.batch_last.is_some() || self.used.load_u16(2, Ordering::Acquire) != self.used_next
    }

    /// Takes the next buffer that the device gave back.
    ///
    /// # Errors
    /// What the device did that the specification does not allow. The ring is not usable afterwards.
    #[inline]
    pub fn pop_used(&mut self) -> std::result::Result<Option<Used>, RingError> {
        if let Some(last) = self.batch_last {
            return self.pop_batch(last).map(Some);
        }
        if self.used_next == self.used_seen {
            // Acquire: the elements and the buffers' contents are read after the index that covers them.
            let used = self.used.load_u16(2, Ordering::Acquire);
            if used == self.used_next {
                return Ok(None);
            }
            let in_flight = self.avail_published.wrapping_sub(self.used_next);
            if used.wrapping_sub(self.used_next) > in_flight {
                return Err(RingError::UsedIndex { used, seen: self.used_next, in_flight });
            }
            self.used_seen = used;
        }
        let slot = usize::from(self.used_next);
        let id = self.used_ring.load_u32::<0>(slot, Ordering::Relaxed);
        let len = self.used_ring.load_u32::<4>(slot, Ordering::Relaxed);
        if self.in_order {
            let in_flight = |id: &u16| self.chains.get(usize::from(*id)).is_some_and(|chain| chain.descs > 0);
            let id = u16::try_from(id).ok().filter(in_flight).ok_or(RingError::UsedId(id))?;
            return self.pop_batch(Used { id, len }).map(Some);
        }
        self.used_next = self.used_next.wrapping_add(1);
        self.take(id, Some(len)).map(Some)
    }

    /// In order, the device may write one element for several buffers, the last one's; those before it count as
    /// completely used (2.7.9).
    fn pop_batch(&mut self, last: Used) -> std::result::Result<Used, RingError> {
        if self.used_next == self.used_seen {
            return Err(RingError::UsedId(u32::from(last.id)));
        }
        let front = self.order[usize::from(self.order_front & self.mask)];
        self.order_front = self.order_front.wrapping_add(1);
        self.used_next = self.used_next.wrapping_add(1);
        if front == last.id {
            self.batch_last = None;
            self.take(u32::from(front), Some(last.len))
        } else {
            self.batch_last = Some(last);
            self.take(u32::from(front), None)
        }
    }

    /// Ends a buffer's flight. `None` for the length means: all of it was written.
    #[inline]
    fn take(&mut self, id: u32, len: Option<u32>) -> std::result::Result<Used, RingError> {
        let index = id as usize;
        let chain = match self.chains.get_mut(index) {
            Some(chain) if chain.descs > 0 => chain,
            _ => return Err(RingError::UsedId(id)),
        };
        let id = id as u16;
        let capacity = chain.writable;
        let len = len.unwrap_or(capacity);
        if len > capacity {
            return Err(RingError::UsedLen { id, len, capacity });
        }
        let descs = std::mem::take(&mut chain.descs);
        if !self.fixed {
            self.give_back(id, descs);
        }
        Ok(Used { id, len })
    }

    fn give_back(&mut self, head: u16, descs: u16) {
        if self.in_order {
            // Buffers come back in the order in which they were taken from the cycle 0, 1, … size - 1, so that the
            // free descriptors are always the ones that follow the tail: the order that 2.7.5.1 demands.
            self.free += descs;
            return;
        }
        let mut tail = head;
        for _ in 1..descs {
            tail = self.next[usize::from(tail)];
        }
        self.next[usize::from(tail)] = self.free_head;
        self.free_head = head;
        self.free += descs;
    }

    /// Asks for an interrupt at the next used buffer. Gives `true` when there is one already: then none may come.
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.avail.store_u16(4 + 2 * usize::from(self.size), self.used_next, Ordering::Relaxed);
        } else {
            self.avail.store_u16(0, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the used index is read again, or both sides could sleep.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        if self.event_idx {
            // As far ahead as an index can be: the device does not pass it before the queue is armed again.
            self.avail.store_u16(
                4 + 2 * usize::from(self.size),
                self.used_next.wrapping_sub(1),
                Ordering::Relaxed,
            );
        } else {
            self.avail.store_u16(0, AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    /// The areas as windows, for those who corrupt them on purpose.
    #[must_use]
    pub fn windows(&self) -> (Window, Window, Window) {
        (self.desc.clone(), self.avail.clone(), self.used.clone())
    }
}

#[inline]
fn write_desc(table: &Window, offset: usize, piece: &Segment, next: Option<u16>) {
    let mut flags = if piece.writable { DESC_F_WRITE } else { 0 };
    if next.is_some() {
        flags |= DESC_F_NEXT;
    }
    let next = next.unwrap_or(0);
    table.store_u64(offset, piece.gpa, Ordering::Relaxed);
    table.store_u64(
        offset + 8,
        u64::from(piece.len) | (u64::from(flags) << 32) | (u64::from(next) << 48),
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Layout;

    fn queue(setup: Setup) -> (GuestMemory, SplitQueue) {
        let mut memory = GuestMemory::new(&Layout::single(1 << 20)).unwrap();
        let queue = SplitQueue::new(&mut memory, setup).unwrap();
        (memory, queue)
    }

    /// The device's side, as far as these tests need it.
    fn use_one(q: &SplitQueue, id: u32, len: u32) {
        let (_, _, used) = q.windows();
        let idx = used.load_u16(2, Ordering::Relaxed);
        let slot = usize::from(idx & q.mask);
        used.store_u32(4 + 8 * slot, id, Ordering::Relaxed);
        used.store_u32(8 + 8 * slot, len, Ordering::Relaxed);
        used.store_u16(2, idx.wrapping_add(1), Ordering::Release);
    }

    #[test]
    fn a_chain_occupies_descriptors_until_it_is_used() {
        let (_m, mut q) = queue(Setup::new(4));
        let id =
            q.add(&[Segment::readable(0, 12), Segment::readable(64, 60), Segment::readable(128, 4)]).unwrap();
        assert_eq!(q.free_descriptors(), 1);
        assert_eq!(q.add(&[Segment::readable(0, 1); 2]), Err(RingError::Full(2)));
        assert_eq!(q.pop_used(), Ok(None));
        q.publish();
        use_one(&q, u32::from(id), 0);
        assert_eq!(q.pop_used(), Ok(Some(Used { id, len: 0 })));
        assert_eq!(q.free_descriptors(), 4);
    }

    #[test]
    fn what_the_device_may_not_do_is_an_error() {
        let (_m, mut q) = queue(Setup::new(4));
        let id = q.add(&[Segment::writable(0, 100)]).unwrap();
        q.publish();
        use_one(&q, 3, 0);
        assert_eq!(q.pop_used(), Err(RingError::UsedId(3)));
        q.reset(7);
        q.add(&[Segment::writable(0, 100)]).unwrap();
        q.publish();
        use_one(&q, u32::from(id), 101);
        assert_eq!(q.pop_used(), Err(RingError::UsedLen { id, len: 101, capacity: 100 }));
        q.reset(0);
        use_one(&q, 0, 0);
        assert!(matches!(q.pop_used(), Err(RingError::UsedIndex { .. })));
    }

    #[test]
    fn in_order_batches_of_one_element_are_expanded() {
        let (_m, mut q) = queue(Setup { in_order: true, base: 65534, ..Setup::new(4) });
        for round in 0..9u16 {
            let ids: Vec<u16> = (0..3).map(|_| q.add(&[Segment::writable(0, 50)]).unwrap()).collect();
            assert_eq!(
                ids,
                (0..3).map(|i| (round * 3 + i) % 4).collect::<Vec<_>>(),
                "descriptors go in ring order"
            );
            q.publish();
            let (_, _, used) = q.windows();
            let idx = used.load_u16(2, Ordering::Relaxed);
            let slot = usize::from(idx & 3);
            used.store_u32(4 + 8 * slot, u32::from(ids[2]), Ordering::Relaxed);
            used.store_u32(8 + 8 * slot, 7, Ordering::Relaxed);
            used.store_u16(2, idx.wrapping_add(3), Ordering::Release);
            let lens: Vec<_> = std::iter::from_fn(|| q.pop_used().unwrap()).map(|u| (u.id, u.len)).collect();
            assert_eq!(lens, [(ids[0], 50), (ids[1], 50), (ids[2], 7)]);
        }
    }

    #[test]
    fn kicks_follow_the_event_index() {
        let (_m, mut q) = queue(Setup { event_idx: true, base: 65535, ..Setup::new(8) });
        let (_, _, used) = q.windows();
        let event_at = 4 + 8 * 8;
        used.store_u16(event_at, 65535, Ordering::Relaxed);
        q.add(&[Segment::readable(0, 1)]).unwrap();
        q.publish();
        assert!(q.needs_kick());
        assert!(!q.needs_kick(), "asked once");
        q.add(&[Segment::readable(0, 1)]).unwrap();
        q.publish();
        assert!(!q.needs_kick(), "the event index was passed already");
        used.store_u16(event_at, 2, Ordering::Relaxed);
        q.add(&[Segment::readable(0, 1)]).unwrap();
        q.add(&[Segment::readable(0, 1)]).unwrap();
        q.publish();
        assert!(q.needs_kick(), "2 lies between the old index 1 and the new one 3");
    }
}
