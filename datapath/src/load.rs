//! What workers are busy with, measured off them: shares of their time between two looks at their counters.

/// What was read of a worker last, and the share of its time that it was busy before that.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    busy: u64,
    bursts: u64,
    permille: u16,
}

/// The shares of all workers. The first measurement gives none.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    ticks: u64,
    workers: Vec<Reading>,
}

impl Shares {
    /// Takes the workers' counters of busy ticks and bursts at `ticks`; true if any had a burst since the last time.
    pub(crate) fn measure(&mut self, ticks: u64, workers: impl Iterator<Item = (u64, u64)>) -> bool {
        let passed = ticks.saturating_sub(self.ticks);
        let mut moved = false;
        let mut read = Vec::with_capacity(self.workers.len());
        for (i, (busy, bursts)) in workers.enumerate() {
            let permille = match self.workers.get(i) {
                Some(last) => {
                    moved |= bursts != last.bursts;
                    permille(busy.wrapping_sub(last.busy), passed)
                }
                None => 0,
            };
            read.push(Reading { busy, bursts, permille });
        }
        self.ticks = ticks;
        self.workers = read;
        moved
    }

    /// Ticks since the last measurement.
    pub(crate) fn age(&self, ticks: u64) -> u64 {
        ticks.saturating_sub(self.ticks)
    }

    /// The share of each worker, in thousandths.
    pub(crate) fn permille(&self) -> impl Iterator<Item = u16> + '_ {
        self.workers.iter().map(|w| w.permille)
    }
}

/// A part of a whole in thousandths, at most all of it: a burst counts when it ends, so a part may be a little more than
/// the whole.
fn permille(part: u64, whole: u64) -> u16 {
    let thousandths = u128::from(part.min(whole)) * 1000 / u128::from(whole.max(1));
    u16::try_from(thousandths).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_between_two_looks() {
        let mut shares = Shares::default();
        assert!(!shares.measure(5_000, [(900, 3), (0, 0)].into_iter()), "the first look knows nothing");
        assert_eq!(shares.permille().collect::<Vec<_>>(), [0, 0]);
        assert_eq!(shares.age(5_300), 300);
        assert!(shares.measure(6_000, [(1_400, 4), (0, 0)].into_iter()));
        assert_eq!(shares.permille().collect::<Vec<_>>(), [500, 0]);
        assert!(!shares.measure(7_000, [(1_400, 4), (0, 0)].into_iter()));
        assert_eq!(shares.permille().collect::<Vec<_>>(), [0, 0]);
        assert!(shares.measure(7_000, [(9_999, 5), (0, 0)].into_iter()), "no time has passed");
        assert_eq!(shares.permille().collect::<Vec<_>>(), [0, 0]);
        assert!(shares.measure(7_010, [(19_999, 6), (0, 0)].into_iter()));
        assert_eq!(shares.permille().collect::<Vec<_>>(), [1000, 0]);
    }
}
