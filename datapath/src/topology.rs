//! The switch as workers see it: which ports there are, on which networks. Immutable; the control thread
//! builds a new one and swaps it in at every worker's next burst boundary.

use std::fmt;
use std::sync::Arc;

use switch_core::guard::SourceGuard;
use switch_core::ids::Id;
use switch_core::mode::Mode;
use switch_core::{NetworkId, PortId, Vid};

use crate::counters::PortCounters;
use crate::police::RateLimit;
use crate::port::TxPort;

/// A port and what holds for its frames.
#[derive(Clone)]
pub struct PortEntry {
    /// The port.
    pub id: PortId,
    /// The network that it is on.
    pub network: NetworkId,
    /// Its transmit side.
    pub tx: Arc<dyn TxPort>,
    /// Its counters.
    pub counters: Arc<PortCounters>,
    /// The VLAN that an access port is on; `None` is a trunk, which carries all of them tagged and the
    /// untagged VLAN untagged.
    pub pvid: Option<Vid>,
    /// Isolated ports do not reach each other.
    pub isolated: bool,
    /// Whether the network's floods go to it. A port that is on another link than the rest of its network gets
    /// only what its mode sends there.
    pub flooded: bool,
    /// Bytes of the longest IP packet that may leave by this port.
    pub mtu: u16,
    /// Sources that may be used on the port; `None` allows all.
    pub guard: Option<Arc<SourceGuard>>,
    /// How much the port may send; `None` is as much as it likes.
    pub rate: Option<Arc<RateLimit>>,
}

impl fmt::Debug for PortEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortEntry")
            .field("id", &self.id)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// A network.
#[derive(Clone)]
pub struct NetworkEntry {
    /// The network.
    pub id: NetworkId,
    /// Who decides.
    pub mode: Arc<dyn Mode>,
    /// The ports that its floods go to.
    pub members: Vec<PortId>,
}

impl fmt::Debug for NetworkEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkEntry")
            .field("id", &self.id)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Topology {
    ports: Vec<Option<PortEntry>>,
    networks: Vec<Option<NetworkEntry>>,
}

impl Topology {
    /// The switch with these networks and ports. A port's network must be among them; each network's members
    /// are found here.
    pub fn new(
        networks: impl IntoIterator<Item = (NetworkId, Arc<dyn Mode>)>,
        ports: impl IntoIterator<Item = PortEntry>,
    ) -> Self {
        let mut this = Self::default();
        for (id, mode) in networks {
            let slot = id.index();
            if this.networks.len() <= slot {
                this.networks.resize_with(slot + 1, || None);
            }
            this.networks[slot] = Some(NetworkEntry { id, mode, members: Vec::new() });
        }
        for port in ports {
            let slot = port.id.index();
            if this.ports.len() <= slot {
                this.ports.resize_with(slot + 1, || None);
            }
            if let Some(Some(network)) = this.networks.get_mut(port.network.index())
                && port.flooded
            {
                network.members.push(port.id);
            }
            this.ports[slot] = Some(port);
        }
        this
    }

    /// The port that `id` names, if it still does.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(id.index())?.as_ref().filter(|p| p.id == id)
    }

    /// The port in a slot.
    #[inline]
    pub fn port_at(&self, slot: usize) -> Option<&PortEntry> {
        self.ports.get(slot)?.as_ref()
    }

    /// Slots for ports: every [`PortId::index`] is below.
    #[inline]
    pub fn port_slots(&self) -> usize {
        self.ports.len()
    }

    /// The network that `id` names.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&NetworkEntry> {
        self.networks.get(id.index())?.as_ref().filter(|n| n.id == id)
    }

    /// The networks.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkEntry> {
        self.networks.iter().flatten()
    }

    /// The ports.
    pub fn ports(&self) -> impl Iterator<Item = &PortEntry> {
        self.ports.iter().flatten()
    }
}
