//! The driver's side of virtqueues.
//!
//! [`split`] is the split ring (virtio 1.3, 2.7), [`packed`] the packed one (2.8), [`Queue`] either. The types here are
//! what both share: the buffers that go in, the buffers that come back, and what a device may not do.

pub mod packed;
mod queue;
pub mod split;

pub use packed::PackedQueue;
pub use queue::Queue;
pub use split::SplitQueue;

use crate::memory::{GuestMemory, Window};

/// How a queue is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Number of descriptors: a power of two up to 32,768.
    pub size: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` is negotiated.
    pub event_idx: bool,
    /// Whether `VIRTIO_F_IN_ORDER` is negotiated.
    pub in_order: bool,
    /// When to use indirect tables ([`Indirect::Never`] unless negotiated).
    pub indirect: Indirect,
    /// The most pieces that an indirect table takes.
    pub indirect_max: u16,
    /// Where the queue starts: 0 for a new device, anything to see it wrap. In a split ring both indexes start with it;
    /// a packed ring starts as if it had been through so many descriptors.
    pub base: u16,
}

impl Setup {
    /// A plain queue of `size` descriptors.
    #[must_use]
    pub fn new(size: u16) -> Self {
        Setup { size, event_idx: false, in_order: false, indirect: Indirect::Never, indirect_max: 0, base: 0 }
    }

    /// The size, if a ring may have it (2.7, 2.8.10.1).
    fn checked_size(&self) -> crate::Result<u16> {
        if !self.size.is_power_of_two() || self.size > 32768 {
            return Err(crate::Error::Config(RingError::Size(self.size).to_string()));
        }
        Ok(self.size)
    }

    /// Room for an indirect table for each descriptor, with its guest-physical address, if there are to be any.
    fn alloc_tables(&self, memory: &mut GuestMemory) -> crate::Result<Option<(u64, Window)>> {
        if self.indirect == Indirect::Never {
            return Ok(None);
        }
        let bytes = u64::from(self.size) * u64::from(self.indirect_max.max(1)) * 16;
        memory.alloc_window(bytes, 16).map(Some)
    }

    /// Whether a buffer of `pieces` goes into a table of its own.
    pub(crate) fn goes_indirect(&self, pieces: usize) -> bool {
        let fits = pieces <= usize::from(self.indirect_max.max(1));
        match self.indirect {
            Indirect::Never => false,
            Indirect::Chains => fits && pieces > 1,
            Indirect::Always => fits && pieces > 0,
        }
    }
}

/// One piece of a buffer, as a descriptor tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it (and may not read it).
    pub writable: bool,
}

impl Segment {
    /// A piece that the device reads.
    #[must_use]
    pub fn readable(gpa: u64, len: u32) -> Self {
        Segment { gpa, len, writable: false }
    }

    /// A piece that the device writes.
    #[must_use]
    pub fn writable(gpa: u64, len: u32) -> Self {
        Segment { gpa, len, writable: true }
    }
}

/// How many bytes the device may write into a buffer.
fn writable(pieces: &[Segment]) -> u32 {
    pieces.iter().filter(|p| p.writable).fold(0, |sum, p| sum.saturating_add(p.len))
}

/// Whether moving an index from `old` to `new` passes `event` (2.7.10).
#[inline]
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A buffer that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The id that `add` gave for the buffer.
    pub id: u16,
    /// How many bytes the device wrote into it.
    pub len: u32,
}

/// When indirect descriptor tables are used, once they are negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Indirect {
    /// Never.
    Never,
    /// For buffers of more than one piece, as Linux does.
    #[default]
    Chains,
    /// For every buffer.
    Always,
}

/// Where a virtqueue's three areas are, as guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table, or the descriptor ring.
    pub desc: u64,
    /// The available ring, or the driver's event suppression (driver area).
    pub avail: u64,
    /// The used ring, or the device's event suppression (device area).
    pub used: u64,
}

/// What a device did to a ring that the specification does not allow, or why a buffer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// Too few free descriptors; not the device's fault.
    #[error("no room for a buffer of {0} descriptors")]
    Full(usize),
    /// The used index ran ahead of what is in flight.
    #[error("used index {used} with {in_flight} buffers in flight since {seen}")]
    UsedIndex {
        /// What the device wrote.
        used: u16,
        /// The last index that was taken.
        seen: u16,
        /// Buffers the device has.
        in_flight: u16,
    },
    /// A used element names a buffer that the device does not have.
    #[error("used element of id {0}, which is not in flight")]
    UsedId(u32),
    /// A used element claims more bytes than the buffer has.
    #[error("used element of id {id} with {len} bytes written into {capacity}")]
    UsedLen {
        /// The buffer.
        id: u16,
        /// Bytes claimed.
        len: u32,
        /// Bytes the device could write.
        capacity: u32,
    },
    /// A descriptor of a packed ring that the device has to use or to leave alone is neither used nor as it was.
    #[error("descriptor {index} with flags {flags:#x}, which is neither used nor as it was made available")]
    Flags {
        /// Its position in the ring.
        index: u16,
        /// Its flags.
        flags: u16,
    },
    /// The queue size is not a power of two of 1 to 32,768.
    #[error("queue size {0} is not a power of two up to 32768")]
    Size(u16),
}
