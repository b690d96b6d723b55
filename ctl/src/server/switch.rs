//! What the ctl server needs of a switch.

use crate::model::{ForwardSpec, LeaseKey, LeaseSpec, NetworkChanges, NetworkSpec, PortChanges, PortSpec};
use crate::protocol::{
    FdbEntry, Forward, Lease, NatSessionList, Network, NetworkDetail, Port, PortCounters, PortDetail,
    Refusal, Status,
};
use switch_core::{MacAddr, Vid};

/// A switch, as the ctl server calls it: on the control thread, one call at a time, never again from within a call.
///
/// What arrives has been checked for everything that can be checked without knowing the switch. A change that returns
/// `Ok` holds for the next frame; one that returns a [`Refusal`] has changed nothing.
pub trait Switch {
    /// The daemon and its workers.
    fn status(&self) -> Status;

    /// Makes a network. When there is one of that name: with `may_exist` and an equal specification nothing happens, else
    /// it is refused.
    fn net_add(&self, spec: NetworkSpec, may_exist: bool) -> Result<(), Refusal>;

    /// Changes keys of a network, checked whole with [`NetworkChanges::apply`].
    fn net_set(&self, name: &str, changes: &NetworkChanges) -> Result<(), Refusal>;

    /// Deletes a network; refused while it has ports.
    fn net_del(&self, name: &str) -> Result<(), Refusal>;

    /// All networks, by name.
    fn net_list(&self) -> Vec<Network>;

    /// One network.
    fn net_show(&self, name: &str) -> Result<NetworkDetail, Refusal>;

    /// Makes a port. When there is one of that name: as for [`Self::net_add`].
    fn port_add(&self, spec: PortSpec, may_exist: bool) -> Result<(), Refusal>;

    /// Changes keys of a port, checked whole with [`PortChanges::apply`].
    fn port_set(&self, name: &str, changes: &PortChanges) -> Result<(), Refusal>;

    /// Deletes a port.
    fn port_del(&self, name: &str) -> Result<(), Refusal>;

    /// All ports, or those of a network, by name.
    fn port_list(&self, network: Option<&str>) -> Result<Vec<Port>, Refusal>;

    /// One port.
    fn port_show(&self, name: &str) -> Result<PortDetail, Refusal>;

    /// What one port has counted, or all of them, by name.
    fn port_stats(&self, name: Option<&str>) -> Result<Vec<PortCounters>, Refusal>;

    /// The addresses of a network.
    fn fdb_show(&self, network: &str) -> Result<Vec<FdbEntry>, Refusal>;

    /// Tells a network an address (`vlan`: `None` for untagged frames). When it was told already: with `may_exist` and
    /// the same port nothing happens, else it is refused. A learned entry is replaced.
    fn fdb_add(
        &self,
        network: &str,
        port: &str,
        mac: MacAddr,
        vlan: Option<Vid>,
        may_exist: bool,
    ) -> Result<(), Refusal>;

    /// Forgets an address, learned or told; `false` when it was not there.
    fn fdb_del(&self, network: &str, mac: MacAddr, vlan: Option<Vid>) -> Result<bool, Refusal>;

    /// Forgets every learned address of a network.
    fn fdb_flush(&self, network: &str) -> Result<(), Refusal>;

    /// The leases and reservations of a network, or of all, by network and address. Without DHCP: refused for a network,
    /// none for all.
    fn lease_list(&self, network: Option<&str>) -> Result<Vec<Lease>, Refusal>;

    /// Keeps an address for a guest, checked with [`LeaseSpec::fits`] and [`LeaseSpec::conflicts`]. When there is a
    /// reservation of that MAC: as for [`Self::net_add`]. A guest that has another address now gets this one when it
    /// renews its lease. Refused while another guest has the address.
    fn lease_add(&self, spec: LeaseSpec, may_exist: bool) -> Result<(), Refusal>;

    /// Ends the lease and forgets the reservation of a guest or an address; `false` when there was neither.
    fn lease_del(&self, network: &str, key: LeaseKey) -> Result<bool, Refusal>;

    /// The translations of a network, at most `limit`, and how many there are. Without translation: refused.
    fn nat_sessions(&self, network: &str, limit: usize) -> Result<NatSessionList, Refusal>;

    /// Makes a forward, checked with [`ForwardSpec::fits`] and [`ForwardSpec::conflicts`]; when it is there, as for
    /// [`Self::net_add`]. Without translation: refused.
    fn forward_add(&self, spec: ForwardSpec, may_exist: bool) -> Result<(), Refusal>;

    /// Deletes a forward, the whole of what one `forward_add` made; `false` when it was not there. Without translation:
    /// refused.
    fn forward_del(&self, spec: ForwardSpec) -> Result<bool, Refusal>;

    /// The forwards of a network, or of all, by network. Without translation: refused for a network, none for all.
    fn forward_list(&self, network: Option<&str>) -> Result<Vec<Forward>, Refusal>;
}
