//! A port's `mac=` in its network's forwarding database: a configured address cannot be taken over by another
//! port that sends from it.

use ctl::model::PortSpec;
use ctl::protocol::Refusal;
use switch_core::{MacAddr, PortId, Vid};

use super::switch::{Everything, Purpose};

fn station(spec: &PortSpec) -> Option<(MacAddr, Option<Vid>)> {
    spec.mac.map(|mac| (mac, spec.vlan))
}

/// Refuses an address that another port of the network was given on the same VLAN.
pub(super) fn check(state: &Everything, spec: &PortSpec) -> Result<(), Refusal> {
    let Some((mac, _)) = station(spec) else { return Ok(()) };
    let taken = state.ports.iter().find(|(name, port)| match &port.purpose {
        Purpose::Added(other) => {
            **name != spec.name && other.network == spec.network && station(other) == station(spec)
        }
        _ => false,
    });
    match taken {
        Some((name, _)) => Err(Refusal::refused(format!(
            "port {}: mac={mac} is port {name}'s on network {}: give each its own",
            spec.name, spec.network
        ))),
        None => Ok(()),
    }
}

/// Puts the port's address into the database, in the place of the one that it had as `old`.
pub(super) fn pin(
    state: &Everything,
    id: PortId,
    old: Option<&PortSpec>,
    new: &PortSpec,
) -> Result<(), Refusal> {
    let (was, is) = (old.and_then(station), station(new));
    let Some(fdb) = state.networks.get(&new.network).and_then(|n| n.mode.fdb()) else { return Ok(()) };
    if was == is {
        return Ok(());
    }
    if let Some((mac, vlan)) = is {
        fdb.add_static(mac, vlan, id)
            .map_err(|e| Refusal::refused(format!("port {}: mac={mac}: {e}", new.name)))?;
    }
    if let Some((mac, vlan)) = was {
        fdb.remove(mac, vlan);
    }
    Ok(())
}
