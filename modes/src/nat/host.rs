//! `egress=host`: the router is the host's IP stack, behind the host interface, but for what the gateway serves.
//!
//! Besides DHCP, DNS and router solicitations that is the answer to a probe of an address that DHCP is about to give
//! (RFC 5227: it is sent to nobody's address). The host itself answers for the gateway's addresses.

use switch_core::head::Head;
use switch_core::ids::PortId;
use switch_core::ip::{ETHERTYPE_ARP, Packet};

use super::Known;
use super::beyond::{ARP_REPLY, Router, arp_of, is_service};
use super::settings::Inside;

/// The host's IP stack.
#[derive(Debug)]
pub(super) struct HostStack;

impl Router for HostStack {
    fn port(known: &Known) -> Option<PortId> {
        known.host
    }

    fn is_served(inside: &Inside, head: &Head) -> bool {
        if head.ethertype() == ETHERTYPE_ARP {
            // A reply to somebody without an address: that is how the gateway probes, and the host does not.
            return arp_of(head) == Some((ARP_REPLY, [0; 4]));
        }
        Packet::of_head(head).is_ok_and(|packet| is_service(inside, &packet))
    }
}
