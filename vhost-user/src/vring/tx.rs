//! A guest's receive queue: into it the switch transmits.
//!
//! Used by whoever holds its lock (`port::TxSide`), for the length of one bucket. Buffers are looked up in
//! passes, as in [`rx`](super::rx); a frame's tail goes straight from
//! where the sender has it. Nothing is published before the end of the bucket, so that a ring that breaks in the middle
//! has taken nothing.
//!
//! What a guest can make us do for a frame is bounded: [`MERGE_MAX`] buffers are looked at, and
//! once a frame did not fit, the bucket's frames that are as long are not tried.

use datapath::burst::Frame;
use datapath::port::TxReport;
use datapath::{Bucket, PortError, Segment};
use switch_core::offload::{Checksum, Offload, OffloadSet};
use switch_core::verdict::BURST;
use switch_core::virtio_net::{self, HEADER_LEN, LEGACY_HEADER_LEN};

use super::chain::{PIECES_MAX, Piece, Walk};
use super::copy::{prefetch_write, short};
use super::packed::PackedRing;
use super::ring::Ring;
use super::split::SplitRing;
use super::{RingFeatures, RingShared};

/// Buffers that one frame may be spread over. A frame of 64 KB takes 43 of 1,536 bytes.
const MERGE_MAX: usize = 64;
/// Descriptors that one frame's buffers may have.
const WALK_BUDGET: usize = 1024;

/// A buffer of one descriptor, found ahead.
#[derive(Clone, Copy)]
struct Ahead<C> {
    ptr: *mut u8,
    len: u32,
    chain: C,
}

/// Why a frame was not put into the ring.
enum Refused {
    /// No buffers left.
    Full,
    /// The buffers there are too small.
    Small,
}

/// A guest's receive queue, in whatever ring it is.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each ring, and a pointer more would cost each bucket"
)]
pub(crate) enum TxRing {
    Split(TxQueue<SplitRing>),
    Packed(TxQueue<PackedRing>),
}

impl TxRing {
    /// Transmits what fits. After an error the ring takes nothing more.
    #[inline]
    pub(crate) fn transmit(&mut self, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        match self {
            Self::Split(queue) => queue.transmit(frames),
            Self::Packed(queue) => queue.transmit(frames),
        }
    }

    /// What the ring and its session share.
    pub(crate) fn shared(&self) -> &RingShared {
        match self {
            Self::Split(queue) => queue.ring.shared(),
            Self::Packed(queue) => queue.ring.shared(),
        }
    }
}

/// See the module's text.
pub(crate) struct TxQueue<R: Ring> {
    ring: R,
    header_len: usize,
    mergeable: bool,
    offloads: OffloadSet,
    ahead: [Ahead<R::Chain>; BURST],
    pieces: Vec<Piece>,
    /// Chains of one frame, and their capacity.
    chains: Vec<(R::Chain, u64)>,
    broken: bool,
}

// SAFETY: the buffers ahead and the pieces are scratch space, empty of meaning between calls; the rest is Send.
unsafe impl<R: Ring + Send> Send for TxQueue<R> where R::Chain: Send {}

impl<R: Ring> TxQueue<R> {
    pub(crate) fn new(ring: R, features: &RingFeatures) -> Self {
        let none = Ahead { ptr: std::ptr::null_mut(), len: 0, chain: R::Chain::default() };
        Self {
            ring,
            header_len: features.header_len,
            mergeable: features.mergeable,
            offloads: features.to_driver,
            ahead: [none; BURST],
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

    /// Looks for buffers of one descriptor that is contiguous here; how many come next to each other. The first of
    /// another shape is the next to be asked for.
    #[inline(always)]
    fn look_ahead(&mut self, count: usize) -> Result<usize, PortError> {
        let most = self.ring.begin(count)?.min(BURST);
        let mut n = 0;
        while n < most {
            let place = self.ring.place();
            let Some((chain, d)) = self.ring.chain(n)? else { break };
            if d.is_single_writable()
                && let Some(ptr) = self.ring.buffers().contiguous(d.addr, d.len)
            {
                prefetch_write(ptr);
                prefetch_write(ptr.wrapping_add(64));
                self.ahead[n] = Ahead { ptr, len: d.len, chain };
            } else {
                self.ring.return_to(place);
                break;
            }
            n += 1;
        }
        Ok(n)
    }

    #[inline]
    fn fill(&mut self, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        self.ring.buffers().check()?;
        let mut report = TxReport::default();
        let count = frames.len().min(BURST);
        let ahead = self.look_ahead(count)?;

        // Buffers taken so far, all of them written as used.
        let mut taken = 0;
        let (mut full_from, mut small_from) = (usize::MAX, usize::MAX);
        for i in 0..count {
            let frame = frames.frame(i);
            let total = self.header_len + frame.head.frame_len();
            let mut header = PLAIN;
            if !frame.head.offload.is_none() {
                match self.header(&frame.head.offload) {
                    Some(asks) => header = asks,
                    None => {
                        report.error |= 1 << i;
                        continue;
                    }
                }
            }
            if taken < ahead
                && let Some(&buffer) = self.ahead.get(taken)
                && total <= buffer.len as usize
            {
                // SAFETY: the buffer's `len` bytes are writable guest memory (checked by `look_ahead`).
                unsafe { write_frame(buffer.ptr, frame, header, self.header_len) };
                self.ring.write_used(taken, buffer.chain, total as u32);
                taken += 1;
                continue;
            }
            let refused = if total >= small_from {
                Err(Refused::Small)
            } else if total >= full_from {
                Err(Refused::Full)
            } else {
                let place = self.ring.place();
                let spread = self.spread(frame, header, total, taken, ahead)?;
                if spread.is_err() {
                    self.ring.return_to(place);
                }
                spread
            };
            match refused {
                Ok(()) => taken += self.chains.len(),
                Err(Refused::Full) => {
                    // Not one buffer: no frame fits any more.
                    full_from = if self.chains.is_empty() { 0 } else { full_from.min(total) };
                    report.full |= 1 << i;
                }
                Err(Refused::Small) => {
                    small_from = small_from.min(total);
                    report.too_small |= 1 << i;
                }
            }
        }
        self.ring.buffers().check()?;
        self.ring.publish(taken);
        Ok(report)
    }

    /// The header that says what the frame asks for, or `None` if the driver did not agree to it.
    #[inline(never)]
    fn header(&self, offload: &Offload) -> Option<[u8; HEADER_LEN]> {
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

    /// Puts a frame into chains of any form, and several of them if the driver merges. They are in
    /// `self.chains`, also if they were refused.
    fn spread(
        &mut self,
        frame: Frame<'_>,
        mut header: [u8; HEADER_LEN],
        total: usize,
        taken: usize,
        ahead: usize,
    ) -> Result<Result<(), Refused>, PortError> {
        self.pieces.clear();
        self.chains.clear();
        let mut capacity = 0u64;
        let mut budget = WALK_BUDGET;
        while capacity < total as u64 {
            let next = taken + self.chains.len();
            if self.chains.len() == MERGE_MAX || budget == 0 || (!self.mergeable && !self.chains.is_empty()) {
                return Ok(Err(Refused::Small));
            }
            if next < ahead
                && let Some(&Ahead { ptr, len, chain }) = self.ahead.get(next)
            {
                self.pieces.push(Piece { ptr, len });
                self.chains.push((chain, u64::from(len)));
                capacity += u64::from(len);
                continue;
            }
            let Some((chain, first)) = self.ring.further(next)? else { return Ok(Err(Refused::Full)) };
            let from = self.pieces.len();
            if self.ring.walk(first, true, &mut self.pieces, &mut budget)? == Walk::TooLong {
                return Ok(Err(Refused::Small));
            }
            let bytes = self.pieces[from..].iter().map(|p| u64::from(p.len)).sum();
            self.chains.push((chain, bytes));
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
        for (i, &(chain, bytes)) in self.chains.iter().enumerate() {
            let written = left.min(bytes);
            self.ring.write_used(taken + i, chain, written as u32);
            left -= written;
        }
        Ok(Ok(()))
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
    let bytes = head.bytes();
    // SAFETY: the header's, the head's and the tail's lengths are header_len and the frame's length (an invariant of
    // `Burst::push`); `header` and `bytes` are ours, so they cannot overlap guest memory.
    unsafe {
        if header_len == HEADER_LEN {
            short(header.as_ptr(), to, HEADER_LEN);
        } else {
            short(header.as_ptr(), to, LEGACY_HEADER_LEN);
        }
        short(bytes.as_ptr(), to.add(header_len), bytes.len());
        let mut at = header_len + bytes.len();
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
