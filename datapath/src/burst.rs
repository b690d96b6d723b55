//! A worker's burst: up to [`BURST`] frames of one receive queue on their one pass through the switch.
//!
//! Owned by one worker. A port fills it (`RxQueue::rx_burst`), the worker checks, decides and dispatches, and
//! the port takes its buffers back (`RxQueue::release`). Nothing is allocated after [`Burst::new`].
//!
//! Invariant: the head's bytes and the segments of a frame add up to its length ([`Burst::push`] refuses
//! others), so that every port can copy without counting again.

use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::{Head, PortId};

pub use crate::memory::Segment;

/// Segments that one frame's tail may have.
pub const FRAME_SEGMENTS: usize = 256;
/// Segments in a burst: a few for each frame, and always room for one frame of the most.
const BURST_SEGMENTS: usize = BURST * 24 + FRAME_SEGMENTS;

/// Why a frame was not taken into the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The burst has no room left: stop receiving, the frame is taken next time.
    Full,
    /// The frame's tail has more than [`FRAME_SEGMENTS`] pieces, or fewer bytes than its length says.
    Malformed,
}

/// See the module's text.
#[derive(Debug)]
pub struct Burst {
    heads: Box<[Head]>,
    /// For each frame the end of its segments; they begin where those of the frame before end.
    tails: [u32; BURST + 1],
    segments: Vec<Segment>,
    len: usize,
    /// Frames that it may have.
    most: usize,
    /// Offloads that the sender negotiated. Set by the port.
    pub accepted: OffloadSet,
    /// The port that all of the burst goes to, past the network's forwarding. Set by ports whose sender has
    /// decided already: a station of the switch itself.
    pub direct: Option<PortId>,
    /// The port that the burst was received from. Set by the frame path.
    pub(crate) from: Option<PortId>,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// An empty burst, with all the memory that it will ever use.
    pub fn new() -> Self {
        Self {
            heads: vec![Head::new(); BURST].into_boxed_slice(),
            tails: [0; BURST + 1],
            segments: Vec::with_capacity(BURST_SEGMENTS),
            len: 0,
            most: BURST,
            accepted: OffloadSet::NONE,
            direct: None,
            from: None,
        }
    }

    /// Empties the burst.
    #[inline]
    pub fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
        self.direct = None;
    }

    /// Empties the burst, for at most `most` frames, 1 to [`BURST`].
    #[inline]
    pub(crate) fn begin(&mut self, most: usize) {
        self.clear();
        self.most = most.clamp(1, BURST);
    }

    /// Frames in the burst.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no frame.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more frames can be taken for certain, whatever their tails.
    #[inline]
    pub fn room(&self) -> usize {
        if self.segments.len() + FRAME_SEGMENTS > BURST_SEGMENTS {
            0
        } else {
            self.most.saturating_sub(self.len)
        }
    }

    /// The head of the next frame, to be filled before [`Burst::push`]. `None` when the burst is full.
    #[inline]
    pub fn next_head(&mut self) -> Option<&mut Head> {
        if self.len < self.most { self.heads.get_mut(self.len) } else { None }
    }

    /// Takes in the frame whose head [`Burst::next_head`] gave, with its tail in `segments`, which must add
    /// up to the rest of the frame.
    #[inline]
    pub fn push(&mut self, segments: &[Segment]) -> Result<(), PushError> {
        let Some(head) = self.heads.get(self.len) else { return Err(PushError::Full) };
        if !segments.is_empty() || head.tail_len() != 0 {
            if segments.len() > FRAME_SEGMENTS
                || segments.iter().map(Segment::len).sum::<usize>() != head.tail_len()
            {
                return Err(PushError::Malformed);
            }
            if self.segments.len() + segments.len() > BURST_SEGMENTS {
                return Err(PushError::Full);
            }
            self.segments.extend_from_slice(segments);
        }
        self.len += 1;
        self.tails[self.len] = self.segments.len() as u32;
        Ok(())
    }

    /// The frames' heads.
    #[inline]
    pub fn heads(&self) -> &[Head] {
        &self.heads[..self.len]
    }

    /// The frames' heads, to be checked and rewritten. Their lengths stay.
    #[inline]
    pub fn heads_mut(&mut self) -> &mut [Head] {
        &mut self.heads[..self.len]
    }

    /// Keeps the frames whose bit is set in `keep`, in their order, and forgets the others. Their buffers
    /// are the port's until it releases the burst, as before.
    pub fn retain(&mut self, keep: u64) {
        let mut kept = 0;
        let mut end = 0;
        for i in 0..self.len {
            if keep & (1 << i) == 0 {
                continue;
            }
            let tail = self.tails[i] as usize..self.tails[i + 1] as usize;
            let len = tail.len();
            if kept != i {
                self.heads.swap(kept, i);
                self.segments.copy_within(tail, end);
            }
            end += len;
            kept += 1;
            self.tails[kept] = end as u32;
        }
        self.len = kept;
        self.segments.truncate(end);
    }

    /// The tail of frame `i`.
    #[inline]
    pub fn tail(&self, i: usize) -> &[Segment] {
        &self.segments[self.tails[i] as usize..self.tails[i + 1] as usize]
    }

    /// Frame `i`; `i` must be below [`Burst::len`].
    #[inline]
    pub fn frame(&mut self, i: usize) -> Frame<'_> {
        let head = &mut self.heads[i];
        // Most frames have no tail: nothing is to be looked up for them.
        let tail = match head.tail_len() {
            0 => &[],
            _ => &self.segments[self.tails[i] as usize..self.tails[i + 1] as usize],
        };
        Frame { head, tail }
    }

    /// The frames that `members` names, as one destination gets them.
    #[inline]
    pub fn bucket<'a>(&'a mut self, members: &'a [u8]) -> Bucket<'a> {
        Bucket { burst: self, members }
    }
}

/// One frame: the head, which may be written to (the virtio-net header goes in front of it), and its tail.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The first bytes, checked and decided.
    pub head: &'a mut Head,
    /// The rest, where the sender has it.
    pub tail: &'a [Segment],
}

/// The frames of a burst that one destination gets, in order. At most [`BURST`].
#[derive(Debug)]
pub struct Bucket<'a> {
    burst: &'a mut Burst,
    members: &'a [u8],
}

impl Bucket<'_> {
    /// Frames in the bucket.
    #[inline]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True if there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The port that the frames were received from, when they came by the frame path.
    #[inline]
    pub fn from(&self) -> Option<PortId> {
        self.burst.from
    }

    /// The frames whose bit is set in `mask`, in their order, as a bucket of their own; its list is made in `room`. Bits
    /// past the bucket's end name nothing.
    #[inline]
    pub fn part<'b>(&'b mut self, mask: u64, room: &'b mut [u8; BURST]) -> Bucket<'b> {
        let mut n = 0;
        for (i, &member) in self.members.iter().enumerate() {
            if mask & (1 << i) != 0 {
                room[n] = member;
                n += 1;
            }
        }
        Bucket { burst: self.burst, members: &room[..n] }
    }

    /// The head of frame `i` of the bucket; `i` must be below [`Bucket::len`].
    #[inline]
    pub fn head(&self, i: usize) -> &Head {
        &self.burst.heads()[usize::from(self.members[i])]
    }

    /// Frame `i` of the bucket; `i` must be below [`Bucket::len`].
    #[inline]
    pub fn frame(&mut self, i: usize) -> Frame<'_> {
        self.burst.frame(usize::from(self.members[i]))
    }

    /// The head and the tail of frame `i` of the bucket, to be read; `i` must be below [`Bucket::len`].
    #[inline]
    pub fn parts(&self, i: usize) -> (&Head, &[Segment]) {
        let i = usize::from(self.members[i]);
        (&self.burst.heads[i], self.burst.tail(i))
    }
}
