//! Which destinations guests may reach: a pure look-up, asked once for each flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, of either family. The port is zero.
    Echo,
}

/// The outbound filter.
#[derive(Clone, Debug, Default)]
pub struct Policy {}

/// The address of clouds' metadata services.
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

impl Policy {
    /// Whether a flow to `destination`, as the guest names it, may begin. Closed are the loopback addresses, those of
    /// clouds' metadata services, and what is no single host's.
    pub fn permits(&self, protocol: Protocol, destination: SocketAddr) -> bool {
        let _ = protocol;
        match destination.ip() {
            IpAddr::V4(ip) => {
                ip != METADATA_V4
                    && !ip.is_loopback()
                    && !ip.is_unspecified()
                    && !ip.is_multicast()
                    && !ip.is_broadcast()
            }
            IpAddr::V6(ip) => {
                let embedded = ip.to_ipv4_mapped().is_some();
                ip != METADATA_V6
                    && !embedded
                    && !ip.is_loopback()
                    && !ip.is_unspecified()
                    && !ip.is_multicast()
                    && !ip.is_unicast_link_local()
            }
        }
    }
}
