//! A worker's view where the router is somebody else, behind a port: the host's IP stack, or the host's sockets.
//!
//! The router's MAC address is a static entry at the gateway's port. A frame that the bridge sends there goes to the
//! router's port instead, unless it is one that the gateway serves: which those are is a [`Router`]'s to say. Nothing is
//! translated here.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use switch_core::head::Head;
use switch_core::ids::PortId;
use switch_core::ip::{Packet, Transport};
use switch_core::mode::Forwarder;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::settings::Inside;
use super::{Known, Shared, Snapshot};
use crate::bridge::BridgeForwarder;

/// Who the router is.
pub(super) trait Router: fmt::Debug + Send {
    /// Its port, while it has one.
    fn port(known: &Known) -> Option<PortId>;

    /// True if the gateway serves a frame that is for the router's MAC address.
    fn is_served(inside: &Inside, head: &Head) -> bool;
}

/// True for what the gateway serves whoever the router is: DHCP, DNS at the gateway's addresses, and router
/// solicitations.
pub(super) fn is_service(inside: &Inside, packet: &Packet) -> bool {
    match packet.transport() {
        Transport::Udp { destination: 67, .. } => !packet.is_v6(),
        Transport::Udp { destination: 547, .. } => packet.is_v6(),
        Transport::Udp { destination: 53, .. } | Transport::Tcp { destination: 53, .. } => {
            inside.is_gateway(packet.destination())
        }
        Transport::Icmp { kind: 133, .. } => packet.is_v6(),
        _ => false,
    }
}

/// The operation of an ARP packet and the address that it is for.
pub(super) fn arp_of(head: &Head) -> Option<([u8; 2], [u8; 4])> {
    let arp = head.bytes().get(head.link_len()..)?;
    Some((*arp.get(6..)?.first_chunk()?, *arp.get(24..)?.first_chunk()?))
}

/// ARP's operation of replies.
pub(super) const ARP_REPLY: [u8; 2] = [0, 2];

/// See the module's text.
#[derive(Debug)]
pub(super) struct BeyondForwarder<R> {
    bridge: BridgeForwarder,
    shared: Arc<Shared>,
    snapshot: Snapshot,
    router: PhantomData<R>,
}

impl<R: Router> BeyondForwarder<R> {
    pub(super) fn new(bridge: BridgeForwarder, shared: Arc<Shared>) -> Self {
        Self { bridge, snapshot: Snapshot::new(&shared), shared, router: PhantomData }
    }
}

impl<R: Router> Forwarder for BeyondForwarder<R> {
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts) {
        self.bridge.decide(now, ingress, heads, out);
        self.snapshot.refresh(&self.shared);
        let known = &self.snapshot.known;
        let (Some(gateway), Some(router)) = (known.gateway, R::port(known)) else { return };
        if ingress == gateway || ingress == router {
            return;
        }
        for (head, verdict) in heads.iter().zip(out.as_mut_slice()) {
            let to_router =
                *verdict == Verdict::Unicast(gateway) && head.destination() == self.shared.settings.mac;
            if to_router && !R::is_served(&self.shared.inside, head) {
                *verdict = Verdict::Unicast(router);
            }
        }
    }
}
