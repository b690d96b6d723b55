//! Segmentation of super-frames in software, for receivers that did not negotiate it.
//!
//! A super-frame is one set of headers and the payload of many segments. A [`Segmenter`] writes the headers of
//! each segment into a head of its own (what Linux's `tcp_gso_segment` and `__udp_gso_segment` do) and says
//! which part of the super-frame's tail follows; the datapath copies that part. The checksum of a segment is
//! left partial, with the pseudo-header's sum in its field: a receiver without checksums has it completed by
//! [`crate::checksum::complete`], and one with checksums is spared the pass over the payload.
//!
//! What changes from segment to segment: IPv4's total length, identification (counted up) and header checksum;
//! IPv6's payload length; TCP's sequence number, FIN and PSH (on the last only) and CWR (on the first only,
//! RFC 3168, 6.1.2); UDP's length. All else is as in the super-frame.

use std::ops::Range;

use crate::check::{SEGMENTS_MAX, segments};
use crate::checksum::Sum;
use crate::head::Head;
use crate::headers::{Headers, IPV4_LEN, IPV6_LEN, Network, PROTO_TCP, be16};
use crate::offload::{Checksum, Offload};
use crate::virtio_net::VnetHeader;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// How a super-frame is cut.
#[derive(Clone, Copy, Debug)]
pub struct Segmenter {
    headers: Headers,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// Payload bytes of the super-frame.
    payload: usize,
    /// Payload bytes that are in the super-frame's head.
    payload_in_head: usize,
    count: usize,
}

impl Segmenter {
    /// For a super-frame. `None` if the frame is none, or if its headers are not, or no longer, those that its
    /// offload says: a mode that rewrites a head keeps lengths and kinds of headers as they are.
    pub fn new(head: &Head) -> Option<Self> {
        let gso = head.offload.gso?;
        let headers = Headers::find(head).filter(|h| h.are(gso.kind))?;
        let payload_in_head = head.bytes().len().checked_sub(headers.payload_at)?;
        let payload = payload_in_head + head.tail_len();
        let count = segments(payload, gso.size);
        (payload > 0 && count <= SEGMENTS_MAX).then_some(Self {
            headers,
            size: usize::from(gso.size.get()),
            payload,
            payload_in_head,
            count,
        })
    }

    /// Segments that the super-frame makes: at least 1, at most [`SEGMENTS_MAX`].
    pub fn count(&self) -> usize {
        self.count
    }

    /// The longest segment, in bytes from the Ethernet header to the payload's end.
    pub fn frame_len_max(&self) -> usize {
        self.headers.payload_at + self.size.min(self.payload)
    }

    /// Writes segment `i` of `from`, the super-frame that this was made for, into `out`: its headers and what
    /// of its payload is in the head of `from`. Returns which bytes of the tail of `from` follow; they are
    /// exactly the tail of `out`.
    ///
    /// There is no segment `count()` or beyond: then, or if `from` is another frame that is too short to be
    /// it, `out` is an empty frame.
    pub fn segment(&self, i: usize, from: &Head, out: &mut Head) -> Range<usize> {
        self.write(i, from, out).unwrap_or_else(|| {
            out.begin(0, 0);
            0..0
        })
    }

    fn write(&self, i: usize, from: &Head, out: &mut Head) -> Option<Range<usize>> {
        if i >= self.count {
            return None;
        }
        let Headers { payload_at, network_at, transport_at, .. } = self.headers;
        // Of the payload: where the segment begins and ends, and the same cut to the head's part.
        let (begin, end) = (i * self.size, ((i + 1) * self.size).min(self.payload));
        let (head_begin, head_end) = (begin.min(self.payload_in_head), end.min(self.payload_in_head));
        let headers = from.bytes().get(..payload_at)?;
        let payload = from.bytes().get(payload_at + head_begin..payload_at + head_end)?;

        // A frame of 64 KB fits 32 bits, and all of the super-frame's head fits a head.
        let bytes = out.begin_like(from, (payload_at + end - begin) as u32, payload_at + payload.len());
        bytes.get_mut(..payload_at)?.copy_from_slice(headers);
        bytes.get_mut(payload_at..)?.copy_from_slice(payload);
        let (_, ip) = bytes.split_at_mut_checked(network_at)?;
        let (ip, transport) = ip.split_at_mut_checked(transport_at - network_at)?;
        let (first, last) = (i == 0, i + 1 == self.count);
        // Bytes of the transport header and payload. Smaller than the super-frame's, which fit 16 bits.
        let length = (payload_at - transport_at + end - begin) as u16;

        self.network(ip, i, length)?;
        if self.headers.protocol == PROTO_TCP {
            let sequence = transport.get_mut(4..8)?.first_chunk_mut::<4>()?;
            *sequence = u32::from_be_bytes(*sequence).wrapping_add(begin as u32).to_be_bytes();
            let flags = transport.get_mut(13)?;
            *flags &= if last { !0 } else { !(TCP_FIN | TCP_PSH) };
            *flags &= if first { !0 } else { !TCP_CWR };
        } else {
            set16(transport, 4, length)?;
        }
        let offset = self.headers.checksum_offset();
        let pseudo = self.pseudo_header(ip, be16(transport, offset)?, length)?;
        set16(transport, offset, pseudo.fold())?;

        out.set_link(from.tag(), from.ethertype());
        out.vlan = from.vlan;
        out.vnet = VnetHeader::default();
        out.offload = Offload {
            checksum: Checksum::Partial { start: transport_at as u16, offset: offset as u16 },
            gso: None,
        };
        // Of the tail: the same cut from the other side.
        Some(begin - head_begin..end - head_end)
    }

    /// Rewrites the network header for a transport header and payload of `length` bytes.
    fn network(&self, ip: &mut [u8], i: usize, length: u16) -> Option<()> {
        match self.headers.network {
            Network::V4 => {
                set16(ip, 2, ip.len() as u16 + length)?;
                let identification = be16(ip, 4)?.wrapping_add(i as u16);
                set16(ip, 4, identification)?;
                set16(ip, 10, 0)?;
                let mut sum = Sum::new();
                sum.add(ip);
                set16(ip, 10, sum.checksum())
            }
            Network::V6 { .. } => set16(ip, 4, ip.len().checked_sub(IPV6_LEN)? as u16 + length),
        }
    }

    /// The sum of a segment's pseudo-header. It is made from the addresses, so that it is right whatever the
    /// super-frame's sender wrote; but behind a routing header, where the destination that counts is
    /// elsewhere, the sender's sum is taken and its length exchanged (RFC 1624).
    fn pseudo_header(&self, ip: &[u8], written: u16, length: u16) -> Option<Sum> {
        let Headers { network, protocol, payload_at, transport_at, .. } = self.headers;
        Some(match network {
            Network::V4 => {
                let header = ip.first_chunk::<IPV4_LEN>()?;
                let (source, destination) = header[12..].split_at(4);
                Sum::pseudo_v4(*source.first_chunk()?, *destination.first_chunk()?, protocol, length)
            }
            Network::V6 { routed: false } => {
                let header = ip.first_chunk::<IPV6_LEN>()?;
                let (source, destination) = header[8..].split_at(16);
                Sum::pseudo_v6(*source.first_chunk()?, *destination.first_chunk()?, protocol, length.into())
            }
            Network::V6 { routed: true } => {
                let length_before = (payload_at - transport_at + self.payload) as u16;
                let mut sum = Sum::new();
                sum.add(&written.to_be_bytes());
                sum.add(&(!length_before).to_be_bytes());
                sum.add(&length.to_be_bytes());
                sum
            }
        })
    }
}

/// Writes big-endian 16 bits at `at`.
fn set16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests;
