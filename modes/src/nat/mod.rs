//! A private subnet behind address translation.
//!
//! The guests' segment is a learning bridge ([`crate::bridge`]): its forwarder decides each burst first. What it
//! sends to the router's MAC address, which is a static entry at the gateway's port, is then looked at again:
//!
//! - `egress=uplink:IF` (`forward`): what leaves the subnet is translated by [`switch_core::napt`] and goes out of
//!   the uplink; what comes from there is translated back and goes to its guest. Nothing is ever bridged between the
//!   two. What cannot be done from a head stays with the gateway's port, where the `slow` path has the whole frame:
//!   unknown neighbours, expired hop limits, packets too big, fragments, options, ICMP errors.
//! - `egress=host` (`host`): the router is the host's IP stack, behind the host interface. What the gateway serves
//!   (DHCP, DNS, router solicitations) stays with it.
//! - `egress=user` (`user`): the router is the host's sockets, behind a port of its own; likewise, but the gateway
//!   answers for its addresses itself. The two share their forwarder (`beyond`).
//!
//! # What the ports must be
//! The uplink, or the port of the sockets, is a port of the network for unicast, but no member of its floods: a bridge cannot say "all but one".
//!
//! # Threads
//! Workers share the bridge, the translators, the neighbours, and `Shared`, what is known of ports and of the
//! uplink: an immutable value behind an epoch, of which each keeps a copy.

mod beyond;
mod dhcp;
mod echo;
mod forward;
mod fragments;
mod host;
mod settings;
mod slow;
mod translate;
mod user;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use switch_core::fdb::FdbAccess;
use switch_core::ids::{Id, PortId};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::napt::{self, Forward, ForwardError, Napt, NatAccess, NatSession};
use switch_core::time::Instant;

use crate::bridge::{Bridge, BridgeForwarder};
use crate::gateway::SlowPath;
use crate::router::{Limits, Link, Neighbors, Station};

use beyond::BeyondForwarder;
use settings::Inside;
pub use settings::{Egress, Settings, Uplink, UplinkAddress};

/// The guests' segment.
const INSIDE: Link = Link::Shared(0);
/// The uplink's.
const OUTSIDE: Link = Link::Shared(1);

/// Sessions that are taken away in one tick, at most, of each version of IP.
const EXPIRE_MAX: usize = 65_536;
/// Between two looks at what has ended.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// What the uplink is, as it was configured or learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The IPv4 address and next hop, once there is one.
    pub v4: Option<UplinkAddress>,
    /// The IPv6 address and next hop.
    pub v6: Option<UplinkAddress>,
    /// The IPv4 ones are a DHCP server's.
    pub by_dhcp: bool,
}

/// What is known of the ports and of the uplink.
#[derive(Clone, Debug, Default)]
struct Known {
    gateway: Option<PortId>,
    uplink: Option<PortId>,
    host: Option<PortId>,
    /// All but the gateway and the uplink.
    segment: Vec<PortId>,
    /// By the port's index: what may leave by it.
    mtus: Vec<Option<(PortId, u16)>>,
    status: Status,
}

impl Known {
    /// Bytes of the longest packet that may leave by a port.
    fn mtu(&self, port: PortId) -> usize {
        let known = self.mtus.get(port.index()).copied().flatten().filter(|(owner, _)| *owner == port);
        known.map_or(usize::from(u16::MAX), |(_, mtu)| usize::from(mtu))
    }

    fn uplink_address(&self, v6: bool) -> Option<UplinkAddress> {
        if v6 { self.status.v6 } else { self.status.v4 }
    }

    /// Where a packet to an outside address goes next.
    fn next_hop(&self, destination: IpAddr) -> Option<IpAddr> {
        self.uplink_address(destination.is_ipv6())?.next_hop(destination)
    }

    fn forget(&mut self, port: PortId) {
        for role in [&mut self.gateway, &mut self.uplink, &mut self.host] {
            if *role == Some(port) {
                *role = None;
            }
        }
        self.segment.retain(|member| *member != port);
        if let Some(slot) = self.mtus.get_mut(port.index()) {
            *slot = None;
        }
    }
}

/// What workers and the slow path share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    inside: Inside,
    v4: Arc<Napt<Ipv4Addr>>,
    v6: Arc<Napt<Ipv6Addr>>,
    neighbors: Arc<Neighbors>,
    known: Mutex<Known>,
    epoch: AtomicU32,
    /// The latest time that anybody told, in nanoseconds: for calls that bring none.
    latest: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.lock());
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Sets what the uplink's addresses are, in the translators too.
    fn set_status(&self, now: Instant, status: Status) {
        let uplink = self.settings.uplink();
        let pool =
            |v6: bool| uplink.into_iter().flat_map(move |u| &u.addresses).filter(move |a| a.is_ipv6() == v6);
        let mut v4: Vec<Ipv4Addr> = pool(false).filter_map(|a| napt::Address::from_ip(a.ip())).collect();
        let v6: Vec<Ipv6Addr> = pool(true).filter_map(|a| napt::Address::from_ip(a.ip())).collect();
        if status.by_dhcp {
            v4 = status.v4.and_then(|path| napt::Address::from_ip(path.address)).into_iter().collect();
        }
        self.v4.set_externals(now, &v4);
        self.v6.set_externals(now, &v6);
        self.change(|known| known.status = status);
    }

    fn tell(&self, now: Instant) {
        self.latest.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    fn latest(&self) -> Instant {
        Instant::from_nanos(self.latest.load(Ordering::Relaxed))
    }
}

/// A worker's or the slow path's copy of what is known.
#[derive(Debug)]
struct Snapshot {
    known: Known,
    epoch: u32,
}

impl Snapshot {
    fn new(shared: &Shared) -> Self {
        let epoch = shared.epoch.load(Ordering::Acquire);
        Self { known: shared.lock().clone(), epoch }
    }

    /// Takes up what changed.
    #[inline]
    fn refresh(&mut self, shared: &Shared) {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            *self = Self { known: shared.lock().clone(), epoch };
        }
    }
}

/// A network behind address translation. See the module's text.
#[derive(Debug)]
pub struct Nat {
    bridge: Arc<Bridge>,
    shared: Arc<Shared>,
    /// Nanoseconds of the instant before which nothing is expired.
    no_expiry_before: AtomicU64,
}

/// Makes the mode, and its slow path if it needs one (with `egress=uplink`). The slow path is for the gateway's
/// station; it holds what the mode holds.
pub fn new(settings: Settings) -> (Arc<Nat>, Option<Box<dyn SlowPath>>) {
    let napt = |seed: u64| napt::Settings {
        seed: [settings.napt.seed[0] ^ seed, settings.napt.seed[1]],
        ..settings.napt
    };
    let (status, inside) = (settings.status(), Inside::new(&settings));
    let shared = Arc::new(Shared {
        v4: Arc::new(Napt::new(napt(0))),
        v6: Arc::new(Napt::new(napt(1))),
        neighbors: Arc::new(Neighbors::new(Limits::default())),
        known: Mutex::default(),
        epoch: AtomicU32::new(0),
        latest: AtomicU64::new(0),
        inside,
        settings,
    });
    shared.set_status(Instant::ORIGIN, status);
    let slow = shared.settings.uplink().is_some().then(|| {
        let slow: Box<dyn SlowPath> = Box::new(slow::Slow::new(Arc::clone(&shared)));
        slow
    });
    let bridge = Arc::new(Bridge::new(shared.settings.ageing, shared.settings.fdb_max));
    (Arc::new(Nat { bridge, shared, no_expiry_before: AtomicU64::new(0) }), slow)
}

impl Nat {
    /// What the uplink is now.
    pub fn status(&self) -> Status {
        self.shared.lock().status.clone()
    }

    /// Who is known to be where, inside and outside.
    pub fn neighbors(&self) -> &Arc<Neighbors> {
        &self.shared.neighbors
    }

    fn translates(&self) -> bool {
        self.shared.settings.uplink().is_some()
    }
}

impl Mode for Nat {
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder> {
        let bridge = BridgeForwarder::new(Arc::clone(&self.bridge));
        let shared = Arc::clone(&self.shared);
        match self.shared.settings.egress {
            Egress::Uplink(_) => Box::new(forward::NatForwarder::new(bridge, shared)),
            Egress::Host => Box::new(BeyondForwarder::<host::HostStack>::new(bridge, shared)),
            Egress::User => Box::new(BeyondForwarder::<user::Sockets>::new(bridge, shared)),
        }
    }

    fn poll_at(&self) -> Option<Instant> {
        let napt = (self.translates() && !(self.shared.v4.is_idle() && self.shared.v6.is_idle()))
            .then(|| Instant::from_nanos(self.no_expiry_before.load(Ordering::Relaxed)));
        self.bridge.poll_at().into_iter().chain(napt).min()
    }

    fn tick(&self, now: Instant) {
        self.shared.tell(now);
        self.bridge.tick(now);
        if self.translates() && now.as_nanos() >= self.no_expiry_before.load(Ordering::Relaxed) {
            let more = self.shared.v4.expire(now, EXPIRE_MAX) | self.shared.v6.expire(now, EXPIRE_MAX);
            let next = if more { now } else { now + EXPIRE_EVERY };
            self.no_expiry_before.store(next.as_nanos(), Ordering::Relaxed);
        }
    }

    fn port_changed(&self, port: PortId, facts: &PortFacts) {
        let router = self.shared.settings.mac;
        self.shared.change(|known| {
            known.forget(port);
            match facts.role {
                Role::Gateway => known.gateway = Some(port),
                Role::Uplink => known.uplink = Some(port),
                Role::HostInterface => known.host = Some(port),
                Role::Guest => {}
            }
            if !matches!(facts.role, Role::Gateway | Role::Uplink) {
                known.segment.push(port);
            }
            if known.mtus.len() <= port.index() {
                known.mtus.resize(port.index() + 1, None);
            }
            if let Some(slot) = known.mtus.get_mut(port.index()) {
                *slot = (facts.mtu > 0).then_some((port, facts.mtu));
            }
        });
        if facts.role == Role::Gateway {
            // Refused only by a table that is full of configured entries: then frames to the router are flooded, and
            // reach it by that.
            let _ = self.bridge.add_static(router, None, port);
        }
        self.shared.neighbors.forget_port(port);
        if let (Some(mac), Role::Guest) = (facts.mac, facts.role) {
            for &address in &facts.addresses {
                self.shared.neighbors.configure(INSIDE, address, Station { mac, port });
            }
        }
    }

    fn port_removed(&self, port: PortId) {
        self.shared.change(|known| known.forget(port));
        self.shared.neighbors.forget_port(port);
        self.bridge.port_removed(port);
    }

    fn fdb(&self) -> Option<&dyn FdbAccess> {
        self.bridge.fdb()
    }

    fn nat(&self) -> Option<&dyn NatAccess> {
        self.translates().then_some(self)
    }
}

impl NatAccess for Nat {
    fn sessions(&self, now: Instant, limit: usize) -> (Vec<NatSession>, usize) {
        let mut list = self.shared.v4.sessions(now, limit);
        list.extend(self.shared.v6.sessions(now, limit.saturating_sub(list.len())));
        (list, self.shared.v4.session_count() + self.shared.v6.session_count())
    }

    fn memory(&self) -> usize {
        self.shared.v4.memory() + self.shared.v6.memory()
    }

    fn add_forward(&self, forward: &Forward) -> Result<(), ForwardError> {
        if !self.shared.inside.is_guest(forward.target.ip()) {
            return Err(ForwardError::Impossible(
                "the target of a forward is a guest's address in the network's subnet",
            ));
        }
        let now = self.shared.latest();
        match forward.target.is_ipv6() {
            false => self.shared.v4.add_forward(now, forward),
            true => self.shared.v6.add_forward(now, forward),
        }
    }

    fn remove_forward(&self, forward: &Forward) -> bool {
        let now = self.shared.latest();
        match forward.target.is_ipv6() {
            false => self.shared.v4.remove_forward(now, forward),
            true => self.shared.v6.remove_forward(now, forward),
        }
    }
}
