//! A worker's view with `egress=uplink`: what can be done from a head.
//!
//! From the segment: the bridge decides; what it sends to the gateway is translated, if it is for the outside and
//! nothing about it needs the slow path. From the uplink: nothing reaches the bridge untranslated.

use std::net::IpAddr;
use std::sync::Arc;

use switch_core::drop::DropReason;
use switch_core::head::Head;
use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::error::{is_group, is_host};
use switch_core::ip::{ETHERTYPE_ARP, NotParsed, PROTO_ICMPV6, PROTO_UDP, Packet, Transport, set_macs};
use switch_core::mode::Forwarder;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::translate::{Translator, is_echo_request, opens};
use super::{INSIDE, OUTSIDE, Shared, Snapshot};
use crate::bridge::BridgeForwarder;
use crate::router::{Cache, Station};

/// A worker's view of a translated network.
#[derive(Debug)]
pub(super) struct NatForwarder {
    bridge: BridgeForwarder,
    router: Router,
    /// What the bridge says of one frame.
    verdict: Verdicts,
}

/// What it routes by.
#[derive(Debug)]
struct Router {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    neighbors: Cache,
    translator: Translator,
    /// Our MAC address on the uplink.
    uplink_mac: MacAddr,
}

/// What a router makes of a frame.
enum Routed {
    /// It is to go out of the uplink, and was changed for that.
    Out(PortId),
    /// It is for a guest, and was changed for that.
    In(Station),
    /// The slow path is to see it, as it came.
    Slow,
    Drop(DropReason),
}

impl NatForwarder {
    pub(super) fn new(bridge: BridgeForwarder, shared: Arc<Shared>) -> Self {
        let router = Router {
            snapshot: Snapshot::new(&shared),
            neighbors: Cache::new(Arc::clone(&shared.neighbors)),
            translator: Translator::new(&shared),
            uplink_mac: shared.settings.uplink().map(|uplink| uplink.mac).unwrap_or_default(),
            shared,
        };
        Self { bridge, router, verdict: Verdicts::default() }
    }

    fn carry_out(
        &mut self,
        now: Instant,
        (ingress, gateway): (PortId, PortId),
        head: &mut Head,
        routed: Routed,
    ) -> Verdict {
        match routed {
            Routed::Out(port) => Verdict::Unicast(port),
            Routed::Slow => Verdict::Unicast(gateway),
            Routed::Drop(reason) => Verdict::Drop(reason),
            Routed::In(station) => {
                set_macs(head, station.mac, self.router.shared.settings.mac);
                // The bridge knows best which port a station is at. Sent by the gateway, the frame teaches it nothing.
                self.verdict.begin(1);
                self.bridge.decide(now, gateway, std::slice::from_mut(head), &mut self.verdict);
                match self.verdict.as_slice() {
                    [Verdict::Unicast(port)] if *port == ingress => Verdict::Drop(DropReason::SamePort),
                    [Verdict::Unicast(port)] => Verdict::Unicast(*port),
                    _ => Verdict::Unicast(station.port),
                }
            }
        }
    }
}

impl Forwarder for NatForwarder {
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts) {
        if out.as_slice().len() != heads.len() {
            out.begin(heads.len());
        }
        let router = &mut self.router;
        router.snapshot.refresh(&router.shared);
        router.neighbors.begin(now);
        let Some(gateway) = router.snapshot.known.gateway else {
            // Before the gateway's port is there, nothing is routed.
            if router.snapshot.known.uplink != Some(ingress) {
                self.bridge.decide(now, ingress, heads, out);
            }
            return;
        };
        if router.snapshot.known.uplink == Some(ingress) {
            for (head, verdict) in heads.iter_mut().zip(out.as_mut_slice()) {
                let routed = self.router.take_uplink(now, head);
                *verdict = self.carry_out(now, (ingress, gateway), head, routed);
            }
            return;
        }
        self.bridge.decide(now, ingress, heads, out);
        if ingress == gateway {
            return;
        }
        for (head, verdict) in heads.iter_mut().zip(out.as_mut_slice()) {
            if *verdict == Verdict::Unicast(gateway) && head.destination() == self.router.shared.settings.mac
            {
                let routed = self.router.take_segment(now, ingress, head);
                *verdict = self.carry_out(now, (ingress, gateway), head, routed);
            }
        }
    }
}

/// Whether a frame has something that is not done from a head.
fn is_special(packet: &Packet) -> bool {
    packet.is_fragment()
        || packet.has_options()
        || packet.hop_limit() <= 1
        || packet.is_icmp_error()
        || packet.transport() == Transport::Beyond
}

/// Whether a packet fits a link: super-frames leave it in segments.
fn fits(head: &Head, packet: &Packet, mtu: usize) -> bool {
    match head.offload.gso {
        Some(gso) => {
            let headers = usize::from(gso.header_len).saturating_sub(packet.network_at());
            headers + usize::from(gso.size.get()) <= mtu
        }
        None => packet.len() <= mtu,
    }
}

impl Router {
    /// A frame from a guest to the router's MAC address.
    #[inline]
    fn take_segment(&mut self, now: Instant, ingress: PortId, head: &mut Head) -> Routed {
        let mut packet = match Packet::of_head(head) {
            Ok(packet) => packet,
            Err(NotParsed::NotIp) => return Routed::Slow,
            Err(NotParsed::Malformed) => return Routed::Drop(DropReason::BadIp),
        };
        let (source, destination) = (packet.source(), packet.destination());
        let inside = &self.shared.inside;
        if inside.is_gateway(destination) || is_group(destination) || is_link_local6(destination) {
            return Routed::Slow;
        }
        if !inside.is_guest(source) {
            return Routed::Drop(DropReason::Rpf);
        }
        if !is_host(destination) {
            return Routed::Drop(DropReason::NotRouted);
        }
        let Some(uplink) = self.snapshot.known.uplink else { return Routed::Slow };
        if is_special(&packet) || inside.contains(destination) {
            return Routed::Slow;
        }
        if !self.neighbors.confirm(INSIDE, source, Station { mac: head.source(), port: ingress }) {
            return Routed::Slow;
        }
        if self.translator.is_external(destination) {
            return self.hairpin(now, ingress, &mut packet, head);
        }
        let next_hop = self.snapshot.known.next_hop(destination);
        let Some(next) = next_hop.and_then(|address| self.neighbors.get(OUTSIDE, address)) else {
            return Routed::Slow;
        };
        if !fits(head, &packet, self.snapshot.known.mtu(uplink)) {
            return Routed::Slow;
        }
        if let Err(reason) = self.translator.outbound(now, ingress, &mut packet, head) {
            return Routed::Drop(reason);
        }
        packet.decrement_hop_limit(head);
        if head.tag().is_some() {
            head.pop_tag();
        }
        set_macs(head, next.mac, self.uplink_mac);
        Routed::Out(uplink)
    }

    /// A packet to one of our outside addresses, from a guest.
    fn hairpin(&mut self, now: Instant, ingress: PortId, packet: &mut Packet, head: &mut Head) -> Routed {
        if is_echo_request(packet) {
            return Routed::Slow;
        }
        let before = head.clone();
        match self.translator.outbound(now, ingress, packet, head) {
            Ok(_) => {}
            Err(reason) => return Routed::Drop(reason),
        }
        let inside = packet.destination();
        let mtu = |port| self.snapshot.known.mtu(port);
        match self.neighbors.get(INSIDE, inside) {
            // Back to the port that it came from it is sent by the gateway: a bridge does not reflect.
            Some(station) if station.port != ingress && fits(head, packet, mtu(station.port)) => {
                packet.decrement_hop_limit(head);
                Routed::In(station)
            }
            _ => {
                *head = before;
                Routed::Slow
            }
        }
    }

    /// A frame from the uplink.
    #[inline]
    fn take_uplink(&mut self, now: Instant, head: &mut Head) -> Routed {
        const NOT_ROUTED: Routed = Routed::Drop(DropReason::NotRouted);
        if head.vlan.is_some() {
            return NOT_ROUTED;
        }
        if head.ethertype() == ETHERTYPE_ARP {
            return Routed::Slow;
        }
        let mut packet = match Packet::of_head(head) {
            Ok(packet) => packet,
            Err(reason) => return Routed::Drop(reason.into()),
        };
        if is_link_business(&packet) {
            return Routed::Slow;
        }
        let (source, destination) = (packet.source(), packet.destination());
        if head.destination() != self.uplink_mac || !self.translator.is_external(destination) {
            return NOT_ROUTED;
        }
        if is_stranger(source, &self.shared, &mut self.translator) {
            return Routed::Drop(DropReason::Rpf);
        }
        if is_special(&packet) || is_echo_request(&packet) {
            return Routed::Slow;
        }
        let asks = opens(&packet);
        let before = packet;
        if let Err(reason) = self.translator.inbound(now, &mut packet, head) {
            let unsolicited = matches!(reason, DropReason::NatNoMapping | DropReason::NatFiltered);
            return if unsolicited && asks { Routed::Slow } else { Routed::Drop(reason) };
        }
        let inside = packet.destination();
        match self.neighbors.get(INSIDE, inside) {
            Some(station) if fits(head, &packet, self.snapshot.known.mtu(station.port)) => {
                packet.decrement_hop_limit(head);
                Routed::In(station)
            }
            _ => {
                // As it came: the slow path translates it again, and the answer is the same.
                let port = match before.transport() {
                    Transport::Tcp { destination, .. } | Transport::Udp { destination, .. } => {
                        Some(destination)
                    }
                    Transport::Icmp { id, .. } => Some(id),
                    Transport::Other | Transport::Beyond => None,
                };
                packet.set_destination(head, before.destination(), port);
                Routed::Slow
            }
        }
    }
}

/// Whether nobody out there has that source: it is no host's, a guest's, or our own.
#[inline]
pub(super) fn is_stranger(source: IpAddr, shared: &Shared, translator: &mut Translator) -> bool {
    !is_host(source) || shared.inside.contains(source) || translator.is_external(source)
}

fn is_link_local6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// What concerns the uplink's link itself: neighbour discovery, and the answers of a DHCP server.
fn is_link_business(packet: &Packet) -> bool {
    match packet.transport() {
        Transport::Icmp { kind, .. } => packet.protocol() == PROTO_ICMPV6 && matches!(kind, 133..=137),
        Transport::Udp { source: 67, destination: 68 } => packet.protocol() == PROTO_UDP && !packet.is_v6(),
        _ => false,
    }
}
