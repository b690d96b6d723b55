//! Headers of frames into the network: Ethernet, IP, and what a transport's checksum begins with.
//!
//! Packets are never fragmented on their way: IPv4's DF is set, and the identification is free then (RFC 6864).

use std::net::Ipv4Addr;

use switch_core::MacAddr;
use switch_core::checksum::Sum;
use switch_core::ip::{Addresses, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Bytes of the longest headers up to the transport's.
pub(crate) const NETWORK_MAX: usize = 14 + 40;

const HOP_LIMIT: u8 = 64;

/// Where a frame goes and what it claims to be from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// The guest's MAC address.
    pub(crate) to: MacAddr,
    /// The router's.
    pub(crate) from: MacAddr,
    /// From the outside's address to the guest's.
    pub(crate) addresses: Addresses,
    /// The IP protocol.
    pub(crate) protocol: u8,
}

impl Way {
    /// Bytes of the headers in front of the transport's.
    #[inline]
    pub(crate) fn network_len(&self) -> usize {
        match self.addresses {
            Addresses::V4 { .. } => 14 + 20,
            Addresses::V6 { .. } => 14 + 40,
        }
    }

    /// Writes Ethernet and IP headers of a packet with `len` bytes behind the IP header; how many bytes they are.
    #[inline]
    pub(crate) fn write(&self, to: &mut [u8; NETWORK_MAX], len: usize) -> usize {
        self.write_with(to, len, HOP_LIMIT, false)
    }

    /// The same, of a packet that may be fragmented, perhaps.
    #[inline]
    pub(crate) fn write_with(
        &self,
        to: &mut [u8; NETWORK_MAX],
        len: usize,
        hop_limit: u8,
        may_fragment: bool,
    ) -> usize {
        to[..6].copy_from_slice(&self.to.0);
        to[6..12].copy_from_slice(&self.from.0);
        match self.addresses {
            Addresses::V4 { source, destination } => {
                to[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
                let ip = v4(source, destination, self.protocol, (len + 20) as u16, hop_limit, may_fragment);
                to[14..34].copy_from_slice(&ip);
                34
            }
            Addresses::V6 { source, destination } => {
                to[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
                to[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
                to[18..20].copy_from_slice(&(len as u16).to_be_bytes());
                to[20..22].copy_from_slice(&[self.protocol, hop_limit]);
                to[22..38].copy_from_slice(&source.octets());
                to[38..54].copy_from_slice(&destination.octets());
                54
            }
        }
    }

    /// The sum of the pseudo-header of a packet with `len` bytes behind the IP header.
    #[inline]
    pub(crate) fn pseudo(&self, len: usize) -> Sum {
        pseudo(self.addresses, self.protocol, len)
    }
}

/// The sum of a pseudo-header, with `len` bytes behind the IP header.
#[inline]
pub(crate) fn pseudo(addresses: Addresses, protocol: u8, len: usize) -> Sum {
    match addresses {
        Addresses::V4 { source, destination } => {
            Sum::pseudo_v4(source.octets(), destination.octets(), protocol, len as u16)
        }
        Addresses::V6 { source, destination } => {
            Sum::pseudo_v6(source.octets(), destination.octets(), protocol, len as u32)
        }
    }
}

#[inline]
fn v4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    total: u16,
    hop_limit: u8,
    may_fragment: bool,
) -> [u8; 20] {
    let [t0, t1] = total.to_be_bytes();
    let flags = if may_fragment { 0 } else { 0x40 };
    let mut ip = [0x45, 0, t0, t1, 0, 0, flags, 0, hop_limit, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    let mut sum = Sum::new();
    sum.add(&ip);
    ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    ip
}

/// The addresses of an answer to `of`.
#[inline]
pub(crate) fn turned(of: Addresses) -> Addresses {
    match of {
        Addresses::V4 { source, destination } => Addresses::V4 { source: destination, destination: source },
        Addresses::V6 { source, destination } => Addresses::V6 { source: destination, destination: source },
    }
}

/// Both addresses, if they are of one family.
#[inline]
pub(crate) fn addresses(source: std::net::IpAddr, destination: std::net::IpAddr) -> Option<Addresses> {
    use std::net::IpAddr::{V4, V6};
    match (source, destination) {
        (V4(source), V4(destination)) => Some(Addresses::V4 { source, destination }),
        (V6(source), V6(destination)) => Some(Addresses::V6 { source, destination }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    use switch_core::ip::Packet;

    #[test]
    fn what_is_written_is_read_back() {
        let v4 =
            Addresses::V4 { source: Ipv4Addr::new(192, 0, 2, 1), destination: Ipv4Addr::new(10, 0, 0, 2) };
        let v6 = Addresses::V6 {
            source: Ipv6Addr::LOCALHOST,
            destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
        };
        for addresses in [v4, v6, turned(v4)] {
            let way = Way { to: MacAddr([2; 6]), from: MacAddr([4; 6]), addresses, protocol: 17 };
            let mut headers = [0; NETWORK_MAX];
            let n = way.write(&mut headers, 8);
            assert_eq!(n, way.network_len());
            let mut frame = headers[..n].to_vec();
            frame.extend([0, 1, 0, 2, 0, 8, 0, 0]);
            let packet = Packet::of_frame(&frame).unwrap();
            assert_eq!((packet.addresses(), packet.protocol(), packet.end()), (addresses, 17, frame.len()));
        }
    }
}
