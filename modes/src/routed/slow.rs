//! The slow path of a routed network: proxy ARP and ND, resolution, fragments, ICMP errors. Asked before the gateway's
//! own services, on their thread. It trusts that what it gets passed the forwarder: sources are where they belong.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::error::is_host;
use switch_core::ip::nd::{self, Message, Neighbor};
use switch_core::ip::{Cause, Packet, fragments, set_macs};
use switch_core::mode::Role;
use switch_core::time::Instant;

use super::forward::{is_discovery, is_link_local};
use super::table::{Hop, Table, Target, Way};
use super::{Routed, Settings};
use crate::gateway::{Handled, Outbox, SlowPath};
use crate::router::{Ask, Errors, Heard, Link, Resolver, Waiting, link_local};

/// Announcements that one [`SlowPath::poll`] sends.
const ANNOUNCEMENTS_PER_POLL: usize = 256;

/// See the module's text.
#[derive(Debug)]
pub(super) struct RoutedSlowPath {
    routed: Arc<Routed>,
    resolver: Resolver,
    errors: Errors,
    /// When time was told last: what waits to be announced is due then.
    now: Instant,
}

impl RoutedSlowPath {
    pub(super) fn new(routed: Arc<Routed>) -> Self {
        let resolver = Resolver::new(Arc::clone(&routed.neighbors));
        let own: Vec<IpAddr> = routed.settings.own().collect();
        let errors = Errors::new(routed.settings.mac, &own);
        Self { routed, resolver, errors, now: Instant::ORIGIN }
    }

    fn mac(&self) -> MacAddr {
        self.routed.settings.mac
    }

    /// Learns from ARP and ND, and answers for whom the router stands.
    fn neighbor(
        &mut self,
        now: Instant,
        table: &Table,
        from: (PortId, Role),
        heard: &Heard,
        out: &mut Outbox,
    ) {
        let (port, role) = from;
        // Neighbours are those that are asked for: next hops on their own link.
        let lives = |address: IpAddr| match table.find(address) {
            _ if is_link_local(address) => address.is_ipv6(),
            Some(Target::Out(way)) => way.port == port && way.hop == Hop::Direct,
            _ => false,
        };
        let belongs = |address: IpAddr| is_link_local(address) || table.guest(address) == Some(port);
        let (asks, blind, sender) = match heard {
            Heard::Arp(arp) => {
                let asks = arp.operation == Operation::Request && !arp.is_announcement();
                (asks, arp.is_probe(), IpAddr::V4(arp.sender))
            }
            Heard::Nd(n) => (n.message == Message::Solicitation, n.is_duplicate_detection(), n.source.into()),
        };
        self.resolver.observe(now, Link::Port(port), port, heard, lives, out);
        // A guest asks with an address of its own, or with none yet; what another asks with is its affair.
        if !asks || (role == Role::Guest && !blind && !belongs(sender)) {
            return;
        }
        let target = heard.target();
        let own = table.is_own(target) || target == IpAddr::V6(link_local(self.mac()));
        if !(own || self.stands_for(table, port, role, target, blind)) {
            return;
        }
        match heard {
            Heard::Arp(arp) => out.send_to(port, arp.reply(self.mac()).to_frame(arp.sender_mac)),
            Heard::Nd(solicitation) => {
                let source = if own { solicitation.target } else { link_local(self.mac()) };
                // Towards guests it is the only answer there is; elsewhere the node itself may be there too.
                let overrides = own || role == Role::Guest;
                let answer = Neighbor { source, ..solicitation.reply(self.mac(), overrides) };
                let to = self.answer_to(port, solicitation);
                out.send_to(port, answer.to_frame(to, self.mac()));
            }
        }
    }

    /// The MAC address that an advertisement goes to.
    fn answer_to(&self, port: PortId, solicitation: &Neighbor) -> MacAddr {
        let known = || self.routed.neighbors.peek(Link::Port(port), solicitation.source.into());
        if solicitation.source.is_unspecified() {
            nd::group_mac(nd::ALL_NODES)
        } else {
            let mac = solicitation.link.or_else(|| known().map(|station| station.mac));
            mac.unwrap_or_else(|| nd::group_mac(nd::ALL_NODES))
        }
    }

    /// Whether the router answers for an address that is not its own. `blind`: the asker wants to know whether the
    /// address is free.
    fn stands_for(&self, table: &Table, port: PortId, role: Role, target: IpAddr, blind: bool) -> bool {
        let guest = table.guest(target);
        match role {
            Role::Guest if blind => guest.is_some_and(|of| of != port),
            Role::Guest if is_link_local(target) => {
                self.routed.neighbors.peek(Link::Port(port), target).is_none()
            }
            Role::Guest => guest != Some(port) && is_host(target),
            Role::HostInterface | Role::Uplink => guest.is_some(),
            Role::Gateway => false,
        }
    }

    /// Routes a packet that the forwarder left.
    fn route(
        &mut self,
        now: Instant,
        table: &Table,
        from: PortId,
        frame: &[u8],
        packet: &Packet,
        out: &mut Outbox,
    ) {
        let destination = packet.destination();
        if packet.hop_limit() <= 1 {
            self.error(now, table, from, frame, Cause::TimeExceeded, out);
            return;
        }
        let way = match table.find(destination) {
            Some(Target::Out(way)) if way.port != from => *way,
            // It was routed otherwise when it was decided.
            Some(Target::Out(_) | Target::Own | Target::Broadcast) => return,
            Some(Target::Nobody) => {
                self.error(now, table, from, frame, Cause::HostUnreachable, out);
                return;
            }
            None => {
                self.error(now, table, from, frame, Cause::NetUnreachable, out);
                return;
            }
        };
        let Some(sender) = frame.get(6..).and_then(MacAddr::from_slice) else { return };
        let mut sent = frame.get(..packet.end()).unwrap_or(frame).to_vec();
        let mut changed = *packet;
        changed.decrement_hop_limit(&mut sent);
        set_macs(&mut sent, MacAddr::default(), self.mac());
        if packet.len() <= usize::from(way.mtu) {
            self.send(now, way, packet, Waiting { frame: sent, from, sender }, out);
            return;
        }
        match fragments(&sent, usize::from(way.mtu)) {
            Some(pieces) => {
                for frame in pieces {
                    self.send(now, way, packet, Waiting { frame, from, sender }, out);
                }
            }
            None => self.error(now, table, from, frame, Cause::TooBig { mtu: way.mtu }, out),
        }
    }

    /// Tells the sender of a frame what is wrong, from the router's address on its link.
    fn error(
        &mut self,
        now: Instant,
        table: &Table,
        from: PortId,
        frame: &[u8],
        cause: Cause,
        out: &mut Outbox,
    ) {
        let source = Packet::of_frame(frame).ok().map(|packet| packet.source());
        let role = table.role(from).unwrap_or_default();
        let address = source.and_then(|source| source_for(&self.routed.settings, role, source));
        self.errors.send_as(now, from, frame, cause, address, out);
    }

    /// Hands a frame that is ready but for its destination MAC address to its next hop.
    fn send(&mut self, now: Instant, way: Way, packet: &Packet, mut waiting: Waiting, out: &mut Outbox) {
        let address = match way.hop {
            Hop::Station(mac) => {
                set_macs(&mut waiting.frame, mac, self.mac());
                out.send_to(way.port, waiting.frame);
                return;
            }
            Hop::Direct => packet.destination(),
            Hop::Via(address) => address,
        };
        let own = source_for(&self.routed.settings, way.role, address);
        // Without an address of its own, the router asks as the one who sends: it answers for that one.
        let source = own.or(Some(packet.source()).filter(IpAddr::is_ipv4));
        let ask = Ask { link: Link::Port(way.port), address, ports: vec![way.port], mac: self.mac(), source };
        self.resolver.send(now, &ask, waiting, out);
    }
}

/// The router's address to ask for a neighbour with, if it has one.
fn source_for(settings: &Settings, role: Role, neighbor: IpAddr) -> Option<IpAddr> {
    let on_uplink = || {
        let same = |network: &&ipnetwork::IpNetwork| network.is_ipv4() == neighbor.is_ipv4();
        settings.uplink_addresses.iter().find(same).map(ipnetwork::IpNetwork::ip)
    };
    match role {
        Role::Uplink => on_uplink(),
        _ => Settings::first(&settings.addresses, neighbor),
    }
}

impl SlowPath for RoutedSlowPath {
    fn receive(&mut self, now: Instant, from: PortId, frame: &[u8], out: &mut Outbox) -> Handled {
        self.now = now;
        let table = self.routed.table();
        let Some(role) = table.role(from) else { return Handled::Yes };
        if let Some(heard) = Heard::of_frame(frame) {
            self.neighbor(now, &table, (from, role), &heard, out);
            return Handled::Yes;
        }
        let Ok(packet) = Packet::of_frame(frame) else { return Handled::No };
        let destination = packet.destination();
        let near = !is_host(destination) || is_link_local(destination) || table.is_own(destination);
        // Discovery was not checked for its source, and stays on its link.
        if near || is_discovery(&packet) {
            return Handled::No;
        }
        self.route(now, &table, from, frame, &packet, out);
        Handled::Yes
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        self.now = now;
        let table = self.routed.table();
        let mut failed = Vec::new();
        let routed = &self.routed;
        let asker = |link: Link, address: IpAddr| {
            let role = if let Link::Port(port) = link { table.role(port) } else { None };
            (routed.settings.mac, source_for(&routed.settings, role.unwrap_or_default(), address))
        };
        self.resolver.poll(now, &asker, out, &mut failed);
        for mut waiting in failed {
            set_macs(&mut waiting.frame, self.mac(), waiting.sender);
            self.error(now, &table, waiting.from, &waiting.frame, Cause::HostUnreachable, out);
        }
        let routed = &self.routed;
        let due: Vec<IpAddr> = {
            let mut queue = routed.announcements();
            let n = queue.len().min(ANNOUNCEMENTS_PER_POLL);
            queue.drain(..n).collect()
        };
        let Some(uplink) = table.uplink else { return };
        for address in due.into_iter().filter(|address| table.guest(*address).is_some()) {
            out.send_to(uplink, announcement(routed.settings.mac, address));
        }
    }

    fn port_removed(&mut self, port: PortId) {
        self.resolver.port_removed(port);
    }

    fn poll_at(&self) -> Option<Instant> {
        let announcements = !self.routed.announcements().is_empty();
        self.resolver.poll_at().into_iter().chain(announcements.then_some(self.now)).min()
    }
}

/// What tells a segment that the router has an address.
fn announcement(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => Arp::announcement(mac, address).to_frame(MacAddr::BROADCAST),
        IpAddr::V6(address) => {
            let source: Ipv6Addr = link_local(mac);
            let proxy = Neighbor { source, ..Neighbor::announcement(mac, address) };
            proxy.to_frame(nd::group_mac(nd::ALL_NODES), mac)
        }
    }
}
