//! A worker's view with `egress=host`: the router is the host's IP stack, but for what the gateway serves.
//!
//! The router's MAC address is a static entry at the gateway's port. A frame that the bridge sends there goes to the
//! host interface instead, unless it is for DHCP, for DNS at the gateway's addresses, a router solicitation, or the
//! answer to a probe of an address that DHCP is about to give (RFC 5227: it is sent to nobody's address).
//! Nothing is translated here.

use std::sync::Arc;

use switch_core::head::Head;
use switch_core::ids::PortId;
use switch_core::ip::{ETHERTYPE_ARP, Packet, Transport};
use switch_core::mode::Forwarder;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::{Shared, Snapshot};
use crate::bridge::BridgeForwarder;

/// A worker's view of a network that the host routes.
#[derive(Debug)]
pub(super) struct HostForwarder {
    bridge: BridgeForwarder,
    shared: Arc<Shared>,
    snapshot: Snapshot,
}

impl HostForwarder {
    pub(super) fn new(bridge: BridgeForwarder, shared: Arc<Shared>) -> Self {
        Self { bridge, snapshot: Snapshot::new(&shared), shared }
    }

    /// True if the gateway serves the frame.
    fn is_served(&self, head: &Head) -> bool {
        if head.ethertype() == ETHERTYPE_ARP {
            return answers_probe(head);
        }
        let Ok(packet) = Packet::of_head(head) else { return false };
        match packet.transport() {
            Transport::Udp { destination: 67, .. } => !packet.is_v6(),
            Transport::Udp { destination: 547, .. } => packet.is_v6(),
            Transport::Udp { destination: 53, .. } | Transport::Tcp { destination: 53, .. } => {
                self.shared.inside.is_gateway(packet.destination())
            }
            Transport::Icmp { kind: 133, .. } => packet.is_v6(),
            _ => false,
        }
    }
}

/// True for an ARP reply to somebody without an address: that is how the gateway probes, and the host does not.
fn answers_probe(head: &Head) -> bool {
    const REPLY: [u8; 2] = [0, 2];
    let arp = head.bytes().get(head.link_len()..).unwrap_or_default();
    arp.get(6..8) == Some(&REPLY) && arp.get(24..28) == Some(&[0; 4])
}

impl Forwarder for HostForwarder {
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts) {
        self.bridge.decide(now, ingress, heads, out);
        self.snapshot.refresh(&self.shared);
        let known = &self.snapshot.known;
        let (Some(gateway), Some(host)) = (known.gateway, known.host) else { return };
        if ingress == gateway || ingress == host {
            return;
        }
        for (head, verdict) in heads.iter().zip(out.as_mut_slice()) {
            let to_router =
                *verdict == Verdict::Unicast(gateway) && head.destination() == self.shared.settings.mac;
            if to_router && !self.is_served(head) {
                *verdict = Verdict::Unicast(host);
            }
        }
    }
}
