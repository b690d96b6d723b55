//! Who is asked for, and for whom the router answers.

use super::*;

#[test]
fn a_guest_is_resolved_at_its_port() {
    let mut rig = Rig::new();
    let frame = udp(A, "10.0.0.5", "10.0.0.7");
    let Fate::Slow(asked) = rig.inject(A, &frame) else { panic!("a question") };
    let [(C, question)] = &asked[..] else { panic!("{asked:?}") };
    let question = Arp::of_frame(question).expect("ARP");
    assert_eq!(
        (question.sender_mac, question.sender, question.target),
        (ROUTER, v4("10.0.0.1"), v4("10.0.0.7"))
    );
    let reply = question.reply(mac(C)).to_frame(ROUTER);
    let wrong = question.reply(mac(B)).to_frame(ROUTER);
    assert_eq!(rig.inject(B, &wrong), Fate::Slow(vec![]), "another guest's answer is not believed");
    assert_eq!(rig.inject(C, &reply), Fate::Slow(vec![(C, forwarded(&frame, mac(C)))]), "what waited goes");
    assert_eq!(
        rig.inject(A, &frame),
        Fate::Fast(C, forwarded(&frame, mac(C))),
        "and the next by the fast way"
    );
    let behind = udp(A, "10.0.0.5", "172.17.1.1");
    assert_eq!(
        rig.inject(A, &behind),
        Fate::Fast(C, forwarded(&behind, mac(C))),
        "through its first address"
    );

    let frame = udp(A, "fd00::5", "fd17::1");
    let Fate::Slow(asked) = rig.inject(A, &frame) else { panic!("a question") };
    let question = Neighbor::of_frame(&asked[0].1).expect("ND");
    assert_eq!((asked[0].0, question.source, question.target), (C, v6("fd00::1"), v6("fd00::7")));
    let answer = Neighbor {
        source: v6("fd00::7"),
        destination: v6("fd00::1"),
        target: v6("fd00::7"),
        link: Some(mac(C)),
        message: Message::Advertisement { router: false, solicited: true, overrides: true },
    };
    let sent = rig.inject(C, &answer.to_frame(ROUTER, mac(C)));
    assert_eq!(sent, Fate::Slow(vec![(C, forwarded(&frame, mac(C)))]));
    // The guest gets another MAC address by the operator's word.
    rig.set(C, facts(Role::Guest, Some(mac(9)), &["10.0.0.7", "fd00::7"], &[]));
    let frame = udp(A, "10.0.0.5", "10.0.0.7");
    assert_eq!(rig.inject(A, &frame), Fate::Fast(C, forwarded(&frame, mac(9))));
}

#[test]
fn a_guest_that_does_not_answer_is_unreachable() {
    let mut rig = Rig::new();
    rig.inject(A, &udp(A, "10.0.0.5", "10.0.0.7"));
    let mut sent = rig.wait(2500);
    assert_eq!(sent.len(), 2, "two more questions");
    assert!(sent.iter().all(|(port, frame)| *port == C && Arp::of_frame(frame).is_some()));
    sent = rig.wait(1000);
    assert_eq!(error_of(A, &sent), Some((3, 1)));
    rig.inject(A, &udp(A, "fd00::5", "fd00::7"));
    let sent: Vec<_> = rig.wait(4000).into_iter().filter(|(port, _)| *port == A).collect();
    assert_eq!(error_of(A, &sent), Some((1, 3)));
}

#[test]
fn the_uplink_is_reached_by_neighbours_and_next_hops() {
    let mut rig = Rig::new();
    // (destination, who is asked for)
    for (destination, hop) in
        [("192.0.2.77", "192.0.2.77"), ("198.51.100.1", "192.0.2.1"), ("192.0.2.1", "192.0.2.1")]
    {
        let mut rig = Rig::new();
        let frame = udp(A, "10.0.0.5", destination);
        let Fate::Slow(asked) = rig.inject(A, &frame) else { panic!("a question") };
        let question = Arp::of_frame(&asked[0].1).expect("ARP");
        assert_eq!((asked[0].0, question.target, question.sender), (UPLINK, v4(hop), v4("192.0.2.10")));
        let reply = question.reply(mac(UPLINK)).to_frame(ROUTER);
        assert_eq!(rig.inject(UPLINK, &reply), Fate::Slow(vec![(UPLINK, forwarded(&frame, mac(UPLINK)))]));
        assert_eq!(rig.inject(A, &frame), Fate::Fast(UPLINK, forwarded(&frame, mac(UPLINK))));
    }
    let frame = udp(A, "fd00::5", "2001:db8:9::1");
    let Fate::Slow(asked) = rig.inject(A, &frame) else { panic!("a question") };
    let question = Neighbor::of_frame(&asked[0].1).expect("ND");
    assert_eq!((asked[0].0, question.target), (UPLINK, v6("fe80::99")));
    let stray = Arp::request(mac(9), v4("198.51.100.1"), v4("192.0.2.10")).to_frame(ROUTER);
    rig.inject(UPLINK, &stray);
    let remembered = rig.routed.neighbors.peek(Link::Port(rig.ports[UPLINK]), ip("198.51.100.1"));
    assert_eq!(remembered, None, "what is not on the segment is no neighbour");
    let frame = udp(A, "10.0.0.5", "198.51.100.1");
    let Fate::Slow(asked) = rig.inject(A, &frame) else { panic!("a question") };
    assert_eq!(Arp::of_frame(&asked[0].1).map(|arp| arp.target), Some(v4("192.0.2.1")));
}

#[test]
fn without_an_address_the_subnet_is_the_uplinks_segment() {
    let mut rig =
        Rig::with(Settings { uplink_addresses: vec![], next_hops: vec![ip("10.0.0.254")], ..settings() });
    rig.set(UPLINK, facts(Role::Uplink, None, &[], &[]));
    rig.drain();
    for (destination, hop) in [("10.0.0.99", "10.0.0.99"), ("198.51.100.1", "10.0.0.254")] {
        let Fate::Slow(asked) = rig.inject(A, &udp(A, "10.0.0.5", destination)) else { panic!("a question") };
        let question = Arp::of_frame(&asked[0].1).expect("ARP");
        assert_eq!((asked[0].0, question.target), (UPLINK, v4(hop)));
        assert_eq!(question.sender, v4("10.0.0.5"), "the packet's source, which the router answers for");
    }
    assert_eq!(rig.inject(A, &udp(A, "10.0.0.5", "10.0.0.6")), {
        let frame = udp(A, "10.0.0.5", "10.0.0.6");
        Fate::Fast(B, forwarded(&frame, mac(B)))
    });
}

#[test]
fn without_an_uplink_the_host_is_the_way_out() {
    let mut rig = Rig::with(settings());
    for (source, destination) in [("10.0.0.5", "198.51.100.1"), ("fd00::5", "2001:db8:9::1")] {
        let frame = udp(A, source, destination);
        assert_eq!(rig.inject(A, &frame), Fate::Fast(HOST, forwarded(&frame, mac(HOST))));
        let back = udp(HOST, destination, source);
        assert_eq!(rig.inject(HOST, &back), Fate::Fast(A, forwarded(&back, mac(A))));
    }
    assert_eq!(
        error_to(A, rig.inject(A, &udp(A, "10.0.0.5", "10.0.0.99"))),
        Some((3, 1)),
        "the subnet is the guests'"
    );
}

#[test]
fn the_router_answers_for_everybody_to_guests() {
    let mut rig = Rig::new();
    // (asks, target, answered)
    let table = [
        ("10.0.0.5", "10.0.0.1", true),
        ("10.0.0.5", "10.0.0.6", true),
        ("10.0.0.5", "10.9.9.9", true),
        ("10.0.0.5", "169.254.1.1", true),
        ("10.0.0.5", "8.8.8.8", true),
        ("172.16.0.9", "8.8.8.8", true),
        ("10.0.0.5", "10.0.0.5", false),
        ("10.0.0.5", "172.16.0.1", false),
        ("0.0.0.0", "10.0.0.5", false),
        ("0.0.0.0", "10.0.0.99", false),
        ("0.0.0.0", "10.0.0.6", true),
        ("0.0.0.0", "10.0.0.1", true),
        ("10.0.0.6", "10.0.0.1", false),
        ("192.0.2.77", "10.0.0.1", false),
    ];
    for (sender, target, answered) in table {
        assert_eq!(
            answers(rig.inject(A, &arp_request(A, sender, target))),
            answered,
            "{sender} asks for {target}"
        );
    }
    let link = link_local(ROUTER).to_string();
    let table = [
        ("fd00::5", "fd00::1", true),
        ("fd00::5", "fd00::6", true),
        ("fd00::5", "2001:db8::1", true),
        ("fe80::5", "fe80::1", true),
        ("fe80::5", link.as_str(), true),
        ("::", "fd00::5", false),
        ("::", "fd00::99", false),
        ("::", "fe80::5", false),
        ("::", "fd00::6", true),
        ("::", link.as_str(), true),
        ("fd00::6", "fd00::1", false),
    ];
    for (source, target, answered) in table {
        let fate = rig.inject(A, &solicitation(A, source, target));
        assert_eq!(answers(fate), answered, "{source} asks for {target}");
    }
    // A question that comes directly, as a neighbour is probed.
    let ask = Neighbor {
        destination: v6("fd00::6"),
        ..Neighbor::solicitation(mac(A), v6("fd00::5"), v6("fd00::6"))
    };
    assert!(answers(rig.inject(A, &ask.to_frame(ROUTER, mac(A)))));
    let ask = Arp::request(mac(A), v4("10.0.0.5"), v4("10.0.0.6")).to_frame(ROUTER);
    assert!(answers(rig.inject(A, &ask)));
}

#[test]
fn the_router_answers_for_guests_to_the_others() {
    let mut rig = Rig::new();
    for port in [HOST, UPLINK] {
        let sender = if port == HOST { "10.0.0.2" } else { "192.0.2.77" };
        for (target, answered) in [
            ("10.0.0.5", true),
            ("10.0.0.7", true),
            ("172.16.4.4", true),
            ("10.0.0.1", true),
            ("192.0.2.10", true),
            ("10.0.0.99", false),
            ("192.0.2.78", false),
            ("8.8.8.8", false),
        ] {
            assert_eq!(answers(rig.inject(port, &arp_request(port, sender, target))), answered, "{target}");
        }
        for (target, answered) in
            [("fd00::5", true), ("2001:db8::10", true), ("fd00::99", false), ("fe80::1234", false)]
        {
            assert_eq!(
                answers(rig.inject(port, &solicitation(port, "fe80::9", target))),
                answered,
                "{target}"
            );
        }
    }
    // For a guest it does not insist: the answer does not override.
    let Fate::Slow(sent) = rig.inject(UPLINK, &solicitation(UPLINK, "fe80::9", "fd00::5")) else {
        panic!("an answer")
    };
    let answer = Neighbor::of_frame(&sent[0].1).expect("an advertisement");
    assert_eq!(answer.message, Message::Advertisement { router: true, solicited: true, overrides: false });
    assert_eq!((answer.destination, &sent[0].1[..6]), (v6("fe80::9"), &mac(UPLINK).0[..]));
}

#[test]
fn guests_that_appear_are_announced_to_the_uplink() {
    let mut rig = Rig::with(settings());
    rig.drain();
    rig.set(UPLINK, facts(Role::Uplink, None, &[], &[]));
    let mut told: Vec<IpAddr> = Vec::new();
    for (port, frame) in rig.wait(0) {
        assert_eq!(port, UPLINK);
        if let Some(arp) = Arp::of_frame(&frame) {
            assert!(arp.is_announcement() && arp.sender_mac == ROUTER && frame[..6] == [0xff; 6]);
            told.push(arp.target.into());
        } else {
            let n = Neighbor::of_frame(&frame).expect("an advertisement");
            assert_eq!((n.link, n.destination), (Some(ROUTER), nd::ALL_NODES));
            told.push(n.target.into());
        }
    }
    told.sort();
    assert_eq!(told, ["10.0.0.5", "10.0.0.6", "10.0.0.7", "fd00::5", "fd00::6", "fd00::7"].map(ip));
    rig.set(8, facts(Role::Guest, None, &["10.0.0.8"], &[]));
    assert_eq!(rig.wait(0).len(), 1);
    rig.routed.assign(rig.ports[C], ip("10.0.0.70"), mac(C)).expect("free");
    assert_eq!(rig.wait(0).len(), 1);
    assert!(rig.wait(1000).is_empty(), "once");
}
