//! Ones' complement checksums (RFC 1071), and their completion in software.
//!
//! A frame with [`Checksum::Partial`] carries the sum of its pseudo-header in the checksum field (virtio 1.2,
//! 5.1.6.2); a receiver that did not negotiate checksums needs it completed over everything from `start` to
//! the frame's end. The tail is out of this crate's reach: the datapath adds its bytes, from the copy that
//! it transmits, so that what a guest changes meanwhile can spoil nothing but its own frame.

use crate::head::Head;
use crate::offload::Checksum;

/// A ones' complement sum of 16-bit words over bytes that come in pieces of any length.
///
/// Words are added in the machine's byte order and the result is turned once at the end (RFC 1071, 2 (B)). A
/// piece that begins at an odd place has its sum turned (2 (A): the sum is independent of where a word is).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sums of pieces, each folded to 16 bits: no number of frames overflows it.
    words: u64,
    /// An odd number of bytes was added.
    odd: bool,
}

impl Sum {
    /// Of nothing.
    #[inline]
    pub const fn new() -> Self {
        Self { words: 0, odd: false }
    }

    /// The pseudo-header of IPv4 (RFC 9293, 3.1; RFC 768), whose `length` is the transport header's and the
    /// payload's.
    #[inline]
    pub fn pseudo_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> Self {
        let mut sum = Self::new();
        sum.add(&source);
        sum.add(&destination);
        sum.add(&[0, protocol]);
        sum.add(&length.to_be_bytes());
        sum
    }

    /// The pseudo-header of IPv6 (RFC 8200, 8.1). `destination` is the last one, if there is a routing header.
    #[inline]
    pub fn pseudo_v6(source: [u8; 16], destination: [u8; 16], protocol: u8, length: u32) -> Self {
        let mut sum = Self::new();
        sum.add(&source);
        sum.add(&destination);
        sum.add(&[0, protocol]);
        sum.add(&length.to_be_bytes());
        sum
    }

    /// Adds the next bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let piece = sum_of(bytes);
        self.words += u64::from(if self.odd { piece.swap_bytes() } else { piece });
        self.odd ^= !bytes.len().is_multiple_of(2);
    }

    /// The sum, in 16 bits. An odd last byte counts as if a zero followed.
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(fold(self.words))
    }

    /// The complement of the sum: what goes into a header's checksum field.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The sum of the 16-bit words in the machine's byte order. Four bytes at a time into lanes of eight: no carry
/// can be lost before 2^32 additions, and compilers make vector instructions of it.
#[inline]
fn sum_of(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0_u64; 8];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut sum: u64 = lanes.iter().map(|&lane| u64::from(fold(lane))).sum();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    fold(sum + u64::from(u32::from_ne_bytes(last)))
}

#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Completes a frame's partial checksum: sums the head from the checksum's start, lets `tail` add the bytes of
/// the tail in their order, and writes the result into the head. The offload is [`Checksum::Unknown`] then.
///
/// False, and nothing done, if there is no partial checksum, or if the frame is a super-frame: its segments
/// have checksums, it has none.
///
/// A result of zero is written as 0xFFFF: UDP means "no checksum" by zero (RFC 768), and for other protocols
/// both are the same number. Linux does likewise, whatever the protocol.
#[inline]
pub fn complete(head: &mut Head, tail: impl FnOnce(&mut Sum)) -> bool {
    let Checksum::Partial { start, offset } = head.offload.checksum else {
        return false;
    };
    let field = usize::from(start) + usize::from(offset);
    let bytes = head.bytes();
    if head.offload.gso.is_some() || field + 2 > bytes.len() {
        return false;
    }
    let mut sum = Sum::new();
    sum.add(&bytes[usize::from(start)..]);
    tail(&mut sum);
    let checksum = match sum.checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    head.bytes_mut()[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    head.offload.checksum = Checksum::Unknown;
    true
}

#[cfg(test)]
mod tests;
