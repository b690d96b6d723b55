//! A histogram of durations with bounded relative error, in fixed memory.
//!
//! Buckets are linear within each power of two, 32 to each: a percentile is at most 1/32 above the true value.

use std::time::Duration;

const SUB_BITS: u32 = 5;
const SUB: usize = 1 << SUB_BITS;

/// A histogram of durations, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; SUB * 60], count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a duration.
    pub fn record(&mut self, d: Duration) {
        self.record_many(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX), 1);
    }

    /// Counts `n` durations of `nanos` nanoseconds.
    #[inline]
    pub fn record_many(&mut self, nanos: u64, n: u64) {
        self.buckets[bucket(nanos)] += n;
        self.count += n;
        self.sum += u128::from(nanos) * u128::from(n);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (a, b) in self.buckets.iter_mut().zip(&other.buckets) {
            *a += b;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest; zero when there is none.
    #[must_use]
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.count == 0 { 0 } else { self.min })
    }

    /// The largest; zero when there is none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The mean; zero when there is none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let mean = self.sum.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The duration that `percent` (0–100) of those counted do not exceed; zero when there is none.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = ((percent / 100.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if n > 0 && seen >= rank {
                return Duration::from_nanos(upper(i).min(self.max));
            }
        }
        Duration::from_nanos(self.max)
    }
}

#[inline]
fn bucket(nanos: u64) -> usize {
    if nanos < SUB as u64 {
        return nanos as usize;
    }
    let shift = 63 - nanos.leading_zeros() - SUB_BITS;
    (shift as usize + 1) * SUB + ((nanos >> shift) as usize & (SUB - 1))
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let shift = bucket / SUB - 1;
    let low = ((SUB + bucket % SUB) as u64) << shift;
    low + ((1u64 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_close() {
        let mut h = Histogram::new();
        for n in 1..=100_000u64 {
            h.record(Duration::from_nanos(n * 10));
        }
        for p in [1.0, 50.0, 99.0, 99.9] {
            let exact = p / 100.0 * 1_000_000.0;
            let got = h.percentile(p).as_nanos() as f64;
            assert!(got >= exact && got <= exact * 1.04, "p{p}: {got} for {exact}");
        }
        assert_eq!(h.percentile(100.0), h.max());
        assert_eq!(h.min(), Duration::from_nanos(10));
        assert_eq!(Histogram::new().percentile(50.0), Duration::ZERO);
        h.record_many(u64::MAX, 1);
        assert_eq!(h.percentile(100.0), Duration::from_nanos(u64::MAX));
    }
}
