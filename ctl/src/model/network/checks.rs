//! Whether the keys of a network agree with its mode and with each other: one clear line for the first that does not.

use super::resolve::{hosts, overlap};
use super::{Dhcp, Egress, HostAddress, Mode, NetworkDraft, NetworkSpec, takes};
use crate::model::{ModelError, check_interface};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// The smallest MTU of an IPv6 link, in bytes (RFC 8200, 5).
const MTU6_MIN: u16 = 1280;

/// Keys of translations that the switch makes itself, on an uplink or by sockets.
const OWN_TRANSLATION: &[&str] = &["filtering", "quota"];

type Checked = Result<(), ModelError>;

fn refuse<T>(why: impl AsRef<str>) -> Result<T, ModelError> {
    Err(ModelError::new(why))
}

/// Every check that needs more than one key. `host_if` is resolved already.
pub(super) fn check(draft: &NetworkDraft) -> Checked {
    let spec = &draft.spec;
    draft.given.iter().try_for_each(|key| check_mode(key, spec.mode))?;
    check_egress(spec, &draft.given)?;
    check_host(spec, &draft.given)?;
    check_gateway(spec)?;
    check_dhcp(spec, &draft.given)?;
    check_dns(spec, &draft.given)?;
    check_outside(spec)?;
    if let (Some(subnet), Some(mtu)) = (spec.subnet6, spec.mtu)
        && mtu < MTU6_MIN
    {
        return refuse(format!(
            "mtu={mtu} is too small for subnet6={subnet}: IPv6 needs {MTU6_MIN} bytes or more"
        ));
    }
    Ok(())
}

/// Refuses a key that the mode does not take.
fn check_mode(key: &str, mode: Mode) -> Checked {
    let modes = takes(key);
    if modes.contains(&mode) {
        return Ok(());
    }
    let words: Vec<_> = modes.iter().map(|m| m.as_str()).collect();
    let does_not = format!("{key}= does not go with mode={}", mode.as_str());
    match (mode, key) {
        (Mode::Nat, "uplink") => refuse(format!("{does_not}: say egress=uplink:IFNAME")),
        (Mode::Nat, "host-if") => refuse(format!(
            "{does_not}: with egress=host the host has an interface on the network, else it has not"
        )),
        (
            Mode::Internal,
            "uplink" | "host-if" | "egress" | "address" | "next-hop" | "address6" | "next-hop6"
            | "host-address" | "ip-forward",
        ) => refuse(format!("{does_not}: internal networks have no way out ({})", only(&words))),
        _ => refuse(format!("{does_not}: {}", only(&words))),
    }
}

fn only(modes: &[&str]) -> String {
    match modes {
        [one] => format!("only mode {one} takes it"),
        _ => format!("only modes {} take it", modes.join(", ")),
    }
}

fn check_egress(spec: &NetworkSpec, given: &[&str]) -> Checked {
    if spec.mode == Mode::Routed {
        return match (spec.uplink.is_none(), spec.address.is_some() || spec.address6.is_some()) {
            (true, true) => refuse("address= and address6= are our own on an uplink: give uplink= too"),
            _ => Ok(()),
        };
    }
    if spec.mode != Mode::Nat {
        return Ok(());
    }
    for key in ["outbound", "host-loopback"] {
        if given.contains(&key) && !spec.by_sockets() {
            return refuse(format!("{key}= is about the host's sockets: it goes with egress=user only"));
        }
    }
    if spec.subnet.is_none() {
        return refuse("mode=nat needs the subnet of its guests: give subnet=, such as 192.168.122.0/24");
    }
    match &spec.egress {
        Some(Egress::Host) => {
            for key in ["address", "next-hop", "address6", "next-hop6"].iter().chain(OWN_TRANSLATION) {
                if given.contains(key) {
                    let others = if OWN_TRANSLATION.contains(key) { "egress=user or " } else { "" };
                    return refuse(format!(
                        "{key}= is for the switch's own translation: it does not go with egress=host, \
                         only with {others}egress=uplink:IFNAME"
                    ));
                }
            }
            Ok(())
        }
        Some(Egress::User) => {
            for key in ["address", "next-hop", "address6", "next-hop6"] {
                if given.contains(&key) {
                    return refuse(format!(
                        "{key}= is our own on an uplink: it does not go with egress=user, whose outside is the \
                         host's own sockets, only with egress=uplink:IFNAME"
                    ));
                }
            }
            Ok(())
        }
        Some(Egress::Uplink(_)) | None => Ok(()),
    }
}

fn check_host(spec: &NetworkSpec, given: &[&str]) -> Checked {
    let why = match spec.mode {
        _ if given.contains(&"host-if") => "host-if=on",
        Mode::Bridge => "host-address=move",
        Mode::Nat => "egress=host",
        _ => "mode=routed without uplink=",
    };
    if spec.host_address == HostAddress::Move {
        if spec.uplink.is_none() {
            return refuse("host-address=move moves the addresses of an uplink: give uplink= too");
        }
        if !spec.host_if {
            return refuse(
                "host-address=move puts the host's addresses on the host interface: leave host-if=off out",
            );
        }
    }
    if spec.host_if {
        check_interface(&spec.name)
            .map_err(|e| e.of(format_args!("{why} names an interface after the network")))?;
    }
    if spec.host_if && spec.uplink_interface() == Some(&*spec.name) {
        return refuse(format!(
            "{why} makes an interface of this name, so uplink={} cannot be it: name the network otherwise",
            spec.name
        ));
    }
    if given.contains(&"ip-forward") && !spec.host_if {
        return refuse(match spec.mode {
            Mode::Nat => "ip-forward= is of the host's own stack: it goes with egress=host only",
            _ => "ip-forward= is of the host's own stack: it needs host-if=on",
        });
    }
    Ok(())
}

fn check_gateway(spec: &NetworkSpec) -> Checked {
    let Some(gateway) = spec.gateway else { return Ok(()) };
    let Some(subnet) = spec.subnet else {
        return match spec.mode {
            // A routed network needs no subnet: the gateway may have any address that guests take for theirs.
            Mode::Routed => Ok(()),
            _ => refuse(format!("gateway={gateway} needs the subnet that it is in: give subnet= too")),
        };
    };
    let (first, last) = hosts(subnet);
    if !subnet.contains(gateway) {
        return refuse(format!(
            "gateway={gateway} is not in subnet={subnet}: take one from {first} to {last}"
        ));
    }
    if gateway == subnet.network() {
        return refuse(format!(
            "gateway={gateway} is the network address of subnet={subnet}: take one from {first} to {last}"
        ));
    }
    if gateway == subnet.broadcast() {
        return refuse(format!(
            "gateway={gateway} is the broadcast address of subnet={subnet}: take one from {first} to {last}"
        ));
    }
    Ok(())
}

fn check_dhcp(spec: &NetworkSpec, given: &[&str]) -> Checked {
    if let Some(Dhcp::Range(start, end)) = spec.dhcp {
        let Some(subnet) = spec.subnet else {
            return refuse(format!("dhcp={start}-{end} needs the subnet that it is in: give subnet= too"));
        };
        let (first, last) = hosts(subnet);
        if start < first || end > last {
            return refuse(format!(
                "dhcp={start}-{end} is not within the hosts of subnet={subnet}, which are {first} to {last}"
            ));
        }
        if start == end && spec.gateway4() == Some(start) {
            return refuse(format!("dhcp={start}-{end} has no address but the gateway's: give more"));
        }
    }
    if spec.dhcp_range().is_none() {
        for key in ["lease-time", "static-routes", "boot-file", "boot-server"] {
            if given.contains(&key) {
                return refuse(format!("{key}= is told by DHCP, which is off: give dhcp=START-END too"));
            }
        }
        return Ok(());
    }
    if spec.boot_server.is_some() && spec.boot_file.is_none() {
        return refuse("boot-server= says where the boot file is: give boot-file= too");
    }
    for route in &spec.static_routes {
        let on_link = spec.subnet.is_some_and(|subnet| {
            let (first, last) = hosts(subnet);
            (first..=last).contains(&route.router)
        });
        if !on_link {
            return refuse(format!(
                "static-routes={route}: guests do not reach {}, it is no host of their subnet",
                route.router
            ));
        }
    }
    Ok(())
}

fn check_dns(spec: &NetworkSpec, given: &[&str]) -> Checked {
    if spec.dns_on() && spec.gateway4().is_none() && spec.gateway6().is_none() {
        return refuse("dns=on needs an address to answer at: give subnet=, subnet6= or gateway= too");
    }
    if given.contains(&"dns-servers") && !spec.dns_on() {
        if spec.dhcp_range().is_none() {
            return refuse("dns-servers= has nobody to tell them to: give dns=on or dhcp=START-END too");
        }
        if let Some(ip) = spec.dns_servers.iter().find(|ip| ip.is_loopback()) {
            return refuse(format!(
                "dns-servers={ip}: with dns=off guests ask these themselves, and do not reach {ip}"
            ));
        }
    }
    Ok(())
}

/// The switch's own addresses on an uplink, and the way on from there.
fn check_outside(spec: &NetworkSpec) -> Checked {
    if let Some(hop) = spec.next_hop {
        let Some(address) = spec.address else {
            return refuse(format!(
                "next-hop={hop} is reached from an address of our own: give address= too"
            ));
        };
        if !address.contains(hop) {
            return refuse(format!("next-hop={hop} is not in the subnet of address={address}"));
        }
        if address.ip() == hop {
            return refuse(format!("next-hop={hop} is address= itself: give that of the router"));
        }
        if address.prefix() < 31 && (hop == address.network() || hop == address.broadcast()) {
            return refuse(format!("next-hop={hop} is no host of the subnet of address={address}"));
        }
    }
    if let Some(hop) = spec.next_hop6 {
        let Some(address) = spec.address6 else {
            return refuse(format!(
                "next-hop6={hop} is reached from an address of our own: give address6= too"
            ));
        };
        if !address.contains(hop) && !hop.is_unicast_link_local() {
            return refuse(format!("next-hop6={hop} is not in the subnet of address6={address}"));
        }
        if address.ip() == hop {
            return refuse(format!("next-hop6={hop} is address6= itself: give that of the router"));
        }
    }
    let own = [spec.address.map(IpNetwork::V4), spec.address6.map(IpNetwork::V6)];
    for (key, address) in ["address", "address6"].into_iter().zip(own) {
        let Some(address) = address else { continue };
        if let Some(subnet) = spec.subnets().find(|subnet| overlap(*subnet, address)) {
            return refuse(format!(
                "{key}={address} overlaps {subnet}, the guests' subnet: inside and outside must differ"
            ));
        }
    }
    let outside = |ip: &IpAddr| spec.gateway4().map(IpAddr::V4) == Some(*ip) && spec.dns_on();
    if let Some(ip) = spec.dns_servers.iter().find(|ip| outside(ip)) {
        return refuse(format!("dns-servers={ip} is the gateway itself, which would ask itself"));
    }
    Ok(())
}
