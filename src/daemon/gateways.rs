//! What networks with a gateway or a translation are told and asked: leases, reservations, names, sessions, forwards.
//!
//! Every call finds its network first: one that is not there is told from one that has not what is asked for. What an
//! operator told of single guests is kept in [`Told`], and the gateway and the translation have the same.

use std::net::IpAddr;

use ctl::model::{Egress, ForwardSpec, HostRecord, LeaseKey, LeaseSpec, Mode, NetworkSpec, PortSpec};
use ctl::protocol::{Forward, Lease, NatSession, NatSessionList, Refusal, Resolved};
use modes::gateway::dhcp4::{Owner, Reservation};
use modes::gateway::dhcp6::{Client, Reservation as Reservation6};
use modes::gateway::{Gateway, Services};
use modes::nat::UplinkAddress;
use switch_core::napt::NatAccess;
use switch_core::{Instant, PortId};

use super::compose;
use super::plumbing::forwards4;
use super::services;
use super::switch::{Everything, Host, Network, Purpose};

pub(super) use ctl::config::Told;

const LEASES: &str = "leases";
const FORWARDS: &str = "port forwards";

fn network<'a>(state: &'a mut Everything, name: &str) -> Result<&'a mut Network, Refusal> {
    state.networks.get_mut(name).ok_or_else(|| Refusal::no_network(name))
}

/// The networks that a list is of: one that must be there, or all.
fn listed<'a>(state: &'a Everything, name: Option<&str>) -> Result<Vec<&'a Network>, Refusal> {
    match name {
        Some(name) => Ok(vec![state.networks.get(name).ok_or_else(|| Refusal::no_network(name))?]),
        None => Ok(state.networks.values().collect()),
    }
}

/// The network's own rules for a port that is to be on it.
pub(super) fn check_port(state: &Everything, spec: &PortSpec) -> Result<(), Refusal> {
    let Some(network) = state.networks.get(&spec.network) else { return Ok(()) };
    spec.fits(&network.spec)?;
    for port in state.ports.values() {
        if let Purpose::Added(other) = &port.purpose
            && other.name != spec.name
            && let Some(conflict) = spec.conflicts(other, &network.spec)
        {
            return Err(Refusal::refused(format!("port {}: {conflict}", spec.name)));
        }
    }
    for lease in &network.told.leases {
        if spec.ip.contains(&lease.ip) && spec.mac != Some(lease.mac) {
            return Err(Refusal::refused(format!(
                "port {}: ip={} is kept for {} (see weft lease list {}): take another",
                spec.name, lease.ip, lease.mac, spec.network
            )));
        }
    }
    Ok(())
}

/// Whom a port's addresses are kept for.
fn owner(id: PortId, spec: &PortSpec) -> Owner {
    spec.mac.map_or(Owner::Port(id), |mac| Owner::PortMac(id, mac))
}

/// Keeps a port's addresses for its guest, in the place of those that it had as `old`; `new` is `None` when it goes.
pub(super) fn reserve_port(
    host: &Host,
    state: &mut Everything,
    id: PortId,
    old: Option<&PortSpec>,
    new: Option<&PortSpec>,
) -> Result<(), Refusal> {
    let Some(name) = new.or(old).map(|s| s.network.clone()) else { return Ok(()) };
    let what = new.or(old).map(|s| s.name.clone()).unwrap_or_default();
    if let Some((shared, _)) = state.networks.get(&name).and_then(|n| n.gateway.as_ref())
        && let Some(dhcp) = &mut shared.lock().services().dhcp4
    {
        if let Some(old) = old {
            dhcp.unreserve(owner(id, old));
        }
        // DHCP gives one address; further ones are the guest's own business.
        let first = new.and_then(|s| s.ip.iter().find_map(|ip| v4(*ip)).map(|ip| (s, ip)));
        if let Some((spec, ip)) = first {
            // An address that this network's DHCP does not give is the guest's to configure.
            if dhcp.config().subnet.contains(ip) {
                let kept = Reservation { owner: owner(id, spec), ip, hostname: None };
                dhcp.reserve(kept).map_err(|e| Refusal::refused(format!("port {what}: ip={ip}: {e}")))?;
            }
        }
    }
    let ports6 = ports6(state, &name, Some((id, new)));
    set_reservations6(host.datapath.now(), state, &name, ports6)
}

fn v4(ip: IpAddr) -> Option<std::net::Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// The IPv6 addresses that ports of a network were told, as if one of them were another.
fn ports6(
    state: &Everything,
    network: &str,
    changed: Option<(PortId, Option<&PortSpec>)>,
) -> Vec<Reservation6> {
    let is_changed = |id| changed.is_some_and(|(other, _)| id == other);
    let others = state.ports.values().filter(|p| p.network == network && !is_changed(p.id));
    let others = others.filter_map(|p| match &p.purpose {
        Purpose::Added(spec) => Some((p.id, &**spec)),
        _ => None,
    });
    let all = others.chain(changed.and_then(|(id, spec)| Some((id, spec?))));
    all.filter_map(|(id, spec)| {
        let address = spec.ip.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) if !ip.is_unicast_link_local() => Some(*ip),
            _ => None,
        })?;
        Some(Reservation6 { client: Client::Mac(spec.mac?), port: Some(id), address })
    })
    .collect()
}

/// Tells a network's DHCPv6 server for whom addresses are kept, and its guests whether they are to ask for one.
fn set_reservations6(
    now: Instant,
    state: &mut Everything,
    name: &str,
    mut kept: Vec<Reservation6>,
) -> Result<(), Refusal> {
    let Some(network) = state.networks.get(name) else { return Ok(()) };
    let Some((shared, _)) = &network.gateway else { return Ok(()) };
    let told = network.told.leases.iter().filter_map(|lease| match lease.ip {
        IpAddr::V6(address) => Some(Reservation6 { client: Client::Mac(lease.mac), port: None, address }),
        IpAddr::V4(_) => None,
    });
    kept.extend(told);
    let any = !kept.is_empty();
    let gateway = &mut *shared.lock();
    if let Some(dhcp) = &mut gateway.services().dhcp6 {
        dhcp.set_reservations(kept).map_err(|e| Refusal::refused(format!("network {name}: {e}")))?;
    }
    advertise(now, gateway, &network.spec, any).map_err(|e| Refusal::refused(format!("network {name}: {e}")))
}

/// Has a gateway advertise what its network is now.
fn advertise(now: Instant, gateway: &mut Gateway, spec: &NetworkSpec, reserved: bool) -> Result<(), String> {
    let Some(mut config) = compose::ra_config(spec)? else { return Ok(()) };
    config.managed = reserved || !config.prefixes.iter().any(|prefix| prefix.autonomous);
    match &mut gateway.services().ra {
        Some(ra) => ra.configure(now, config).map_err(|e| e.to_string()),
        None => Ok(()),
    }
}

/// Whether DHCPv6 gives an address of a network to anybody.
fn any_reserved6(state: &Everything, network: &Network) -> bool {
    let told = network.told.leases.iter().any(|l| l.ip.is_ipv6());
    told || state.ports.values().any(|p| match &p.purpose {
        Purpose::Added(spec) => {
            spec.network == network.spec.name && spec.mac.is_some() && spec.ip.iter().any(|ip| ip.is_ipv6())
        }
        _ => false,
    })
}

/// Tells a network's gateway what its description says now. When it is refused, nothing has changed.
pub(super) fn reconfigure(host: &Host, state: &mut Everything, new: &NetworkSpec) -> Result<(), Refusal> {
    let Some(network) = state.networks.get(&new.name) else { return Ok(()) };
    let Some((shared, running)) = &network.gateway else { return Ok(()) };
    let reserved = any_reserved6(state, network);
    let refused = |e: String| Refusal::refused(format!("network {}: {e}", new.name));
    let gateway = &mut *shared.lock();
    if let (Some(dhcp), Some(config)) = (&mut gateway.services().dhcp4, compose::dhcp4_config(new)) {
        dhcp.reconfigure(config).map_err(|e| refused(e.to_string()))?;
    }
    if let Some(config) = compose::dhcp6_config(new).map_err(refused)?
        && let Some(dhcp) = &mut gateway.services().dhcp6
    {
        dhcp.configure(config).map_err(|e| refused(e.to_string()))?;
    }
    let clock = services::clock(&host.datapath);
    advertise(clock.now, gateway, new, reserved).map_err(refused)?;
    let zone = compose::zone(new, &network.told.hosts).map_err(refused)?;
    gateway.set_zone(clock, zone);
    host.services.ask(running, compose::upstream(new));
    Ok(())
}

/// The leases and reservations of a network, or of all.
pub(super) fn lease_list(host: &Host, name: Option<&str>) -> Result<Vec<Lease>, Refusal> {
    let state = host.lock();
    let now = host.datapath.now();
    let mut all = Vec::new();
    for network in listed(&state, name)? {
        let services = network.gateway.as_ref().map(|(shared, _)| shared.lock());
        let Some(mut gateway) = services else {
            if name.is_some() {
                return Err(Refusal::has_no(&network.spec, LEASES));
            }
            continue;
        };
        let services = gateway.services();
        if services.dhcp4.is_none() && services.dhcp6.is_none() {
            if name.is_some() {
                return Err(Refusal::has_no(&network.spec, LEASES));
            }
            continue;
        }
        all.extend(leases_of(&state, network, services, now));
    }
    Ok(all)
}

fn leases_of(state: &Everything, network: &Network, served: &Services, now: Instant) -> Vec<Lease> {
    let lease = |mac: String, ip: IpAddr, hostname: &str, expires_s: u64, state: &str, kept: bool| {
        let hostname = hostname.to_owned();
        let (network, state) = (network.spec.name.clone(), state.to_owned());
        (ip, Lease { network, mac, ip: ip.to_string(), hostname, expires_s, state, r#static: kept })
    };
    let mut leases: Vec<(IpAddr, Lease)> = Vec::new();
    if let Some(dhcp) = &served.dhcp4 {
        let kept = dhcp.reservations();
        for bound in dhcp.leases(now) {
            let is_kept = kept.iter().any(|r| r.ip == bound.ip);
            let name = bound.hostname.as_deref().unwrap_or_default();
            leases.push(lease(
                bound.mac.to_string(),
                bound.ip.into(),
                name,
                bound.expires_s,
                "bound",
                is_kept,
            ));
        }
        for reserved in kept {
            if leases.iter().any(|(ip, _)| *ip == IpAddr::V4(reserved.ip)) {
                continue;
            }
            let mac = match reserved.owner {
                Owner::Mac(mac) | Owner::PortMac(_, mac) => mac.to_string(),
                Owner::Port(_) => String::new(),
            };
            let name = reserved.hostname.as_deref().unwrap_or_default();
            leases.push(lease(mac, reserved.ip.into(), name, 0, "reserved", true));
        }
    }
    if let Some(dhcp) = &served.dhcp6 {
        for bound in dhcp.bindings(now) {
            let left = bound.expires.since(now).as_secs();
            leases.push(lease(bound.mac.to_string(), bound.ip.into(), "", left, "bound", true));
        }
        let unborn = network.told.leases.iter().filter(|l| l.ip.is_ipv6()).map(|l| (l.mac, l.ip));
        let of_ports = state.ports.values().filter_map(|p| match &p.purpose {
            Purpose::Added(spec) if spec.network == network.spec.name => {
                Some((spec.mac?, *spec.ip.iter().find(|ip| ip.is_ipv6())?))
            }
            _ => None,
        });
        for (mac, ip) in unborn.chain(of_ports) {
            if !leases.iter().any(|(other, _)| *other == ip) {
                leases.push(lease(mac.to_string(), ip, "", 0, "reserved", true));
            }
        }
    }
    leases.sort_by_key(|(ip, _)| *ip);
    leases.into_iter().map(|(_, lease)| lease).collect()
}

/// Keeps an address for a guest.
pub(super) fn lease_add(host: &Host, spec: &LeaseSpec, may_exist: bool) -> Result<(), Refusal> {
    let state = &mut *host.lock();
    let what = format!("lease of {} on {}", spec.mac, spec.network);
    let of_port = state.ports.iter().find_map(|(name, p)| match &p.purpose {
        Purpose::Added(port) if port.network == spec.network && port.ip.contains(&spec.ip) => {
            Some((name.clone(), port.mac))
        }
        _ => None,
    });
    let network = network(state, &spec.network)?;
    spec.fits(&network.spec)?;
    if network.told.leases.contains(spec) {
        return match may_exist {
            true => Ok(()),
            false => Err(Refusal::refused(format!("{what}: it is there already"))),
        };
    }
    if let Some(conflict) = network.told.leases.iter().find_map(|other| spec.conflicts(other)) {
        return Err(Refusal::refused(format!("{what}: {conflict}")));
    }
    if let Some((port, _)) = of_port.filter(|(_, mac)| *mac != Some(spec.mac)) {
        return Err(Refusal::refused(format!("{what}: {} is the address of port {port} already", spec.ip)));
    }
    if let IpAddr::V4(ip) = spec.ip {
        let gateway = network.gateway.as_ref().map(|(shared, _)| shared.lock());
        let Some(mut gateway) = gateway else { return Err(Refusal::has_no(&network.spec, LEASES)) };
        let Some(dhcp) = &mut gateway.services().dhcp4 else {
            return Err(Refusal::has_no(&network.spec, LEASES));
        };
        let now = host.datapath.now();
        if let Some(bound) = dhcp.leases(now).into_iter().find(|l| l.ip == ip && l.mac != spec.mac) {
            return Err(Refusal::refused(format!(
                "{what}: {} has {ip} now: end that first by weft lease del {} {ip}",
                bound.mac, spec.network
            )));
        }
        let kept = Reservation { owner: Owner::Mac(spec.mac), ip, hostname: spec.hostname.clone() };
        dhcp.reserve(kept).map_err(|e| Refusal::refused(format!("{what}: {e}")))?;
    }
    network.told.leases.push(spec.clone());
    refresh6(host, state, &spec.network)
}

/// Tells a network's DHCPv6 server what is kept now.
fn refresh6(host: &Host, state: &mut Everything, name: &str) -> Result<(), Refusal> {
    let kept = ports6(state, name, None);
    set_reservations6(host.datapath.now(), state, name, kept)
}

/// Ends the lease and forgets the reservation of a guest or an address.
pub(super) fn lease_del(host: &Host, name: &str, key: LeaseKey) -> Result<bool, Refusal> {
    let state = &mut *host.lock();
    let now = host.datapath.now();
    let network = network(state, name)?;
    let Some((shared, _)) = &network.gateway else { return Err(Refusal::has_no(&network.spec, LEASES)) };
    let meant = |mac, ip: IpAddr| match key {
        LeaseKey::Mac(wanted) => wanted == mac,
        LeaseKey::Ip(wanted) => wanted == ip,
    };
    let before = network.told.leases.len();
    let mut gateway = shared.lock();
    let mut gone = false;
    if let Some(dhcp) = &mut gateway.services().dhcp4 {
        for lease in &network.told.leases {
            if meant(lease.mac, lease.ip) && lease.ip.is_ipv4() {
                dhcp.unreserve(Owner::Mac(lease.mac));
            }
        }
        for bound in dhcp.leases(now) {
            if meant(bound.mac, bound.ip.into()) {
                let done = dhcp.del(bound.ip);
                gone |= done.map_err(|e| Refusal::refused(format!("lease of {}: {e}", bound.ip)))?;
            }
        }
    } else if gateway.services().dhcp6.is_none() {
        return Err(Refusal::has_no(&network.spec, LEASES));
    }
    drop(gateway);
    network.told.leases.retain(|lease| !meant(lease.mac, lease.ip));
    gone |= network.told.leases.len() != before;
    refresh6(host, state, name)?;
    Ok(gone)
}

/// Has a name answered by a network's DNS. The configuration file alone says such names.
pub(super) fn record_add(host: &Host, record: &HostRecord) -> Result<(), Refusal> {
    let state = &mut *host.lock();
    let network = network(state, &record.network)?;
    record.fits(&network.spec)?;
    if network.told.hosts.contains(record) {
        return Ok(());
    }
    network.told.hosts.push(record.clone());
    tell_names(host, network).inspect_err(|_| drop(network.told.hosts.pop()))
}

/// Has a name answered no longer; `false` when it was not there.
pub(super) fn record_del(host: &Host, record: &HostRecord) -> Result<bool, Refusal> {
    let state = &mut *host.lock();
    let network = network(state, &record.network)?;
    let before = network.told.hosts.len();
    network.told.hosts.retain(|other| other != record);
    let gone = network.told.hosts.len() != before;
    tell_names(host, network)?;
    Ok(gone)
}

/// Gives a network's DNS the names that it was told.
fn tell_names(host: &Host, network: &Network) -> Result<(), Refusal> {
    let Some((shared, _)) = &network.gateway else { return Ok(()) };
    let zone = compose::zone(&network.spec, &network.told.hosts)
        .map_err(|e| Refusal::refused(format!("network {}: {e}", network.spec.name)))?;
    shared.lock().set_zone(services::clock(&host.datapath), zone);
    Ok(())
}

fn nat_of(network: &Network) -> Result<&dyn NatAccess, Refusal> {
    network
        .mode
        .nat()
        .ok_or_else(|| Refusal::has_no(&network.spec, "address translation of the switch's own"))
}

/// The translations of a network.
pub(super) fn nat_sessions(host: &Host, name: &str, limit: usize) -> Result<NatSessionList, Refusal> {
    let state = &mut *host.lock();
    let network = network(state, name)?;
    let (sessions, total) = match &network.sockets {
        Some(sockets) => sockets.sessions(limit),
        None => nat_of(network)?.sessions(host.datapath.now(), limit),
    };
    let sessions = sessions
        .into_iter()
        .map(|s| NatSession {
            proto: s.protocol.name().to_owned(),
            inside: s.inside.to_string(),
            outside: s.outside.to_string(),
            remote: s.remote.to_string(),
            state: s.state.to_owned(),
            idle_s: s.idle.as_secs(),
        })
        .collect();
    Ok(NatSessionList { sessions, total: total as u64 })
}

/// The first port that another network has forwarded already: those that leave by the host, or by its sockets, share its
/// addresses.
fn taken_elsewhere(state: &Everything, spec: &ForwardSpec) -> Option<(u16, String)> {
    let by_host = |n: &&Network| n.spec.egress == Some(Egress::Host) || n.spec.by_sockets();
    state.networks.get(&spec.network).filter(by_host)?;
    let others = state.networks.values().filter(by_host).filter(|n| n.spec.name != spec.network);
    others.flat_map(|n| &n.told.forwards).find_map(|other| {
        // The target's subnet is another, so what both listen on is what counts.
        Some((spec.conflicts(other)?, other.to_string()))
    })
}

/// Makes a port forward.
pub(super) fn forward_add(host: &Host, spec: &ForwardSpec, may_exist: bool) -> Result<(), Refusal> {
    let state = &mut *host.lock();
    let what = format!("forward {spec}");
    let elsewhere = taken_elsewhere(state, spec);
    let network = network(state, &spec.network)?;
    spec.fits(&network.spec)?;
    if network.told.forwards.contains(spec) {
        return match may_exist {
            true => Ok(()),
            false => Err(Refusal::refused(format!("{what}: it is there already"))),
        };
    }
    let here = network.told.forwards.iter().find_map(|o| Some((spec.conflicts(o)?, o.to_string())));
    if let Some((port, other)) = here.or(elsewhere) {
        return Err(Refusal::refused(format!(
            "{what}: port {port} is listened on for {other} already: delete that first"
        )));
    }
    let refused = |e: &dyn std::fmt::Display| Refusal::refused(format!("{what}: {e}"));
    if let Some(nat) = network.mode.nat() {
        let mut made = Vec::new();
        for part in spec.parts() {
            if let Err(error) = nat.add_forward(&part) {
                for part in &made {
                    nat.remove_forward(part);
                }
                return Err(refused(&error));
            }
            made.push(part);
        }
    }
    if let Some(sockets) = &network.sockets {
        let parts: Vec<_> = spec.parts().collect();
        let source = if spec.keeps_source { sockets::Source::Client } else { sockets::Source::Gateway };
        for (i, part) in parts.iter().enumerate() {
            if let Err(error) = sockets.add_forward(part, source) {
                for part in parts.iter().take(i) {
                    sockets.remove_forward(part);
                }
                return Err(refused(&error));
            }
        }
    }
    network.told.forwards.push(spec.clone());
    if let Err(error) = host.follow_forwards(network) {
        network.told.forwards.pop();
        return Err(refused(&error));
    }
    Ok(())
}

/// Deletes a port forward.
pub(super) fn forward_del(host: &Host, spec: &ForwardSpec) -> Result<bool, Refusal> {
    let state = &mut *host.lock();
    let network = network(state, &spec.network)?;
    if network.spec.mode != Mode::Nat {
        return Err(Refusal::has_no(&network.spec, FORWARDS));
    }
    let Some(place) = network.told.forwards.iter().position(|other| other.is_same_way(spec)) else {
        return Ok(false);
    };
    let gone = network.told.forwards.remove(place);
    if let Err(error) = host.follow_forwards(network) {
        network.told.forwards.insert(place, gone);
        return Err(Refusal::refused(format!("forward {spec}: {error}")));
    }
    if let Some(nat) = network.mode.nat() {
        for part in spec.parts() {
            nat.remove_forward(&part);
        }
    }
    if let Some(sockets) = &network.sockets {
        for part in spec.parts() {
            sockets.remove_forward(&part);
        }
    }
    Ok(true)
}

/// The port forwards of a network, or of all.
pub(super) fn forward_list(host: &Host, name: Option<&str>) -> Result<Vec<Forward>, Refusal> {
    let state = host.lock();
    let mut all = Vec::new();
    for network in listed(&state, name)? {
        if network.spec.mode != Mode::Nat && name.is_some() {
            return Err(Refusal::has_no(&network.spec, FORWARDS));
        }
        let by_sockets = network.spec.by_sockets();
        all.extend(network.told.forwards.iter().map(|spec| Forward {
            network: spec.network.clone(),
            proto: spec.protocol.as_str().to_owned(),
            listen: spec.listen(),
            target: spec.target(),
            // Who translates packets changes the destination alone.
            source: if spec.keeps_source || !by_sockets { "keep" } else { "gateway" }.to_owned(),
        }));
    }
    Ok(all)
}

/// That a network has no way out yet because nobody on its uplink has given it an address.
pub(super) fn waits_for_address(network: &Network) -> Option<String> {
    let status = network.nat.as_ref()?.status();
    let uplink = network.spec.uplink_interface()?;
    (status.by_dhcp && status.v4.is_none() && network.spec.subnet.is_some())
        .then(|| format!("{uplink}: no DHCP server there has given an address: see to one, or say address="))
}

/// What a network was given and what that came to, for whoever asks.
pub(super) fn resolved(network: &Network, now: Instant) -> Option<Resolved> {
    let spec = &network.spec;
    if spec.mode == Mode::Bridge {
        return None;
    }
    let text = |ip: IpAddr| ip.to_string();
    let mut told = Resolved {
        gateway: spec.gateway4().map(|ip| text(ip.into())),
        gateway6: spec.gateway6().map(|ip| text(ip.into())),
        gateway_mac: network.gateway.as_ref().map(|_| compose::router_mac(spec).to_string()),
        dhcp: spec.dhcp_range().map(|(first, last)| format!("{first}-{last}")),
        lease_time_s: spec.dhcp_range().map(|_| spec.lease_time_s.into()),
        dns: spec.dns_on(),
        dns_servers: spec.dns_servers.iter().map(|&ip| text(ip)).collect(),
        egress: spec.egress.as_ref().map(ToString::to_string),
        address: spec.address.map(|a| a.to_string()),
        address6: spec.address6.map(|a| a.to_string()),
        next_hop: spec.next_hop.map(|ip| text(ip.into())),
        next_hop6: spec.next_hop6.map(|ip| text(ip.into())),
        host_interface: spec.host_interface().map(str::to_owned),
        forwarding: spec.host_interface().and_then(|_| forwards4()),
        forwards: (spec.mode == Mode::Nat).then_some(network.told.forwards.len() as u64),
        quota: (spec.translates() || spec.by_sockets()).then_some(spec.quota.into()),
        sessions: network.mode.nat().map(|nat| nat.sessions(now, 0).1 as u64),
        ..Resolved::default()
    };
    if let Some(sockets) = &network.sockets {
        told.sessions = Some(sockets.sessions(0).1 as u64);
        told.pings = Some(sockets.pings_allowed());
        told.counters = Some(sockets.counters().iter().map(|(name, n)| (name.to_owned(), n)).collect());
    }
    if let Some(status) = network.nat.as_ref().map(|nat| nat.status()) {
        // What was configured, or what a DHCP server of the outside gave.
        let address = |a: UplinkAddress| format!("{}/{}", a.address, a.prefix);
        told.address = status.v4.map(address);
        told.address6 = status.v6.map(address);
        told.next_hop = status.v4.and_then(|a| a.next_hop).map(text);
        told.next_hop6 = status.v6.and_then(|a| a.next_hop).map(text);
    }
    if let Some((shared, _)) = &network.gateway
        && let Some(dhcp) = &shared.lock().services().dhcp4
    {
        let usage = dhcp.usage();
        told.leases_used = Some(usage.leased as u64);
        told.leases_free = Some(usage.free as u64);
    }
    Some(told)
}
