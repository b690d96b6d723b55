//! Copies of a frame's head, whose sizes are few: whole steps of 16 to 64 bytes, the last one overlapping the
//! one before. A call of `memcpy` with a length that the branch predictor cannot know costs more than the copy.

use std::ptr;

/// Copies `N` bytes; a few vector moves.
///
/// # Safety
/// `N` bytes readable at `from` and writable at `to`, which do not overlap.
#[inline(always)]
unsafe fn step<const N: usize>(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { ptr::copy_nonoverlapping(from, to, N) }
}

/// Copies `len` bytes, few of them.
///
/// # Safety
/// `len` bytes readable at `from` and writable at `to`, which do not overlap.
#[inline(always)]
pub(super) unsafe fn short(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: each step is within `len` bytes of both, as the branch it stands in says; the rest is the
    // caller's promise.
    unsafe {
        if len >= 64 {
            step::<64>(from, to);
            let mut at = 64;
            while len - at > 64 {
                step::<64>(from.add(at), to.add(at));
                at += 64;
            }
            step::<64>(from.add(len - 64), to.add(len - 64));
        } else if len >= 32 {
            step::<32>(from, to);
            step::<32>(from.add(len - 32), to.add(len - 32));
        } else if len >= 16 {
            step::<16>(from, to);
            step::<16>(from.add(len - 16), to.add(len - 16));
        } else if len >= 8 {
            step::<8>(from, to);
            step::<8>(from.add(len - 8), to.add(len - 8));
        } else {
            let mut at = 0;
            while at < len {
                step::<1>(from.add(at), to.add(at));
                at += 1;
            }
        }
    }
}

/// Asks for the line that holds `at`, to be read. Never faults.
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is a hint and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the line that holds `at`, to be written. Never faults.
#[inline(always)]
pub(super) fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is a hint and cannot fault; processors without the instruction take
    // its encoding for a no-op.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A frame's tail in memory that is always there.
#[cfg(feature = "fuzzing")]
pub(crate) fn segment_of(bytes: &'static [u8]) -> datapath::Segment {
    // SAFETY: static memory is readable for ever. The slices made here are a frame's at most.
    unsafe { datapath::Segment::new(bytes.as_ptr(), bytes.len() as u32) }
}
