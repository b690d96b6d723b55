//! The uplink's address: announced, answered for, and got by DHCP.

use dhcproto::v4::{self, DhcpOption, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use super::*;

#[test]
fn our_addresses_are_announced_and_answered_for() {
    let mut net = Net::with(settings(), 1500);
    let ask = Arp::request(ISP, "192.0.2.254".parse().unwrap(), EXTERNAL.parse().unwrap());
    net.send(UPLINK, ask.to_frame(MacAddr::BROADCAST));
    let reply = Arp::of_frame(&net.only(UPLINK)).expect("ARP");
    assert_eq!((reply.operation, reply.sender_mac), (Operation::Reply, OURS));
    let other = Arp::request(ISP, "192.0.2.254".parse().unwrap(), "192.0.2.77".parse().unwrap());
    net.send(UPLINK, other.to_frame(MacAddr::BROADCAST));
    net.nothing();

    let ask = Neighbor::solicitation(ISP, "fe80::fe".parse().unwrap(), EXTERNAL6.parse().unwrap());
    net.send(UPLINK, ask.to_frame(MacAddr([0x33, 0x33, 0xff, 0, 0, 2]), ISP));
    let reply = Neighbor::of_frame(&net.only(UPLINK)).expect("ND");
    assert_eq!((reply.link, reply.target), (Some(OURS), EXTERNAL6.parse().unwrap()));

    // A new uplink hears of them unasked.
    net.mode.port_changed(net.ports[4], &PortFacts { role: Role::Guest, ..PortFacts::default() });
    net.mode.port_removed(net.ports[UPLINK]);
    net.mode.port_changed(
        net.ports[UPLINK],
        &PortFacts { role: Role::Uplink, mtu: 1500, ..PortFacts::default() },
    );
    net.poll();
    net.nothing();
    net.mode.port_removed(net.ports[UPLINK]);
    net.poll();
    net.ports.swap(UPLINK, 4);
    net.mode.port_changed(
        net.ports[UPLINK],
        &PortFacts { role: Role::Uplink, mtu: 1500, ..PortFacts::default() },
    );
    net.poll();
    let announced = net.got(UPLINK);
    assert!(announced.iter().any(|frame| Arp::of_frame(frame).is_some_and(|arp| arp.is_announcement())));
    assert!(announced.iter().any(|frame| Neighbor::of_frame(frame).is_some()));
}

/// A DHCP server's answer.
fn answer(question: &[u8], offered: &str, lease: u32) -> Option<Vec<u8>> {
    let packet = Packet::of_frame(question).ok()?;
    let Transport::Udp { source: 68, destination: 67 } = packet.transport() else { return None };
    let message =
        v4::Message::decode(&mut Decoder::new(&question[packet.transport_at() + 8..packet.end()])).ok()?;
    let kind = match message.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => MessageType::Ack,
        _ => return None,
    };
    let mut reply = v4::Message::default();
    reply
        .set_opcode(Opcode::BootReply)
        .set_xid(message.xid())
        .set_yiaddr(offered.parse::<std::net::Ipv4Addr>().unwrap())
        .set_chaddr(message.chaddr());
    let options = [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier("198.51.100.1".parse().unwrap()),
        DhcpOption::AddressLeaseTime(lease),
        DhcpOption::SubnetMask("255.255.255.0".parse().unwrap()),
        DhcpOption::Router(vec!["198.51.100.1".parse().unwrap()]),
    ];
    for option in options {
        reply.opts_mut().insert(option);
    }
    assert!(reply.opts().get(OptionCode::Router).is_some());
    let mut bytes = Vec::new();
    reply.encode(&mut Encoder::new(&mut bytes)).unwrap();
    let way = Way { macs: (ISP, OURS), from: "198.51.100.1", to: offered, ttl: 64 };
    Some(udp(way, 67, 68, &bytes))
}

#[test]
fn without_an_address_a_dhcp_client_gets_one_and_loses_it_again() {
    let no_address = Uplink { addresses: Vec::new(), next_hop4: None, next_hop6: None, ..uplink() };
    let mut net = Net::with(Settings { egress: Egress::Uplink(no_address), ..settings() }, 1500);
    net.stations.push((UPLINK, ISP, ip("198.51.100.1")));
    assert_eq!(net.mode.status(), Status { by_dhcp: true, ..Status::default() });
    // No address yet: a guest is told at once that there is no way.
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let error = net.got(A).pop().expect("an error");
    assert!(matches!(
        Packet::of_frame(&error).unwrap().transport(),
        Transport::Icmp { kind: 3, code: 0, .. }
    ));

    let serve = |net: &mut Net, secs: u64| {
        for _ in 0..secs {
            net.wait(1);
            for frame in net.got(UPLINK) {
                if let Some(reply) = answer(&frame, "198.51.100.42", 600) {
                    net.send(UPLINK, reply);
                }
            }
        }
    };
    serve(&mut net, 15);
    let path = UplinkAddress { address: ip("198.51.100.42"), prefix: 24, next_hop: Some(ip("198.51.100.1")) };
    assert_eq!(net.mode.status().v4, Some(path));
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    let sent = seen(&net.only(UPLINK));
    assert_eq!((sent.source.0, sent.macs), (ip("198.51.100.42"), (OURS, ISP)));
    // It is renewed in time, and the session lives.
    serve(&mut net, 1000);
    assert_eq!(net.mode.status().v4, Some(path));

    // The server is gone: so is the address, when the lease is over.
    net.wait(700);
    net.got.clear();
    assert_eq!(net.mode.status().v4, None);
    assert_eq!(net.mode.sessions(net.now, 9).1, 0);
    net.send(A, udp(out(REMOTE), 4000, 53, b"x"));
    assert_eq!(net.got(UPLINK).len(), 0);
    assert_eq!(net.got(A).len(), 1);
}
