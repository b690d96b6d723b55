//! What networks with a gateway or a translation are asked: leases, reservations, sessions, port forwards, names.
//!
//! Every call finds its network first: one that is not there is told from one that has not what is asked for.

use ctl::model::{ForwardSpec, HostRecord, LeaseKey, LeaseSpec, NetworkSpec};
use ctl::protocol::{Forward, Lease, NatSessionList, Refusal};

use super::switch::Host;

const LEASES: &str = "leases";
const FORWARDS: &str = "port forwards";

/// What a network was told to be.
fn spec_of(host: &Host, network: &str) -> Result<NetworkSpec, Refusal> {
    let state = host.lock();
    state.networks.get(network).map(|n| n.spec.clone()).ok_or_else(|| Refusal::no_network(network))
}

/// Nothing of the kind for all networks; a refusal for one that has none.
fn none_of<T>(host: &Host, network: Option<&str>, what: &str) -> Result<Vec<T>, Refusal> {
    match network {
        Some(name) => Err(Refusal::has_no(&spec_of(host, name)?, what)),
        None => Ok(Vec::new()),
    }
}

/// The leases and reservations of a network, or of all.
pub(super) fn lease_list(host: &Host, network: Option<&str>) -> Result<Vec<Lease>, Refusal> {
    none_of(host, network, LEASES)
}

/// Keeps an address for a guest.
pub(super) fn lease_add(host: &Host, spec: &LeaseSpec, _may_exist: bool) -> Result<(), Refusal> {
    let network = spec_of(host, &spec.network)?;
    spec.fits(&network)?;
    Err(Refusal::has_no(&network, LEASES))
}

/// Ends the lease and forgets the reservation of a guest or an address.
pub(super) fn lease_del(host: &Host, network: &str, _key: LeaseKey) -> Result<bool, Refusal> {
    Err(Refusal::has_no(&spec_of(host, network)?, LEASES))
}

/// The translations of a network.
pub(super) fn nat_sessions(host: &Host, network: &str, _limit: usize) -> Result<NatSessionList, Refusal> {
    Err(Refusal::has_no(&spec_of(host, network)?, "address translation"))
}

/// Makes a port forward.
pub(super) fn forward_add(host: &Host, spec: &ForwardSpec, _may_exist: bool) -> Result<(), Refusal> {
    let network = spec_of(host, &spec.network)?;
    spec.fits(&network)?;
    Err(Refusal::has_no(&network, FORWARDS))
}

/// Deletes a port forward.
pub(super) fn forward_del(host: &Host, spec: &ForwardSpec) -> Result<bool, Refusal> {
    Err(Refusal::has_no(&spec_of(host, &spec.network)?, FORWARDS))
}

/// The port forwards of a network, or of all.
pub(super) fn forward_list(host: &Host, network: Option<&str>) -> Result<Vec<Forward>, Refusal> {
    none_of(host, network, FORWARDS)
}

/// Has a name answered by a network's DNS. The configuration file alone says such names.
pub(super) fn record_add(host: &Host, record: &HostRecord) -> Result<(), Refusal> {
    let network = spec_of(host, &record.network)?;
    record.fits(&network)?;
    Err(Refusal::has_no(&network, "names"))
}

/// Has a name answered no longer; `false` when it was not there.
pub(super) fn record_del(host: &Host, record: &HostRecord) -> Result<bool, Refusal> {
    Err(Refusal::has_no(&spec_of(host, &record.network)?, "names"))
}
