//! Fragments, in either order and either direction.

use switch_core::ip::fragments;

use super::*;

/// Puts fragments together again: what a receiver gets.
fn reassemble(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = vec![0; 4000];
    let mut len = 0;
    let mut ids = Vec::new();
    for frame in frames {
        let packet = Packet::of_frame(frame).expect("an IP packet");
        let body = &frame[packet.transport_at()..packet.end()];
        let at = usize::from(packet.fragment_offset());
        payload[at..at + body.len()].copy_from_slice(body);
        len = len.max(at + body.len());
        ids.push((packet.source(), packet.destination(), packet.fragment_id()));
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "fragments of one packet");
    payload.truncate(len);
    let (source, destination, _) = ids[0];
    let datagram = wire::UdpPacket::new_checked(&payload[..]).expect("whole");
    assert!(datagram.verify_checksum(&source.into(), &destination.into()), "a wrong checksum");
    payload
}

fn pieces(frame: Vec<u8>) -> Vec<Vec<u8>> {
    let pieces = fragments(&dont_fragment(frame, false), 576).expect("IPv4");
    assert!(pieces.len() >= 3);
    pieces
}

#[test]
fn fragments_are_translated_in_either_order() {
    let payload: Vec<u8> = (0..1400_u16).map(|i| i as u8).collect();
    for reversed in [false, true] {
        let mut net = Net::new();
        let mut sent = pieces(udp(out(REMOTE), 4000, 53, &payload));
        if reversed {
            sent.reverse();
        }
        for frame in sent {
            net.send(A, frame);
        }
        let got = net.got(UPLINK);
        assert!(got.len() >= 3, "reversed: {reversed}, {}", got.len());
        let datagram = reassemble(&got);
        assert_eq!(datagram[8..], payload);
        let outside = u16::from_be_bytes([datagram[0], datagram[1]]);
        assert!(got.iter().all(|frame| Packet::of_frame(frame).unwrap().source() == ip(EXTERNAL)));

        let mut answer = pieces(udp(back(REMOTE), 53, outside, &payload));
        if reversed {
            answer.reverse();
        }
        for frame in answer {
            net.send(UPLINK, frame);
        }
        let got = net.got(A);
        let datagram = reassemble(&got);
        assert_eq!((&datagram[2..4], &datagram[8..]), (&4000_u16.to_be_bytes()[..], &payload[..]));
        assert!(got.iter().all(|frame| Packet::of_frame(frame).unwrap().destination() == ip(IP_A)));
    }
}

#[test]
fn fragments_without_a_first_one_are_forgotten() {
    let mut net = Net::new();
    let payload = [1; 1400];
    for id in 0..1000_u16 {
        let mut later = pieces(udp(out(REMOTE), 4000, 53, &payload)).remove(1);
        later[18..20].copy_from_slice(&id.to_be_bytes());
        let mut header = wire::Ipv4Packet::new_unchecked(&mut later[14..]);
        header.fill_checksum();
        net.send(A, later);
    }
    net.nothing();
    net.wait(6);
    let first = pieces(udp(out(REMOTE), 4000, 53, &payload)).remove(0);
    net.send(A, first);
    assert_eq!(net.got(UPLINK).len(), 1, "those that waited are gone");
}

#[test]
fn fragments_of_strangers_are_not_let_in() {
    let mut net = Net::new();
    for frame in pieces(udp(back(REMOTE), 53, 4444, &[1; 1400])) {
        net.send(UPLINK, frame);
    }
    net.wait(10);
    net.nothing();
}

#[test]
fn a_packet_that_is_too_big_and_may_be_fragmented_is() {
    let mut net = Net::with(settings(), 600);
    let payload: Vec<u8> = (0..1400_u16).map(|i| i as u8).collect();
    net.send(A, dont_fragment(udp(out(REMOTE), 4000, 53, &payload), false));
    let got = net.got(UPLINK);
    assert_eq!(got.len(), 3);
    assert!(got.iter().all(|frame| frame.len() <= 14 + 600));
    assert_eq!(reassemble(&got)[8..], payload);
    net.nothing();
}
