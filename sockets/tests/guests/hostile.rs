//! Guests that mean no good: SYNs without end, and segments that somebody made up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use smoltcp::socket::tcp::State;
use sockets::{Counter, Limits, Settings};
use switch_core::checksum::Sum;
use switch_core::offload::OffloadSet;
use switch_core::virtio_net::{F_NEEDS_CSUM, VnetHeader};

use crate::rig::{GATEWAY, GUEST, GUEST_MAC, Guest, ROUTER_MAC, settings};

const SYN: u8 = 2;

struct Made {
    from: Ipv4Addr,
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: usize,
}

impl Made {
    /// The frame; its checksum is left to the receiver, so that it counts as right.
    fn send(&self, guest: &Guest) {
        let header_len = 20 + self.options.len().next_multiple_of(4);
        let total = 20 + header_len + self.payload;
        let mut frame = [&ROUTER_MAC.0[..], &GUEST_MAC.0, &[8, 0, 0x45, 0]].concat();
        frame.extend((total as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(self.from.octets());
        frame.extend(GATEWAY.octets());
        let mut sum = Sum::new();
        sum.add(&frame[14..]);
        let checksum = sum.checksum().to_be_bytes();
        frame[24..26].copy_from_slice(&checksum);
        frame.extend(self.ports.0.to_be_bytes());
        frame.extend(self.ports.1.to_be_bytes());
        frame.extend(self.seq.to_be_bytes());
        frame.extend(self.ack.to_be_bytes());
        frame.extend([(header_len as u8) << 2, self.flags]);
        frame.extend(self.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(&self.options);
        frame.resize(14 + total, 0x55);
        let vnet =
            VnetHeader { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
        guest.lan.peer.send(vnet, &frame);
    }
}

fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn dice() -> impl FnMut(u32) -> u32 {
    let mut state = 0x1234_5678_9abc_def0_u64;
    move |sides| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(sides)) as u32
    }
}

#[test]
fn syns_without_end_cost_what_one_guest_may_have_and_others_go_on() {
    let limits =
        Limits { tcp: 400, tcp_each: 100, tcp_opening: 100, tcp_opening_each: 40, ..Limits::default() };
    let guest = &mut Guest::with(Settings { limits, ..settings() }, OffloadSet::NONE);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let before = files();
    let mut dice = dice();
    for i in 0..20_000_u32 {
        Made {
            from: Ipv4Addr::new(10, 0, 0, 3),
            ports: ((i % 60_000) as u16 + 1, port),
            seq: dice(u32::MAX),
            ack: 0,
            flags: SYN,
            window: 1000,
            options: vec![2, 4, 5, 180],
            payload: 0,
        }
        .send(guest);
        if i % 64 == 63 {
            guest.step();
            while guest.nic.peer_recv() {}
        }
    }
    assert!(files() <= before + 100, "{} descriptors", files() - before);
    let refused = guest.count(Counter::TcpQuota) + guest.count(Counter::TcpOpening);
    assert!(refused >= 19_000, "{refused}");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    guest.connected(GATEWAY.into(), other.local_addr().unwrap().port(), 4096);
}

#[test]
fn segments_that_somebody_made_up_harm_nobody_else() {
    let guest = &mut Guest::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = guest.connected(IpAddr::V4(GATEWAY), port, 64 * 1024);
    let (mut server, _): (TcpStream, SocketAddr) = listener.accept().unwrap();
    let local = guest.socket(handle).local_endpoint().unwrap().port;
    let before = files();
    let mut dice = dice();
    for i in 0..20_000 {
        let others = dice(2) == 0;
        let n = dice(12) as usize;
        Made {
            // Some are of the guest's own connection, which a reset in the right place would end.
            from: if others { Ipv4Addr::from(0x0a00_0000 + dice(200)) } else { GUEST },
            ports: if others { (dice(65_536) as u16, port) } else { (local, port) },
            seq: dice(u32::MAX),
            ack: dice(u32::MAX),
            flags: if others { dice(256) as u8 & !SYN } else { dice(256) as u8 & !4 },
            window: dice(65_536) as u16,
            options: (0..n).map(|_| dice(256) as u8).collect(),
            payload: dice(1400) as usize,
        }
        .send(guest);
        if i % 64 == 63 {
            guest.step();
            while guest.nic.peer_recv() {}
        }
    }
    assert!(files() <= before + 2);
    assert!(guest.count(Counter::TcpStray) > 1000);
    assert_eq!(guest.state(handle), State::Established);
    guest.socket(handle).send_slice(b"still here").unwrap();
    guest.until("the bytes to be sent", |guest| guest.socket(handle).send_queue() == 0);
    let mut got = [0; 10];
    std::io::Read::read_exact(&mut server, &mut got).unwrap();
    assert_eq!(&got, b"still here");
}
