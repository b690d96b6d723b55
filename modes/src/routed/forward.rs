//! One worker's view of a routed network: the fast path, on heads.
//!
//! With few routes, each frame is decided by itself. With many, a look-up mostly waits for memory; then all frames of
//! a burst are read first, their routes are looked up together, and they are sent on after that.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use switch_core::drop::DropReason;
use switch_core::head::Head;
use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::error::{is_group, is_host};
use switch_core::ip::{self, ETHERTYPE_ARP, Packet, Transport, set_macs};
use switch_core::mode::{Forwarder, Role};
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::Routed;
use super::table::{Hop, Route, Table, Target, Way};
use crate::router::{Cache, Link, Station};

/// A worker's view of a routed network.
#[derive(Debug)]
pub(super) struct RoutedForwarder {
    routed: Arc<Routed>,
    table: Arc<Table>,
    epoch: u64,
    cache: Cache,
    together: Together,
}

/// Routes from which on those of a burst are looked up together.
const MANY: usize = 4096;

/// The frames of a burst whose routes are looked up together; kept for its memory.
#[derive(Debug, Default)]
struct Together {
    /// Of each frame: its packet, and which of `destinations` it goes to; or nothing, if it was decided already.
    packets: Vec<Option<(Packet, usize)>>,
    destinations: Vec<IpAddr>,
    routes: Vec<Option<Route>>,
}

/// A burst on its way.
struct Burst<'a> {
    table: &'a Table,
    cache: &'a mut Cache,
    router: MacAddr,
    ingress: PortId,
    role: Role,
    /// The station whose packet was let in last, and its source. Frames come in trains.
    last_source: Option<(IpAddr, MacAddr)>,
    /// Where the packet before went.
    last_destination: Option<(IpAddr, Way, MacAddr)>,
}

impl RoutedForwarder {
    pub(super) fn new(routed: Arc<Routed>) -> Self {
        // The number first: a table that is newer than it is only fetched twice.
        let epoch = routed.epoch.load(Ordering::Acquire);
        let table = routed.table();
        let cache = Cache::new(Arc::clone(&routed.neighbors));
        Self { routed, table, epoch, cache, together: Together::default() }
    }
}

impl Forwarder for RoutedForwarder {
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts) {
        if out.as_slice().len() != heads.len() {
            out.begin(heads.len());
        }
        let epoch = self.routed.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.table = self.routed.table();
        }
        self.cache.begin(now);
        // A port that is not the network's: all is dropped as unhandled.
        let Some(role) = self.table.role(ingress) else { return };
        let mut burst = Burst {
            table: &self.table,
            cache: &mut self.cache,
            router: self.routed.settings.mac,
            ingress,
            role,
            last_source: None,
            last_destination: None,
        };
        let verdicts = out.as_mut_slice();
        if burst.table.len() >= MANY {
            burst.decide_together(heads, verdicts, &mut self.together);
            return;
        }
        for (head, verdict) in heads.iter_mut().zip(verdicts) {
            *verdict = burst.decide(head).unwrap_or_else(Verdict::Drop);
        }
    }
}

/// What becomes of a frame, or why nothing does.
type Decision = Result<Verdict, DropReason>;

/// A frame that was read.
enum Read {
    /// It is to be routed.
    Packet(Packet),
    /// It is not.
    Decided(Verdict),
}

impl Burst<'_> {
    #[inline]
    fn decide(&mut self, head: &mut Head) -> Decision {
        let packet = match self.read(head)? {
            Read::Packet(packet) => packet,
            Read::Decided(verdict) => return Ok(verdict),
        };
        self.route(head, packet, None)
    }

    /// Decides a burst whose routes are looked up together.
    fn decide_together(&mut self, heads: &mut [Head], verdicts: &mut [Verdict], t: &mut Together) {
        t.packets.clear();
        t.destinations.clear();
        t.routes.clear();
        for (head, verdict) in heads.iter().zip(verdicts.iter_mut()) {
            let packet = match self.read(head) {
                Ok(Read::Packet(packet)) => packet,
                Ok(Read::Decided(decided)) => {
                    *verdict = decided;
                    t.packets.push(None);
                    continue;
                }
                Err(reason) => {
                    *verdict = Verdict::Drop(reason);
                    t.packets.push(None);
                    continue;
                }
            };
            let destination = packet.destination();
            if t.destinations.last() != Some(&destination) {
                t.destinations.push(destination);
            }
            t.packets.push(Some((packet, t.destinations.len() - 1)));
        }
        self.table.find_all(&t.destinations, &mut t.routes);
        for ((head, verdict), packet) in heads.iter_mut().zip(verdicts).zip(&t.packets) {
            if let Some((packet, at)) = packet {
                let route = t.routes.get(*at).copied().flatten();
                *verdict = self.route(head, *packet, Some(route)).unwrap_or_else(Verdict::Drop);
            }
        }
    }

    /// What can be said of a frame before its route is known.
    #[inline]
    fn read(&mut self, head: &Head) -> Result<Read, DropReason> {
        if head.vlan.is_some() {
            return Err(DropReason::NotRouted);
        }
        let destination = head.destination();
        if destination.is_group() {
            return self.decide_group(head).map(Read::Decided);
        }
        // What the gateway sends by the network is to be routed, whatever MAC address it wrote.
        if destination != self.router && self.role != Role::Gateway {
            return Err(DropReason::NotRouted);
        }
        if head.ethertype() == ETHERTYPE_ARP {
            return self.to_gateway().map(Read::Decided);
        }
        let packet = Packet::of_head(head)?;
        if is_discovery(&packet) && packet.hop_limit() == 255 {
            return self.to_gateway().map(Read::Decided);
        }
        if !is_host(packet.destination()) {
            return Err(DropReason::NotRouted);
        }
        Ok(Read::Packet(packet))
    }

    /// Sends a packet on its way. `route` is what the table says of its destination, if that was asked already.
    #[inline]
    fn route(&mut self, head: &mut Head, mut packet: Packet, route: Option<Option<Route>>) -> Decision {
        let (source, destination) = (packet.source(), packet.destination());
        if let Err(reason) = self.check_source(source, destination, head.source()) {
            return if self.is_renewal(&packet) { self.to_gateway() } else { Err(reason) };
        }
        if is_link_local(destination) {
            return self.to_gateway();
        }
        let (way, mac) = match self.last_destination {
            Some((last, way, mac)) if last == destination => (way, mac),
            _ => match self.look_up(destination, route)? {
                Some(found) => found,
                None => return self.to_gateway(),
            },
        };
        let from_gateway = self.role == Role::Gateway;
        if (packet.hop_limit() <= 1 && !from_gateway) || largest(head, &packet) > usize::from(way.mtu) {
            return self.to_gateway();
        }
        if !from_gateway {
            packet.decrement_hop_limit(head);
        }
        if head.tag().is_some() {
            head.pop_tag();
        }
        set_macs(head, mac, self.router);
        Ok(Verdict::Unicast(way.port))
    }

    /// A broadcast or multicast frame.
    #[cold]
    fn decide_group(&mut self, head: &Head) -> Decision {
        if self.role == Role::Gateway {
            return Err(DropReason::NotRouted);
        }
        let wanted = if head.ethertype() == ETHERTYPE_ARP {
            // Most of what a segment's stations ask one another is nothing to us.
            let target = head.bytes().get(head.link_len() + 24..).and_then(|b| b.first_chunk::<4>());
            target.is_some_and(|target| self.concerns(IpAddr::from(*target)))
        } else {
            let packet = Packet::of_head(head)?;
            let guest = self.role == Role::Guest;
            let at = packet.transport_at() + 8;
            match packet.transport() {
                Transport::Icmp { kind: 133, .. } if packet.is_v6() => guest,
                Transport::Icmp { kind: 135 | 136, .. } if packet.is_v6() => {
                    let target = head.bytes().get(at..).and_then(|b| b.first_chunk::<16>());
                    target.is_some_and(|target| self.concerns(IpAddr::from(*target)))
                }
                Transport::Udp { source: 68, destination: 67 } if guest && !packet.is_v6() => {
                    if !self.may_ask_with(packet.source()) {
                        return Err(DropReason::Rpf);
                    }
                    true
                }
                Transport::Udp { source: 546, destination: 547 } if guest && packet.is_v6() => {
                    if !is_link_local(packet.source()) {
                        self.check_source(packet.source(), packet.destination(), head.source())?;
                    }
                    true
                }
                _ => false,
            }
        };
        if wanted { self.to_gateway() } else { Err(DropReason::NotRouted) }
    }

    /// Whether a guest may ask for a lease with this source: with any but another's. A lease that ended here, by an
    /// operator's word or with the daemon, is still its client's own opinion, and only an answer can change that.
    fn may_ask_with(&self, source: IpAddr) -> bool {
        match self.table.find(source) {
            Some(Target::Out(way)) if way.role == Role::Guest => way.port == self.ingress,
            Some(Target::Own | Target::Broadcast) => false,
            _ => source.is_unspecified() || is_host(source),
        }
    }

    /// Whether a packet that may not go further is a guest's to renew its lease, and to us alone.
    #[cold]
    fn is_renewal(&self, packet: &Packet) -> bool {
        let asks = packet.transport() == Transport::Udp { source: 68, destination: 67 };
        let of_guest = self.role == Role::Guest && !packet.is_v6();
        asks && of_guest && self.table.is_own(packet.destination()) && self.may_ask_with(packet.source())
    }

    /// Whether a question about an address can be ours to answer.
    fn concerns(&self, address: IpAddr) -> bool {
        self.role == Role::Guest
            || is_link_local(address)
            || self.table.is_own(address)
            || self.table.guest(address).is_some()
    }

    /// Whether a packet may have its source where it comes from (RFC 3704: strict for guests).
    #[inline]
    fn check_source(&mut self, source: IpAddr, destination: IpAddr, mac: MacAddr) -> Result<(), DropReason> {
        if self.last_source == Some((source, mac)) {
            return Ok(());
        }
        if is_link_local(source) {
            // Not beyond its link; and not remembered, because that depends on the destination.
            let here = is_link_local(destination) || is_group(destination) || self.table.is_own(destination);
            return if here { Ok(()) } else { Err(DropReason::Rpf) };
        }
        match (self.role, self.table.find(source)) {
            (Role::Gateway, _) => {}
            (Role::Guest, Some(Target::Out(way))) if way.role == Role::Guest && way.port == self.ingress => {
                if let Some(neighbor) = way.hop.neighbor(source) {
                    let station = Station { mac, port: self.ingress };
                    self.cache.confirm(Link::Port(self.ingress), neighbor, station);
                }
            }
            (Role::Guest, _) | (_, Some(Target::Own | Target::Broadcast)) => return Err(DropReason::Rpf),
            // Neither the guests' subnet is out there, nor the host.
            (Role::Uplink, Some(Target::Out(way))) if way.role == Role::HostInterface => {
                return Err(DropReason::Rpf);
            }
            (Role::Uplink, Some(Target::Nobody)) => return Err(DropReason::Rpf),
            (_, Some(Target::Out(way))) if way.role == Role::Guest => return Err(DropReason::Rpf),
            _ if !is_host(source) => return Err(DropReason::Rpf),
            _ => {}
        }
        self.last_source = Some((source, mac));
        Ok(())
    }

    /// The way to an address and the next hop's MAC address; `None` if the slow path is to say.
    #[inline]
    fn look_up(
        &mut self,
        destination: IpAddr,
        route: Option<Option<Route>>,
    ) -> Result<Option<(Way, MacAddr)>, DropReason> {
        let target = match route {
            Some(route) => route.and_then(|route| self.table.target(route)),
            None => self.table.find(destination),
        };
        let way = match target {
            Some(Target::Out(way)) => way,
            Some(Target::Broadcast) => return Err(DropReason::NotRouted),
            Some(Target::Own | Target::Nobody) | None => return Ok(None),
        };
        if way.port == self.ingress {
            return Err(DropReason::SamePort);
        }
        let mac = match way.hop {
            Hop::Station(mac) => Some(mac),
            Hop::Direct => self.station(way.port, destination),
            Hop::Via(address) => self.station(way.port, address),
        };
        let Some(mac) = mac else { return Ok(None) };
        self.last_destination = Some((destination, *way, mac));
        Ok(Some((*way, mac)))
    }

    #[inline]
    fn station(&mut self, port: PortId, address: IpAddr) -> Option<MacAddr> {
        self.cache.get(Link::Port(port), address).map(|station| station.mac)
    }

    /// What a head does not decide.
    #[inline]
    fn to_gateway(&self) -> Decision {
        match self.table.gateway {
            Some(port) if port != self.ingress => Ok(Verdict::Unicast(port)),
            Some(_) => Err(DropReason::NoDestination),
            None => Err(DropReason::Unhandled),
        }
    }
}

/// Bytes of the longest IP packet that a frame is sent as.
#[inline]
fn largest(head: &Head, packet: &Packet) -> usize {
    match head.offload.gso {
        Some(gso) => {
            (usize::from(gso.header_len) + usize::from(gso.size.get())).saturating_sub(packet.network_at())
        }
        None => packet.len(),
    }
}

/// Router and neighbour discovery, and redirects (RFC 4861).
#[inline]
pub(super) fn is_discovery(packet: &Packet) -> bool {
    packet.protocol() == ip::PROTO_ICMPV6
        && matches!(packet.transport(), Transport::Icmp { kind: 133..=137, .. })
}

/// Whether an address has no meaning beyond its link.
#[inline]
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
