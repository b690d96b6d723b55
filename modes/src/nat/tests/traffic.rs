//! What is translated, and what is not.

use super::*;

#[test]
fn packets_go_out_and_come_back() {
    let kinds: [(Kind, Kind); 3] = [
        (Kind::Udp(4000, 53), Kind::Udp(53, 0)),
        (Kind::Tcp(4000, 80, true), Kind::Tcp(80, 0, false)),
        (Kind::Echo(77, true), Kind::Echo(0, false)),
    ];
    for (question, answer) in kinds {
        let mut net = Net::new();
        // Twice: the first waits for its neighbours, the second does not need the slow path.
        for round in 0..2 {
            let before = net.punted;
            net.send(A, build(out(REMOTE), &question, b"question"));
            let sent = seen(&net.only(UPLINK));
            assert_eq!(sent.macs, (OURS, ISP));
            assert_eq!((sent.source.0, sent.destination.0), (ip(EXTERNAL), ip(REMOTE)));
            assert_eq!((sent.ttl, &sent.payload[..]), (63, &b"question"[..]));
            let outside = sent.source.1;
            let answer = match answer {
                Kind::Udp(from, _) => Kind::Udp(from, outside),
                Kind::Tcp(from, _, syn) => Kind::Tcp(from, outside, syn),
                Kind::Echo(_, request) => Kind::Echo(outside, request),
            };
            net.send(UPLINK, build(back(REMOTE), &answer, b"answer"));
            let got = seen(&net.only(A));
            assert_eq!(got.macs, (ROUTER, MAC_A));
            assert_eq!((got.source.0, got.destination.0), (ip(REMOTE), ip(IP_A)));
            assert_eq!((got.ttl, &got.payload[..]), (63, &b"answer"[..]));
            assert!(matches!(got.destination.1, 4000 | 77));
            assert_eq!(net.punted > before, round == 0, "round {round}");
        }
        assert_eq!(net.mode.sessions(net.now, 9).1, 1);
        assert!(net.drops.is_empty());
    }
}

#[test]
fn ipv6_is_translated_too() {
    let mut net = Net::new();
    let way = Way { macs: (MAC_A, ROUTER), from: IP6_A, to: REMOTE6, ttl: 64 };
    for kind in [Kind::Udp(4000, 53), Kind::Tcp(4000, 80, true), Kind::Echo(77, true)] {
        net.send(A, build(way, &kind, b"x"));
        let sent = seen(&net.only(UPLINK));
        assert_eq!((sent.macs, sent.source.0, sent.ttl), ((OURS, ISP), ip(EXTERNAL6), 63));
        let answer = match kind {
            Kind::Udp(_, to) => Kind::Udp(to, sent.source.1),
            Kind::Tcp(_, to, _) => Kind::Tcp(to, sent.source.1, false),
            Kind::Echo(..) => Kind::Echo(sent.source.1, false),
        };
        let way = Way { macs: (ISP, OURS), from: REMOTE6, to: EXTERNAL6, ttl: 9 };
        net.send(UPLINK, build(way, &answer, b"y"));
        let got = seen(&net.only(A));
        assert_eq!((got.macs, got.destination.0, got.ttl), ((ROUTER, MAC_A), ip(IP6_A), 8));
    }
    assert!(net.drops.is_empty());
}

#[test]
fn guests_meet_on_the_bridge_and_over_the_outside_address() {
    let mut net = Net::new();
    net.send(A, udp(Way { macs: (MAC_A, MAC_B), from: IP_A, to: IP_B, ttl: 64 }, 1, 2, b"direct"));
    assert_eq!(net.got(B).len(), 1, "flooded");
    net.left.clear();
    // Hairpin: B listens by a forward, A reaches it by the outside address, and sees it as the outside address.
    net.forwards(Protocol::Udp, 53, "10.0.0.11:5353");
    for _ in 0..2 {
        net.send(A, udp(out(EXTERNAL), 4000, 53, b"question"));
        let got = seen(&net.only(B));
        assert_eq!((got.macs, got.destination), ((ROUTER, MAC_B), (ip(IP_B), 5353)));
        assert_eq!((got.source.0, got.ttl), (ip(EXTERNAL), 63), "not the inside address");
        let to_a = got.source.1;
        net.send(
            B,
            udp(Way { macs: (MAC_B, ROUTER), from: IP_B, to: EXTERNAL, ttl: 64 }, 5353, to_a, b"answer"),
        );
        let got = seen(&net.only(A));
        assert_eq!((got.macs, got.destination), ((ROUTER, MAC_A), (ip(IP_A), 4000)));
        assert_eq!(got.source, (ip(EXTERNAL), 53));
    }
    assert!(net.drops.is_empty());
}

#[test]
fn a_guest_reaches_itself_by_the_outside_address() {
    let mut net = Net::new();
    net.forwards(Protocol::Udp, 53, "10.0.0.10:5353");
    for _ in 0..2 {
        net.send(A, udp(out(EXTERNAL), 4000, 53, b"to myself"));
        let got = seen(&net.only(A));
        assert_eq!((got.source.0, got.destination), (ip(EXTERNAL), (ip(IP_A), 5353)));
    }
}

#[test]
fn forwards_let_the_outside_in() {
    let mut net = Net::new();
    net.send(UPLINK, udp(back(REMOTE), 9, 8080, b"x"));
    assert_eq!(net.dropped(), DropReason::NatNoMapping);
    net.forwards(Protocol::Udp, 8080, "10.0.0.10:80");
    net.forwards(Protocol::Tcp, 8080, "10.0.0.10:80");
    net.send(UPLINK, udp(back(REMOTE), 9, 8080, b"x"));
    let got = seen(&net.only(A));
    assert_eq!((got.source, got.destination), ((ip(REMOTE), 9), (ip(IP_A), 80)));
    net.send(UPLINK, syn(back(REMOTE), 9, 8080));
    assert_eq!(seen(&net.only(A)).destination, (ip(IP_A), 80));
    net.send(A, build(out(REMOTE), &Kind::Tcp(80, 9, false), b""));
    assert_eq!(seen(&net.only(UPLINK)).source, (ip(EXTERNAL), 8080));
    let target = "10.0.1.10:80".parse().unwrap();
    let elsewhere = Forward { protocol: Protocol::Tcp, address: None, port: 1, count: 1, target };
    assert!(net.mode.add_forward(&elsewhere).is_err(), "only to guests");
}

#[test]
fn a_forward_to_a_guest_that_is_gone_is_told() {
    let mut net = Net::new();
    net.stations.retain(|(port, ..)| *port != A);
    net.forwards(Protocol::Udp, 8080, "10.0.0.10:80");
    net.send(UPLINK, udp(back(REMOTE), 9, 8080, b"x"));
    net.got.clear();
    net.wait(4);
    let error = net.got(UPLINK).pop().expect("an error");
    let packet = Packet::of_frame(&error).unwrap();
    assert!(matches!(packet.transport(), Transport::Icmp { kind: 3, code: 1, .. }));
    assert_eq!(
        (packet.source(), packet.destination()),
        (ip(EXTERNAL), ip(REMOTE)),
        "no inside address is told"
    );
    let quote = packet.quoted(&error).unwrap();
    assert_eq!(quote.destination(), ip(EXTERNAL));
    assert!(matches!(quote.transport(), Transport::Udp { source: 9, destination: 8080 }));
}

#[test]
fn sources_are_the_subnets() {
    for from in ["10.0.1.10", "192.0.2.7", "10.0.0.255", "10.0.0.1", "0.0.0.0", "127.0.0.1"] {
        let mut net = Net::new();
        net.send(A, udp(Way { from, ..out(REMOTE) }, 1, 2, b"x"));
        assert_eq!(net.dropped(), DropReason::Rpf, "{from}");
    }
    // And from the outside nobody comes as a guest.
    for from in [IP_B, "10.0.0.200", "224.0.0.1"] {
        let mut net = Net::new();
        net.forwards(Protocol::Udp, 8080, "10.0.0.10:80");
        net.send(UPLINK, udp(back(from), 1, 8080, b"x"));
        assert_eq!(net.dropped(), DropReason::Rpf, "{from}");
    }
}

#[test]
fn nothing_from_the_uplink_is_bridged() {
    let mut net = Net::new();
    let frames = [
        // Broadcast, and to a guest's MAC address and IP address.
        udp(Way { macs: (ISP, MacAddr::BROADCAST), from: REMOTE, to: "255.255.255.255", ttl: 1 }, 1, 2, b"x"),
        udp(Way { macs: (ISP, MAC_A), from: REMOTE, to: IP_A, ttl: 9 }, 1, 2, b"x"),
        udp(Way { macs: (ISP, OURS), from: REMOTE, to: IP_A, ttl: 9 }, 1, 2, b"x"),
        udp(Way { macs: (ISP, MAC_A), from: REMOTE, to: EXTERNAL, ttl: 9 }, 1, 2, b"x"),
    ];
    for frame in frames {
        net.send(UPLINK, frame);
        assert_eq!(net.dropped(), DropReason::NotRouted);
    }
    // Nor does it teach the bridge: the ISP's MAC address is nobody's inside.
    assert!(net.mode.fdb().unwrap().entries(net.now).iter().all(|entry| entry.mac != ISP));
    let mut lldp = vec![1, 0x80, 0xc2, 0, 0, 0xe];
    lldp.extend(ISP.0);
    lldp.extend([0x88, 0xcc]);
    lldp.resize(60, 0);
    net.send(UPLINK, lldp);
    assert_eq!(net.dropped(), DropReason::NotRouted);
}

#[test]
fn a_guest_has_its_quota_and_the_other_one_its_own() {
    let napt = napt::Settings { mappings_per_host: 5, ..napt::Settings::new([7, 8]) };
    let mut net = Net::with(Settings { napt, ..settings() }, 1500);
    net.send(A, udp(out(REMOTE), 1000, 53, b"x"));
    for port in 1001..1005 {
        net.send(A, udp(out(REMOTE), port, 53, b"x"));
    }
    assert_eq!(net.got(UPLINK).len(), 5);
    net.send(A, udp(out(REMOTE), 1005, 53, b"x"));
    assert_eq!(net.dropped(), DropReason::NatQuota);
    net.send(B, udp(Way { macs: (MAC_B, ROUTER), from: IP_B, ..out(REMOTE) }, 1, 53, b"x"));
    assert_eq!(net.got(UPLINK).len(), 1);
    // Sessions end by the mode's own timer.
    net.wait(310);
    assert_eq!(net.mode.sessions(net.now, 9), (Vec::new(), 0));
}

#[test]
fn what_cannot_be_translated_is_dropped() {
    let mut net = Net::new();
    net.send(A, udp(out(REMOTE), 1, 2, b"x"));
    net.got.clear();
    let mut gre = udp(out(REMOTE), 1, 2, b"x");
    gre[23] = 47;
    let gre = dont_fragment(gre, true);
    net.send(A, gre);
    assert_eq!(net.dropped(), DropReason::NatUnsupported);
    net.send(A, build(out(REMOTE), &Kind::Echo(9, false), b"x"));
    assert_eq!(net.dropped(), DropReason::NatUnsupported, "a reply to nothing");
    net.send(A, build(out(REMOTE), &Kind::Tcp(1, 2, false), b"x"));
    assert_eq!(net.dropped(), DropReason::NatNoMapping, "a segment of no connection");
    net.send(A, udp(out("240.0.0.1"), 1, 2, b"x"));
    assert_eq!(net.dropped(), DropReason::NotRouted);
    let mut bad = udp(out(REMOTE), 1, 2, b"x");
    bad[24] ^= 1;
    net.send(A, bad);
    assert_eq!(net.dropped(), DropReason::BadIp);
    // What is for the gateway itself is left to it.
    net.left.clear();
    net.send(A, udp(out("10.0.0.1"), 1, 53, b"x"));
    assert_eq!(net.left.len(), 1);
}

#[test]
fn an_unsolicited_connection_request_is_answered_after_six_seconds_or_never() {
    let mut net = Net::new();
    net.send(UPLINK, syn(back(REMOTE), 5000, 6000));
    net.wait(5);
    net.nothing();
    net.wait(2);
    let error = net.only(UPLINK);
    let packet = Packet::of_frame(&error).unwrap();
    assert!(matches!(packet.transport(), Transport::Icmp { kind: 3, code: 3, .. }));
    assert_eq!((packet.source(), packet.destination()), (ip(EXTERNAL), ip(REMOTE)));

    // Simultaneous open: the guest's own request goes out meanwhile, and nothing is said.
    net.send(A, syn(out("203.0.113.50"), 4000, 80));
    let outside = seen(&net.only(UPLINK)).source.1;
    net.send(UPLINK, syn(back(REMOTE), 5000, outside));
    net.wait(3);
    net.nothing();
    net.send(A, syn(out(REMOTE), 4000, 5000));
    assert_eq!(seen(&net.only(UPLINK)).source.1, outside);
    net.wait(7);
    net.nothing();

    let mut silent = Uplink { answer_unsolicited: false, ..uplink() };
    silent.answer_echo = false;
    let mut net = Net::with(Settings { egress: Egress::Uplink(silent), ..settings() }, 1500);
    net.send(UPLINK, syn(back(REMOTE), 5000, 6000));
    net.send(UPLINK, build(back(REMOTE), &Kind::Echo(1, true), b"x"));
    net.wait(10);
    net.nothing();
}

#[test]
fn our_outside_address_answers_echo_requests() {
    let mut net = Net::new();
    net.send(UPLINK, build(Way { ttl: 5, ..back(REMOTE) }, &Kind::Echo(9, true), b"ping"));
    let got = seen(&net.only(UPLINK));
    assert_eq!((got.source.0, got.destination), (ip(EXTERNAL), (ip(REMOTE), 9)));
    assert_eq!((got.macs, got.ttl, &got.payload[..]), ((OURS, ISP), 64, &b"ping"[..]));
    let way = Way { macs: (ISP, OURS), from: REMOTE6, to: EXTERNAL6, ttl: 5 };
    net.send(UPLINK, build(way, &Kind::Echo(9, true), b"ping"));
    assert_eq!(seen(&net.only(UPLINK)).destination, (ip(REMOTE6), 9));
    net.send(A, build(out(EXTERNAL), &Kind::Echo(9, true), b"ping"));
    let got = seen(&net.only(A));
    assert_eq!((got.source.0, got.macs), (ip(EXTERNAL), (ROUTER, MAC_A)));
}
