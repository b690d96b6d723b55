//! A split virtqueue that runs (virtio 1.2, 2.7), as both directions use it.
//!
//! Owned by one thread at a time: a receive ring by the worker that polls it, a transmit ring by whoever holds
//! its lock.
//!
//! Invariants:
//! - the pointers name the ring's three parts, whole, checked for range and alignment in [`SplitRing::new`],
//!   inside the memory that the ring keeps mapped. No reference is ever made to what they point at;
//! - what the driver writes (descriptors, available ring) is read once, by volatile or atomic loads, and only
//!   the copy is used; every index that comes out of it is checked against the ring's size;
//! - `next` is ours alone: what the driver writes into the used ring changes nothing;
//! - loops over guest data end after at most [`CHAIN_MAX`](super::chain::CHAIN_MAX) descriptors.
//!
//! Buffers are used in the order they were made available, so that `VIRTIO_F_IN_ORDER` holds by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use datapath::PortError;
use switch_core::verdict::BURST;

use super::chain::{Buffers, DESCRIPTOR, Descriptor, Unaligned, read_halves};
use super::copy::prefetch;
use super::ring::Ring;
use super::{RingFeatures, RingSetup, RingShared, SetupError};
use crate::memory::GuestMemory;

/// Available ring: the driver wants no call.
const NO_INTERRUPT: u16 = 1;
/// Used ring: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct SplitRing {
    descriptors: *const u8,
    available: *mut u8,
    used: *mut u8,
    size: u16,
    mask: u16,
    /// The available entry to be taken next, and the used entry to be written next: the same number, as each burst
    /// gives back what it took.
    next: u16,
    /// Available entries that this burst saw.
    ready: u16,
    /// The first of them.
    heads: [u16; BURST],
    /// Notifications by index instead of by flag.
    event_idx: bool,
    indirect: bool,
    /// The next publication notifies whatever the driver asked: it may have missed one of the last run's.
    force_call: bool,
    buffers: Buffers,
    shared: Arc<RingShared>,
}

// SAFETY: the pointers lie in the memory that `buffers` owns a share of; they have no thread affinity, and the
// ring is used by one thread at a time (no method that touches memory takes `&self` from several threads: the
// type is not Sync).
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Checks a set-up and makes a ring of it.
    pub(crate) fn new(
        setup: &RingSetup,
        memory: Arc<GuestMemory>,
        shared: Arc<RingShared>,
    ) -> Result<Self, SetupError> {
        let features = RingFeatures::new(setup.features);
        if let Some(error) = SetupError::of_size(setup.size, &features) {
            return Err(error);
        }
        // At most 32,768.
        let size = setup.size as u16;
        let part = |name, user, len: u64, align: usize| {
            let ptr = memory.user_range(user, len).ok_or(SetupError::Outside(name))?;
            if ptr.addr() % align == 0 { Ok(ptr) } else { Err(SetupError::Unaligned(name)) }
        };
        let n = u64::from(size);
        // Sizes with the event indices that end both rings; alignments are those of 2.7 and hold in this
        // process too.
        let descriptors = part("descriptor table", setup.layout.descriptors, 16 * n, 16)?;
        let available = part("available ring", setup.layout.available, 6 + 2 * n, 2)?;
        let used = part("used ring", setup.layout.used, 6 + 8 * n, 4)?;
        let mut ring = Self {
            descriptors,
            available,
            used,
            size,
            mask: size - 1,
            next: 0,
            ready: 0,
            heads: [0; BURST],
            event_idx: features.event_idx,
            indirect: features.indirect,
            force_call: true,
            buffers: Buffers::new(memory),
            shared,
        };
        // The used index in the ring's memory is what the driver has seen. No buffer is ever kept over a stop,
        // so the available index to go on from is the same number; a front-end that lost it (we were
        // killed) may tell another one, or none.
        ring.next = ring.used_idx().load(Ordering::Acquire);
        if let Some(next) = setup.next.filter(|&next| next != u32::from(ring.next)) {
            tracing::debug!(
                told = next,
                used = ring.next,
                "the front-end's ring index is not the used index, which counts"
            );
        }
        ring.shared.set_next(ring.next);
        // No kicks until the ring is armed.
        ring.set_no_notify(true);
        Ok(ring)
    }

    #[inline(always)]
    fn avail_idx(&self) -> &AtomicU16 {
        // SAFETY: bytes 2 and 3 of the available ring, two-aligned; atomics may be shared with the driver.
        unsafe { AtomicU16::from_ptr(self.available.add(2).cast()) }
    }

    #[inline(always)]
    fn used_idx(&self) -> &AtomicU16 {
        // SAFETY: bytes 2 and 3 of the used ring, four-aligned; atomics may be shared with the driver.
        unsafe { AtomicU16::from_ptr(self.used.add(2).cast()) }
    }

    /// Available entries that were not taken yet. One acquire load: what the driver wrote before it moved the
    /// index is seen.
    #[inline(always)]
    fn available(&self) -> Result<u16, PortError> {
        let ready = self.avail_idx().load(Ordering::Acquire).wrapping_sub(self.next);
        if ready > self.size {
            return Err(self.buffers.protocol("the available index moved by more than the ring's size"));
        }
        Ok(ready)
    }

    /// The head of the chain `ahead` entries after the next one.
    #[inline(always)]
    fn head(&self, ahead: u16) -> Result<u16, PortError> {
        let at = usize::from(self.next.wrapping_add(ahead) & self.mask);
        // SAFETY: at < size, so the entry is within the available ring; two-aligned.
        let head = u16::from_le(unsafe { self.available.add(4 + 2 * at).cast::<u16>().read_volatile() });
        if head >= self.size {
            return Err(self.buffers.protocol("an available entry names no descriptor"));
        }
        Ok(head)
    }

    /// Copies a descriptor of the ring's own table. The index was checked by [`SplitRing::head`] or
    /// [`Ring::successor`].
    #[inline(always)]
    fn descriptor(&self, index: u16) -> Descriptor {
        let at = usize::from(index & self.mask);
        // SAFETY: at < size, so the descriptor is within the table.
        unsafe { Self::read_descriptor(self.descriptors.add(DESCRIPTOR * at)) }
    }

    #[inline]
    fn notify(&mut self, old: u16, new: u16) {
        // The index is published before we look whether anybody sleeps; the driver writes its wish before it
        // looks at the index. Without the fence on both sides both could miss the other (virtio 1.2, 2.7.13.3).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            need_event(self.used_event(), new, old)
        } else {
            self.avail_flags() & NO_INTERRUPT == 0
        };
        if wanted || self.force_call {
            self.force_call = false;
            self.shared.call.signal();
        }
    }

    #[inline(always)]
    fn avail_flags(&self) -> u16 {
        // SAFETY: the first two bytes of the available ring, two-aligned.
        u16::from_le(unsafe { self.available.cast::<u16>().read_volatile() })
    }

    #[inline(always)]
    fn used_event(&self) -> u16 {
        // SAFETY: the two bytes that end the available ring (the range checked in `new` holds them).
        u16::from_le(unsafe {
            self.available.add(4 + 2 * usize::from(self.size)).cast::<u16>().read_volatile()
        })
    }

    /// Tells the driver, by the flag, whether kicks are wanted. With event indices the flag stays clear.
    fn set_no_notify(&mut self, no: bool) {
        let flags = if no && !self.event_idx { NO_NOTIFY } else { 0 };
        // SAFETY: the first two bytes of the used ring, four-aligned.
        unsafe { self.used.cast::<u16>().write_volatile(flags.to_le()) };
    }
}

impl Ring for SplitRing {
    /// Its head's index.
    type Chain = u16;
    /// Chains are asked for by number.
    type Place = ();

    const TABLES_ARE_LISTS: bool = true;

    #[inline(always)]
    fn begin(&mut self, most: usize) -> Result<usize, PortError> {
        self.ready = self.available()?;
        let n = usize::from(self.ready).min(most).min(BURST);
        for i in 0..n {
            let head = self.head(i as u16)?;
            prefetch(self.descriptors.wrapping_add(DESCRIPTOR * usize::from(head)));
            self.heads[i] = head;
        }
        Ok(n)
    }

    #[inline(always)]
    fn chain(&mut self, i: usize) -> Result<Option<(u16, Descriptor)>, PortError> {
        let head = self.heads[i % BURST];
        Ok(Some((head, self.descriptor(head))))
    }

    fn further(&mut self, i: usize) -> Result<Option<(u16, Descriptor)>, PortError> {
        if i >= usize::from(self.ready) {
            return Ok(None);
        }
        let head = self.head(i as u16)?;
        Ok(Some((head, self.descriptor(head))))
    }

    #[inline(always)]
    fn place(&self) {}

    #[inline(always)]
    fn return_to(&mut self, (): ()) {}

    #[inline(always)]
    fn successor(&self, of: Descriptor) -> Result<Descriptor, PortError> {
        if of.next >= self.size {
            return Err(self.buffers.protocol("a descriptor's successor is outside the ring"));
        }
        Ok(self.descriptor(of.next))
    }

    #[inline(always)]
    fn write_used(&mut self, i: usize, head: u16, len: u32) {
        let at = usize::from(self.next.wrapping_add(i as u16) & self.mask);
        let entry = u64::from(head) | u64::from(len) << 32;
        // SAFETY: at < size, so the entry is within the used ring; entries are only four-aligned.
        unsafe {
            self.used.add(4 + 8 * at).cast::<Unaligned<u64>>().write_volatile(Unaligned(entry.to_le()))
        };
    }

    #[inline(always)]
    fn publish(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let old = self.next;
        // At most the ring's size, which fits.
        let new = old.wrapping_add(n as u16);
        self.next = new;
        // Release: the entries, and the buffers' bytes, are there before the index says so.
        self.used_idx().store(new.to_le(), Ordering::Release);
        self.shared.set_next(new);
        if self.shared.call.is_set() {
            self.notify(old, new);
        }
    }

    #[inline(always)]
    fn give_back(&mut self, chains: &[u16]) {
        for (i, &head) in chains.iter().enumerate() {
            self.write_used(i, head, 0);
        }
        self.publish(chains.len());
    }

    fn ask_for_kicks(&mut self) -> Result<bool, PortError> {
        if self.event_idx {
            // SAFETY: the two bytes that end the used ring (the range checked in `new` holds them).
            unsafe {
                self.used.add(4 + 8 * usize::from(self.size)).cast::<u16>().write_volatile(self.next.to_le());
            }
        } else {
            self.set_no_notify(false);
        }
        // Our wish is written before we look; the driver moves its index before it looks at our wish.
        fence(Ordering::SeqCst);
        Ok(self.available()? > 0)
    }

    /// With event indices nothing is to be done: the index asked for has passed.
    fn refuse_kicks(&mut self) {
        self.set_no_notify(true);
    }

    #[inline(always)]
    fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn has_indirect(&self) -> bool {
        self.indirect
    }

    fn shared(&self) -> &RingShared {
        &self.shared
    }

    #[inline(always)]
    unsafe fn read_descriptor(at: *const u8) -> Descriptor {
        // SAFETY: the caller's promise.
        let (addr, rest) = unsafe { read_halves(at) };
        Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// True if the index that the other side asked to hear of was passed (virtio 1.2, 2.7.10.1).
#[inline(always)]
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
