//! What a move consists of: steps, each with what undoes it. Pure: from two interfaces as they are to a list.
//!
//! The order is made before broken: the host interface has everything before the NIC loses anything, so that at no
//! moment there is no way out, and how long a step takes does not matter.
//!
//! 1. The host interface gets the NIC's MAC address (peers' neighbour tables, DHCP leases and filters of a cloud
//!    stay right), is set up, and gets the addresses; then the same MAC address once more, which makes the kernel
//!    announce them (`arp_notify`, `ndisc_notify`).
//! 2. It gets the neighbours that the NIC knows, and the routes: those on the link first, as the others need them.
//! 3. The NIC loses its routes, its neighbours and its addresses, in the opposite order.
//! 4. The NIC loses ARP, and its IP stack is silenced.
//!
//! Why silenced, and how: a packet socket gets a copy of each frame that arrives; the host's IP stack gets it, too,
//! and an address is the host's by whichever interface it comes in. Each datagram would be received twice. Xen gave
//! the NIC another MAC address (FE:FF:FF:FF:FF:FF), so that the stack takes its frames for somebody else's. That
//! needs a driver that changes it while the link is up (many real ones do not; setting one down loses seconds and
//! the routes), and a crash would leave a NIC that filters out its host's own frames. So the NIC keeps its MAC
//! address, and the stack is closed behind it: reverse path filtering (`rp_filter`) drops all of IPv4 on an interface
//! without addresses whose routes lead elsewhere, `disable_ipv6` all of IPv6, and without ARP it answers no requests.
//! It works the same on a veth and on hardware, promiscuous or not.
//!
//! Undoing is each begun step's opposite, last first. Every opposite does nothing where its step was not done.

use serde::{Deserialize, Serialize};

use crate::host::netlink::address::Address;
use crate::host::netlink::neighbour::{Knowledge, Neighbour};
use crate::host::netlink::route::{BY_KERNEL, MAIN, Route};

/// Neighbours that are not permanent, and are taken along, at most: the others are asked for again.
const NEIGHBOURS_MAX: usize = 512;

/// An interface's name, and how to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Identity {
    pub(in crate::host) name: String,
    pub(in crate::host) index: u32,
    pub(in crate::host) mac: [u8; 6],
}

/// Which of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) enum End {
    Nic,
    HostIf,
}

/// What an interface has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) enum Item {
    Address(Address),
    Route(Route),
    Neighbours(Vec<Neighbour>),
}

/// A switch of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) enum Flag {
    Up,
    Arp,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) enum Step {
    Sysctl {
        path: String,
        from: String,
        to: String,
    },
    /// Of the host interface.
    Mac {
        from: [u8; 6],
        to: [u8; 6],
    },
    Flag {
        on: End,
        flag: Flag,
        to: bool,
    },
    Put {
        on: End,
        item: Item,
    },
    Take {
        from: End,
        item: Item,
    },
}

impl Step {
    /// What undoes it.
    pub(in crate::host) fn opposite(&self) -> Step {
        match self.clone() {
            Step::Sysctl { path, from, to } => Step::Sysctl { path, from: to, to: from },
            Step::Mac { from, to } => Step::Mac { from: to, to: from },
            Step::Flag { on, flag, to } => Step::Flag { on, flag, to: !to },
            Step::Put { on, item } => Step::Take { from: on, item },
            Step::Take { from, item } => Step::Put { on: from, item },
        }
    }
}

/// A whole move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Plan {
    pub(in crate::host) nic: Identity,
    pub(in crate::host) host_if: Identity,
    /// When it was made, in seconds since the host's boot: lifetimes count from here.
    pub(in crate::host) made_s: u64,
    pub(in crate::host) steps: Vec<Step>,
}

/// One of the two interfaces, as it is before the move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct Side {
    pub(in crate::host) identity: Identity,
    pub(in crate::host) up: bool,
    pub(in crate::host) arp: bool,
    pub(in crate::host) addresses: Vec<Address>,
    pub(in crate::host) routes: Vec<Route>,
    pub(in crate::host) neighbours: Vec<Neighbour>,
    /// Sysctls of it that exist, by the last two parts of their path (`ipv4/rp_filter`).
    pub(in crate::host) sysctls: Vec<(&'static str, String)>,
}

/// The sysctls of an interface that matter here.
pub(in crate::host) const SYSCTLS: [&str; 5] =
    ["ipv4/rp_filter", "ipv4/arp_notify", "ipv6/disable_ipv6", "ipv6/accept_ra", "ipv6/ndisc_notify"];

/// The path of an interface's sysctl.
pub(in crate::host) fn sysctl_path(interface: &str, name: &str) -> String {
    match name.split_once('/') {
        Some((family, rest)) => format!("{family}/conf/{interface}/{rest}"),
        None => name.to_owned(),
    }
}

impl Side {
    fn sysctl(&self, name: &str) -> Option<&str> {
        self.sysctls.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    }

    /// A step that gives a sysctl of this side a value, where it exists and has another one.
    fn set(&self, name: &str, value: &str) -> Option<Step> {
        let from = self.sysctl(name)?;
        (from != value).then(|| Step::Sysctl {
            path: sysctl_path(&self.identity.name, name),
            from: from.to_owned(),
            to: value.to_owned(),
        })
    }

    /// The routes that somebody made: not those that the kernel makes for an address, and will make again.
    pub(in crate::host) fn made_routes(&self) -> Vec<Route> {
        let by_kernel = |route: &Route| {
            route.protocol == BY_KERNEL
                && route.table == MAIN
                && route.gateway.is_none()
                && self.addresses.iter().any(|address| {
                    address.makes_prefix_route() && address.network() == Some(route.destination)
                })
        };
        self.routes.iter().filter(|route| !by_kernel(route)).cloned().collect()
    }

    /// The neighbours that are worth taking along.
    fn known_neighbours(&self) -> Vec<Neighbour> {
        let (permanent, others): (Vec<_>, Vec<_>) = self
            .neighbours
            .iter()
            .filter(|n| n.mac.is_some() && n.knowledge != Knowledge::Failed)
            .cloned()
            .partition(|n| n.knowledge == Knowledge::Permanent);
        permanent.into_iter().chain(others.into_iter().take(NEIGHBOURS_MAX)).collect()
    }
}

/// An address as it is to be on another interface: a label that begins with the old one's name begins with the new
/// one's, or is left off where that is too long.
fn relabelled(address: &Address, from: &str, to: &str) -> Address {
    let mut address = address.clone();
    if let Some(label) = &address.label
        && let Some(rest) = label.strip_prefix(from)
    {
        let label = format!("{to}{rest}");
        address.label = (label.len() <= 15).then_some(label);
    }
    address
}

/// In the order in which the kernel has to be given them to list them as it does now: IPv4 as listed, a primary address
/// before its secondary ones; IPv6 the other way around, because a new one comes before those that are there. Which
/// address is an interface's first decides what the host's own packets come from.
fn in_adding_order(addresses: &[Address]) -> Vec<Address> {
    let ipv4 = addresses.iter().filter(|address| address.address.is_ipv4());
    let ipv6 = addresses.iter().rev().filter(|address| address.address.is_ipv6());
    ipv4.chain(ipv6).cloned().collect()
}

/// On the link first: the others' gateways are found by them.
fn in_order(mut routes: Vec<Route>) -> Vec<Route> {
    routes.sort_by_key(|route| route.gateway.is_some() && !route.onlink);
    routes
}

/// The move of all that `nic` has to `host_if`.
pub(in crate::host) fn plan(nic: &Side, host_if: &Side, made_s: u64) -> Plan {
    let mut steps = Vec::new();
    let has6 = nic.addresses.iter().any(|address| address.address.is_ipv6());
    if has6 {
        steps.extend(host_if.set("ipv6/disable_ipv6", "0"));
    }
    // Whether advertisements are heeded, and where packets may come from, is the operator's choice for this network.
    for name in ["ipv6/accept_ra", "ipv4/rp_filter"] {
        steps.extend(nic.sysctl(name).and_then(|value| host_if.set(name, value)));
    }
    for name in ["ipv4/arp_notify", "ipv6/ndisc_notify"] {
        steps.extend(host_if.set(name, "1"));
    }
    let mac = nic.identity.mac;
    if host_if.identity.mac != mac {
        steps.push(Step::Mac { from: host_if.identity.mac, to: mac });
    }
    if !host_if.up {
        steps.push(Step::Flag { on: End::HostIf, flag: Flag::Up, to: true });
    }

    let addresses = in_adding_order(&nic.addresses);
    let moved: Vec<(Address, bool)> = addresses
        .iter()
        .map(|address| {
            let there = host_if.addresses.iter().any(|other| other.same(address));
            (relabelled(address, &nic.identity.name, &host_if.identity.name), there)
        })
        .collect();
    let new = moved.into_iter().filter(|(_, there)| !there);
    steps.extend(new.map(|(address, _)| Step::Put { on: End::HostIf, item: Item::Address(address) }));
    if !nic.addresses.is_empty() {
        steps.push(Step::Mac { from: mac, to: mac });
    }
    let neighbours = nic.known_neighbours();
    if !neighbours.is_empty() {
        let known = |n: &Neighbour| host_if.neighbours.iter().any(|other| other.address == n.address);
        let new = neighbours.iter().filter(|n| !known(n)).cloned().collect();
        steps.push(Step::Put { on: End::HostIf, item: Item::Neighbours(new) });
    }
    let routes = in_order(nic.made_routes());
    for route in &routes {
        if !host_if.routes.iter().any(|other| other.same(route)) {
            steps.push(Step::Put { on: End::HostIf, item: Item::Route(route.clone()) });
        }
    }

    for route in routes.into_iter().rev() {
        steps.push(Step::Take { from: End::Nic, item: Item::Route(route) });
    }
    if !neighbours.is_empty() {
        steps.push(Step::Take { from: End::Nic, item: Item::Neighbours(neighbours) });
    }
    // Secondary addresses before the primary one, which would take them along.
    for address in addresses.into_iter().rev() {
        steps.push(Step::Take { from: End::Nic, item: Item::Address(address) });
    }
    // After the addresses, so that it is on again before they are there again: turning it on makes the kernel look
    // for duplicates of the addresses that it finds.
    if nic.arp {
        steps.push(Step::Flag { on: End::Nic, flag: Flag::Arp, to: false });
    }
    steps.extend(nic.set("ipv4/rp_filter", "1"));
    steps.extend(nic.set("ipv6/disable_ipv6", "1"));
    Plan { nic: nic.identity.clone(), host_if: host_if.identity.clone(), made_s, steps }
}

impl Plan {
    /// The default routes that move.
    pub(in crate::host) fn default_routes(&self) -> Vec<&Route> {
        let taken = self.steps.iter().filter_map(|step| match step {
            Step::Take { from: End::Nic, item: Item::Route(route) } if route.is_default() => Some(route),
            _ => None,
        });
        taken.collect()
    }

    /// The addresses that move and end one day, unless somebody renews them.
    pub(in crate::host) fn leased(&self) -> Vec<&Address> {
        let taken = self.steps.iter().filter_map(|step| match step {
            Step::Take { from: End::Nic, item: Item::Address(address) } => Some(address),
            _ => None,
        });
        taken.filter(|address| address.lifetime.is_some()).collect()
    }
}
