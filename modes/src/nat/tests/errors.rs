//! ICMP errors: those that we make, and those that we translate.

use switch_core::ip::{Cause, Origin, error_frame};

use super::*;

/// Reads an ICMP error: type, code, its ends, and the packet that it quotes.
fn error(frame: &[u8]) -> (u8, u8, IpAddr, IpAddr, Packet) {
    let packet = Packet::of_frame(frame).expect("an IP packet");
    let Transport::Icmp { kind, code, .. } = packet.transport() else { panic!("{packet:?}") };
    (kind, code, packet.source(), packet.destination(), packet.quoted(frame).expect("a quote"))
}

#[test]
fn an_expired_hop_limit_is_told_to_either_side() {
    let mut net = Net::new();
    net.send(A, udp(Way { ttl: 1, ..out(REMOTE) }, 4000, 53, b"x"));
    let (kind, code, from, to, quote) = error(&net.only(A));
    assert_eq!((kind, code, from, to), (11, 0, ip("10.0.0.1"), ip(IP_A)));
    assert_eq!((quote.source(), quote.destination()), (ip(IP_A), ip(REMOTE)));
    assert_eq!(net.mode.sessions(net.now, 9).1, 0, "nothing was translated");

    net.forwards(Protocol::Udp, 8080, "10.0.0.10:80");
    net.send(UPLINK, udp(Way { ttl: 1, ..back(REMOTE) }, 9, 8080, b"x"));
    let (kind, code, from, to, quote) = error(&net.only(UPLINK));
    assert_eq!((kind, code, from, to), (11, 0, ip(EXTERNAL), ip(REMOTE)));
    assert_eq!(quote.destination(), ip(EXTERNAL));

    let way = Way { macs: (MAC_A, ROUTER), from: IP6_A, to: REMOTE6, ttl: 1 };
    net.send(A, udp(way, 4000, 53, b"x"));
    let (kind, code, from, to, _) = error(&net.only(A));
    assert_eq!((kind, code, from, to), (3, 0, ip("fd00::1"), ip(IP6_A)));
}

#[test]
fn a_packet_that_is_too_big_and_must_not_be_fragmented_is_told() {
    let mut net = Net::with(settings(), 1400);
    net.send(A, dont_fragment(udp(out(REMOTE), 4000, 53, &[7; 1400]), true));
    let frame = net.only(A);
    let (kind, code, from, to, _) = error(&frame);
    assert_eq!((kind, code, from, to), (3, 4, ip("10.0.0.1"), ip(IP_A)));
    assert_eq!(frame[14 + 20 + 6..14 + 20 + 8], 1400_u16.to_be_bytes(), "the next link's MTU");

    let way = Way { macs: (MAC_A, ROUTER), from: IP6_A, to: REMOTE6, ttl: 64 };
    net.send(A, udp(way, 4000, 53, &[7; 1400]));
    let frame = net.only(A);
    let (kind, code, ..) = error(&frame);
    assert_eq!((kind, code), (2, 0));
    assert_eq!(frame[14 + 40 + 4..14 + 40 + 8], 1400_u32.to_be_bytes());
    net.send(A, dont_fragment(udp(out(REMOTE), 4000, 53, &[7; 1372]), true));
    assert_eq!(net.only(UPLINK).len(), 14 + 1400, "this one fits");
}

#[test]
fn a_packet_from_outside_that_is_too_big_for_its_guest_is_told_without_its_address() {
    let mut net = Net::new();
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let outside = seen(&net.only(UPLINK)).source.1;
    net.mode.port_changed(net.ports[A], &PortFacts { role: Role::Guest, mtu: 1300, ..PortFacts::default() });
    net.send(UPLINK, dont_fragment(udp(back(REMOTE), 53, outside, &[7; 1400]), true));
    let frame = net.only(UPLINK);
    let (kind, code, from, to, quote) = error(&frame);
    assert_eq!((kind, code, from, to), (3, 4, ip(EXTERNAL), ip(REMOTE)));
    assert_eq!(quote.destination(), ip(EXTERNAL));
    assert_eq!(frame[14 + 20 + 6..14 + 20 + 8], 1300_u16.to_be_bytes());
}

#[test]
fn errors_from_the_outside_reach_the_guest_as_if_nothing_was_translated() {
    let way6 = Way { macs: (MAC_A, ROUTER), from: IP6_A, to: REMOTE6, ttl: 64 };
    let hops = [(out(REMOTE), "198.51.100.1", 3), (way6, "2001:db8:7::7", 1)];
    for (way, hop, want) in hops {
        for kind in [Kind::Udp(4000, 53), Kind::Tcp(4000, 53, true), Kind::Echo(77, true)] {
            let mut net = Net::new();
            net.send(A, build(way, &kind, b"payload"));
            let sent = net.only(UPLINK);
            // A router on the way says that the host is unreachable.
            let mut turned = sent.clone();
            switch_core::ip::set_macs(&mut turned, OURS, ISP);
            let origin = Origin { mac: ISP, address: ip(hop) };
            let told = error_frame(&turned, Cause::HostUnreachable, origin).expect("an error");
            let mut told_to_us = told.clone();
            switch_core::ip::set_macs(&mut told_to_us, OURS, ISP);
            net.send(UPLINK, told_to_us);
            let frame = net.only(A);
            let (kind, _, from, to, quote) = error(&frame);
            assert_eq!((kind, from, to), (want, ip(hop), ip(way.from)));
            assert_eq!((quote.source(), quote.destination()), (ip(way.from), ip(way.to)));
            match quote.transport() {
                Transport::Udp { source, destination } | Transport::Tcp { source, destination, .. } => {
                    assert_eq!((source, destination), (4000, 53));
                }
                Transport::Icmp { id, .. } => assert_eq!(id, 77),
                other => panic!("{other:?}"),
            }
            // The quoted IPv4 header's checksum was kept right.
            if !quote.is_v6() {
                let header = wire::Ipv4Packet::new_unchecked(&frame[quote.network_at()..]);
                assert!(header.verify_checksum());
            }
            assert_eq!(net.mode.sessions(net.now, 9).1, 1, "and the session stays");
        }
    }
}

#[test]
fn an_error_of_no_session_goes_nowhere() {
    let mut net = Net::new();
    let stray = udp(Way { macs: (ISP, OURS), from: EXTERNAL, to: REMOTE, ttl: 64 }, 1234, 53, b"x");
    let origin = Origin { mac: ISP, address: ip("198.51.100.1") };
    let mut told = error_frame(&stray, Cause::PortUnreachable, origin).unwrap();
    switch_core::ip::set_macs(&mut told, OURS, ISP);
    net.send(UPLINK, told);
    net.nothing();
}

#[test]
fn an_error_with_a_wrong_checksum_goes_nowhere() {
    let way6 = Way { macs: (MAC_A, ROUTER), from: IP6_A, to: REMOTE6, ttl: 64 };
    for (way, hop) in [(out(REMOTE), "198.51.100.1"), (way6, "2001:db8:7::7")] {
        let mut net = Net::new();
        net.send(A, udp(way, 4000, 53, b"payload"));
        let mut turned = net.only(UPLINK);
        switch_core::ip::set_macs(&mut turned, OURS, ISP);
        let origin = Origin { mac: ISP, address: ip(hop) };
        let mut good = error_frame(&turned, Cause::HostUnreachable, origin).expect("an error");
        switch_core::ip::set_macs(&mut good, OURS, ISP);
        let at = Packet::of_frame(&good).unwrap().transport_at();
        let mut bad = good.clone();
        bad[at + 2] ^= 1;
        net.send(UPLINK, bad);
        net.nothing();
        if !way.from.contains(':') {
            // The quoted header's, in a message that is sound itself.
            let mut bad = good.clone();
            bad[at + 8 + 10] ^= 1;
            wire::Icmpv4Packet::new_unchecked(&mut bad[at..]).fill_checksum();
            net.send(UPLINK, bad);
            net.nothing();
        }
        net.send(UPLINK, good);
        net.only(A);
    }
}

#[test]
fn no_error_is_about_a_packet_to_the_subnets_broadcast_address() {
    let mut net = Net::new();
    for to in ["10.0.0.255", "10.0.0.0"] {
        for ttl in [1, 64] {
            net.send(A, udp(Way { ttl, ..out(to) }, 4000, 53, b"x"));
        }
    }
    net.nothing();
}

#[test]
fn errors_from_a_guest_show_the_outside_address_only() {
    let mut net = Net::new();
    net.forwards(Protocol::Udp, 8080, "10.0.0.10:80");
    net.send(UPLINK, udp(back(REMOTE), 9, 8080, b"x"));
    let arrived = net.only(A);
    // Nobody listens there: the guest says so.
    let mut turned = arrived.clone();
    switch_core::ip::set_macs(&mut turned, MAC_A, ROUTER);
    let origin = Origin { mac: MAC_A, address: ip(IP_A) };
    net.send(A, error_frame(&turned, Cause::PortUnreachable, origin).unwrap());
    let (kind, code, from, to, quote) = error(&net.only(UPLINK));
    assert_eq!((kind, code, from, to), (3, 3, ip(EXTERNAL), ip(REMOTE)));
    assert_eq!((quote.source(), quote.destination()), (ip(REMOTE), ip(EXTERNAL)));
    assert!(matches!(quote.transport(), Transport::Udp { source: 9, destination: 8080 }));
}

#[test]
fn a_next_hop_that_does_not_answer_is_told_to_the_guest() {
    let mut net = Net::new();
    net.stations.retain(|(port, ..)| *port != UPLINK);
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    net.wait(5);
    let (kind, code, from, to, quote) = error(&net.got(A).pop().expect("an error"));
    assert_eq!((kind, code, from, to), (3, 1, ip("10.0.0.1"), ip(IP_A)));
    assert_eq!(quote.source(), ip(IP_A), "translated back");
    assert!(matches!(quote.transport(), Transport::Udp { source: 4000, destination: 53 }));
}

#[test]
fn errors_are_limited_in_rate() {
    let mut net = Net::new();
    for _ in 0..100 {
        net.send(A, udp(Way { ttl: 1, ..out(REMOTE) }, 4000, 53, b"x"));
    }
    assert_eq!(net.got(A).len(), 10, "a burst");
}
