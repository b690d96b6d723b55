//! A fragment's bytes, and the packet that fragments are together.

use switch_core::MacAddr;
use switch_core::ip::{Addresses, Packet, Transport};

use crate::counters::Counter;
use crate::frame::{NETWORK_MAX, Way};

/// IPv6's fragment header, and how many headers may stand before it.
const FRAGMENT_HEADER: u8 = 44;
const HEADERS_MAX: usize = 8;
/// Bytes of the longest IP packet.
const PACKET_MAX: usize = u16::MAX as usize;

/// A fragment in its frame.
#[derive(Debug)]
pub(super) struct Fragment {
    frame: Vec<u8>,
    /// Where its part of the packet begins and ends in the frame.
    at: usize,
    until: usize,
    offset: u16,
    is_last: bool,
    /// The protocol of what is behind the headers that every fragment has.
    protocol: u8,
    hop_limit: u8,
}

impl Fragment {
    /// The fragment in a whole frame.
    ///
    /// # Errors
    /// It is none that a packet can be made of: as what it is counted.
    pub(super) fn of(packet: &Packet, frame: Vec<u8>) -> Result<Self, Counter> {
        let (at, protocol, headers) = match packet.addresses() {
            Addresses::V4 { .. } => {
                let at = packet.transport_at();
                (at, packet.protocol(), at - packet.network_at())
            }
            Addresses::V6 { .. } => {
                let header = fragment_header(&frame, packet.network_at()).ok_or(Counter::FragmentBad)?;
                let protocol = frame.get(header).copied().ok_or(Counter::FragmentBad)?;
                (header + 8, protocol, header - packet.network_at())
            }
        };
        let (until, offset, is_last) = (packet.end(), packet.fragment_offset(), !packet.more_fragments());
        let len = until.checked_sub(at).filter(|_| until <= frame.len()).ok_or(Counter::FragmentBad)?;
        if len == 0 || (!is_last && len % 8 != 0) {
            return Err(Counter::FragmentBad);
        }
        // With the headers that it came with, and with those that it is passed on with.
        let most = if packet.is_v6() { PACKET_MAX - headers.max(40) } else { PACKET_MAX - headers };
        if usize::from(offset) + len > most {
            return Err(Counter::FragmentOversize);
        }
        if offset == 0 && packet.transport() == Transport::Beyond {
            return Err(Counter::FragmentTiny);
        }
        Ok(Self { frame, at, until, offset, is_last, protocol, hop_limit: packet.hop_limit() })
    }

    /// Where its bytes belong in the packet.
    pub(super) fn offset(&self) -> u16 {
        self.offset
    }

    pub(super) fn len(&self) -> usize {
        self.until - self.at
    }

    /// Where its bytes end in the packet.
    pub(super) fn end(&self) -> usize {
        usize::from(self.offset) + self.len()
    }

    pub(super) fn is_last(&self) -> bool {
        self.is_last
    }

    /// Memory that it takes.
    pub(super) fn frame_len(&self) -> usize {
        self.frame.len()
    }

    fn bytes(&self) -> &[u8] {
        self.frame.get(self.at..self.until).unwrap_or_default()
    }

    /// Whether both are the same part of the packet, byte for byte.
    pub(super) fn is_the_same_as(&self, other: &Self) -> bool {
        (self.offset, self.is_last) == (other.offset, other.is_last) && self.bytes() == other.bytes()
    }

    pub(super) fn into_frame(self) -> Vec<u8> {
        self.frame
    }
}

/// Where IPv6's fragment header is.
fn fragment_header(frame: &[u8], network_at: usize) -> Option<usize> {
    let mut next = *frame.get(network_at + 6)?;
    let mut at = network_at + 40;
    for _ in 0..HEADERS_MAX {
        let &[kind, len] = frame.get(at..)?.first_chunk()?;
        match next {
            FRAGMENT_HEADER => return Some(at),
            // Hop-by-hop options, routing, destination options; authentication.
            0 | 43 | 60 => at += (usize::from(len) + 1) * 8,
            51 => at += (usize::from(len) + 2) * 4,
            _ => return None,
        }
        next = kind;
    }
    None
}

/// The frame of the packet that the fragments are, which are in order and leave nothing out: `len` bytes behind its IP
/// header.
pub(super) fn whole<'a>(
    fragments: impl Iterator<Item = &'a Fragment>,
    addresses: Addresses,
    len: usize,
) -> Option<Vec<u8>> {
    let mut fragments = fragments.peekable();
    let first = fragments.peek()?;
    let mac = |at: usize| MacAddr::from_slice(first.frame.get(at..)?);
    let way = Way { to: mac(0)?, from: mac(6)?, addresses, protocol: first.protocol };
    let mut headers = [0; NETWORK_MAX];
    let n = way.write_with(&mut headers, len, first.hop_limit, true);
    let mut frame = Vec::with_capacity(n + len);
    frame.extend_from_slice(headers.get(..n)?);
    for fragment in fragments {
        frame.extend_from_slice(fragment.bytes());
    }
    Some(frame)
}
