//! Medians and spreads of small samples. Pure.
//!
//! Machines that others share vary by half from minute to minute. So what counts is the *ratio* of two runs that stood
//! beside each other in time, and of many such ratios the median, with the whole spread beside it.

use serde::Serialize;

/// A sample's middle and spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How many values there are.
    pub(crate) n: usize,
    /// The middle value, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// Of the finite values of a sample; `None` when there is none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Summary { n: sorted.len(), median, min, max })
    }
}

/// The ratio of each pair of runs, one of ours and the peer's of the same round. A round in which either failed (`None`)
/// or the peer carried nothing has none.
pub(crate) fn ratios(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs);
    let both = pairs.filter_map(|(ours, theirs)| Some(((*ours)?, (*theirs)?)));
    both.filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        for (values, median) in [
            (vec![3.0], 3.0),
            (vec![9.0, 1.0], 5.0),
            (vec![9.0, 1.0, 2.0], 2.0),
            (vec![4.0, 1.0, 3.0, 2.0], 2.5),
            // One run in which the machine was elsewhere does not move it.
            (vec![10.0, 10.2, 0.1, 10.1, 10.3], 10.1),
        ] {
            assert_eq!(Summary::of(&values).expect("values").median, median, "{values:?}");
        }
    }

    #[test]
    fn the_spread_is_from_the_smallest_to_the_largest() {
        let summary = Summary::of(&[1.5, 0.5, 2.5, 1.0]).expect("values");
        assert_eq!((summary.n, summary.min, summary.max), (4, 0.5, 2.5));
    }

    #[test]
    fn no_value_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(Summary::of(&[f64::NAN, 2.0]).expect("one value").median, 2.0);
    }

    #[test]
    fn ratios_are_of_runs_of_the_same_round() {
        let ours = [Some(2.0), Some(4.0), Some(9.0)];
        let theirs = [Some(1.0), Some(4.0), Some(3.0)];
        assert_eq!(ratios(&ours, &theirs), [2.0, 1.0, 3.0]);
    }

    #[test]
    fn a_round_in_which_a_side_failed_has_no_ratio() {
        let ours = [Some(2.0), None, Some(9.0), Some(5.0)];
        let theirs = [None, Some(4.0), Some(3.0), Some(0.0)];
        assert_eq!(ratios(&ours, &theirs), [3.0]);
    }

    #[test]
    fn the_median_of_ratios_is_not_the_ratio_of_medians() {
        // The machine doubles its speed in the middle: each pair says 1.2, and so does the summary.
        let theirs = [Some(10.0), Some(10.0), Some(20.0)];
        let ours = [Some(12.0), Some(12.0), Some(24.0)];
        let summary = Summary::of(&ratios(&ours, &theirs)).expect("ratios");
        assert!((summary.median - 1.2).abs() < 1e-12 && (summary.max - summary.min).abs() < 1e-12);
    }
}
