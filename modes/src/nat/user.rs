//! `egress=user`: what leaves the subnet goes to the host's sockets, by a port of the network's own.
//!
//! The gateway answers for its addresses: ARP, ND and echo besides DHCP, DNS and router solicitations. All else that is
//! for the router is the sockets', also what is for ports of the gateway's addresses that it does not serve. So are the
//! answers of neighbours to the router: whoever has a connection for a guest has to know where the guest is. And so are
//! ICMP messages in fragments, which the gateway does not put together.

use switch_core::head::Head;
use switch_core::ids::PortId;
use switch_core::ip::{ETHERTYPE_ARP, Packet, Transport};

use super::Known;
use super::beyond::{ARP_REPLY, Router, arp_of, is_service};
use super::settings::Inside;

/// ICMPv6's neighbour advertisement.
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// ICMPv6's messages of neighbours (RFC 4861).
const NEIGHBORS: std::ops::RangeInclusive<u8> = 133..=137;

/// The host's sockets.
#[derive(Debug)]
pub(super) struct Sockets;

impl Router for Sockets {
    fn port(known: &Known) -> Option<PortId> {
        known.uplink
    }

    fn is_served(inside: &Inside, head: &Head) -> bool {
        if head.ethertype() == ETHERTYPE_ARP {
            // A reply to nobody's address is one to DHCP's probe (RFC 5227).
            return arp_of(head).is_none_or(|(operation, to)| operation != ARP_REPLY || to == [0; 4]);
        }
        let Ok(packet) = Packet::of_head(head) else { return true };
        let to_gateway = inside.is_gateway(packet.destination());
        match packet.transport() {
            Transport::Icmp { kind: NEIGHBOR_ADVERTISEMENT, .. } if packet.is_v6() => false,
            // A packet's fragments go one way: those behind the first have no type.
            Transport::Icmp { .. } if packet.is_fragment() => false,
            Transport::Icmp { kind, .. } => to_gateway || packet.is_v6() && NEIGHBORS.contains(&kind),
            _ => is_service(inside, &packet),
        }
    }
}
