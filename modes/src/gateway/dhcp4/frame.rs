//! Ethernet, IPv4 and UDP around a message, and ARP probes.

use std::net::Ipv4Addr;

use dhcproto::v4::{CLIENT_PORT, SERVER_PORT};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Slice, IpNumber, Ipv4Slice, PacketBuilder,
    UdpSlice,
};
use switch_core::MacAddr;
use switch_core::checksum::Sum;

/// Bytes of an IPv4 and a UDP header without options.
pub(super) const IP_UDP_LEN: usize = 28;
/// Hops that an answer may take: its receiver is on the link.
const TTL: u8 = 64;

/// A datagram for a DHCP server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    pub(super) mac: MacAddr,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) payload: &'a [u8],
}

/// What a frame is to a DHCP server.
#[derive(Clone, Copy, Debug)]
pub(super) enum Received<'a> {
    /// Not for one.
    Other,
    /// For one, with headers that are wrong.
    Bad,
    /// For one.
    Datagram(Datagram<'a>),
}

/// Reads the headers of a frame without a VLAN tag.
pub(super) fn read(frame: &[u8]) -> Received<'_> {
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else { return Received::Other };
    if ethernet.ether_type() != EtherType::IPV4 {
        return Received::Other;
    }
    let Ok(ip) = Ipv4Slice::from_slice(ethernet.payload_slice()) else { return Received::Other };
    let (header, payload) = (ip.header(), ip.payload());
    if payload.ip_number != IpNumber::UDP || payload.fragmented || header.protocol() != IpNumber::UDP {
        return Received::Other;
    }
    let Ok(udp) = UdpSlice::from_slice(payload.payload) else { return Received::Other };
    if udp.destination_port() != SERVER_PORT {
        return Received::Other;
    }
    let mut headers = Sum::new();
    headers.add(header.slice());
    let mac = MacAddr(ethernet.source());
    if headers.fold() != 0xffff
        || !checksum_fits(header.source(), header.destination(), &udp)
        || !mac.is_station()
    {
        return Received::Bad;
    }
    let (source, destination) = (header.source_addr(), header.destination_addr());
    Received::Datagram(Datagram { mac, source, destination, payload: udp.payload() })
}

/// True if there is no checksum (RFC 768), or it is right.
fn checksum_fits(source: [u8; 4], destination: [u8; 4], udp: &UdpSlice<'_>) -> bool {
    let Ok(length) = u16::try_from(udp.slice().len()) else { return false };
    let mut sum = Sum::pseudo_v4(source, destination, IpNumber::UDP.0, length);
    sum.add(udp.slice());
    udp.checksum() == 0 || sum.fold() == 0xffff
}

/// A frame with a message from the server to a client. `None` if the message is too long for a packet.
pub(super) fn write(from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr), message: &[u8]) -> Option<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(from.0.0, to.0.0)
        .ipv4(from.1.octets(), to.1.octets(), TTL)
        .udp(SERVER_PORT, CLIENT_PORT);
    let mut frame = Vec::with_capacity(builder.size(message.len()));
    builder.write(&mut frame, message).ok()?;
    Some(frame)
}

/// Asks who has `address` without claiming it (RFC 5227, 2.1.1).
pub(super) fn probe(mac: MacAddr, address: Ipv4Addr) -> Option<Vec<u8>> {
    let hardware = ArpHardwareId::ETHERNET;
    let unknown = [0; 6];
    let nobody = Ipv4Addr::UNSPECIFIED.octets();
    let packet = ArpPacket::new(
        hardware,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac.0,
        &nobody,
        &unknown,
        &address.octets(),
    );
    let builder = PacketBuilder::ethernet2(mac.0, MacAddr::BROADCAST.0).arp(packet.ok()?);
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).ok()?;
    Some(frame)
}
