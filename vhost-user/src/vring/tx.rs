//! A guest's receive queue: into it the switch transmits.
//!
//! Used by whoever holds its lock (`port::TxSide`), for the length of one bucket. Buffers are looked up in
//! passes, as in [`rx`](super::rx); a frame's head goes out with its virtio-net header in one copy, its tail
//! straight from where the sender has it. Nothing is published before the end of the bucket, so that a ring
//! that breaks in the middle has taken nothing.
//!
//! What a guest can make us do for a frame is bounded: [`MERGE_MAX`] buffers are looked at, and
//! once a frame did not fit, the bucket's frames that are as long are not tried.

use datapath::burst::Frame;
use datapath::port::TxReport;
use datapath::{Bucket, PortError, Segment};
use switch_core::offload::{Checksum, Offload, OffloadSet};
use switch_core::verdict::BURST;
use switch_core::virtio_net::{self, HEADER_LEN};

use super::RingFeatures;
use super::copy::{prefetch_write, short};
use super::split::{PIECES_MAX, Piece, SplitRing, Walk};

/// Buffers that one frame may be spread over. A frame of 64 KB takes 43 of 1,536 bytes.
const MERGE_MAX: usize = 64;
/// Descriptors that one frame's buffers may have.
const WALK_BUDGET: usize = 1024;

/// A buffer of one descriptor, found ahead; `len` 0 for those of other shapes.
#[derive(Clone, Copy)]
struct Ahead {
    ptr: *mut u8,
    len: u32,
    head: u16,
}

/// Why a frame was not put into the ring.
enum Refused {
    /// No buffers left.
    Full,
    /// The buffers there are too small.
    Small,
}

/// See the module's text.
pub(crate) struct TxRing {
    ring: SplitRing,
    header_len: usize,
    mergeable: bool,
    offloads: OffloadSet,
    pieces: Vec<Piece>,
    /// Chains of one frame: head and capacity.
    chains: Vec<(u16, u64)>,
    broken: bool,
}

// SAFETY: the pieces are scratch space, empty of meaning between calls; the rest is Send.
unsafe impl Send for TxRing {}

impl TxRing {
    pub(crate) fn new(ring: SplitRing, features: &RingFeatures) -> Self {
        Self {
            ring,
            header_len: features.header_len,
            mergeable: features.mergeable,
            offloads: features.to_driver,
            pieces: Vec::with_capacity(PIECES_MAX),
            chains: Vec::with_capacity(MERGE_MAX),
            broken: false,
        }
    }

    /// Transmits what fits. After an error the ring takes nothing more.
    pub(crate) fn transmit(&mut self, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        if self.broken {
            return Ok(TxReport::all_down(frames.len()));
        }
        self.fill(frames).inspect_err(|_| self.broken = true)
    }

    #[inline]
    fn fill(&mut self, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        self.ring.check_memory()?;
        let mut report = TxReport::default();
        let count = frames.len().min(BURST);
        let available = self.ring.available()?;
        let ahead_len = count.min(usize::from(available));
        let mut ahead = [Ahead { ptr: std::ptr::null_mut(), len: 0, head: 0 }; BURST];
        for (i, buffer) in ahead[..ahead_len].iter_mut().enumerate() {
            buffer.head = self.ring.head(i as u16)?;
            self.ring.prefetch_descriptor(buffer.head);
        }
        for buffer in &mut ahead[..ahead_len] {
            let d = self.ring.descriptor(buffer.head);
            if d.is_single_writable()
                && let Some(ptr) = self.ring.contiguous(d.addr, d.len)
            {
                prefetch_write(ptr);
                prefetch_write(ptr.wrapping_add(64));
                *buffer = Ahead { ptr, len: d.len, head: buffer.head };
            }
        }

        // Buffers taken so far; each has its used entry written.
        let mut taken = 0u16;
        let (mut full_from, mut small_from) = (usize::MAX, usize::MAX);
        for i in 0..count {
            let frame = frames.frame(i);
            let total = self.header_len + frame.head.frame_len();
            let Some(header) = self.header(&frame.head.offload) else {
                report.error |= 1 << i;
                continue;
            };
            if let Some(buffer) = ahead[..ahead_len].get(usize::from(taken))
                && total <= buffer.len as usize
            {
                // SAFETY: the buffer's `len` bytes are writable guest memory (checked above).
                unsafe { write_frame(buffer.ptr, frame, header, self.header_len) };
                self.ring.write_used(taken, buffer.head, total as u32);
                taken += 1;
                continue;
            }
            let refused = if total >= small_from {
                Err(Refused::Small)
            } else if total >= full_from || taken == available {
                Err(Refused::Full)
            } else {
                self.spread(frame, header, total, taken, available)?
            };
            match refused {
                Ok(buffers) => taken += buffers,
                Err(Refused::Full) => {
                    full_from = full_from.min(total);
                    report.full |= 1 << i;
                }
                Err(Refused::Small) => {
                    small_from = small_from.min(total);
                    report.too_small |= 1 << i;
                }
            }
        }
        self.ring.check_memory()?;
        self.ring.next_avail = self.ring.next_avail.wrapping_add(taken);
        self.ring.publish(taken);
        Ok(report)
    }

    /// The header that says what the frame asks for, or `None` if the driver did not agree to it.
    #[inline(always)]
    fn header(&self, offload: &Offload) -> Option<[u8; HEADER_LEN]> {
        if *offload == Offload::NONE {
            return Some(PLAIN);
        }
        if !self.offloads.contains(offload.needs()) {
            return None;
        }
        let mut header = offload.to_vnet();
        if offload.checksum == Checksum::Valid && !self.offloads.contains(OffloadSet::CHECKSUM) {
            // DATA_VALID belongs to GUEST_CSUM (virtio 1.2, 5.1.6.4.1).
            header.flags &= !virtio_net::F_DATA_VALID;
        }
        Some(header.to_bytes())
    }

    /// Puts a frame into chains of any form, and several of them if the driver merges; how many.
    fn spread(
        &mut self,
        frame: Frame<'_>,
        mut header: [u8; HEADER_LEN],
        total: usize,
        taken: u16,
        available: u16,
    ) -> Result<Result<u16, Refused>, PortError> {
        self.pieces.clear();
        self.chains.clear();
        let mut capacity = 0u64;
        let mut budget = WALK_BUDGET;
        while capacity < total as u64 {
            let next = taken + self.chains.len() as u16;
            if self.chains.len() == MERGE_MAX || budget == 0 || (!self.mergeable && !self.chains.is_empty()) {
                return Ok(Err(Refused::Small));
            }
            if next == available {
                return Ok(Err(Refused::Full));
            }
            let head = self.ring.head(next)?;
            let first = self.ring.descriptor(head);
            let from = self.pieces.len();
            if self.ring.walk(first, true, &mut self.pieces, &mut budget)? == Walk::TooLong {
                return Ok(Err(Refused::Small));
            }
            let bytes = self.pieces[from..].iter().map(|p| u64::from(p.len)).sum();
            self.chains.push((head, bytes));
            capacity += bytes;
        }

        let buffers = self.chains.len() as u16;
        header[HEADER_LEN - 2..].copy_from_slice(&buffers.to_le_bytes());
        let mut to = Cursor { pieces: &self.pieces, at: 0, offset: 0 };
        let Frame { head, tail } = frame;
        let front = head.with_vnet(header, self.header_len);
        // SAFETY: `front` is ours and readable.
        to.write(unsafe { Segment::new(front.as_ptr(), front.len() as u32) });
        for segment in tail {
            to.write(*segment);
        }
        let mut left = total as u64;
        for (i, &(head, bytes)) in self.chains.iter().enumerate() {
            let written = left.min(bytes);
            self.ring.write_used(taken + i as u16, head, written as u32);
            left -= written;
        }
        Ok(Ok(buffers))
    }

    /// Why `shared` is not the ring's only owner: the session reads where the ring stands.
    pub(crate) fn shared(&self) -> &super::RingShared {
        &self.ring.shared
    }
}

const PLAIN: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Writes header, head and tail one after the other.
///
/// # Safety
/// The frame's length and `header_len` bytes must be writable guest memory at `to`.
#[inline(always)]
unsafe fn write_frame(to: *mut u8, frame: Frame<'_>, header: [u8; HEADER_LEN], header_len: usize) {
    let Frame { head, tail } = frame;
    let front = head.with_vnet(header, header_len);
    // SAFETY: front.len() + the tail's length are the frame's length and header_len (an invariant of
    // `Burst::push`); `front` is ours, so it cannot overlap guest memory.
    unsafe {
        short(front.as_ptr(), to, front.len());
        let mut at = front.len();
        for segment in tail {
            segment.copy_to(to.add(at));
            at += segment.len();
        }
    }
}

/// A place in the pieces of a frame's buffers.
struct Cursor<'a> {
    pieces: &'a [Piece],
    at: usize,
    offset: u32,
}

impl Cursor<'_> {
    /// Writes a range, as far as there is room.
    fn write(&mut self, mut from: Segment) {
        while !from.is_empty() {
            let Some(piece) = self.pieces.get(self.at) else { return };
            let room = (piece.len - self.offset) as usize;
            let part = from.part(0, room);
            // SAFETY: part.len() <= room, so that many bytes are writable guest memory from the offset on.
            unsafe { part.copy_to(piece.ptr.add(self.offset as usize)) };
            self.offset += part.len() as u32;
            from = from.part(part.len(), usize::MAX);
            if self.offset == piece.len {
                self.at += 1;
                self.offset = 0;
            }
        }
    }
}
