//! The addresses that frames come from and go to.

use crate::error::{Error, Result};
use crate::hash::splitmix;

/// How many MAC addresses each device has, and how its frames are spread over them and over those of the device that they
/// are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stations {
    /// Addresses: 1 to 2^24. The first is the device's own.
    pub count: u32,
    /// Whether the n-th has a part of the frames in proportion to 1/n; else all have the same.
    pub zipf: bool,
}

impl Stations {
    /// One.
    pub const ONE: Stations = Stations { count: 1, zipf: false };

    pub(super) fn check(self) -> Result<()> {
        if self.count == 0 || self.count > 1 << 24 {
            return Err(Error::Config(format!("{} stations; 1 to 2^24 are possible", self.count)));
        }
        Ok(())
    }
}

/// A MAC address as a number, its first byte the lowest.
pub(super) fn number(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// Numbers of stations, drawn at random.
#[derive(Clone, Debug)]
pub(super) struct Draw {
    state: u64,
    count: u32,
    /// The logarithm of `2 count + 1` to the base of 2, with 27 bits after the point, for the law of Zipf.
    log: Option<u64>,
    /// While each is named once: the next.
    next: Option<u32>,
}

impl Draw {
    pub(super) fn new(stations: Stations, seed: u64) -> Self {
        let log = (2.0 * f64::from(stations.count) + 1.0).log2() * f64::from(1 << 27);
        let mut state = seed;
        splitmix(&mut state);
        Draw { state, count: stations.count, log: stations.zipf.then_some(log as u64), next: None }
    }

    /// Gives the numbers from `first` on, one after the other; `None` goes back to draw.
    pub(super) fn name(&mut self, first: Option<u32>) {
        self.next = first;
    }

    #[inline]
    pub(super) fn next(&mut self) -> u32 {
        if let Some(next) = &mut self.next {
            let number = *next;
            *next += 1;
            return number.min(self.count - 1);
        }
        self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let random = self.state >> 32;
        let Some(log) = self.log else { return ((random * u64::from(self.count)) >> 32) as u32 };
        // Half of 2 to a power that is uniform from 0 to the logarithm: then n - 1/2 to n + 1/2 is as probable as
        // log((n + 1/2) / (n - 1/2)), which is close to 1/n.
        let power = (random * log) >> 32;
        let (whole, part) = (power >> 27, (power >> 11) & 0xffff);
        // 2^x is 1 + x (0.6565 + 0.3435 x) from 0 to 1, within three thousandths.
        let mantissa = 0x1_0000 + ((part * (43_024 + ((part * 22_512) >> 16))) >> 16);
        let n = (((mantissa << whole) + 0x1_0000) >> 17) as u32;
        n.saturating_sub(1).min(self.count - 1)
    }
}

/// One device's addresses as numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    own: u64,
    others: u64,
}

impl Addresses {
    /// Those of device `port`, whose own is `mac`. The others are 56, the port's number in two bytes, the station's in
    /// three.
    pub(super) fn new(port: usize, mac: [u8; 6]) -> Self {
        let [high, low] = (port as u16).to_be_bytes();
        Addresses { own: number(mac), others: number([0x56, high, low, 0, 0, 0]) }
    }

    #[inline]
    pub(super) fn of(self, station: u32) -> u64 {
        if station == 0 {
            return self.own;
        }
        self.others | (u64::from(station.swap_bytes() >> 8) << 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(stations: Stations, draws: u32) -> Vec<u32> {
        let mut draw = Draw::new(stations, 1);
        let mut counts = vec![0; stations.count as usize];
        (0..draws).for_each(|_| counts[draw.next() as usize] += 1);
        counts
    }

    #[test]
    fn draws_follow_their_law() {
        let n = 1_000_000;
        for count in [1, 2, 1000] {
            let expected = n / count;
            for seen in counts(Stations { count, zipf: false }, n) {
                assert!(seen.abs_diff(expected) < expected / 5, "{seen} of {expected}");
            }
        }
        let counts = counts(Stations { count: 1000, zipf: true }, n);
        let norm: f64 = (1..=1000).map(|i| 1.0 / f64::from(i)).sum();
        for (from, to) in [(1, 2), (2, 10), (10, 100), (100, 500), (500, 1000)] {
            let expected: f64 = (from..to).map(|i| f64::from(n) / (norm * i as f64)).sum();
            let seen = f64::from(counts[from - 1..to - 1].iter().sum::<u32>());
            assert!((seen / expected - 1.0).abs() < 0.15, "{from} to {to}: {seen} for {expected}");
        }
        assert!(counts.iter().all(|&n| n > 0));
    }

    #[test]
    fn each_is_named_once_before_it_is_drawn() {
        let mut draw = Draw::new(Stations { count: 5, zipf: true }, 1);
        draw.name(Some(2));
        assert_eq!([draw.next(), draw.next(), draw.next(), draw.next()], [2, 3, 4, 4]);
    }

    #[test]
    fn addresses_are_unicast_and_different() {
        let own = [0x52, 0x54, 0, 0, 0, 9];
        let addresses = Addresses::new(0x102, own);
        assert_eq!(addresses.of(0), number(own));
        assert_eq!(addresses.of(0x03_0405), number([0x56, 1, 2, 3, 4, 5]));
        assert_ne!(Addresses::new(3, own).of(1), addresses.of(1));
    }
}
