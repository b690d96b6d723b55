//! Whatever the packet and the change, checksums stay right; whatever the bytes, nothing panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{Kind, THERE, checksums_hold, frame, head_of, ip, mend};
use crate::checksum;
use crate::head::Head;
use crate::ip::arp::Arp;
use crate::ip::nd::Neighbor;
use crate::ip::{Cause, Origin, Packet, error_frame, fragments};
use crate::offload::OffloadSet;
use crate::testing::{self, Spec, noise, specs};

fn addresses(six: bool) -> impl Strategy<Value = IpAddr> {
    any::<[u8; 16]>().prop_map(move |octets| {
        if six {
            Ipv6Addr::from(octets).into()
        } else {
            Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
        }
    })
}

/// A change: of the source or the destination, to what.
type Edit = (bool, IpAddr, Option<u16>);

/// A packet and changes of it.
fn edits() -> impl Strategy<Value = (IpAddr, IpAddr, Kind, Vec<u8>, Vec<Edit>)> {
    (any::<bool>(), 0..3_usize).prop_flat_map(|(six, kind)| {
        let kind = [Kind::Tcp, Kind::Udp, Kind::Echo][kind];
        let edit = (any::<bool>(), addresses(six), proptest::option::of(any::<u16>()));
        let payload = proptest::collection::vec(any::<u8>(), 0..300);
        (addresses(six), addresses(six), Just(kind), payload, proptest::collection::vec(edit, 0..6))
    })
}

proptest! {
    /// Whatever is changed, etherparse finds all checksums right, and reads what was written.
    #[test]
    fn rewriting_keeps_complete_checksums((source, destination, kind, payload, edits) in edits()) {
        let whole = frame(source, destination, 64, kind, &payload);
        let mut head = head_of(&whole);
        let mut packet = Packet::of_head(&head).expect("sound");
        for (of_source, address, port) in edits {
            let done = if of_source {
                packet.set_source(&mut head, address, port)
            } else {
                packet.set_destination(&mut head, address, port)
            };
            prop_assert!(done);
            prop_assert!(packet.decrement_hop_limit(&mut head));
        }
        let mut after = whole;
        after[..head.bytes().len()].copy_from_slice(head.bytes());
        prop_assert!(checksums_hold(&after).expect("readable"));
        prop_assert_eq!(Packet::of_frame(&after), Ok(packet));
    }

    /// The same with super-frames and partial checksums: completed, or cut and completed, they are right.
    #[test]
    fn rewriting_keeps_partial_checksums(
        spec in specs(), address in any::<[u8; 16]>(), port in any::<u16>(), of_source in any::<bool>(),
    ) {
        let spec = Spec { ip_options: spec.ip_options.min(5), ..spec };
        let received = testing::build(&spec);
        let mut head = received.head();
        if crate::check::frame(&mut head, OffloadSet::ALL).is_err() {
            return Ok(());
        }
        let address = if spec.v6 {
            IpAddr::from(address)
        } else {
            Ipv4Addr::new(address[0], address[1], address[2], address[3]).into()
        };
        let mut packet = Packet::of_head(&head).expect("sound");
        let done = if of_source {
            packet.set_source(&mut head, address, Some(port))
        } else {
            packet.set_destination(&mut head, address, Some(port))
        };
        prop_assert!(done && packet.decrement_hop_limit(&mut head));
        head.offload.gso = None;
        prop_assert!(checksum::complete(&mut head, |sum| sum.add(received.tail())));
        let mut whole = head.bytes().to_vec();
        whole.extend_from_slice(received.tail());
        prop_assert!(checksums_hold(&whole).expect("readable"));
        prop_assert_eq!(Packet::of_frame(&whole), Ok(packet));
    }

    /// The pieces of a packet, put together, are the packet.
    #[test]
    fn fragments_make_the_packet(len in 1..5000_usize, mtu in 60..1600_usize, second in 68..600_usize) {
        let whole = frame(ip("10.0.0.5"), ip("192.0.2.1"), 9, Kind::Udp, &noise(len));
        let pieces = fragments(&whole, mtu).expect("pieces");
        // In pieces again, as by another router.
        let pieces: Vec<_> = pieces.iter().flat_map(|piece| fragments(piece, second).expect("pieces")).collect();
        let mut payload = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let packet = Packet::of_frame(piece).expect("sound");
            prop_assert!(packet.len() <= mtu.max(68) && packet.len() <= second && piece.len() == packet.end());
            prop_assert_eq!(usize::from(packet.fragment_offset()), payload.len());
            prop_assert_eq!(packet.more_fragments(), i + 1 < pieces.len());
            prop_assert_eq!(packet.fragment_id(), Packet::of_frame(&whole).expect("sound").fragment_id());
            payload.extend_from_slice(&piece[34..]);
        }
        prop_assert_eq!(&payload[..], &whole[34..]);
    }

    /// No bytes make anything panic, as a head or as a frame, whole or cut.
    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4_usize, spoil in any::<[u8; 4]>(),
        cut in 0..200_usize,
    ) {
        let mut bytes = match kind {
            0 => bytes,
            1 => frame(ip("10.0.0.5"), ip("192.0.2.1"), 1, Kind::Udp, &bytes),
            2 => frame(ip("fd00::5"), ip("2001:db8::1"), 1, Kind::Echo, &bytes),
            _ => {
                let f = frame(ip("10.0.0.5"), ip("192.0.2.1"), 1, Kind::Tcp, &bytes);
                error_frame(&f, Cause::TimeExceeded, Origin { mac: THERE, address: ip("10.0.0.1") }).expect("an error")
            }
        };
        if let Some(byte) = bytes.get_mut(usize::from(spoil[0])) {
            *byte = spoil[1];
        }
        if let Some(byte) = bytes.get_mut(14 + usize::from(spoil[2] % 48)) {
            *byte = spoil[3];
        }
        // An IPv4 header's checksum made right, so that what is behind it is reached.
        if bytes.len() >= 34 && bytes[14] == 0x45 {
            mend(&mut bytes);
        }
        for (cause, address) in [(Cause::ProtocolUnreachable, ip("10.0.0.1")), (Cause::TooBig { mtu: 0 }, ip("fd00::1"))] {
            let _ = error_frame(&bytes, cause, Origin { mac: THERE, address });
        }
        let _ = fragments(&bytes, 0);
        let _ = Arp::of_frame(&bytes);
        let _ = Neighbor::of_frame(&bytes);
        if let Ok(packet) = Packet::of_frame(&bytes) {
            for address in [ip("10.9.9.9"), ip("fd00::9")] {
                for port in [None, Some(7)] {
                    let mut changed = bytes.clone();
                    let mut p = packet;
                    let _ = p.set_source(&mut changed, address, port);
                    let _ = p.set_destination(&mut changed, address, port);
                    let _ = p.decrement_hop_limit(&mut changed);
                    let _ = p.edit_quote(&mut changed, |q, b| q.set_destination(b, address, port));
                    // Bytes that are not those that were parsed.
                    changed.truncate(cut);
                    let _ = packet.edit_quote(&mut changed, |q, b| q.set_source(b, address, port));
                    let mut p = packet;
                    let _ = p.set_source(&mut changed, address, port);
                    let _ = p.decrement_hop_limit(&mut changed);
                }
            }
        }
        let mut head = Head::from_frame(&bytes);
        if bytes.len() == head.bytes().len() && crate::check::frame(&mut head, OffloadSet::NONE).is_ok() {
            let whole = Packet::of_frame(&bytes);
            prop_assert_eq!(Packet::of_head(&head), whole);
        }
    }
}

#[test]
fn a_udp_checksum_never_becomes_none() {
    let whole = frame(ip("10.0.0.5"), ip("192.0.2.1"), 9, Kind::Udp, &noise(20));
    let mut reached = false;
    for port in 0..=u16::MAX {
        let mut changed = whole.clone();
        let mut packet = Packet::of_frame(&changed).expect("sound");
        assert!(packet.set_source(&mut changed, ip("10.0.0.6"), Some(port)));
        assert_ne!(changed[40..42], [0, 0], "port {port}");
        reached |= changed[40..42] == [0xff, 0xff];
        if port % 997 == 0 || changed[40..42] == [0xff, 0xff] {
            assert!(checksums_hold(&changed).expect("readable"));
        }
    }
    assert!(reached, "one port of all makes it zero");
}
