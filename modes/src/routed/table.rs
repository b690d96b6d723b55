//! What decides where a packet goes: all routes of a routed network, and what its ports are. Never changes; built anew
//! by whoever changes the network, and read by all.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnetwork::IpNetwork;
use switch_core::ids::{Id, MacAddr, PortId};
use switch_core::lpm::Lpm;
use switch_core::mode::{PortFacts, Role};

use super::{Settings, State};

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To the router itself.
    Own,
    /// Nowhere: the address is in a subnet of which nobody has it.
    Nobody,
    /// To all hosts of a subnet, which a router does not forward (RFC 2644).
    Broadcast,
    /// Out of a port.
    Out(Way),
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) port: PortId,
    pub(super) role: Role,
    pub(super) hop: Hop,
    /// Bytes of the longest packet.
    pub(super) mtu: u16,
}

/// The next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// The station with this MAC address.
    Station(MacAddr),
    /// The packet's destination, a neighbour.
    Direct,
    /// Another neighbour.
    Via(IpAddr),
}

impl Hop {
    /// The neighbour that a packet to `destination` is handed to, where its MAC address is not known yet.
    #[inline]
    pub(super) fn neighbor(self, destination: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Station(_) => None,
            Self::Direct => Some(destination),
            Self::Via(address) => Some(address),
        }
    }
}

/// A route's number in its table.
pub(super) type Route = NonZeroU32;

/// The routes and the ports.
#[derive(Debug)]
pub(super) struct Table {
    routes: Lpm<Route>,
    /// By the route's number, less one.
    targets: Vec<Target>,
    /// By the port's index.
    ports: Vec<Option<(PortId, Role)>>,
    pub(super) gateway: Option<PortId>,
    pub(super) uplink: Option<PortId>,
}

/// Collects routes. Later ones take the place of earlier ones.
#[derive(Default)]
struct Builder {
    prefixes: Vec<(IpNetwork, Route)>,
    targets: Vec<Target>,
}

impl Builder {
    fn target(&mut self, target: Target) -> Option<Route> {
        if self.targets.last() != Some(&target) {
            self.targets.push(target);
        }
        u32::try_from(self.targets.len()).ok().and_then(NonZeroU32::new)
    }

    fn route(&mut self, prefix: IpNetwork, target: Target) {
        if let Some(number) = self.target(target) {
            self.prefixes.push((prefix, number));
        }
    }
}

fn way(port: PortId, facts: &PortFacts, hop: Hop) -> Target {
    // Zero is nobody's MTU: it was not said.
    let mtu = if facts.mtu == 0 { u16::MAX } else { facts.mtu };
    Target::Out(Way { port, role: facts.role, hop, mtu })
}

/// 0.0.0.0/0 or ::/0.
fn everything(like: IpAddr) -> Option<IpNetwork> {
    let any: IpAddr = if like.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    IpNetwork::new(any, 0).ok()
}

impl Table {
    pub(super) fn build(settings: &Settings, state: &State) -> Self {
        let of_role = |role: Role| state.ports.iter().find(move |(_, facts)| facts.role == role);
        let (gateway, uplink, host) =
            (of_role(Role::Gateway), of_role(Role::Uplink), of_role(Role::HostInterface));
        let mut b = Builder::default();
        outside(&mut b, settings, uplink, host);
        for (&address, &(port, mac)) in &state.leases {
            if let Some(facts) = state.ports.get(&port) {
                b.route(address.into(), way(port, facts, Hop::Station(mac)));
            }
        }
        // Of two ports that were given the same, the one that is listed first has it.
        for (&port, facts) in state.ports.iter().rev() {
            if matches!(facts.role, Role::Guest | Role::HostInterface) {
                behind(&mut b, port, facts);
            }
        }
        for own in settings.own() {
            b.route(own.into(), Target::Own);
        }
        let mut ports = vec![None; state.ports.keys().map(|port| port.index() + 1).max().unwrap_or(0)];
        for (&port, facts) in &state.ports {
            if let Some(slot) = ports.get_mut(port.index()) {
                *slot = Some((port, facts.role));
            }
        }
        Self {
            routes: Lpm::build(b.prefixes),
            targets: b.targets,
            ports,
            gateway: gateway.map(|(port, _)| *port),
            uplink: uplink.map(|(port, _)| *port),
        }
    }

    /// What a port is; `None` if it is not the network's.
    #[inline]
    pub(super) fn role(&self, port: PortId) -> Option<Role> {
        match self.ports.get(port.index()) {
            Some(Some((id, role))) if *id == port => Some(*role),
            _ => None,
        }
    }

    /// Where a packet to an address goes; `None` if there is no route.
    #[inline]
    pub(super) fn find(&self, address: IpAddr) -> Option<&Target> {
        self.target(self.routes.get(address)?)
    }

    /// Finds the routes of many addresses at once.
    #[inline]
    pub(super) fn find_all(&self, addresses: &[IpAddr], out: &mut Vec<Option<Route>>) {
        self.routes.get_all(addresses, out);
    }

    /// Where a route leads.
    #[inline]
    pub(super) fn target(&self, route: Route) -> Option<&Target> {
        self.targets.get(route.get() as usize - 1)
    }

    /// How many routes there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether an address is a guest's, or behind one: which port's.
    pub(super) fn guest(&self, address: IpAddr) -> Option<PortId> {
        match self.find(address) {
            Some(Target::Out(way)) if way.role == Role::Guest => Some(way.port),
            _ => None,
        }
    }

    /// Whether an address is the router's own.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.find(address) == Some(&Target::Own)
    }
}

/// The routes to what is neither a guest's nor the host's.
fn outside(
    b: &mut Builder,
    settings: &Settings,
    uplink: Option<(&PortId, &PortFacts)>,
    host: Option<(&PortId, &PortFacts)>,
) {
    let any: [IpAddr; 2] = [std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()];
    for like in any {
        let Some(all) = everything(like) else { continue };
        match (uplink, host) {
            (Some((&port, facts)), _) => {
                if let Some(next_hop) = Settings::first(&settings.next_hops, like) {
                    b.route(all, way(port, facts, Hop::Via(next_hop)));
                    // It is a neighbour, whatever the prefix of the segment says.
                    b.route(next_hop.into(), way(port, facts, Hop::Direct));
                }
            }
            (None, Some((&port, facts))) => {
                if let Some(mac) = facts.mac {
                    b.route(all, way(port, facts, Hop::Station(mac)));
                }
            }
            (None, None) => {}
        }
        let of_family = |network: &&IpNetwork| network.is_ipv4() == like.is_ipv4();
        let addressed = settings.uplink_addresses.iter().any(|network| of_family(&network));
        for &subnet in settings.subnets.iter().filter(of_family) {
            match uplink {
                Some((&port, facts)) if !addressed => b.route(subnet, way(port, facts, Hop::Direct)),
                _ => b.route(subnet, Target::Nobody),
            }
            broadcast(b, subnet);
        }
        if let Some((&port, facts)) = uplink {
            for &segment in settings.uplink_addresses.iter().filter(of_family) {
                b.route(segment, way(port, facts, Hop::Direct));
                broadcast(b, segment);
            }
        }
    }
}

/// The broadcast address of an IPv4 subnet. Those of two addresses or one have none (RFC 3021).
fn broadcast(b: &mut Builder, subnet: IpNetwork) {
    if let IpNetwork::V4(subnet) = subnet
        && subnet.prefix() < 31
    {
        b.route(IpAddr::V4(subnet.broadcast()).into(), Target::Broadcast);
    }
}

/// The routes to a guest or the host: its addresses, and what is behind them.
fn behind(b: &mut Builder, port: PortId, facts: &PortFacts) {
    for &prefix in &facts.routes {
        let hop = match (facts.mac, Settings::first(&facts.addresses, prefix.ip())) {
            (Some(mac), _) => Hop::Station(mac),
            (None, Some(address)) => Hop::Via(address),
            (None, None) => continue,
        };
        b.route(prefix, way(port, facts, hop));
    }
    let hop = facts.mac.map_or(Hop::Direct, Hop::Station);
    for &address in &facts.addresses {
        b.route(address.into(), way(port, facts, hop));
    }
}
