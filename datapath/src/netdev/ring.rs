//! A receive ring that the kernel fills: `TPACKET_V2` (packet_mmap.rst).
//!
//! The ring is an array of slots in memory shared with the kernel. A slot is the kernel's or ours; its status
//! word says whose, and is the only thing that both write. The kernel fills a slot and then sets the word
//! with a barrier in between; we read the word with acquire before anything else of the slot, and give the
//! slot back with release after everything else.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use switch_core::verdict::BURST;
use switch_core::virtio_net::{HEADER_LEN, LEGACY_HEADER_LEN};

use crate::memory::Segment;

/// Bytes of a ring, about: what comes in while the worker is elsewhere, and no more than stays in cache.
const RING_BYTES: usize = 2 << 20;
/// Slots of a ring, at least and at most.
const SLOTS: std::ops::RangeInclusive<usize> = 128..=1024;
// A burst that took the whole ring could not be told from an empty one when it is given back.
const _: () = assert!(*SLOTS.start() > BURST);
/// Bytes of a slot at most: the frames of an MTU beyond come as super-frames do.
const SLOT_MAX: usize = 16 << 10;
/// Bytes of a block, of which the ring is made: the unit of the kernel's allocation.
const BLOCK: usize = 64 << 10;

/// How large the slots are, and how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    slot: usize,
    per_block: usize,
    blocks: usize,
}

impl Shape {
    /// For frames of up to `frame` bytes.
    pub(super) fn new(frame: usize) -> Self {
        // What the kernel puts before the frame: its header and the address, then the virtio-net header, such
        // that the network header is aligned; the Ethernet header is in the frame.
        let before =
            (libc::TPACKET2_HDRLEN + 16).next_multiple_of(libc::TPACKET_ALIGNMENT) + LEGACY_HEADER_LEN;
        // An odd number of cache lines, so that the slots' beginnings spread over all sets of the cache.
        let lines = (before + frame).min(SLOT_MAX).div_ceil(64) | 1;
        let slot = lines * 64;
        let slots = (RING_BYTES / slot).clamp(*SLOTS.start(), *SLOTS.end());
        let per_block = BLOCK / slot;
        Self { slot, per_block, blocks: slots.div_ceil(per_block) }
    }

    pub(super) fn request(self) -> libc::tpacket_req {
        libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: self.blocks as u32,
            tp_frame_size: self.slot as u32,
            tp_frame_nr: self.slots() as u32,
        }
    }

    fn slots(self) -> usize {
        self.per_block * self.blocks
    }
}

/// A mapped ring. Owned by the receive queue; stays mapped after the socket is closed.
pub(super) struct Ring {
    base: NonNull<u8>,
    shape: Shape,
}

// SAFETY: the mapping belongs to this value alone on our side, and nothing about it is bound to a thread.
unsafe impl Send for Ring {}

/// What the kernel says of a slot that is ours.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// `TP_STATUS_*`.
    pub(super) status: u32,
    /// Bytes of the frame as it came.
    pub(super) frame_len: usize,
    /// Bytes of it in the slot.
    pub(super) captured: usize,
    /// Where they begin.
    start: usize,
    /// Which slot.
    at: usize,
    /// The VLAN tag that the kernel took off the frame.
    pub(super) tag: Option<[u8; 4]>,
}

impl Ring {
    /// Maps the ring that was set up at the socket.
    pub(super) fn map(fd: &OwnedFd, shape: Shape) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice, of the size that the ring was made with.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), shape.blocks * BLOCK, protection, flags, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, shape })
    }

    /// The slot after slot `i`.
    #[inline]
    pub(super) fn after(&self, i: usize) -> usize {
        if i + 1 == self.shape.slots() { 0 } else { i + 1 }
    }

    /// Where slot `i` begins, from the mapping's beginning.
    #[inline]
    fn offset(&self, i: usize) -> usize {
        (i / self.shape.per_block) * BLOCK + (i % self.shape.per_block) * self.shape.slot
    }

    #[inline]
    fn status(&self, i: usize) -> &AtomicU32 {
        debug_assert!(i < self.shape.slots());
        // SAFETY: `i` came from `after`, so the slot is in the mapping. The status is its first word, aligned,
        // and kernel and we access it only as a whole.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(self.offset(i)).cast()) }
    }

    /// Slot `i`, if the kernel has filled it.
    #[inline]
    pub(super) fn get(&self, i: usize) -> Option<Slot> {
        let status = self.status(i).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let offset = self.offset(i);
        // SAFETY: the slot's header is within the mapping and aligned (slots are multiples of 64 bytes); it is
        // ours, as the status says, so nobody writes to it.
        let header = unsafe { ptr::read(self.base.as_ptr().add(offset).cast::<libc::tpacket2_hdr>()) };
        let start = usize::from(header.tp_mac).min(self.shape.slot);
        let tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let tpid =
                if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { header.tp_vlan_tpid } else { 0x8100 };
            let ([a, b], [c, d]) = (tpid.to_be_bytes(), header.tp_vlan_tci.to_be_bytes());
            [a, b, c, d]
        });
        Some(Slot {
            status,
            frame_len: header.tp_len as usize,
            captured: (header.tp_snaplen as usize).min(self.shape.slot - start),
            start,
            at: offset,
            tag,
        })
    }

    /// True if the kernel has filled slot `i`.
    #[inline]
    pub(super) fn is_filled(&self, i: usize) -> bool {
        self.status(i).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// The virtio-net header of the frame in the slot.
    #[inline]
    pub(super) fn vnet(&self, slot: &Slot) -> [u8; HEADER_LEN] {
        let mut vnet = [0; HEADER_LEN];
        if let Some(start) = slot.start.checked_sub(LEGACY_HEADER_LEN) {
            self.segment(slot.at + start, LEGACY_HEADER_LEN).read(&mut vnet);
        }
        vnet
    }

    /// The captured bytes of the frame.
    #[inline]
    pub(super) fn frame(&self, slot: &Slot) -> Segment {
        self.segment(slot.at + slot.start, slot.captured)
    }

    #[inline]
    fn segment(&self, at: usize, len: usize) -> Segment {
        // SAFETY: `get` cut the range to its slot, which is in the mapping, and the slot stays ours until
        // `give_back`, which the queue calls when it is released.
        unsafe { Segment::new(self.base.as_ptr().add(at), len as u32) }
    }

    /// Gives slot `i` back to the kernel.
    #[inline]
    pub(super) fn give_back(&self, i: usize) {
        self.status(i).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with the same size, and unmapped only here.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.shape.blocks * BLOCK) };
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("shape", &self.shape).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_the_frames_of_every_mtu_and_blocks_hold_whole_slots() {
        for mtu in [68, 576, 1500, 1504, 4000, 9000, 9216, 16_000, 65_521, 65_535] {
            let shape = Shape::new(mtu + 22);
            assert!(shape.slot >= (80 + 10 + mtu + 22).min(SLOT_MAX), "{mtu}: {shape:?}");
            assert!(shape.slot % 128 == 64, "{mtu}: {shape:?}");
            assert!(shape.per_block >= 1 && shape.per_block * shape.slot <= BLOCK, "{mtu}: {shape:?}");
            assert!((128..1024 + shape.per_block).contains(&shape.slots()), "{mtu}: {shape:?}");
            assert!(shape.blocks * BLOCK <= 4 << 20, "{mtu}: {shape:?}");
        }
    }
}
