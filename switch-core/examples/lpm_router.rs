//! Prints what a router's work on a head costs with one prefix and with 100,000: reading the headers, the routes of
//! source and destination, one hop less, new MAC addresses. No ports, no copies of tails.
//!
//! `cargo run --release -p switch-core --example lpm_router`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Instant;

use ipnetwork::IpNetwork;
use switch_core::checksum::Sum;
use switch_core::head::Head;
use switch_core::ids::MacAddr;
use switch_core::ip::{Packet, set_macs};
use switch_core::lpm::Lpm;
use switch_core::offload::OffloadSet;

const PREFIXES: u32 = 100_000;
const FRAMES: usize = 1 << 15;
const BURST: usize = 64;
/// Prefixes from which on the routes of a burst are looked up together.
const MANY: usize = 4096;
const ROUNDS: usize = 30;

/// The `n`th guest: in a row, or spread.
fn guest(v6: bool, spread: bool, n: u32) -> IpAddr {
    let place = if spread { n.wrapping_mul(0x9e37_79b1) } else { n };
    if v6 {
        let place = u128::from(place);
        Ipv6Addr::from((0x2001_0db8_u128 << 96) | if spread { place << 64 } else { place }).into()
    } else {
        Ipv4Addr::from(if spread { place } else { 0x0a00_0000 + place }).into()
    }
}

/// A frame of 64 bytes between two guests.
fn frame(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            frame.extend([8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0]);
            frame.extend(s.octets());
            frame.extend(d.octets());
            let mut sum = Sum::new();
            sum.add(&frame[14..34]);
            frame.splice(24..26, sum.checksum().to_be_bytes());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 10, 17, 64]);
            frame.extend(s.octets());
            frame.extend(d.octets());
        }
        _ => unreachable!("of one family"),
    }
    frame.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    frame.resize(64, 0);
    frame
}

/// Sends a packet on its way: 1 if there is one.
#[inline(always)]
fn forward(lpm: &Lpm<NonZeroU32>, head: &mut Head, mut packet: Packet, to: Option<NonZeroU32>) -> usize {
    let (Some(from), Some(to)) = (lpm.get(packet.source()), to) else { return 0 };
    packet.decrement_hop_limit(head);
    set_macs(head, MacAddr([2, 0, from.get() as u8, 0, 0, to.get() as u8]), MacAddr([2; 6]));
    1
}

/// Nanoseconds for each frame.
fn route(lpm: &Lpm<NonZeroU32>, frames: &[Vec<u8>]) -> f64 {
    let mut heads: Vec<Head> = (0..BURST).map(|_| Head::new()).collect();
    let (mut packets, mut destinations, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    let mut forwarded = 0;
    let began = Instant::now();
    for _ in 0..ROUNDS {
        for burst in frames.chunks(BURST) {
            for (head, frame) in heads.iter_mut().zip(burst) {
                head.begin(frame.len() as u32, frame.len()).copy_from_slice(frame);
                let _ = switch_core::check::frame(head, OffloadSet::NONE);
            }
            packets.clear();
            destinations.clear();
            routes.clear();
            // As a worker does: look-ups together only where that helps.
            if lpm.len() < MANY {
                for head in &mut heads[..burst.len()] {
                    let Ok(packet) = Packet::of_head(head) else { continue };
                    let to = lpm.get(packet.destination());
                    forwarded += forward(lpm, head, packet, to);
                }
                black_box(&mut heads);
                continue;
            }
            for head in &heads[..burst.len()] {
                let Ok(packet) = Packet::of_head(head) else { continue };
                destinations.push(packet.destination());
                packets.push(packet);
            }
            lpm.get_all(&destinations, &mut routes);
            for ((head, packet), to) in heads.iter_mut().zip(&packets).zip(&routes) {
                forwarded += forward(lpm, head, *packet, *to);
            }
            black_box(&mut heads);
        }
    }
    assert_eq!(forwarded, ROUNDS * frames.len());
    began.elapsed().as_nanos() as f64 / forwarded as f64
}

fn main() {
    for (v6, spread) in [(false, false), (false, true), (true, false), (true, true)] {
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let one = Lpm::build([(IpNetwork::new(any, 0).expect("a prefix"), NonZeroU32::MIN)]);
        let prefixes =
            (0..PREFIXES).map(|n| (guest(v6, spread, n).into(), NonZeroU32::MIN.saturating_add(n)));
        let many = Lpm::build(prefixes);
        for destinations in [1000, PREFIXES] {
            let to = |n: u32| guest(v6, spread, n.wrapping_mul(0x85eb_ca6b) % destinations);
            let source = guest(v6, spread, 7);
            let frames: Vec<Vec<u8>> = (0..FRAMES as u32).map(|n| frame(source, to(n))).collect();
            // In turn, the best of each: the machine has other things to do.
            let (mut fast, mut slow) = (f64::MAX, f64::MAX);
            for _ in 0..5 {
                fast = fast.min(route(&one, &frames));
                slow = slow.min(route(&many, &frames));
            }
            let family = if v6 { "IPv6" } else { "IPv4" };
            let kind = if spread { "anywhere" } else { "in a row" };
            println!(
                "{family}, host routes {kind}, {destinations:>6} destinations: {fast:5.1} ns with one prefix, \
                 {slow:5.1} ns with {PREFIXES}"
            );
        }
    }
}
