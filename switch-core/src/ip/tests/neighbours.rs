//! ARP and ND, with smoltcp as oracle.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire as smol;

use super::{HERE, THERE, v4, v6};
use crate::checksum::Sum;
use crate::ids::MacAddr;
use crate::ip::PROTO_ICMPV6;
use crate::ip::arp::{Arp, Operation};
use crate::ip::nd::{self, Message, Neighbor};

#[test]
fn arp_is_what_smoltcp_reads() {
    let request = Arp::request(HERE, v4("10.0.0.1"), v4("10.0.0.5"));
    for arp in [request, request.reply(THERE), Arp::announcement(HERE, v4("10.0.0.1"))] {
        let frame = arp.to_frame(MacAddr::BROADCAST);
        assert_eq!(Arp::of_frame(&frame), Some(arp));
        let ethernet = smol::EthernetFrame::new_checked(&frame[..]).expect("ethernet");
        assert_eq!(ethernet.ethertype(), smol::EthernetProtocol::Arp);
        let packet = smol::ArpPacket::new_checked(ethernet.payload()).expect("arp");
        let smol::ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_hardware_addr,
            target_protocol_addr,
        } = smol::ArpRepr::parse(&packet).expect("ARP of Ethernet and IPv4")
        else {
            panic!("another kind");
        };
        assert_eq!(operation == smol::ArpOperation::Request, arp.operation == Operation::Request);
        assert_eq!((source_hardware_addr.0, source_protocol_addr), (arp.sender_mac.0, arp.sender));
        assert_eq!((target_hardware_addr.0, target_protocol_addr), (arp.target_mac.0, arp.target));
    }
    let reply = request.reply(THERE);
    assert_eq!((reply.sender, reply.target, reply.target_mac), (v4("10.0.0.5"), v4("10.0.0.1"), HERE));
    let sound = request.to_frame(THERE);
    for (what, at, value) in [
        ("hardware", 15, 6),
        ("protocol", 16, 9),
        ("lengths", 18, 8),
        ("operation", 21, 3),
        ("a group's", 22, 3),
        ("loopback", 28, 127),
    ] {
        let mut bad = sound.clone();
        bad[at] = value;
        assert_eq!(Arp::of_frame(&bad), None, "{what}");
    }
    assert_eq!(Arp::of_frame(&sound[..41]), None);
    let probe = Arp::request(HERE, Ipv4Addr::UNSPECIFIED, v4("10.0.0.5"));
    assert_eq!(Arp::of_frame(&probe.to_frame(THERE)), Some(probe));
    assert!(
        probe.is_probe()
            && !probe.is_announcement()
            && Arp::announcement(HERE, v4("10.0.0.1")).is_announcement()
    );
}

#[test]
fn neighbour_discovery_is_what_smoltcp_reads() {
    let ask = Neighbor::solicitation(HERE, v6("fe80::1"), v6("2001:db8::5"));
    let blind = Neighbor::solicitation(HERE, Ipv6Addr::UNSPECIFIED, v6("2001:db8::5"));
    let answers =
        [ask.reply(THERE, false), blind.reply(THERE, true), Neighbor::announcement(HERE, v6("2001:db8::1"))];
    for message in [ask, blind].into_iter().chain(answers) {
        let frame = message.to_frame(nd::group_mac(message.destination), HERE);
        assert_eq!(Neighbor::of_frame(&frame), Some(message));
        let ip = smol::Ipv6Packet::new_checked(&frame[14..]).expect("ipv6");
        assert_eq!(
            (ip.src_addr(), ip.dst_addr(), ip.hop_limit()),
            (message.source, message.destination, 255)
        );
        let packet = smol::Icmpv6Packet::new_checked(ip.payload()).expect("icmpv6");
        let caps = ChecksumCapabilities::default();
        let repr = smol::Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &packet, &caps).expect("checksum");
        match (repr, message.message) {
            (
                smol::Icmpv6Repr::Ndisc(smol::NdiscRepr::NeighborSolicit { target_addr, lladdr }),
                Message::Solicitation,
            ) => {
                assert_eq!(target_addr, message.target);
                assert_eq!(lladdr.is_some(), message.link.is_some());
            }
            (
                smol::Icmpv6Repr::Ndisc(smol::NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }),
                Message::Advertisement { router, solicited, overrides },
            ) => {
                assert_eq!(target_addr, message.target);
                assert_eq!(lladdr.map(|l| l.as_bytes().to_vec()), message.link.map(|l| l.0.to_vec()));
                assert_eq!(flags.contains(smol::NdiscNeighborFlags::ROUTER), router);
                assert_eq!(flags.contains(smol::NdiscNeighborFlags::SOLICITED), solicited);
                assert_eq!(flags.contains(smol::NdiscNeighborFlags::OVERRIDE), overrides);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(nd::solicited_node(v6("2001:db8::1:2345")), v6("ff02::1:ff01:2345"));
    assert_eq!(nd::group_mac(v6("ff02::1:ff01:2345")), MacAddr([0x33, 0x33, 0xff, 1, 0x23, 0x45]));
}

#[test]
fn invalid_neighbour_discovery_is_not_read() {
    let ask = Neighbor::solicitation(HERE, v6("fe80::1"), v6("2001:db8::5"));
    // Sets a byte of the frame and makes the checksum right again.
    let spoiled = |message: Neighbor, changes: &[(usize, u8)]| {
        let mut f = message.to_frame(THERE, HERE);
        for &(at, value) in changes {
            f[at] = value;
        }
        f[56..58].fill(0);
        let (source, destination) = (f[22..38].try_into().expect("16"), f[38..54].try_into().expect("16"));
        let mut sum = Sum::pseudo_v6(source, destination, PROTO_ICMPV6, (f.len() - 54) as u32);
        sum.add(&f[54..]);
        let right = sum.checksum();
        f[56..58].copy_from_slice(&right.to_be_bytes());
        Neighbor::of_frame(&f)
    };
    assert_eq!(spoiled(ask, &[]), Some(ask));
    assert_eq!(spoiled(ask, &[(21, 254)]), None, "forwarded on its way");
    assert_eq!(spoiled(ask, &[(55, 1)]), None, "code");
    assert_eq!(spoiled(ask, &[(54, 133)]), None, "another message");
    assert_eq!(spoiled(ask, &[(62, 0xff)]), None, "a multicast target");
    assert_eq!(spoiled(ask, &[(79, 0)]), None, "an option without length");
    assert_eq!(spoiled(ask, &[(79, 2)]), None, "an option beyond the end");
    assert_eq!(spoiled(ask, &[(80, 1)]), None, "a group's link address");
    assert_eq!(
        spoiled(Neighbor { source: Ipv6Addr::UNSPECIFIED, ..ask }, &[]),
        None,
        "a link address of nobody"
    );
    let blind = Neighbor::solicitation(HERE, Ipv6Addr::UNSPECIFIED, v6("2001:db8::5"));
    assert_eq!(spoiled(blind, &[]), Some(blind));
    assert_eq!(spoiled(Neighbor { destination: v6("2001:db8::5"), ..blind }, &[]), None, "not to the group");
    let answer = ask.reply(THERE, true);
    assert_eq!(
        spoiled(Neighbor { destination: nd::ALL_NODES, ..answer }, &[]),
        None,
        "solicited, and to all"
    );
    let mut f = ask.to_frame(THERE, HERE);
    f[56] ^= 1;
    assert_eq!(Neighbor::of_frame(&f), None, "checksum");
}
