//! A packed virtqueue that runs (virtio 1.2, 2.8), as both directions use it.
//!
//! One ring of descriptors, which driver and device write in turn, and two words by which they tell each other
//! whether they want to be woken. Owned by one thread at a time, as [`split`](super::split) is.
//!
//! A *place* is a slot of the ring and the wrap counter that holds there: bits 0 to 14 and bit 15 of a number, the form
//! in which event suppression (2.8.14) and `GET_VRING_BASE` have it too.
//!
//! Invariants:
//! - the pointers name the ring's three parts, whole, checked for range and alignment in [`PackedRing::new`],
//!   inside the memory that the ring keeps mapped. No reference is ever made to what they point at;
//! - every place of ours is made by [`PackedRing::after`] or checked, so its slot is below the ring's size, which is any
//!   number from 1 to 32,768;
//! - a descriptor is available at a place if its AVAIL flag is the wrap counter there and its USED flag is not (2.8.1).
//!   Only such a one is looked at further, and what it says is copied once, by one load for length, ID and flags
//!   and one for the address, and only the copy is used;
//! - a chain's descriptors follow one another in the ring. All of them are available when the first is (2.8.6); a chain that
//!   is not, or that is longer than the ring, breaks it. So every loop over the ring ends within one lap, and what is
//!   followed within a burst is bounded besides ([`SCAN_MAX`]);
//! - the buffer ID is the driver's: it is given back as it was, and never used as an index;
//! - buffers are used in the order in which they were made available, whether VIRTIO_F_IN_ORDER was negotiated or not. So a
//!   chain's used descriptor lies where the chain's first descriptor was, and between two bursts `next` is both the place
//!   of the next available and that of the next used descriptor;
//! - nothing is published but by one release store, of the first used descriptor of a burst: the driver looks at
//!   that place and no further (2.8.2, 2.8.9), so it sees all of a burst or nothing. After an error a burst
//!   is never published, and the ring not used again.
//!
//! **Where a ring goes on.** A split ring has the device's position in its memory, as the used index. A packed ring
//! has not, and to begin anywhere else is to read and write buffers that the guest has back already. So the device keeps
//! it where only the device writes: in the offset of its own event suppression structure, which means nothing to a
//! driver while the flags say that no kicks are wanted, and is the same number when they say where one is. What
//! the front-end tells is another claim (exact if the last back-end answered `GET_VRING_BASE`; if that
//! was killed, QEMU tells where it was last told, mostly the beginning). Once `GET_VRING_BASE` is answered, what
//! was kept is taken away: it would be an older claim. [`PackedRing::position`] holds each
//! against what the descriptors' flags allow, and where neither can be, the ring is refused: better no network until the
//! driver resets the device than a guest whose memory is written to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use datapath::PortError;
use switch_core::verdict::BURST;

use super::chain::{Buffers, CHAIN_MAX, DESCRIPTOR, Descriptor, F_NEXT, F_WRITE, read_halves};
use super::copy::prefetch;
use super::ring::Ring;
use super::{Direction, RingFeatures, RingSetup, RingShared, SetupError};
use crate::memory::GuestMemory;

/// Descriptors of chains that one burst copies before it ends; the chain that passes it is still copied.
const SCAN_MAX: usize = 1024;

const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

/// The wrap counter in a place.
const WRAP: u16 = 1 << 15;
/// Where a ring begins whose driver has just set it up.
pub(crate) const START: u16 = WRAP;

// Event suppression, the flags (2.8.14).
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const AT_DESCRIPTOR: u16 = 2;

/// A chain that was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    /// The place of its first descriptor.
    at: u16,
    /// The driver's name for it.
    id: u16,
    /// The place after its last descriptor.
    end: u16,
}

/// What is to be known of a chain of several descriptors.
#[derive(Clone, Copy)]
struct Listed {
    /// Where in `parts` its second descriptor is.
    first: u16,
    id: u16,
    end: u16,
}

/// Why a chain of several descriptors was not looked at to its end.
#[derive(Clone, Copy)]
enum Stop {
    /// The burst has seen enough.
    Later,
    NotAvailable,
    TooLong,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct PackedRing {
    descriptors: *mut u8,
    /// The driver's wish to be called.
    driver_event: *mut u32,
    /// Our wish to be kicked, and our position.
    device_event: *mut u32,
    size: u16,
    /// Flags of a used descriptor besides those that say so.
    used_flags: u16,
    /// Where the next burst begins.
    next: u16,
    /// The place of the next chain of this burst.
    cursor: u16,
    /// The used descriptor at `next`, written when the others are.
    first_used: u64,
    /// The others of this burst, with their places: written together, when all frames are copied, so that one who kills
    /// us finds us between them as seldom as can be. As many as the ring has chains at most.
    further_used: Vec<(u16, u64)>,
    /// The place after the last chain that was written as used.
    used_to: u16,
    /// What is in the flags of `device_event`.
    kicks: u16,
    direction: Direction,
    /// A whole batch of read buffers is given back by one used descriptor (2.8.8).
    in_order: bool,
    event_idx: bool,
    indirect: bool,
    /// The next publication notifies whatever the driver asked: it may have missed one of the last run's.
    force_call: bool,
    /// Descriptors of this burst's chains but for the first of each.
    parts: Vec<Descriptor>,
    /// Descriptors that were looked at for `parts`.
    scanned: usize,
    buffers: Buffers,
    shared: Arc<RingShared>,
}

// SAFETY: the pointers lie in the memory that `buffers` owns a share of; they have no thread affinity, and the
// ring is used by one thread at a time (no method that touches memory takes `&self` from several threads: the
// type is not Sync).
unsafe impl Send for PackedRing {}

impl Drop for PackedRing {
    fn drop(&mut self) {
        if self.shared.is_handed_over() {
            self.next = 0;
            self.tell();
        }
    }
}

impl PackedRing {
    /// Checks a set-up and makes a ring of it.
    pub(crate) fn new(
        setup: &RingSetup,
        direction: Direction,
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
        // Sizes and alignments of 2.8.10.1; these hold in this process too.
        let descriptors = part("descriptor ring", setup.layout.descriptors, 16 * u64::from(size), 16)?;
        let driver_event = part("driver's event suppression structure", setup.layout.available, 4, 4)?;
        let device_event = part("device's event suppression structure", setup.layout.used, 4, 4)?;
        let mut ring = Self {
            descriptors,
            driver_event: driver_event.cast(),
            device_event: device_event.cast(),
            size,
            used_flags: if direction == Direction::Writable { F_WRITE } else { 0 },
            next: START,
            cursor: START,
            first_used: 0,
            // What was read is given back without it.
            further_used: match direction {
                Direction::Writable => Vec::with_capacity(usize::from(size)),
                Direction::Readable => Vec::new(),
            },
            used_to: START,
            kicks: DISABLE,
            direction,
            in_order: features.in_order,
            event_idx: features.event_idx,
            indirect: features.indirect,
            force_call: true,
            parts: Vec::with_capacity(SCAN_MAX + CHAIN_MAX),
            scanned: 0,
            buffers: Buffers::new(memory),
            shared,
        };
        ring.next = ring.position(setup.next).ok_or(SetupError::Position)?;
        ring.shared.set_next(ring.next);
        // No kicks until the ring is armed.
        ring.refuse_kicks();
        Ok(ring)
    }

    /// Where the ring goes on; `None` if nobody knows. See the module's text.
    fn position(&self, told: Option<u32>) -> Option<u16> {
        // Bits 0 to 15 are where the available descriptors were read to, bits 16 to 31 where they were used to, which is
        // what we go on from: what was taken and not used comes again. Not every front-end tells the
        // second half; zero is what a ring that goes on with its second lap would have, and then both are.
        let told = told.map(|told| if told >> 16 == 0 { told as u16 } else { (told >> 16) as u16 });
        let kept = u32::from_le(self.device_word().load(Ordering::Relaxed)) as u16;
        // A lap with the counter at 1 leaves USED flags with its first buffer, and before it they are there of the lap
        // before, unless the ring is new. So without any the lap is such a one, and only a buffer or batch
        // that began at the ring's end can have used some of it.
        let untouched = (0..self.size).all(|slot| self.flags(slot) & F_USED == 0);
        let known = told.filter(|&told| told != START);
        let place = [known, Some(kept), told]
            .into_iter()
            .flatten()
            .find(|&place| self.is_possible(place) && !(untouched && place & WRAP == 0))
            .or(untouched.then_some(START));
        if place != told {
            tracing::debug!(
                ?told,
                kept,
                ?place,
                "the front-end's ring position is not where the ring stands"
            );
        }
        place
    }

    /// True if the flags in the ring could be what a device leaves that stands there: before it, nothing that is still
    /// used from the last lap; from it on, nothing that is used already in this one.
    fn is_possible(&self, place: u16) -> bool {
        let here = place & !WRAP;
        let used = used_flags(place);
        here < self.size
            && (0..self.size).all(|slot| {
                let wrong = if slot < here { used ^ (F_AVAIL | F_USED) } else { used };
                self.flags(slot) & (F_AVAIL | F_USED) != wrong
            })
    }

    /// The place after this one: the wrap counter changes after the last slot.
    #[inline(always)]
    fn after(&self, place: u16) -> u16 {
        if place & !WRAP == self.size - 1 { !place & WRAP } else { place + 1 }
    }

    #[inline(always)]
    fn slot(&self, place: u16) -> *mut u8 {
        // Within the ring, as each place's slot is below its size; wrapping because that is known elsewhere.
        self.descriptors.wrapping_add(DESCRIPTOR * usize::from(place & !WRAP))
    }

    /// The flags at a place, with nothing of the rest.
    #[inline(always)]
    fn flags(&self, place: u16) -> u16 {
        // SAFETY: the last two bytes of a descriptor of the ring, two-aligned.
        u16::from_le(unsafe { self.slot(place).add(14).cast::<u16>().read_volatile() })
    }

    /// Copies the descriptor at a place; its `next` is the buffer ID.
    #[inline(always)]
    fn read(&self, place: u16) -> Descriptor {
        let at = self.slot(place);
        // Acquire, and all of the second half by one load: the driver writes the flags last, with release, so who
        // sees them sees the length and the ID beside them, and by the order of loads the address.
        // SAFETY: the second half of a descriptor of the ring, which is 16-aligned; atomics may be shared with
        // the driver.
        let rest = u64::from_le(unsafe { AtomicU64::from_ptr(at.add(8).cast()) }.load(Ordering::Acquire));
        // SAFETY: the first half of it.
        let addr = u64::from_le(unsafe { at.cast::<u64>().read_volatile() });
        descriptor(addr, rest)
    }

    #[inline(always)]
    fn is_available(flags: u16, place: u16) -> bool {
        // The AVAIL flag is the counter, the USED flag is not.
        flags & (F_AVAIL | F_USED) == used_flags(place) ^ F_USED
    }

    /// Looks at a chain of several descriptors, of which the first is at `at`. Out of the way, and what it gives back fits a
    /// register: most chains are one descriptor, and are to stay in registers too.
    #[inline(never)]
    fn list(&mut self, at: u16) -> Result<Listed, Stop> {
        if self.scanned >= SCAN_MAX {
            return Err(Stop::Later);
        }
        let begin = self.parts.len();
        let mut place = self.after(at);
        for _ in 1..self.size {
            let mut part = self.read(place);
            if !Self::is_available(part.flags, place) {
                return Err(Stop::NotAvailable);
            }
            self.scanned += 1;
            place = self.after(place);
            let id = part.next;
            let listed = Listed { first: begin as u16, id, end: place };
            if self.parts.len() - begin < CHAIN_MAX {
                part.next = self.parts.len() as u16 + 1;
                self.parts.push(part);
            } else if self.direction == Direction::Writable {
                // Nothing is written into a chain as long as this, and it stays where it is: its end does not matter.
                return Ok(listed);
            }
            if part.flags & F_NEXT == 0 {
                return Ok(listed);
            }
        }
        Err(Stop::TooLong)
    }

    #[cold]
    fn stopped(&self, why: Stop) -> Result<(), PortError> {
        match why {
            Stop::Later => Ok(()),
            Stop::NotAvailable => {
                Err(self.buffers.protocol("a chain that goes on with a descriptor that is not available"))
            }
            Stop::TooLong => Err(self.buffers.protocol("a descriptor chain that is longer than the ring")),
        }
    }

    #[inline(always)]
    fn used(&self, place: u16, id: u16, len: u32) -> u64 {
        let flags = used_flags(place) | self.used_flags;
        u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
    }

    /// The half of a descriptor in which the device says that it is used.
    #[inline(always)]
    fn used_half(&self, place: u16) -> &AtomicU64 {
        // SAFETY: the second half of a descriptor of the ring, which is 16-aligned; atomics may be shared with
        // the driver.
        unsafe { AtomicU64::from_ptr(self.slot(place).add(8).cast()) }
    }

    /// Publishes what was written, with `first` at the place where the driver looks, and goes on from `end`.
    #[inline(always)]
    fn publish_to(&mut self, first: u64, end: u16) {
        let old = self.next;
        self.next = end;
        // Release: the other used descriptors, and the buffers' bytes, are there before this one says so.
        self.used_half(old).store(first.to_le(), Ordering::Release);
        // The position, for whoever comes after us.
        self.tell();
        self.shared.set_next(end);
        if self.shared.call.is_set() {
            self.notify(old, end);
        }
    }

    #[inline]
    fn notify(&mut self, old: u16, new: u16) {
        // The descriptors are published before we look whether anybody sleeps; the driver writes its wish before
        // it looks at them. Without the fence on both sides both could miss the other (virtio 1.2, 2.8.21).
        fence(Ordering::SeqCst);
        // SAFETY: the four bytes of the driver's structure, four-aligned; atomics may be shared with the driver.
        let event = u32::from_le(unsafe { AtomicU32::from_ptr(self.driver_event) }.load(Ordering::Relaxed));
        let wanted = match (event >> 16) as u16 & 3 {
            DISABLE => false,
            AT_DESCRIPTOR if self.event_idx => self.passed(event as u16, old, new),
            _ => true,
        };
        if wanted || self.force_call {
            self.force_call = false;
            self.shared.call.signal();
        }
    }

    /// True if the place was passed on the way from `old` to `new`, which is a lap at most.
    fn passed(&self, place: u16, old: u16, new: u16) -> bool {
        let size = u32::from(self.size);
        // Two laps, then the counters are as before.
        let number = |place: u16| u32::from(place & !WRAP) + if place & WRAP == 0 { 0 } else { size };
        let from_old = |place| (number(place) + 2 * size - number(old)) % (2 * size);
        from_old(place) < from_old(new)
    }

    #[inline(always)]
    fn device_word(&self) -> &AtomicU32 {
        // SAFETY: the four bytes of our structure, four-aligned; atomics may be shared with the driver.
        unsafe { AtomicU32::from_ptr(self.device_event) }
    }

    /// Writes our wish and our position.
    #[inline(always)]
    fn tell(&mut self) {
        let word = u32::from(self.next) | u32::from(self.kicks) << 16;
        self.device_word().store(word.to_le(), Ordering::Relaxed);
    }
}

impl Ring for PackedRing {
    type Chain = Chain;
    type Place = u16;

    const TABLES_ARE_LISTS: bool = false;

    #[inline(always)]
    fn begin(&mut self, most: usize) -> Result<usize, PortError> {
        self.cursor = self.next;
        self.parts.clear();
        self.scanned = 0;
        if Self::is_available(self.flags(self.next), self.next) { Ok(most.min(BURST)) } else { Ok(0) }
    }

    #[inline(always)]
    fn chain(&mut self, _i: usize) -> Result<Option<(Chain, Descriptor)>, PortError> {
        let at = self.cursor;
        if at.is_multiple_of(4) {
            // The next line; four descriptors are one.
            prefetch(self.slot(at).wrapping_add(64));
        }
        let mut first = self.read(at);
        if !Self::is_available(first.flags, at) {
            return Ok(None);
        }
        let mut chain = Chain { at, id: first.next, end: self.after(at) };
        if first.flags & F_NEXT != 0 {
            match self.list(at) {
                Ok(listed) => {
                    first.next = listed.first;
                    (chain.id, chain.end) = (listed.id, listed.end);
                }
                Err(why) => return self.stopped(why).map(|()| None),
            }
        }
        self.cursor = chain.end;
        Ok(Some((chain, first)))
    }

    fn further(&mut self, i: usize) -> Result<Option<(Chain, Descriptor)>, PortError> {
        // Who asks for more has done with the chain before.
        self.parts.clear();
        self.scanned = 0;
        self.chain(i)
    }

    #[inline(always)]
    fn place(&self) -> u16 {
        self.cursor
    }

    #[inline(always)]
    fn return_to(&mut self, place: u16) {
        self.cursor = place;
    }

    #[inline(always)]
    fn successor(&self, of: Descriptor) -> Result<Descriptor, PortError> {
        match self.parts.get(usize::from(of.next)) {
            Some(part) => Ok(*part),
            None => Err(self.buffers.protocol("a chain without an end")),
        }
    }

    #[inline(always)]
    fn write_used(&mut self, i: usize, chain: Chain, len: u32) {
        let used = self.used(chain.at, chain.id, len);
        self.used_to = chain.end;
        if i == 0 {
            self.first_used = used;
            self.further_used.clear();
        } else {
            self.further_used.push((chain.at, used));
        }
    }

    #[inline(always)]
    fn publish(&mut self, n: usize) {
        if n > 0 {
            for &(at, used) in &self.further_used {
                self.used_half(at).store(used.to_le(), Ordering::Relaxed);
            }
            self.publish_to(self.first_used, self.used_to);
        }
    }

    #[inline(always)]
    fn give_back(&mut self, chains: &[Chain]) {
        let Some(&last) = chains.last() else { return };
        if self.in_order {
            // One used descriptor for all, where the first of them was, with the ID of the last (2.8.8).
            self.publish_to(self.used(self.next, last.id, 0), last.end);
        } else {
            let mut first = 0;
            for (i, &chain) in chains.iter().enumerate() {
                let used = self.used(chain.at, chain.id, 0);
                match i {
                    0 => first = used,
                    _ => self.used_half(chain.at).store(used.to_le(), Ordering::Relaxed),
                }
            }
            self.publish_to(first, last.end);
        }
    }

    fn ask_for_kicks(&mut self) -> Result<bool, PortError> {
        self.kicks = if self.event_idx { AT_DESCRIPTOR } else { ENABLE };
        self.tell();
        // Our wish is written before we look; the driver writes its descriptors before it looks at our wish.
        fence(Ordering::SeqCst);
        Ok(Self::is_available(self.flags(self.next), self.next))
    }

    fn refuse_kicks(&mut self) {
        self.kicks = DISABLE;
        self.tell();
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
        descriptor(addr, rest)
    }
}

/// A descriptor of these halves (2.8.13); its `next` is the buffer ID.
#[inline(always)]
fn descriptor(addr: u64, rest: u64) -> Descriptor {
    Descriptor { addr, len: rest as u32, next: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
}

/// What says that a descriptor is used at a place: both flags are the wrap counter.
#[inline(always)]
fn used_flags(place: u16) -> u16 {
    if place & WRAP == 0 { 0 } else { F_AVAIL | F_USED }
}
