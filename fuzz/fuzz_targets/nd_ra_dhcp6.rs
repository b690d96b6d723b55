//! Frames of neighbours: router solicitations and DHCPv6 to the services that answer them, ARP and neighbour
//! discovery to their readers.
//!
//! Input: records, each of one byte of flags (bits 0 and 1: the port, bit 2: lengths and checksum are made right
//! first, bit 3: the port goes away), one of tenths of a second that pass, one for the length of a frame in units of
//! four bytes, and that frame. A fuzzing build of the services' codec takes any checksum.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use modes::gateway::dhcp6::{Client, Dhcp6Config, Dhcp6Server, Reservation};
use modes::gateway::ra::{Advertiser, MIN_DELAY_BETWEEN_RAS, RaConfig, RaPrefix};
use modes::gateway::{Handled, Outbox};
use switch_core::checksum::Sum;
use switch_core::ids::Registry;
use switch_core::ip::arp::Arp;
use switch_core::ip::nd::Neighbor;
use switch_core::{Instant, MacAddr, PortId};

const RECORDS_MAX: usize = 64;
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const GUEST: MacAddr = MacAddr([0, 0x16, 0x3e, 1, 2, 3]);

/// Makes the IPv6 payload length and the checksum of ICMPv6 or UDP right, if there is one directly behind.
fn mend(frame: &mut [u8]) {
    let Some(length) = frame.len().checked_sub(54).and_then(|l| u16::try_from(l).ok()) else { return };
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    let at = match frame[20] {
        58 => 54 + 2,
        17 => 54 + 6,
        _ => return,
    };
    if frame[20] == 17 && length >= 8 {
        frame[58..60].copy_from_slice(&length.to_be_bytes());
    }
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.fill(0);
        let checksum = match sum(frame).checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The sum of what is behind an IPv6 header, with its pseudo-header.
fn sum(frame: &[u8]) -> Sum {
    let address = |at: usize| frame[at..at + 16].try_into().expect("16 bytes");
    let mut sum = Sum::pseudo_v6(address(22), address(38), frame[20], frame.len() as u32 - 54);
    sum.add(&frame[54..]);
    sum
}

/// What every frame of the services is: a whole packet of the router's that no MTU of IPv6 is too small for.
fn assert_sound(frame: &[u8]) {
    assert!(frame.len() <= 14 + 1280);
    assert_eq!(frame[6..12], ROUTER.0);
    assert_eq!(frame[12..14], [0x86, 0xdd]);
    assert_eq!(usize::from(u16::from_be_bytes([frame[18], frame[19]])) + 54, frame.len());
    assert_eq!(sum(frame).fold(), 0xffff);
    match frame[20] {
        58 => assert_eq!((frame[21], frame[54], frame[55]), (255, 134, 0)),
        17 => assert_eq!(frame[54..58], [547_u16.to_be_bytes(), 546_u16.to_be_bytes()].concat()),
        other => panic!("next header {other}"),
    }
}

/// What the readers make of a frame, they write as something that they read as the same.
fn read(frame: &[u8]) {
    if let Some(arp) = Arp::of_frame(frame) {
        assert!(arp.sender_mac.is_station());
        assert_eq!(Arp::of_frame(&arp.to_frame(MacAddr::BROADCAST)), Some(arp));
        let answer = arp.reply(ROUTER);
        assert_eq!((answer.target, answer.target_mac), (arp.sender, arp.sender_mac));
    }
    if let Some(neighbor) = Neighbor::of_frame(frame) {
        assert!(!neighbor.target.is_multicast());
        assert_eq!(Neighbor::of_frame(&neighbor.to_frame(GUEST, ROUTER)), Some(neighbor));
        assert_eq!(neighbor.reply(ROUTER, true).target, neighbor.target);
    }
}

struct Rig {
    advertiser: Advertiser,
    server: Dhcp6Server,
    ports: [PortId; 4],
}

fn rig() -> Rig {
    let mut registry = Registry::new(4);
    let ports = std::array::from_fn(|_| registry.mint().expect("four ports"));
    let (address, global) = ("fe80::1".parse().expect("an address"), "fd00::1".parse().expect("an address"));
    let search = ["lab.example.", "sub.lab.example."].map(|name| name.parse().expect("a name"));
    let mut ra = RaConfig::new(ROUTER, address);
    (ra.interval_min, ra.interval_max) = (Duration::from_secs(3), Duration::from_secs(10));
    ra.prefixes = vec![RaPrefix::new("fd00::/64".parse().expect("a prefix"))];
    ra.dns = vec![address];
    ra.search = search.to_vec();
    let mut dhcp = Dhcp6Config::new(ROUTER, address);
    dhcp.others = vec![global];
    dhcp.prefixes = vec!["fd00::/64".parse().expect("a prefix")];
    dhcp.dns = vec![address];
    dhcp.search = search.to_vec();
    let mut server = Dhcp6Server::new(dhcp).expect("a configuration");
    let reserved = |client, port, last: u16| Reservation {
        client,
        port,
        address: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last),
    };
    let reservations = vec![
        reserved(Client::Mac(GUEST), Some(ports[0]), 0x203),
        reserved(Client::Mac(MacAddr([2, 0, 0, 0, 0, 7])), None, 7),
        reserved(Client::Duid(vec![0, 4, 7, 7, 7, 7]), None, 8),
    ];
    server.set_reservations(reservations).expect("reservations");
    Rig { advertiser: Advertiser::new(Instant::ORIGIN, ra, 1).expect("a configuration"), server, ports }
}

fuzz_target!(|data: &[u8]| {
    let Rig { mut advertiser, mut server, ports } = rig();
    let (mut out, mut now, mut rest) = (Outbox::default(), Instant::ORIGIN, data);
    let mut last_to_all = None;
    for _ in 0..RECORDS_MAX {
        let Some((&[flags, tenths, length], more)) = rest.split_first_chunk() else { break };
        let (frame, more) = more.split_at(more.len().min(usize::from(length) * 4));
        rest = more;
        now = now + Duration::from_millis(u64::from(tenths) * 100);
        let port = ports[usize::from(flags & 3)];
        let mut frame = frame.to_vec();
        if flags & 4 != 0 {
            mend(&mut frame);
        }
        read(&frame);
        let taken = [
            advertiser.receive(now, port, &frame, &mut out),
            server.receive(now, port, &frame, &mut out),
        ];
        assert_ne!(taken, [Handled::Yes, Handled::Yes], "a frame is one service's");
        if flags & 8 != 0 {
            advertiser.port_removed(port);
            server.port_removed(port);
        }
        advertiser.poll(now, &mut out);
        assert!(advertiser.poll_at().is_some_and(|at| at > now), "what was due is done");
        while let Some(sent) = out.pop() {
            assert_sound(&sent.frame);
            if sent.to.is_none() {
                assert_eq!(sent.frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
                assert!(last_to_all.is_none_or(|last| now.since(last) >= MIN_DELAY_BETWEEN_RAS));
                last_to_all = Some(now);
            } else {
                assert!(sent.frame[0] & 1 == 0, "to one station");
            }
        }
        assert!(server.bindings(now).len() <= 3);
    }
    advertiser.farewell(&mut out);
    let last = out.pop().expect("a last advertisement");
    assert_sound(&last.frame);
    assert_eq!(last.frame[60..62], [0, 0], "its router lifetime");
    assert!(advertiser.poll_at().is_none() && out.is_empty());
});
