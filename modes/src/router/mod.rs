//! What the modes that route share: who the neighbours are, how they are asked for, and what is said when a packet
//! cannot go on.
//!
//! - [`Neighbors`]: the table from next hops to MAC addresses and ports. Workers read it through a [`Cache`] of
//!   their own and are in nobody's way; the slow path writes it.
//! - [`Resolver`]: the slow path's side: asks by ARP and ND, listens to what neighbours say, keeps the few frames
//!   that wait for an answer.
//! - [`Errors`]: ICMP errors, no more than there should be.
//! - [`Link`]: where an address is meant: neighbours are those of a link.

mod cache;
mod errors;
mod neighbors;
mod resolver;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};

use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::arp::Arp;
use switch_core::ip::nd::Neighbor;

pub use cache::Cache;
pub use errors::{DUMMY_V4, Errors};
pub use neighbors::{Learned, Limits, Neighbors};
pub use resolver::{Ask, Asker, FRAMES_EACH, Resolver, Sent, TRIES, Waiting};

/// Where neighbours are found. The same address can be two stations on two links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// Behind one port, that is a link of its own.
    Port(PortId),
    /// A segment that several ports share; the number is the mode's.
    Shared(u8),
}

/// A neighbour's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its MAC address.
    pub mac: MacAddr,
    /// The port that it is behind.
    pub port: PortId,
}

/// What a neighbour said about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// By ARP.
    Arp(Arp),
    /// By ND.
    Nd(Neighbor),
}

impl Heard {
    /// Reads an untagged frame; `None` if it is neither valid ARP nor a valid solicitation or advertisement.
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        Arp::of_frame(frame).map(Self::Arp).or_else(|| Neighbor::of_frame(frame).map(Self::Nd))
    }

    /// The address that the message is about: the one asked for, or the one that the answer gives.
    pub fn target(&self) -> IpAddr {
        match self {
            Self::Arp(arp) => arp.target.into(),
            Self::Nd(neighbor) => neighbor.target.into(),
        }
    }
}

/// The link-local address that a MAC address makes (RFC 4291, appendix A; RFC 4862, 5.3).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
