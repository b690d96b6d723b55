//! A split ring as anybody may write it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::error::Result;
use crate::eventfd::Event;
use crate::memory::{GuestMemory, Window};
use crate::ring::RingAddresses;

/// A descriptor, with any content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Flags: 1 next, 2 write, 4 indirect.
    pub flags: u16,
    /// The next descriptor.
    pub next: u16,
}

impl Desc {
    /// A descriptor of these fields.
    #[must_use]
    pub fn new(addr: u64, len: u32, flags: u16, next: u16) -> Self {
        Desc { addr, len, flags, next }
    }

    /// The descriptor's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// The bytes of a descriptor table, for indirect descriptors.
#[must_use]
pub fn table_bytes(descs: &[Desc]) -> Vec<u8> {
    descs.iter().flat_map(Desc::bytes).collect()
}

/// A split ring's areas, writable without any rule. Clones refer to the same ring, also from other threads.
///
/// Slots are taken modulo the queue size.
#[derive(Clone, Debug)]
pub struct RingAccess {
    size: u16,
    desc: Window,
    avail: Window,
    used: Window,
    kick: Option<Arc<Event>>,
}

impl RingAccess {
    /// The ring of `size` descriptors at `addresses`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] when an area is not inside one region.
    pub fn new(memory: &GuestMemory, addresses: RingAddresses, size: u16) -> Result<Self> {
        let n = u64::from(size);
        Ok(RingAccess {
            size,
            desc: memory.window(addresses.desc, 16 * n)?,
            avail: memory.window(addresses.avail, 6 + 2 * n)?,
            used: memory.window(addresses.used, 6 + 8 * n)?,
            kick: None,
        })
    }

    pub(crate) fn of(size: u16, windows: (Window, Window, Window), kick: Arc<Event>) -> Self {
        RingAccess { size, desc: windows.0, avail: windows.1, used: windows.2, kick: Some(kick) }
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index % self.size)
    }

    /// Writes descriptor `index`.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.desc.write(16 * self.slot(index), &desc.bytes());
    }

    /// Reads descriptor `index`.
    #[must_use]
    pub fn desc(&self, index: u16) -> Desc {
        let at = 16 * self.slot(index);
        let rest = self.desc.load_u64(at + 8, Ordering::Relaxed);
        Desc {
            addr: self.desc.load_u64(at, Ordering::Relaxed),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// Writes entry `slot` of the available ring.
    pub fn set_avail_entry(&self, slot: u16, head: u16) {
        self.avail.store_u16(4 + 2 * self.slot(slot), head, Ordering::Relaxed);
    }

    /// The available index.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        self.avail.load_u16(2, Ordering::Acquire)
    }

    /// Sets the available index.
    pub fn set_avail_idx(&self, idx: u16) {
        self.avail.store_u16(2, idx, Ordering::Release);
    }

    /// Sets the available ring's flags (1: no interrupts).
    pub fn set_avail_flags(&self, flags: u16) {
        self.avail.store_u16(0, flags, Ordering::Relaxed);
    }

    /// Sets `used_event`, the index after which an interrupt is wanted.
    pub fn set_used_event(&self, idx: u16) {
        self.avail.store_u16(4 + 2 * usize::from(self.size), idx, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// `avail_event`, the index after which the device wants a kick.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.used.load_u16(4 + 8 * usize::from(self.size), Ordering::Relaxed)
    }

    /// The used ring's flags (1: no kicks).
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.used.load_u16(0, Ordering::Relaxed)
    }

    /// The used index.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.used.load_u16(2, Ordering::Acquire)
    }

    /// Sets the used index, which is the device's to write.
    pub fn set_used_idx(&self, idx: u16) {
        self.used.store_u16(2, idx, Ordering::Release);
    }

    /// Entry `slot` of the used ring: id and length.
    #[must_use]
    pub fn used_entry(&self, slot: u16) -> (u32, u32) {
        let at = 4 + 8 * self.slot(slot);
        (self.used.load_u32(at, Ordering::Relaxed), self.used.load_u32(at + 4, Ordering::Relaxed))
    }

    /// Writes `head` as the next available entry, moves the index by one, and kicks.
    pub fn offer(&self, head: u16) {
        let idx = self.avail_idx();
        self.set_avail_entry(idx, head);
        self.set_avail_idx(idx.wrapping_add(1));
        self.kick();
    }

    /// Signals the kick eventfd, whether the device asked for it or not. Nothing happens for a ring without one.
    pub fn kick(&self) {
        fence(Ordering::SeqCst);
        if let Some(kick) = &self.kick {
            kick.signal();
        }
    }

    /// Waits until the used index is `idx`. Gives whether it got there within `timeout`.
    #[must_use]
    pub fn wait_used(&self, idx: u16, timeout: std::time::Duration) -> bool {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if self.used_idx() == idx {
                return true;
            }
            if std::time::Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }
}
