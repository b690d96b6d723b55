//! The UDP datagrams of many flows. Pure.
//!
//! Neighbours in the order in which they are sent have nothing in common, so that no cache knows what comes next.

use clap::ValueEnum;

/// Length of a frame, bytes without check sequence.
pub(crate) const LEN: usize = 60;
/// More flows than that would repeat some.
pub(crate) const FLOWS_MAX: u32 = STEP as u32 - 1;

/// What Weft translates for one port of the switch is no more than 64 addresses with 16,128 ports together: frames of more
/// would be dropped, and measure nothing.
const GUESTS: u32 = 64;
const PORTS: u32 = 250;
/// A prime that divides no number of flows below it: each pass meets each flow once.
const STEP: u64 = 15_485_863;
/// What is at the end of each frame: others than these are not counted.
const MARK: [u8; 8] = *b"datagram";

/// Of what flows they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// From 64 guests, 10.77.1.1 and on, with 250 ports each, no two of the same number, to as many remotes from 198.18.0.1
    /// on as it takes.
    Guests,
    /// From 10.77.1.1 to one address in each of as many prefixes of 64 addresses, from 10.128.0.0 on.
    Prefixes,
}

/// Makes the frames one after the other, without end.
#[derive(Clone, Debug)]
pub(crate) struct Datagrams {
    kind: Kind,
    flows: u32,
    at: u64,
    /// All of a frame but addresses, ports and the header's checksum.
    plain: [u8; LEN],
    /// Of the header without addresses.
    sum: u32,
}

impl Datagrams {
    /// Frames of `flows` flows, from and to these MAC addresses.
    pub(crate) fn new(to: [u8; 6], from: [u8; 6], kind: Kind, flows: u32) -> Self {
        let mut plain = [0; LEN];
        plain[..6].copy_from_slice(&to);
        plain[6..12].copy_from_slice(&from);
        plain[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17]);
        plain[38..40].copy_from_slice(&26_u16.to_be_bytes());
        plain[LEN - MARK.len()..].copy_from_slice(&MARK);
        let sum = plain[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        Datagrams { kind, flows: flows.max(1), at: 0, plain, sum }
    }

    /// How many flows there are.
    pub(crate) fn flows(&self) -> u32 {
        self.flows
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> [u8; LEN] {
        self.at = (self.at + STEP) % u64::from(self.flows);
        let n = self.at as u32;
        let (source, destination) = match self.kind {
            Kind::Guests => {
                let (guest, number, remote) = (n % GUESTS, n / GUESTS % PORTS, n / (GUESTS * PORTS));
                let port = (1024 + guest * PORTS + number) as u16;
                ((0x0a4d_0101 + guest, port), 0xc612_0001 + remote)
            }
            Kind::Prefixes => ((0x0a4d_0101, 1024), 0x0a80_0001 + (n << 6)),
        };
        let mut frame = self.plain;
        let halves = [source.0 >> 16, source.0 & 0xffff, destination >> 16, destination & 0xffff];
        let sum = self.sum + halves.iter().sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!sum as u16).to_be_bytes());
        frame[26..30].copy_from_slice(&source.0.to_be_bytes());
        frame[30..34].copy_from_slice(&destination.to_be_bytes());
        frame[34..36].copy_from_slice(&source.1.to_be_bytes());
        frame[36..38].copy_from_slice(&53_u16.to_be_bytes());
        frame
    }
}

/// Whether it is one of these, whatever was translated in it.
pub(crate) fn is_one(frame: &[u8]) -> bool {
    frame.len() == LEN && frame.ends_with(&MARK)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pass(kind: Kind, flows: u32) -> Vec<[u8; LEN]> {
        let mut datagrams = Datagrams::new([2; 6], [4; 6], kind, flows);
        (0..flows).map(|_| datagrams.next()).collect()
    }

    #[test]
    fn a_pass_meets_each_flow_once_and_headers_are_sound() {
        for (kind, flows) in [(Kind::Guests, 1), (Kind::Guests, 200_000), (Kind::Prefixes, 100_000)] {
            let frames = pass(kind, flows);
            assert!(frames.iter().all(|frame| frontend::wire::checksums_ok(frame) && is_one(frame)));
            let keys: HashSet<&[u8]> = frames.iter().map(|frame| &frame[26..38]).collect();
            assert_eq!(keys.len(), flows as usize, "{kind:?}");
        }
    }

    #[test]
    fn no_two_guests_have_a_port_and_every_prefix_is_met() {
        let frames = pass(Kind::Guests, 16_000);
        let ports: HashSet<&[u8]> = frames.iter().map(|frame| &frame[34..36]).collect();
        assert_eq!(ports.len(), 16_000);
        let frames = pass(Kind::Prefixes, 1000);
        let prefix =
            |frame: &[u8; LEN]| u32::from_be_bytes([frame[30], frame[31], frame[32], frame[33]]) >> 6;
        let prefixes: HashSet<u32> = frames.iter().map(prefix).collect();
        assert_eq!(prefixes, (0..1000).map(|n| (0x0a80_0000 >> 6) + n).collect());
    }

    #[test]
    fn other_frames_are_none_of_these() {
        let mut frame = pass(Kind::Guests, 1)[0];
        frame[30] ^= 1;
        assert!(is_one(&frame));
        frame[LEN - 1] ^= 1;
        assert!(!is_one(&frame) && !is_one(&frame[..LEN - 8]));
    }
}
