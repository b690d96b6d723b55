//! IP packets on heads and whole frames: reading them, rewriting them, and what a router says about them.
//!
//! - [`packet`]: what the headers of a frame say; parsed once, then nothing about them can fail.
//! - [`rewrite`]: MAC addresses, hop limit, addresses and ports, in place, with every checksum kept right.
//! - [`error`]: ICMP errors about a frame (RFC 792, 1812, 4443), and [`limit`], how many of them.
//! - [`fragment`]: an IPv4 packet in pieces (RFC 791).
//! - [`arp`], [`nd`]: the questions and answers of neighbours (RFC 826, RFC 4861).
//!
//! The first two are for workers and need a head only; the others are for the slow path, on whole frames.
//! Nothing here panics, whatever the bytes are.

pub mod arp;
pub mod error;
pub mod fragment;
pub mod limit;
pub mod nd;
pub mod packet;
pub mod rewrite;

#[cfg(test)]
mod tests;

pub use error::{Cause, Origin, error_frame};
pub use fragment::fragments;
pub use limit::ErrorLimit;
pub use packet::{Addresses, NotParsed, Packet, TcpFlags, Transport};
pub use rewrite::{FrameMut, set_macs};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = crate::headers::ETHERTYPE_IPV4;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = crate::headers::ETHERTYPE_IPV6;
/// IP protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = crate::headers::PROTO_TCP;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = crate::headers::PROTO_UDP;
/// IP protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// Writes an Ethernet header.
fn ethernet(to: crate::MacAddr, from: crate::MacAddr, ethertype: u16) -> [u8; crate::head::ETHERNET_LEN] {
    let mut header = [0; crate::head::ETHERNET_LEN];
    header[..6].copy_from_slice(&to.0);
    header[6..12].copy_from_slice(&from.0);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}
