//! TCP headers (RFC 9293, 3.1), read and written. Options that are used: the maximum segment size and window scaling
//! (RFC 7323). Timestamps and selective acknowledgments are not offered, so no guest sends any: the link loses nothing
//! that a round trip of microseconds does not mend, and sequence numbers cannot wrap within it.

use switch_core::ip::{Packet, TcpFlags};

use super::seq::Seq;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// Bytes of a header without options.
pub(crate) const HEADER: usize = 20;
/// Bytes of the longest header that is written: with both options.
pub(crate) const HEADER_MAX: usize = HEADER + 8;
/// Where the checksum is.
pub(crate) const CHECKSUM_AT: usize = 16;

/// The largest shift that window scaling has (RFC 7323, 2.3).
const SCALE_MAX: u8 = 14;

/// What a segment says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: TcpFlags,
    /// As in the header, unscaled.
    pub(crate) window: u16,
    /// Bytes of the payload.
    pub(crate) len: u32,
    /// The maximum segment size option. Read on a SYN only.
    pub(crate) mss: Option<u16>,
    /// The window scale option. Read on a SYN only.
    pub(crate) scale: Option<u8>,
}

/// A segment that was read, and where its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) segment: Segment,
    pub(crate) ports: (u16, u16),
    /// From the frame's first byte.
    pub(crate) payload_at: usize,
}

impl Read {
    /// The segment in a packet of TCP. `bytes` are the frame's first ones. `None` if the header does not fit the packet or
    /// the bytes.
    #[inline]
    pub(crate) fn of(packet: &Packet, bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(packet.transport_at()..)?;
        let h = header.first_chunk::<HEADER>()?;
        let header_len = usize::from(h[12] >> 4) * 4;
        let payload_at = packet.transport_at() + header_len;
        if header_len < HEADER || header_len > header.len() || payload_at > packet.end() {
            return None;
        }
        let word = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let mut segment = Segment {
            seq: Seq(long(4)),
            ack: Seq(long(8)),
            flags: TcpFlags(h[13]),
            window: word(14),
            len: (packet.end() - payload_at) as u32,
            mss: None,
            scale: None,
        };
        if segment.flags.syn() {
            segment.read_options(header.get(HEADER..header_len)?);
        }
        Some(Self { segment, ports: (word(0), word(2)), payload_at })
    }
}

impl Segment {
    /// Reads the options of a SYN. What is cut short ends them.
    fn read_options(&mut self, mut options: &[u8]) {
        loop {
            let (kind, len) = match *options {
                [] | [0, ..] => return,
                [1, ..] => {
                    options = &options[1..];
                    continue;
                }
                [kind, len, ..] => (kind, usize::from(len)),
                [_] => return,
            };
            let Some(body) = options.get(2..len) else { return };
            match (kind, body) {
                (2, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
                (3, &[shift]) => self.scale = Some(shift.min(SCALE_MAX)),
                _ => {}
            }
            options = options.get(len..).unwrap_or_default();
        }
    }

    /// Bytes of sequence space that the segment takes.
    #[inline]
    pub(crate) fn sequence_len(&self) -> u32 {
        self.len + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }

    /// Bytes of the header that [`Segment::write`] writes.
    #[inline]
    pub(crate) fn header_len(&self) -> usize {
        HEADER + if self.mss.is_some() { 4 } else { 0 } + if self.scale.is_some() { 4 } else { 0 }
    }

    /// Writes the header, with zero for the checksum; how long it is.
    #[inline]
    pub(crate) fn write(&self, (source, destination): (u16, u16), to: &mut [u8; HEADER_MAX]) -> usize {
        let len = self.header_len();
        to[..2].copy_from_slice(&source.to_be_bytes());
        to[2..4].copy_from_slice(&destination.to_be_bytes());
        to[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        to[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        to[12..14].copy_from_slice(&[(len as u8) << 2, self.flags.0]);
        to[14..16].copy_from_slice(&self.window.to_be_bytes());
        to[16..20].fill(0);
        let mut at = HEADER;
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            to[at..at + 4].copy_from_slice(&[2, 4, a, b]);
            at += 4;
        }
        if let Some(scale) = self.scale {
            to[at..at + 4].copy_from_slice(&[1, 3, 3, scale]);
        }
        len
    }
}

/// The reset that answers a segment of no connection (RFC 9293, 3.10.7.1). None is sent about a reset.
pub(crate) fn reset_for(segment: &Segment) -> Option<Segment> {
    let mut reset = Segment { flags: TcpFlags(RST), ..Segment::default() };
    if segment.flags.rst() {
        return None;
    }
    if segment.flags.ack() {
        reset.seq = segment.ack;
    } else {
        reset.ack = segment.seq + segment.sequence_len();
        reset.flags = TcpFlags(RST | ACK);
    }
    Some(reset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(header: &[u8], payload: usize) -> Vec<u8> {
        let total = 20 + header.len() + payload;
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((total as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let mut sum = switch_core::checksum::Sum::new();
        sum.add(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
        frame.extend(header);
        frame.resize(frame.len() + payload, 0xaa);
        frame
    }

    fn read(frame: &[u8]) -> Option<Read> {
        Read::of(&Packet::of_frame(frame).unwrap(), frame)
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let whole = Segment {
            seq: Seq(0xfedc_ba98),
            ack: Seq(7),
            flags: TcpFlags(SYN | ACK),
            window: 0xabcd,
            len: 0,
            mss: Some(1460),
            scale: Some(9),
        };
        let plain = Segment { flags: TcpFlags(ACK | PSH), len: 100, mss: None, scale: None, ..whole };
        for segment in [whole, plain] {
            let mut header = [0; HEADER_MAX];
            let n = segment.write((80, 4000), &mut header);
            let got = read(&frame(&header[..n], segment.len as usize)).unwrap();
            assert_eq!(got, Read { segment, ports: (80, 4000), payload_at: 34 + n });
        }
    }

    #[test]
    fn options_that_are_cut_short_or_unknown_are_passed_over() {
        let mut header = [0; HEADER_MAX];
        Segment { flags: TcpFlags(SYN), ..Segment::default() }.write((1, 2), &mut header);
        let with = |options: &[u8]| {
            let mut header = header[..HEADER].to_vec();
            header.extend(options);
            header.resize(header.len().next_multiple_of(4), 0);
            header[12] = (header.len() as u8) << 2;
            let segment = read(&frame(&header, 3)).unwrap().segment;
            (segment.mss, segment.scale)
        };
        assert_eq!(with(&[]), (None, None));
        assert_eq!(with(&[1, 1, 2, 4, 5, 180, 3, 3, 7]), (Some(1460), Some(7)));
        assert_eq!(with(&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 200]), (None, Some(14)), "at most 14");
        for broken in [&[2][..], &[2, 0], &[2, 1], &[2, 40, 1, 1], &[2, 3, 9], &[9, 255], &[0, 2, 4, 5, 180]]
        {
            assert_eq!(with(broken), (None, None), "{broken:?}");
        }
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        let mut header = [0; HEADER];
        for (offset, fits) in [(0, false), (4, false), (5, true), (6, false), (15, false)] {
            header[12] = offset << 4;
            assert_eq!(read(&frame(&header, 0)).is_some(), fits, "{offset}");
        }
    }

    #[test]
    fn resets_are_acceptable_to_who_gets_them() {
        let syn = Segment { seq: Seq(9), flags: TcpFlags(SYN), ..Segment::default() };
        let reset = reset_for(&syn).unwrap();
        assert_eq!((reset.seq, reset.ack, reset.flags), (Seq(0), Seq(10), TcpFlags(RST | ACK)));
        let data = Segment { seq: Seq(9), ack: Seq(4), flags: TcpFlags(ACK), len: 5, ..Segment::default() };
        let reset = reset_for(&data).unwrap();
        assert_eq!((reset.seq, reset.flags), (Seq(4), TcpFlags(RST)));
        assert_eq!(reset_for(&reset), None);
    }
}
