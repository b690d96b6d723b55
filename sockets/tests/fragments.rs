//! Datagrams and pings longer than the guest's MTU, both ways, against real sockets of this host's loopback.

#[allow(dead_code, reason = "each test needs a part of it")]
mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::*;
use sockets::Settings;
use switch_core::ip::Transport;

fn server(v6: bool) -> (UdpSocket, SocketAddr) {
    let server = UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).expect("a socket");
    server.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let port = server.local_addr().expect("an address").port();
    (server, SocketAddr::new(ip(if v6 { GATEWAY6 } else { GATEWAY4 }), port))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 5) as u8).collect()
}

#[test]
fn long_datagrams_go_out_whole_and_come_in_as_fragments() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (server, remote) = server(v6);
        let mut room = vec![0; 70_000];
        for (id, len) in [(1, 1473), (2, 4000), (3, 65_000)] {
            let mut frames = in_fragments(&udp(4000, remote, 64, &bytes(len)), id);
            frames.reverse();
            for frame in &frames {
                rig.send(frame);
            }
            let (n, from) = server.recv_from(&mut room).expect("a datagram");
            assert!(room[..n] == bytes(len), "{n} of {len}");
            server.send_to(&room[..n], from).expect("sent");
            let (packet, body) = rig.next_whole();
            assert_eq!((packet.source(), packet.is_fragment()), (remote.ip(), true));
            assert!(body[8..] == bytes(len));
            // An ordinary one in between goes by the same mapping.
            rig.send(&udp(4000, remote, 64, b"short"));
            assert_eq!(server.recv_from(&mut room).expect("a datagram"), (5, from));
        }
        assert_eq!((rig.count("reassembled"), rig.control.sessions(10).1), (3, 1));
    }
}

#[test]
fn many_long_datagrams_from_outside_are_not_cut_short() {
    let mut rig = Rig::new(settings());
    let (server, remote) = server(false);
    // More fragments than may wait at once, and no more datagrams than each socket has room for.
    for port in 0..20 {
        rig.send(&udp(4000 + port, remote, 64, b"hello"));
        let (_, from) = server.recv_from(&mut [0; 16]).expect("a datagram");
        for n in 0..10 {
            server.send_to(&[n; 9000], from).expect("sent");
        }
    }
    let mut next = std::collections::HashMap::<u16, u8>::new();
    for _ in 0..200 {
        let (packet, body) = rig.next_whole();
        let Transport::Udp { destination, .. } = packet.transport() else { panic!("no UDP: {packet:?}") };
        let n = next.entry(destination).or_default();
        assert!(body[8..] == [*n; 9000]);
        *n += 1;
    }
    assert_eq!((rig.count("outbox_full"), next.len()), (0, 20));
}

#[test]
fn long_pings_of_the_gateway_are_answered() {
    for v6 in [false, true] {
        for host_loopback in [false, true] {
            let mut rig = Rig::new(Settings { host_loopback, ..settings() });
            let to = ip(if v6 { GATEWAY6 } else { GATEWAY4 });
            for frame in in_fragments(&ping(9, to, 64, &bytes(4000)), 5) {
                rig.send(&frame);
            }
            let (packet, body) = rig.next_whole();
            assert_eq!(packet.source(), to);
            assert!(body[0] == if v6 { 129 } else { 0 } && body[4..6] == [0, 9] && body[8..] == bytes(4000));
        }
    }
}

#[test]
fn a_long_datagram_with_a_wrong_checksum_goes_nowhere() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (server, remote) = server(v6);
        let mut frames = in_fragments(&udp(4000, remote, 64, &bytes(4000)), 5);
        let last = frames.last_mut().expect("fragments");
        *last.last_mut().expect("bytes") ^= 1;
        frames.iter().for_each(|frame| rig.send(frame));
        assert_eq!((rig.count("bad_checksum"), rig.count("reassembled")), (1, 1));
        rig.send(&udp(4000, remote, 64, b"ordinary"));
        assert_eq!(server.recv(&mut [0; 100]).expect("a datagram"), 8);
    }
}

#[test]
fn a_fragment_whose_hops_are_used_up_is_told_of_once() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (_server, remote) = server(v6);
        for frame in in_fragments(&udp(4000, remote, 1, &bytes(4000)), 5) {
            rig.send(&frame);
        }
        assert_eq!(rig.next().icmp(), (if v6 { 3 } else { 11 }, 0));
        rig.nothing();
        assert_eq!((rig.count("hop_limit"), rig.count("reassembled")), (3, 0));
    }
}
