//! ARP for IPv4 over Ethernet (RFC 826), as values and as frames.

use std::net::Ipv4Addr;

use super::{ETHERTYPE_ARP, ethernet};
use crate::head::ETHERNET_LEN;
use crate::ids::MacAddr;

/// Bytes of an ARP packet for IPv4 over Ethernet.
const ARP_LEN: usize = 28;

/// A question or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target's address?
    Request,
    /// The sender has it.
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// What it is.
    pub operation: Operation,
    /// Who sends it.
    pub sender_mac: MacAddr,
    /// Its address; unspecified in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// Whom it is for; zero in a request.
    pub target_mac: MacAddr,
    /// The address in question; in a reply, of the one who asked.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads an untagged frame. `None` if it is no ARP for IPv4 over Ethernet, if the sender's MAC address is
    /// no station's, or if its IP address cannot be one host's (unspecified is right).
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let payload = frame.get(ETHERNET_LEN..)?;
        (frame.get(12..14)? == ETHERTYPE_ARP.to_be_bytes()).then(|| Self::of_payload(payload))?
    }

    /// Reads what is behind the link header; else as [`Arp::of_frame`].
    pub fn of_payload(payload: &[u8]) -> Option<Self> {
        let p = payload.first_chunk::<ARP_LEN>()?;
        if p[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let operation = match [p[6], p[7]] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        let arp = Self {
            operation,
            sender_mac: MacAddr::from_slice(&p[8..])?,
            sender: Ipv4Addr::new(p[14], p[15], p[16], p[17]),
            target_mac: MacAddr::from_slice(&p[18..])?,
            target: Ipv4Addr::new(p[24], p[25], p[26], p[27]),
        };
        let sound =
            arp.sender_mac.is_station() && (arp.is_probe() || super::error::is_host(arp.sender.into()));
        sound.then_some(arp)
    }

    /// A request by `sender` for `target`.
    pub fn request(sender_mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self { operation: Operation::Request, sender_mac, sender, target_mac: MacAddr::default(), target }
    }

    /// What `sender_mac` announces of itself: that it has `address` (RFC 5227, 2.3).
    pub fn announcement(sender_mac: MacAddr, address: Ipv4Addr) -> Self {
        Self::request(sender_mac, address, address)
    }

    /// The answer to a request: `mac` has what was asked for.
    pub fn reply(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// Whether the sender has no address yet.
    pub fn is_probe(&self) -> bool {
        self.sender.is_unspecified()
    }

    /// Whether the sender speaks of itself only.
    pub fn is_announcement(&self) -> bool {
        self.sender == self.target
    }

    /// The frame, to the station `to`.
    pub fn to_frame(&self, to: MacAddr) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET_LEN + ARP_LEN);
        frame.extend_from_slice(&ethernet(to, self.sender_mac, ETHERTYPE_ARP));
        frame.extend_from_slice(&[
            0,
            1,
            8,
            0,
            6,
            4,
            0,
            if self.operation == Operation::Request { 1 } else { 2 },
        ]);
        frame.extend_from_slice(&self.sender_mac.0);
        frame.extend_from_slice(&self.sender.octets());
        frame.extend_from_slice(&self.target_mac.0);
        frame.extend_from_slice(&self.target.octets());
        frame
    }
}
