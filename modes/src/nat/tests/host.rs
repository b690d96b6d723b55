//! `egress=host`: what goes to the host's stack, and what to the gateway.

use super::*;

const HOST: usize = 4;

fn net() -> Net {
    let net = Net::with(Settings { egress: Egress::Host, ..settings() }, 1500);
    net.mode.port_removed(net.ports[UPLINK]);
    let facts = PortFacts { role: Role::HostInterface, mtu: 1500, ..PortFacts::default() };
    net.mode.port_changed(net.ports[HOST], &facts);
    net
}

#[test]
fn the_gateway_gets_what_it_serves_and_the_host_the_rest() {
    let mut net = net();
    assert!(net.slow.is_none() && net.mode.nat().is_none() && net.mode.fdb().is_some());
    let mut rs = build(
        Way { macs: (MAC_A, ROUTER), from: "fe80::a", to: "fe80::1", ttl: 255 },
        &Kind::Echo(0, true),
        &[0; 8],
    );
    rs[54] = 133;
    let question = Arp::request(ROUTER, "10.0.0.1".parse().unwrap(), IP_A.parse().unwrap());
    let arp = question.reply(MAC_A);
    let probed = Arp::request(ROUTER, std::net::Ipv4Addr::UNSPECIFIED, IP_A.parse().unwrap()).reply(MAC_A);
    let v6 = Way { macs: (MAC_A, ROUTER), from: IP6_A, to: "fd00::1", ttl: 64 };
    let table = [
        ("a DHCP renewal", udp(out("10.0.0.1"), 68, 67, b"x"), GATEWAY),
        ("DHCPv6", udp(v6, 546, 547, b"x"), GATEWAY),
        ("DNS", udp(out("10.0.0.1"), 4000, 53, b"x"), GATEWAY),
        ("DNS over TCP", syn(out("10.0.0.1"), 4000, 53), GATEWAY),
        ("DNS over IPv6", udp(v6, 4000, 53, b"x"), GATEWAY),
        ("a router solicitation", rs, GATEWAY),
        ("another's DNS", udp(out(REMOTE), 4000, 53, b"x"), HOST),
        ("the host's ssh", syn(out("10.0.0.1"), 4000, 22), HOST),
        ("the outside", syn(out(REMOTE), 4000, 80), HOST),
        ("an echo request", build(out("10.0.0.1"), &Kind::Echo(1, true), b"x"), HOST),
        ("ARP to the router", arp.to_frame(ROUTER), HOST),
        ("the answer to a probe", probed.to_frame(ROUTER), GATEWAY),
    ];
    for (name, frame, want) in table {
        let before = net.punted;
        net.send(A, frame.clone());
        match want {
            GATEWAY => assert_eq!((net.punted, net.got.len()), (before + 1, 0), "{name}"),
            _ => assert_eq!(net.only(HOST), frame, "{name}: as it was"),
        }
    }
    // From the host to a guest: bridged, and the router's MAC address stays where it is configured.
    net.send(HOST, udp(Way { macs: (ROUTER, MAC_A), from: REMOTE, to: IP_A, ttl: 60 }, 53, 4000, b"x"));
    assert_eq!(net.got(A).len(), 1);
    net.send(A, syn(out("10.0.0.1"), 4000, 53));
    assert_eq!(net.got(HOST).len(), 0);
}
