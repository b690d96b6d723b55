//! Guest memory: regions of guest-physical addresses, each on a memfd that the back-end maps too.
//!
//! A [`GuestMemory`] owns its regions and hands out guest-physical ranges by bumping a cursor (nothing is ever given
//! back: a device allocates once). A [`Window`] is a checked view of a range inside one region, with the ordered
//! accesses that rings need; it keeps its region mapped and may be used from any thread, also one that changes memory
//! on purpose while the back-end reads it.
//!
//! Invariants: a window lies inside its mapping for as long as it lives, and no reference to guest memory is ever made,
//! because the back-end (and a hostile test) writes it at any time. With `rows` this is the crate's only module with
//! `unsafe`.
#![allow(unsafe_code)]

mod rows;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Error, Result};
pub use rows::Rows;

/// The size of a huge page that [`Layout::hugetlb`] uses, bytes.
pub const HUGE_PAGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// One region: a range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// The first guest-physical address.
    pub gpa: u64,
    /// Length in bytes; rounded up to whole pages.
    pub len: u64,
}

/// How guest memory is laid out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The regions, in the order in which the back-end is told them.
    pub regions: Vec<RegionSpec>,
    /// Whether to ask for huge pages of 2 MiB. Where the host has none left, ordinary pages are used.
    pub hugetlb: bool,
}

impl Layout {
    /// One region of `len` bytes at guest-physical address 0.
    #[must_use]
    pub fn single(len: u64) -> Self {
        Layout { regions: vec![RegionSpec { gpa: 0, len }], hugetlb: false }
    }

    /// `count` regions of `len` bytes each, with `gap` bytes between them. Without a gap they are adjacent in
    /// guest-physical space, while the back-end's mappings of them are not.
    #[must_use]
    pub fn several(count: usize, len: u64, gap: u64) -> Self {
        let regions = (0..count as u64).map(|i| RegionSpec { gpa: i * (len + gap), len }).collect();
        Layout { regions, hugetlb: false }
    }

    /// The same, on huge pages where the host has them.
    #[must_use]
    pub fn with_hugetlb(mut self) -> Self {
        self.hugetlb = true;
        self
    }
}

/// A memfd and its mapping in this process.
#[derive(Debug)]
struct Mapping {
    file: File,
    ptr: *mut u8,
    len: usize,
}

// SAFETY: the mapping is shared memory that lives until drop; all accesses go through raw pointers or atomics, never
// through references, so that moving or sharing the handle adds no aliasing claim.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: u64, hugetlb: bool) -> Result<Self> {
        if hugetlb {
            // Reservation happens in mmap: it fails there, not later by a signal, when no huge page is left.
            if let Ok(mapping) =
                Self::create(len.next_multiple_of(HUGE_PAGE), MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
            {
                return Ok(mapping);
            }
        }
        Self::create(len.next_multiple_of(PAGE), MemfdFlags::empty())
    }

    fn create(len: u64, flags: MemfdFlags) -> Result<Self> {
        let fd = memfd_create("guest-memory", flags | MemfdFlags::CLOEXEC)
            .map_err(|e| Error::io("memfd_create for guest memory", e))?;
        ftruncate(&fd, len).map_err(|e| Error::io(format!("sizing guest memory to {len} bytes"), e))?;
        let size = usize::try_from(len).map_err(|_| Error::Memory(format!("region of {len} bytes")))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice; nothing in this process overlaps it.
        let ptr = unsafe {
            mmap(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }
        .map_err(|e| Error::io(format!("mapping {len} bytes of guest memory"), e))?;
        Ok(Mapping { file: File::from(fd), ptr: ptr.cast(), len: size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `ptr` and `len` are what mmap returned, and every window holds an `Arc` of this mapping, so that
        // no access can follow. Failure leaves the range mapped, which harms nobody.
        let _ = unsafe { munmap(self.ptr.cast(), self.len) };
    }
}

/// One region of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    gpa: u64,
    mapping: Arc<Mapping>,
    cursor: u64,
}

impl Region {
    /// The first guest-physical address.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.mapping.len as u64
    }

    /// Whether the region is empty (it never is).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    /// The address of the region's first byte in this process, which vhost-user calls its user address.
    #[must_use]
    pub fn user_addr(&self) -> u64 {
        self.mapping.ptr as u64
    }

    /// The memfd. The region starts at its offset 0.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.file.as_fd()
    }

    /// Sets the memfd's length without telling anybody: what a hostile front-end does to have the back-end receive
    /// `SIGBUS`.
    ///
    /// This process gets the signal as well when it touches what was cut off, so nothing may use a [`Window`] on that
    /// part afterwards; stop the device's threads first.
    ///
    /// # Errors
    /// The system call's.
    pub fn truncate(&self, len: u64) -> Result<()> {
        ftruncate(&self.mapping.file, len).map_err(|e| Error::io("ftruncate of guest memory", e))
    }

    fn contains(&self, gpa: u64, len: u64) -> bool {
        gpa.checked_sub(self.gpa)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len())
    }
}

/// The guest's memory: regions and an allocator.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    hugetlb: bool,
}

impl GuestMemory {
    /// Makes and maps the regions of `layout`.
    ///
    /// # Errors
    /// [`Error::Io`] when memory cannot be had, [`Error::Memory`] when regions overlap or there is none.
    pub fn new(layout: &Layout) -> Result<Self> {
        let mut memory = GuestMemory { regions: Vec::new(), hugetlb: layout.hugetlb };
        for spec in &layout.regions {
            memory.add_region(*spec)?;
        }
        if memory.regions.is_empty() {
            return Err(Error::Memory("a layout needs at least one region".into()));
        }
        Ok(memory)
    }

    /// Makes one more region, and gives its index. The back-end is not told.
    ///
    /// # Errors
    /// As for [`GuestMemory::new`].
    pub fn add_region(&mut self, spec: RegionSpec) -> Result<usize> {
        let mapping = Mapping::new(spec.len.max(1), self.hugetlb)?;
        let end = spec.gpa.checked_add(mapping.len as u64);
        let overlaps = |r: &Region| end.is_none_or(|end| spec.gpa < r.gpa + r.len() && r.gpa < end);
        if end.is_none() || self.regions.iter().any(overlaps) {
            return Err(Error::Memory(format!(
                "region at {:#x} of {} bytes overlaps another",
                spec.gpa, mapping.len
            )));
        }
        self.regions.push(Region { gpa: spec.gpa, mapping: Arc::new(mapping), cursor: 0 });
        Ok(self.regions.len() - 1)
    }

    /// The regions, in the order in which they were made.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Takes `len` bytes aligned to `align` (a power of two) from the first region with room, and gives their
    /// guest-physical address.
    ///
    /// # Errors
    /// [`Error::Memory`] when no region has room.
    pub fn alloc(&mut self, len: u64, align: u64) -> Result<u64> {
        (0..self.regions.len())
            .find_map(|index| self.alloc_in(index, len, align).ok())
            .ok_or_else(|| Error::Memory(format!("no region has {len} bytes left")))
    }

    /// As [`GuestMemory::alloc`], from the region with this index.
    ///
    /// # Errors
    /// [`Error::Memory`] when the region has no room, or does not exist.
    pub fn alloc_in(&mut self, region: usize, len: u64, align: u64) -> Result<u64> {
        let r = self.regions.get_mut(region).ok_or_else(|| Error::Memory(format!("no region {region}")))?;
        let align = align.max(1);
        let start = (r.gpa + r.cursor).checked_next_multiple_of(align);
        let start = start.filter(|&gpa| r.contains(gpa, len));
        let start = start.ok_or_else(|| Error::Memory(format!("region {region} has no {len} bytes left")))?;
        r.cursor = start - r.gpa + len;
        Ok(start)
    }

    /// Takes memory as [`GuestMemory::alloc`] and gives its window too.
    ///
    /// # Errors
    /// [`Error::Memory`] when no region has room.
    pub fn alloc_window(&mut self, len: u64, align: u64) -> Result<(u64, Window)> {
        let gpa = self.alloc(len, align)?;
        Ok((gpa, self.window(gpa, len)?))
    }

    /// A view of a range inside one region.
    ///
    /// # Errors
    /// [`Error::Memory`] when the range is not inside one region.
    pub fn window(&self, gpa: u64, len: u64) -> Result<Window> {
        let region = self
            .regions
            .iter()
            .find(|r| r.contains(gpa, len))
            .ok_or_else(|| Error::Memory(format!("{len} bytes at {gpa:#x} are not inside one region")))?;
        let offset = (gpa - region.gpa) as usize;
        // SAFETY: `contains` checked that offset + len is within the mapping.
        let ptr = unsafe { region.mapping.ptr.add(offset) };
        Ok(Window { ptr, len: len as usize, mapping: Arc::clone(&region.mapping) })
    }

    /// The address in this process of a guest-physical address, as vhost-user's ring addresses want it.
    ///
    /// # Errors
    /// [`Error::Memory`] when no region has the address.
    pub fn user_addr(&self, gpa: u64) -> Result<u64> {
        let region = self.regions.iter().find(|r| r.contains(gpa, 1));
        let region = region.ok_or_else(|| Error::Memory(format!("no region has the address {gpa:#x}")))?;
        Ok(region.user_addr() + (gpa - region.gpa))
    }

    /// Copies `bytes` to `gpa`; the range may cross from one region into the next.
    ///
    /// # Errors
    /// [`Error::Memory`] when a part of the range is in no region; what comes before it is written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa + done as u64;
            let n = self.contiguous(at, bytes.len() - done)?;
            self.window(at, n as u64)?.write(0, &bytes[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Copies from `gpa` to `bytes`; the range may cross from one region into the next.
    ///
    /// # Errors
    /// [`Error::Memory`] when a part of the range is in no region.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa + done as u64;
            let n = self.contiguous(at, bytes.len() - done)?;
            self.window(at, n as u64)?.read(0, &mut bytes[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// How many of `len` bytes at `gpa` are in the region of `gpa`.
    fn contiguous(&self, gpa: u64, len: usize) -> Result<usize> {
        let region = self.regions.iter().find(|r| r.contains(gpa, 1));
        let region = region.ok_or_else(|| Error::Memory(format!("no region has the address {gpa:#x}")))?;
        Ok(len.min((region.gpa + region.len() - gpa) as usize))
    }
}

/// A view of a range of guest memory inside one region.
///
/// Offsets are in bytes from its start. An access outside the window, or a misaligned one where alignment is asked
/// for, panics as an index outside a slice does: offsets are the caller's own, never the device's.
#[derive(Clone, Debug)]
pub struct Window {
    ptr: *mut u8,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a window is a range of a `Mapping`, which is Send and Sync for the same reason: accesses by raw pointers and
// atomics only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes at `offset`.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Window {
        Window { ptr: self.at(offset, len), len, mapping: Arc::clone(&self.mapping) }
    }

    #[inline]
    #[track_caller]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "{len} bytes at {offset} are outside a window of {}",
            self.len
        );
        // SAFETY: offset is within the window, hence within the mapping.
        unsafe { self.ptr.add(offset) }
    }

    #[inline]
    #[track_caller]
    fn aligned<T>(&self, offset: usize) -> *mut T {
        let ptr = self.at(offset, size_of::<T>()).cast::<T>();
        assert!(ptr.is_aligned(), "misaligned access at {offset}");
        ptr
    }

    /// Copies `bytes` to `offset`.
    #[inline]
    #[track_caller]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let ptr = self.at(offset, bytes.len());
        // SAFETY: the destination is inside the mapping; `bytes` is memory of this process's own, which no reference-
        // free mapping overlaps. The peer may write the destination meanwhile, which only garbles data.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr, bytes.len()) }
    }

    /// Copies from `offset` to `bytes`.
    #[inline]
    #[track_caller]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let ptr = self.at(offset, bytes.len());
        // SAFETY: as for `write`, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(ptr, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Appends `len` bytes from `offset` to `out`.
    #[inline]
    #[track_caller]
    pub fn read_into(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        let ptr = self.at(offset, len);
        out.reserve(len);
        // SAFETY: the source is inside the mapping; the destination has `len` bytes of spare capacity, all of which
        // are written before the length grows over them.
        unsafe {
            std::ptr::copy_nonoverlapping(ptr, out.as_mut_ptr().add(out.len()), len);
            out.set_len(out.len() + len);
        }
    }

    /// Sets `len` bytes at `offset` to `value`.
    #[track_caller]
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        let ptr = self.at(offset, len);
        // SAFETY: the range is inside the mapping.
        unsafe { std::ptr::write_bytes(ptr, value, len) }
    }

    /// Loads a little-endian `u16` at an even offset, with `order`.
    #[inline]
    #[track_caller]
    #[must_use]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: aligned, inside the mapping, and other accesses to ring indexes are atomic or the peer's.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.aligned(offset)) }.load(order))
    }

    /// Stores a little-endian `u16` at an even offset, with `order`.
    #[inline]
    #[track_caller]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: as for `load_u16`.
        unsafe { AtomicU16::from_ptr(self.aligned(offset)) }.store(value.to_le(), order);
    }

    /// Loads a little-endian `u32` at an offset that is a multiple of 4, with `order`.
    #[inline]
    #[track_caller]
    #[must_use]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        // SAFETY: as for `load_u16`.
        u32::from_le(unsafe { AtomicU32::from_ptr(self.aligned(offset)) }.load(order))
    }

    /// Stores a little-endian `u32` at an offset that is a multiple of 4, with `order`.
    #[inline]
    #[track_caller]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        // SAFETY: as for `load_u16`.
        unsafe { AtomicU32::from_ptr(self.aligned(offset)) }.store(value.to_le(), order);
    }

    /// Loads a little-endian `u64` at an offset that is a multiple of 8, with `order`.
    #[inline]
    #[track_caller]
    #[must_use]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        // SAFETY: as for `load_u16`.
        u64::from_le(unsafe { AtomicU64::from_ptr(self.aligned(offset)) }.load(order))
    }

    /// Stores a little-endian `u64` at an offset that is a multiple of 8, with `order`.
    #[inline]
    #[track_caller]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        // SAFETY: as for `load_u16`.
        unsafe { AtomicU64::from_ptr(self.aligned(offset)) }.store(value.to_le(), order);
    }

    /// Reads a little-endian `u64` at any offset.
    #[inline]
    #[track_caller]
    #[must_use]
    pub fn read_u64(&self, offset: usize) -> u64 {
        // SAFETY: inside the mapping; unaligned is what the access is for.
        u64::from_le(unsafe { self.at(offset, 8).cast::<u64>().read_unaligned() })
    }

    /// Writes a little-endian `u64` at any offset.
    #[inline]
    #[track_caller]
    pub fn write_u64(&self, offset: usize, value: u64) {
        // SAFETY: as for `read_u64`.
        unsafe { self.at(offset, 8).cast::<u64>().write_unaligned(value.to_le()) }
    }

    /// Asks the processor to bring the line at `offset` near; outside the window it does nothing.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        #[cfg(target_arch = "x86_64")]
        if offset < self.len {
            // SAFETY: a prefetch has no effect that the program can see; the address is inside the mapping.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                    self.ptr.add(offset).cast(),
                );
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_is_aligned_bounded_and_disjoint() {
        let mut memory = GuestMemory::new(&Layout::several(2, 8192, 4096)).unwrap();
        let a = memory.alloc(100, 16).unwrap();
        let b = memory.alloc(4096, 4096).unwrap();
        assert_eq!((a, b), (0, 4096));
        assert_eq!(memory.alloc(8192, 1).unwrap(), 12288, "the second region has room");
        assert!(matches!(memory.alloc(1, 1), Err(Error::Memory(_))));
        assert!(memory.window(8191, 2).is_err(), "the gap is in no region");
        assert!(memory.window(u64::MAX, 2).is_err());
        assert!(memory.user_addr(8192).is_err());
    }

    #[test]
    fn copies_cross_adjacent_regions_and_stop_at_gaps() {
        let memory = GuestMemory::new(&Layout::several(2, 4096, 0)).unwrap();
        let bytes: Vec<u8> = (0..200).collect();
        memory.write(4000, &bytes).unwrap();
        let mut back = vec![0; 200];
        memory.read(4000, &mut back).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(memory.window(4096, 1).unwrap().read_u64_low(), bytes[96]);
        assert!(memory.write(8100, &bytes).is_err());
        assert!(memory.window(4000, 200).is_err(), "a window is inside one region");
    }

    impl Window {
        fn read_u64_low(&self) -> u8 {
            let mut b = [0];
            self.read(0, &mut b);
            b[0]
        }
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let mut layout = Layout::single(8192);
        layout.regions.push(RegionSpec { gpa: 4096, len: 4096 });
        assert!(matches!(GuestMemory::new(&layout), Err(Error::Memory(_))));
    }

    #[test]
    #[should_panic(expected = "outside a window")]
    fn a_window_keeps_its_bounds() {
        let memory = GuestMemory::new(&Layout::single(4096)).unwrap();
        memory.window(0, 64).unwrap().store_u16(64, 1, Ordering::Relaxed);
    }
}
