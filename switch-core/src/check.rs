//! Turns a received head into a trusted one, or says why not.
//!
//! [`frame`] is the one place where what a sender wrote becomes something that the rest of the switch relies
//! on: the Ethernet header and its tag are recorded in the head, and the virtio-net header, which is a guest's
//! word, becomes an [`Offload`] that is known to fit the frame. A worker calls it once for each frame.
//!
//! What is accepted:
//! - **Link header.** 14 bytes at least; there is no minimum of 60, because frames between virtual machines
//!   are not padded. TPID 0x8100 is a VLAN tag, VID 0 in it means untagged. TPID 0x88A8 (and a second
//!   0x8100 behind the first) is an EtherType like any other: the switch is a customer bridge, service tags
//!   are its stations' affair.
//! - **Checksum requests** (`NEEDS_CSUM`, virtio 1.2, 5.1.6.2), if negotiated: `csum_start` behind the link
//!   header, the checksum field within the head. Which protocol it is does not matter.
//! - **Segmentation requests**, if the type was negotiated: they need `NEEDS_CSUM` (5.1.6.2.1), and the headers
//!   in the frame must be those that the type says, with lengths that add up to the frame's (Linux and others
//!   set the IP length of a super-frame to all of it; a frame that does otherwise would be dropped by its
//!   receiver's IP stack). `hdr_len` is ignored: the length of the headers is what parsing them finds.
//! - **Segment sizes.** At least [`GSO_SIZE_MIN`] and at most [`SEGMENTS_MAX`] segments, so that a frame
//!   cannot be made into tens of thousands, here or in the kernel behind a tap. A size that no segment could
//!   have (with its headers beyond 65,535 bytes of IP) is refused. A size not below the payload's is one
//!   segment: the frame is an ordinary one with a checksum request (older Linux kernels send such UDP frames).

use std::num::NonZeroU16;

use crate::drop::DropReason;
use crate::head::{ETHERNET_LEN, FRAME_MAX, Head, TAG_LEN, TPID_CVLAN, Tag};
use crate::headers::Headers;
use crate::ids::Vid;
use crate::offload::{Checksum, Gso, GsoKind, Offload, OffloadSet};
use crate::virtio_net as wire;

/// Payload bytes of a super-frame's segments, at least. Linux's TCP never goes below (`TCP_MIN_GSO_SIZE`).
pub const GSO_SIZE_MIN: u16 = 8;
/// Segments of a super-frame, at most: 64 KB at an MSS of 128. Linux allows UDP 128, and its TCP needs an MSS
/// of 536 at the least on any path that RFC 9293 (3.7.1) knows.
pub const SEGMENTS_MAX: usize = 512;

/// Checks a frame that a port just received: [`Head::vnet`] is what its sender wrote, `accepted` what the
/// sender negotiated. Sets the head's tag, EtherType, VLAN and offload; on an error they mean nothing.
#[inline]
pub fn frame(head: &mut Head, accepted: OffloadSet) -> Result<(), DropReason> {
    let bytes = head.bytes();
    let Some(ethernet) = bytes.first_chunk::<ETHERNET_LEN>() else {
        return Err(DropReason::Runt);
    };
    let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    if head.frame_len() > FRAME_MAX {
        return Err(DropReason::Oversize);
    }
    if ethertype == TPID_CVLAN {
        let Some(&[_, _, _, _, _, _, _, _, _, _, _, _, _, _, tci0, tci1, type0, type1]) =
            bytes.first_chunk::<{ ETHERNET_LEN + TAG_LEN }>()
        else {
            return Err(DropReason::BadVlanTag);
        };
        let tci = u16::from_be_bytes([tci0, tci1]);
        if tci & 0xfff == 0xfff {
            return Err(DropReason::BadVlanTag);
        }
        let vid = Vid::new(tci & 0xfff);
        head.set_link(Some(Tag { vid, pcp_dei: tci0 >> 4 }), u16::from_be_bytes([type0, type1]));
        head.vlan = vid;
    } else {
        head.set_link(None, ethertype);
        head.vlan = None;
    }
    if head.vnet.is_plain() {
        let valid = head.vnet.flags & wire::F_DATA_VALID != 0;
        let checksum = if valid { Checksum::Valid } else { Checksum::Unknown };
        head.offload = Offload { checksum, gso: None };
        return Ok(());
    }
    head.offload = offload(head, accepted)?;
    Ok(())
}

/// What a virtio-net header that asks for something asks for. Apart from [`frame`], so that plain frames do
/// not carry its code through the instruction cache.
#[inline(never)]
fn offload(head: &Head, accepted: OffloadSet) -> Result<Offload, DropReason> {
    let vnet = head.vnet;
    if vnet.flags & wire::F_NEEDS_CSUM == 0 {
        // Not plain, so there is a segmentation request, which needs the checksum request that is missing.
        return Err(DropReason::BadSegmentationOffload);
    }
    let field_end = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset) + 2;
    let inside = usize::from(vnet.csum_start) >= head.link_len() && field_end <= head.bytes().len();
    if !inside || !accepted.contains(OffloadSet::CHECKSUM) {
        return Err(DropReason::BadChecksumOffload);
    }
    let gso = match vnet.gso_type {
        wire::GSO_NONE => None,
        _ => gso(head, accepted)?,
    };
    let checksum = Checksum::Partial { start: vnet.csum_start, offset: vnet.csum_offset };
    Ok(Offload { checksum, gso })
}

/// The segmentation request. `None` if the frame is a single segment.
fn gso(head: &Head, accepted: OffloadSet) -> Result<Option<Gso>, DropReason> {
    const BAD: DropReason = DropReason::BadSegmentationOffload;
    let vnet = head.vnet;
    let ecn = vnet.gso_type & wire::GSO_ECN != 0;
    let (kind, feature) = match vnet.gso_type & !wire::GSO_ECN {
        wire::GSO_TCPV4 => (GsoKind::TcpV4, OffloadSet::TCPV4),
        wire::GSO_TCPV6 => (GsoKind::TcpV6, OffloadSet::TCPV6),
        wire::GSO_UDP_L4 if !ecn => (GsoKind::UdpL4, OffloadSet::UDP_L4),
        _ => return Err(BAD),
    };
    let needed = if ecn { feature.with(OffloadSet::ECN) } else { feature };
    let size = NonZeroU16::new(vnet.gso_size).filter(|size| size.get() >= GSO_SIZE_MIN).ok_or(BAD)?;
    if !accepted.contains(needed) {
        return Err(BAD);
    }
    let headers = Headers::find(head).filter(|h| h.are(kind)).ok_or(BAD)?;
    let checksum_fits = usize::from(vnet.csum_start) == headers.transport_at
        && usize::from(vnet.csum_offset) == headers.checksum_offset();
    let payload = head.frame_len().saturating_sub(headers.payload_at);
    let ip_headers = headers.payload_at - headers.network_at;
    let size_fits = ip_headers + usize::from(size.get()) <= usize::from(u16::MAX);
    if !checksum_fits || payload == 0 || !size_fits || segments(payload, size) > SEGMENTS_MAX {
        return Err(BAD);
    }
    if payload <= usize::from(size.get()) {
        return Ok(None);
    }
    let header_len = u16::try_from(headers.payload_at).map_err(|_| BAD)?;
    Ok(Some(Gso { kind, ecn, size, header_len }))
}

/// Segments that `payload` bytes make.
pub(crate) fn segments(payload: usize, size: NonZeroU16) -> usize {
    payload.div_ceil(usize::from(size.get()))
}

#[cfg(test)]
mod tests;
