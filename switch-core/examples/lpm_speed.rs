//! Prints how long it takes to build a table of prefixes and to look addresses up in it.
//!
//! `cargo run --release -p switch-core --example lpm_speed`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Instant;

use ipnetwork::IpNetwork;
use switch_core::lpm::Lpm;

/// Addresses that are looked up in turn: more than what a cache remembers by chance.
const ADDRESSES: usize = 1 << 17;
const ROUNDS: usize = 40;

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn v4(bits: u64, len: u8) -> IpNetwork {
    IpNetwork::new(Ipv4Addr::from(bits as u32).into(), len).expect("at most 32")
}

fn v6(bits: u128, len: u8) -> IpNetwork {
    IpNetwork::new(Ipv6Addr::from(bits).into(), len).expect("at most 128")
}

fn measure(name: &str, prefixes: Vec<(IpNetwork, u32)>) {
    let began = Instant::now();
    let lpm = Lpm::build(prefixes.iter().map(|&(network, n)| (network, NonZeroU32::MIN.saturating_add(n))));
    let built = began.elapsed();
    let mut state = 7;
    let addresses: Vec<IpAddr> =
        (0..ADDRESSES).map(|_| prefixes[next(&mut state) as usize % prefixes.len()].0.ip()).collect();
    let began = Instant::now();
    let mut found = 0_u64;
    for _ in 0..ROUNDS {
        for &address in &addresses {
            found += u64::from(black_box(lpm.get(address)).is_some());
        }
    }
    let each = began.elapsed().as_nanos() as f64 / (ROUNDS * ADDRESSES) as f64;
    assert_eq!(found, (ROUNDS * ADDRESSES) as u64);
    let kib = lpm.memory() / 1024;
    println!(
        "{name:32} {:>7} prefixes  built in {built:>9.1?}  {kib:>6} KiB  {each:5.1} ns a lookup",
        lpm.len()
    );
}

fn main() {
    let n = 100_000;
    let mut state = 1;
    let mut random = move || next(&mut state);
    measure("one /0", vec![(v4(0, 0), 0)]);
    measure("one ::/0", vec![(v6(0, 0), 0)]);
    measure("ten /32", (0..10).map(|i| (v4(0x0a00_0000 + i, 32), i as u32)).collect());
    measure("/32 in a row", (0..n).map(|i| (v4(0x0a00_0000 + i, 32), i as u32)).collect());
    measure("/32 anywhere", (0..n).map(|i| (v4(random(), 32), i as u32)).collect());
    measure("/24 anywhere", (0..n).map(|i| (v4(random() & 0xffff_ff00, 24), i as u32)).collect());
    let mixed = |i: u64| (v4(random(), 8 + (random() % 25) as u8), i as u32);
    measure("/8 to /32 anywhere", (0..n).map(mixed).collect());
    let base = 0x2001_0db8_u128 << 96;
    let mut state = 2;
    let mut random = move || u128::from(next(&mut state));
    measure("/128 in a row", (0..n).map(|i| (v6(base + u128::from(i), 128), i as u32)).collect());
    let guest = |i: u64| (v6(base | (random() & 0xffff) << 64 | random(), 128), i as u32);
    measure("/128 in many /64", (0..n).map(guest).collect());
    let mut state = 3;
    let mut random = move || u128::from(next(&mut state));
    measure(
        "/64 in a /32",
        (0..n).map(|i| (v6(base | (random() & 0xffff_ffff) << 64, 64), i as u32)).collect(),
    );
}
