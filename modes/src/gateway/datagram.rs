//! UDP datagrams in whole frames, IPv4 and IPv6: read once, checked as a whole; and the answer to one.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket,
};
use switch_core::MacAddr;

/// Hop limit of what the gateway sends.
const HOP_LIMIT: u8 = 64;

/// A datagram and the frame that brought it. Lengths and checksums are right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    pub(super) mac: MacAddr,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// The datagram in a frame. `None` if there is none, if it is a fragment, or if it is not sound.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let mac = MacAddr(ethernet.src_addr().0);
        let (source, destination, payload) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
                let whole = !ip.more_frags() && ip.frag_offset() == 0;
                if ip.version() != 4 || !ip.verify_checksum() || !whole || ip.next_header() != IpProtocol::Udp
                {
                    return None;
                }
                (IpAddress::from(ip.src_addr()), IpAddress::from(ip.dst_addr()), ip.payload())
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
                if ip.version() != 6 || ip.next_header() != IpProtocol::Udp {
                    return None;
                }
                (IpAddress::from(ip.src_addr()), IpAddress::from(ip.dst_addr()), ip.payload())
            }
            _ => return None,
        };
        let udp = UdpPacket::new_checked(payload).ok()?;
        // UDP over IPv6 has a checksum (RFC 8200, 8.1).
        let missing = udp.checksum() == 0 && ethernet.ethertype() == EthernetProtocol::Ipv6;
        if missing || !udp.verify_checksum(&source, &destination) {
            return None;
        }
        Some(Self {
            mac,
            source: SocketAddr::new(source.into(), udp.src_port()),
            destination: SocketAddr::new(destination.into(), udp.dst_port()),
            payload: udp.payload(),
        })
    }
}

/// A frame with a datagram. `None` if the addresses are of two families, or the payload is longer than a datagram.
pub(super) fn build(
    macs: (MacAddr, MacAddr),
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), HOP_LIMIT),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), HOP_LIMIT),
        _ => return None,
    };
    let builder = ip.udp(from.port(), to.port());
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write_to_vec(&mut frame, payload).ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: (MacAddr, MacAddr) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));

    fn pairs() -> [(SocketAddr, SocketAddr); 2] {
        [
            ("10.0.0.1:53".parse().unwrap(), "10.0.0.2:4000".parse().unwrap()),
            ("[fd00::1]:53".parse().unwrap(), "[fd00::2]:4000".parse().unwrap()),
        ]
    }

    #[test]
    fn what_is_built_is_read() {
        for (from, to) in pairs() {
            let frame = build(MACS, from, to, b"what is built").unwrap();
            let read = Datagram::read(&frame).unwrap();
            assert_eq!((read.mac, read.source, read.destination), (MACS.0, from, to));
            assert_eq!(read.payload, b"what is built");
        }
    }

    #[test]
    fn a_flipped_bit_or_a_missing_byte_is_no_datagram() {
        for (from, to) in pairs() {
            let frame = build(MACS, from, to, b"what is built").unwrap();
            for cut in 0..frame.len() {
                assert!(Datagram::read(&frame[..cut]).is_none(), "{cut} bytes");
            }
            let payload = frame.len() - 13..frame.len();
            for i in payload {
                let mut flipped = frame.clone();
                flipped[i] ^= 0x10;
                assert!(Datagram::read(&flipped).is_none(), "byte {i}");
            }
        }
    }

    #[test]
    fn families_do_not_mix() {
        let [(four, _), (_, six)] = pairs();
        assert!(build(MACS, four, six, b"").is_none());
    }
}
