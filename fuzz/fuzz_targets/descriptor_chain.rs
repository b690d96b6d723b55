//! A guest's memory with anything in it: a split ring's parts, descriptors, tables and buffers, received from and
//! transmitted into.
//!
//! Input: one byte for the ring's size (a power of two up to 256), one for the features, one for how many frames
//! are transmitted and one for their length, then the memory from address 0 on: descriptor table, available ring,
//! used ring (at the next multiple of 4), and whatever they point at.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vhost_user::fuzzing::Guest;

const VERSION_1: u64 = 1 << 32;
const MRG_RXBUF: u64 = 1 << 15;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

static GUEST: LazyLock<Guest> = LazyLock::new(|| Guest::new().expect("memory for a guest"));

fuzz_target!(|data: &[u8]| {
    let [size, features, count, len, image @ ..] = data else { return };
    let size = 1u32 << (size % 9);
    let features = [VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX]
        .into_iter()
        .enumerate()
        .filter(|(i, _)| features >> i & 1 != 0)
        .fold(0, |all, (_, bit)| all | bit);
    GUEST.fill(image).expect("memory can be written");
    for frame in GUEST.receive(size, features, 4) {
        assert!(!frame.is_empty() && frame.len() <= switch_core::head::FRAME_MAX);
    }
    GUEST.fill(image).expect("memory can be written");
    let lens: Vec<usize> = (0..usize::from(*count)).map(|i| usize::from(*len) * (1 + i % 16)).collect();
    let taken = GUEST.transmit(size, features, &lens);
    assert!(taken <= size as usize, "a frame takes at least one buffer");
});
