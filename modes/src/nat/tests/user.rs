//! `egress=user`: what goes to the sockets, and what to the gateway.

use switch_core::ip::fragments;

use super::*;

fn net() -> Net {
    Net::with(Settings { egress: Egress::User, ..settings() }, 1500)
}

#[test]
fn the_gateway_answers_for_itself_and_the_sockets_get_the_rest() {
    let mut net = net();
    assert!(net.slow.is_none() && net.mode.nat().is_none() && net.mode.fdb().is_some());
    let icmp6 = |kind: u8, to: &str| {
        let way = Way { macs: (MAC_A, ROUTER), from: "fe80::a", to, ttl: 255 };
        let mut frame = build(way, &Kind::Echo(0, true), &[0; 24]);
        frame[54] = kind;
        frame
    };
    let answer = Neighbor {
        source: "fe80::a".parse().unwrap(),
        destination: "fe80::ff:fe00:1".parse().unwrap(),
        target: IP6_A.parse().unwrap(),
        link: Some(MAC_A),
        message: Message::Advertisement { router: false, solicited: true, overrides: true },
    };
    let router: std::net::Ipv4Addr = "10.0.0.1".parse().unwrap();
    let question = Arp::request(ROUTER, router, IP_A.parse().unwrap());
    let probed = Arp::request(ROUTER, std::net::Ipv4Addr::UNSPECIFIED, IP_A.parse().unwrap()).reply(MAC_A);
    let asks = Arp::request(MAC_A, IP_A.parse().unwrap(), router);
    let v6 = |to| Way { macs: (MAC_A, ROUTER), from: IP6_A, to, ttl: 64 };
    let table = [
        ("a DHCP renewal", udp(out("10.0.0.1"), 68, 67, b"x"), GATEWAY),
        ("DHCPv6", udp(v6("fd00::1"), 546, 547, b"x"), GATEWAY),
        ("DNS", udp(out("10.0.0.1"), 4000, 53, b"x"), GATEWAY),
        ("DNS over TCP", syn(out("10.0.0.1"), 4000, 53), GATEWAY),
        ("DNS over IPv6", udp(v6("fd00::1"), 4000, 53, b"x"), GATEWAY),
        ("a router solicitation", icmp6(133, "fe80::1"), GATEWAY),
        ("a neighbour solicitation", icmp6(135, "fe80::1"), GATEWAY),
        ("the answer to one of ours", answer.to_frame(ROUTER, MAC_A), UPLINK),
        ("another's DNS", udp(out(REMOTE), 4000, 53, b"x"), UPLINK),
        ("what the gateway does not serve", syn(out("10.0.0.1"), 4000, 22), UPLINK),
        ("the outside", syn(out(REMOTE), 4000, 80), UPLINK),
        ("the outside's IPv6", udp(v6(REMOTE6), 4000, 80, b"x"), UPLINK),
        ("an echo request to the gateway", build(out("10.0.0.1"), &Kind::Echo(1, true), b"x"), GATEWAY),
        ("one to its IPv6 address", build(v6("fd00::1"), &Kind::Echo(1, true), b"x"), GATEWAY),
        ("one to the outside", build(out(REMOTE), &Kind::Echo(1, true), b"x"), UPLINK),
        ("a question for the router", asks.to_frame(ROUTER), GATEWAY),
        ("the answer to a question of the router's", question.reply(MAC_A).to_frame(ROUTER), UPLINK),
        ("the answer to a probe", probed.to_frame(ROUTER), GATEWAY),
    ];
    for (name, frame, want) in table {
        let before = net.punted;
        net.send(A, frame.clone());
        match want {
            GATEWAY => assert_eq!((net.punted, net.got.len()), (before + 1, 0), "{name}"),
            _ => assert_eq!(net.only(UPLINK), frame, "{name}: as it was"),
        }
    }
    // A long echo request to the gateway goes where all of its fragments go.
    let long = dont_fragment(build(out("10.0.0.1"), &Kind::Echo(1, true), &[1; 1200]), false);
    for piece in fragments(&long, 576).unwrap() {
        net.send(A, piece.clone());
        assert_eq!(net.only(UPLINK), piece);
    }
    // From the sockets to a guest: bridged, and the router's MAC address stays where it is configured.
    net.send(UPLINK, udp(Way { macs: (ROUTER, MAC_A), from: REMOTE, to: IP_A, ttl: 60 }, 53, 4000, b"x"));
    assert_eq!(net.got(A).len(), 1);
    net.send(A, syn(out("10.0.0.1"), 4000, 53));
    assert_eq!(net.got(UPLINK).len(), 0);
}
