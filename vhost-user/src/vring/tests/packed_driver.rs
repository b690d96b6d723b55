//! A packed ring as its driver's side may write it, with any content.

use std::sync::Arc;

use crate::features;
use crate::vring::mock::MockDriver;
use crate::vring::notify::Event;
use crate::vring::packed::PackedRing;
use crate::vring::rx::RxRing;
use crate::vring::tx::TxQueue;
use crate::vring::{Direction, Layout, RingFeatures, RingSetup, RingShared};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
pub(super) const AVAIL: u16 = 1 << 7;
pub(super) const USED: u16 = 1 << 15;

/// The wrap counter in a lap, of which the first is number 0.
pub(super) fn counter(lap: u32) -> bool {
    lap.is_multiple_of(2)
}

/// Guest memory with a packed ring at its beginning.
pub(super) struct Driver {
    pub(super) mock: MockDriver,
    pub(super) size: u16,
    /// Where the two event suppression structures are, the driver's first.
    events: u64,
}

impl Driver {
    /// Where buffers may be, 2,048 bytes for each slot of a ring of 256.
    pub(super) const BUFFERS: u64 = 0x1_0000;
    /// Where tables may be, 256 bytes for each slot.
    pub(super) const TABLES: u64 = 0xa_0000;

    /// A ring of up to 2,048 descriptors. Guest memory ends after 1 MB.
    pub(super) fn new(size: u16) -> Self {
        // Of the mock's own ring only the memory is used.
        Self { mock: MockDriver::new(64, 1), size, events: 0xf000 }
    }

    /// A ring of any size, over the places for buffers.
    pub(super) fn large(size: u16) -> Self {
        Self { mock: MockDriver::new(64, 1), size, events: 0xf_0000 }
    }

    pub(super) fn shared(&self) -> &RingShared {
        &self.mock.shared
    }

    pub(super) fn setup(&self, features: u64, next: Option<u32>) -> RingSetup {
        let user = |gpa| self.mock.guest.user_addr(gpa).unwrap();
        let layout =
            Layout { descriptors: user(0), available: user(self.events), used: user(self.events + 4) };
        RingSetup { layout, size: u32::from(self.size), next, features }
    }

    pub(super) fn set(&self, slot: u16, addr: u64, len: u32, id: u16, flags: u16) {
        self.mock.guest.write(16 * u64::from(slot), &descriptor(addr, len, id, flags)).unwrap();
    }

    pub(super) fn write_table(&self, at: u64, descriptors: &[(u64, u32, u16)]) {
        for (i, &(addr, len, flags)) in descriptors.iter().enumerate() {
            // IDs are reserved in tables.
            let bytes = descriptor(addr, len, 0xabcd, flags);
            self.mock.guest.write(at + 16 * i as u64, &bytes).unwrap();
        }
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.mock.guest.read(at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub(super) fn len(&self, slot: u16) -> u32 {
        self.word(16 * u64::from(slot) + 8)
    }

    pub(super) fn id(&self, slot: u16) -> u16 {
        self.word(16 * u64::from(slot) + 12) as u16
    }

    pub(super) fn flags(&self, slot: u16) -> u16 {
        (self.word(16 * u64::from(slot) + 12) >> 16) as u16
    }

    /// The device's event suppression structure: flags, and offset with wrap counter.
    pub(super) fn device_event(&self) -> (u16, u16) {
        let word = self.word(self.events + 4);
        ((word >> 16) as u16, word as u16)
    }

    pub(super) fn set_device_word(&self, word: u32) {
        self.mock.guest.write(self.events + 4, &word.to_le_bytes()).unwrap();
    }

    pub(super) fn set_driver_event(&self, flags: u16, place: u16) {
        let word = u32::from(place) | u32::from(flags) << 16;
        self.mock.guest.write(self.events, &word.to_le_bytes()).unwrap();
    }
}

fn descriptor(addr: u64, len: u32, id: u16, flags: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

pub(super) fn ring(driver: &Driver, features: u64, next: Option<u32>, direction: Direction) -> PackedRing {
    let setup = driver.setup(features | 1 << features::RING_PACKED, next);
    PackedRing::new(&setup, direction, Arc::clone(&driver.mock.memory), Arc::clone(&driver.mock.shared))
        .unwrap()
}

pub(super) fn rx(driver: &Driver, features: u64, next: Option<u32>) -> RxRing<PackedRing> {
    let ring = ring(driver, features, next, Direction::Readable);
    let kick = Some(Arc::new(Event::new().unwrap()));
    let on_broken = Arc::new(|ring: &RingShared, why: &datapath::PortError| {
        ring.set_broken(why);
    });
    RxRing::new(ring, &RingFeatures::new(features), kick, on_broken).unwrap()
}

pub(super) fn tx(driver: &Driver, features: u64, next: Option<u32>) -> TxQueue<PackedRing> {
    TxQueue::new(ring(driver, features, next, Direction::Writable), &RingFeatures::new(features))
}
