//! Neighbours: which MAC address an IP address is at.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};
use switch_core::MacAddr;

use super::Netlink;

/// Whether an entry is true, and how the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) enum Knowledge {
    /// Somebody configured it.
    Permanent,
    /// It answered a moment ago.
    Reachable,
    /// It answered once; the kernel asks again when it is used.
    Stale,
    /// It is being asked.
    Asking,
    /// It did not answer.
    Failed,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Neighbour {
    pub(in crate::host) address: IpAddr,
    /// Six octets; `None` while it is not known.
    pub(in crate::host) mac: Option<[u8; 6]>,
    pub(in crate::host) knowledge: Knowledge,
}

impl Neighbour {
    fn parse(message: &NeighbourMessage) -> Option<Self> {
        let knowledge = match message.header.state {
            NeighbourState::Permanent => Knowledge::Permanent,
            NeighbourState::Reachable => Knowledge::Reachable,
            NeighbourState::Stale | NeighbourState::Delay => Knowledge::Stale,
            NeighbourState::Probe | NeighbourState::Incomplete => Knowledge::Asking,
            NeighbourState::Failed => Knowledge::Failed,
            _ => return None,
        };
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
                NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => {
                    mac = MacAddr::from_slice(bytes).map(|mac| mac.0);
                }
                _ => {}
            }
        }
        Some(Self { address: address?, mac, knowledge })
    }
}

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::from(address);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

impl Netlink {
    /// The neighbours on an interface. Those that the kernel made up itself (multicast, loopback) are left out.
    pub(in crate::host) async fn neighbours(&self, index: u32) -> io::Result<Vec<Neighbour>> {
        let list = self.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())).await?;
        Ok(list
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(m)
                    if m.header.ifindex == index
                        && matches!(m.header.family, AddressFamily::Inet | AddressFamily::Inet6)
                        && !m.header.flags.contains(NeighbourFlags::Proxy) =>
                {
                    Neighbour::parse(m)
                }
                _ => None,
            })
            .collect())
    }

    /// Makes an entry, or changes it. One that is not permanent is asked again when it is used.
    pub(in crate::host) async fn add_neighbour(&self, index: u32, neighbour: &Neighbour) -> io::Result<()> {
        let Some(mac) = neighbour.mac else { return Ok(()) };
        let mut message = message(index, neighbour.address);
        message.header.state = match neighbour.knowledge {
            Knowledge::Permanent => NeighbourState::Permanent,
            _ => NeighbourState::Stale,
        };
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Removes an entry.
    pub(in crate::host) async fn delete_neighbour(&self, index: u32, address: IpAddr) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelNeighbour(message(index, address)), 0).await
    }

    /// Has the kernel ask for a neighbour: where an address is known, whether it still holds.
    pub(in crate::host) async fn ask_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        known: Option<[u8; 6]>,
    ) -> io::Result<()> {
        let mut message = message(index, address);
        match known {
            Some(mac) => {
                message.header.state = NeighbourState::Probe;
                message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            }
            None => message.header.flags = NeighbourFlags::Use,
        }
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }
}
