//! A frame of the generator: what is in it, and how it is known again.

use crate::device::{GSO_TCPV4, VnetHeader};
use crate::wire::{self, Flow};

/// Length of the headers before the payload, UDP and TCP.
pub(super) const UDP_HEADERS: usize = 42;
pub(super) const TCP_HEADERS: usize = 54;
/// Length of the words at the payload's start.
pub(super) const WORDS: usize = 16;
/// Bits of the first word that are the sequence number; above it is the sender's.
pub(super) const SEQ_BITS: u32 = 48;

/// The check word of a frame with this first word and stamp. `sign` tells sender and receiver.
#[inline(always)]
pub(super) fn check_word(first: u64, stamp: u32, len: u32, sign: u32) -> u32 {
    let mixed = (first ^ (u64::from(stamp) << 24) ^ (u64::from(len) << 40) ^ u64::from(sign))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 ^ sign
}

/// What distinguishes the frames from one device to another.
pub(super) fn sign(sender: usize, receiver: usize) -> u32 {
    let mut state = ((sender as u64) << 32) ^ receiver as u64 ^ 0x5eed_0000_0000;
    crate::hash::splitmix(&mut state) as u32
}

/// The payload's pattern, and eight bytes more, by offset in the frame.
pub(super) fn pattern(longest: usize) -> Vec<u8> {
    let mut pattern = vec![0; longest + 8];
    crate::hash::Pattern::new(0x5eed).fill(&mut pattern);
    pattern
}

/// The last eight bytes that a frame of `len` has after its words, as far as it has them: the value and which of its bits
/// count.
#[inline(always)]
pub(super) fn tail(pattern: &[u8], words_at: usize, len: usize) -> (u64, u64) {
    let at = len.wrapping_sub(8);
    let bytes = pattern.get(at..).and_then(|rest| rest.first_chunk::<8>());
    let Some(bytes) = bytes else { return (0, 0) };
    // Bytes before the pattern's first are the words', which another check covers.
    let before = (words_at + WORDS).saturating_sub(at).min(8) as u32;
    (u64::from_le_bytes(*bytes), u64::MAX.checked_shl(8 * before).unwrap_or(0))
}

/// A frame of `len` bytes whose words are still to be written, and its header.
pub(super) fn template(
    flow: &Flow,
    len: usize,
    gso_size: Option<u16>,
    pattern: &[u8],
) -> (VnetHeader, Vec<u8>) {
    let Some(gso_size) = gso_size else {
        // The words change from frame to frame, so a checksum would too; UDP over IPv4 may have none.
        let mut frame = wire::udp(flow, &pattern[UDP_HEADERS..len]);
        frame[UDP_HEADERS - 2..UDP_HEADERS].fill(0);
        return (VnetHeader::PLAIN, frame);
    };
    let mut frame = wire::tcp(flow, 0, 1, &pattern[TCP_HEADERS..len]);
    let (start, offset) = wire::prepare_partial(&mut frame).unwrap_or_default();
    let mut header = VnetHeader::partial_csum(start, offset);
    if len - TCP_HEADERS > usize::from(gso_size) {
        header.gso_type = GSO_TCPV4;
        header.gso_size = gso_size;
        header.hdr_len = TCP_HEADERS as u16;
    }
    (header, frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_what_is_not_in_the_words() {
        let pattern = pattern(100);
        let at = |len: usize| u64::from_le_bytes(*pattern[len - 8..].first_chunk().unwrap());
        assert_eq!(tail(&pattern, UDP_HEADERS, 66), (at(66), u64::MAX));
        assert_eq!(tail(&pattern, UDP_HEADERS, 64), (at(64), u64::MAX << 16));
        assert_eq!(tail(&pattern, UDP_HEADERS, 60), (at(60), u64::MAX << 48));
        assert_eq!(tail(&pattern, UDP_HEADERS, 58), (at(58), 0), "there is nothing behind the words");
        assert_eq!(tail(&pattern, UDP_HEADERS, 7), (0, 0));
        assert_eq!(tail(&pattern, UDP_HEADERS, 109), (0, 0));
    }

    #[test]
    fn a_check_word_is_of_one_frame() {
        let word = check_word(5, 6, 64, sign(0, 1));
        for other in [
            check_word(4, 6, 64, sign(0, 1)),
            check_word(5, 7, 64, sign(0, 1)),
            check_word(5, 6, 65, sign(0, 1)),
            check_word(5, 6, 64, sign(1, 0)),
        ] {
            assert_ne!(word, other);
        }
    }
}
