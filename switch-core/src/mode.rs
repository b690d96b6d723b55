//! The contract between the datapath and a network's forwarding mode.
//!
//! A mode has two faces. [`Mode`] is the network's shared state: tables, timers, what an operator asks. A
//! [`Forwarder`] is one worker's view of it, with that worker's caches: it is called once per burst and is the
//! only dynamic call that a mode costs. Modes know ports by [`PortId`] and never what kind a port is.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::fdb::FdbAccess;
use crate::head::Head;
use crate::ids::{MacAddr, PortId};
use crate::napt::NatAccess;
use crate::time::Instant;
use crate::verdict::Verdicts;

/// What a port is to its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A guest's.
    #[default]
    Guest,
    /// The endpoint of the switch itself on the network: what a mode leaves to its slow path goes there.
    Gateway,
    /// The host's IP stack.
    HostInterface,
    /// The outside.
    Uplink,
}

/// What an operator said of a port, as far as forwarding can depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortFacts {
    /// What the port is to its network.
    pub role: Role,
    /// The only station behind it, if it was said.
    pub mac: Option<MacAddr>,
    /// The addresses of the guest.
    pub addresses: Vec<IpAddr>,
    /// Further prefixes that are reached through the guest.
    pub routes: Vec<IpNetwork>,
    /// Bytes of the longest IP packet that may leave by the port.
    pub mtu: u16,
}

/// A network's forwarding, shared by all workers.
pub trait Mode: Send + Sync {
    /// The view of one more worker.
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder>;

    /// When [`Mode::tick`] next has something to do. Called by the control thread.
    fn poll_at(&self) -> Option<Instant>;

    /// Does what is due: ageing, timers. Called by the control thread.
    fn tick(&self, now: Instant);

    /// A port joined the network, or what was said of it changed. Called by the control thread before the
    /// workers see the port or the change.
    fn port_changed(&self, _port: PortId, _facts: &PortFacts) {}

    /// A port left the network: forget what points to it.
    fn port_removed(&self, port: PortId);

    /// The forwarding database, of modes that have one.
    fn fdb(&self) -> Option<&dyn FdbAccess> {
        None
    }

    /// The translations, of modes that have them.
    fn nat(&self) -> Option<&dyn NatAccess> {
        None
    }
}

/// One worker's view of a network's forwarding.
pub trait Forwarder: Send {
    /// Decides the frames of a burst, all received from `ingress`, and may rewrite their heads. The frames
    /// were checked; `heads[i]` gets the verdict `out[i]`.
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts);
}
