//! Packed rings between the port and a driver that was written apart from it, from the specification alone: in each
//! combination of features, over stops, reconnections and resets.

mod common;

use common::{PATIENCE, Rig, frame};
use frontend::device::TxLayout;
use frontend::memory::Layout;
use frontend::ring::Indirect;
use frontend::session::Session;
use frontend::{Config, NetDevice, features as f};
use vhost_user::PortState;

const SWITCHES: [u64; 4] = [f::MRG_RXBUF, f::IN_ORDER, f::INDIRECT_DESC, f::EVENT_IDX];

/// Every set of switches of a packed ring.
fn combinations() -> impl Iterator<Item = u64> {
    (0..1u32 << SWITCHES.len()).map(|set| {
        let on = SWITCHES.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
        on.fold(f::VERSION_1 | f::RING_PACKED, |all, (_, switch)| all | switch)
    })
}

/// A guest whose buffers are in pieces: its frames in three, its receive buffers in two, or small and merged.
fn guest(features: u64) -> Config {
    let mergeable = features & f::MRG_RXBUF != 0;
    Config {
        features: features | f::MQ,
        required: features,
        queue_size: 64,
        tx_layout: TxLayout::Pieces(3),
        indirect: Indirect::Chains,
        rx_buffer_size: mergeable.then_some(300),
        rx_pieces: if mergeable { 1 } else { 2 },
        ..Config::default()
    }
}

/// Frames of all lengths one way and the other, with as many under way as there is room for: each comes, in order, as it was.
fn both_ways(a: &mut NetDevice, b: &mut NetDevice, count: u32) {
    for (from, to) in [(0, 1), (1, 0)] {
        let devices = [&mut *a, &mut *b];
        let len = |number: u32| 60 + (number as usize * 97) % 1455;
        let (mut sent, mut received) = (0, 0);
        while received < count {
            // The smallest of receive queues has 64 buffers of 300 bytes.
            while sent < count && sent - received < 8 {
                devices[from].send(&frame(sent, len(sent))).unwrap();
                sent += 1;
            }
            let (_, bytes) = devices[to].recv(PATIENCE).unwrap();
            assert_eq!(bytes, frame(received, len(received)), "frame {received}");
            received += 1;
        }
    }
}

#[test]
fn every_combination_of_features_carries_frames() {
    for features in combinations() {
        let rig = Rig::new();
        let (pa, pb) = rig.pair();
        // The one ring begins close to its end, the other one at its beginning.
        let mut a = NetDevice::connect(&pa.path, guest(features)).unwrap();
        let mut b = NetDevice::connect(&pb.path, Config { ring_base: 64 + 61, ..guest(features) }).unwrap();
        assert!(a.has(features) && b.has(features));
        both_ways(&mut a, &mut b, 300);
        assert_eq!(rig.host.errors(), Vec::<String>::new(), "{features:#x}");
    }
}

#[test]
fn stops_reconnections_and_resets_lose_nothing_and_repeat_nothing() {
    for features in combinations() {
        let rig = Rig::new();
        let (pa, pb) = rig.pair();
        let memory = Some(Layout::single(16 << 20));
        let mut a = NetDevice::connect(&pa.path, Config { memory, ..guest(features) }).unwrap();
        let split = features & !f::RING_PACKED;
        let mut b = NetDevice::connect(&pb.path, guest(split)).unwrap();
        both_ways(&mut a, &mut b, 23);
        a.stop().unwrap();
        pa.wait_state(&PortState::Waiting);
        a.resume().unwrap();
        pa.wait_state(&PortState::Up);
        both_ways(&mut a, &mut b, 23);
        a.session().raw().stream().shutdown(std::net::Shutdown::Both).unwrap();
        a.reattach(Session::connect(&pa.path, PATIENCE).unwrap()).unwrap();
        pa.wait_state(&PortState::Up);
        both_ways(&mut a, &mut b, 23);
        // A driver that takes the device over, and another one after it.
        for features in [split, features] {
            a.reinit(guest(features)).unwrap();
            pa.wait_state(&PortState::Up);
            both_ways(&mut a, &mut b, 23);
        }
        assert_eq!(rig.host.errors(), Vec::<String>::new(), "{features:#x}");
    }
}

#[test]
fn pairs_of_packed_rings_come_and_go_between_frames() {
    let rig = Rig::new();
    let (pa, pb) = (rig.port_with("a.sock", |c| c.queue_pairs = 2), rig.port("b.sock"));
    rig.join(&pa, &pb);
    let features = f::VERSION_1 | f::RING_PACKED | f::MRG_RXBUF | f::EVENT_IDX;
    let mut a = NetDevice::connect(&pa.path, guest(features).queue_pairs(2)).unwrap();
    let mut b = NetDevice::connect(&pb.path, guest(features)).unwrap();
    for round in 0..20 {
        both_ways(&mut a, &mut b, 20);
        a.enable_pair(1, round % 2 == 1).unwrap();
    }
    assert_eq!(rig.host.errors(), Vec::<String>::new());
}
