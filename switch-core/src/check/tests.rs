//! Frames in, offloads or reasons out.

use proptest::prelude::*;

use super::*;
use crate::head::HEAD_MAX;
use crate::testing::{Received, Spec, build, specs};
use crate::virtio_net::VnetHeader;

fn check(bytes: &[u8], vnet: VnetHeader) -> Result<Head, DropReason> {
    let mut head = Head::from_frame(bytes);
    head.vnet = vnet;
    frame(&mut head, OffloadSet::ALL).map(|()| head)
}

fn ethernet(rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    bytes.extend(rest);
    bytes
}

#[test]
fn link_headers() {
    let plain = VnetHeader::default();
    let tag = |vid, pcp_dei| Some(Tag { vid: Vid::new(vid), pcp_dei });
    let sound: [(&[u8], Option<Tag>, u16); 7] = [
        (&[0x08, 0x00], None, 0x0800),
        (&[0x00, 0x26, 0x42, 0x42], None, 0x0026),
        (&[0x81, 0x00, 0x00, 0x01, 0x08, 0x00], tag(1, 0), 0x0800),
        (&[0x81, 0x00, 0xbf, 0xfe, 0x08, 0x06], tag(4094, 0xb), 0x0806),
        (&[0x81, 0x00, 0xe0, 0x00, 0x08, 0x06], tag(0, 0xe), 0x0806),
        // A tag in a tag, and a service tag.
        (&[0x81, 0x00, 0x00, 0x05, 0x81, 0x00, 0x00, 0x06], tag(5, 0), 0x8100),
        (&[0x88, 0xa8, 0x00, 0x05, 0x08, 0x00], None, 0x88a8),
    ];
    for (rest, tag, ethertype) in sound {
        let head = check(&ethernet(rest), plain).expect("sound");
        assert_eq!((head.tag(), head.ethertype()), (tag, ethertype), "{rest:02x?}");
        assert_eq!(head.vlan, tag.and_then(|t| t.vid), "{rest:02x?}");
        assert_eq!(head.offload, Offload::NONE);
        assert_eq!(head.link_len(), if tag.is_some() { 18 } else { 14 });
    }
    let bad: [(&[u8], DropReason); 6] = [
        (&[], DropReason::Runt),
        (&[0x08], DropReason::Runt),
        (&[0x81, 0x00], DropReason::BadVlanTag),
        (&[0x81, 0x00, 0x00, 0x01, 0x08], DropReason::BadVlanTag),
        (&[0x81, 0x00, 0x0f, 0xff, 0x08, 0x00], DropReason::BadVlanTag),
        (&[0x81, 0x00, 0xff, 0xff, 0x08, 0x00], DropReason::BadVlanTag),
    ];
    for (rest, reason) in bad {
        assert_eq!(check(&ethernet(rest), plain).map(|h| h.tag()), Err(reason), "{rest:02x?}");
    }
    assert_eq!(check(&[], plain).map(|h| h.tag()), Err(DropReason::Runt));
}

#[test]
fn a_head_that_was_used_before_keeps_nothing() {
    let mut head = check(&ethernet(&[0x81, 0x00, 0x00, 0x01, 0x08, 0x00]), VnetHeader::default()).unwrap();
    let bytes = ethernet(&[0x08, 0x06]);
    head.begin(14, 14).copy_from_slice(&bytes);
    frame(&mut head, OffloadSet::NONE).unwrap();
    assert_eq!((head.tag(), head.vlan, head.ethertype()), (None, None, 0x0806));
}

#[test]
fn the_longest_frame() {
    for (len, verdict) in [
        (FRAME_MAX, Ok(())),
        (FRAME_MAX + 1, Err(DropReason::Oversize)),
        (usize::MAX, Err(DropReason::Oversize)),
    ] {
        let mut head = Head::new();
        let bytes = head.begin(u32::try_from(len).unwrap_or(u32::MAX), 128);
        bytes[..14].copy_from_slice(&ethernet(&[0x08, 0x00]));
        head.vnet = VnetHeader::default();
        assert_eq!(frame(&mut head, OffloadSet::ALL), verdict, "{len}");
    }
}

#[test]
fn checksum_requests() {
    let bytes: Vec<u8> = ethernet(&[0x08, 0x00]).into_iter().chain([0; 50]).collect();
    let request = |csum_start, csum_offset| VnetHeader {
        flags: wire::F_NEEDS_CSUM,
        csum_start,
        csum_offset,
        ..VnetHeader::default()
    };
    for (start, offset) in [(14, 0), (34, 16), (34, 28), (62, 0), (14, 48)] {
        let head = check(&bytes, request(start, offset)).expect("sound");
        assert_eq!(head.offload, Offload { checksum: Checksum::Partial { start, offset }, gso: None });
        let mut head = Head::from_frame(&bytes);
        head.vnet = request(start, offset);
        assert_eq!(frame(&mut head, OffloadSet::NONE), Err(DropReason::BadChecksumOffload), "not negotiated");
    }
    for (start, offset) in
        [(0, 0), (13, 2), (34, 29), (63, 0), (64, 0), (65_535, 65_535), (65_535, 1), (20, 65_535)]
    {
        let got = check(&bytes, request(start, offset)).map(|h| h.offload);
        assert_eq!(got, Err(DropReason::BadChecksumOffload), "{start} + {offset}");
    }
    // Behind a tag, not in it.
    let tagged: Vec<u8> = ethernet(&[0x81, 0, 0, 1, 0x08, 0x00]).into_iter().chain([0; 50]).collect();
    assert!(check(&tagged, request(18, 0)).is_ok());
    assert!(check(&tagged, request(17, 0)).is_err());
}

#[test]
fn a_verified_checksum_is_passed_on() {
    let vnet = VnetHeader { flags: wire::F_DATA_VALID, csum_start: 9999, ..VnetHeader::default() };
    let head = check(&ethernet(&[0x08, 0x00]), vnet).unwrap();
    assert_eq!(head.offload, Offload { checksum: Checksum::Valid, gso: None });
}

/// The verdict on a frame, with what `change` does to it.
fn verdict(
    spec: &Spec,
    accepted: OffloadSet,
    change: impl FnOnce(&mut Received),
) -> Result<Offload, DropReason> {
    let mut received = build(spec);
    change(&mut received);
    let mut head = received.head();
    frame(&mut head, accepted).map(|()| head.offload)
}

const SEGMENTATION: Result<Offload, DropReason> = Err(DropReason::BadSegmentationOffload);
const CHECKSUM: Result<Offload, DropReason> = Err(DropReason::BadChecksumOffload);

#[test]
fn super_frames_of_each_kind() {
    let (tcp4, tcp6) = (Spec::tcp(), Spec { v6: true, ..Spec::tcp() });
    let (udp4, udp6) = (Spec { udp: true, ..tcp4.clone() }, Spec { udp: true, ..tcp6.clone() });
    let size = NonZeroU16::new(1000).unwrap();
    let all = [
        (&tcp4, GsoKind::TcpV4, OffloadSet::TCPV4, 54, 34, 16),
        (&tcp6, GsoKind::TcpV6, OffloadSet::TCPV6, 74, 54, 16),
        (&udp4, GsoKind::UdpL4, OffloadSet::UDP_L4, 42, 34, 6),
        (&udp6, GsoKind::UdpL4, OffloadSet::UDP_L4, 62, 54, 6),
    ];
    for (spec, kind, feature, header_len, start, offset) in all {
        let needed = feature.with(OffloadSet::CHECKSUM);
        let gso = Gso { kind, ecn: false, size, header_len };
        let want = Offload { checksum: Checksum::Partial { start, offset }, gso: Some(gso) };
        assert_eq!(verdict(spec, needed, |_| ()), Ok(want));
        assert_eq!(want.needs(), needed);
        assert_eq!(verdict(spec, OffloadSet::ALL.without(feature), |_| ()), SEGMENTATION, "not negotiated");
        assert_eq!(verdict(spec, OffloadSet::ALL.without(OffloadSet::CHECKSUM), |_| ()), CHECKSUM);
        let ecn = verdict(spec, OffloadSet::ALL, |r| r.vnet.gso_type |= wire::GSO_ECN);
        if kind == GsoKind::UdpL4 {
            assert_eq!(ecn, SEGMENTATION);
        } else {
            assert_eq!(ecn.map(|o| o.gso.map(|g| g.ecn)), Ok(Some(true)));
            let unnegotiated = OffloadSet::ALL.without(OffloadSet::ECN);
            assert_eq!(verdict(spec, unnegotiated, |r| r.vnet.gso_type |= wire::GSO_ECN), SEGMENTATION);
        }
        // The other kinds' types are refused, and types that nobody knows.
        for other in (1..=255_u8).filter(|t| t & !wire::GSO_ECN != build(spec).vnet.gso_type) {
            assert_eq!(verdict(spec, OffloadSet::ALL, |r| r.vnet.gso_type = other), SEGMENTATION, "{other}");
        }
    }
}

#[test]
fn segment_sizes() {
    let spec = Spec::tcp();
    for size in [0, 1, 7, 65_535, 65_535 - 39] {
        assert_eq!(verdict(&spec, OffloadSet::ALL, |r| r.vnet.gso_size = size), SEGMENTATION, "{size}");
    }
    for size in [8, 88, 1460, 2999] {
        let gso = verdict(&spec, OffloadSet::ALL, |r| r.vnet.gso_size = size).unwrap().gso;
        assert_eq!(gso.map(|g| g.size.get()), Some(size));
    }
    for size in [3000, 9000, 65_535 - 40] {
        let offload = verdict(&spec, OffloadSet::ALL, |r| r.vnet.gso_size = size).unwrap();
        assert_eq!(offload.gso, None, "a single segment of {size}");
        assert_eq!(offload.checksum, Checksum::Partial { start: 34, offset: 16 });
    }
    // The number of segments is bounded.
    let most = Spec { payload: SEGMENTS_MAX * 100, size: 100, ..Spec::tcp() };
    assert!(verdict(&most, OffloadSet::ALL, |_| ()).is_ok());
    let more = Spec { payload: SEGMENTS_MAX * 100 + 1, ..most };
    assert_eq!(verdict(&more, OffloadSet::ALL, |_| ()), SEGMENTATION);
    // 64 KB of IP.
    let longest = Spec { payload: 65_535 - 40, size: 1460, ..Spec::tcp() };
    assert!(verdict(&longest, OffloadSet::ALL, |_| ()).is_ok());
}

#[test]
fn a_super_frame_needs_a_checksum_request_that_is_its_own() {
    let spec = Spec::tcp();
    assert_eq!(verdict(&spec, OffloadSet::ALL, |r| r.vnet.flags = 0), SEGMENTATION);
    assert_eq!(verdict(&spec, OffloadSet::ALL, |r| r.vnet.flags = wire::F_DATA_VALID), SEGMENTATION);
    assert_eq!(verdict(&spec, OffloadSet::ALL, |r| r.vnet.csum_start = 14), SEGMENTATION);
    assert_eq!(verdict(&spec, OffloadSet::ALL, |r| r.vnet.csum_offset = 6), SEGMENTATION);
    assert_eq!(verdict(&spec, OffloadSet::ALL, |r| r.vnet.csum_offset = 60), CHECKSUM);
    for hint in [0, 1, 54, 65_535] {
        let offload = verdict(&spec, OffloadSet::ALL, |r| r.vnet.hdr_len = hint).unwrap();
        assert_eq!(offload.gso.map(|g| g.header_len), Some(54), "the hint is not believed");
    }
}

#[test]
fn headers_that_do_not_fit_the_frame() {
    let (v4, v6) = (Spec::tcp(), Spec { v6: true, ip_options: 1, ..Spec::tcp() });
    let udp = Spec { udp: true, ..Spec::tcp() };
    type Change = fn(&mut Received);
    let changes: [(&Spec, &str, Change); 18] = [
        (&v4, "another EtherType", |r| r.bytes[13] = 6),
        (&v4, "version", |r| r.bytes[14] = 0x65),
        (&v4, "IHL too small", |r| r.bytes[14] = 0x44),
        (&v4, "IHL beyond the head", |r| r.bytes[14] = 0x4f),
        (&v4, "total length", |r| r.bytes[17] ^= 1),
        (&v4, "total length 0", |r| r.bytes[16..18].fill(0)),
        (&v4, "more fragments", |r| r.bytes[20] |= 0x20),
        (&v4, "fragment offset", |r| r.bytes[21] |= 1),
        (&v4, "protocol", |r| r.bytes[23] = 17),
        (&v4, "data offset too small", |r| r.bytes[46] = 0x40),
        (&v4, "data offset beyond the head", |r| r.bytes[46] = 0xf0),
        (&v4, "head cut in TCP", |r| r.head_len = 52),
        (&v6, "version", |r| r.bytes[14] = 0x40),
        (&v6, "payload length", |r| r.bytes[19] ^= 1),
        (&v6, "payload length 0", |r| r.bytes[18..20].fill(0)),
        (&v6, "fragment header", |r| r.bytes[20] = 44),
        (&v6, "extension beyond the head", |r| r.bytes[55] = 255),
        (&udp, "datagram length", |r| r.bytes[39] ^= 1),
    ];
    for (spec, what, change) in changes {
        assert!(verdict(spec, OffloadSet::ALL, |_| ()).is_ok());
        let got = verdict(spec, OffloadSet::ALL, change);
        assert!(got == SEGMENTATION || got == CHECKSUM, "{what}: {got:?}");
    }
    let empty = Spec { payload: 0, ..Spec::tcp() };
    assert_eq!(verdict(&empty, OffloadSet::ALL, |_| ()), SEGMENTATION);
    // An endless chain of extension headers, all within the head.
    let chain = Spec { v6: true, ip_options: 10, ..Spec::tcp() };
    let chained = |links: usize| {
        verdict(&chain, OffloadSet::ALL, |r| {
            for i in 0..links {
                r.bytes[54 + i * 8..][..2].copy_from_slice(&[if i + 1 < links { 60 } else { 6 }, 0]);
            }
            if links < 10 {
                r.bytes[54 + (links - 1) * 8 + 1] = (10 - links) as u8;
            }
        })
    };
    assert!(chained(8).is_ok());
    assert_eq!(chained(9), SEGMENTATION);
    assert_eq!(chained(10), SEGMENTATION);
}

proptest! {
    #[test]
    fn sound_super_frames_are_accepted(spec in specs()) {
        let received = build(&spec);
        let mut head = received.head();
        frame(&mut head, OffloadSet::ALL).expect("sound");
        prop_assert_eq!(head.vlan, spec.tci.and_then(|tci| Vid::new(tci & 0xfff)));
        let start = received.at[1] as u16;
        let offset = received.vnet.csum_offset;
        prop_assert_eq!(head.offload.checksum, Checksum::Partial { start, offset });
        let gso = head.offload.gso;
        prop_assert_eq!(gso.is_some(), spec.payload > usize::from(spec.size));
        if let Some(gso) = gso {
            prop_assert_eq!(usize::from(gso.header_len), received.at[2]);
        }
    }

    /// Whatever is in a frame and its virtio-net header: what is accepted keeps what `Offload` promises.
    #[test]
    fn nothing_is_accepted_that_does_not_fit(
        spec in specs(),
        flips in proptest::collection::vec((0..80_usize, any::<u8>()), 0..6),
        vnet in proptest::option::of(any::<[u8; 12]>()),
        head_len in 0..=HEAD_MAX,
        accepted in any::<u8>(),
    ) {
        let mut received = build(&spec);
        for (at, value) in flips {
            if let Some(byte) = received.bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(vnet) = vnet {
            received.vnet = VnetHeader::from_bytes(vnet);
        }
        received.head_len = head_len;
        let accepted = OffloadSet::from_bits(accepted);
        let mut head = received.head();
        if frame(&mut head, accepted).is_ok() {
            prop_assert!(accepted.contains(head.offload.needs()));
            prop_assert!(head.link_len() <= head.bytes().len());
            if let Checksum::Partial { start, offset } = head.offload.checksum {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= head.bytes().len());
                prop_assert!(usize::from(start) >= head.link_len());
            }
            if let Some(gso) = head.offload.gso {
                let is_partial = matches!(head.offload.checksum, Checksum::Partial { .. });
                prop_assert!(is_partial);
                prop_assert!(usize::from(gso.header_len) <= head.bytes().len());
                prop_assert!(usize::from(gso.header_len) + usize::from(gso.size.get()) < head.frame_len());
            }
        }
    }
}
