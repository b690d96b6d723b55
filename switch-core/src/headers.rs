//! Where the network and transport headers of a frame's head are.
//!
//! For [`crate::check`], which compares a segmentation request with what the headers say, and for
//! [`crate::segment`], which rewrites them. Everything is read from the head, nothing from what the sender
//! says about it (the virtio-net header's `hdr_len` is a hint that no back-end may trust, virtio 1.2, 5.1.6.2).
//!
//! Only what a super-frame can be is found: unfragmented IPv4 (options allowed) or IPv6 (hop-by-hop, routing
//! and destination options headers allowed) directly behind the Ethernet header and at most one 802.1Q tag,
//! then TCP or UDP. No stack segments anything else for a virtio-net device without tunnel offloads: Linux
//! clears the segmentation features of frames with two tags (`vlan_features_check`).

use crate::head::Head;
use crate::offload::GsoKind;

/// EtherType of IPv4.
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub(crate) const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub(crate) const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub(crate) const UDP_LEN: usize = 8;
/// IP protocol number of TCP.
pub(crate) const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub(crate) const PROTO_UDP: u8 = 17;
/// Where the checksum is in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;
/// Where the checksum is in a UDP header.
pub(crate) const UDP_CHECKSUM: usize = 6;

/// Extension headers that are followed, at most: RFC 8200 (4.1) knows five in front of a transport header.
const EXTENSIONS_MAX: usize = 8;

/// The network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// IPv4, not a fragment.
    V4,
    /// IPv6, not a fragment.
    V6 {
        /// There is a routing header, so that the destination in the IPv6 header need not be the one in the
        /// transport's pseudo-header (RFC 8200, 8.1).
        routed: bool,
    },
}

/// The headers of a frame. All of them are within the head, and the lengths in them agree with the frame's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Headers {
    /// What the network header is.
    pub(crate) network: Network,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub(crate) protocol: u8,
    /// Where the network header begins, from the frame's first byte.
    pub(crate) network_at: usize,
    /// Where the transport header begins.
    pub(crate) transport_at: usize,
    /// Where the transport's payload begins.
    pub(crate) payload_at: usize,
}

impl Headers {
    /// Finds the headers of a frame whose link header was recorded. `None` if they are not what the module's
    /// text says, are cut short, or disagree with the frame about its length.
    pub(crate) fn find(head: &Head) -> Option<Self> {
        let bytes = head.bytes();
        let network_at = head.link_len();
        let ip = bytes.get(network_at..)?;
        let ip_len = head.frame_len().checked_sub(network_at)?;
        let (network, protocol, ip_header_len) = match head.ethertype() {
            ETHERTYPE_IPV4 => ipv4(ip, ip_len)?,
            ETHERTYPE_IPV6 => ipv6(ip, ip_len)?,
            _ => return None,
        };
        let transport_at = network_at + ip_header_len;
        let transport = bytes.get(transport_at..)?;
        let transport_len = match protocol {
            PROTO_TCP => tcp(transport)?,
            PROTO_UDP => udp(transport, head.frame_len().checked_sub(transport_at)?)?,
            _ => return None,
        };
        Some(Self { network, protocol, network_at, transport_at, payload_at: transport_at + transport_len })
    }

    /// True if the headers are those of `kind`.
    pub(crate) fn are(&self, kind: GsoKind) -> bool {
        match kind {
            GsoKind::TcpV4 => self.protocol == PROTO_TCP && self.network == Network::V4,
            GsoKind::TcpV6 => self.protocol == PROTO_TCP && self.network != Network::V4,
            GsoKind::UdpL4 => self.protocol == PROTO_UDP,
        }
    }

    /// Where the transport checksum is, from the transport header's first byte.
    pub(crate) fn checksum_offset(&self) -> usize {
        if self.protocol == PROTO_TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }
}

/// Big-endian 16 bits at `at`.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

fn ipv4(ip: &[u8], ip_len: usize) -> Option<(Network, u8, usize)> {
    let header = ip.first_chunk::<IPV4_LEN>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // All but DF and the reserved bit: MF and the fragment's offset.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let fits = header[0] >> 4 == 4 && header_len >= IPV4_LEN && header_len <= ip.len();
    if !fits || total_len != ip_len || fragment != 0 {
        return None;
    }
    Some((Network::V4, header[9], header_len))
}

fn ipv6(ip: &[u8], ip_len: usize) -> Option<(Network, u8, usize)> {
    let header = ip.first_chunk::<IPV6_LEN>()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // A payload length of zero (RFC 2675, jumbograms) never matches: a frame is too short for one.
    if header[0] >> 4 != 6 || payload_len + IPV6_LEN != ip_len {
        return None;
    }
    let (mut next, mut at, mut routed) = (header[6], IPV6_LEN, false);
    for _ in 0..=EXTENSIONS_MAX {
        match next {
            // Hop-by-hop options, routing, destination options: a length in units of 8 bytes, the first not counted.
            0 | 43 | 60 => {
                routed |= next == 43;
                let extension = ip.get(at..)?.first_chunk::<2>()?;
                next = extension[0];
                at += (usize::from(extension[1]) + 1) * 8;
            }
            _ => return (at <= ip.len()).then_some((Network::V6 { routed }, next, at)),
        }
    }
    None
}

fn tcp(transport: &[u8]) -> Option<usize> {
    let header = transport.first_chunk::<TCP_LEN>()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    (header_len >= TCP_LEN && header_len <= transport.len()).then_some(header_len)
}

fn udp(transport: &[u8], datagram_len: usize) -> Option<usize> {
    let header = transport.first_chunk::<UDP_LEN>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (length == datagram_len).then_some(UDP_LEN)
}
