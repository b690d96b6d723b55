//! A frame and its virtio-net header, as a guest may make them, through everything that works on heads: the
//! check, the bridge's decision, tags, segmentation and the completion of checksums.
//!
//! Input: one byte for the length of the head, one for the features that were negotiated, one of flags (bit 0:
//! a tag is pushed after the check, bit 1: one is popped), two for zeros that are appended to the frame
//! (little-endian, so that super-frames of 64 KB are within reach), twelve of virtio-net header, then the frame.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use modes::Bridge;
use switch_core::fdb::{AGEING_DEFAULT, LIMIT_DEFAULT};
use switch_core::head::{Head, VNET_ROOM};
use switch_core::ids::{PortId, Registry, Vid};
use switch_core::mode::{Forwarder, Mode};
use switch_core::offload::{Checksum, GsoKind, Offload, OffloadSet};
use switch_core::segment::Segmenter;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};
use switch_core::virtio_net::VnetHeader;
use switch_core::{DropReason, check, checksum};

struct Rig {
    forwarder: Box<dyn Forwarder>,
    ports: [PortId; 2],
    frames: u64,
}

static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| {
    let mut registry = Registry::new(2);
    let mut mint = || registry.mint().expect("two ports");
    let ports = [mint(), mint()];
    let forwarder = Arc::new(Bridge::new(AGEING_DEFAULT, LIMIT_DEFAULT)).forwarder();
    Mutex::new(Rig { forwarder, ports, frames: 0 })
});

/// The ones' complement sum, as slowly as it is defined.
fn sum(bytes: &[u8]) -> u32 {
    let word = |w: &[u8]| u32::from(w[0]) << 8 | w.get(1).map_or(0, |&b| u32::from(b));
    bytes.chunks(2).map(word).fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

/// What `Offload` promises of a frame.
fn assert_sound(head: &Head) {
    assert!(head.link_len() <= head.bytes().len());
    let mut partial = None;
    if let Checksum::Partial { start, offset } = head.offload.checksum {
        assert!(usize::from(start) >= head.link_len());
        assert!(usize::from(start) + usize::from(offset) + 2 <= head.bytes().len());
        partial = Some(start);
    }
    if let Some(gso) = head.offload.gso {
        assert!(partial.is_some_and(|start| start < gso.header_len));
        assert!(usize::from(gso.header_len) <= head.bytes().len());
        assert!(usize::from(gso.header_len) + usize::from(gso.size.get()) < head.frame_len());
    }
}

/// Cuts a super-frame and reads what comes out as a receiver would.
fn cut(head: &Head, tail: &[u8]) {
    let gso = head.offload.gso.expect("a super-frame");
    let segmenter = Segmenter::new(head).expect("a checked super-frame can be cut");
    assert!((2..=check::SEGMENTS_MAX).contains(&segmenter.count()));
    let whole = [head.bytes(), tail].concat();
    let (network_at, payload_at) = (head.link_len(), usize::from(gso.header_len));
    let Checksum::Partial { start, .. } = head.offload.checksum else {
        panic!("a super-frame without a checksum request");
    };
    let transport_at = usize::from(start);
    let mut next = payload_at;
    let mut out = Head::new();
    for i in 0..segmenter.count() {
        let range = segmenter.segment(i, head, &mut out);
        assert_eq!(range.len(), out.tail_len());
        assert!(out.frame_len() <= segmenter.frame_len_max());
        assert_sound(&out);
        assert!(checksum::complete(&mut out, |sum| sum.add(&tail[range.clone()])));
        assert_eq!(out.offload, Offload::NONE);
        let bytes = [out.bytes(), &tail[range]].concat();
        assert_eq!(bytes.len(), out.frame_len());

        let payload = &bytes[payload_at..];
        let size = usize::from(gso.size.get());
        assert!(payload.len() == size || (i + 1 == segmenter.count() && payload.len() < size));
        assert_eq!(payload, &whole[next..next + payload.len()]);
        next += payload.len();

        let ip = &bytes[network_at..];
        let transport = &bytes[transport_at..];
        let be16 = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
        let protocol = if gso.kind == GsoKind::UdpL4 { 17 } else { 6 };
        let (addresses, by_header) = if ip[0] >> 4 == 4 {
            assert_eq!(be16(2), ip.len());
            assert_eq!(sum(&ip[..transport_at - network_at]), 0xffff, "IPv4 header checksum");
            (&ip[12..20], true)
        } else {
            assert_eq!(be16(4) + 40, ip.len());
            // With extension headers there may be a routing header, whose destination counts.
            (&ip[8..40], ip[6] == protocol)
        };
        if by_header {
            let length = transport.len() as u32;
            let all = sum(addresses) + u32::from(protocol) + length + sum(transport);
            assert_eq!(sum(&all.to_be_bytes()), 0xffff, "transport checksum");
        }
    }
    assert_eq!(next, whole.len());
}

fuzz_target!(|data: &[u8]| {
    let Some((&[head_len, accepted, flags, extra0, extra1], rest)) = data.split_first_chunk() else {
        return;
    };
    let Some((vnet, frame)) = rest.split_first_chunk() else {
        return;
    };
    let mut bytes = frame.to_vec();
    bytes.resize(frame.len() + usize::from(u16::from_le_bytes([extra0, extra1])), 0);
    let mut head = Head::new();
    let space = head.begin(bytes.len() as u32, usize::from(head_len));
    let len = space.len();
    space.copy_from_slice(&bytes[..len]);
    let tail = &bytes[len..];
    head.vnet = VnetHeader::from_bytes(*vnet);
    let accepted = OffloadSet::from_bits(accepted);
    if check::frame(&mut head, accepted).is_err() {
        return;
    }
    assert_sound(&head);
    assert!(accepted.contains(head.offload.needs()));

    {
        let mut rig = RIG.lock().expect("the fuzzer has one thread");
        rig.frames += 1;
        let (now, ports) = (Instant::from_nanos(rig.frames * 1_000_000), rig.ports);
        let mut out = Verdicts::default();
        out.begin(1);
        rig.forwarder.decide(now, ports[0], std::slice::from_mut(&mut head), &mut out);
        let [verdict] = out.as_slice() else {
            panic!("one frame, one verdict");
        };
        match *verdict {
            Verdict::Flood => assert!(!head.destination().is_reserved()),
            Verdict::Unicast(port) => panic!("only {:?} has stations, not {port:?}", ports[0]),
            Verdict::Drop(reason) => assert!(matches!(
                reason,
                DropReason::SamePort | DropReason::BadSource | DropReason::ReservedAddress
            )),
        }
    }

    if flags & 1 != 0 {
        assert!(head.push_tag(Vid::new(7).expect("a VID"), 3));
    }
    if flags & 2 != 0 {
        head.pop_tag();
    }
    assert_sound(&head);
    assert_eq!(head.tail_len(), tail.len());
    let frame_len = head.frame_len();
    let with_header = head.with_vnet([0; VNET_ROOM], VNET_ROOM).len();
    assert_eq!(with_header + tail.len(), frame_len + VNET_ROOM);

    // A tag on a tag is not what super-frames have; then they are not cut.
    if head.offload.gso.is_some() && (flags & 1 == 0 || head.ethertype() != 0x8100) {
        cut(&head, tail);
    } else if head.offload.gso.is_none() {
        let Checksum::Partial { start, offset } = head.offload.checksum else {
            return;
        };
        let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
        let before = [head.bytes(), tail].concat();
        assert!(checksum::complete(&mut head, |sum| sum.add(tail)));
        let whole = [head.bytes(), tail].concat();
        assert_ne!(whole[field..field + 2], [0, 0], "zero would say that there is no checksum");
        let written = u32::from(whole[field]) << 8 | u32::from(whole[field + 1]);
        let expected = 0xffff - sum(&before[start..]);
        assert_eq!(written % 0xffff, expected % 0xffff);
    }
});
