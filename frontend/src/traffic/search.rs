//! The highest rate without loss, as RFC 2544 (26.1) has it, in steps that are short because nobody waits for them: a step
//! that lost is tried once more, since one stumble of a busy machine is not the peer's limit.

use std::time::Duration;

use super::{Generator, Report};
use crate::error::Result;

/// The interval is halved until it is so small a part of the rate.
const PRECISION: f64 = 0.01;
/// A rate that the generator itself does not offer to so large a part says nothing of the peer.
const OFFERED: f64 = 0.98;
const STEPS_MAX: u32 = 16;

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The highest rate at which no more than the tolerance was lost, frames per second of all senders together; 0 when
    /// there was none.
    pub rate: f64,
    /// Whether the generator could not offer more, so that the peer may do better.
    pub generator_limit: bool,
}

impl Generator {
    /// Looks for the highest rate at which at most `tolerance` (a part of 1) of the frames is lost, a step for each rate
    /// that it tries. The rate is set to what it finds.
    ///
    /// # Errors
    /// What broke a device.
    pub fn find_lossless(&mut self, tolerance: f64, step: Duration) -> Result<Found> {
        self.set_rate(None);
        let top = self.run(step)?;
        let found = search(top.frames_per_second() / top.copies.max(1) as f64, tolerance, |rate| {
            self.set_rate(Some(rate));
            self.run(step)
        })?;
        self.set_rate(Some(found.rate.max(1.0)));
        Ok(found)
    }
}

/// The search, with `top` frames per second as what arrives when more is offered than goes.
fn search(top: f64, tolerance: f64, mut run: impl FnMut(f64) -> Result<Report>) -> Result<Found> {
    let (mut low, mut high) = (0.0, top * 1.1);
    let mut rate = top * 0.95;
    let mut generator_limit = false;
    for _ in 0..STEPS_MAX {
        if high - low <= PRECISION * high || high <= 0.0 {
            break;
        }
        let mut verdict = judge(&run(rate)?, rate, tolerance);
        if verdict == Verdict::Lost {
            verdict = judge(&run(rate)?, rate, tolerance);
        }
        match verdict {
            Verdict::Whole => low = rate,
            Verdict::Lost => high = rate,
            Verdict::NotOffered => {
                generator_limit = true;
                high = rate;
            }
        }
        rate = (low + high) / 2.0;
    }
    Ok(Found { rate: low, generator_limit })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Whole,
    Lost,
    NotOffered,
}

fn judge(report: &Report, rate: f64, tolerance: f64) -> Verdict {
    if report.loss() > tolerance {
        Verdict::Lost
    } else if report.offered_per_second() < OFFERED * rate {
        Verdict::NotOffered
    } else {
        Verdict::Whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that carries `limit` of the frames in a second, of a generator that offers `most`.
    fn peer(limit: u64, most: u64) -> impl FnMut(f64) -> Result<Report> {
        move |rate| {
            let mut report = Report::new(2, 1);
            report.elapsed = Duration::from_secs(1);
            report.ports[0].sent = (rate as u64).min(most);
            report.ports[1].received = report.ports[0].sent.min(limit);
            Ok(report)
        }
    }

    #[test]
    fn the_search_ends_close_below_the_limit() {
        // What arrives of too much may be less than what goes, or, by a stumble of the first run, far less.
        for (limit, top) in
            [(1_000_000, 1_000_000.0), (1_000_000, 950_000.0), (500_000, 1_000_000.0), (3000, 1e6)]
        {
            let found = search(top, 1e-5, peer(limit, u64::MAX)).unwrap();
            let limit = limit as f64;
            assert!(found.rate <= limit * 1.001 && found.rate > limit * 0.97, "{found:?} for {limit}");
            assert!(!found.generator_limit);
        }
    }

    #[test]
    fn a_tolerance_is_kept() {
        let found = search(1e6, 0.1, peer(900_000, u64::MAX)).unwrap();
        assert!(found.rate > 985_000.0 && found.rate <= 1_000_001.0, "{found:?}");
    }

    #[test]
    fn a_generator_that_is_the_limit_says_so() {
        let found = search(1e6, 0.0, peer(u64::MAX, 800_000)).unwrap();
        assert!(found.generator_limit && found.rate > 780_000.0 && found.rate < 820_000.0, "{found:?}");
    }

    #[test]
    fn one_stumble_is_not_the_limit() {
        let (mut good, mut calls) = (peer(1_000_000, u64::MAX), 0);
        let found = search(1e6, 0.0, |rate| {
            calls += 1;
            let mut report = good(rate)?;
            if calls == 1 {
                report.ports[1].received -= 1000;
            }
            Ok(report)
        });
        assert!(found.unwrap().rate > 970_000.0);
    }

    #[test]
    fn where_nothing_goes_there_is_no_rate() {
        assert_eq!(search(0.0, 0.0, peer(0, 0)).unwrap().rate, 0.0);
        let found = search(1e6, 0.0, peer(0, u64::MAX)).unwrap();
        assert_eq!(found.rate, 0.0);
    }
}
