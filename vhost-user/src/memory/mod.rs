//! A guest's memory as its front-end shares it: a table of regions, immutable once made.
//!
//! A session makes a new table for each change and swaps it in while its rings are stopped; rings hold the
//! table they were started with (`Arc`), so that memory stays mapped as long as anybody can reach it.
//!
//! Addresses come in two spaces: *guest physical* ones in descriptors, and *user* ones (the front-end's own
//! virtual addresses) for the rings themselves. Nothing of either is trusted: each translation is a range
//! check with checked arithmetic. No reference into guest memory is ever made, only raw pointers.

mod map;
pub(crate) mod sigbus;

use std::fs::File;
use std::sync::Arc;

use self::map::Mapping;

/// Regions that a table can have (`GET_MAX_MEM_SLOTS`).
pub const SLOTS_MAX: usize = 32;

/// A region as the front-end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Where the guest sees it.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where the front-end has it mapped.
    pub user: u64,
    /// Where in the file it begins.
    pub offset: u64,
}

/// Why a table was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Nothing to map.
    #[error("memory region at {guest:#x} is empty")]
    Empty {
        /// Guest physical address.
        guest: u64,
    },
    /// Address plus size is past 2^64.
    #[error("memory region at {guest:#x}: address, offset or size overflows")]
    Overflow {
        /// Guest physical address.
        guest: u64,
    },
    /// The file ends before the region does.
    #[error("memory region at {guest:#x} needs {needed} bytes of its file, which has {has}")]
    PastEnd {
        /// Guest physical address.
        guest: u64,
        /// Offset plus size.
        needed: u64,
        /// The file's size.
        has: u64,
    },
    /// A file that can make us wait, or that is no memory.
    #[error(
        "memory region at {guest:#x}: its file is not memory (memfd, tmpfs, hugetlbfs) or on a local disk"
    )]
    Kind {
        /// Guest physical address.
        guest: u64,
    },
    /// Two regions share guest or user addresses.
    #[error("memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Guest physical address of one.
        first: u64,
        /// And of the other.
        second: u64,
    },
    /// More than [`SLOTS_MAX`].
    #[error("more than {SLOTS_MAX} memory regions")]
    TooMany,
    /// Asked to remove what is not there.
    #[error("no memory region at {guest:#x} of {size} bytes to remove")]
    NoSuch {
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        size: u64,
    },
    /// The kernel refused.
    #[error("memory region at {guest:#x}: {source}")]
    Map {
        /// Guest physical address.
        guest: u64,
        /// Why.
        source: std::io::Error,
    },
}

#[derive(Clone, Debug)]
struct Region {
    spec: RegionSpec,
    map: Arc<Mapping>,
    /// How often it was added: it goes when it was removed as often.
    added: u32,
}

/// A range of guest physical addresses that is contiguous in this process too. Rings keep the last one they
/// used: a hit costs a subtraction and two comparisons.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    guest: u64,
    size: u64,
    host: *mut u8,
}

impl Window {
    /// Holds nothing.
    pub(crate) const NONE: Self = Self { guest: 0, size: 0, host: std::ptr::null_mut() };

    /// Where `len` bytes from `guest` are, if all of them are in this window.
    #[inline(always)]
    pub(crate) fn get(&self, guest: u64, len: u32) -> Option<*mut u8> {
        // Below the window this wraps to a number past its end.
        let offset = guest.wrapping_sub(self.guest);
        if offset < self.size && self.size - offset >= u64::from(len) {
            Some(self.host.wrapping_add(offset as usize))
        } else {
            None
        }
    }

    /// Bytes from `guest` to the window's end, zero if it is not in it.
    #[inline]
    pub(crate) fn rest(&self, guest: u64) -> u64 {
        self.size.saturating_sub(guest.wrapping_sub(self.guest))
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestMemory {
    /// By guest address.
    regions: Vec<Region>,
}

impl GuestMemory {
    /// A table of these regions (`SET_MEM_TABLE`).
    pub(crate) fn new(regions: impl IntoIterator<Item = (RegionSpec, File)>) -> Result<Self, MemoryError> {
        let mut table = Self::default();
        for (spec, file) in regions {
            table = table.with(spec, &file)?;
        }
        Ok(table)
    }

    /// This table and one more region (`ADD_MEM_REG`). The same region of the same file may be added again: QEMU before
    /// 8.0 does so for each queue pair of a device, and removes it as often.
    pub(crate) fn with(&self, spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        let guest = spec.guest;
        if spec.size == 0 {
            return Err(MemoryError::Empty { guest });
        }
        let end = |start: u64| start.checked_add(spec.size).ok_or(MemoryError::Overflow { guest });
        let (guest_end, user_end) = (end(spec.guest)?, end(spec.user)?);
        end(spec.offset)?;
        if let Some(at) = self.regions.iter().position(|r| r.spec == spec && r.map.is_of(file)) {
            let mut table = self.clone();
            table.regions[at].added = table.regions[at].added.saturating_add(1);
            return Ok(table);
        }
        for other in &self.regions {
            let other = &other.spec;
            if (spec.guest < other.guest + other.size && other.guest < guest_end)
                || (spec.user < other.user + other.size && other.user < user_end)
            {
                return Err(MemoryError::Overlap { first: other.guest, second: guest });
            }
        }
        if self.regions.len() >= SLOTS_MAX {
            return Err(MemoryError::TooMany);
        }
        let map = Arc::new(Mapping::new(&spec, file)?);
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.spec.guest < guest);
        regions.insert(at, Region { spec, map, added: 1 });
        Ok(Self { regions })
    }

    /// This table without a region (`REM_MEM_REG`); its offset does not matter.
    pub(crate) fn without(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let same =
            |r: &Region| r.spec.guest == spec.guest && r.spec.size == spec.size && r.spec.user == spec.user;
        let mut regions = self.regions.clone();
        match regions.iter().position(same) {
            Some(at) => {
                if regions[at].added > 1 {
                    regions[at].added -= 1;
                } else {
                    regions.remove(at);
                }
                Ok(Self { regions })
            }
            None => Err(MemoryError::NoSuch { guest: spec.guest, size: spec.size }),
        }
    }

    /// The regions, by guest address.
    pub(crate) fn specs(&self) -> impl Iterator<Item = RegionSpec> {
        self.regions.iter().map(|r| r.spec)
    }

    /// The window that holds the guest address.
    pub(crate) fn window(&self, guest: u64) -> Option<Window> {
        let at = self.regions.partition_point(|r| r.spec.guest <= guest);
        let region = self.regions.get(at.checked_sub(1)?)?;
        let window = Window { guest: region.spec.guest, size: region.spec.size, host: region.map.start() };
        (window.rest(guest) > 0).then_some(window)
    }

    /// Where `len` bytes from a user address are, if one region holds them all.
    pub(crate) fn user_range(&self, user: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|r| {
            let offset = user.checked_sub(r.spec.user)?;
            let end = offset.checked_add(len)?;
            (end <= r.spec.size).then(|| r.map.start().wrapping_add(offset as usize))
        })
    }

    /// True if some region was lost ([`sigbus`]).
    pub(crate) fn poisoned(&self) -> bool {
        self.regions.iter().any(|r| r.map.poisoned())
    }
}

#[cfg(test)]
mod tests;
