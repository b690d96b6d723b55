//! Bytes that somebody else may change while we look: a guest's memory, a ring shared with the kernel.
//!
//! Such bytes are never a `&[u8]`. A [`Segment`] names a range whose bounds were checked when it was made;
//! the functions here copy out of it or between two of them, each byte read once. What they read may be torn
//! between two of the other side's writes; that is the other side's business and is never trusted afterwards.

use std::ptr;

/// A readable range of memory that this process does not own alone.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    ptr: *const u8,
    len: u32,
}

impl Segment {
    /// Names a range.
    ///
    /// # Safety
    /// `len` bytes from `ptr` must stay mapped and readable until the burst that carries the segment has been
    /// released ([`crate::RxQueue::release`]). Others may write to them at any time.
    #[inline]
    pub const unsafe fn new(ptr: *const u8, len: u32) -> Self {
        Self { ptr, len }
    }

    /// Bytes in the range.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True if the range is empty.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the range begins: for a port that hands ranges to the kernel (`writev`), which reads them itself.
    #[inline]
    pub const fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// The part from `offset`, of at most `len` bytes; cut to the range.
    #[inline]
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        let len = len.min(self.len() - offset);
        // SAFETY: offset <= self.len, so the pointer stays within or one past the range that `new`'s caller
        // vouched for. Both lengths came from a u32.
        Self { ptr: unsafe { self.ptr.add(offset) }, len: len as u32 }
    }

    /// Copies the first bytes of the range into `to`, as many as both have; how many.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let n = to.len().min(self.len());
        // SAFETY: n bytes are readable at `ptr` (see `new`) and writable at `to`, which is a slice of our own
        // and so cannot overlap memory that others write.
        unsafe { ptr::copy_nonoverlapping(self.ptr, to.as_mut_ptr(), n) };
        n
    }

    /// Copies the whole range to `to`.
    ///
    /// # Safety
    /// `self.len()` bytes must be writable at `to`. They may be shared with others, and may even overlap the
    /// range (a guest can name one buffer twice): then the content is unspecified, as the guest asked.
    #[inline]
    pub unsafe fn copy_to(&self, to: *mut u8) {
        // SAFETY: the source is readable (see `new`), the destination writable (the caller's promise), and
        // `copy` allows overlap.
        unsafe { ptr::copy(self.ptr, to, self.len()) }
    }
}

/// Copies `len` bytes of a tail, from `offset` on, into `to`; how many there were.
pub fn read_tail(tail: &[Segment], mut offset: usize, mut to: &mut [u8]) -> usize {
    let mut copied = 0;
    for segment in tail {
        if to.is_empty() {
            break;
        }
        if offset >= segment.len() {
            offset -= segment.len();
            continue;
        }
        let n = segment.part(offset, to.len()).read(to);
        offset = 0;
        copied += n;
        to = &mut to[n..];
    }
    copied
}
