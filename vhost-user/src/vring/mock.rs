//! A driver of nothing but a ring in memory: it writes any word, and reads what the device wrote.

use std::fs::File;
use std::sync::Arc;

use frontend::memory::{GuestMemory as Guest, Layout as GuestLayout};
use frontend::ring::RingAddresses;

pub(super) use frontend::raw::{Desc, RingAccess, table_bytes};

use super::split::SplitRing;
use super::{Layout, RingSetup, RingShared, SetupError};
use crate::memory::{GuestMemory, RegionSpec};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Guest memory, with one ring in it at fixed places.
pub(super) struct MockDriver {
    pub(super) guest: Guest,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) access: RingAccess,
    pub(super) addresses: RingAddresses,
    pub(super) shared: Arc<RingShared>,
    size: u16,
}

impl MockDriver {
    /// A ring of `size` in the first of `regions` regions of 1 MB each, which touch.
    pub(super) fn new(size: u16, regions: usize) -> Self {
        let guest = Guest::new(&GuestLayout::several(regions, 1 << 20, 0)).unwrap();
        let files = guest.regions().iter().map(|r| {
            let spec = RegionSpec { guest: r.gpa(), size: r.len(), user: r.user_addr(), offset: 0 };
            (spec, File::from(r.fd().try_clone_to_owned().unwrap()))
        });
        let memory = Arc::new(GuestMemory::new(files).unwrap());
        let n = u64::from(size);
        let addresses = RingAddresses { desc: 0, avail: 16 * n, used: (18 * n + 6).next_multiple_of(4) };
        let access = RingAccess::new(&guest, addresses, size).unwrap();
        Self { guest, memory, access, addresses, shared: Arc::default(), size }
    }

    /// Where buffers may be: past the ring's parts.
    pub(super) fn buffers(&self) -> u64 {
        (self.addresses.used + 6 + 8 * u64::from(self.size)).next_multiple_of(4096)
    }

    pub(super) fn setup(&self, features: u64) -> RingSetup {
        let user = |gpa| self.guest.user_addr(gpa).unwrap();
        let layout = Layout {
            descriptors: user(self.addresses.desc),
            available: user(self.addresses.avail),
            used: user(self.addresses.used),
        };
        RingSetup { layout, size: u32::from(self.size), next: None, features }
    }

    pub(super) fn ring(&self, features: u64) -> Result<SplitRing, SetupError> {
        SplitRing::new(&self.setup(features), Arc::clone(&self.memory), Arc::clone(&self.shared))
    }

    /// Where a guest address is in the device's mapping.
    pub(super) fn host(&self, guest: u64) -> usize {
        self.memory.window(guest).unwrap().get(guest, 0).unwrap().addr()
    }
}
