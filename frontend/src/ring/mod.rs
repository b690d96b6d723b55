//! The driver's side of virtqueues.
//!
//! [`split`] is the split ring (virtio 1.3, 2.7). The types here are what any ring format shares: the buffers that go in,
//! the buffers that come back, and what a device may not do.

pub mod split;

pub use split::{SplitQueue, SplitSetup};

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
    /// The descriptor table.
    pub desc: u64,
    /// The available ring (driver area).
    pub avail: u64,
    /// The used ring (device area).
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
    /// The queue size is not a power of two of 1 to 32,768.
    #[error("queue size {0} is not a power of two up to 32768")]
    Size(u16),
}
