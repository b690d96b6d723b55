//! A guest's memory with anything in it: a ring's parts, descriptors, tables and buffers, received from and transmitted
//! into.
//!
//! Input: one byte for the ring's size (a power of two up to 256; any number up to 256 if the ring is packed), one for the
//! features, one for how many frames are transmitted and one for their length, then the memory from address 0 on. A split
//! ring has descriptor table, available ring, used ring (at the next multiple of 4) there, a packed ring its
//! descriptors, the driver's and the device's event suppression structure, the last of which says where it
//! stands. Behind them is whatever they point at.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vhost_user::fuzzing::Guest;

const VERSION_1: u64 = 1 << 32;
const MRG_RXBUF: u64 = 1 << 15;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const RING_PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;

static GUEST: LazyLock<Guest> = LazyLock::new(|| Guest::new().expect("memory for a guest"));

fuzz_target!(|data: &[u8]| {
    let [size, features, count, len, image @ ..] = data else { return };
    let features = [VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, RING_PACKED, IN_ORDER]
        .into_iter()
        .enumerate()
        .filter(|(i, _)| features >> i & 1 != 0)
        .fold(0, |all, (_, bit)| all | bit);
    let size = if features & RING_PACKED == 0 { 1 << (size % 9) } else { 1 + u32::from(*size) };
    GUEST.fill(image).expect("memory can be written");
    for frame in GUEST.receive(size, features, 4) {
        assert!(!frame.is_empty() && frame.len() <= switch_core::head::FRAME_MAX);
    }
    GUEST.fill(image).expect("memory can be written");
    let lens: Vec<usize> = (0..usize::from(*count)).map(|i| usize::from(*len) * (1 + i % 16)).collect();
    let taken = GUEST.transmit(size, features, &lens);
    // A buffer may lie where a packed ring does, and what is written into it make more of them.
    let most = if features & RING_PACKED == 0 { size as usize } else { lens.len() };
    assert!(taken <= most, "a frame takes at least one buffer");
});
