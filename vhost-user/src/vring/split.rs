//! A split virtqueue that runs (virtio 1.2, 2.7), as both directions use it.
//!
//! Owned by one thread at a time: a receive ring by the worker that polls it, a transmit ring by whoever holds
//! its lock.
//!
//! Invariants:
//! - the pointers name the ring's three parts, whole, checked for range and alignment in [`SplitRing::new`],
//!   inside `memory`, which the ring keeps mapped. No reference is ever made to what they point at;
//! - what the driver writes (descriptors, available ring) is read once, by volatile or atomic loads, and only
//!   the copy is used; every index that comes out of it is checked against the ring's size;
//! - `next_used` and `next_avail` are ours alone: what the driver writes into the used ring changes nothing;
//! - loops over guest data end after at most [`CHAIN_MAX`] descriptors.
//!
//! Buffers are used in the order they were made available, so that `VIRTIO_F_IN_ORDER` holds by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use datapath::PortError;
use datapath::burst::FRAME_SEGMENTS;

use super::copy::prefetch;
use super::{RingFeatures, RingSetup, RingShared, SPLIT_SIZE_MAX, SetupError};
use crate::memory::{GuestMemory, Window, sigbus};

/// Descriptors of one chain that are followed. A longer chain is no error of the driver's if the ring is large
/// enough, but its frame is dropped.
pub(super) const CHAIN_MAX: usize = FRAME_SEGMENTS + 2;
/// Pieces that a chain's bytes can be in: some descriptors may cross from region to region.
pub(super) const PIECES_MAX: usize = CHAIN_MAX + 6;

const F_NEXT: u16 = 1;
pub(super) const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
/// Available ring: the driver wants no call.
const NO_INTERRUPT: u16 = 1;
/// Used ring: the device wants no kick.
const NO_NOTIFY: u16 = 1;

const DESCRIPTOR: usize = 16;

/// A descriptor, copied out of the ring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// True if the descriptor is a chain of its own, of a buffer that the device reads.
    #[inline(always)]
    pub(super) fn is_single_readable(&self) -> bool {
        self.flags & (F_NEXT | F_WRITE | F_INDIRECT) == 0
    }

    /// True if the descriptor is a chain of its own, of a buffer that the device writes.
    #[inline(always)]
    pub(super) fn is_single_writable(&self) -> bool {
        self.flags & (F_NEXT | F_WRITE | F_INDIRECT) == F_WRITE
    }

    /// True if a readable buffer follows this readable one in the ring's own table.
    #[inline(always)]
    pub(super) fn is_first_readable(&self) -> bool {
        self.flags & (F_NEXT | F_WRITE | F_INDIRECT) == F_NEXT
    }
}

/// A part of a chain that is contiguous in this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) ptr: *mut u8,
    pub(super) len: u32,
}

/// How following a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// All of it is in the pieces.
    Whole,
    /// It has more than [`CHAIN_MAX`] descriptors or [`PIECES_MAX`] pieces.
    TooLong,
}

#[repr(C, packed)]
struct Unaligned<T>(T);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct SplitRing {
    descriptors: *const u8,
    available: *mut u8,
    used: *mut u8,
    size: u16,
    mask: u16,
    /// The available entry to be taken next.
    pub(super) next_avail: u16,
    /// The used entry to be written next.
    next_used: u16,
    /// Notifications by index instead of by flag.
    event_idx: bool,
    indirect: bool,
    /// The next publication notifies whatever the driver asked: it may have missed one of the last run's.
    force_call: bool,
    window: Window,
    faults_seen: u64,
    memory: Arc<GuestMemory>,
    pub(super) shared: Arc<RingShared>,
}

// SAFETY: the pointers lie in `memory`, which the ring owns a share of; they have no thread affinity, and the
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
        if !setup.size.is_power_of_two() || setup.size > SPLIT_SIZE_MAX {
            return Err(SetupError::Size(setup.size));
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
        let features = RingFeatures::new(setup.features);
        let mut ring = Self {
            descriptors,
            available,
            used,
            size,
            mask: size - 1,
            next_avail: 0,
            next_used: 0,
            event_idx: features.event_idx,
            indirect: features.indirect,
            force_call: true,
            window: Window::NONE,
            faults_seen: sigbus::faults(),
            memory,
            shared,
        };
        // The used index in the ring's memory is what the driver has seen. No buffer is ever kept over a stop,
        // so the available index to go on from is the same number; a front-end that lost it (we were
        // killed) may tell another one, or none.
        ring.next_used = ring.used_idx().load(Ordering::Acquire);
        ring.next_avail = ring.next_used;
        if let Some(next) = setup.next.filter(|&next| next != ring.next_used) {
            tracing::debug!(
                told = next,
                used = ring.next_used,
                "the front-end's ring index is not the used index, which counts"
            );
        }
        ring.shared.set_next(ring.next_avail);
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
    pub(super) fn available(&self) -> Result<u16, PortError> {
        let ready = self.avail_idx().load(Ordering::Acquire).wrapping_sub(self.next_avail);
        if ready > self.size {
            return Err(self.protocol("the available index moved by more than the ring's size"));
        }
        Ok(ready)
    }

    /// The head of the chain `ahead` entries after the next one.
    #[inline(always)]
    pub(super) fn head(&self, ahead: u16) -> Result<u16, PortError> {
        let at = usize::from(self.next_avail.wrapping_add(ahead) & self.mask);
        // SAFETY: at < size, so the entry is within the available ring; two-aligned.
        let head = u16::from_le(unsafe { self.available.add(4 + 2 * at).cast::<u16>().read_volatile() });
        if head >= self.size {
            return Err(self.protocol("an available entry names no descriptor"));
        }
        Ok(head)
    }

    /// Asks for a descriptor's line.
    #[inline(always)]
    pub(super) fn prefetch_descriptor(&self, index: u16) {
        prefetch(self.descriptors.wrapping_add(DESCRIPTOR * usize::from(index)));
    }

    /// Copies a descriptor of the ring's own table. The index was checked by [`SplitRing::head`] or
    /// [`SplitRing::next`].
    #[inline(always)]
    pub(super) fn descriptor(&self, index: u16) -> Descriptor {
        let at = usize::from(index & self.mask);
        // SAFETY: at < size, so the descriptor is within the table.
        unsafe { read_descriptor(self.descriptors.add(DESCRIPTOR * at)) }
    }

    /// The descriptor that follows in the ring's own table.
    #[inline(always)]
    pub(super) fn next(&self, of: Descriptor) -> Result<Descriptor, PortError> {
        if of.next >= self.size {
            return Err(self.protocol("a descriptor's successor is outside the ring"));
        }
        Ok(self.descriptor(of.next))
    }

    /// Where a buffer is, if it is contiguous in this process.
    #[inline(always)]
    pub(super) fn contiguous(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        match self.window.get(addr, len) {
            Some(ptr) => Some(ptr),
            None => self.other_window(addr, len),
        }
    }

    #[cold]
    fn other_window(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        let window = self.memory.window(addr)?;
        self.window = window;
        window.get(addr, len)
    }

    /// Appends where a buffer is, in as many pieces as it crosses regions. False if there is no room for them.
    fn translate(&mut self, mut addr: u64, mut len: u32, pieces: &mut Vec<Piece>) -> Result<bool, PortError> {
        if let Some(ptr) = self.contiguous(addr, len) {
            pieces.push(Piece { ptr, len });
            return Ok(pieces.len() < PIECES_MAX);
        }
        loop {
            let outside = "a descriptor points outside the memory that the front-end shares";
            let Some(window) = self.memory.window(addr) else { return Err(self.protocol(outside)) };
            let here = u32::try_from(window.rest(addr)).unwrap_or(u32::MAX).min(len);
            let Some(ptr) = window.get(addr, here) else { return Err(self.protocol(outside)) };
            pieces.push(Piece { ptr, len: here });
            if pieces.len() >= PIECES_MAX {
                return Ok(false);
            }
            len -= here;
            if len == 0 {
                return Ok(true);
            }
            let Some(next) = addr.checked_add(u64::from(here)) else { return Err(self.protocol(outside)) };
            addr = next;
        }
    }

    /// Follows the chain that begins with `first` (virtio 1.2, 2.7.5) and appends where its bytes are. `writable`
    /// is what all of it must be. `budget` is lowered by each descriptor read.
    pub(super) fn walk(
        &mut self,
        first: Descriptor,
        writable: bool,
        pieces: &mut Vec<Piece>,
        budget: &mut usize,
    ) -> Result<Walk, PortError> {
        let mut table: Option<(u64, u32)> = None;
        let mut limit = u32::from(self.size);
        let mut followed = 0u32;
        let mut descriptor = first;
        for _ in 0..CHAIN_MAX {
            *budget = budget.saturating_sub(1);
            if descriptor.flags & F_INDIRECT != 0 {
                let (addr, len) = (descriptor.addr, descriptor.len);
                if !self.indirect || table.is_some() || descriptor.flags & F_NEXT != 0 {
                    return Err(self.protocol("an indirect descriptor where none may be"));
                }
                if len == 0 || !(len as usize).is_multiple_of(DESCRIPTOR) {
                    return Err(self.protocol("an indirect table whose length is no multiple of 16"));
                }
                limit = len / DESCRIPTOR as u32;
                table = Some((addr, limit));
                followed = 0;
                descriptor = self.indirect(addr, 0)?;
                continue;
            }
            if (descriptor.flags & F_WRITE != 0) != writable {
                return Err(self.protocol("a buffer of the wrong direction"));
            }
            if !self.translate(descriptor.addr, descriptor.len, pieces)? {
                return Ok(Walk::TooLong);
            }
            if descriptor.flags & F_NEXT == 0 {
                return Ok(Walk::Whole);
            }
            followed += 1;
            if followed >= limit {
                return Err(self.protocol("a descriptor chain that is longer than its table"));
            }
            descriptor = match table {
                None => self.next(descriptor)?,
                Some((addr, count)) => {
                    if u32::from(descriptor.next) >= count {
                        return Err(self.protocol("a descriptor's successor is outside its table"));
                    }
                    self.indirect(addr, descriptor.next)?
                }
            };
        }
        Ok(Walk::TooLong)
    }

    /// Copies a descriptor of an indirect table.
    fn indirect(&mut self, table: u64, index: u16) -> Result<Descriptor, PortError> {
        let at = table.checked_add(DESCRIPTOR as u64 * u64::from(index));
        match at.and_then(|at| self.contiguous(at, DESCRIPTOR as u32)) {
            // SAFETY: 16 bytes from there are in the guest's memory.
            Some(ptr) => Ok(unsafe { read_descriptor(ptr) }),
            None => Err(self.protocol("an indirect table outside the memory that the front-end shares")),
        }
    }

    /// Writes the used entry `ahead` places after the last published one. At most as many as there were available
    /// entries, before they are published together.
    #[inline(always)]
    pub(super) fn write_used(&mut self, ahead: u16, head: u16, len: u32) {
        let at = usize::from(self.next_used.wrapping_add(ahead) & self.mask);
        let entry = u64::from(head) | u64::from(len) << 32;
        // SAFETY: at < size, so the entry is within the used ring; entries are only four-aligned.
        unsafe {
            self.used.add(4 + 8 * at).cast::<Unaligned<u64>>().write_volatile(Unaligned(entry.to_le()))
        };
    }

    /// Publishes `n` used entries with one store, and notifies the driver at most once, if it wants to be.
    #[inline(always)]
    pub(super) fn publish(&mut self, n: u16) {
        if n == 0 {
            return;
        }
        let old = self.next_used;
        let new = old.wrapping_add(n);
        self.next_used = new;
        // Release: the entries, and the buffers' bytes, are there before the index says so.
        self.used_idx().store(new.to_le(), Ordering::Release);
        self.shared.set_next(self.next_avail);
        if self.shared.call.is_set() {
            self.notify(old, new);
        }
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

    /// Asks for kicks, then looks once more. True if there is work already.
    pub(super) fn ask_for_kicks(&mut self) -> Result<bool, PortError> {
        if self.event_idx {
            // SAFETY: the two bytes that end the used ring (the range checked in `new` holds them).
            unsafe {
                self.used
                    .add(4 + 8 * usize::from(self.size))
                    .cast::<u16>()
                    .write_volatile(self.next_avail.to_le());
            }
        } else {
            self.set_no_notify(false);
        }
        // Our wish is written before we look; the driver moves its index before it looks at our wish.
        fence(Ordering::SeqCst);
        Ok(self.available()? > 0)
    }

    /// Asks for no more kicks. With event indices nothing is to be done: the index asked for has passed.
    pub(super) fn refuse_kicks(&mut self) {
        self.set_no_notify(true);
    }

    /// Fails once the memory behind the ring was lost. One load of a number that hardly ever changes.
    #[inline(always)]
    pub(super) fn check_memory(&mut self) -> Result<(), PortError> {
        let faults = sigbus::faults();
        if faults != self.faults_seen { self.look_at_memory(faults) } else { Ok(()) }
    }

    #[cold]
    fn look_at_memory(&mut self, faults: u64) -> Result<(), PortError> {
        if self.memory.poisoned() {
            return Err(lost());
        }
        self.faults_seen = faults;
        Ok(())
    }

    /// The driver broke the rules; or its memory is gone, and what was read were the zeros in its place.
    #[cold]
    pub(super) fn protocol(&self, why: &'static str) -> PortError {
        if self.memory.poisoned() { lost() } else { PortError::Protocol(why) }
    }
}

#[cold]
fn lost() -> PortError {
    PortError::Memory("its file was truncated, or has no page to give")
}

/// # Safety
/// 16 bytes from `at` must be readable guest memory.
#[inline(always)]
unsafe fn read_descriptor(at: *const u8) -> Descriptor {
    // SAFETY: the caller's promise. Volatile: each half is read once, whatever the driver does meanwhile.
    let (addr, rest) = unsafe {
        let Unaligned(addr) = at.cast::<Unaligned<u64>>().read_volatile();
        let Unaligned(rest) = at.add(8).cast::<Unaligned<u64>>().read_volatile();
        (u64::from_le(addr), u64::from_le(rest))
    };
    Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
}

/// True if the index that the other side asked to hear of was passed (virtio 1.2, 2.7.10.1).
#[inline(always)]
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
