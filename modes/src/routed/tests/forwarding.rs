//! What is forwarded, what is dropped, what is answered with an error.

use super::*;

#[test]
fn packets_are_forwarded_where_their_destination_is() {
    forwards(Rig::new());
}

#[test]
fn the_same_with_many_routes() {
    let mut rig = Rig::new().with_many_routes();
    let frame = udp(A, "10.0.0.5", "100.64.20.3");
    assert_eq!(rig.inject(A, &frame), Fate::Fast(B, forwarded(&frame, mac(B))));
    forwards(rig);
}

fn forwards(mut rig: Rig) {
    // (from, source, destination, to)
    let table = [
        (A, "10.0.0.5", "10.0.0.6", B),
        (B, "fd00::6", "fd00::5", A),
        (B, "10.0.0.6", "172.16.3.4", A),
        (A, "172.16.9.9", "10.0.0.6", B),
        (A, "10.0.0.5", "10.0.0.2", HOST),
        (HOST, "10.0.0.2", "10.0.0.5", A),
        (HOST, "198.51.100.1", "10.0.0.5", A),
        (UPLINK, "198.51.100.1", "10.0.0.5", A),
        (UPLINK, "2001:db8:9::1", "fd00::6", B),
        (UPLINK, "192.0.2.77", "172.16.0.1", A),
        (UPLINK, "192.0.2.77", "10.0.0.2", HOST),
    ];
    for (from, source, destination, to) in table {
        let frame = udp(from, source, destination);
        let want = Fate::Fast(to, forwarded(&frame, mac(to)));
        assert_eq!(rig.inject(from, &frame), want, "{source} to {destination}");
    }
    assert_eq!(
        rig.inject(UPLINK, &udp(UPLINK, "198.51.100.1", "203.0.113.1")),
        Fate::Dropped(DropReason::SamePort)
    );
    assert_eq!(rig.inject(A, &udp(A, "10.0.0.5", "172.16.0.1")), Fate::Dropped(DropReason::SamePort));
}

#[test]
fn a_source_stays_where_it_belongs() {
    let mut rig = Rig::new();
    let table = [
        (A, "10.0.0.6", "10.0.0.7"),
        (A, "192.0.2.77", "10.0.0.6"),
        (A, "10.0.0.1", "10.0.0.6"),
        (A, "0.0.0.0", "10.0.0.6"),
        (A, "127.0.0.1", "10.0.0.6"),
        (A, "fe80::5", "fd00::6"),
        (A, "::", "fd00::6"),
        (A, "10.0.0.6", "10.0.0.1"),
        (A, "172.17.0.1", "10.0.0.6"),
        (UPLINK, "10.0.0.5", "10.0.0.6"),
        (UPLINK, "172.16.3.3", "10.0.0.6"),
        (UPLINK, "10.0.0.1", "10.0.0.6"),
        (UPLINK, "192.0.2.10", "10.0.0.6"),
        (UPLINK, "10.0.0.99", "10.0.0.6"),
        (UPLINK, "10.0.0.2", "10.0.0.6"),
        (UPLINK, "fd00::99", "fd00::6"),
        (UPLINK, "192.0.2.255", "10.0.0.6"),
        (UPLINK, "127.0.0.1", "10.0.0.6"),
        (UPLINK, "224.0.0.1", "10.0.0.6"),
        (HOST, "fd00::5", "fd00::6"),
        (HOST, "0.0.0.0", "10.0.0.6"),
    ];
    for (from, source, destination) in table {
        let fate = rig.inject(from, &udp(from, source, destination));
        assert_eq!(fate, Fate::Dropped(DropReason::Rpf), "{source} to {destination}");
    }
    let link = link_local(ROUTER).to_string();
    assert_eq!(rig.inject(A, &udp(A, "fe80::5", &link)), Fate::Services, "link-local, on its link");
}

#[test]
fn the_frames_of_a_burst_are_judged_one_by_one() {
    for mut rig in [Rig::new(), Rig::new().with_many_routes()] {
        let (to, gateway) = (|n: usize| Verdict::Unicast(rig.ports[n]), Verdict::Unicast(rig.ports[GATEWAY]));
        let drop = Verdict::Drop;
        // (source, destination, verdict)
        let table = [
            ("10.0.0.5", "10.0.0.6", to(B)),
            ("10.0.0.6", "10.0.0.6", drop(DropReason::Rpf)),
            ("10.0.0.5", "10.0.0.6", to(B)),
            ("10.0.0.5", "10.0.0.1", gateway),
            ("10.0.0.5", "224.0.0.1", drop(DropReason::NotRouted)),
            ("fd00::5", "fd00::6", to(B)),
            ("10.0.0.5", "10.0.0.2", to(HOST)),
            ("10.0.0.5", "10.0.0.2", to(HOST)),
            ("10.0.0.5", "10.0.0.99", gateway),
            ("10.0.0.5", "10.0.0.255", drop(DropReason::NotRouted)),
            ("10.0.0.5", "172.16.0.1", drop(DropReason::SamePort)),
            ("172.16.0.1", "10.0.0.6", to(B)),
        ];
        let mut heads: Vec<Head> = table
            .iter()
            .map(|(source, destination, _)| {
                let mut head = Head::from_frame(&udp(A, source, destination));
                check::frame(&mut head, OffloadSet::NONE).expect("sound");
                head
            })
            .collect();
        for _ in 0..2 {
            let mut out = Verdicts::default();
            out.begin(heads.len());
            rig.forwarder.decide(rig.now, rig.ports[A], &mut heads, &mut out);
            assert_eq!(out.as_slice(), table.map(|(_, _, verdict)| verdict));
            for (head, (_, _, verdict)) in heads.iter_mut().zip(table) {
                let routed = matches!(verdict, Verdict::Unicast(_)) && verdict != gateway;
                assert_eq!(head.source() == ROUTER, routed, "only what is routed is changed");
                set_macs(head, ROUTER, mac(A));
            }
        }
    }
}

#[test]
fn what_a_router_does_not_forward_is_dropped() {
    let mut rig = Rig::new();
    let not_routed = Fate::Dropped(DropReason::NotRouted);
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut frame = udp(A, "10.0.0.5", "10.0.0.6");
        change(&mut frame);
        frame
    };
    assert_eq!(
        rig.inject(A, &changed(|f| f[..6].copy_from_slice(&mac(B).0))),
        not_routed,
        "to another station"
    );
    assert_eq!(rig.inject(A, &changed(|f| f[..6].fill(0xff))), not_routed, "a broadcast");
    assert_eq!(rig.inject(A, &changed(|f| f[12..14].copy_from_slice(&[0x88, 0xcc]))), not_routed, "no IP");
    assert_eq!(rig.inject(A, &changed(|f| drop(f.splice(12..12, [0x81, 0, 0, 9])))), not_routed, "a VLAN's");
    let tagged = changed(|f| drop(f.splice(12..12, [0x81, 0, 0x60, 0])));
    let plain = udp(A, "10.0.0.5", "10.0.0.6");
    assert_eq!(rig.inject(A, &tagged), Fate::Fast(B, forwarded(&plain, mac(B))), "a priority is no VLAN");
    for destination in
        ["224.0.0.5", "239.255.255.250", "255.255.255.255", "127.0.0.1", "0.0.0.0", "ff0e::1", "::1"]
    {
        let source = if destination.contains(':') { "fd00::5" } else { "10.0.0.5" };
        assert_eq!(rig.inject(A, &udp(A, source, destination)), not_routed, "{destination}");
    }
    assert_eq!(rig.inject(A, &changed(|f| f[24] ^= 1)), Fate::Dropped(DropReason::BadIp), "a wrong checksum");
    assert_eq!(rig.inject(A, &changed(|f| f.truncate(40))), Fate::Dropped(DropReason::BadIp), "cut short");
    assert_eq!(
        rig.inject(9, &udp(9, "10.0.0.5", "10.0.0.6")),
        Fate::Dropped(DropReason::Unhandled),
        "no port of ours"
    );
    let mut bare = Rig::with(settings());
    bare.routed.port_removed(bare.ports[GATEWAY]);
    assert_eq!(
        bare.inject(A, &udp(A, "10.0.0.5", "10.0.0.1")),
        Fate::Dropped(DropReason::Unhandled),
        "no gateway"
    );
}

#[test]
fn what_is_for_the_router_goes_to_its_services() {
    let mut rig = Rig::new();
    for (from, source, destination) in [
        (A, "10.0.0.5", "10.0.0.1"),
        (A, "fd00::5", "fd00::1"),
        (UPLINK, "192.0.2.77", "192.0.2.10"),
        (UPLINK, "2001:db8::77", "2001:db8::10"),
        (HOST, "10.0.0.2", "10.0.0.1"),
    ] {
        assert_eq!(rig.inject(from, &udp(from, source, destination)), Fate::Services, "{destination}");
    }
    let dhcp_to = |from: usize, to: MacAddr, source: &str, destination: &str, ports: (u16, u16)| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(from).0, to.0)
            .ipv4(v4(source).octets(), v4(destination).octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, &[0; 240])
            .expect("a frame");
        frame
    };
    let all = MacAddr([0xff; 6]);
    let dhcp =
        |from: usize, source: &str, ports: (u16, u16)| dhcp_to(from, all, source, "255.255.255.255", ports);
    assert_eq!(rig.inject(A, &dhcp(A, "0.0.0.0", (68, 67))), Fate::Services);
    assert_eq!(rig.inject(A, &dhcp(A, "10.0.0.5", (68, 67))), Fate::Services, "rebinding");
    let rpf = Fate::Dropped(DropReason::Rpf);
    assert_eq!(rig.inject(A, &dhcp(A, "10.0.0.6", (68, 67))), rpf, "another's");
    // A lease that is not known here, or is of another network: its client is to hear so.
    for source in ["10.0.0.99", "192.168.5.9"] {
        assert_eq!(rig.inject(A, &dhcp(A, source, (68, 67))), Fate::Services, "{source} rebinding");
        let renewal = |destination, ports| dhcp_to(A, ROUTER, source, destination, ports);
        assert_eq!(rig.inject(A, &renewal("10.0.0.1", (68, 67))), Fate::Services, "{source} renewing");
        assert_eq!(rig.inject(A, &renewal("10.0.0.1", (68, 53))), rpf, "{source} not renewing");
        assert_eq!(rig.inject(A, &renewal("10.0.0.6", (68, 67))), rpf, "{source} to another");
    }
    for source in ["10.0.0.6", "10.0.0.1", "255.255.255.255"] {
        let renewal = dhcp_to(A, ROUTER, source, "10.0.0.1", (68, 67));
        assert_eq!(rig.inject(A, &renewal), rpf, "{source} is not the guest's");
    }
    assert_eq!(
        rig.inject(A, &dhcp(A, "0.0.0.0", (67, 68))),
        Fate::Dropped(DropReason::NotRouted),
        "a server's"
    );
    for outside in [UPLINK, HOST] {
        let fate = rig.inject(outside, &dhcp(outside, "0.0.0.0", (68, 67)));
        assert_eq!(fate, Fate::Dropped(DropReason::NotRouted), "only guests are served");
    }
    let six = |from: usize, kind: Option<u8>, source: &str, group: &str| {
        let group = v6(group);
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(mac(from).0, nd::group_mac(group).0).ipv6(
            v6(source).octets(),
            group.octets(),
            255,
        );
        match kind {
            Some(kind) => packet.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, &[0; 16]),
            None => packet.udp(546, 547).write(&mut frame, &[0; 40]),
        }
        .expect("a frame");
        frame
    };
    assert_eq!(rig.inject(A, &six(A, None, "fe80::5", "ff02::1:2")), Fate::Services, "DHCPv6");
    assert_eq!(
        rig.inject(A, &six(A, Some(133), "fe80::5", "ff02::2")),
        Fate::Services,
        "a router solicitation"
    );
    assert_eq!(rig.inject(A, &six(A, Some(133), "::", "ff02::2")), Fate::Services);
    let not_routed = Fate::Dropped(DropReason::NotRouted);
    assert_eq!(
        rig.inject(A, &six(A, Some(134), "fe80::5", "ff02::1")),
        not_routed,
        "a guest advertises no router"
    );
    assert_eq!(rig.inject(A, &six(A, Some(143), "fe80::5", "ff02::16")), not_routed);
    assert_eq!(rig.inject(UPLINK, &six(UPLINK, Some(133), "fe80::9", "ff02::2")), not_routed);
    assert_eq!(rig.inject(UPLINK, &six(UPLINK, None, "fe80::9", "ff02::1:2")), not_routed);
}

#[test]
fn discovery_with_any_source_is_never_forwarded() {
    let mut rig = Rig::new();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(A).0, ROUTER.0)
        .ipv6(v6("fd00::6").octets(), v6("fd00::7").octets(), 255)
        .icmpv6_raw(134, 0, [0; 4])
        .write(&mut frame, &[0; 16])
        .expect("a frame");
    assert_eq!(rig.inject(A, &frame), Fate::Services);
}

#[test]
fn a_packet_that_cannot_go_on_is_answered() {
    let mut rig = Rig::new();
    for (four, six) in [("10.0.0.5", false), ("fd00::5", true)].map(|(s, six)| (s, six)) {
        let (there, nobody) = if six { ("fd00::6", "fd00::99") } else { ("10.0.0.6", "10.0.0.99") };
        for hop_limit in [0, 1] {
            let fate = rig.inject(A, &packet(A, four, there, hop_limit, 20));
            assert_eq!(error_to(A, fate), Some(if six { (3, 0) } else { (11, 0) }));
            rig.wait(1000);
        }
        let fate = rig.inject(A, &packet(A, four, there, 2, 20));
        assert!(matches!(fate, Fate::Fast(B, _)), "two hops are enough");
        let fate = rig.inject(A, &udp(A, four, nobody));
        assert_eq!(error_to(A, fate), Some(if six { (1, 3) } else { (3, 1) }), "nobody has it");
        rig.wait(1000);
    }
    let Fate::Slow(sent) = rig.inject(UPLINK, &packet(UPLINK, "198.51.100.1", "10.0.0.5", 1, 20)) else {
        panic!("an error")
    };
    assert_eq!(
        Packet::of_frame(&sent[0].1).map(|p| p.source()),
        Ok(ip("192.0.2.10")),
        "from its address there"
    );
    let mut inner = Rig::with(Settings { uplink_addresses: vec![], next_hops: vec![], ..settings() });
    inner.routed.port_removed(inner.ports[HOST]);
    let fate = inner.inject(A, &udp(A, "10.0.0.5", "198.51.100.1"));
    assert_eq!(error_to(A, fate), Some((3, 0)), "no route");
    let fate = inner.inject(A, &udp(A, "fd00::5", "2001:db8::1"));
    assert_eq!(error_to(A, fate), Some((1, 0)), "no route");
    // Errors are limited, and there is none about an error.
    let sent = (0..100)
        .filter(|_| error_to(A, inner.inject(A, &udp(A, "10.0.0.5", "198.51.100.1"))).is_some())
        .count();
    assert!(sent < 20, "{sent} errors at once");
    inner.wait(2000);
    let Fate::Slow(errors) = inner.inject(A, &udp(A, "10.0.0.5", "198.51.100.1")) else { panic!("an error") };
    let mut about = errors[0].1.clone();
    let mut p = Packet::of_frame(&about).expect("sound");
    assert_eq!(p.source(), ip("10.0.0.1"), "from the gateway's address");
    assert!(
        p.set_source(&mut about, ip("10.0.0.5"), None)
            && p.set_destination(&mut about, ip("198.51.100.1"), None)
    );
    set_macs(&mut about, ROUTER, mac(A));
    assert_eq!(inner.inject(A, &about), Fate::Slow(vec![]));
}

#[test]
fn packets_that_are_too_big_are_told_or_cut() {
    let mut rig = Rig::new();
    rig.set(B, PortFacts { mtu: 1300, ..facts(Role::Guest, Some(mac(B)), &["10.0.0.6", "fd00::6"], &[]) });
    rig.drain();
    let told = rig.inject(A, &packet(A, "10.0.0.5", "10.0.0.6", 64, 1400));
    let Fate::Slow(sent) = &told else { panic!("{told:?}") };
    assert_eq!(sent[0].1[40..42], 1300_u16.to_be_bytes(), "the MTU of the way out");
    assert_eq!(error_to(A, told), Some((3, 4)), "etherparse sets DF");
    let told = rig.inject(A, &packet(A, "fd00::5", "fd00::6", 64, 1400));
    let Fate::Slow(sent) = &told else { panic!("{told:?}") };
    assert_eq!(sent[0].1[58..62], 1300_u32.to_be_bytes());
    assert_eq!(error_to(A, told), Some((2, 0)));
    // Exactly the MTU passes.
    assert!(matches!(rig.inject(A, &packet(A, "10.0.0.5", "10.0.0.6", 64, 1300 - 28)), Fate::Fast(B, _)));
    assert!(matches!(rig.inject(A, &packet(A, "10.0.0.5", "10.0.0.6", 64, 1300 - 27)), Fate::Slow(_)));

    let mut cut = packet(A, "10.0.0.5", "10.0.0.6", 64, 1400);
    cut[20] = 0;
    // One's complement: a bit that goes from one word comes back in its checksum.
    let checksum = u16::from_be_bytes([cut[24], cut[25]]);
    let (sum, carry) = checksum.overflowing_add(0x4000);
    cut[24..26].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    let Fate::Slow(pieces) = rig.inject(A, &cut) else { panic!("fragments") };
    assert_eq!(pieces.len(), 2);
    let mut payload = Vec::new();
    for (to, piece) in &pieces {
        assert_eq!((*to, &piece[..6], &piece[6..12]), (B, &mac(B).0[..], &ROUTER.0[..]));
        let p = Packet::of_frame(piece).expect("sound");
        assert!(p.len() <= 1300 && p.hop_limit() == 63);
        payload.extend_from_slice(&piece[34..]);
    }
    assert_eq!(payload, cut[34..]);
    // A super-frame is as large as its segments.
    let mut head = Head::new();
    let mut tcp = Vec::new();
    PacketBuilder::ethernet2(mac(A).0, ROUTER.0)
        .ipv4([10, 0, 0, 5], [10, 0, 0, 6], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut tcp, &[0; 5000])
        .expect("a frame");
    for (size, fits) in [(1200_u16, true), (1300 - 40, true), (1300 - 39, false), (1460, false)] {
        head.begin(tcp.len() as u32, 128).copy_from_slice(&tcp[..128]);
        head.vnet = switch_core::virtio_net::VnetHeader {
            flags: switch_core::virtio_net::F_NEEDS_CSUM,
            gso_type: switch_core::virtio_net::GSO_TCPV4,
            gso_size: size,
            csum_start: 34,
            csum_offset: 16,
            ..Default::default()
        };
        check::frame(&mut head, OffloadSet::ALL).expect("a sound super-frame");
        let to = if fits { B } else { GATEWAY };
        assert_eq!(rig.decide(A, &mut head), Verdict::Unicast(rig.ports[to]), "segments of {size}");
    }
}
