//! Addresses of interfaces.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::{Netlink, may_exist};

/// How long an address is good for, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Lifetime {
    pub(in crate::host) preferred: u32,
    pub(in crate::host) valid: u32,
}

/// An address of an interface, with all that has to be the same when it is put somewhere else and back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Address {
    pub(in crate::host) address: IpAddr,
    pub(in crate::host) prefix: u8,
    /// The other end, on a point-to-point link.
    pub(in crate::host) peer: Option<IpAddr>,
    pub(in crate::host) broadcast: Option<Ipv4Addr>,
    /// IPv4: the name that old tools list it by; `None` if it is the interface's.
    pub(in crate::host) label: Option<String>,
    pub(in crate::host) scope: u8,
    /// Of the kernel's flags, those that a person or a program chose.
    pub(in crate::host) flags: u32,
    /// Of its prefix's route.
    pub(in crate::host) metric: Option<u32>,
    /// `None`: for ever.
    pub(in crate::host) lifetime: Option<Lifetime>,
}

/// Flags that a program may set, and that stay with the address.
const CHOSEN: AddressFlags = AddressFlags::Nodad
    .union(AddressFlags::Homeaddress)
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Noprefixroute)
    .union(AddressFlags::Mcautojoin);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Address {
    /// A plain one.
    pub(in crate::host) fn new(network: IpNetwork) -> Self {
        let broadcast = match network {
            IpNetwork::V4(network) if network.prefix() < 31 => Some(network.broadcast()),
            _ => None,
        };
        Self {
            address: network.ip(),
            prefix: network.prefix(),
            peer: None,
            broadcast,
            label: None,
            scope: 0,
            flags: 0,
            metric: None,
            lifetime: None,
        }
    }

    /// True if the kernel makes the route to its prefix by itself.
    pub(in crate::host) fn makes_prefix_route(&self) -> bool {
        self.flags & AddressFlags::Noprefixroute.bits() == 0
    }

    /// The prefix that the kernel's route for it leads to.
    pub(in crate::host) fn network(&self) -> Option<IpNetwork> {
        let network = IpNetwork::new(self.peer.unwrap_or(self.address), self.prefix).ok()?;
        IpNetwork::new(network.network(), self.prefix).ok()
    }

    /// True if both are the same to the kernel: it has one of a kind on an interface.
    pub(in crate::host) fn same(&self, other: &Self) -> bool {
        self.address == other.address && self.prefix == other.prefix && self.peer == other.peer
    }

    fn parse(message: &AddressMessage, interface: &str) -> Option<Self> {
        let (mut local, mut far) = (None, None);
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        let mut parsed = Self {
            address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            prefix: message.header.prefix_len,
            peer: None,
            broadcast: None,
            label: None,
            scope: message.header.scope.into(),
            flags: 0,
            metric: None,
            lifetime: None,
        };
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => far = Some(*address),
                AddressAttribute::Broadcast(address) => parsed.broadcast = Some(*address),
                AddressAttribute::Label(label) if label != interface => parsed.label = Some(label.clone()),
                AddressAttribute::Flags(all) => flags = *all,
                AddressAttribute::RoutePriority(metric) => parsed.metric = Some(*metric),
                AddressAttribute::CacheInfo(info) if info.ifa_valid != u32::MAX => {
                    parsed.lifetime = Some(Lifetime { preferred: info.ifa_preferred, valid: info.ifa_valid });
                }
                _ => {}
            }
        }
        parsed.address = local.or(far)?;
        parsed.peer = far.filter(|far| *far != parsed.address);
        parsed.flags = (flags & CHOSEN).bits();
        Some(parsed)
    }

    fn message(&self, index: u32, more: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::from(self.address);
        message.header.prefix_len = self.prefix;
        message.header.scope = AddressScope::from(self.scope);
        message.header.index = index;
        let attributes = &mut message.attributes;
        attributes.push(AddressAttribute::Local(self.address));
        attributes.push(AddressAttribute::Address(self.peer.unwrap_or(self.address)));
        attributes.extend(self.broadcast.map(AddressAttribute::Broadcast));
        attributes.extend(self.label.clone().map(AddressAttribute::Label));
        attributes.extend(self.metric.map(AddressAttribute::RoutePriority));
        let flags = AddressFlags::from_bits_retain(self.flags) | more;
        if !flags.is_empty() {
            attributes.push(AddressAttribute::Flags(flags));
        }
        if let Some(Lifetime { preferred, valid }) = self.lifetime {
            let mut info = CacheInfo::default();
            info.ifa_preferred = preferred;
            info.ifa_valid = valid;
            attributes.push(AddressAttribute::CacheInfo(info));
        }
        message
    }
}

impl Netlink {
    /// The addresses of an interface, in the kernel's order: a primary one before its secondary ones.
    pub(in crate::host) async fn addresses(&self, index: u32, name: &str) -> io::Result<Vec<Address>> {
        let list = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
        Ok(list
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(m) if m.header.index == index => Address::parse(m, name),
                _ => None,
            })
            .collect())
    }

    /// Adds an address, or finds it there. It is good at once: an IPv6 address was somebody's here before, or is
    /// the operator's choice, and waits for no duplicate address detection.
    pub(in crate::host) async fn add_address(&self, index: u32, address: &Address) -> io::Result<()> {
        let with = |flags| RouteNetlinkMessage::NewAddress(address.message(index, flags));
        if address.address.is_ipv4() {
            return may_exist(self.change(with(AddressFlags::empty()), NLM_F_CREATE | NLM_F_EXCL).await);
        }
        may_exist(self.change(with(AddressFlags::Nodad), NLM_F_CREATE | NLM_F_EXCL).await)?;
        // Now that it is there, the flag is taken off again: detection is not begun anew.
        self.change(with(AddressFlags::empty()), NLM_F_REPLACE).await
    }

    /// Removes an address.
    pub(in crate::host) async fn delete_address(&self, index: u32, address: &Address) -> io::Result<()> {
        let mut message = address.message(index, AddressFlags::empty());
        message.attributes.retain(|attribute| {
            matches!(attribute, AddressAttribute::Local(_) | AddressAttribute::Address(_))
        });
        self.change(RouteNetlinkMessage::DelAddress(message), 0).await
    }
}
