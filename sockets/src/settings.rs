//! What the port is told when it is opened.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use switch_core::MacAddr;
use switch_core::napt::Filtering;

use crate::limits::Limits;
use crate::policy::Policy;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The router's address on the network: frames out come to it, frames in are from it.
    pub mac: MacAddr,
    /// The gateway's IPv4 address: ICMP errors are from it, and with `host_loopback` it means the host's loopback.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The gateway's IPv6 address, likewise.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Bytes of the longest IP packet on the network, 1,280 at least.
    pub mtu: u16,
    /// Whether the gateway's addresses mean the host's loopback. Without it they are nobody's.
    pub host_loopback: bool,
    /// Who of the outside may send to a UDP mapping.
    pub filtering: Filtering,
    /// Which destinations are open.
    pub outbound: Arc<Policy>,
    /// How much there may be of everything.
    pub limits: Limits,
}

impl Settings {
    /// The gateway's address of the family of `like`.
    #[inline]
    pub fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.gateway_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.gateway_v6.map(IpAddr::V6),
        }
    }

    /// What a guest calls an address that a socket hears from.
    #[inline]
    pub fn inside(&self, source: IpAddr) -> IpAddr {
        if self.host_loopback && source.is_loopback() {
            self.gateway(source).unwrap_or(source)
        } else {
            source
        }
    }

    /// Where a socket connects to so that it reaches what a guest calls `destination`.
    ///
    /// # Errors
    /// It is the gateway itself, and the host's loopback is not opened.
    #[inline]
    pub fn outside(&self, destination: IpAddr) -> Result<IpAddr, Closed> {
        if self.gateway(destination) != Some(destination) {
            return Ok(destination);
        }
        match (self.host_loopback, destination) {
            (false, _) => Err(Closed),
            (true, IpAddr::V4(_)) => Ok(Ipv4Addr::LOCALHOST.into()),
            (true, IpAddr::V6(_)) => Ok(Ipv6Addr::LOCALHOST.into()),
        }
    }
}

/// The destination is the host's loopback, which is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;
