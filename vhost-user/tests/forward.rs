//! Frames between two front-ends through the port's public face.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Counters, PATIENCE, Rig, frame, until};
use frontend::device::TxLayout;
use frontend::features as f;
use frontend::ring::Indirect;
use frontend::{Config, NetDevice};
use vhost_user::PortState;

/// Frames of many lengths, both ways, in order and whole.
fn exchange(a: &mut NetDevice, b: &mut NetDevice, lens: &[usize]) {
    let mut number = 0;
    for &len in lens {
        for (from, to) in [(0, 1), (1, 0)] {
            number += 1;
            let sent = frame(number, len);
            let devices = [&mut *a, &mut *b];
            let [x, y] = devices;
            let (from, to) = if (from, to) == (0, 1) { (x, y) } else { (y, x) };
            from.send(&sent).unwrap();
            let (_, got) = to.recv(PATIENCE).unwrap_or_else(|e| panic!("frame of {len} bytes: {e}"));
            assert!(got == sent, "frame of {len} bytes arrived as {} others", got.len());
        }
    }
}

const LENS: [usize; 18] =
    [18, 31, 32, 33, 60, 63, 64, 65, 100, 127, 128, 129, 140, 141, 256, 1000, 1513, 1514];

fn check(name: &str, a: Config, b: Config) {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut da =
        NetDevice::connect(&pa.path, a).unwrap_or_else(|e| panic!("{name}: {e}; {:?}", pa.port.state()));
    let mut db =
        NetDevice::connect(&pb.path, b).unwrap_or_else(|e| panic!("{name}: {e}; {:?}", pb.port.state()));
    pa.wait_state(&PortState::Up);
    pb.wait_state(&PortState::Up);
    for _ in 0..3 {
        exchange(&mut da, &mut db, &LENS);
    }
    assert_eq!(rig.host.errors(), Vec::<String>::new(), "{name}");
}

#[test]
fn frames_cross_whole_with_every_ring_layout() {
    let d = Config::default;
    check("defaults", d(), d());
    check("plain", Config::plain(), d());
    check("legacy", Config::legacy(), d());
    check("legacy to legacy", Config::legacy(), Config::legacy().with(f::ANY_LAYOUT));
    check("no mergeable buffers", d().without(f::MRG_RXBUF), d());
    check("no indirect descriptors", d().without(f::INDIRECT_DESC), d().without(f::INDIRECT_DESC));
    check("no event index", d().without(f::EVENT_IDX), d().without(f::EVENT_IDX));
    check("in order", d().with(f::IN_ORDER), d().with(f::IN_ORDER));
    check("header apart", Config { tx_layout: TxLayout::HeaderApart, ..d() }, d());
    check("always indirect", Config { indirect: Indirect::Always, ..d() }, d());
    check("pieces", Config { tx_layout: TxLayout::Pieces(5), ..d() }, d());
    check("pieces, direct", Config { tx_layout: TxLayout::Pieces(7), indirect: Indirect::Never, ..d() }, d());
    check("small merged buffers", d(), Config { rx_buffer_size: Some(100), ..d() });
    check("buffers in pieces", d(), Config { rx_pieces: 3, ..d().without(f::MRG_RXBUF) });
    check("ring of two", d().queue_size(2).without(f::INDIRECT_DESC), d().queue_size(2));
    check("ring of 32768", d().queue_size(32768).mtu(1400), d().mtu(1400));
    check("wrapping indices", Config { ring_base: 65_500, ..d() }, Config { ring_base: 65_535, ..d() });
    check("without protocol features", Config { protocol: None, ..d() }, d());
    check("one memory table", Config { mem_slots: false, ..d() }, d());
}

#[test]
fn frames_cross_whole_with_packed_rings_of_every_kind() {
    let d = || Config::default().require(f::RING_PACKED);
    check("packed", d(), d());
    check("packed to split", d(), Config::default());
    check("packed, no mergeable buffers", d().without(f::MRG_RXBUF), d());
    check("packed, no indirect descriptors", d().without(f::INDIRECT_DESC), d().without(f::INDIRECT_DESC));
    check("packed, no event index", d().without(f::EVENT_IDX), d().without(f::EVENT_IDX));
    check("packed, in order", d().with(f::IN_ORDER), d().with(f::IN_ORDER));
    check("packed, header apart", Config { tx_layout: TxLayout::HeaderApart, ..d() }, d());
    check("packed, always indirect", Config { indirect: Indirect::Always, ..d() }, d());
    let pieces = Config { tx_layout: TxLayout::Pieces(7), indirect: Indirect::Never, ..d() };
    check("packed, pieces", pieces, d());
    check("packed, small merged buffers", d(), Config { rx_buffer_size: Some(100), ..d() });
    check("packed, buffers in pieces", d(), Config { rx_pieces: 3, ..d().without(f::MRG_RXBUF) });
    check("packed, ring of two", d().queue_size(2).without(f::INDIRECT_DESC), d().queue_size(2));
}

#[test]
fn a_header_cut_into_pieces_is_read_whole() {
    // Twenty pieces of a 64-byte frame: the virtio-net header itself lies in three of them.
    let pieces = |n| Config { tx_layout: TxLayout::Pieces(n), ..Config::default() };
    check("twenty", pieces(20), Config::default());
    check(
        "twenty, legacy",
        Config { tx_layout: TxLayout::Pieces(20), ..Config::legacy().with(f::ANY_LAYOUT) },
        Config::default(),
    );
}

#[test]
fn bulk_traffic_arrives_in_order_and_complete() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    const FRAMES: u32 = 20_000;
    let taken = Arc::new(AtomicU32::new(0));
    let receiver = {
        let taken = Arc::clone(&taken);
        std::thread::spawn(move || {
            for n in 0..FRAMES {
                let (_, got) = b.recv(PATIENCE).unwrap_or_else(|e| panic!("frame {n}: {e}"));
                assert!(got == frame(n, 64 + (n as usize * 7) % 1400), "frame {n} is another");
                taken.store(n, Ordering::Relaxed);
            }
        })
    };
    for n in 0..FRAMES {
        // The receive ring has 256 buffers, and what does not fit is dropped.
        while n > taken.load(Ordering::Relaxed) + 200 && !receiver.is_finished() {
            std::thread::yield_now();
        }
        a.send(&frame(n, 64 + (n as usize * 7) % 1400)).unwrap();
    }
    let joined = receiver.join();
    let c = &pa.counters;
    let lost = Counters::get(&c.full);
    assert!(joined.is_ok(), "{lost} frames found no buffer");
    assert_eq!(Counters::get(&c.received), u64::from(FRAMES));
    until("the last burst is counted", || Counters::get(&c.sent) == u64::from(FRAMES));
}
