//! Sums against their definition, and completion against smoltcp.

use std::net::IpAddr;

use proptest::prelude::*;
use smoltcp::wire::{TcpPacket, UdpPacket};

use super::*;
use crate::offload::Offload;
use crate::testing::{Spec, build, specs};

/// The definition: 16-bit words, end-around carry at each.
fn slow(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn the_example_of_rfc_1071() {
    let mut sum = Sum::new();
    sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
    assert_eq!(sum.fold(), 0xddf2);
    assert_eq!(sum.checksum(), !0xddf2);
    assert_eq!(Sum::new().fold(), 0);
}

#[test]
fn carries_are_not_lost() {
    for len in [1, 2, 31, 32, 33, 1500, 65_535] {
        let ones = vec![0xff; len];
        let mut sum = Sum::new();
        for _ in 0..100 {
            sum.add(&ones);
        }
        let all = ones.repeat(100);
        assert_eq!(sum.fold(), slow(&all), "{len}");
    }
}

#[test]
fn pseudo_headers() {
    let sum = Sum::pseudo_v4([192, 168, 0, 1], [10, 1, 2, 3], 6, 1234);
    assert_eq!(
        sum.fold(),
        slow(&[192, 168, 0, 1, 10, 1, 2, 3, 0, 6, 1234_u16.to_be_bytes()[0], 1234_u16.to_be_bytes()[1]])
    );
    let (source, destination): ([u8; 16], [u8; 16]) = ([0xfe; 16], [0x7f; 16]);
    let sum = Sum::pseudo_v6(source, destination, 17, 0x1_2345);
    let mut all = [source, destination].concat();
    all.extend([0, 1, 0x23, 0x45, 0, 0, 0, 17]);
    assert_eq!(sum.fold(), slow(&all));
}

#[test]
fn a_result_of_zero_is_written_as_ones() {
    // One word of payload that brings the sum to 0xFFFF.
    let mut head = Head::from_frame(&[0; 40]);
    head.bytes_mut()[30..32].copy_from_slice(&[0xff, 0xff]);
    head.offload.checksum = Checksum::Partial { start: 14, offset: 6 };
    assert!(complete(&mut head, |_| ()));
    assert_eq!(head.bytes()[20..22], [0xff, 0xff]);
    assert_eq!(head.offload, Offload::NONE);
    assert!(!complete(&mut head, |_| unreachable!("there is nothing to complete")));
}

#[test]
fn super_frames_are_not_completed() {
    let mut head = build(&Spec::tcp()).checked();
    assert!(!complete(&mut head, |_| unreachable!("not asked for")));
    assert!(head.offload.gso.is_some());
}

proptest! {
    #[test]
    fn sums_do_not_depend_on_how_bytes_come(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        cuts in proptest::collection::vec(0..400_usize, 0..8),
    ) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut sum = Sum::new();
        for cut in cuts.windows(2) {
            sum.add(&bytes[cut[0]..cut[1]]);
        }
        prop_assert_eq!(sum.fold(), slow(&bytes));
    }

    #[test]
    fn completed_checksums_are_right(spec in specs(), pieces in 1..700_usize) {
        // One segment: a size that the payload does not exceed.
        let spec = Spec { size: 6000, ..spec };
        let received = build(&spec);
        let mut head = received.checked();
        let tail = received.tail();
        let done = complete(&mut head, |sum| tail.chunks(pieces).for_each(|piece| sum.add(piece)));
        prop_assert!(done);
        let mut bytes = head.bytes().to_vec();
        bytes.extend(tail);
        let ip = &bytes[received.at[0]..];
        let (source, destination) = if spec.v6 {
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16"));
            (address(8), address(24))
        } else {
            let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("4"));
            (address(12), address(16))
        };
        let transport = &bytes[received.at[1]..];
        if spec.udp {
            prop_assert!(UdpPacket::new_checked(transport).expect("UDP").verify_checksum(&source.into(), &destination.into()));
        } else {
            prop_assert!(TcpPacket::new_checked(transport).expect("TCP").verify_checksum(&source.into(), &destination.into()));
        }
    }
}
