//! A guest's transmit queue: from it the switch receives.
//!
//! Owned by one worker while attached. Each burst goes over its frames in three passes, so that the loads of
//! many frames are under way together: heads of chains, then descriptors and addresses, then the bytes. Used
//! entries are written and published by [`RxQueue::release`], once per burst.
//!
//! Most frames come in one descriptor (header and frame) or two (header, frame): those are copied straight.
//! All other shapes go through [`Ring::walk`].

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use datapath::burst::{FRAME_SEGMENTS, PushError};
use datapath::port::RxDrops;
use datapath::{Armed, Burst, PortError, RxQueue, Segment};
use switch_core::Head;
use switch_core::head::{FRAME_MAX, HEAD_LEN, HEAD_MAX};
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::{HEADER_LEN, VnetHeader};

use super::chain::{Descriptor, PIECES_MAX, Piece, Walk};
use super::copy::{prefetch, short};
use super::notify::Event;
use super::ring::Ring;
use super::{RingFeatures, RingShared};

/// Descriptors that one burst follows through chains of more than two, so that a guest cannot make its worker
/// read for longer than a burst of ordinary frames takes.
const WALK_BUDGET: usize = 1024;

/// What the second pass found out of a chain.
#[derive(Clone, Copy)]
enum Shape {
    /// The header at one place, the whole frame at one other.
    Straight { header: *const u8, data: *const u8, len: u32 },
    /// Shorter than a header and one byte.
    Short { len: u32 },
    /// Everything else, by its first descriptor.
    Chain(Descriptor),
}

/// Who tells the session that a ring broke.
pub(crate) type OnBroken = Arc<dyn Fn(&RingShared, &PortError) + Send + Sync>;

/// See the module's text.
pub(crate) struct RxRing<R: Ring> {
    ring: R,
    header_len: usize,
    accepted: OffloadSet,
    /// Chains of the last burst, in order; those below `taken_len` are given back by `release`.
    taken: [R::Chain; BURST],
    taken_len: usize,
    shapes: [Shape; BURST],
    pieces: Vec<Piece>,
    segments: Vec<Segment>,
    kick: Arc<Event>,
    /// The driver has no kick descriptor: it expects to be polled.
    polled: bool,
    armed: bool,
    broken: Option<PortError>,
    on_broken: OnBroken,
}

// SAFETY: the shapes, pieces and segments are scratch space, empty of meaning between calls; the rest is Send.
unsafe impl<R: Ring + Send> Send for RxRing<R> where R::Chain: Send {}

impl<R: Ring> RxRing<R> {
    /// A queue on a ring. Without `kick` the driver expects to be polled.
    pub(crate) fn new(
        ring: R,
        features: &RingFeatures,
        kick: Option<Arc<Event>>,
        on_broken: OnBroken,
    ) -> std::io::Result<Self> {
        let polled = kick.is_none();
        let kick = match kick {
            Some(kick) => kick,
            None => Arc::new(Event::new()?),
        };
        Ok(Self {
            ring,
            header_len: features.header_len,
            accepted: features.from_driver,
            taken: [R::Chain::default(); BURST],
            taken_len: 0,
            shapes: [Shape::Short { len: 0 }; BURST],
            pieces: Vec::with_capacity(PIECES_MAX),
            segments: Vec::with_capacity(PIECES_MAX),
            kick,
            polled,
            armed: false,
            broken: None,
            on_broken,
        })
    }

    fn fail(&mut self, why: PortError) -> PortError {
        (self.on_broken)(self.ring.shared(), &why);
        why
    }

    #[inline]
    fn receive(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<(), PortError> {
        self.ring.buffers().check()?;
        let most = self.ring.begin(burst.room())?.min(BURST);
        if most == 0 {
            return Ok(());
        }

        let mut good = 0;
        while good < most {
            // The frames before a bad one are delivered first.
            let first = match self.ring.chain(good) {
                Ok(Some((chain, first))) => {
                    self.taken[good] = chain;
                    first
                }
                Ok(None) => break,
                Err(e) => {
                    self.broken = Some(e);
                    break;
                }
            };
            match self.shape(first) {
                Ok(shape) => self.shapes[good] = shape,
                Err(e) => {
                    self.broken = Some(e);
                    break;
                }
            }
            good += 1;
        }

        let mut budget = WALK_BUDGET;
        let mut done = 0;
        while done < good {
            let pushed = match self.shapes[done] {
                Shape::Straight { header, data, len } => self.straight(burst, drops, header, data, len),
                Shape::Short { len } => {
                    drops.short_header += 1;
                    drops.bytes += u64::from(len.saturating_sub(self.header_len as u32));
                    true
                }
                Shape::Chain(first) => match self.chain(burst, drops, first, &mut budget) {
                    Ok(pushed) => pushed,
                    Err(e) => {
                        self.broken = Some(e);
                        false
                    }
                },
            };
            if !pushed {
                break;
            }
            done += 1;
            if budget == 0 {
                break;
            }
        }
        self.taken_len = done;
        // What was copied out is what counts: the compiler must not go back to the guest's memory for it.
        compiler_fence(Ordering::SeqCst);
        self.ring.buffers().check()
    }

    /// Second pass: where a chain's header and bytes are.
    #[inline(always)]
    fn shape(&mut self, first: Descriptor) -> Result<Shape, PortError> {
        let header_len = self.header_len as u32;
        if first.is_single_readable() {
            if first.len <= header_len {
                // The address is checked all the same.
                if self.ring.buffers().contiguous(first.addr, first.len).is_some() {
                    return Ok(Shape::Short { len: first.len });
                }
            } else if let Some(ptr) = self.ring.buffers().contiguous(first.addr, first.len) {
                prefetch(ptr);
                prefetch(ptr.wrapping_add(64));
                let data = ptr.wrapping_add(self.header_len);
                return Ok(Shape::Straight { header: ptr, data, len: first.len - header_len });
            }
        } else if first.is_first_readable() && first.len == header_len {
            let second = self.ring.successor(first)?;
            if second.is_single_readable() && second.len > 0 {
                let header = self.ring.buffers().contiguous(first.addr, first.len);
                let data = self.ring.buffers().contiguous(second.addr, second.len);
                if let (Some(header), Some(data)) = (header, data) {
                    prefetch(header);
                    prefetch(data);
                    prefetch(data.wrapping_add(64));
                    return Ok(Shape::Straight { header, data, len: second.len });
                }
            }
        }
        Ok(Shape::Chain(first))
    }

    /// Third pass, most frames. False if the burst is full.
    #[inline(always)]
    fn straight(
        &self,
        burst: &mut Burst,
        drops: &mut RxDrops,
        header: *const u8,
        data: *const u8,
        len: u32,
    ) -> bool {
        if len as usize > FRAME_MAX {
            drops.oversize += 1;
            drops.bytes += u64::from(len);
            return true;
        }
        let Some(head) = burst.next_head() else { return false };
        let mut vnet = [0u8; HEADER_LEN];
        // SAFETY: header_len (10 or 12) bytes are readable there (`shape`), and the array has 12.
        unsafe {
            if self.header_len == HEADER_LEN {
                short(header, vnet.as_mut_ptr(), HEADER_LEN);
            } else {
                short(header, vnet.as_mut_ptr(), switch_core::virtio_net::LEGACY_HEADER_LEN);
            }
        }
        head.vnet = VnetHeader::from_bytes(vnet);
        let take = head_bytes(head, len as usize);
        head.begin(len, take);
        let to = head.space().as_mut_ptr();
        // SAFETY: take <= len bytes are readable at data (`shape`), and take <= HEAD_MAX are writable in the
        // head, which is ours and not guest memory.
        unsafe {
            if take == HEAD_LEN {
                short(data, to, HEAD_LEN);
            } else {
                short(data, to, take);
            }
        }
        let pushed = if take < len as usize {
            // SAFETY: within the range that `shape` checked; the memory stays mapped for as long as the ring
            // holds it, which is until after the burst's release.
            let tail = unsafe { Segment::new(data.wrapping_add(take), len - take as u32) };
            burst.push(&[tail])
        } else {
            burst.push(&[])
        };
        pushed.is_ok()
    }

    /// Third pass, the other shapes: chains of any form. False if the burst is full.
    fn chain(
        &mut self,
        burst: &mut Burst,
        drops: &mut RxDrops,
        first: Descriptor,
        budget: &mut usize,
    ) -> Result<bool, PortError> {
        if burst.room() == 0 {
            return Ok(false);
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        let walked = self.ring.walk(first, false, &mut pieces, budget);
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        // SAFETY: the pieces were checked by `walk`; the memory stays mapped for as long as the ring holds it.
        segments.extend(pieces.iter().map(|p| unsafe { Segment::new(p.ptr, p.len) }));
        self.pieces = pieces;
        let pushed = match walked {
            Ok(walk) => Ok(self.gather(burst, drops, &mut segments, walk)),
            Err(e) => Err(e),
        };
        self.segments = segments;
        pushed
    }

    /// Makes a frame of a chain's pieces. False if the burst is full.
    fn gather(&self, burst: &mut Burst, drops: &mut RxDrops, pieces: &mut Vec<Segment>, walk: Walk) -> bool {
        let total: u64 = pieces.iter().map(|p| p.len() as u64).sum();
        let len = total.saturating_sub(self.header_len as u64);
        if walk == Walk::TooLong {
            drops.too_many_segments += 1;
            drops.bytes += len;
            return true;
        }
        if total <= self.header_len as u64 {
            drops.short_header += 1;
            return true;
        }
        if len > FRAME_MAX as u64 {
            drops.oversize += 1;
            drops.bytes += len;
            return true;
        }
        let len = len as usize;
        let Some(head) = burst.next_head() else { return false };
        let mut vnet = [0u8; HEADER_LEN];
        let mut at = 0;
        at = take(pieces, at, &mut vnet[..self.header_len]);
        head.vnet = VnetHeader::from_bytes(vnet);
        let take_len = head_bytes(head, len);
        at = take(pieces, at, head.begin(len as u32, take_len));
        let tail = &pieces[at.min(pieces.len())..];
        let empty = tail.iter().filter(|s| s.is_empty()).count();
        let pushed = if empty == 0 {
            burst.push(tail)
        } else {
            pieces.drain(..at.min(pieces.len()));
            pieces.retain(|s| !s.is_empty());
            burst.push(pieces)
        };
        match pushed {
            Ok(()) => true,
            Err(PushError::Full) => false,
            Err(PushError::Malformed) => {
                debug_assert!(pieces.len() > FRAME_SEGMENTS);
                drops.too_many_segments += 1;
                drops.bytes += len as u64;
                true
            }
        }
    }

    #[cold]
    fn push_injected(&mut self, burst: &mut Burst) {
        for frame in self.ring.shared().take_injected(burst.room()) {
            let Some(head) = burst.next_head() else { break };
            head.vnet = VnetHeader::default();
            let bytes = head.begin(frame.len() as u32, frame.len());
            let n = bytes.len().min(frame.len());
            bytes[..n].copy_from_slice(&frame[..n]);
            if burst.push(&[]).is_err() {
                break;
            }
        }
    }
}

/// How many bytes of a frame go into its head: more if the guest asks for an offload, whose headers may be
/// longer than most.
#[inline(always)]
fn head_bytes(head: &Head, len: usize) -> usize {
    len.min(if head.vnet.is_plain() { HEAD_LEN } else { HEAD_MAX })
}

/// Copies the next bytes of the pieces from number `at` on into `to`, and takes them off; the piece that comes
/// next.
fn take(pieces: &mut [Segment], mut at: usize, to: &mut [u8]) -> usize {
    let mut got = 0;
    while got < to.len() {
        let Some(piece) = pieces.get_mut(at) else { break };
        let n = piece.read(&mut to[got..]);
        got += n;
        *piece = piece.part(n, usize::MAX);
        if piece.is_empty() {
            at += 1;
        }
    }
    at
}

impl<R: Ring + Send> RxQueue for RxRing<R>
where
    R::Chain: Send,
{
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = self.accepted;
        if let Some(e) = self.broken.take() {
            return Err(self.fail(e));
        }
        if self.ring.shared().has_injected() {
            self.push_injected(burst);
        }
        match self.receive(burst, drops) {
            Ok(()) => Ok(burst.len()),
            Err(e) => {
                self.taken_len = 0;
                burst.clear();
                Err(self.fail(e))
            }
        }
    }

    fn release(&mut self) {
        self.ring.give_back(&self.taken[..self.taken_len.min(BURST)]);
        self.taken_len = 0;
    }

    fn wake_fd(&self) -> RawFd {
        self.kick.as_fd().as_raw_fd()
    }

    fn arm(&mut self) -> Result<Armed, PortError> {
        if self.broken.is_some() || self.ring.shared().has_injected() || self.polled {
            return Ok(Armed::Work);
        }
        self.armed = true;
        match self.ring.ask_for_kicks().and_then(|work| self.ring.buffers().check().map(|()| work)) {
            Ok(false) if !self.ring.shared().has_injected() => Ok(Armed::Sleeping),
            Ok(_) => {
                self.ring.refuse_kicks();
                Ok(Armed::Work)
            }
            Err(e) => Err(self.fail(e)),
        }
    }

    fn disarm(&mut self) {
        self.ring.refuse_kicks();
        if std::mem::take(&mut self.armed) {
            self.kick.drain();
        }
    }
}
