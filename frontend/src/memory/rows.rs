//! Rows of equal length in guest memory: rings, and the buffers of a queue.
//!
//! A [`super::Window`] checks each access. On the way of each frame that is most of the work, so [`Rows`] checks
//! once, when it is made: there is a power of two of rows, a row's number is taken modulo that, and where in the row an
//! access goes is known at compile time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{Mapping, Window};
use crate::error::{Error, Result};

/// `LEN` bytes in each of a power of two of rows, each at a multiple of `ALIGN`. Little-endian.
#[derive(Clone, Debug)]
pub struct Rows<const LEN: usize, const ALIGN: usize> {
    first: *mut u8,
    mask: usize,
    stride: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: rows are a range of a `Mapping`, which is Send and Sync: accesses by raw pointers and atomics only.
unsafe impl<const LEN: usize, const ALIGN: usize> Send for Rows<LEN, ALIGN> {}
// SAFETY: as above.
unsafe impl<const LEN: usize, const ALIGN: usize> Sync for Rows<LEN, ALIGN> {}

impl<const LEN: usize, const ALIGN: usize> Rows<LEN, ALIGN> {
    /// `count` rows, the first at offset `first` of `window`, each `stride` bytes after the one before.
    ///
    /// # Errors
    /// [`Error::Memory`] when `count` is no power of two, a row is outside the window or misaligned.
    pub fn new(window: &Window, first: usize, stride: usize, count: usize) -> Result<Self> {
        let end =
            count.checked_sub(1).and_then(|n| n.checked_mul(stride)?.checked_add(first)?.checked_add(LEN));
        if !count.is_power_of_two() || end.is_none_or(|end| end > window.len) {
            return Err(Error::Memory(format!(
                "{count} rows at {first} are not inside a window of {}",
                window.len
            )));
        }
        // SAFETY: `first` is below `end`, hence within the window and its mapping.
        let first = unsafe { window.ptr.add(first) };
        if !(first as usize).is_multiple_of(ALIGN) || !stride.is_multiple_of(ALIGN) {
            return Err(Error::Memory(format!("rows are not aligned to {ALIGN}")));
        }
        Ok(Rows { first, mask: count - 1, stride, _mapping: Arc::clone(&window.mapping) })
    }

    #[inline(always)]
    fn at<T, const AT: usize>(&self, row: usize) -> *mut T {
        const { assert!(AT + size_of::<T>() <= LEN) };
        // SAFETY: the row is one of `new`'s, and `AT` with the access is inside it.
        unsafe { self.first.add((row & self.mask) * self.stride + AT) }.cast()
    }

    #[inline(always)]
    fn aligned<T, const AT: usize>(&self, row: usize) -> *mut T {
        const { assert!(ALIGN.is_multiple_of(align_of::<T>()) && AT.is_multiple_of(align_of::<T>())) };
        self.at::<T, AT>(row)
    }

    /// Stores at offset `AT` of a row, with `order`.
    #[inline(always)]
    pub fn store_u16<const AT: usize>(&self, row: usize, value: u16, order: Ordering) {
        // SAFETY: aligned and inside the mapping; other accesses are atomic or the peer's.
        unsafe { AtomicU16::from_ptr(self.aligned::<_, AT>(row)) }.store(value.to_le(), order);
    }

    /// Loads from offset `AT` of a row, with `order`.
    #[inline(always)]
    #[must_use]
    pub fn load_u32<const AT: usize>(&self, row: usize, order: Ordering) -> u32 {
        // SAFETY: as for `store_u16`.
        u32::from_le(unsafe { AtomicU32::from_ptr(self.aligned::<_, AT>(row)) }.load(order))
    }

    /// Loads from offset `AT` of a row, with `order`.
    #[inline(always)]
    #[must_use]
    pub fn load_u64<const AT: usize>(&self, row: usize, order: Ordering) -> u64 {
        // SAFETY: as for `store_u16`.
        u64::from_le(unsafe { AtomicU64::from_ptr(self.aligned::<_, AT>(row)) }.load(order))
    }

    /// Stores at offset `AT` of a row, with `order`.
    #[inline(always)]
    pub fn store_u64<const AT: usize>(&self, row: usize, value: u64, order: Ordering) {
        // SAFETY: as for `store_u16`.
        unsafe { AtomicU64::from_ptr(self.aligned::<_, AT>(row)) }.store(value.to_le(), order);
    }

    /// Reads from offset `AT` of a row, aligned or not.
    #[inline(always)]
    #[must_use]
    pub fn read_u16<const AT: usize>(&self, row: usize) -> u16 {
        // SAFETY: inside the mapping; unaligned is what the access is for.
        u16::from_le(unsafe { self.at::<u16, AT>(row).read_unaligned() })
    }

    /// Reads from offset `AT` of a row, aligned or not.
    #[inline(always)]
    #[must_use]
    pub fn read_u64<const AT: usize>(&self, row: usize) -> u64 {
        // SAFETY: as for `read_u16`.
        u64::from_le(unsafe { self.at::<u64, AT>(row).read_unaligned() })
    }

    /// Writes at offset `AT` of a row, aligned or not.
    #[inline(always)]
    pub fn write_u32<const AT: usize>(&self, row: usize, value: u32) {
        // SAFETY: as for `read_u16`.
        unsafe { self.at::<u32, AT>(row).write_unaligned(value.to_le()) }
    }

    /// Writes at offset `AT` of a row, aligned or not.
    #[inline(always)]
    pub fn write_u64<const AT: usize>(&self, row: usize, value: u64) {
        // SAFETY: as for `read_u16`.
        unsafe { self.at::<u64, AT>(row).write_unaligned(value.to_le()) }
    }

    /// Asks the processor to bring the line of offset `AT` of a row near.
    #[inline(always)]
    pub fn prefetch<const AT: usize>(&self, row: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect that the program can see; the address is inside the mapping.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                self.at::<i8, AT>(row).cast_const(),
            );
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestMemory, Layout};

    #[test]
    fn rows_are_inside_their_window_and_aligned() {
        let memory = GuestMemory::new(&Layout::single(4096)).unwrap();
        let window = memory.window(0, 4096).unwrap();
        assert!(Rows::<64, 8>::new(&window, 0, 64, 64).is_ok());
        assert!(Rows::<64, 8>::new(&window, 8, 64, 64).is_err(), "the last ends behind it");
        assert!(Rows::<48, 8>::new(&window, 16, 64, 64).is_ok());
        assert!(Rows::<64, 8>::new(&window, 0, 64, 63).is_err(), "no power of two");
        assert!(Rows::<64, 8>::new(&window, 0, 64, 0).is_err());
        assert!(Rows::<8, 8>::new(&window, 4, 64, 8).is_err(), "misaligned");
        assert!(Rows::<8, 8>::new(&window, 0, 60, 8).is_err(), "misaligned from the second on");
        assert!(Rows::<8, 8>::new(&window, usize::MAX, 64, 1).is_err());
        assert!(Rows::<8, 8>::new(&window, 0, usize::MAX, 4).is_err());
    }

    #[test]
    fn a_row_beyond_the_last_is_the_first() {
        let memory = GuestMemory::new(&Layout::single(4096)).unwrap();
        let window = memory.window(0, 4096).unwrap();
        let rows = Rows::<16, 8>::new(&window, 64, 32, 4).unwrap();
        rows.store_u64::<8>(5, 0x1122_3344_5566_7788, Ordering::Relaxed);
        rows.write_u32::<1>(5, 7);
        assert_eq!(window.read_u64(64 + 32 + 8), 0x1122_3344_5566_7788);
        assert_eq!(rows.load_u64::<8>(1, Ordering::Relaxed), rows.read_u64::<8>(9));
        assert_eq!(rows.read_u16::<1>(1), 7);
    }
}
