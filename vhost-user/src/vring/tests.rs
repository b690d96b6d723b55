mod packed;
mod packed_driver;
mod packed_model;

use std::sync::Arc;

use datapath::port::RxDrops;
use datapath::{Armed, Burst, PortError, RxQueue};
use proptest::prelude::*;
use switch_core::verdict::BURST;
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::chain::Walk;
use super::mock::{Desc, INDIRECT, MockDriver, NEXT, WRITE, table_bytes};
use super::notify::Event;
use super::ring::Ring;
use super::rx::RxRing;
use super::split::SplitRing;
use super::tx::TxQueue;
use super::{RingFeatures, SetupError};
use crate::features;

const MODERN: u64 = 1 << features::VERSION_1;
const ALL: u64 = MODERN | 1 << features::INDIRECT_DESC | 1 << features::MRG_RXBUF;

fn rx(driver: &MockDriver, features: u64) -> RxRing<SplitRing> {
    let ring = driver.ring(features).unwrap();
    let kick = Some(Arc::new(Event::new().unwrap()));
    RxRing::new(
        ring,
        &RingFeatures::new(features),
        kick,
        Arc::new(|ring, why| {
            ring.set_broken(why);
        }),
    )
    .unwrap()
}

fn offer(driver: &MockDriver, heads: &[u16]) {
    for &head in heads {
        let idx = driver.access.avail_idx();
        driver.access.set_avail_entry(idx, head);
        driver.access.set_avail_idx(idx.wrapping_add(1));
    }
}

#[test]
fn a_set_up_is_checked() {
    let driver = MockDriver::new(256, 1);
    let with = |change: fn(&mut super::RingSetup)| {
        let mut setup = driver.setup(MODERN);
        change(&mut setup);
        super::split::SplitRing::new(&setup, Arc::clone(&driver.memory), Arc::default()).map(drop)
    };
    assert_eq!(with(|_| {}), Ok(()));
    for size in [0, 3, 255, 32_769, 65_535, 65_536, u32::MAX] {
        let mut setup = driver.setup(MODERN);
        setup.size = size;
        let made = super::split::SplitRing::new(&setup, Arc::clone(&driver.memory), Arc::default()).map(drop);
        assert_eq!(made, Err(SetupError::Size(size)));
    }
    assert_eq!(with(|s| s.layout.descriptors += 8), Err(SetupError::Unaligned("descriptor table")));
    assert_eq!(with(|s| s.layout.available += 1), Err(SetupError::Unaligned("available ring")));
    assert_eq!(with(|s| s.layout.used += 2), Err(SetupError::Unaligned("used ring")));
    assert_eq!(
        with(|s| s.layout.descriptors += (1 << 20) - 4080),
        Err(SetupError::Outside("descriptor table"))
    );
    assert_eq!(with(|s| s.layout.available = u64::MAX - 1), Err(SetupError::Outside("available ring")));
    assert_eq!(with(|s| s.layout.used = 0), Err(SetupError::Outside("used ring")));
}

#[test]
fn used_entries_are_published_once_in_order_at_the_release() {
    let driver = MockDriver::new(64, 1);
    let mut queue = rx(&driver, MODERN);
    let at = driver.buffers();
    for i in 0..64 {
        driver.access.set_desc(i, Desc::new(at, 76, 0, 0));
    }
    // Two rounds over the ring's end, in an order of the driver's own.
    for round in 0..4u16 {
        let heads: Vec<u16> = (0..48).map(|i| (i * 5 + round) % 64).collect();
        offer(&driver, &heads);
        let mut burst = Burst::new();
        let before = driver.access.used_idx();
        assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 48);
        assert_eq!(driver.access.used_idx(), before, "nothing is published before the release");
        queue.release();
        assert_eq!(driver.access.used_idx(), before.wrapping_add(48));
        for (i, &head) in heads.iter().enumerate() {
            assert_eq!(driver.access.used_entry(before.wrapping_add(i as u16)), (u32::from(head), 0));
        }
    }
}

#[test]
fn a_burst_takes_what_it_has_room_for_and_the_rest_comes_next() {
    let driver = MockDriver::new(256, 1);
    let mut queue = rx(&driver, MODERN);
    driver.access.set_desc(0, Desc::new(driver.buffers(), 1512, 0, 0));
    offer(&driver, &[0; 200]);
    let mut burst = Burst::new();
    let mut all = 0;
    loop {
        burst.clear();
        let n = queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap();
        assert!(n <= BURST);
        for i in 0..n {
            assert_eq!(burst.tail(i).iter().map(|s| s.len()).sum::<usize>(), 1500 - 128);
        }
        queue.release();
        if n == 0 {
            break;
        }
        all += n;
    }
    assert_eq!(all, 200);
}

#[test]
fn frames_before_a_bad_chain_are_delivered() {
    let driver = MockDriver::new(64, 1);
    let mut queue = rx(&driver, MODERN);
    driver.access.set_desc(0, Desc::new(driver.buffers(), 76, 0, 0));
    driver.access.set_desc(1, Desc::new(1 << 40, 76, 0, 0));
    offer(&driver, &[0, 0, 0, 1, 0]);
    let mut burst = Burst::new();
    assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 3);
    queue.release();
    assert_eq!(driver.access.used_idx(), 3);
    burst.clear();
    let error = queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap_err();
    assert!(matches!(error, PortError::Protocol(_)), "{error}");
    assert!(driver.shared.is_broken());
    assert_eq!(driver.access.used_idx(), 3);
}

#[test]
fn arming_finds_what_came_before_it() {
    for features in [MODERN, MODERN | 1 << features::EVENT_IDX] {
        let driver = MockDriver::new(64, 1);
        let mut queue = rx(&driver, features);
        driver.access.set_desc(0, Desc::new(driver.buffers(), 76, 0, 0));
        let event_idx = features != MODERN;
        assert_eq!(driver.access.used_flags(), u16::from(!event_idx), "kicks are not wanted at first");
        assert_eq!(queue.arm().unwrap(), Armed::Sleeping);
        assert_eq!(driver.access.used_flags(), 0);
        offer(&driver, &[0]);
        assert_eq!(queue.arm().unwrap(), Armed::Work);
        assert_eq!(driver.access.used_flags(), u16::from(!event_idx));
        let mut burst = Burst::new();
        assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 1);
        queue.release();
        assert_eq!(queue.arm().unwrap(), Armed::Sleeping);
        if event_idx {
            assert_eq!(driver.access.avail_event(), 1, "the index after which a kick is wanted");
        }
        queue.disarm();
        assert_eq!(driver.access.used_flags(), u16::from(!event_idx));
    }
}

#[test]
fn the_driver_is_called_once_a_burst_and_only_if_it_wants_to_be() {
    let driver = MockDriver::new(64, 1);
    let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    driver.shared.call.set(Some(Event::from_peer(call.try_clone().unwrap().into()).unwrap()));
    let calls = || {
        let mut count = [0; 8];
        match rustix::io::read(&call, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    };
    driver.access.set_desc(0, Desc::new(driver.buffers(), 76, 0, 0));
    let pass = |queue: &mut RxRing<SplitRing>, n: usize| {
        offer(&driver, &vec![0; n]);
        let mut burst = Burst::new();
        assert_eq!(queue.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), n);
        queue.release();
        calls()
    };
    let mut queue = rx(&driver, MODERN);
    assert_eq!(pass(&mut queue, 32), 1);
    assert_eq!(pass(&mut queue, 32), 1);
    driver.access.set_avail_flags(1);
    assert_eq!(pass(&mut queue, 32), 0);
    drop(queue);
    // By index: only the burst that passes it.
    driver.access.set_avail_flags(0);
    let mut queue = rx(&driver, MODERN | 1 << features::EVENT_IDX);
    let base = driver.access.used_idx();
    driver.access.set_used_event(base.wrapping_add(1000));
    assert_eq!(pass(&mut queue, 10), 1, "the first of a run, whatever the driver asked");
    assert_eq!(pass(&mut queue, 10), 0);
    driver.access.set_used_event(base.wrapping_add(25));
    assert_eq!(pass(&mut queue, 5), 0, "25 entries: the one of number 25 is not there yet");
    assert_eq!(pass(&mut queue, 5), 1);
    assert_eq!(pass(&mut queue, 5), 0, "passed already");
}

/// A frame of `len` bytes, its tail in memory of this process.
fn push(burst: &mut Burst, bytes: &[u8]) {
    let head = burst.next_head().unwrap();
    let take = bytes.len().min(128);
    head.begin(bytes.len() as u32, take).copy_from_slice(&bytes[..take]);
    if take < bytes.len() {
        // SAFETY: the bytes outlive the burst in these tests.
        let tail = unsafe { datapath::Segment::new(bytes[take..].as_ptr(), (bytes.len() - take) as u32) };
        burst.push(&[tail]).unwrap();
    } else {
        burst.push(&[]).unwrap();
    }
}

/// What the driver finds in its receive ring: for each frame the buffers it took and its bytes.
fn delivered(driver: &MockDriver, from: u16, lens: &[u32]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut at = from;
    while at != driver.access.used_idx() {
        let mut bytes = Vec::new();
        let mut left = 1u16;
        let mut first = true;
        while left > 0 {
            let (head, len) = driver.access.used_entry(at);
            let mut part = vec![0; len as usize];
            let d = driver.access.desc(head as u16);
            assert!(len <= lens[head as usize % lens.len()], "no more than the buffer has");
            driver.guest.read(d.addr, &mut part).unwrap();
            bytes.extend_from_slice(&part);
            at = at.wrapping_add(1);
            if first {
                left = u16::from_le_bytes([bytes[10], bytes[11]]);
                assert!(left > 0);
                first = false;
            }
            left -= 1;
        }
        frames.push(bytes.split_off(12));
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Frames of any length into buffers of any lengths: what arrives is what was sent, whole and in order, and
    /// the others are reported; a ring that takes nothing has published nothing.
    #[test]
    fn frames_spread_over_merged_buffers_arrive_whole(
        lens in prop::collection::vec(12u32..2000, 1..8),
        frames in prop::collection::vec(14usize..4000, 1..40),
        buffers in 1u16..64,
        base in any::<u16>(),
    ) {
        let driver = MockDriver::new(64, 1);
        driver.access.set_avail_idx(base);
        driver.access.set_used_idx(base);
        let mut ring = TxQueue::new(driver.ring(ALL).unwrap(), &RingFeatures::new(ALL));
        for i in 0..64u16 {
            let len = lens[usize::from(i) % lens.len()];
            driver.access.set_desc(i, Desc::new(driver.buffers() + 2048 * u64::from(i), len, WRITE, 0));
        }
        offer(&driver, &(0..buffers).collect::<Vec<_>>());
        let bytes: Vec<Vec<u8>> =
            frames.iter().enumerate().map(|(n, &len)| (0..len).map(|i| (n * 31 + i * 7) as u8).collect()).collect();
        let mut burst = Burst::new();
        bytes.iter().for_each(|b| push(&mut burst, b));
        let members: Vec<u8> = (0..bytes.len() as u8).collect();
        let report = ring.transmit(&mut burst.bucket(&members)).unwrap();
        let expected: Vec<&Vec<u8>> =
            bytes.iter().enumerate().filter(|(i, _)| report.dropped() >> i & 1 == 0).map(|(_, b)| b).collect();
        let got = delivered(&driver, base, &lens);
        prop_assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            prop_assert!(got == expected);
        }
        prop_assert_eq!(report.error | report.down, 0);
    }

    /// Chains of any form, against virtio-queue's: what we follow to its end is what it follows, and what
    /// it follows to a sound end we follow too.
    #[test]
    fn chains_are_what_virtio_queue_makes_of_them(
        table in prop::collection::vec(descriptor(), 16),
        indirect in prop::collection::vec(descriptor(), 16),
        head in 0u16..16,
    ) {
        let driver = MockDriver::new(16, 2);
        for (i, d) in table.iter().enumerate() {
            driver.access.set_desc(i as u16, *d);
        }
        driver.guest.write(TABLE, &table_bytes(&indirect)).unwrap();
        offer(&driver, &[head]);

        let mut ring = driver.ring(ALL).unwrap();
        let mut pieces = Vec::new();
        let mut budget = 1000;
        assert_eq!(ring.begin(1).unwrap(), 1);
        let (_, first) = ring.chain(0).unwrap().unwrap();
        let ours = ring.walk(first, false, &mut pieces, &mut budget);

        let ranges = driver.guest.regions().iter().map(|r| {
            let file = std::fs::File::from(r.fd().try_clone_to_owned().unwrap());
            (GuestAddress(r.gpa()), r.len() as usize, Some(FileOffset::new(file, 0)))
        });
        let oracle = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(driver.addresses.desc as u32), Some(0));
        queue.set_avail_ring_address(Some(driver.addresses.avail as u32), Some(0));
        queue.set_used_ring_address(Some(driver.addresses.used as u32), Some(0));
        queue.set_size(16);
        queue.set_ready(true);
        let theirs: Vec<_> = queue.pop_descriptor_chain(&oracle).map(|c| c.collect()).unwrap_or_default();
        let in_memory = |d: &virtio_queue::desc::split::Descriptor| {
            let end = 2 << 20;
            d.addr().0 < end && d.addr().0 + u64::from(d.len()) <= end
        };
        let complete = theirs.last().is_some_and(|d| !d.has_next())
            && theirs.iter().all(|d| !d.is_write_only() && in_memory(d));

        match ours {
            Ok(Walk::Whole) => {
                prop_assert!(complete, "we followed what it does not: {theirs:?}");
                let mut at = 0;
                for d in &theirs {
                    let mut left = d.len();
                    let mut addr = d.addr().0;
                    loop {
                        let piece = pieces[at];
                        prop_assert_eq!(piece.ptr.addr(), driver.host(addr));
                        at += 1;
                        addr += u64::from(piece.len);
                        left -= piece.len;
                        if left == 0 {
                            break;
                        }
                    }
                }
                prop_assert_eq!(at, pieces.len());
            }
            Ok(Walk::TooLong) => prop_assert!(false, "no chain of 16 is too long"),
            // What is forbidden and virtio-queue lets pass: a successor beside an indirect table.
            Err(e) => prop_assert!(!complete || forbidden(&table, head), "{e}: {theirs:?}"),
        }
    }
}

const TABLE: u64 = 0x8000;

/// True if the chain comes upon an indirect descriptor that also has a successor.
fn forbidden(table: &[Desc], head: u16) -> bool {
    let mut at = head;
    for _ in 0..=table.len() {
        let d = table[usize::from(at)];
        if d.flags & INDIRECT != 0 {
            return d.flags & NEXT != 0;
        }
        if d.flags & NEXT == 0 || usize::from(d.next) >= table.len() {
            return false;
        }
        at = d.next;
    }
    false
}

/// Mostly sound descriptors, and some of every unsound kind.
fn descriptor() -> impl Strategy<Value = Desc> {
    let border = 1u64 << 20;
    let addr = prop_oneof![
        8 => 0x9000u64..0xf_0000,
        2 => (border - 100)..(border + 100),
        1 => (2 * border - 100)..(2 * border + 100),
        1 => Just(TABLE),
    ];
    let len = prop_oneof![6 => 1u32..200, 2 => Just(16u32 * 16), 1 => Just(32u32), 1 => Just(0u32)];
    let flags = prop_oneof![8 => Just(NEXT), 5 => Just(0u16), 1 => Just(WRITE)];
    let next = prop_oneof![12 => 0u16..16, 1 => 16u16..20];
    let plain = (addr, len, flags, next).prop_map(|(a, l, f, n)| Desc::new(a, l, f, n));
    let table = prop_oneof![8 => Just((256u32, INDIRECT)), 1 => Just((40, INDIRECT)), 1 => Just((256, INDIRECT | NEXT))]
        .prop_map(|(len, flags)| Desc::new(TABLE, len, flags, 1));
    prop_oneof![9 => plain, 1 => table]
}
