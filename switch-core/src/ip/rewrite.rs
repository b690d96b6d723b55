//! Changes of headers in place, on a head or on a whole frame, with every checksum kept right.
//!
//! Checksums are updated, not computed anew (RFC 1624, equation 3), so a tail is never needed and a packet that
//! arrived damaged stays damaged: its receiver finds out. Three kinds of transport checksum are told apart:
//! - **complete**: the field is the complement of the sum, over the pseudo-header too (not in ICMP over IPv4);
//! - **partial** ([`Checksum::Partial`] at that very field): the field is the sum of the pseudo-header, not its
//!   complement; addresses change it, ports do not, because whoever completes it sums them;
//! - **none**: zero in UDP (RFC 768; over IPv6, RFC 6935), which stays zero.
//!
//! Lengths are not touched, so super-frames are like others: the length in their pseudo-header stays what it was.
//! A fragment that is not the first has no transport header: its addresses are changed, and no port. In a
//! first fragment the checksum is the whole packet's, and its update is right without the rest.
//!
//! A change either is made wholly or not at all. Checksums of other protocols that have the pseudo-header in
//! them (DCCP, UDP-Lite) are not known here, nor is anything that a protocol says of addresses in its payload.

use std::net::IpAddr;

use super::packet::{Addresses, Packet, Transport};
use crate::checksum::Sum;
use crate::head::Head;
use crate::headers::{TCP_CHECKSUM, UDP_CHECKSUM, be16};
use crate::ids::MacAddr;
use crate::offload::Checksum;

/// Something that has a frame's first bytes, and knows in what state its transport checksum is.
pub trait FrameMut {
    /// The bytes, from the destination MAC address on, and the checksum's state.
    fn parts(&mut self) -> (&mut [u8], Checksum);
}

impl FrameMut for Head {
    #[inline]
    fn parts(&mut self) -> (&mut [u8], Checksum) {
        let checksum = self.offload.checksum;
        (self.bytes_mut(), checksum)
    }
}

/// A whole frame, or a part of one; its checksums are complete.
impl FrameMut for [u8] {
    #[inline]
    fn parts(&mut self) -> (&mut [u8], Checksum) {
        (self, Checksum::Unknown)
    }
}

impl FrameMut for Vec<u8> {
    #[inline]
    fn parts(&mut self) -> (&mut [u8], Checksum) {
        (self, Checksum::Unknown)
    }
}

/// Sets both MAC addresses. Nothing happens to a frame that is too short.
#[inline]
pub fn set_macs<F: FrameMut + ?Sized>(frame: &mut F, destination: MacAddr, source: MacAddr) {
    if let Some(header) = frame.parts().0.first_chunk_mut::<12>() {
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (destination.0, source.0);
        *header = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5];
    }
}

/// What a change of words does to a ones' complement sum.
#[derive(Clone, Copy, Default)]
struct Delta(u32);

impl Delta {
    /// A word is replaced. Far fewer words than 2^15 are, so nothing overflows.
    #[inline]
    fn replace(&mut self, old: u16, new: u16) {
        self.0 += u32::from(!old) + u32::from(new);
    }

    /// An even number of bytes is replaced by as many, both on even places.
    #[inline]
    fn replace_bytes(&mut self, old: &[u8], new: &[u8]) {
        for (old, new) in old.as_chunks::<2>().0.iter().zip(new.as_chunks::<2>().0) {
            self.replace(u16::from_be_bytes(*old), u16::from_be_bytes(*new));
        }
    }

    /// The sum after the change.
    #[inline]
    fn to_sum(self, sum: u16) -> u16 {
        let sum = u32::from(sum) + (self.0 & 0xffff) + (self.0 >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum after the change: RFC 1624, HC' = ~(~HC + ~m + m').
    #[inline]
    fn to_checksum(self, checksum: u16) -> u16 {
        !self.to_sum(!checksum)
    }
}

/// The ends of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// What a change needs to know of the transport header.
struct Field {
    /// Where the checksum is.
    checksum_at: usize,
    /// Addresses are part of it.
    pseudo: bool,
    /// Zero says that there is none.
    optional: bool,
}

impl Packet {
    /// One hop less. False, and nothing done, if the hop limit is zero already: such a packet has been
    /// dropped before.
    #[inline]
    pub fn decrement_hop_limit<F: FrameMut + ?Sized>(&mut self, frame: &mut F) -> bool {
        let at = usize::from(self.network_at);
        let (bytes, _) = frame.parts();
        let Some(ip) = bytes.get_mut(at..) else { return false };
        let Some(less) = self.hop_limit.checked_sub(1) else { return false };
        match self.addresses {
            Addresses::V4 { .. } => {
                let Some(h) = ip.first_chunk_mut::<20>() else { return false };
                let mut delta = Delta::default();
                delta.replace(u16::from_be_bytes([h[8], h[9]]), u16::from_be_bytes([less, h[9]]));
                let checksum = delta.to_checksum(u16::from_be_bytes([h[10], h[11]])).to_be_bytes();
                (h[8], h[10], h[11]) = (less, checksum[0], checksum[1]);
            }
            Addresses::V6 { .. } => {
                let Some(hop_limit) = ip.get_mut(7) else { return false };
                *hop_limit = less;
            }
        }
        self.hop_limit = less;
        true
    }

    /// Changes the source address, and with `port` the source port or the ICMP identifier (which is one for
    /// both ends). The port is left alone in a fragment that is not the first.
    ///
    /// False, and nothing done: the family is another, there is no port to change, or the checksum to keep
    /// right is out of reach.
    #[inline]
    pub fn set_source<F: FrameMut + ?Sized>(
        &mut self,
        frame: &mut F,
        address: IpAddr,
        port: Option<u16>,
    ) -> bool {
        self.set_end(frame, End::Source, address, port)
    }

    /// Changes the destination address, and with `port` the destination port or the ICMP identifier, as
    /// [`Packet::set_source`] does.
    #[inline]
    pub fn set_destination<F: FrameMut + ?Sized>(
        &mut self,
        frame: &mut F,
        address: IpAddr,
        port: Option<u16>,
    ) -> bool {
        self.set_end(frame, End::Destination, address, port)
    }

    /// Changes the packet that this ICMP error quotes: `edit` gets it and the frame's bytes, and changes it
    /// with the functions here; the error's own checksum follows. False, and nothing done, if there is no
    /// quote; else what `edit` says.
    pub fn edit_quote<F: FrameMut + ?Sized>(
        &self,
        frame: &mut F,
        edit: impl FnOnce(&mut Self, &mut [u8]) -> bool,
    ) -> bool {
        let (bytes, state) = frame.parts();
        let Some(mut quote) = self.quoted(bytes) else { return false };
        let checksum_at = self.transport_at() + 2;
        // All that an edit can change: the IP headers and the first twenty bytes behind them.
        let from = quote.network_at();
        let to = (quote.transport_at() + 20).min(bytes.len()).min(self.end());
        let sum = |bytes: &[u8]| {
            let mut sum = Sum::new();
            sum.add(bytes.get(from..to).unwrap_or_default());
            sum.fold()
        };
        let before = sum(bytes);
        if !edit(&mut quote, bytes) {
            return false;
        }
        if !is_partial_at(state, checksum_at) {
            let mut delta = Delta::default();
            delta.replace(before, sum(bytes));
            let checksum = be16(bytes, checksum_at).unwrap_or(0);
            put(bytes, checksum_at, &delta.to_checksum(checksum).to_be_bytes());
        }
        true
    }

    #[inline]
    fn set_end<F: FrameMut + ?Sized>(
        &mut self,
        frame: &mut F,
        end: End,
        address: IpAddr,
        port: Option<u16>,
    ) -> bool {
        let (bytes, state) = frame.parts();
        let port = if self.is_later_fragment() { None } else { port };
        let port_at = if port.is_some() { self.port_at(end) } else { None };
        if port.is_some() && port_at.is_none() {
            return false;
        }
        let Ok(field) = self.field(end) else { return false };
        // Whether the checksum is at hand was found when the packet was parsed; in a quote it may be cut off.
        let field = field.filter(|f| !self.is_quote() || f.checksum_at + 2 <= bytes.len().min(self.end()));
        let last = port_at.map_or(0, |at| at + 2).max(field.as_ref().map_or(0, |f| f.checksum_at + 2));
        if last > bytes.len() {
            return false;
        }
        let mut of_address = Delta::default();
        let network_at = usize::from(self.network_at);
        match (&mut self.addresses, address) {
            (Addresses::V4 { source, destination }, IpAddr::V4(new)) => {
                let Some(h) = bytes.get_mut(network_at..).and_then(|b| b.first_chunk_mut::<20>()) else {
                    return false;
                };
                let at = if end == End::Source { 12 } else { 16 };
                let Some(old) = h.get_mut(at..).and_then(|b| b.first_chunk_mut::<4>()) else { return false };
                of_address.replace_bytes(old, &new.octets());
                *old = new.octets();
                let checksum = of_address.to_checksum(u16::from_be_bytes([h[10], h[11]])).to_be_bytes();
                (h[10], h[11]) = (checksum[0], checksum[1]);
                *(if end == End::Source { source } else { destination }) = new;
            }
            (Addresses::V6 { source, destination }, IpAddr::V6(new)) => {
                let at = network_at + if end == End::Source { 8 } else { 24 };
                let Some(old) = bytes.get_mut(at..).and_then(|b| b.first_chunk_mut::<16>()) else {
                    return false;
                };
                of_address.replace_bytes(old, &new.octets());
                *old = new.octets();
                *(if end == End::Source { source } else { destination }) = new;
            }
            _ => return false,
        }
        let mut of_port = Delta::default();
        if let (Some(at), Some(new)) = (port_at, port) {
            of_port.replace(be16(bytes, at).unwrap_or(0), new);
            put(bytes, at, &new.to_be_bytes());
            self.note_port(end, new);
        }
        if let Some(field) = field {
            update(bytes, state, &field, of_address, of_port);
        }
        true
    }

    /// The checksum that a change of an end goes into; `None` if there is none. `Err` if there is one and it
    /// is not at hand.
    #[inline]
    fn field(&self, end: End) -> Result<Option<Field>, ()> {
        let summed = end == End::Source || self.destination_is_summed();
        let at = self.transport_at();
        let (offset, pseudo, optional) = match self.transport {
            Transport::Tcp { .. } => (TCP_CHECKSUM, summed, false),
            Transport::Udp { .. } => (UDP_CHECKSUM, summed, true),
            Transport::Icmp { .. } => (2, summed && self.is_v6(), false),
            Transport::Beyond if !self.is_quote() => return Err(()),
            Transport::Other | Transport::Beyond => return Ok(None),
        };
        Ok(Some(Field { checksum_at: at + offset, pseudo, optional }))
    }

    /// Where the port of an end is, or the ICMP identifier.
    #[inline]
    fn port_at(&self, end: End) -> Option<usize> {
        let at = self.transport_at();
        match self.transport {
            Transport::Tcp { .. } | Transport::Udp { .. } => {
                Some(at + if end == End::Source { 0 } else { 2 })
            }
            Transport::Icmp { .. } => self.icmp_id().map(|_| at + 4),
            Transport::Other | Transport::Beyond => None,
        }
    }

    #[inline]
    fn note_port(&mut self, end: End, new: u16) {
        match &mut self.transport {
            Transport::Tcp { source, destination, .. } | Transport::Udp { source, destination } => {
                *(if end == End::Source { source } else { destination }) = new;
            }
            Transport::Icmp { id, .. } => *id = new,
            Transport::Other | Transport::Beyond => {}
        }
    }
}

/// Whether a frame's partial checksum is the field at `at`.
#[inline]
fn is_partial_at(state: Checksum, at: usize) -> bool {
    match state {
        // A partial checksum elsewhere is that of an inner packet; the one here is complete then.
        Checksum::Partial { start, offset } => usize::from(start) + usize::from(offset) == at,
        Checksum::Unknown | Checksum::Valid => false,
    }
}

/// Brings a transport checksum up to date.
#[inline]
fn update(bytes: &mut [u8], state: Checksum, field: &Field, of_address: Delta, of_port: Delta) {
    let old = be16(bytes, field.checksum_at).unwrap_or(0);
    let of_address = if field.pseudo { of_address } else { Delta::default() };
    let new = if is_partial_at(state, field.checksum_at) {
        of_address.to_sum(old)
    } else if field.optional && old == 0 {
        0
    } else {
        match Delta(of_address.0 + of_port.0).to_checksum(old) {
            0 if field.optional => 0xffff,
            new => new,
        }
    };
    put(bytes, field.checksum_at, &new.to_be_bytes());
}

/// Writes `new` at `at`, if it fits.
#[inline]
fn put(bytes: &mut [u8], at: usize, new: &[u8; 2]) {
    if let Some(old) = bytes.get_mut(at..).and_then(|b| b.first_chunk_mut::<2>()) {
        *old = *new;
    }
}
