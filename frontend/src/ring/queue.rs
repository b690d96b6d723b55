//! A virtqueue of either format.

use super::{PackedQueue, RingAddresses, RingError, Segment, Setup, SplitQueue, Used};
use crate::error::Result;
use crate::memory::{GuestMemory, Window};

/// The driver's side of a virtqueue. Each method is its format's.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a few for each device, and they do not move")]
pub enum Queue {
    /// Split (virtio 1.3, 2.7).
    Split(SplitQueue),
    /// Packed (2.8).
    Packed(PackedQueue),
}

macro_rules! each {
    ($self:expr, $queue:ident => $call:expr) => {
        match $self {
            Queue::Split($queue) => $call,
            Queue::Packed($queue) => $call,
        }
    };
}

impl Queue {
    /// Allocates a queue's areas in `memory` and initialises them.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] when there is no room, [`crate::Error::Config`] for a size that is not allowed.
    pub fn new(memory: &mut GuestMemory, packed: bool, setup: Setup) -> Result<Self> {
        Ok(if packed {
            Queue::Packed(PackedQueue::new(memory, setup)?)
        } else {
            Queue::Split(SplitQueue::new(memory, setup)?)
        })
    }

    /// Forgets everything in flight and starts at `base`, as a driver does after a device reset.
    pub fn reset(&mut self, base: u16) {
        each!(self, q => q.reset(base));
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        each!(self, q => q.size())
    }

    /// Where the areas are.
    #[must_use]
    pub fn addresses(&self) -> RingAddresses {
        each!(self, q => q.addresses())
    }

    /// Where the device goes on: what `SET_VRING_BASE` of a resumed session wants.
    #[must_use]
    pub fn base(&self) -> u32 {
        match self {
            Queue::Split(q) => q.used_index().into(),
            Queue::Packed(q) => q.base(),
        }
    }

    /// Puts a buffer into the ring, and gives its id. The device sees it at the next [`Queue::publish`].
    ///
    /// # Errors
    /// [`RingError::Full`] when descriptors are lacking, or the buffer has no piece.
    pub fn add(&mut self, pieces: &[Segment]) -> std::result::Result<u16, RingError> {
        each!(self, q => q.add(pieces))
    }

    /// Turns the queue to *fixed* buffers: id `i` stands for `buffers[i]`. Nothing may be in flight.
    ///
    /// # Errors
    /// [`RingError::Full`] when something is in flight, or a buffer needs more than one descriptor.
    pub fn fix(&mut self, buffers: &[Vec<Segment>]) -> std::result::Result<(), RingError> {
        each!(self, q => q.fix(buffers))
    }

    /// As [`Queue::fix`], of the buffers that are in flight already: each keeps its id.
    ///
    /// # Errors
    /// [`RingError::Full`] when a buffer of a packed queue needs more than one descriptor.
    pub fn fix_in_flight(&mut self) -> std::result::Result<(), RingError> {
        match self {
            Queue::Split(q) => {
                q.fix_in_flight();
                Ok(())
            }
            Queue::Packed(q) => q.fix_in_flight(),
        }
    }

    /// Makes fixed buffers available. The caller owns the ids: one that is in flight already is not detected.
    #[inline]
    pub fn add_fixed(&mut self, ids: impl Iterator<Item = u16>) {
        match self {
            Queue::Split(q) => ids.for_each(|id| q.add_fixed(id)),
            Queue::Packed(q) => ids.for_each(|id| q.add_fixed(id)),
        }
    }

    /// Lets the device see everything that was added.
    #[inline]
    pub fn publish(&mut self) {
        each!(self, q => q.publish());
    }

    /// Whether the device wants a notification for what was published since this was last asked.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        each!(self, q => q.needs_kick())
    }

    /// Whether the device gave something back that was not taken yet.
    #[inline]
    #[must_use]
    pub fn has_used(&self) -> bool {
        each!(self, q => q.has_used())
    }

    /// Takes the next buffer that the device gave back.
    ///
    /// # Errors
    /// What the device did that the specification does not allow. The ring is not usable afterwards.
    #[inline]
    pub fn pop_used(&mut self) -> std::result::Result<Option<Used>, RingError> {
        each!(self, q => q.pop_used())
    }

    /// Takes as many of the buffers that the device gave back as `out` has room for, and gives how many.
    ///
    /// # Errors
    /// As for [`Queue::pop_used`].
    #[inline]
    pub fn take_used(&mut self, out: &mut [Used]) -> std::result::Result<usize, RingError> {
        fn fill(
            out: &mut [Used],
            mut pop: impl FnMut() -> std::result::Result<Option<Used>, RingError>,
        ) -> std::result::Result<usize, RingError> {
            let mut n = 0;
            for place in out {
                let Some(used) = pop()? else { break };
                *place = used;
                n += 1;
            }
            Ok(n)
        }
        each!(self, q => fill(out, || q.pop_used()))
    }

    /// Asks for an interrupt at the next used buffer. Gives `true` when there is one already: then none may come.
    pub fn arm(&mut self) -> bool {
        each!(self, q => q.arm())
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        each!(self, q => q.disarm());
    }

    /// The areas as windows, for those who corrupt them on purpose.
    #[must_use]
    pub fn windows(&self) -> (Window, Window, Window) {
        each!(self, q => q.windows())
    }
}
