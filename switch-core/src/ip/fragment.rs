//! An IPv4 packet in pieces (RFC 791, 3.2): what a router does when the next link's MTU is smaller and DF is clear.
//!
//! Whole frames only. IPv6 packets are never fragmented by a router (RFC 8200, 5).

use super::packet::Packet;
use crate::checksum::Sum;
use crate::head::FRAME_MAX;
use crate::headers::IPV4_LEN;

/// The smallest MTU of IPv4: a header of 60 bytes and 8 of payload (RFC 791).
pub const MTU_MIN: usize = 68;

/// The frames that a frame is sent as by a link whose IP packets are at most `mtu` bytes (taken as
/// [`MTU_MIN`] if it is less): one, without padding, if it fits. `None` if it is not IPv4, is malformed, or
/// must not be fragmented.
pub fn fragments(frame: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let packet = Packet::of_frame(frame).ok().filter(|p| !p.is_v6() && frame.len() <= FRAME_MAX)?;
    let mtu = mtu.max(MTU_MIN);
    let whole = frame.get(..packet.end())?;
    if packet.len() <= mtu {
        return Some(vec![whole.to_vec()]);
    }
    if packet.dont_fragment() {
        return None;
    }
    let (link, ip) = whole.split_at_checked(packet.network_at())?;
    let (first, mut payload) = ip.split_at_checked(packet.transport_at() - packet.network_at())?;
    let later = header_of_later(first)?;
    let mut out = Vec::new();
    let mut offset = packet.fragment_offset();
    while !payload.is_empty() {
        let header: &[u8] = if out.is_empty() { first } else { &later };
        let room = mtu - header.len();
        let last = payload.len() <= room;
        let (piece, rest) = payload.split_at_checked(if last { payload.len() } else { room & !7 })?;
        let mut sent = Vec::with_capacity(link.len() + header.len() + piece.len());
        sent.extend_from_slice(link);
        sent.extend_from_slice(header);
        finish(sent.get_mut(link.len()..)?, piece.len(), offset, !last || packet.more_fragments())?;
        sent.extend_from_slice(piece);
        out.push(sent);
        // No more than the packet has bytes; a fragment near 64 KB wraps here and is dropped by its receiver.
        offset = offset.wrapping_add(piece.len() as u16);
        payload = rest;
    }
    Some(out)
}

/// The header of all pieces but the first: without the options that are not to be copied.
fn header_of_later(first: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut options) = first.split_at_checked(IPV4_LEN)?;
    let mut header = fixed.to_vec();
    while let Some(&kind) = options.first() {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(*options.get(1).unwrap_or(&0)).max(2),
        };
        // An option that goes beyond the header ends the list.
        let Some((option, rest)) = options.split_at_checked(len) else { break };
        if kind & 0x80 != 0 {
            header.extend_from_slice(option);
        }
        options = rest;
    }
    header.resize(header.len().next_multiple_of(4), 0);
    *header.first_mut()? = 0x40 | (header.len() / 4) as u8;
    Some(header)
}

/// Sets lengths, the place and the checksum of a piece's header.
fn finish(header: &mut [u8], payload: usize, offset: u16, more: bool) -> Option<()> {
    let total = u16::try_from(header.len() + payload).ok()?;
    let place = (offset >> 3) | if more { 0x2000 } else { 0 };
    header.get_mut(2..4)?.copy_from_slice(&total.to_be_bytes());
    header.get_mut(6..8)?.copy_from_slice(&place.to_be_bytes());
    header.get_mut(10..12)?.fill(0);
    let mut sum = Sum::new();
    sum.add(header);
    header.get_mut(10..12)?.copy_from_slice(&sum.checksum().to_be_bytes());
    Some(())
}
