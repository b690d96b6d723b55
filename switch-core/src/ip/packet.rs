//! What the IP and transport headers of a frame say.
//!
//! [`Packet`] is read once from a head or a whole frame and is a value of its own: nothing about it can fail
//! afterwards, and it stays true while [`super::rewrite`] changes the bytes, because that keeps it up to date.
//!
//! What is checked is what a router checks (RFC 1812, 5.2.2; RFC 8200): the version, that the header lengths
//! and the packet's length fit the frame, and the IPv4 header checksum. A frame may be longer than its packet
//! (Ethernet padding), never shorter; nothing behind the packet's end is read. A transport header is not
//! validated: where it is not wholly in the bytes at hand it is [`Transport::Beyond`], and a router does not care.
//!
//! IPv6 extension headers are followed as far as the head goes, and at most [`EXTENSIONS_MAX`] of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use crate::drop::DropReason;
use crate::head::{ETHERNET_LEN, Head, TAG_LEN, TPID_CVLAN};
use crate::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, TCP_LEN, UDP_LEN, be16};

/// IPv6 extension headers that are followed, at most.
pub const EXTENSIONS_MAX: usize = 8;
/// Bytes of an ICMP header up to where an error's quote begins.
pub(super) const ICMP_LEN: usize = 8;

/// Why there is no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotParsed {
    /// The EtherType is neither IPv4 nor IPv6.
    #[error("not an IP packet")]
    NotIp,
    /// The version, a length or the header checksum is wrong.
    #[error("a malformed IP header")]
    Malformed,
}

impl From<NotParsed> for DropReason {
    fn from(why: NotParsed) -> Self {
        match why {
            NotParsed::NotIp => Self::NotRouted,
            NotParsed::Malformed => Self::BadIp,
        }
    }
}

/// The addresses of a packet, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Where it is from.
        source: Ipv4Addr,
        /// Where it goes.
        destination: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Where it is from.
        source: Ipv6Addr,
        /// Where it goes.
        destination: Ipv6Addr,
    },
}

/// TCP's flags, as in the header's byte 13.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.0 & 4 != 0
    }

    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.0 & 16 != 0
    }
}

/// What is behind the IP headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP. In a quote, `flags` may be zero because they were cut off.
    Tcp {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
        /// The flags.
        flags: TcpFlags,
    },
    /// UDP.
    Udp {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
    },
    /// ICMP over IPv4, or ICMPv6 over IPv6.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// The identifier of queries and replies; without meaning in others ([`Packet::icmp_id`] knows).
        id: u16,
    },
    /// Something else, or a fragment that is not the first.
    Other,
    /// A protocol whose header is not wholly within the bytes at hand.
    Beyond,
}

const OPTIONS: u8 = 1;
const DONT_FRAGMENT: u8 = 2;
const MORE_FRAGMENTS: u8 = 4;
/// There is a routing header with segments left: the pseudo-header's destination is another (RFC 8200, 8.1).
const ROUTED: u8 = 8;
/// The packet is quoted in an ICMP error, and cut short at will.
const QUOTED: u8 = 16;

/// What the headers of a frame say. See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub(super) addresses: Addresses,
    pub(super) transport: Transport,
    /// Where the packet ends, from the frame's first byte.
    end: u32,
    fragment_id: u32,
    pub(super) network_at: u16,
    transport_at: u16,
    /// In bytes.
    fragment_offset: u16,
    protocol: u8,
    pub(super) hop_limit: u8,
    flags: u8,
}

impl Packet {
    /// The packet in a checked frame, from its head.
    ///
    /// # Errors
    /// It is not IP, or malformed.
    #[inline]
    pub fn of_head(head: &Head) -> Result<Self, NotParsed> {
        Self::parse(head.bytes(), head.link_len(), head.ethertype(), head.frame_len())
    }

    /// The packet in a whole frame, from its destination address on, with one VLAN tag or none.
    ///
    /// # Errors
    /// It is not IP, or malformed.
    pub fn of_frame(frame: &[u8]) -> Result<Self, NotParsed> {
        let (at, ethertype) = match be16(frame, 12).ok_or(NotParsed::NotIp)? {
            TPID_CVLAN => (ETHERNET_LEN + TAG_LEN, be16(frame, 12 + TAG_LEN).ok_or(NotParsed::NotIp)?),
            ethertype => (ETHERNET_LEN, ethertype),
        };
        Self::parse(frame, at, ethertype, frame.len())
    }

    /// The packet whose IP header begins at `at` of `bytes`, which are the first ones of a frame of
    /// `frame_len`.
    #[inline]
    fn parse(bytes: &[u8], at: usize, ethertype: u16, frame_len: usize) -> Result<Self, NotParsed> {
        match ethertype {
            ETHERTYPE_IPV4 => Self::v4(bytes, at, frame_len, 0).ok_or(NotParsed::Malformed),
            ETHERTYPE_IPV6 => Self::v6(bytes, at, frame_len, 0).ok_or(NotParsed::Malformed),
            _ => Err(NotParsed::NotIp),
        }
    }

    /// The packet that this one, an ICMP error, is about: the headers quoted in it, which may be cut short
    /// anywhere. `None` if this is no ICMP error or the quote has no whole IP header.
    pub fn quoted(&self, bytes: &[u8]) -> Option<Self> {
        if !self.is_icmp_error() {
            return None;
        }
        let at = usize::from(self.transport_at) + ICMP_LEN;
        let bytes = bytes.get(..(self.end as usize).min(bytes.len()))?;
        match self.addresses {
            Addresses::V4 { .. } => Self::v4(bytes, at, usize::MAX, QUOTED),
            Addresses::V6 { .. } => Self::v6(bytes, at, usize::MAX, QUOTED),
        }
    }

    #[inline]
    fn v4(bytes: &[u8], at: usize, frame_len: usize, flags: u8) -> Option<Self> {
        let ip = bytes.get(at..)?;
        let h = ip.first_chunk::<IPV4_LEN>()?;
        let header_len = usize::from(h[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([h[2], h[3]]));
        let quoted = flags & QUOTED != 0;
        let lengths = header_len >= IPV4_LEN && total >= header_len && total <= frame_len.saturating_sub(at);
        if h[0] >> 4 != 4 || !lengths || header_len > ip.len() {
            return None;
        }
        if !quoted && !sums_up(h, ip, header_len) {
            return None;
        }
        let fragment = u16::from_be_bytes([h[6], h[7]]);
        let mut flags = flags;
        flags |= if header_len > IPV4_LEN { OPTIONS } else { 0 };
        flags |= if fragment & 0x4000 != 0 { DONT_FRAGMENT } else { 0 };
        flags |= if fragment & 0x2000 != 0 { MORE_FRAGMENTS } else { 0 };
        let mut packet = Self {
            addresses: Addresses::V4 {
                source: Ipv4Addr::new(h[12], h[13], h[14], h[15]),
                destination: Ipv4Addr::new(h[16], h[17], h[18], h[19]),
            },
            transport: Transport::Other,
            end: (at + total) as u32,
            fragment_id: u32::from(u16::from_be_bytes([h[4], h[5]])),
            network_at: at as u16,
            transport_at: (at + header_len) as u16,
            fragment_offset: (fragment & 0x1fff) << 3,
            protocol: h[9],
            hop_limit: h[8],
            flags,
        };
        packet.transport = packet.find_transport(bytes);
        Some(packet)
    }

    #[inline]
    fn v6(bytes: &[u8], at: usize, frame_len: usize, flags: u8) -> Option<Self> {
        let ip = bytes.get(at..)?;
        let h = ip.first_chunk::<IPV6_LEN>()?;
        let total = IPV6_LEN + usize::from(u16::from_be_bytes([h[4], h[5]]));
        if h[0] >> 4 != 6 || total > frame_len.saturating_sub(at) {
            return None;
        }
        let address =
            |at: usize| -> Option<Ipv6Addr> { Some(Ipv6Addr::from(*h.get(at..)?.first_chunk::<16>()?)) };
        let mut packet = Self {
            addresses: Addresses::V6 { source: address(8)?, destination: address(24)? },
            transport: Transport::Other,
            end: (at + total) as u32,
            fragment_id: 0,
            network_at: at as u16,
            transport_at: (at + IPV6_LEN) as u16,
            fragment_offset: 0,
            protocol: h[6],
            hop_limit: h[7],
            flags: flags | DONT_FRAGMENT,
        };
        let plain = matches!(packet.protocol, PROTO_TCP | PROTO_UDP | PROTO_ICMPV6);
        let found = plain || packet.walk(bytes);
        packet.transport = if found { packet.find_transport(bytes) } else { Transport::Beyond };
        Some(packet)
    }

    /// Follows IPv6 extension headers. False if they go beyond the bytes at hand, the packet or the bound.
    fn walk(&mut self, bytes: &[u8]) -> bool {
        let bytes = self.within(bytes);
        let mut at = usize::from(self.transport_at);
        for _ in 0..=EXTENSIONS_MAX {
            let header = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
            let len = match (self.protocol, header) {
                // Hop-by-hop options, routing, destination options: in units of 8 bytes, the first not counted.
                (0 | 43 | 60, Some(h)) => {
                    if self.protocol == 43 && h[3] != 0 {
                        self.flags |= ROUTED;
                    }
                    (usize::from(h[1]) + 1) * 8
                }
                (44, Some(h)) => {
                    let word = u16::from_be_bytes([h[2], h[3]]);
                    self.fragment_offset = word & !7;
                    self.flags |= if word & 1 != 0 { MORE_FRAGMENTS } else { 0 };
                    self.fragment_id = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                    8
                }
                // Authentication (RFC 4302): in units of 4 bytes, the first two not counted.
                (51, Some(h)) => (usize::from(h[1]) + 2) * 4,
                (0 | 43 | 44 | 51 | 60, None) => return false,
                _ => return true,
            };
            at += len;
            if at > bytes.len() {
                return false;
            }
            // Both within a frame's first bytes.
            let next = header.map_or(59, |h| h[0]);
            self.protocol = next;
            self.transport_at = at as u16;
            if self.fragment_offset != 0 {
                return true;
            }
        }
        false
    }

    /// The bytes at hand, without what is behind the packet.
    #[inline]
    fn within<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(..self.end as usize).unwrap_or(bytes)
    }

    #[inline]
    fn find_transport(&self, bytes: &[u8]) -> Transport {
        if self.fragment_offset != 0 {
            return Transport::Other;
        }
        let v6 = self.is_v6();
        let (needed, in_quote) = match self.protocol {
            PROTO_TCP => (TCP_LEN, 4),
            PROTO_UDP => (UDP_LEN, 4),
            PROTO_ICMP if !v6 => (ICMP_LEN, ICMP_LEN),
            PROTO_ICMPV6 if v6 => (ICMP_LEN, ICMP_LEN),
            _ => return Transport::Other,
        };
        let needed = if self.flags & QUOTED != 0 { in_quote } else { needed };
        let header = match self.within(bytes).get(usize::from(self.transport_at)..) {
            Some(header) if header.len() >= needed => header,
            _ => return Transport::Beyond,
        };
        let word = |at: usize| be16(header, at).unwrap_or(0);
        match self.protocol {
            PROTO_TCP => Transport::Tcp {
                source: word(0),
                destination: word(2),
                flags: TcpFlags(header.get(13).copied().unwrap_or(0)),
            },
            PROTO_UDP => Transport::Udp { source: word(0), destination: word(2) },
            _ => {
                let [kind, code] = word(0).to_be_bytes();
                Transport::Icmp { kind, code, id: word(4) }
            }
        }
    }

    /// Both addresses.
    #[inline]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where the packet is from.
    #[inline]
    pub fn source(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { source, .. } => source.into(),
            Addresses::V6 { source, .. } => source.into(),
        }
    }

    /// Where the packet goes.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { destination, .. } => destination.into(),
            Addresses::V6 { destination, .. } => destination.into(),
        }
    }

    /// True for IPv6.
    #[inline]
    pub fn is_v6(&self) -> bool {
        matches!(self.addresses, Addresses::V6 { .. })
    }

    /// The protocol behind the IP headers, as far as they were followed.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// TTL, or hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// The ports, or what there is in their place.
    #[inline]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Bytes of the packet, IP header included, without link header and padding.
    #[inline]
    pub fn len(&self) -> usize {
        self.end as usize - usize::from(self.network_at)
    }

    /// False: a packet has a header at least.
    #[inline]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the IP header begins, from the frame's first byte.
    #[inline]
    pub fn network_at(&self) -> usize {
        usize::from(self.network_at)
    }

    /// Where what is behind the IP headers begins, as far as they were followed.
    #[inline]
    pub fn transport_at(&self) -> usize {
        usize::from(self.transport_at)
    }

    /// Where the packet ends, from the frame's first byte. In a quote: where it would have ended.
    #[inline]
    pub fn end(&self) -> usize {
        self.end as usize
    }

    /// Whether the IPv4 header has options.
    #[inline]
    pub fn has_options(&self) -> bool {
        self.flags & OPTIONS != 0
    }

    /// Whether a router must not fragment it: IPv4's DF, and always in IPv6.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags & DONT_FRAGMENT != 0
    }

    /// Whether the IPv4 bit or the IPv6 fragment header says that more fragments follow.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags & MORE_FRAGMENTS != 0
    }

    /// Where the fragment's bytes belong in the packet.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        self.fragment_offset
    }

    /// The identification, that fragments of one packet share: 16 bits in IPv4, 32 in IPv6 with a fragment
    /// header, else zero.
    #[inline]
    pub fn fragment_id(&self) -> u32 {
        self.fragment_id
    }

    /// True if this is a part of a packet.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment_offset != 0 || self.more_fragments()
    }

    /// True if this is a fragment without the transport header.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment_offset != 0
    }

    /// True if the packet is quoted in an ICMP error.
    #[inline]
    pub fn is_quote(&self) -> bool {
        self.flags & QUOTED != 0
    }

    /// Whether the destination in the IP header is part of the transport's checksum.
    #[inline]
    pub(super) fn destination_is_summed(&self) -> bool {
        self.flags & ROUTED == 0
    }

    /// The identifier of an ICMP query or its reply: echo, timestamp, information and address mask (RFC 792,
    /// RFC 950), extended echo (RFC 8335).
    #[inline]
    pub fn icmp_id(&self) -> Option<u16> {
        let Transport::Icmp { kind, id, .. } = self.transport else { return None };
        let query = match self.addresses {
            Addresses::V4 { .. } => matches!(kind, 0 | 8 | 13..=18 | 42 | 43),
            Addresses::V6 { .. } => matches!(kind, 128 | 129 | 160 | 161),
        };
        query.then_some(id)
    }

    /// Whether it is an ICMP error with a quote: destination unreachable, source quench, redirect, time
    /// exceeded, parameter problem (RFC 792); types 1 to 4 of ICMPv6 (RFC 4443), and what else is below 128.
    #[inline]
    pub fn is_icmp_error(&self) -> bool {
        let Transport::Icmp { kind, .. } = self.transport else { return false };
        match self.addresses {
            Addresses::V4 { .. } => matches!(kind, 3 | 4 | 5 | 11 | 12),
            Addresses::V6 { .. } => kind < 128,
        }
    }
}

/// Whether the IPv4 header's words add up to 0xFFFF (RFC 1071). `header` is where `ip` begins.
#[inline]
fn sums_up(header: &[u8; IPV4_LEN], ip: &[u8], header_len: usize) -> bool {
    // In the machine's byte order: 0xFFFF is the same in both. Eight bytes at a time, the carries gathered above.
    let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7, c0, c1, c2, c3] = *header;
    let word = |b: [u8; 4]| u64::from(u32::from_ne_bytes(b));
    let mut sum = word([a0, a1, a2, a3])
        + word([a4, a5, a6, a7])
        + word([b0, b1, b2, b3])
        + word([b4, b5, b6, b7])
        + word([c0, c1, c2, c3]);
    if header_len > IPV4_LEN {
        for &options in ip.get(IPV4_LEN..header_len).unwrap_or_default().as_chunks::<4>().0 {
            sum += word(options);
        }
    }
    // At most 15 words of 32 bits: below 2^36. A sum of words is never zero here, so 0xFFFF is the only right one.
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum == 0xffff
}
