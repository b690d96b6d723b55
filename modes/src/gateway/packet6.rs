//! IPv6 packets of the services that speak with their neighbours only: router advertisements and DHCPv6.
//!
//! A packet is read once and checked as a whole, lengths and checksum; what is not sound does not come out of here.
//! Extension headers are not followed: no neighbour puts one before a solicitation or a DHCPv6 message, and fragments
//! of the former are to be dropped anyway (RFC 6980, 5).

use std::net::Ipv6Addr;

use etherparse::{Icmpv6Type, PacketBuilder};
use hickory_proto::rr::Name;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Icmpv6Packet, IpProtocol, Ipv6Packet, UdpPacket};
use switch_core::MacAddr;

/// An IPv6 packet without extension headers, and the frame that brought it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    /// The frame's source.
    pub(super) mac: MacAddr,
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) hop_limit: u8,
    protocol: IpProtocol,
    payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The packet in a frame. `None` if there is none, or if it is cut short.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv6 {
            return None;
        }
        let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
        (ip.version() == 6).then(|| Self {
            mac: MacAddr(ethernet.src_addr().0),
            source: ip.src_addr(),
            destination: ip.dst_addr(),
            hop_limit: ip.hop_limit(),
            protocol: ip.next_header(),
            payload: ip.payload(),
        })
    }

    /// The bytes of an ICMPv6 message, before anything in it was checked.
    pub(super) fn icmpv6(&self) -> Option<&'a [u8]> {
        (self.protocol == IpProtocol::Icmpv6).then_some(self.payload)
    }

    /// The ICMPv6 message. `None` if it is cut short or its checksum is wrong.
    pub(super) fn checked_icmpv6(&self) -> Option<Icmpv6Packet<&'a [u8]>> {
        let message = Icmpv6Packet::new_checked(self.icmpv6()?).ok()?;
        message.verify_checksum(&self.source, &self.destination).then_some(message)
    }

    /// The destination port of a UDP datagram, before anything else in it was checked.
    pub(super) fn udp_port(&self) -> Option<u16> {
        if self.protocol != IpProtocol::Udp {
            return None;
        }
        Some(UdpPacket::new_checked(self.payload).ok()?.dst_port())
    }

    /// What a UDP datagram carries. `None` if it is cut short or its checksum is wrong or missing: UDP over IPv6 has
    /// one (RFC 8200, 8.1).
    pub(super) fn checked_udp(&self) -> Option<&'a [u8]> {
        let datagram = UdpPacket::new_checked(self.payload).ok()?;
        let sound = datagram.checksum() != 0
            && datagram.verify_checksum(&self.source.into(), &self.destination.into());
        sound.then(|| datagram.payload())
    }
}

/// Who a packet is from, and who it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    pub(super) from: (MacAddr, Ipv6Addr),
    pub(super) to: (MacAddr, Ipv6Addr),
}

impl Envelope {
    /// A frame with an ICMPv6 message between neighbours: its hop limit shows that no router passed it on.
    pub(super) fn icmpv6(&self, message: Icmpv6Type, rest: &[u8]) -> Option<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(self.from.0.0, self.to.0.0)
            .ipv6(self.from.1.octets(), self.to.1.octets(), 255)
            .icmpv6(message);
        let mut frame = Vec::with_capacity(builder.size(rest.len()));
        builder.write_to_vec(&mut frame, rest).ok()?;
        Some(frame)
    }

    /// A frame with a UDP datagram. `None` if the payload is longer than a datagram can be.
    pub(super) fn udp(&self, from: u16, to: u16, payload: &[u8]) -> Option<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(self.from.0.0, self.to.0.0)
            .ipv6(self.from.1.octets(), self.to.1.octets(), 64)
            .udp(from, to);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write_to_vec(&mut frame, payload).ok()?;
        Some(frame)
    }
}

/// A domain name as RFC 1035 (3.1) writes it, without compression: both services' lists of domains forbid that (RFC
/// 8106, 5.2; RFC 8415, 10).
pub(super) fn domain(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 1);
    for label in name.iter() {
        // A `Name` has no label above 63 bytes.
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}
