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
    /// The gateway's MAC address; with [`Egress::Host`] it is the host interface's, too, with [`Egress::User`] that
    /// of the sockets' port.
    pub mac: MacAddr,
    /// Where packets leave.
    pub egress: Egress,
    /// The translation's settings: filtering, quotas, timeouts, seed. Of use with [`Egress::Uplink`] only.
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
    /// By the host's sockets: a port with [`Role::Uplink`](switch_core::mode::Role::Uplink) that makes connections of
    /// what guests send, and frames of what comes back.
    User,
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
            Egress::Host | Egress::User => None,
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
        let by_dhcp = v4.is_none() && self.subnets.iter().any(IpNetwork::is_ipv4);
        Status { by_dhcp, v4, v6 }
    }

    /// The gateway's address of a version of IP.
    pub(super) fn gateway_of(&self, v6: bool) -> Option<IpAddr> {
        self.gateway.iter().copied().find(|address| address.is_ipv6() == v6)
    }
}

/// Which addresses are inside, as workers ask for each packet.
#[derive(Debug)]
pub(super) struct Inside {
    /// Network addresses and masks.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    gateway: Vec<IpAddr>,
}

impl Inside {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut gateway = settings.gateway.clone();
        gateway.push(IpAddr::V6(link_local(settings.mac)));
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for subnet in &settings.subnets {
            match subnet {
                IpNetwork::V4(net) => v4.push((net.network().to_bits(), net.mask().to_bits())),
                IpNetwork::V6(net) => v6.push((net.network().to_bits(), net.mask().to_bits())),
            }
        }
        Self { v4, v6, gateway }
    }

    /// True if the address is the gateway's own.
    #[inline]
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway.contains(&address)
    }

    /// True if the address is of a subnet.
    #[inline]
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.iter().any(|(net, mask)| address.to_bits() & mask == *net),
            IpAddr::V6(address) => self.v6.iter().any(|(net, mask)| address.to_bits() & mask == *net),
        }
    }

    /// True if the address may be a guest's: of a subnet, but neither the gateway's nor all hosts' there.
    #[inline]
    pub(super) fn is_guest(&self, address: IpAddr) -> bool {
        let fits = match address {
            IpAddr::V4(address) => self.v4.iter().any(|(net, mask)| {
                let (bits, host) = (address.to_bits(), !mask);
                bits & mask == *net && (host <= 1 || (bits & host != 0 && bits & host != host))
            }),
            IpAddr::V6(_) => self.contains(address),
        };
        fits && is_host(address) && !self.is_gateway(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::Egress;

    #[test]
    fn guests_have_addresses_of_the_subnet_but_not_its_edges() {
        let inside = |subnets: &[&str]| {
            Inside::new(&Settings {
                subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
                gateway: vec!["10.0.0.1".parse().unwrap()],
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                egress: Egress::Host,
                napt: napt::Settings::new([1, 2]),
                ageing: Duration::from_secs(300),
                fdb_max: 10,
            })
        };
        let guest = |inside: &Inside, address: &str| inside.is_guest(address.parse().unwrap());
        // The prefix may be written with an address of its own.
        let both = inside(&["10.0.0.1/24", "fd00::1/64"]);
        for address in ["10.0.0.2", "10.0.0.254", "fd00::2", "fd00::ffff:ffff:ffff:ffff"] {
            assert!(guest(&both, address), "{address}");
        }
        for address in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2", "fd00:0:0:1::2", "fe80::2"] {
            assert!(!guest(&both, address), "{address}");
        }
        assert!(both.is_gateway("fe80::ff:fe00:1".parse().unwrap()));
        assert!(
            guest(&inside(&["10.0.0.0/31"]), "10.0.0.0") && !guest(&inside(&["10.0.0.0/31"]), "10.0.0.1")
        );
        assert!(guest(&inside(&["10.0.0.7/32"]), "10.0.0.7"));
        assert!(!guest(&inside(&[]), "10.0.0.7"));
    }
}
