//! The routed network, as Xen's `vif-route` and libvirt's `route` make it: every guest port is a link of its own, and
//! the switch is the router between them, the host and the outside.
//!
//! A guest has addresses, each a /32 or /128 of its own, and it may have prefixes behind it, reached through its first
//! address of that family. Whatever gateway it was told, the router answers for it (proxy ARP and ND), so no guest
//! needs to know how the network is made. To the host and to the uplink's segment the router answers for the guests.
//!
//! What becomes of a frame, in this order (`forward` decides, `slow` answers):
//! 1. ARP, ND and a guest's DHCP: to the gateway's port;
//! 2. any other broadcast or multicast, a frame to another station than the router, what is no IP: `not_routed`;
//! 3. a malformed packet: `bad_ip`;
//! 4. a source that does not belong where the frame comes from: `rpf`. A guest may use its addresses, what is behind
//!    it, and its link-local address on its link; the host and the outside anything but a guest's or the router's own;
//! 5. for the router's own addresses: to the gateway's port;
//! 6. no route, hop limit used up, too large for the way out, next hop not known: to the gateway's port, where the
//!    slow path resolves, fragments or says what is wrong, by RFC 1812 and RFC 4443, and not too often;
//! 7. else: one hop less, the MAC addresses of the next link, out.
//!
//! # Threads
//! All that decides is in a `Table`, that never changes; the control plane builds another one and publishes
//! it, and every worker has it at its next burst. A worker reads one number for each burst to know, and waits for
//! nobody. The slow path belongs to the thread of the gateway's services.

mod forward;
mod slow;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use switch_core::ids::{MacAddr, PortId};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::time::Instant;

use crate::gateway::SlowPath;
use crate::router::{Limits, Link, Neighbors, Station};
use forward::RoutedForwarder;
use slow::RoutedSlowPath;
use table::Table;

/// Announcements that wait for the slow path, at most.
const ANNOUNCEMENTS_MAX: usize = 65_536;

/// What an operator said of a routed network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The router's MAC address, on every link.
    pub mac: MacAddr,
    /// The router's own addresses towards the guests: the gateway's, and others. May be empty. The first of each
    /// family is the source of ICMP errors.
    pub addresses: Vec<IpAddr>,
    /// The guests' subnets. An address in one that no guest has is on the uplink's segment, if there is an uplink
    /// without an address of that family; else it is nowhere.
    pub subnets: Vec<IpNetwork>,
    /// The router's addresses on the uplink's segment, with the segment's prefixes.
    pub uplink_addresses: Vec<IpNetwork>,
    /// The routers on the uplink's segment that know the rest of the world, one of each family.
    pub next_hops: Vec<IpAddr>,
    /// How many neighbours are remembered.
    pub neighbors: Limits,
}

/// What was told of the network, from which the table is made.
#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<PortId, PortFacts>,
    /// Addresses that guests were given at runtime.
    leases: BTreeMap<IpAddr, (PortId, MacAddr)>,
}

/// The shared state of a routed network. See the module's text.
#[derive(Debug)]
pub struct Routed {
    settings: Settings,
    state: Mutex<State>,
    table: Mutex<Arc<Table>>,
    /// Raised when there is another table.
    epoch: AtomicU64,
    neighbors: Arc<Neighbors>,
    /// Guests' addresses that the uplink's segment is to hear of.
    announcements: Mutex<VecDeque<IpAddr>>,
}

/// Makes a routed network: its forwarding, and the slow path that belongs with the gateway's services.
pub fn new(settings: Settings) -> (Arc<Routed>, Box<dyn SlowPath>) {
    let neighbors = Arc::new(Neighbors::new(settings.neighbors));
    let table = Arc::new(Table::build(&settings, &State::default()));
    let routed = Arc::new(Routed {
        settings,
        state: Mutex::default(),
        table: Mutex::new(table),
        epoch: AtomicU64::new(0),
        neighbors,
        announcements: Mutex::default(),
    });
    let slow = RoutedSlowPath::new(Arc::clone(&routed));
    (routed, Box::new(slow))
}

/// A leased address was not taken: a configured port or the router has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is another's on this network")]
pub struct AddressTaken(pub IpAddr);

impl Routed {
    /// A guest was given an address (a DHCP lease): it is routed to that port and station from the next burst on. A
    /// lease of another port that had the address ends.
    ///
    /// # Errors
    /// The address is the router's own, or was said to be another port's.
    pub fn assign(&self, port: PortId, address: IpAddr, mac: MacAddr) -> Result<(), AddressTaken> {
        let mut state = self.state();
        let others = |(id, facts): (&PortId, &PortFacts)| *id != port && facts.addresses.contains(&address);
        let own = self.settings.own().any(|own| own == address);
        let guest = state.ports.get(&port).is_some_and(|facts| facts.role == Role::Guest);
        if own || !guest || state.ports.iter().any(others) {
            return Err(AddressTaken(address));
        }
        let before = state.leases.insert(address, (port, mac));
        if before == Some((port, mac)) {
            return Ok(());
        }
        if let Some((before, _)) = before.filter(|(before, _)| *before != port) {
            self.neighbors.forget(Link::Port(before), address);
        }
        self.neighbors.configure(Link::Port(port), address, Station { mac, port });
        self.publish(&state);
        self.announce([address]);
        Ok(())
    }

    /// A leased address is not the guest's any more. False if it was not leased.
    pub fn withdraw(&self, address: IpAddr) -> bool {
        let mut state = self.state();
        let Some((port, _)) = state.leases.remove(&address) else { return false };
        self.neighbors.forget(Link::Port(port), address);
        self.publish(&state);
        true
    }

    /// Builds the table anew and makes it everybody's. The state is held, so tables are published in order.
    fn publish(&self, state: &State) {
        let table = Arc::new(Table::build(&self.settings, state));
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The table as it is now.
    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the slow path tell the uplink's segment where addresses are.
    fn announce(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut queue = self.announcements();
        for address in addresses {
            if queue.len() < ANNOUNCEMENTS_MAX {
                queue.push_back(address);
            }
        }
    }

    fn announcements(&self) -> MutexGuard<'_, VecDeque<IpAddr>> {
        self.announcements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    /// All addresses of the router.
    fn own(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied().chain(self.uplink_addresses.iter().map(IpNetwork::ip))
    }

    /// The first address of a family.
    fn first(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
        addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4())
    }
}

impl Mode for Routed {
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder> {
        Box::new(RoutedForwarder::new(self))
    }

    /// Neighbours age in the slow path.
    fn poll_at(&self) -> Option<Instant> {
        None
    }

    fn tick(&self, _now: Instant) {}

    fn port_changed(&self, port: PortId, facts: &PortFacts) {
        let mut state = self.state();
        let before = state.ports.insert(port, facts.clone());
        if before.as_ref() == Some(facts) {
            return;
        }
        if facts.role != Role::Guest {
            state.leases.retain(|_, (of, _)| *of != port);
        }
        // An operator's word ends a lease of another port.
        let taken: Vec<IpAddr> = facts
            .addresses
            .iter()
            .copied()
            .filter(|a| state.leases.get(a).is_some_and(|(of, _)| *of != port))
            .collect();
        for address in taken {
            if let Some((of, _)) = state.leases.remove(&address) {
                self.neighbors.forget(Link::Port(of), address);
            }
        }
        // A neighbour may be elsewhere now, or have another MAC address; leases are known better.
        if before.is_some_and(|before| {
            before.role != facts.role || before.mac != facts.mac || before.addresses != facts.addresses
        }) {
            self.neighbors.forget_port(port);
            for (&address, &(of, mac)) in state.leases.iter().filter(|(_, (of, _))| *of == port) {
                self.neighbors.configure(Link::Port(of), address, Station { mac, port: of });
            }
        }
        self.publish(&state);
        match facts.role {
            Role::Guest => self.announce(facts.addresses.iter().copied()),
            Role::Uplink => {
                let guests = state.ports.values().filter(|facts| facts.role == Role::Guest);
                let configured = guests.flat_map(|facts| facts.addresses.iter().copied());
                let all: BTreeSet<IpAddr> = configured.chain(state.leases.keys().copied()).collect();
                self.announce(all);
            }
            Role::Gateway | Role::HostInterface => {}
        }
    }

    fn port_removed(&self, port: PortId) {
        let mut state = self.state();
        state.ports.remove(&port);
        state.leases.retain(|_, (of, _)| *of != port);
        self.neighbors.forget_port(port);
        self.publish(&state);
    }
}
