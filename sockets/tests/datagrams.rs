//! UDP and echo against real sockets of this host's loopback.

#[allow(dead_code, reason = "each test needs a part of it")]
mod common;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use common::*;
use datapath::Segment;
use datapath::datagram::{self, Outgoing};
use datapath::socket::{Gather, GatherRoom};
use sockets::{Limits, Settings};
use switch_core::Head;
use switch_core::napt::Filtering;
use switch_core::virtio_net::{F_NEEDS_CSUM, GSO_UDP_L4, VnetHeader};

/// A server on the host's loopback, and the address that a guest has for it.
fn server(v6: bool) -> (UdpSocket, SocketAddr) {
    let server = UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).expect("a socket");
    server.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let port = server.local_addr().expect("an address").port();
    (server, SocketAddr::new(ip(if v6 { GATEWAY6 } else { GATEWAY4 }), port))
}

fn take(server: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut room = vec![0; 70_000];
    let (n, from) = server.recv_from(&mut room).expect("a datagram");
    room.truncate(n);
    (room, from)
}

#[test]
fn datagrams_go_out_and_answers_come_back() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (server, remote) = server(v6);
        for payload in [&b"ask"[..], &[], &[b'x'; 1400]] {
            rig.send(&udp(4000, remote, 64, payload));
            let (asked, from) = take(&server);
            assert_eq!(asked, payload);
            server.send_to(payload, from).expect("sent");
            let got = rig.next();
            assert_eq!(
                (got.packet.source(), got.packet.destination()),
                (remote.ip(), ip(if v6 { IP6 } else { IP4 }))
            );
            assert_eq!((got.ports(), got.payload()), ((remote.port(), 4000), payload));
        }
        // One mapping for all of them, and one session.
        let (sessions, all) = rig.control.sessions(10);
        assert_eq!((all, sessions[0].remote, sessions[0].inside.port()), (1, remote, 4000));
    }
}

#[test]
fn a_mapping_is_one_whatever_is_sent_to_and_lets_in_whom_it_was_told() {
    use Filtering::*;
    for (filtering, port, other) in [
        (EndpointIndependent, true, true),
        (AddressDependent, true, false),
        (AddressAndPortDependent, false, false),
    ] {
        let mut rig = Rig::new(Settings { filtering, ..settings() });
        let (first, remote) = server(false);
        let (second, another) = server(false);
        rig.send(&udp(4000, remote, 64, b"a"));
        let (_, from) = take(&first);
        // From the same address, of a port that was not sent to; and from another address.
        let third = UdpSocket::bind("127.0.0.9:0").expect("a socket");
        second.send_to(b"port", from).expect("sent");
        third.send_to(b"other", from).expect("sent");
        first.send_to(b"answer", from).expect("sent");
        let mut want = vec![&b"answer"[..]];
        if other {
            // The whole of 127/8 is the gateway to a guest.
            want.insert(0, b"other");
        }
        if port {
            want.insert(0, b"port");
        }
        // 127.0.0.9 is the gateway's address to the guest as well, so its address was sent to.
        if !other && port {
            want.insert(1, b"other");
        }
        for payload in want {
            assert_eq!(rig.next().payload(), payload, "{filtering:?}");
        }
        rig.send(&udp(4000, another, 64, b"b"));
        assert_eq!(take(&second).1, from, "one mapping");
    }
}

#[test]
fn super_frames_go_out_as_datagrams_and_come_in_as_one() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (server, remote) = server(v6);
        let payload: Vec<u8> = (0..10_050).map(|n: u32| (n / 100) as u8).collect();
        let frame = udp(4000, remote, 64, &payload);
        let at = if v6 { 54 } else { 34 };
        let vnet = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: at + 8,
            gso_size: 100,
            csum_start: at,
            csum_offset: 6,
            num_buffers: 0,
        };
        rig.send_with(&frame, vnet);
        let mut from = None;
        for want in payload.chunks(100) {
            let (got, sender) = take(&server);
            assert_eq!(got, want);
            from = Some(sender);
        }
        // Back: more than one call can take, and each as it was.
        let from = from.expect("a sender");
        for part in payload.chunks(1200) {
            server.send_to(part, from).expect("sent");
        }
        for part in payload.chunks(1200) {
            assert_eq!(rig.next().payload(), part);
        }
        rig.nothing();
    }
}

#[test]
fn a_datagram_longer_than_the_mtu_comes_in_fragments() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (server, remote) = server(v6);
        rig.send(&udp(4000, remote, 64, b"ask"));
        let (_, from) = take(&server);
        let payload: Vec<u8> = (0..9000).map(|n: u32| n as u8).collect();
        server.send_to(&payload, from).expect("sent");
        let (mut whole, mut more) = (Vec::new(), true);
        while more {
            let got = rig.next();
            assert!(got.packet.is_fragment());
            assert_eq!(usize::from(got.packet.fragment_offset()), whole.len());
            whole.extend_from_slice(&got.frame[got.packet.transport_at()..got.packet.end()]);
            more = got.packet.more_fragments();
        }
        assert_eq!(whole[8..], payload);
    }
}

#[test]
fn long_datagrams_that_come_together_come_in_fragments_of_their_own() {
    let mut rig = Rig::new(settings());
    let (server, remote) = server(false);
    rig.send(&udp(4000, remote, 64, b"ask"));
    let (_, to) = take(&server);
    let payload: Vec<u8> = (0..8000).map(|n: u32| (n / 2000) as u8).collect();
    let mut head = Head::new();
    head.begin(payload.len() as u32, 0);
    // SAFETY: the payload outlives the gather.
    let tail = [unsafe { Segment::new(payload.as_ptr(), payload.len() as u32) }];
    let mut gather = Gather::begin(&mut GatherRoom::default());
    gather.add(&head, &tail, 0, payload.len());
    let with = Outgoing { to, segment: Some(2000), hop_limit: None, from: None };
    assert_eq!(datagram::send(server.as_fd(), &gather, &with), Ok(8000));
    for n in 0..4 {
        let (first, last) = (rig.next(), rig.next());
        assert!(first.packet.more_fragments() && !last.packet.more_fragments());
        assert_eq!(first.packet.fragment_id(), last.packet.fragment_id());
        let rest = &last.frame[last.packet.transport_at()..last.packet.end()];
        assert_eq!([first.payload(), rest].concat(), [n; 2000]);
    }
    rig.nothing();
}

#[test]
fn what_is_told_of_one_datagram_does_not_cost_the_next() {
    let mut rig = Rig::new(settings());
    let (closed, nowhere) = server(false);
    drop(closed);
    let (server, remote) = server(false);
    for _ in 0..3 {
        // The loopback's answer is there before the next call, and the kernel tells it to that.
        rig.send(&udp(4000, nowhere, 64, b"nobody"));
        rig.send(&udp(4000, remote, 64, b"somebody"));
        assert_eq!(take(&server).0, b"somebody");
    }
    assert_eq!(rig.next().icmp(), (3, 3));
}

#[test]
fn a_closed_port_is_told_about_the_packet_that_was_sent() {
    for v6 in [false, true] {
        let mut rig = Rig::new(settings());
        let (server, remote) = server(v6);
        drop(server);
        rig.send(&udp(4000, remote, 64, b"is anybody there"));
        let got = rig.next();
        assert_eq!(got.icmp(), if v6 { (1, 4) } else { (3, 3) });
        assert_eq!(got.packet.source(), remote.ip());
        let quoted = got.packet.quoted(&got.frame).expect("a quote");
        assert_eq!((quoted.source(), quoted.destination()), (ip(if v6 { IP6 } else { IP4 }), remote.ip()));
        let text = &got.frame[quoted.transport_at() + 8..got.packet.end()];
        assert_eq!(text, b"is anybody there");
        // The mapping is as good as before: what was told once is not held against the next.
        let (server, remote) = self::server(v6);
        rig.send(&udp(4000, remote, 64, b"next"));
        assert_eq!(take(&server).0, b"next");
    }
}

#[test]
fn what_is_closed_is_told_and_counted() {
    let mut rig = Rig::new(Settings { host_loopback: false, ..settings() });
    for (n, to) in [
        "127.0.0.1",
        "0.0.0.0",
        GATEWAY4,
        "169.254.169.254",
        "::1",
        GATEWAY6,
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
    ]
    .into_iter()
    .enumerate()
    {
        let v6 = to.contains(':');
        rig.send(&udp(4000, SocketAddr::new(ip(to), 53), 64, b"x"));
        assert_eq!(rig.next().icmp(), if v6 { (1, 1) } else { (3, 13) }, "{to}");
        assert_eq!(rig.count("denied"), n as u64 + 1, "{to}");
    }
    assert_eq!(rig.control.sessions(1).1, 0);
}

#[test]
fn a_used_up_hop_limit_is_the_gateways_to_tell() {
    let mut rig = Rig::new(settings());
    for (frame, want) in [
        (udp(4000, "192.0.2.1:33434".parse().unwrap(), 1, b"x"), (11, 0)),
        (udp(4000, "[2001:db8::1]:33434".parse().unwrap(), 1, b"x"), (3, 0)),
        (ping(7, ip("192.0.2.1"), 1, b"x"), (11, 0)),
    ] {
        rig.send(&frame);
        let got = rig.next();
        assert_eq!(got.icmp(), want);
        assert_eq!(got.packet.source(), ip(if got.packet.is_v6() { GATEWAY6 } else { GATEWAY4 }));
    }
    assert_eq!(rig.count("hop_limit"), 3);
}

#[test]
fn a_guest_has_so_many_mappings_and_loses_its_oldest() {
    let mut rig = Rig::new(Settings { limits: Limits { udp_each: 8, ..Limits::default() }, ..settings() });
    let (server, remote) = server(false);
    for port in 0..50 {
        rig.send(&udp(4000 + port, remote, 64, b"x"));
        take(&server);
    }
    let (sessions, all) = rig.control.sessions(100);
    assert_eq!((all, rig.count("evicted")), (8, 42));
    assert!(sessions.iter().all(|s| s.inside.port() >= 4042));
}

#[test]
fn pings_are_answered_where_the_host_lets_us() {
    let mut rig = Rig::new(settings());
    if !rig.control.pings_allowed() {
        rig.send(&ping(77, ip(GATEWAY4), 64, b"hello"));
        rig.nothing();
        assert_eq!(rig.count("ping_forbidden"), 1);
        return;
    }
    for (to, reply) in [(GATEWAY4, (0, 0)), (GATEWAY6, (129, 0))] {
        for payload in [&b"hello"[..], &[b'x'; 1400]] {
            rig.send(&ping(77, ip(to), 64, payload));
            let got = rig.next();
            assert_eq!((got.icmp(), got.packet.icmp_id()), (reply, Some(77)));
            assert_eq!((got.packet.source(), got.payload()), (ip(to), payload));
            let at = got.packet.transport_at();
            assert_eq!(got.frame[at + 6..at + 8], [0, 7], "the sequence number");
        }
    }
    rig.nothing();
}

#[test]
fn what_makes_no_sense_is_dropped() {
    let mut rig = Rig::new(settings());
    let (_server, remote) = server(false);
    let good = udp(4000, remote, 64, b"0123456789");
    // Lengths that are not the packet's, and ports that are none.
    for (at, value) in [(38, [0, 7]), (38, [0, 19]), (38, [0xff, 0xff]), (34, [0, 0]), (36, [0, 0])] {
        let mut bad = good.clone();
        bad[at..at + 2].copy_from_slice(&value);
        rig.send(&bad);
    }
    assert_eq!(rig.count("bad_packet"), 5);
    // A first fragment whose length nothing can follow.
    let mut piece = good.clone();
    let mut ip = etherparse::Ipv4HeaderSlice::from_slice(&piece[14..34]).unwrap().to_header();
    (ip.more_fragments, ip.dont_fragment) = (true, false);
    ip.header_checksum = ip.calc_header_checksum();
    piece[14..34].copy_from_slice(&ip.to_bytes());
    rig.send(&piece);
    assert_eq!(rig.count("fragment_bad"), 1);
    rig.nothing();
}
