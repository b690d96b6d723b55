//! What both directions ask of a virtqueue, whatever its layout.
//!
//! [`rx`](super::rx) and [`tx`](super::tx) are written once, for any [`Ring`]; there is one copy of their code
//! for each of [`split`](super::split) and [`packed`](super::packed), and a frame meets no choice between them. What
//! is here is called for each frame or each burst: implementations are `#[inline(always)]` where a frame's
//! time depends on it.
//!
//! A burst is: [`Ring::begin`], then [`Ring::chain`] for 0, 1, 2 and so on, [`Ring::further`] if that was not
//! enough, [`Ring::write_used`] for those that are given back, 0, 1, 2 and so on, and [`Ring::publish`]. What was not
//! published has not happened: the next burst begins where the last publication ended.

use datapath::PortError;

use super::RingShared;
use super::chain::{Buffers, CHAIN_MAX, DESCRIPTOR, Descriptor, F_INDIRECT, F_NEXT, F_WRITE, Piece, Walk};

/// See the module's text.
pub(crate) trait Ring: Sized {
    /// What must be known of a chain to give it back.
    type Chain: Copy + Default;
    /// A place between two chains, to come back to.
    type Place: Copy;

    /// True if a descriptor of an indirect table names the one that follows (2.7.5.3); if not, its table is read from
    /// its beginning to its end (2.8.7).
    const TABLES_ARE_LISTS: bool;

    /// Begins a burst of `most` chains at most, and at most [`BURST`](switch_core::verdict::BURST); how many there may
    /// be. Zero if there is none.
    fn begin(&mut self, most: usize) -> Result<usize, PortError>;

    /// Chain `i` of the burst, and its first descriptor; `None` if the driver has not made so many available. Each is
    /// asked for once, in order, and `i` is below what [`Ring::begin`] gave.
    fn chain(&mut self, i: usize) -> Result<Option<(Self::Chain, Descriptor)>, PortError>;

    /// The same, past what [`Ring::begin`] gave.
    fn further(&mut self, i: usize) -> Result<Option<(Self::Chain, Descriptor)>, PortError>;

    /// Where the chain is that comes next.
    fn place(&self) -> Self::Place;

    /// Goes back: the next chain is the one that was next at `place`.
    fn return_to(&mut self, place: Self::Place);

    /// The descriptor that follows `of` in the ring itself.
    fn successor(&self, of: Descriptor) -> Result<Descriptor, PortError>;

    /// Writes that chain `i` of the burst is used, with `len` bytes written into it. The driver does not see it yet.
    fn write_used(&mut self, i: usize, chain: Self::Chain, len: u32);

    /// Publishes the `n` used chains of the burst together, and notifies the driver at most once, if it wants to be.
    fn publish(&mut self, n: usize);

    /// Gives back chains that the device has read, and publishes them.
    fn give_back(&mut self, chains: &[Self::Chain]);

    /// Asks for kicks, then looks once more. True if there is work already.
    fn ask_for_kicks(&mut self) -> Result<bool, PortError>;

    /// Asks for no more kicks.
    fn refuse_kicks(&mut self);

    /// The memory behind the descriptors.
    fn buffers(&mut self) -> &mut Buffers;

    /// Descriptors.
    fn size(&self) -> u16;

    /// Indirect descriptors were negotiated.
    fn has_indirect(&self) -> bool;

    /// What the ring and its session share.
    fn shared(&self) -> &RingShared;

    /// Follows the chain that begins with `first` (virtio 1.2, 2.7.5 and 2.8.6) and appends where its bytes are.
    /// `writable` is what all of it must be. `budget` is lowered by each descriptor read.
    fn walk(
        &mut self,
        first: Descriptor,
        writable: bool,
        pieces: &mut Vec<Piece>,
        budget: &mut usize,
    ) -> Result<Walk, PortError> {
        let mut table: Option<(u64, u32)> = None;
        // Which one of its table the descriptor is, if tables are no lists.
        let mut at = 0u32;
        let mut limit = u32::from(self.size());
        let mut followed = 0u32;
        let mut descriptor = first;
        for _ in 0..CHAIN_MAX {
            *budget = budget.saturating_sub(1);
            let listed = table.is_none() || Self::TABLES_ARE_LISTS;
            if descriptor.flags & F_INDIRECT != 0 {
                let (addr, len) = (descriptor.addr, descriptor.len);
                let alone = Self::TABLES_ARE_LISTS || followed == 0;
                if !self.has_indirect() || table.is_some() || descriptor.flags & F_NEXT != 0 || !alone {
                    return Err(self.buffers().protocol("an indirect descriptor where none may be"));
                }
                if len == 0 || !(len as usize).is_multiple_of(DESCRIPTOR) {
                    let why = "an indirect table whose length is no multiple of 16";
                    return Err(self.buffers().protocol(why));
                }
                limit = len / DESCRIPTOR as u32;
                table = Some((addr, limit));
                followed = 0;
                descriptor = self.indirect(addr, 0)?;
                continue;
            }
            // DPDK's driver marks what it sends through a packed ring's table as writable. To read it does no harm.
            let excused = !listed && !writable;
            if (descriptor.flags & F_WRITE != 0) != writable && !excused {
                return Err(self.buffers().protocol("a buffer of the wrong direction"));
            }
            if !self.buffers().translate(descriptor.addr, descriptor.len, pieces)? {
                return Ok(Walk::TooLong);
            }
            if listed && descriptor.flags & F_NEXT == 0 || !listed && at + 1 >= limit {
                return Ok(Walk::Whole);
            }
            followed += 1;
            if followed >= limit {
                return Err(self.buffers().protocol("a descriptor chain that is longer than its table"));
            }
            descriptor = match table {
                None => self.successor(descriptor)?,
                Some((addr, count)) => {
                    at = if listed { u32::from(descriptor.next) } else { at + 1 };
                    if at >= count {
                        let why = "a descriptor's successor is outside its table";
                        return Err(self.buffers().protocol(why));
                    }
                    self.indirect(addr, at)?
                }
            };
        }
        Ok(Walk::TooLong)
    }

    /// Copies a descriptor of an indirect table.
    fn indirect(&mut self, table: u64, index: u32) -> Result<Descriptor, PortError> {
        let at = table.checked_add(DESCRIPTOR as u64 * u64::from(index));
        match at.and_then(|at| self.buffers().contiguous(at, DESCRIPTOR as u32)) {
            // SAFETY: 16 bytes from there are in the guest's memory.
            Some(ptr) => Ok(unsafe { Self::read_descriptor(ptr) }),
            None => {
                let why = "an indirect table outside the memory that the front-end shares";
                Err(self.buffers().protocol(why))
            }
        }
    }

    /// Copies a descriptor in this ring's layout.
    ///
    /// # Safety
    /// 16 bytes from `at` must be readable guest memory.
    unsafe fn read_descriptor(at: *const u8) -> Descriptor;
}
