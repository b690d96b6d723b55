//! Frames that are nobody's friends: nothing panics, no inside address leaves, nothing is bridged between the sides.

use proptest::prelude::*;
use switch_core::ip::fragments;

use super::*;

/// A frame that is nearly right: what it is, which bytes are changed, where it is cut.
#[derive(Clone, Debug)]
struct Bad {
    port: usize,
    what: usize,
    ports: (u16, u16),
    changes: Vec<(usize, u8)>,
    cut: Option<usize>,
    wait: bool,
}

fn bad() -> impl Strategy<Value = Bad> {
    let ports = (0..8_u16, prop_oneof![0..8_u16, any::<u16>()]);
    let changes = proptest::collection::vec((0..120_usize, any::<u8>()), 0..4);
    let cut = proptest::option::weighted(0.2, 14..100_usize);
    (UPLINK..=B, 0..9_usize, ports, changes, cut, proptest::bool::weighted(0.05))
        .prop_map(|(port, what, ports, changes, cut, wait)| Bad { port, what, ports, changes, cut, wait })
}

fn frame(bad: &Bad, outside: u16) -> Vec<u8> {
    let (inside, v6) = (bad.port != UPLINK, bad.what >= 6);
    let way = match (inside, v6) {
        (true, false) if bad.ports.0 == 7 => out(EXTERNAL),
        (true, false) => out(REMOTE),
        (true, true) => Way { macs: (MAC_A, ROUTER), from: IP6_A, to: REMOTE6, ttl: 64 },
        (false, false) => back(REMOTE),
        (false, true) => Way { macs: (ISP, OURS), from: REMOTE6, to: EXTERNAL6, ttl: 64 },
    };
    let (from, to) = (1000 + bad.ports.0, if inside { bad.ports.1 } else { outside });
    let mut frame = match bad.what {
        0 | 6 => udp(way, from, to, &[1; 60]),
        1 | 7 => build(way, &Kind::Tcp(from, to, bad.ports.1 & 1 == 0), b"x"),
        2 | 8 => build(way, &Kind::Echo(to, bad.ports.1 & 1 == 0), b"x"),
        3 => {
            let cut = fragments(&dont_fragment(udp(way, from, to, &[1; 1200]), false), 576).unwrap();
            cut[usize::from(bad.ports.0) % cut.len()].clone()
        }
        4 => {
            // An error about a packet the other way.
            let turned = Way { macs: (way.macs.1, way.macs.0), from: way.to, to: way.from, ttl: 9 };
            let origin = switch_core::ip::Origin { mac: way.macs.0, address: ip(way.from) };
            let quoted = udp(Way { macs: (way.macs.1, way.macs.0), ..turned }, to, from, b"x");
            switch_core::ip::error_frame(&quoted, switch_core::ip::Cause::PortUnreachable, origin)
                .map(|mut error| {
                    switch_core::ip::set_macs(&mut error, way.macs.1, way.macs.0);
                    error
                })
                .expect("an error")
        }
        _ => Arp::request(way.macs.0, ip4(way.from), ip4(way.to)).to_frame(way.macs.1),
    };
    // Addresses of the link stay: what a station may use as its own is not the question here.
    let len = frame.len();
    for (at, value) in &bad.changes {
        if let Some(byte) = frame.get_mut(14 + at % (len - 14)) {
            *byte ^= value;
        }
    }
    if bad.changes.iter().all(|(at, _)| at % (len - 14) != 10) && frame[12..14] == [8, 0] {
        // So that more than one in 65,536 gets past the header's checksum.
        let header = usize::from(frame[14] & 15) * 4;
        if header >= 20 && frame.len() >= 14 + header {
            wire::Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        }
    }
    frame.truncate(bad.cut.unwrap_or(len).max(14));
    frame
}

fn ip4(text: &str) -> std::net::Ipv4Addr {
    text.parse().expect("IPv4")
}

/// Who outside claims to be us would speak to guests as the guests that they met by hairpin.
#[test]
fn our_own_address_does_not_come_from_the_uplink() {
    let mut net = Net::new();
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let of_a = seen(&net.only(UPLINK)).source.1;
    let from_b = Way { macs: (MAC_B, ROUTER), from: IP_B, to: EXTERNAL, ttl: 64 };
    net.send(B, udp(from_b, 5000, of_a, b"x"));
    net.got.clear();
    net.send(A, udp(out(EXTERNAL), 4000, 6000, b"x"));
    net.got.clear();
    net.drops.clear();
    net.send(UPLINK, udp(back(EXTERNAL), 6000, of_a, b"spoofed"));
    assert_eq!(net.dropped(), DropReason::Rpf);
    for piece in fragments(&dont_fragment(udp(back(EXTERNAL), 6000, of_a, &[1; 1200]), false), 576).unwrap() {
        net.send(UPLINK, piece);
    }
    net.nothing();
}

/// An ICMP error could end another guest's flows, or make its packets small.
#[test]
fn a_guest_tells_nobody_about_another_guests_packets() {
    let mut net = Net::new();
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let of_a = seen(&net.only(UPLINK)).source.1;
    net.send(UPLINK, udp(back(REMOTE), 53, of_a, b"answer"));
    let got = net.only(A);
    for (port, mac, address, leaves) in [(B, MAC_B, IP_B, false), (A, MAC_A, IP_A, true)] {
        let origin = switch_core::ip::Origin { mac, address: ip(address) };
        let mut error =
            switch_core::ip::error_frame(&got, switch_core::ip::Cause::PortUnreachable, origin).unwrap();
        switch_core::ip::set_macs(&mut error, ROUTER, mac);
        net.send(port, error);
        assert_eq!(net.got(UPLINK).len(), usize::from(leaves), "{address}");
        net.nothing();
    }
}

/// As if B were A, in each way that could be of use to it.
#[test]
fn a_guest_does_not_send_from_another_guests_address() {
    let mut net = Net::new();
    net.send(A, Arp::request(MAC_A, ip4(IP_A), ip4("10.0.0.1")).to_frame(MacAddr::BROADCAST));
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let of_a = seen(&net.only(UPLINK)).source.1;
    net.left.clear();
    let as_a = |to| Way { macs: (MAC_B, ROUTER), ..out(to) };
    net.send(B, udp(as_a(REMOTE), 4000, 53, b"in its session"));
    net.send(B, udp(as_a(REMOTE), 4001, 53, b"at its expense"));
    net.send(B, udp(as_a("10.0.0.1"), 4002, 53, b"to the gateway"));
    for piece in fragments(&dont_fragment(udp(as_a(REMOTE), 4003, 53, &[1; 1200]), false), 576).unwrap() {
        net.send(B, piece);
    }
    net.nothing();
    assert!(net.left.is_empty(), "{:?}", net.left);
    assert_eq!(net.mode.sessions(net.now, 9).1, 1);
    // Nor does it get what is sent to A, by saying that it is A.
    let lie = Arp { operation: Operation::Reply, ..Arp::request(MAC_B, ip4(IP_A), ip4("10.0.0.1")) };
    for lie in [lie, Arp::announcement(MAC_B, ip4(IP_A))] {
        net.send(B, lie.to_frame(ROUTER));
        net.wait(5);
        net.got.clear();
        net.send(UPLINK, udp(back(REMOTE), 53, of_a, b"answer"));
        assert_eq!(seen(&net.only(A)).payload, b"answer");
    }
    // A leaves, and B takes over.
    net.stations.retain(|(port, ..)| *port != A);
    net.stations.push((B, MAC_B, ip(IP_A)));
    net.send(B, Arp::announcement(MAC_B, ip4(IP_A)).to_frame(ROUTER));
    net.wait(4);
    net.got.clear();
    net.send(B, udp(as_a(REMOTE), 4000, 53, b"y"));
    assert_eq!(seen(&net.only(UPLINK)).payload, b"y");
    net.send(UPLINK, udp(back(REMOTE), 53, of_a, b"answer"));
    assert_eq!(seen(&net.only(B)).payload, b"answer");
}

#[test]
fn a_guest_with_many_addresses_leaves_ports_to_others() {
    let mut settings = settings();
    settings.napt.mappings_per_host = 100;
    let mut net = Net::with(settings, 1500);
    net.verify = false;
    for n in 20..120_u8 {
        let from = format!("10.0.0.{n}");
        for port in 0..3 {
            net.send(A, udp(Way { from: &from, ..out(REMOTE) }, 4000 + port, 53, b"x"));
        }
    }
    assert_eq!(net.mode.sessions(net.now, 999).1, 100);
    assert!(net.drops.contains(&DropReason::NatQuota));
    net.got.clear();
    net.send(B, udp(Way { macs: (MAC_B, ROUTER), from: IP_B, to: REMOTE, ttl: 64 }, 4000, 53, b"x"));
    net.only(UPLINK);
}

/// A priority tag says something on its own link only.
#[test]
fn a_priority_tag_does_not_leave() {
    let mut net = Net::new();
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let plain = net.only(UPLINK);
    let mut tagged = udp(out(REMOTE), 4000, 53, b"x");
    tagged.splice(12..12, [0x81, 0, 0xa0, 0]);
    net.send(A, tagged);
    assert_eq!(net.only(UPLINK), plain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_inside_address_leaves(frames in proptest::collection::vec(bad(), 1..120)) {
        let mut net = Net::new();
        net.verify = false;
        net.forwards(Protocol::Udp, 1, "10.0.0.10:80");
        net.forwards(Protocol::Tcp, 2, "10.0.0.11:80");
        let mut outside = 1;
        for bad in frames {
            net.send(bad.port, frame(&bad, outside));
            if bad.wait {
                net.wait(7);
            }
            for (to, frame) in std::mem::take(&mut net.got) {
                let packet = Packet::of_frame(&frame);
                let source = MacAddr::from_slice(&frame[6..]).unwrap();
                if to == UPLINK {
                    prop_assert_eq!(source, OURS);
                    let Ok(packet) = packet else { continue };
                    let from = packet.source();
                    prop_assert!([ip(EXTERNAL), ip(EXTERNAL6)].contains(&from), "{} left", from);
                    if let Some(quote) = packet.quoted(&frame) {
                        let inside = |a: IpAddr| net.mode.shared.inside.contains(a);
                        prop_assert!(!inside(quote.destination()), "quoted: {}", quote.destination());
                    }
                    if let Transport::Udp { source, .. } | Transport::Tcp { source, .. } = packet.transport() {
                        outside = source;
                    }
                } else if bad.port == UPLINK {
                    prop_assert_eq!(source, ROUTER, "bridged");
                }
            }
        }
    }
}
