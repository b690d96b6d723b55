//! Memory that the kernel copies received frames into, or their tails: the pool of one receive queue.
//!
//! They are laid one behind the other from the pool's beginning, and every burst begins there again. So small
//! frames touch few lines, always the same ones, and a burst of super-frames ends when [`BURST_BYTES`] are
//! used, before it has pushed what it carries out of the cache.

use std::alloc::{self, Layout};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use switch_core::head::FRAME_MAX;
use switch_core::virtio_net::HEADER_LEN;

use crate::memory::Segment;

/// A burst takes no further frame once what it keeps has this many bytes.
pub const BURST_BYTES: usize = 256 * 1024;
/// Bytes that one frame may write: a virtio-net header, the longest frame, and one more, which tells a longer one.
pub const SLOT: usize = (HEADER_LEN + FRAME_MAX + 1).next_multiple_of(LINE);

const LINE: usize = 64;
const SIZE: usize = BURST_BYTES + SLOT;

/// See the module's text. Owned by its receive queue. What a [`Segment`] names is never behind a reference; the
/// bytes after it may be ([`Buffers::slot`]).
pub struct Buffers {
    base: NonNull<u8>,
    used: usize,
}

// SAFETY: the memory belongs to this value alone; nothing about it is bound to a thread.
unsafe impl Send for Buffers {}

impl Buffers {
    const LAYOUT: Layout = match Layout::from_size_align(SIZE, 4096) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    /// Memory for one burst.
    pub fn new() -> Self {
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc::alloc_zeroed(Self::LAYOUT) };
        let Some(base) = NonNull::new(base) else { alloc::handle_alloc_error(Self::LAYOUT) };
        Self { base, used: 0 }
    }

    /// Forgets what the last burst kept.
    #[inline]
    pub fn reset(&mut self) {
        self.used = 0;
    }

    /// True if the burst has had its share.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.used >= BURST_BYTES
    }

    /// Where the next frame or tail may be written: [`SLOT`] bytes, if the pool is not full.
    #[inline]
    pub(crate) fn place(&mut self) -> *mut u8 {
        debug_assert!(!self.is_full());
        // SAFETY: `used` is below BURST_BYTES or was checked to be when it last grew (`take`), so SLOT bytes
        // follow within the allocation.
        unsafe { self.base.as_ptr().add(self.used.min(BURST_BYTES)) }
    }

    /// The same place as a slice, for a system call to write to. What is written there and not taken is
    /// overwritten by the next frame.
    #[inline]
    pub fn slot(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: SLOT bytes are in the allocation (see `next`) and ours alone: no segment of this burst names
        // them, as they follow all that was taken, and none can be made while the slice is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.place().cast(), SLOT) }
    }

    /// The `len` bytes just written at [`Buffers::slot`], as a segment; `len` is at most [`SLOT`].
    #[inline]
    pub fn take(&mut self, len: usize) -> Segment {
        let len = len.min(SLOT);
        let at = self.place();
        self.used = self.used.min(BURST_BYTES) + len.next_multiple_of(LINE);
        // SAFETY: `len <= SLOT` bytes are in the allocation, which lives as long as the queue; the queue writes
        // there again only after `reset`, in the `rx_burst` that follows `release`.
        unsafe { Segment::new(at, len as u32) }
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and freed only here.
        unsafe { alloc::dealloc(self.base.as_ptr(), Self::LAYOUT) };
    }
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffers").field("used", &self.used).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_follow_each_other_and_never_leave_the_pool() {
        let mut buffers = Buffers::new();
        let base = buffers.place() as usize;
        let first = buffers.take(100);
        assert_eq!((first.as_ptr() as usize, first.len()), (base, 100));
        assert_eq!(buffers.place() as usize, base + 128, "the next one begins a line");
        while !buffers.is_full() {
            assert!(buffers.place() as usize + SLOT <= base + SIZE);
            assert_eq!(buffers.slot().as_ptr() as usize, buffers.place() as usize);
            buffers.take(SLOT);
        }
        buffers.reset();
        assert_eq!(buffers.place() as usize, base);
    }
}
