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
use switch_core::napt::Way;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::translate::{Asked, Translator, is_echo_request, opens};
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
    /// Frames of a burst that wait for the others to be read; kept for its memory.
    waiting: Vec<Waiting>,
}

/// A frame that is to be translated, and for which nothing else is in the way.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Which of the burst.
    frame: usize,
    packet: Packet,
    asked: Asked,
    /// The next hop of what goes out; nothing of what may come back in.
    next: Option<MacAddr>,
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

/// Why a frame is not translated with the others of its burst.
enum NotNow {
    /// The slow path is to see it.
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
        Self { bridge, router, verdict: Verdicts::default(), waiting: Vec::new() }
    }

    /// Decides what is translated: all frames are read, then their sessions are looked for together, and each is
    /// translated after that, in order.
    fn decide_waiting(
        &mut self,
        now: Instant,
        way: Way,
        ports: (PortId, PortId),
        heads: &mut [Head],
        out: &mut Verdicts,
    ) {
        let verdicts = out.as_mut_slice();
        let (ingress, gateway) = ports;
        let router = &mut self.router;
        router.translator.begin();
        self.waiting.clear();
        for (frame, (head, verdict)) in heads.iter().zip(&mut *verdicts).enumerate() {
            let read = match way {
                Way::In => router.read_uplink(head),
                Way::Out => {
                    let to_router = *verdict == Verdict::Unicast(gateway)
                        && head.destination() == router.shared.settings.mac;
                    if !to_router {
                        continue;
                    }
                    router.read_segment(ingress, head)
                }
            };
            match read {
                Ok((packet, next)) => {
                    let asked = router.translator.ask(way, &packet);
                    self.waiting.push(Waiting { frame, packet, asked, next });
                }
                Err(NotNow::Slow) => *verdict = Verdict::Unicast(gateway),
                Err(NotNow::Drop(reason)) => *verdict = Verdict::Drop(reason),
            }
        }
        router.translator.look_ahead(way);
        for i in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.get(i).copied() else { return };
            let frame = waiting.frame;
            let (Some(head), Some(verdict)) = (heads.get_mut(frame), verdicts.get_mut(frame)) else { return };
            let routed = match way {
                Way::Out => self.router.send_out(now, ingress, head, waiting),
                Way::In => self.router.take_in(now, head, waiting),
            };
            *verdict = self.carry_out(now, ports, head, routed);
        }
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
            self.decide_waiting(now, Way::In, (ingress, gateway), heads, out);
            return;
        }
        self.bridge.decide(now, ingress, heads, out);
        if ingress == gateway {
            return;
        }
        self.decide_waiting(now, Way::Out, (ingress, gateway), heads, out);
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
    /// Reads a frame from a guest to the router's MAC address, as far as nothing is to be changed.
    #[inline]
    fn read_segment(&mut self, ingress: PortId, head: &Head) -> Result<(Packet, Option<MacAddr>), NotNow> {
        let packet = match Packet::of_head(head) {
            Ok(packet) => packet,
            Err(NotParsed::NotIp) => return Err(NotNow::Slow),
            Err(NotParsed::Malformed) => return Err(NotNow::Drop(DropReason::BadIp)),
        };
        let (source, destination) = (packet.source(), packet.destination());
        let inside = &self.shared.inside;
        if inside.is_gateway(destination) || is_group(destination) || is_link_local6(destination) {
            return Err(NotNow::Slow);
        }
        if !inside.is_guest(source) {
            return Err(NotNow::Drop(DropReason::Rpf));
        }
        if !is_host(destination) {
            return Err(NotNow::Drop(DropReason::NotRouted));
        }
        let Some(uplink) = self.snapshot.known.uplink else { return Err(NotNow::Slow) };
        if is_special(&packet) || inside.contains(destination) {
            return Err(NotNow::Slow);
        }
        if !self.neighbors.confirm(INSIDE, source, Station { mac: head.source(), port: ingress }) {
            return Err(NotNow::Slow);
        }
        if self.translator.is_external(destination) {
            return if is_echo_request(&packet) { Err(NotNow::Slow) } else { Ok((packet, None)) };
        }
        let next_hop = self.snapshot.known.next_hop(destination);
        let next = next_hop.and_then(|address| self.neighbors.get(OUTSIDE, address));
        let next = next.ok_or(NotNow::Slow)?;
        if !fits(head, &packet, self.snapshot.known.mtu(uplink)) {
            return Err(NotNow::Slow);
        }
        Ok((packet, Some(next.mac)))
    }

    /// Translates a packet from a guest and sends it on its way.
    #[inline]
    fn send_out(&mut self, now: Instant, ingress: PortId, head: &mut Head, waiting: Waiting) -> Routed {
        let Waiting { mut packet, asked, next, .. } = waiting;
        let Some(next) = next else { return self.hairpin(now, ingress, &mut packet, head) };
        let Some(uplink) = self.snapshot.known.uplink else { return Routed::Slow };
        let done = self.translator.outbound_asked(now, ingress, &mut packet, head, Some(asked));
        if let Err(reason) = done {
            return Routed::Drop(reason);
        }
        packet.decrement_hop_limit(head);
        if head.tag().is_some() {
            head.pop_tag();
        }
        set_macs(head, next, self.uplink_mac);
        Routed::Out(uplink)
    }

    /// A packet to one of our outside addresses, from a guest.
    fn hairpin(&mut self, now: Instant, ingress: PortId, packet: &mut Packet, head: &mut Head) -> Routed {
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

    /// Reads a frame from the uplink, as far as nothing is to be changed.
    #[inline]
    fn read_uplink(&mut self, head: &Head) -> Result<(Packet, Option<MacAddr>), NotNow> {
        const NOT_ROUTED: NotNow = NotNow::Drop(DropReason::NotRouted);
        if head.vlan.is_some() {
            return Err(NOT_ROUTED);
        }
        if head.ethertype() == ETHERTYPE_ARP {
            return Err(NotNow::Slow);
        }
        let packet = Packet::of_head(head).map_err(|reason| NotNow::Drop(reason.into()))?;
        if is_link_business(&packet) {
            return Err(NotNow::Slow);
        }
        let (source, destination) = (packet.source(), packet.destination());
        if head.destination() != self.uplink_mac || !self.translator.is_external(destination) {
            return Err(NOT_ROUTED);
        }
        if is_stranger(source, &self.shared, &mut self.translator) {
            return Err(NotNow::Drop(DropReason::Rpf));
        }
        if is_special(&packet) || is_echo_request(&packet) {
            return Err(NotNow::Slow);
        }
        Ok((packet, None))
    }

    /// Translates a packet from the outside and sends it to its guest.
    #[inline]
    fn take_in(&mut self, now: Instant, head: &mut Head, waiting: Waiting) -> Routed {
        let Waiting { mut packet, asked, .. } = waiting;
        let asks = opens(&packet);
        let before = packet;
        if let Err(reason) = self.translator.inbound_asked(now, &mut packet, head, Some(asked)) {
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
