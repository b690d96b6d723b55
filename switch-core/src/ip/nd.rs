//! Neighbour solicitations and advertisements (RFC 4861, 4.3, 4.4, 7.1), as values and as frames.
//!
//! Reading applies the rules of 7.1.1 and 7.1.2: the hop limit is 255, so that the message was not forwarded;
//! the checksum is right, the code is zero, the target is no multicast address, every option has a length, and
//! what is from the unspecified address asks by the target's solicited-node group and carries no source link
//! address.

use std::net::Ipv6Addr;

use super::packet::{Packet, Transport};
use super::{Addresses, ETHERTYPE_IPV6, PROTO_ICMPV6, ethernet};
use crate::checksum::Sum;
use crate::headers::IPV6_LEN;
use crate::ids::MacAddr;

/// Bytes of a solicitation or an advertisement without options.
const MESSAGE_LEN: usize = 24;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const HOP_LIMIT: u8 = 255;

/// A message of neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Who sends it; unspecified in duplicate address detection (RFC 4862).
    pub source: Ipv6Addr,
    /// Whom it goes to.
    pub destination: Ipv6Addr,
    /// The address in question.
    pub target: Ipv6Addr,
    /// The sender's MAC address in a solicitation, the target's in an advertisement.
    pub link: Option<MacAddr>,
    /// What it is.
    pub message: Message,
}

/// A question or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who has the target's address?
    Solicitation,
    /// It is here.
    Advertisement {
        /// The sender is a router.
        router: bool,
        /// It answers a solicitation.
        solicited: bool,
        /// It replaces what was known.
        overrides: bool,
    },
}

/// The solicited-node group of an address (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The MAC address of a group (RFC 2464, 7).
pub fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// The group of all nodes on a link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

impl Neighbor {
    /// Reads an untagged frame. `None` if it is no valid solicitation or advertisement.
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let packet = Packet::of_frame(frame).ok()?;
        let Addresses::V6 { source, destination } = packet.addresses() else { return None };
        let Transport::Icmp { kind: kind @ (SOLICITATION | ADVERTISEMENT), code: 0, .. } = packet.transport()
        else {
            return None;
        };
        let message = frame.get(packet.transport_at()..packet.end())?;
        let (fixed, mut options) = message.split_at_checked(MESSAGE_LEN)?;
        let length = u32::try_from(message.len()).ok()?;
        let mut sum = Sum::pseudo_v6(source.octets(), destination.octets(), PROTO_ICMPV6, length);
        sum.add(message);
        let target = Ipv6Addr::from(*fixed.get(8..)?.first_chunk::<16>()?);
        if packet.hop_limit() != HOP_LIMIT
            || sum.fold() != 0xffff
            || packet.is_fragment()
            || target.is_multicast()
        {
            return None;
        }
        let wanted = if kind == SOLICITATION { SOURCE_LINK } else { TARGET_LINK };
        let mut link = None;
        while let Some(&option) = options.first() {
            // In units of 8 bytes; zero makes the whole message invalid.
            let len = usize::from(*options.get(1)?) * 8;
            let (body, rest) = options.split_at_checked(len).filter(|_| len > 0)?;
            if option == wanted && link.is_none() {
                link = Some(body.get(2..).and_then(MacAddr::from_slice).filter(|mac| mac.is_station())?);
            }
            options = rest;
        }
        let flags = *fixed.get(4)?;
        let message = if kind == SOLICITATION {
            Message::Solicitation
        } else {
            Message::Advertisement {
                router: flags & 0x80 != 0,
                solicited: flags & 0x40 != 0,
                overrides: flags & 0x20 != 0,
            }
        };
        let neighbor = Self { source, destination, target, link, message };
        neighbor.is_sound().then_some(neighbor)
    }

    fn is_sound(&self) -> bool {
        match self.message {
            Message::Solicitation if self.source.is_unspecified() => {
                self.destination == solicited_node(self.target) && self.link.is_none()
            }
            Message::Solicitation => !self.source.is_multicast(),
            Message::Advertisement { solicited, .. } => {
                super::error::is_host(self.source.into()) && !(solicited && self.destination.is_multicast())
            }
        }
    }

    /// Whether it is the question whether an address is free.
    pub fn is_duplicate_detection(&self) -> bool {
        self.message == Message::Solicitation && self.source.is_unspecified()
    }

    /// A solicitation by `source`, whose MAC address is `mac`, for `target`: to its group.
    pub fn solicitation(mac: MacAddr, source: Ipv6Addr, target: Ipv6Addr) -> Self {
        let link = (!source.is_unspecified()).then_some(mac);
        Self { source, destination: solicited_node(target), target, link, message: Message::Solicitation }
    }

    /// The answer to a solicitation: a router at `mac` stands for the target. `overrides` is to be false where
    /// it answers for another node (RFC 4861, 7.2.8). A question from the unspecified address is answered to all.
    pub fn reply(&self, mac: MacAddr, overrides: bool) -> Self {
        let solicited = !self.source.is_unspecified();
        Self {
            source: self.target,
            destination: if solicited { self.source } else { ALL_NODES },
            target: self.target,
            link: Some(mac),
            message: Message::Advertisement { router: true, solicited, overrides },
        }
    }

    /// An advertisement to all that nobody asked for: a router at `mac` has `address` now.
    pub fn announcement(mac: MacAddr, address: Ipv6Addr) -> Self {
        Self {
            source: address,
            destination: ALL_NODES,
            target: address,
            link: Some(mac),
            message: Message::Advertisement { router: true, solicited: false, overrides: true },
        }
    }

    /// The frame, from the station `from` to the station or group `to`.
    pub fn to_frame(&self, to: MacAddr, from: MacAddr) -> Vec<u8> {
        let (kind, flags, option) = match self.message {
            Message::Solicitation => (SOLICITATION, 0, SOURCE_LINK),
            Message::Advertisement { router, solicited, overrides } => {
                let bit = |set: bool, bit: u8| if set { bit } else { 0 };
                (ADVERTISEMENT, bit(router, 0x80) | bit(solicited, 0x40) | bit(overrides, 0x20), TARGET_LINK)
            }
        };
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend_from_slice(&self.target.octets());
        if let Some(mac) = self.link {
            message.extend_from_slice(&[option, 1]);
            message.extend_from_slice(&mac.0);
        }
        let length = message.len() as u16;
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let mut sum = Sum::pseudo_v6(source, destination, PROTO_ICMPV6, u32::from(length));
        sum.add(&message);
        message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
        let [l0, l1] = length.to_be_bytes();
        let mut frame = Vec::with_capacity(crate::head::ETHERNET_LEN + IPV6_LEN + message.len());
        frame.extend_from_slice(&ethernet(to, from, ETHERTYPE_IPV6));
        frame.extend_from_slice(&[0x60, 0, 0, 0, l0, l1, PROTO_ICMPV6, HOP_LIMIT]);
        frame.extend_from_slice(&source);
        frame.extend_from_slice(&destination);
        frame.extend_from_slice(&message);
        frame
    }
}
