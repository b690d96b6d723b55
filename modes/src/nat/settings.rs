//! What an operator says of a network behind address translation.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use switch_core::ids::MacAddr;
use switch_core::ip::error::is_host;
use switch_core::napt;

use super::Status;
use crate::router::link_local;

/// Settings of the mode.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The guests' subnets: one of IPv4, one of IPv6, or either.
    pub subnets: Vec<IpNetwork>,
    /// The gateway's addresses in them. The link-local address of its MAC address is its own anyway.
    pub gateway: Vec<IpAddr>,
    /// The gateway's MAC address; with [`Egress::Host`] it is the host interface's, too.
    pub mac: MacAddr,
    /// Where packets leave.
    pub egress: Egress,
    /// The translation's settings: filtering, quotas, timeouts, seed. Of no use with [`Egress::Host`].
    pub napt: napt::Settings,
    /// The bridge's ageing time.
    pub ageing: Duration,
    /// Entries of the bridge's forwarding database, at most.
    pub fdb_max: usize,
}

/// Where packets leave.
#[derive(Clone, Debug)]
pub enum Egress {
    /// By the host's IP stack.
    Host,
    /// By a port of our own, translated by us.
    Uplink(Uplink),
}

/// The uplink.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Our MAC address there.
    pub mac: MacAddr,
    /// Our addresses there, with the prefixes of their links. The first of each version of IP is the one that the
    /// translator itself speaks with; the others are further ones to translate to. Without one of IPv4, a DHCP client
    /// asks for one.
    pub addresses: Vec<IpNetwork>,
    /// The next hop of IPv4. Without it, only what is on the uplink's link is reached.
    pub next_hop4: Option<IpAddr>,
    /// The next hop of IPv6; it may be link-local.
    pub next_hop6: Option<IpAddr>,
    /// Answer echo requests to our outside addresses.
    pub answer_echo: bool,
    /// Tell, after the six seconds of RFC 5382 (REQ-4), senders of unsolicited connection requests that the port is
    /// unreachable. Else nobody hears anything.
    pub answer_unsolicited: bool,
}

/// An address of ours outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of its link's prefix.
    pub prefix: u8,
    /// Where all else goes.
    pub next_hop: Option<IpAddr>,
}

impl UplinkAddress {
    /// True if an address is on the link.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        IpNetwork::new(self.address, self.prefix).is_ok_and(|net| net.contains(address))
    }

    /// Where a packet goes next.
    pub(super) fn next_hop(&self, destination: IpAddr) -> Option<IpAddr> {
        if self.is_on_link(destination) { Some(destination) } else { self.next_hop }
    }
}

impl Settings {
    /// The uplink, with [`Egress::Uplink`].
    pub(super) fn uplink(&self) -> Option<&Uplink> {
        match &self.egress {
            Egress::Uplink(uplink) => Some(uplink),
            Egress::Host => None,
        }
    }

    /// What is known from the beginning.
    pub(super) fn status(&self) -> Status {
        let Some(uplink) = self.uplink() else { return Status::default() };
        let first = |v6: bool, next_hop| {
            let net = uplink.addresses.iter().find(|net| net.is_ipv6() == v6)?;
            Some(UplinkAddress { address: net.ip(), prefix: net.prefix(), next_hop })
        };
        let (v4, v6) = (first(false, uplink.next_hop4), first(true, uplink.next_hop6));
        Status { by_dhcp: v4.is_none(), v4, v6 }
    }

    /// True if the address is the gateway's own.
    #[inline]
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway.contains(&address)
            || matches!(address, IpAddr::V6(a) if a.is_unicast_link_local() && a == link_local(self.mac))
    }

    /// True if the address is a guest's, or could be.
    #[inline]
    pub(super) fn is_inside(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(address))
    }

    /// True if a guest may be reached by this address: in the subnet, and no broadcast address of it.
    pub(super) fn is_guest(&self, address: IpAddr) -> bool {
        is_host(address)
            && !self.is_gateway(address)
            && self.subnets.iter().any(|net| {
                let edge = matches!(net, IpNetwork::V4(net) if net.prefix() < 31
                    && (IpAddr::V4(net.broadcast()) == address || IpAddr::V4(net.network()) == address));
                net.contains(address) && !edge
            })
    }

    /// The gateway's address of a version of IP.
    pub(super) fn gateway_of(&self, v6: bool) -> Option<IpAddr> {
        self.gateway.iter().copied().find(|address| address.is_ipv6() == v6)
    }
}
