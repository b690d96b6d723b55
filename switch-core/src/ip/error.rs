//! ICMP errors about a frame (RFC 792, RFC 1812, RFC 4443): what they say, and when there is none.
//!
//! No error is sent about (RFC 1122, 3.2.2; RFC 1812, 4.3.2.7; RFC 4443, 2.4 (e)): an ICMP error or a redirect,
//! nor an ICMP message of unknown meaning; a fragment that is not the first; a packet to a multicast or
//! broadcast address, of the link or of IP (but for ICMPv6 "packet too big" to a multicast); one from an
//! address that is no single host's; what is no IP, or malformed. A subnet's broadcast address is its owner's
//! knowledge: the caller asks before.
//!
//! The quote begins at the IP header and is as long as it may be: the error has at most 576 bytes of IPv4
//! (RFC 1812, 4.3.2.3), 1,280 of IPv6 (RFC 4443, 2.4 (c)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{Packet, Transport};
use super::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMP, PROTO_ICMPV6, ethernet};
use crate::checksum::Sum;
use crate::headers::{IPV4_LEN, IPV6_LEN};
use crate::ids::MacAddr;

const IPV4_ERROR_MAX: usize = 576;
const IPV6_ERROR_MAX: usize = 1280;
const ICMP_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The hop limit was used up.
    TimeExceeded,
    /// Fragments of the packet did not come in time; said about the first one.
    ReassemblyTimeExceeded,
    /// There is no route.
    NetUnreachable,
    /// The neighbour does not answer.
    HostUnreachable,
    /// Nobody speaks the protocol. In ICMPv6, the next header is the one at fault.
    ProtocolUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// A rule forbids it.
    Prohibited,
    /// The next link's MTU is smaller, and the packet must not be fragmented.
    TooBig {
        /// Bytes of the longest IP packet that fits.
        mtu: u16,
    },
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The router's MAC address on the link that the frame came from.
    pub mac: MacAddr,
    /// An address of the router, of the packet's family.
    pub address: IpAddr,
}

/// The ICMP error about a whole frame, addressed to its sender. `None` if there must be none, or if the origin's
/// address is of the other family.
pub fn error_frame(frame: &[u8], cause: Cause, origin: Origin) -> Option<Vec<u8>> {
    let packet = Packet::of_frame(frame).ok()?;
    let to = frame.get(6..).and_then(MacAddr::from_slice).filter(|mac| mac.is_station())?;
    if !deserves(&packet, frame, cause) {
        return None;
    }
    let quote = frame.get(packet.network_at()..packet.end())?;
    match (origin.address, packet.source()) {
        (IpAddr::V4(from), IpAddr::V4(source)) => Some(v4(quote, cause, from, source, origin.mac, to)),
        (IpAddr::V6(from), IpAddr::V6(source)) => {
            Some(v6(quote, &packet, cause, from, source, origin.mac, to))
        }
        _ => None,
    }
}

/// Whether a packet is one that errors are sent about.
fn deserves(packet: &Packet, frame: &[u8], cause: Cause) -> bool {
    let too_big = packet.is_v6() && matches!(cause, Cause::TooBig { .. });
    let group_link = frame.get(..6).and_then(MacAddr::from_slice).is_none_or(MacAddr::is_group);
    let group = group_link || is_group(packet.destination());
    if packet.is_later_fragment() || !is_host(packet.source()) || (group && !too_big) {
        return false;
    }
    match packet.transport() {
        Transport::Icmp { kind, .. } if packet.is_v6() => kind >= 128 && kind != 137,
        // Echo, router discovery, timestamp, information, address mask, extended echo.
        Transport::Icmp { kind, .. } => matches!(kind, 0 | 8 | 9 | 10 | 13..=18 | 42 | 43),
        // Too short to tell, or a chain of headers too long to see its end.
        Transport::Beyond => !matches!(packet.protocol(), PROTO_ICMP | PROTO_ICMPV6 | 0 | 43 | 44 | 51 | 60),
        Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Other => true,
    }
}

/// Whether an address is that of several: multicast, and IPv4's limited broadcast.
pub fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_multicast(),
    }
}

/// Whether an address can be a single host's: not unspecified, not multicast, not loopback, not broadcast; in
/// IPv4 not in 0.0.0.0/8 nor 240.0.0.0/4 either (RFC 1812, 5.3.7).
pub fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !matches!(a.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_loopback(),
    }
}

fn v4(quote: &[u8], cause: Cause, from: Ipv4Addr, to: Ipv4Addr, mac: MacAddr, to_mac: MacAddr) -> Vec<u8> {
    let (kind, code, mtu) = match cause {
        Cause::TimeExceeded => (11, 0, 0),
        Cause::ReassemblyTimeExceeded => (11, 1, 0),
        Cause::NetUnreachable => (3, 0, 0),
        Cause::HostUnreachable => (3, 1, 0),
        Cause::ProtocolUnreachable => (3, 2, 0),
        Cause::PortUnreachable => (3, 3, 0),
        Cause::Prohibited => (3, 13, 0),
        Cause::TooBig { mtu } => (3, 4, mtu),
    };
    let quote = cut(quote, IPV4_ERROR_MAX - IPV4_LEN - ICMP_LEN);
    let total = (IPV4_LEN + ICMP_LEN + quote.len()) as u16;
    // Internetwork control, as RFC 1812 (4.3.2.5) wants it; never fragmented, so the identification is free.
    let [t0, t1] = total.to_be_bytes();
    let mut ip = [0x45, 0xc0, t0, t1, 0, 0, 0x40, 0, HOP_LIMIT, PROTO_ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let mut sum = Sum::new();
    sum.add(&ip);
    ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    let [m0, m1] = mtu.to_be_bytes();
    let mut icmp = [kind, code, 0, 0, 0, 0, m0, m1];
    let mut sum = Sum::new();
    sum.add(&icmp);
    sum.add(quote);
    icmp[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    [&ethernet(to_mac, mac, ETHERTYPE_IPV4)[..], &ip, &icmp, quote].concat()
}

fn v6(
    quote: &[u8],
    packet: &Packet,
    cause: Cause,
    from: Ipv6Addr,
    to: Ipv6Addr,
    mac: MacAddr,
    to_mac: MacAddr,
) -> Vec<u8> {
    let (kind, code, word) = match cause {
        Cause::TimeExceeded => (3, 0, 0),
        Cause::ReassemblyTimeExceeded => (3, 1, 0),
        Cause::NetUnreachable => (1, 0, 0),
        Cause::HostUnreachable => (1, 3, 0),
        // A parameter problem: an unrecognised next header, and where it stands. Without extension headers that
        // is in the IPv6 header; with them, the header before the last one begins with it, wherever it is.
        Cause::ProtocolUnreachable => (4, 1, next_header_at(quote, packet)),
        Cause::PortUnreachable => (1, 4, 0),
        Cause::Prohibited => (1, 1, 0),
        Cause::TooBig { mtu } => (2, 0, u32::from(mtu)),
    };
    let quote = cut(quote, IPV6_ERROR_MAX - IPV6_LEN - ICMP_LEN);
    let length = (ICMP_LEN + quote.len()) as u16;
    let [l0, l1] = length.to_be_bytes();
    let mut icmp = [kind, code, 0, 0, 0, 0, 0, 0];
    icmp[4..8].copy_from_slice(&word.to_be_bytes());
    let mut sum = Sum::pseudo_v6(from.octets(), to.octets(), PROTO_ICMPV6, u32::from(length));
    sum.add(&icmp);
    sum.add(quote);
    icmp[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    let ip = [0x60, 0, 0, 0, l0, l1, PROTO_ICMPV6, HOP_LIMIT];
    [&ethernet(to_mac, mac, ETHERTYPE_IPV6)[..], &ip, &from.octets(), &to.octets(), &icmp, quote].concat()
}

/// Where the next-header field is that names the packet's transport, from the IPv6 header on.
fn next_header_at(quote: &[u8], packet: &Packet) -> u32 {
    let end = packet.transport_at() - packet.network_at();
    let (mut field, mut at) = (6, IPV6_LEN);
    while at < end {
        let Some(header) = quote.get(at..).and_then(|b| b.first_chunk::<2>()) else { break };
        let kind = quote.get(field).copied().unwrap_or(59);
        field = at;
        at += match kind {
            44 => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
    }
    field as u32
}

fn cut(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(..len).unwrap_or(bytes)
}
