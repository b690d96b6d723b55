//! How long a worker looks in vain before it sleeps.
//!
//! It is the question of the skier who may rent or buy: to sleep and be woken costs everyone some [`LEAST`], so who
//! polls for that long before it sleeps never spends more than twice what was needed. Where pauses between frames are
//! mostly longer than that and still short, the worker would sleep and be woken for each of them, and the first frames after
//! each would wait for it. So a sleep that was over soon doubles the time, up to [`MOST`], and a longer one halves it: a worker
//! whose guests rest is at [`LEAST`] after three sleeps.

use std::time::Duration;

/// About what it costs everyone that a worker sleeps and is woken, where the woken CPU is idle.
const LEAST: Duration = Duration::from_micros(20);
/// The longest: as long as Linux's guests poll before they halt a CPU (`guest_halt_poll_ns`).
const MOST: Duration = Duration::from_micros(160);

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spin {
    time: Duration,
}

impl Spin {
    pub(crate) const fn new() -> Self {
        Self { time: LEAST }
    }

    /// How long rounds may find nothing before the worker sleeps.
    pub(crate) const fn time(self) -> Duration {
        self.time
    }

    /// The worker has slept for so long.
    pub(crate) fn slept(&mut self, time: Duration) {
        self.time = if time <= MOST { (self.time * 2).min(MOST) } else { (self.time / 2).max(LEAST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls and sleeps through these pauses; what it polled in vain, and how often it slept.
    fn through(pauses: impl Iterator<Item = Duration>) -> (Duration, usize) {
        let (mut spin, mut polled, mut sleeps) = (Spin::new(), Duration::ZERO, 0);
        for pause in pauses {
            polled += pause.min(spin.time());
            if let Some(rest) = pause.checked_sub(spin.time()).filter(|rest| !rest.is_zero()) {
                sleeps += 1;
                spin.slept(rest);
            }
        }
        (polled, sleeps)
    }

    #[test]
    fn short_pauses_are_polled_through_after_a_few() {
        let (_, sleeps) = through(std::iter::repeat_n(Duration::from_micros(60), 1000));
        assert_eq!(sleeps, 2);
    }

    #[test]
    fn long_pauses_cost_the_least_each() {
        let (polled, sleeps) = through(std::iter::repeat_n(Duration::from_millis(1), 1000));
        assert_eq!((polled, sleeps), (LEAST * 1000, 1000));
        // And soon after short ones.
        let short = std::iter::repeat_n(Duration::from_micros(100), 10);
        let mut spin = Spin { time: MOST };
        for _ in 0..3 {
            spin.slept(Duration::from_secs(1));
        }
        assert_eq!(spin.time(), LEAST);
        assert!(through(short.chain(std::iter::repeat_n(Duration::from_millis(1), 1000))).0 < LEAST * 1100);
    }

    #[test]
    fn no_pauses_make_it_longer_than_its_bounds() {
        let mut spin = Spin::new();
        for time in (0..2000).map(|n: u64| Duration::from_micros(n * 7919 % 400)) {
            spin.slept(time);
            assert!((LEAST..=MOST).contains(&spin.time()));
        }
    }
}
