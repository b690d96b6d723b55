//! Packed rings, by cases; what drivers of every kind may do is in [`packed_model`](super::packed_model).

use std::sync::Arc;

use datapath::port::RxDrops;
use datapath::{Burst, PortError, RxQueue};

use super::packed_driver::{AVAIL, Driver, INDIRECT, NEXT, USED, WRITE, counter, ring, rx, tx};
use super::{MODERN, push};
use crate::features;
use crate::vring::chain::CHAIN_MAX;
use crate::vring::packed::START;
use crate::vring::ring::Ring;
use crate::vring::{AnyRing, Direction, SetupError};

const PACKED: u64 = MODERN | 1 << features::RING_PACKED;
const INDIRECT_DESC: u64 = 1 << features::INDIRECT_DESC;

/// What a new ring makes of what `fill` writes into it: frames, or the error.
fn received(driver: &Driver, features: u64, fill: impl FnOnce()) -> Result<usize, PortError> {
    let mut queue = rx(driver, features, None);
    fill();
    let mut burst = Burst::new();
    let n = queue.rx_burst(&mut burst, &mut RxDrops::default())?;
    queue.release();
    burst.clear();
    queue.rx_burst(&mut burst, &mut RxDrops::default())?;
    Ok(n)
}

/// True if it takes a frame of this length.
fn transmitted(driver: &Driver, features: u64, len: usize, fill: impl FnOnce()) -> Result<bool, PortError> {
    let mut ring = tx(driver, features, None);
    fill();
    let mut burst = Burst::new();
    push(&mut burst, &vec![7; len]);
    Ok(ring.transmit(&mut burst.bucket(&[0]))?.dropped() == 0)
}

#[test]
fn a_set_up_is_checked() {
    let driver = Driver::new(7);
    let with = |change: fn(&mut crate::vring::RingSetup)| {
        let mut setup = driver.setup(PACKED, None);
        change(&mut setup);
        let memory = Arc::clone(&driver.mock.memory);
        AnyRing::new(&setup, Direction::Readable, memory, Arc::default()).map(drop)
    };
    for size in [1, 2, 3, 255, 256, 32_767, 32_768] {
        let driver = Driver::new(7);
        let mut setup = driver.setup(PACKED, None);
        setup.size = size;
        setup.layout.available = driver.mock.guest.user_addr(0xf_0000).unwrap();
        setup.layout.used = setup.layout.available + 4;
        let memory = Arc::clone(&driver.mock.memory);
        let made = AnyRing::new(&setup, Direction::Readable, memory, Arc::default()).map(drop);
        assert_eq!(made, Ok(()), "size {size}");
    }
    assert_eq!(with(|s| s.size = 0), Err(SetupError::PackedSize(0)));
    assert_eq!(with(|s| s.size = 32_769), Err(SetupError::PackedSize(32_769)));
    assert_eq!(with(|s| s.size = u32::MAX), Err(SetupError::PackedSize(u32::MAX)));
    assert_eq!(with(|s| s.layout.descriptors += 8), Err(SetupError::Unaligned("descriptor ring")));
    let driver_area = "driver's event suppression structure";
    assert_eq!(with(|s| s.layout.available += 2), Err(SetupError::Unaligned(driver_area)));
    assert_eq!(with(|s| s.layout.available = u64::MAX - 2), Err(SetupError::Outside(driver_area)));
    let device_area = "device's event suppression structure";
    assert_eq!(with(|s| s.layout.used += 1), Err(SetupError::Unaligned(device_area)));
    assert_eq!(with(|s| s.layout.used = 0), Err(SetupError::Outside(device_area)));
    assert_eq!(with(|s| s.layout.descriptors += 2 << 20), Err(SetupError::Outside("descriptor ring")));
}

/// Descriptors, as (address, length, flags) from slot 0 of the first lap on, and the reason why the ring breaks.
type Case = (&'static str, &'static [(u64, u32, u16)], &'static str);

const B: u64 = Driver::BUFFERS;
const T: u64 = Driver::TABLES;

#[test]
fn what_no_driver_may_do_breaks_the_ring() {
    let cases: &[Case] = &[
        ("outside", &[(1 << 40, 100, AVAIL)], "outside the memory"),
        ("across the end", &[((1 << 20) - 10, 100, AVAIL)], "outside the memory"),
        ("wraps", &[(u64::MAX - 5, 100, AVAIL)], "outside the memory"),
        ("nothing, nowhere", &[(1 << 40, 0, AVAIL)], "outside the memory"),
        ("writable", &[(B, 100, AVAIL | WRITE)], "wrong direction"),
        ("second writable", &[(B, 10, AVAIL | NEXT), (B, 100, AVAIL | WRITE)], "wrong direction"),
        ("goes on with a used one", &[(B, 12, AVAIL | NEXT), (B, 100, AVAIL | USED)], "not available"),
        ("goes on with nothing", &[(B, 12, AVAIL | NEXT)], "not available"),
        ("goes on with the other lap's", &[(B, 12, AVAIL | NEXT), (B, 100, USED)], "not available"),
        ("has no end", &[(B, 12, AVAIL | NEXT); 4], "not available"),
        ("is longer than the ring", &[(B, 12, AVAIL | NEXT); 7], "longer than the ring"),
        ("indirect, not agreed on", &[(T, 32, AVAIL | INDIRECT)], "where none may be"),
    ];
    let with_indirect: &[Case] = &[
        ("indirect and next", &[(T, 32, AVAIL | INDIRECT | NEXT), (B, 9, AVAIL)], "where none may be"),
        ("indirect after others", &[(B, 9, AVAIL | NEXT), (T, 32, AVAIL | INDIRECT)], "where none may be"),
        ("no table", &[(T, 0, AVAIL | INDIRECT)], "no multiple of 16"),
        ("a part of one", &[(T, 40, AVAIL | INDIRECT)], "no multiple of 16"),
        ("a table outside", &[(1 << 50, 32, AVAIL | INDIRECT)], "table outside"),
        ("a table across the end", &[((2 << 20) - 16, 32, AVAIL | INDIRECT)], "table outside"),
        ("a table in a table", &[(T + 256, 16, AVAIL | INDIRECT)], "where none may be"),
        ("a hostile length", &[(T, u32::MAX - 15, AVAIL | INDIRECT)], "where none may be"),
    ];
    for (features, cases) in [(PACKED, cases), (PACKED | INDIRECT_DESC, with_indirect)] {
        for (name, descriptors, reason) in cases {
            for writable in [false, true] {
                let driver = Driver::new(7);
                // A sound table, and one that leads to it.
                driver.write_table(T, &[(B, 50, 0), (B, 50, 0)]);
                driver.write_table(T + 256, &[(T, 32, INDIRECT)]);
                let fill = || {
                    for (slot, (addr, len, flags)) in descriptors.iter().enumerate() {
                        // What is sound when it is read is not when it is written, and the other way round.
                        let turned = if writable && flags & INDIRECT == 0 { flags ^ WRITE } else { *flags };
                        driver.set(slot as u16, *addr, *len, 0, turned);
                    }
                };
                let error = match writable {
                    false => received(&driver, features, fill).unwrap_err(),
                    true => transmitted(&driver, features, 60, fill).unwrap_err(),
                };
                let told = error.to_string();
                // A table's first descriptor is readable, which is the fault that is found first.
                let other = writable && told.contains("wrong direction");
                assert!(told.contains(reason) || other, "{name}, writable {writable}: {told}");
                assert!(matches!(error, PortError::Protocol(_)), "{name}: {told}");
            }
        }
    }
}

#[test]
fn what_is_not_available_is_left_alone() {
    // Used in this lap is the one state that a ring that has just begun cannot find; see the positions below.
    for flags in [0, USED, NEXT, USED | NEXT | INDIRECT, 0x7f7f & !AVAIL] {
        let driver = Driver::new(7);
        let mut queue = rx(&driver, PACKED, None);
        driver.set(0, B, 76, 3, flags);
        let mut burst = Burst::new();
        assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 0, "flags {flags:#x}");
    }
}

#[test]
fn a_table_is_read_whatever_its_flags_say() {
    // As DPDK's driver leaves them: all of its tables say writable.
    let driver = Driver::new(7);
    driver.write_table(T, &[(B, 12, WRITE | NEXT), (B + 100, 60, WRITE | AVAIL), (B + 200, 60, USED)]);
    driver.set(0, T, 48, 0, AVAIL | INDIRECT);
    assert_eq!(received(&driver, PACKED | INDIRECT_DESC, || {}).unwrap(), 1);
}

#[test]
fn a_chain_of_more_than_can_be_followed_is_dropped_and_skipped() {
    let size = CHAIN_MAX as u16 + 50;
    for long in [CHAIN_MAX as u16 + 1, CHAIN_MAX as u16 + 40] {
        let driver = Driver::new(size);
        for slot in 0..long {
            let next = if slot + 1 < long { NEXT } else { 0 };
            driver.set(slot, B, 76, 9, AVAIL | next);
        }
        driver.set(long, B, 76, 11, AVAIL);
        let mut queue = rx(&driver, PACKED, None);
        let (mut burst, mut drops) = (Burst::new(), RxDrops::default());
        assert_eq!(queue.rx_burst(&mut burst, &mut drops).unwrap(), 1);
        assert_eq!(drops.too_many_segments, 1);
        queue.release();
        assert_eq!(driver.id(0), 9);
        assert_eq!(driver.flags(0), AVAIL | USED);
        assert_eq!((driver.id(long), driver.flags(long)), (11, AVAIL | USED));
        assert_eq!(driver.shared().next(), START | (long + 1));

        // Into one, nothing is written; it stays where it is.
        let driver = Driver::new(size);
        for slot in 0..long {
            let next = if slot + 1 < long { NEXT } else { 0 };
            driver.set(slot, B, 76, 9, AVAIL | WRITE | next);
        }
        assert!(!transmitted(&driver, PACKED | 1 << features::MRG_RXBUF, 60_000, || {}).unwrap());
        assert_eq!(driver.flags(0), AVAIL | WRITE | NEXT);
        assert_eq!(driver.shared().next(), START);
    }
}

#[test]
fn nothing_is_published_before_the_release_and_then_in_the_rings_order() {
    let driver = Driver::new(8);
    let mut queue = rx(&driver, PACKED, None);
    for slot in 0..5 {
        driver.set(slot, B, 76, 40_000 + slot, AVAIL);
    }
    let mut burst = Burst::new();
    assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 5);
    assert!((0..5).all(|slot| driver.flags(slot) == AVAIL));
    queue.release();
    for slot in 0..5 {
        assert_eq!(driver.flags(slot), AVAIL | USED);
        assert_eq!(driver.id(slot), 40_000 + slot, "the ID is the driver's, whatever it is");
    }
    assert_eq!(driver.flags(5), 0);
}

#[test]
fn a_batch_in_order_takes_one_used_descriptor() {
    let driver = Driver::new(8);
    let mut queue = rx(&driver, PACKED | 1 << features::IN_ORDER, None);
    for slot in 0..5 {
        driver.set(slot, B, 76, slot, AVAIL);
    }
    let mut burst = Burst::new();
    assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 5);
    queue.release();
    assert_eq!((driver.flags(0), driver.id(0)), (AVAIL | USED, 4), "the first place, the last ID");
    assert!((1..5).all(|slot| driver.flags(slot) == AVAIL), "the others are not written");
}

#[test]
fn a_frame_over_several_buffers_appears_at_once() {
    let driver = Driver::new(8);
    for slot in 0..4 {
        driver.set(slot, B + 64 * u64::from(slot), 64, slot, AVAIL | WRITE);
    }
    assert!(!transmitted(&driver, PACKED, 100, || {}).unwrap(), "one buffer is too small");
    assert!((0..4).all(|slot| driver.flags(slot) == AVAIL | WRITE), "so none is used");
    assert!(transmitted(&driver, PACKED | 1 << features::MRG_RXBUF, 100, || {}).unwrap());
    let used = |slot| (driver.flags(slot), driver.id(slot), driver.len(slot));
    assert_eq!(used(0), (AVAIL | USED | WRITE, 0, 64));
    assert_eq!(used(1), (AVAIL | USED | WRITE, 1, 48));
    assert_eq!(driver.flags(2), AVAIL | WRITE);
}

/// Who kills the device in the middle of a burst finds the ring as the driver left it.
#[test]
fn a_burst_writes_nothing_into_the_ring_before_it_is_published() {
    let driver = Driver::new(8);
    let made_available = |slot| driver.set(slot, B, 256, slot, AVAIL | WRITE);
    (0..3).for_each(made_available);
    let mut ring = ring(&driver, PACKED, None, Direction::Writable);
    assert!(ring.begin(3).unwrap() > 0);
    for i in 0..3 {
        let (chain, _) = ring.chain(i).unwrap().unwrap();
        ring.write_used(i, chain, 100);
    }
    for slot in 0..3 {
        assert_eq!((driver.len(slot), driver.flags(slot)), (256, AVAIL | WRITE), "slot {slot}");
    }
    ring.publish(3);
    for slot in 0..3 {
        assert_eq!((driver.len(slot), driver.flags(slot) & USED), (100, USED), "slot {slot}");
    }
}

#[test]
fn the_largest_ring_goes_around() {
    let driver = Driver::large(32_768);
    let mut queue = rx(&driver, PACKED, None);
    let mut burst = Burst::new();
    let mut at = 0u32;
    for _ in 0..32_768 * 3 / 48 {
        for i in 0..48 {
            let flags = if counter((at + i) / 32_768) { AVAIL } else { USED };
            driver.set(((at + i) % 32_768) as u16, B + 0x8_0000, 76, 1, flags);
        }
        burst.clear();
        assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 48);
        queue.release();
        at += 48;
        let used = if counter((at - 1) / 32_768) { AVAIL | USED } else { 0 };
        assert_eq!(driver.flags(((at - 1) % 32_768) as u16), used);
        let wrap = if counter(at / 32_768) { START } else { 0 };
        assert_eq!(driver.shared().next(), (at % 32_768) as u16 | wrap);
    }
}

#[test]
fn the_largest_ring_goes_around_the_other_way() {
    let driver = Driver::large(32_768);
    let mut ring = tx(&driver, PACKED, None);
    let mut burst = Burst::new();
    (0..32).for_each(|_| push(&mut burst, &[3; 64]));
    let members: Vec<u8> = (0..32).collect();
    for at in (0..3 * 32_768).step_by(32) {
        let (available, used) = if counter(at / 32_768) { (AVAIL, AVAIL | USED) } else { (USED, 0) };
        let slots = (at % 32_768) as u16..(at % 32_768) as u16 + 32;
        slots.clone().for_each(|slot| driver.set(slot, B + 0x8_0000, 2048, slot, available | WRITE));
        assert_eq!(ring.transmit(&mut burst.bucket(&members)).unwrap().dropped(), 0);
        for slot in slots {
            let now = (driver.flags(slot), driver.id(slot), driver.len(slot));
            assert_eq!(now, (used | WRITE, slot, 76));
        }
    }
    assert_eq!(driver.shared().next(), 0, "three laps");
}

/// A ring of 8 whose device has used `n` slots, all that were available.
fn after(n: u16) -> Driver {
    let driver = Driver::new(8);
    let mut queue = rx(&driver, PACKED, None);
    for at in 0..n {
        driver.set(at % 8, B, 76, 0, if counter(u32::from(at) / 8) { AVAIL } else { USED });
        let mut burst = Burst::new();
        assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 1);
        queue.release();
    }
    driver
}

fn place(n: u16) -> u16 {
    (n % 8) | if counter(u32::from(n) / 8) { START } else { 0 }
}

/// Where a ring goes on, if it does.
fn resumed(driver: &Driver, told: Option<u32>) -> Result<u16, SetupError> {
    let setup = driver.setup(PACKED, told);
    let memory = Arc::clone(&driver.mock.memory);
    let shared = Arc::<crate::vring::RingShared>::default();
    AnyRing::new(&setup, Direction::Readable, memory, Arc::clone(&shared)).map(|_| shared.next())
}

#[test]
fn a_ring_that_nobody_has_used_begins_at_its_beginning() {
    for told in [None, Some(0), Some(0x8000), Some(0x8000_8000), Some(5), Some(0xffff_ffff)] {
        let driver = Driver::new(8);
        // What a driver before this one left in the device's word does not matter.
        driver.set_device_word(0x1_0003);
        driver.set(0, B, 76, 0, AVAIL);
        assert_eq!(resumed(&driver, told), Ok(START), "told {told:x?}");
    }
}

#[test]
fn a_ring_goes_on_where_it_stood_whatever_the_front_end_knows() {
    for n in 1..40 {
        let here = u32::from(place(n));
        // Both halves, as QEMU tells; one, as DPDK's back-end does; nothing; the beginning, as QEMU does of a back-end that
        // was killed; where it stopped before, one lap ago at most.
        let before = u32::from(place(n.saturating_sub(3)));
        let tellings = [
            Some(here | here << 16),
            Some(here),
            None,
            Some(0x8000),
            Some(0x8000_8000),
            Some(before | before << 16),
            Some(0x7fff_7fff),
        ];
        for told in tellings {
            let driver = after(n);
            assert_eq!(resumed(&driver, told), Ok(place(n)), "{n} slots, told {told:x?}");
        }
    }
}

#[test]
fn what_the_front_end_knows_counts_where_the_ring_allows_it() {
    // Another back-end was here before, which kept nothing in its word but where it was woken once.
    for (n, kept) in [(5, place(2)), (13, 0), (20, place(17))] {
        let driver = after(n);
        driver.set_device_word(u32::from(kept));
        let here = u32::from(place(n));
        assert_eq!(resumed(&driver, Some(here)), Ok(place(n)));
        assert_eq!(resumed(&driver, Some(here | here << 16)), Ok(place(n)));
        // It had taken buffers that it did not use: they come again.
        let ahead = u32::from(place(n + 1));
        assert_eq!(resumed(&driver, Some(ahead | here << 16)), Ok(place(n)));
    }
}

#[test]
fn a_ring_of_which_nobody_knows_where_it_stands_is_refused() {
    for n in [1, 5, 13, 20] {
        for told in [None, Some(0x8000_8000), Some(u32::from(place(n - 1)))] {
            let driver = after(n);
            driver.set_device_word(u32::from(place(n - 1)));
            assert_eq!(resumed(&driver, told), Err(SetupError::Position), "{n} slots, told {told:x?}");
        }
    }
}
