//! Whatever a guest sends, nothing panics, and nothing leaves that it may not send.

use proptest::prelude::*;

use super::*;

/// A frame that is sound, and then is not: some bytes are others.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let addresses = proptest::sample::select(vec![
        ("10.0.0.5", "10.0.0.6"),
        ("10.0.0.6", "10.0.0.7"),
        ("172.16.1.1", "10.0.0.7"),
        ("fd00::5", "fd00::6"),
        ("fe80::5", "fd00::6"),
        ("fd00::5", "2001:db8::77"),
        ("10.0.0.5", "198.51.100.1"),
    ]);
    let udp = (addresses, 0..4_u8, 0..1600_usize)
        .prop_map(|((source, destination), hops, len)| packet(A, source, destination, hops, len));
    let neighbours = prop_oneof![
        Just(arp_request(A, "10.0.0.5", "10.0.0.6")),
        Just(solicitation(A, "fe80::5", "fd00::6")),
        Just(solicitation(A, "::", "fd00::6")),
    ];
    let bytes = proptest::collection::vec(any::<u8>(), 14..200);
    let frame = prop_oneof![4 => udp, 2 => neighbours, 1 => bytes];
    let spoil = proptest::collection::vec((0..80_usize, any::<u8>()), 0..3);
    (frame, spoil, any::<bool>()).prop_map(|(mut frame, spoil, mend)| {
        for (at, value) in spoil {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        // An IPv4 header whose checksum is right gets further.
        if mend && frame.len() >= 34 && frame[12..15] == [8, 0, 0x45] {
            frame[24..26].fill(0);
            let mut sum = switch_core::checksum::Sum::new();
            sum.add(&frame[14..34]);
            let right = sum.checksum();
            frame[24..26].copy_from_slice(&right.to_be_bytes());
        }
        frame
    })
}

/// Whether port A may send with an address.
fn is_of_a(address: IpAddr) -> bool {
    [ip("10.0.0.5"), ip("fd00::5")].contains(&address) || net("172.16.0.0/16").contains(address)
}

proptest! {
    #[test]
    fn nothing_leaves_that_a_guest_may_not_send(
        frames in proptest::collection::vec(frames(), 1..30), many in any::<bool>(),
    ) {
        let mut rig = if many { Rig::new().with_many_routes() } else { Rig::new() };
        for frame in frames {
            let mut head = Head::from_frame(&frame[..frame.len().min(128)]);
            if check::frame(&mut head, OffloadSet::NONE).is_err() {
                continue;
            }
            let sent = match rig.inject(A, &frame) {
                Fate::Fast(port, frame) => vec![(port, frame)],
                Fate::Slow(sent) => sent,
                Fate::Dropped(_) | Fate::Services => vec![],
            };
            let later = rig.wait(100);
            for (port, frame) in sent.into_iter().chain(later) {
                prop_assert_eq!(&frame[6..12], &ROUTER.0[..], "all that leaves is from the router");
                let Ok(out) = Packet::of_frame(&frame) else {
                    prop_assert!(Arp::of_frame(&frame).is_some(), "IP or ARP");
                    continue;
                };
                let own = rig.routed.settings.own().any(|own| own == out.source())
                    || out.source() == IpAddr::V6(link_local(ROUTER));
                if !own {
                    prop_assert!(port != A && is_of_a(out.source()), "{} to port {port}", out.source());
                    prop_assert!(out.hop_limit() > 0);
                }
            }
        }
        prop_assert!(rig.routed.neighbors.len() < 100);
    }
}
