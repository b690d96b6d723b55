//! What holds where an operator said nothing, and what two networks must not share.
//!
//! The one place for defaults that depend on other keys: the daemon asks here and never looks at an optional key
//! itself.

use super::{DHCP_MAX, Dhcp, Egress, HostAddress, Mode, NetworkSpec};
use crate::model::words::Claim;
use crate::model::{MTU_DEFAULT, ModelError};
use ipnetwork::{IpNetwork, Ipv4Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first and last address that hosts of a subnet may have; the prefix is at most /30.
pub(super) fn hosts(subnet: Ipv4Network) -> (Ipv4Addr, Ipv4Addr) {
    let first = u32::from(subnet.network()).saturating_add(1);
    let last = u32::from(subnet.broadcast()).saturating_sub(1);
    (first.into(), last.into())
}

/// Whether two prefixes have an address in common: then one lies within the other.
pub(super) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    match (a, b) {
        (IpNetwork::V4(a), IpNetwork::V4(b)) => a.overlaps(b),
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.overlaps(b),
        _ => false,
    }
}

impl NetworkSpec {
    /// The MTU in force, in bytes.
    pub fn mtu_in_force(&self) -> u16 {
        self.mtu.unwrap_or(MTU_DEFAULT)
    }

    /// The interface that is the network's uplink, whatever key named it.
    pub fn uplink_interface(&self) -> Option<&str> {
        match &self.egress {
            Some(Egress::Uplink(interface)) => Some(interface),
            _ => self.uplink.as_deref(),
        }
    }

    /// The interface that the host has on the network: it has the network's name.
    pub fn host_interface(&self) -> Option<&str> {
        self.host_if.then_some(&*self.name)
    }

    /// `host-if=` where it is not said: a bridge needs one when the host's addresses move to it, a routed network when it
    /// has no uplink of its own, and translation by the host goes through one.
    pub(super) fn host_if_default(&self) -> bool {
        match self.mode {
            Mode::Bridge => self.host_address == HostAddress::Move,
            Mode::Routed => self.uplink.is_none(),
            Mode::Nat => self.egress == Some(Egress::Host),
            Mode::Internal => false,
        }
    }

    /// Whether what leaves the network leaves by the host's sockets.
    pub fn by_sockets(&self) -> bool {
        self.mode == Mode::Nat && self.egress == Some(Egress::User)
    }

    /// Whether the switch itself translates what leaves the network, on an uplink.
    pub fn translates(&self) -> bool {
        self.mode == Mode::Nat && matches!(self.egress, Some(Egress::Uplink(_)))
    }

    /// Whether guests of the network are reached by the host's routing table.
    pub fn uses_host_routes(&self) -> bool {
        matches!(self.mode, Mode::Routed | Mode::Nat) && self.host_if
    }

    /// Whether the daemon may switch the host's forwarding on for this network: `ip-forward=`, or else yes for `nat` with
    /// `egress=host`, and no for the rest.
    pub fn may_forward(&self) -> bool {
        self.ip_forward.unwrap_or(self.mode == Mode::Nat && self.egress == Some(Egress::Host))
    }

    /// Whether the switch asks for its address on the uplink by DHCP: it translates there, and there is no `address=`. A
    /// routed network needs none, whose guests are on the uplink's own segment then.
    pub fn address_by_dhcp(&self) -> bool {
        self.mode == Mode::Nat && self.uplink_interface().is_some() && self.address.is_none()
    }

    /// Whether the switch has a station of its own on the network, with at least one of the addresses of
    /// [`Self::gateway4`] and [`Self::gateway6`]. A routed network has one even without an address, because it answers
    /// for all others.
    pub fn has_gateway(&self) -> bool {
        self.mode == Mode::Routed || self.gateway4().is_some() || self.gateway6().is_some()
    }

    /// The IPv4 address of the switch's own station: `gateway=`, or else the first address of `subnet=`. An internal
    /// network has one only if `gateway=`, `dhcp=` or `dns=` asks for it; a bridge has none.
    pub fn gateway4(&self) -> Option<Ipv4Addr> {
        let asked = match self.mode {
            Mode::Bridge => false,
            Mode::Routed | Mode::Nat => true,
            Mode::Internal => matches!(self.dhcp, Some(Dhcp::Range(..))) || self.dns_on(),
        };
        self.gateway.or_else(|| self.subnet.filter(|_| asked).map(|subnet| hosts(subnet).0))
    }

    /// The IPv6 address of the switch's own station: the first address after the subnet's own, which is every router's
    /// (RFC 4291, 2.6.1). With `subnet6=` there is always one, as guests learn the subnet from its advertisements.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| u128::from(subnet.network()).saturating_add(1).into())
    }

    /// The addresses that are given by DHCP, both included; `None` when none are. Without `dhcp=`, a `nat` network gives
    /// all of its subnet's, or the first [`DHCP_MAX`]. The gateway's address may lie within and is never given.
    pub fn dhcp_range(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        match (self.dhcp, self.mode) {
            (Some(Dhcp::Range(first, last)), _) => Some((first, last)),
            (None, Mode::Nat) => {
                let (first, last) = hosts(self.subnet?);
                let after = |ip: Ipv4Addr| u32::from(ip).saturating_add(1).into();
                let before = |ip: Ipv4Addr| u32::from(ip).saturating_sub(1).into();
                let (first, last) = match self.gateway4() {
                    Some(gateway) if gateway == first => (after(first), last),
                    Some(gateway) if gateway == last => (first, before(last)),
                    _ => (first, last),
                };
                let most = u32::from(first).saturating_add(DHCP_MAX - 1);
                Some((first, last.min(most.into())))
            }
            _ => None,
        }
    }

    /// Whether the switch's station answers DNS: `dns=`, or else yes for `nat` and no for the rest.
    pub fn dns_on(&self) -> bool {
        self.dns.unwrap_or(self.mode == Mode::Nat)
    }

    /// Whether names of the outside are asked for: an internal network knows its own only.
    pub fn dns_forwards(&self) -> bool {
        self.dns_on() && self.mode != Mode::Internal
    }

    /// The name servers that guests are told: the switch's own station if it answers, or else `dns-servers=`.
    pub fn dns_of_guests(&self) -> Vec<IpAddr> {
        match self.dns_on() {
            true => {
                let (v4, v6) = (self.gateway4().map(IpAddr::V4), self.gateway6().map(IpAddr::V6));
                v4.into_iter().chain(v6).collect()
            }
            false => self.dns_servers.clone(),
        }
    }

    /// Whether guests configure their IPv6 addresses themselves: `subnet6=` is a /64 (RFC 4862, 5.5.3).
    pub fn slaac(&self) -> bool {
        self.subnet6.is_some_and(|subnet| subnet.prefix() == 64)
    }

    /// The subnets of the network, of both families.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let (v4, v6) = (self.subnet.map(IpNetwork::V4), self.subnet6.map(IpNetwork::V6));
        v4.into_iter().chain(v6)
    }

    /// What this network takes of the host for itself; no other network or port may have it.
    pub fn claims(&self) -> Vec<Claim> {
        let names = self.host_interface().into_iter().chain(self.uplink_interface());
        names.map(|name| Claim::Interface(name.to_owned())).collect()
    }

    /// Why `self` and `other` cannot be on one host together, if they cannot: both take the same interface, or the
    /// host's routing table would have two routes for the same addresses. Networks that translate by themselves, and
    /// internal ones, may have the same subnet as any other.
    pub fn conflicts(&self, other: &Self) -> Option<String> {
        let theirs = other.claims();
        if let Some(claim) = self.claims().into_iter().find(|claim| theirs.contains(claim)) {
            return Some(format!("{claim} is network {}'s already: take another", other.name));
        }
        if !self.uses_host_routes() || !other.uses_host_routes() {
            return None;
        }
        self.subnets().find_map(|ours| {
            let theirs = other.subnets().find(|theirs| overlap(ours, *theirs))?;
            Some(format!(
                "its subnet {ours} overlaps {theirs} of network {}, and the host routes both: take another subnet",
                other.name
            ))
        })
    }

    /// Takes back what was said as it would be without being said, so that equal networks are equal.
    pub(super) fn forget_defaults(&mut self) {
        // In this order: the default of `dhcp=` depends on the gateway, and whether there is a gateway on both others.
        forget(self, |spec| spec.dhcp = None, Self::dhcp_range);
        forget(self, |spec| spec.dns = None, Self::dns_on);
        forget(self, |spec| spec.gateway = None, |spec| (spec.gateway4(), spec.dhcp_range()));
        forget(self, |spec| spec.ip_forward = None, Self::may_forward);
    }

    /// `network NAME`, for messages.
    pub(in crate::model) fn what(&self) -> String {
        format!("network {}", self.name)
    }

    /// Refuses an IPv4 address that no guest of this network can have: not in the subnet, or somebody else's.
    pub(in crate::model) fn check_guest4(&self, ip: Ipv4Addr) -> Result<(), ModelError> {
        let error = |why: String| Err(ModelError::new(format!("{ip} {why}")));
        if self.gateway4() == Some(ip) {
            return error(format!("is the gateway of {}", self.what()));
        }
        let Some(subnet) = self.subnet else { return Ok(()) };
        if !subnet.contains(ip) {
            return error(format!("is not in {subnet}, the subnet of {}", self.what()));
        }
        if ip == subnet.network() || ip == subnet.broadcast() {
            return error(format!("is the first or last address of {subnet}, which no host has"));
        }
        Ok(())
    }

    /// The same for IPv6. A link-local address is every guest's own affair.
    pub(in crate::model) fn check_guest6(&self, ip: Ipv6Addr) -> Result<(), ModelError> {
        let error = |why: String| Err(ModelError::new(format!("{ip} {why}")));
        if self.gateway6() == Some(ip) {
            return error(format!("is the gateway of {}", self.what()));
        }
        match self.subnet6 {
            _ if ip.is_unicast_link_local() => Ok(()),
            Some(subnet) if !subnet.contains(ip) => {
                error(format!("is not in {subnet}, the subnet6 of {}", self.what()))
            }
            Some(subnet) if ip == subnet.network() => {
                error(format!("is the first address of {subnet}, which is every router's"))
            }
            None if self.mode == Mode::Nat => {
                error(format!("needs a subnet6=, which {} has not", self.what()))
            }
            _ => Ok(()),
        }
    }

    /// `network NAME is a bridge` and so on, for messages.
    pub fn described(&self) -> String {
        let kind = match self.mode {
            Mode::Bridge => "a bridge",
            Mode::Routed => "a routed network",
            Mode::Nat => "a nat network",
            Mode::Internal => "an internal network",
        };
        format!("network {} is {kind}", self.name)
    }
}

fn forget<T: PartialEq>(
    spec: &mut NetworkSpec,
    clear: impl Fn(&mut NetworkSpec),
    holds: impl Fn(&NetworkSpec) -> T,
) {
    let mut without = spec.clone();
    clear(&mut without);
    if holds(&without) == holds(spec) {
        *spec = without;
    }
}
