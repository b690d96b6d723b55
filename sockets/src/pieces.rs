//! Whole packets into the network, in fragments where they are longer than its MTU: datagrams of the outside that came in
//! fragments, or over a longer link. A guest puts them together again.

use switch_core::ip::{Addresses, fragments};

use crate::frame::{NETWORK_MAX, Way};

/// IPv6's fragment header (RFC 8200, 4.5).
const FRAGMENT_HEADER: u8 = 44;
const FRAGMENT_LEN: usize = 8;

/// The frames of a packet: `transport` is its transport header, with its checksum complete, and its payload, at most 65,535
/// bytes with the IP header. `id` tells the packet's fragments from those of another.
pub(crate) fn frames(way: &Way, transport: &[u8], mtu: u16, id: u32) -> Vec<Vec<u8>> {
    let mut headers = [0; NETWORK_MAX];
    let n = way.write(&mut headers, transport.len());
    let mut frame = headers[..n].to_vec();
    frame.extend_from_slice(transport);
    if n - 14 + transport.len() <= usize::from(mtu) {
        return vec![frame];
    }
    match way.addresses {
        Addresses::V4 { .. } => {
            let [a, b] = (id as u16).to_be_bytes();
            // No DF, and an identification: both change the header's checksum, which is computed anew.
            (frame[18], frame[19], frame[20]) = (a, b, 0);
            frame[24..26].fill(0);
            let mut sum = switch_core::checksum::Sum::new();
            sum.add(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
            fragments(&frame, mtu.into()).unwrap_or_default()
        }
        Addresses::V6 { .. } => v6(way, transport, mtu, id),
    }
}

fn v6(way: &Way, transport: &[u8], mtu: u16, id: u32) -> Vec<Vec<u8>> {
    let room = usize::from(mtu.max(1280)).saturating_sub(40 + FRAGMENT_LEN) & !7;
    let last = transport.len().div_ceil(room).saturating_sub(1);
    let fragment = Way { protocol: FRAGMENT_HEADER, ..*way };
    let piece = |(i, piece): (usize, &[u8])| {
        let mut headers = [0; NETWORK_MAX];
        let n = fragment.write(&mut headers, FRAGMENT_LEN + piece.len());
        let place = (i * room) as u16 | u16::from(i < last);
        let mut frame = headers[..n].to_vec();
        frame.extend_from_slice(&[way.protocol, 0]);
        frame.extend_from_slice(&place.to_be_bytes());
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(piece);
        frame
    };
    transport.chunks(room).enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use switch_core::MacAddr;
    use switch_core::ip::Packet;

    #[test]
    fn what_is_cut_is_whole_together() {
        let v4 =
            Addresses::V4 { source: Ipv4Addr::new(192, 0, 2, 1), destination: Ipv4Addr::new(10, 0, 0, 2) };
        let v6 = Addresses::V6 {
            source: "2001:db8::1".parse::<Ipv6Addr>().unwrap(),
            destination: "fd00::2".parse::<Ipv6Addr>().unwrap(),
        };
        for addresses in [v4, v6] {
            let way = Way { to: MacAddr([2; 6]), from: MacAddr([4; 6]), addresses, protocol: 17 };
            for len in [8, 1400, 1480, 1481, 4000, 60_000] {
                let transport: Vec<u8> = (0..len).map(|n: u32| n as u8).collect();
                let (mut got, mut more) = (Vec::new(), true);
                for frame in frames(&way, &transport, 1500, 77) {
                    let packet = Packet::of_frame(&frame).expect("a sound packet");
                    assert!(packet.len() <= 1500 && more, "{len}");
                    assert_eq!((packet.addresses(), packet.protocol()), (addresses, 17));
                    assert_eq!(usize::from(packet.fragment_offset()), got.len());
                    assert!(!packet.is_fragment() || packet.fragment_id() == 77);
                    more = packet.more_fragments();
                    got.extend_from_slice(&frame[packet.transport_at()..packet.end()]);
                }
                assert!(got == transport && !more, "{len}");
            }
        }
    }
}
