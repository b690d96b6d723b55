//! Super-frames cut and put together again, with etherparse and smoltcp as the readers.

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use proptest::prelude::*;
use smoltcp::wire::{EthernetFrame, Ipv4Packet};

use super::*;
use crate::checksum;
use crate::testing::{Received, Spec, build, noise, specs};

/// The segments of a frame, each as bytes on a wire, with its checksum completed.
fn cut(received: &Received) -> Vec<Vec<u8>> {
    let head = received.checked();
    let tail = received.tail();
    let segmenter = Segmenter::new(&head).expect("a super-frame");
    (0..segmenter.count())
        .map(|i| {
            let mut out = Head::from_frame(&[0xaa; 200]);
            let range = segmenter.segment(i, &head, &mut out);
            assert_eq!(range.len(), out.tail_len(), "the range is the segment's tail");
            assert!(out.frame_len() <= segmenter.frame_len_max());
            assert_eq!((out.tag(), out.vlan, out.ethertype()), (head.tag(), head.vlan, head.ethertype()));
            assert_eq!(out.offload.gso, None);
            assert_eq!(out.offload.checksum, head.offload.checksum);
            assert!(checksum::complete(&mut out, |sum| sum.add(&tail[range.clone()])));
            [out.bytes(), &tail[range]].concat()
        })
        .collect()
}

/// Checks one segment as a receiver would; its payload.
fn read(spec: &Spec, bytes: &[u8], i: usize, count: usize, begin: usize) -> Vec<u8> {
    let packet = PacketHeaders::from_ethernet_slice(bytes).expect("etherparse reads it");
    let payload = packet.payload.slice().to_vec();
    let (first, last) = (i == 0, i + 1 == count);
    match packet.net.expect("IP") {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(ip.identification, spec.identification.wrapping_add(i as u16));
            let ethernet = EthernetFrame::new_checked(bytes).expect("Ethernet");
            let at = if spec.tci.is_some() { 4 } else { 0 };
            let packet = Ipv4Packet::new_checked(&ethernet.payload()[at..]).expect("IPv4");
            assert!(packet.verify_checksum());
            assert_eq!(usize::from(packet.total_len()), ethernet.payload().len() - at);
            match packet_transport(&packet_of(bytes)) {
                TransportHeader::Tcp(tcp) => {
                    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, &payload).expect("short"));
                }
                TransportHeader::Udp(udp) => {
                    assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, &payload).expect("short"));
                }
                other => panic!("{other:?}"),
            }
        }
        NetHeaders::Ipv6(ip, _) => {
            let link = if spec.tci.is_some() { 18 } else { 14 };
            assert_eq!(usize::from(ip.payload_length), bytes.len() - link - 40);
            match packet_transport(&packet_of(bytes)) {
                TransportHeader::Tcp(tcp) => {
                    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, &payload).expect("short"));
                }
                TransportHeader::Udp(udp) => {
                    assert_eq!(udp.checksum, udp.calc_checksum_ipv6(&ip, &payload).expect("short"));
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
    match packet_transport(&packet_of(bytes)) {
        TransportHeader::Tcp(tcp) => {
            assert_eq!(tcp.sequence_number, spec.sequence.wrapping_add(begin as u32));
            let flag = |bit: u8| spec.flags & bit != 0;
            assert_eq!((tcp.fin, tcp.psh), (flag(0x01) && last, flag(0x08) && last));
            assert_eq!(tcp.cwr, flag(0x80) && first);
            assert_eq!((tcp.syn, tcp.rst, tcp.ack), (flag(0x02), flag(0x04), flag(0x10)));
            assert_eq!((tcp.urg, tcp.ece), (flag(0x20), flag(0x40)));
            assert_eq!(tcp.options.len(), spec.tcp_options * 4);
        }
        TransportHeader::Udp(udp) => assert_eq!(usize::from(udp.length), 8 + payload.len()),
        other => panic!("{other:?}"),
    }
    payload
}

fn packet_of(bytes: &[u8]) -> PacketHeaders<'_> {
    PacketHeaders::from_ethernet_slice(bytes).expect("etherparse reads it")
}

fn packet_transport(packet: &PacketHeaders<'_>) -> TransportHeader {
    packet.transport.clone().expect("TCP or UDP")
}

fn verify(spec: &Spec) {
    let received = build(spec);
    let segments = cut(&received);
    assert_eq!(segments.len(), spec.payload.div_ceil(usize::from(spec.size)));
    let mut payload = Vec::new();
    for (i, bytes) in segments.iter().enumerate() {
        let part = read(spec, bytes, i, segments.len(), payload.len());
        let full = if i + 1 < segments.len() { usize::from(spec.size) } else { spec.payload - payload.len() };
        assert_eq!(part.len(), full);
        payload.extend(part);
    }
    assert_eq!(payload, noise(spec.payload));
}

#[test]
fn three_segments_of_tcp() {
    verify(&Spec::tcp());
    let lengths: Vec<_> = cut(&build(&Spec { payload: 2500, ..Spec::tcp() })).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1054, 1054, 554]);
}

#[test]
fn the_longest_super_frame() {
    verify(&Spec { payload: 65_535 - 40, size: 1460, head_extra: 37, sequence: u32::MAX - 9, ..Spec::tcp() });
    verify(&Spec { payload: 65_535 - 60, size: 1440, v6: true, flags: 0xff, ..Spec::tcp() });
    verify(&Spec { payload: 65_535 - 28, size: 1472, udp: true, tci: Some(0x6005), ..Spec::tcp() });
}

#[test]
fn a_super_frame_that_lost_its_tag_is_cut_as_it_is() {
    let spec = Spec { tci: Some(5), head_extra: 9, ..Spec::tcp() };
    let received = build(&spec);
    let mut head = received.checked();
    assert!(head.pop_tag());
    let segmenter = Segmenter::new(&head).expect("still a super-frame");
    let mut out = Head::new();
    let range = segmenter.segment(1, &head, &mut out);
    assert!(checksum::complete(&mut out, |sum| sum.add(&received.tail()[range.clone()])));
    let bytes = [out.bytes(), &received.tail()[range]].concat();
    let part = read(&Spec { tci: None, ..spec }, &bytes, 1, 3, 1000);
    assert_eq!(part, noise(3000)[1000..2000]);
}

/// Found by fuzzing: a tag makes a full head longer than what a port may copy.
#[test]
fn a_full_head_that_got_a_tag_is_cut_as_it_is() {
    let spec = Spec { head_extra: crate::head::HEAD_MAX, ..Spec::tcp() };
    let received = build(&spec);
    let mut head = received.checked();
    assert!(head.push_tag(crate::ids::Vid::new(5).unwrap(), 0));
    let segmenter = Segmenter::new(&head).expect("still a super-frame");
    let mut out = Head::new();
    for i in 0..3 {
        let range = segmenter.segment(i, &head, &mut out);
        assert_eq!(range.len(), out.tail_len());
        assert!(checksum::complete(&mut out, |sum| sum.add(&received.tail()[range.clone()])));
        let bytes = [out.bytes(), &received.tail()[range]].concat();
        let part = read(&Spec { tci: Some(5), ..spec.clone() }, &bytes, i, 3, i * 1000);
        assert_eq!(part, noise(3000)[i * 1000..][..1000]);
    }
}

#[test]
fn behind_a_routing_header_the_senders_sum_counts() {
    // The destination in the IPv6 header is not the one that the sender summed.
    let spec = Spec { v6: true, ip_options: 1, ..Spec::tcp() };
    let mut received = build(&spec);
    received.bytes[20] = 43;
    let sums = |received: &Received| {
        let head = received.checked();
        let segmenter = Segmenter::new(&head).expect("a super-frame");
        let mut out = Head::new();
        segmenter.segment(2, &head, &mut out);
        let at = received.at[1] + 16;
        u16::from_be_bytes([out.bytes()[at], out.bytes()[at + 1]])
    };
    let before = sums(&received);
    received.bytes[14 + 24] ^= 0xff;
    assert_eq!(sums(&received), before);
    // And without one, the address in the header does.
    received.bytes[20] = 60;
    assert_ne!(sums(&received), before);
    received.bytes[14 + 24] ^= 0xff;
    assert_eq!(sums(&received), before);
}

#[test]
fn there_is_no_segment_beyond_the_last() {
    let head = build(&Spec::tcp()).checked();
    let segmenter = Segmenter::new(&head).unwrap();
    let mut out = Head::from_frame(&[1; 60]);
    for i in [3, 4, usize::MAX] {
        assert_eq!(segmenter.segment(i, &head, &mut out), 0..0);
        assert_eq!(out.frame_len(), 0);
    }
    let other = Head::from_frame(&[1; 20]);
    assert_eq!(segmenter.segment(0, &other, &mut out), 0..0);
    assert!(Segmenter::new(&other).is_none());
}

#[test]
fn headers_that_a_mode_broke_are_not_cut() {
    let mut head = build(&Spec::tcp()).checked();
    head.bytes_mut()[23] = 17;
    assert!(Segmenter::new(&head).is_none());
}

proptest! {
    #[test]
    fn segments_make_up_the_frame(spec in specs().prop_filter("super-frames", |s| s.payload > usize::from(s.size))) {
        verify(&spec);
    }
}
