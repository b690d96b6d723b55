//! One region's file, mapped.

use std::fs::File;
use std::ptr::{self, NonNull};

use rustix::fs::FileType;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::sigbus::Watch;
use super::{MemoryError, RegionSpec};

/// Alignments of file offsets that are believed: a page up to the largest huge page.
const ALIGN_MIN: u64 = 4096;
const ALIGN_MAX: u64 = 1 << 30;

/// File systems whose pages come from memory or a local disk. A page of any other (FUSE, a network file
/// system) can keep the worker that touches it waiting for as long as its server likes.
const FILE_SYSTEMS: [u32; 7] = [
    0x0102_1994, // tmpfs, and with it memfd
    0x9584_58f6, // hugetlbfs
    0x8584_58f6, // ramfs
    0x0000_ef53, // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
];

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Where the region begins: `base` plus what the offset was aligned down by.
    start: *mut u8,
    base: NonNull<u8>,
    len: usize,
    /// The file's device and inode.
    file: (u64, u64),
    /// `None` only while being dropped.
    watch: Option<Watch>,
}

// SAFETY: the pointers name a mapping that the value owns until it is dropped; it has no thread affinity, and
// nothing here reads or writes through them.
unsafe impl Send for Mapping {}
// SAFETY: as above; all methods take `&self` and only hand out the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the file's part that `spec` names. Overflows were checked by the caller.
    pub(super) fn new(spec: &RegionSpec, file: &File) -> Result<Self, MemoryError> {
        let guest = spec.guest;
        let failed = |e: rustix::io::Errno| MemoryError::Map { guest, source: e.into() };
        let stat = rustix::fs::fstat(file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::Kind { guest });
        }
        let kind = rustix::fs::fstatfs(file).map_err(failed)?.f_type as u32;
        if !FILE_SYSTEMS.contains(&kind) {
            return Err(MemoryError::Kind { guest });
        }
        let has = u64::try_from(stat.st_size).unwrap_or(0);
        let overflow = MemoryError::Overflow { guest };
        let Some(end) = spec.offset.checked_add(spec.size) else { return Err(overflow) };
        if end > has {
            return Err(MemoryError::PastEnd { guest, needed: end, has });
        }
        // hugetlbfs tells its page size as the block size, and mmap wants offset and length in its multiples.
        let align = u64::try_from(stat.st_blksize).unwrap_or(ALIGN_MIN);
        let align = if align.is_power_of_two() { align.clamp(ALIGN_MIN, ALIGN_MAX) } else { ALIGN_MIN };
        let from = spec.offset & !(align - 1);
        let Some(len) = end.checked_next_multiple_of(align).map(|end| end - from) else {
            return Err(overflow);
        };
        let Ok(len) = usize::try_from(len) else { return Err(overflow) };
        let before = (spec.offset - from) as usize;

        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                from,
            )
        }
        .map_err(failed)?
        .cast::<u8>();
        let Some(base) = NonNull::new(base) else { return Err(failed(rustix::io::Errno::FAULT)) };
        let mut map = Self {
            start: base.as_ptr().wrapping_add(before),
            base,
            len,
            file: (stat.st_dev, stat.st_ino),
            watch: None,
        };
        // SAFETY: base..base+len is the mapping just made; the advice changes what a core dump or a child has
        // of it, nothing else. It may fail (hugetlbfs of older kernels) without harm.
        unsafe {
            let _ = rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump);
            let _ = rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontFork);
        }
        // SAFETY: one whole mapping, reached by raw pointers only, unmapped in `drop` after the watch.
        let watch =
            unsafe { Watch::new(base.as_ptr(), len) }.map_err(|source| MemoryError::Map { guest, source })?;
        map.watch = Some(watch);
        Ok(map)
    }

    /// Where the region begins.
    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    /// True if this maps the same file as the descriptor.
    pub(super) fn is_of(&self, file: &File) -> bool {
        rustix::fs::fstat(file).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.file)
    }

    /// True once the file shrank under the mapping.
    pub(super) fn poisoned(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::poisoned)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: the mapping is ours, whole, and whoever could reach it held the `Arc` that is gone now.
        if let Err(e) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(error = %e, "cannot unmap guest memory");
        }
    }
}
