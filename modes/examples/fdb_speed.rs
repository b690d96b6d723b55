//! What a learning bridge costs by its number of stations: `cargo run --release -p modes --example fdb_speed [STATIONS…]`
//!
//! Bursts of 64 heads between stations, all of them known, destinations uniform: from one station, and between as many
//! as there are. Filling the heads is measured for itself and taken off. Each measurement is made five times, in turn;
//! medians. Then a storm: frames that each have a new source. First of all, what the memory takes for a line that is
//! fetched ahead with 127 others, and for one that is waited for: no table of a size can be faster.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use rustix::time::{ClockId, clock_gettime};

use modes::bridge::Bridge;
use switch_core::head::Head;
use switch_core::ids::{PortId, Registry};
use switch_core::mode::{Forwarder, Mode};
use switch_core::offload::OffloadSet;
use switch_core::time::Instant;
use switch_core::verdict::{BURST, Verdicts};

const FRAMES: u64 = 1 << 21;
const BASE: u64 = 0x0200_0000_0000;

struct Worker {
    heads: Vec<Head>,
    verdicts: Verdicts,
    now: Instant,
}

impl Worker {
    fn fill(&mut self, mut next: impl FnMut() -> (u64, u64)) {
        self.now = self.now + Duration::from_micros(3);
        for head in &mut self.heads {
            let (to, from) = next();
            let bytes = head.begin(60, 60);
            bytes[..6].copy_from_slice(&(BASE + to).to_be_bytes()[2..]);
            bytes[6..12].copy_from_slice(&(BASE + from).to_be_bytes()[2..]);
            bytes[12] = 0x88;
            let _ = switch_core::check::frame(head, OffloadSet::NONE);
        }
        self.verdicts.begin(BURST);
    }

    /// Nanoseconds a frame.
    fn run(
        &mut self,
        forwarder: Option<(&mut dyn Forwarder, PortId)>,
        frames: u64,
        mut next: impl FnMut() -> (u64, u64),
    ) -> f64 {
        let mut forwarder = forwarder;
        let began = ran();
        for _ in 0..frames / BURST as u64 {
            self.fill(&mut next);
            if let Some((forwarder, from)) = &mut forwarder {
                forwarder.decide(self.now, *from, &mut self.heads, &mut self.verdicts);
            }
            black_box((&mut self.heads, &self.verdicts));
        }
        (ran() - began).as_nanos() as f64 / frames as f64
    }
}

/// Time that this thread ran: others on the machine do not count.
fn ran() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// xorshift64*, the upper half.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Nanoseconds for a random line of a table of `megabytes`: of 128 that are fetched ahead, and one after the other.
fn memory(megabytes: usize) -> [f64; 2] {
    const LINE: usize = 8;
    let words = vec![1_u64; megabytes << 17];
    let lines = (words.len() / LINE) as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut draw = || ((random(&mut state) * lines) >> 32) as usize * LINE;
    let mut sum = 0;
    let rounds = 1 << 14;
    let ahead = || {
        let began = ran();
        for _ in 0..rounds {
            let places: [usize; 2 * BURST] = std::array::from_fn(|_| draw());
            places.iter().for_each(|&place| prefetch_index::prefetch_index(&words, place));
            sum += places.iter().filter_map(|&place| words.get(place)).sum::<u64>();
        }
        (ran() - began).as_nanos() as f64 / f64::from(rounds) / (2 * BURST) as f64
    };
    let ahead = median(std::iter::repeat_with(ahead).take(5).collect());
    let began = ran();
    for _ in 0..rounds * 16 {
        // Where the next is, the one before says: all words are the same, which only this program knows.
        state ^= words.get(((random(&mut state) * lines) >> 32) as usize * LINE).copied().unwrap_or(1);
    }
    let waited = (ran() - began).as_nanos() as f64 / f64::from(rounds * 16);
    black_box((sum, state));
    [ahead, waited]
}

fn main() {
    for megabytes in [1, 4, 16, 64] {
        let [ahead, waited] = memory(megabytes);
        println!(
            "{megabytes:>3} MB: {ahead:>5.1} ns a line that is fetched ahead, {waited:>6.1} ns one that is waited for"
        );
    }
    let mut counts: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![1, 1_000, 64_000, 500_000, 1_000_000];
    }
    let mut ids = Registry::<PortId>::new(2);
    let (a, b) = (ids.mint().expect("a port"), ids.mint().expect("a port"));
    let mut worker =
        Worker { heads: vec![Head::new(); BURST], verdicts: Verdicts::default(), now: Instant::from_secs(1) };
    for stations in counts {
        let bridge = Arc::new(Bridge::new(Duration::from_secs(100_000), 1_000_000));
        let mut forwarder = Arc::clone(&bridge).forwarder();
        // Half of them at each port. The first and the second are always there.
        let each = (stations / 2).max(1);
        for (port, side) in [(a, 0), (b, 1)] {
            let mut n = 0;
            let all = each.next_multiple_of(BURST as u64);
            worker.run(Some((&mut *forwarder, port)), all, || {
                n += 1;
                (1 << 40, n % each * 2 + side)
            });
        }
        let mut results = [const { Vec::new() }; 2];
        for round in 0..6 {
            for (spread, results) in [false, true].into_iter().zip(&mut results) {
                let mut state = 0x9e37_79b9_7f4a_7c15;
                let mut next = || {
                    let to = random(&mut state) % each * 2 + 1;
                    (to, if spread { random(&mut state) % each * 2 } else { 0 })
                };
                let empty = worker.run(None, FRAMES, &mut next);
                let full = worker.run(Some((&mut *forwarder, a)), FRAMES, &mut next);
                // The first round is what fills the caches.
                if round > 0 {
                    results.push(full - empty);
                }
            }
        }
        let [one, many] = results.map(median);
        let mut n = 1 << 32;
        let mut slowest = Duration::ZERO;
        let storm = worker.run(Some((&mut *forwarder, a)), FRAMES, || {
            n += 1;
            (1, n)
        });
        for _ in 0..10_000 {
            let began = Clock::now();
            worker.run(Some((&mut *forwarder, a)), BURST as u64, || {
                n += 1;
                (1, n)
            });
            slowest = slowest.max(began.elapsed());
        }
        println!(
            "{stations:>9} stations: {one:>6.1} ns a frame from one, {many:>6.1} ns among all; \
             a storm's frame {storm:>6.1} ns, slowest burst {slowest:?}"
        );
    }
}
