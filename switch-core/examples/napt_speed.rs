//! What the translator costs: `cargo run --release -p switch-core --example napt_speed [SESSIONS]`.
//!
//! Makes that many UDP sessions (a million) of 64 guests with 1,000 ports each, then translates packets of sessions
//! chosen at random, then those of a few busy ones. Prints nanoseconds for each, bytes for a session, and what one
//! dependent read from as much memory costs on this machine: a session that nothing used lately takes two or three.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use switch_core::Instant;
use switch_core::napt::{Address, Endpoint, Flow, Napt, Protocol, Settings, TcpFlags, View, Way};
use switch_core::verdict::BURST;

const GUESTS: u32 = 64;
const PORTS: u32 = 1000;
const PACKETS: u32 = 2_000_000;

fn main() {
    let sessions = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000_u32);
    println!("IPv4, {sessions} sessions");
    run(
        sessions,
        Ipv4Addr::new(192, 0, 2, 1),
        |guest| Ipv4Addr::from_bits(0x0a00_0002 + guest),
        |remote| Ipv4Addr::from_bits(0xcb00_7100 + remote),
    );
    println!("  a read from 64 MB       {:>8.1} ns", memory_latency());
    println!("IPv6, {sessions} sessions");
    run(
        sessions,
        Ipv6Addr::from_bits(0x2001_0db8 << 96 | 1),
        |guest| Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(guest + 2)),
        |remote| Ipv6Addr::from_bits(0x2001_0db8_0001 << 80 | u128::from(remote)),
    );
}

fn run<A: Address>(sessions: u32, external: A, guest: impl Fn(u32) -> A, remote: impl Fn(u32) -> A) {
    let napt =
        Arc::new(Napt::new(Settings { udp_timeout: Duration::from_secs(3600), ..Settings::new([1, 2]) }));
    napt.set_externals(Instant::ORIGIN, &[external]);
    let mut view = View::new(Arc::clone(&napt));
    let flow = |i: u32| Flow {
        protocol: Protocol::Udp,
        local: Endpoint::new(guest(i % GUESTS), 10_000 + (i / GUESTS % PORTS) as u16),
        remote: Endpoint::new(remote(i / (GUESTS * PORTS)), 53),
        flags: TcpFlags::NONE,
    };
    let mut now = 1_000_000_000_u64;

    let begin = Stopwatch::begin();
    let outsides: Vec<Endpoint<A>> = (0..sessions)
        .map(|i| {
            now += 100;
            view.outbound(Instant::from_nanos(now), &flow(i)).expect("room for all")
        })
        .collect();
    let new = begin.elapsed();
    println!(
        "  new sessions            {:>8.1} ns each, {:.2} million/s",
        new.as_nanos() as f64 / f64::from(sessions),
        f64::from(sessions) / new.as_secs_f64() / 1e6
    );
    println!("  memory                  {:>8.1} bytes a session", napt.memory() as f64 / f64::from(sessions));

    let mut state = 88_172_645_463_325_252_u64;
    let mut random = |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (((state >> 32) * u64::from(below)) >> 32) as u32
    };
    let mut packets = Vec::new();
    for (among, what) in [(sessions, "uniform"), (256, "of 256")] {
        for inbound in [false, true] {
            // Beforehand, and read in order: so they cost next to nothing.
            packets.clear();
            packets.extend((0..PACKETS).map(|_| random(among)).map(|i| match inbound {
                false => flow(i),
                true => Flow { local: outsides[i as usize], ..flow(i) },
            }));
            let (mut alone, mut together) = (f64::INFINITY, f64::INFINITY);
            let mut hints = Vec::new();
            for _ in 0..3 {
                let begin = Stopwatch::begin();
                for packet in &packets {
                    now += 100;
                    let at = Instant::from_nanos(now);
                    let answer = if inbound { view.inbound(at, packet) } else { view.outbound(at, packet) };
                    black_box(answer.expect("a session"));
                }
                alone = alone.min(begin.elapsed().as_nanos() as f64 / f64::from(PACKETS));
                let begin = Stopwatch::begin();
                for burst in packets.chunks(BURST) {
                    now += 100 * BURST as u64;
                    let at = Instant::from_nanos(now);
                    hints.clear();
                    view.look_ahead(if inbound { Way::In } else { Way::Out }, burst, &mut hints);
                    for (packet, hint) in burst.iter().zip(&hints) {
                        let answer = match inbound {
                            true => view.inbound_ahead(at, packet, *hint),
                            false => view.outbound_ahead(at, None, packet, *hint),
                        };
                        black_box(answer.expect("a session"));
                    }
                }
                together = together.min(begin.elapsed().as_nanos() as f64 / f64::from(PACKETS));
            }
            let direction = if inbound { "inbound" } else { "outbound" };
            println!("  {direction:<9}{what:<15}{alone:>8.1} ns, in bursts {together:.1} ns");
        }
    }

    let begin = Stopwatch::begin();
    let end = Instant::from_nanos(now) + Duration::from_secs(4000);
    let mut calls = 1;
    while napt.expire(end, 4096) {
        calls += 1;
    }
    println!(
        "  expiry                  {:>8.1} ns each, in {calls} calls; {} left",
        begin.elapsed().as_nanos() as f64 / f64::from(sessions),
        napt.session_count()
    );
}

/// Nanoseconds of a read at a random place of 64 MB, where each waits for the one before.
fn memory_latency() -> f64 {
    let words = vec![1_u64; 8 << 20];
    let (mut state, mut last) = (88_172_645_463_325_252_u64, 0);
    let begin = Stopwatch::begin();
    for _ in 0..PACKETS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        last = words[(state.wrapping_add(last) % words.len() as u64) as usize];
    }
    black_box(last);
    begin.elapsed().as_nanos() as f64 / f64::from(PACKETS)
}

/// Time that this thread ran: others on the machine do not count. Where the system does not tell, the wall clock's.
struct Stopwatch(Duration, Clock);

impl Stopwatch {
    fn begin() -> Self {
        Self(Self::ran().unwrap_or_default(), Clock::now())
    }

    fn elapsed(&self) -> Duration {
        Self::ran().map_or_else(|| self.1.elapsed(), |ran| ran - self.0)
    }

    fn ran() -> Option<Duration> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    }
}
