//! Which queue is to go to which other worker, so that the load is shared out: a decision, from what was measured.
//!
//! Load is ticks that a queue's bursts took in an interval. Two things are worth a move, and nothing else:
//!
//! - *A gap.* One worker is busy, another has time, and a queue's load fits into the gap between them: after the move
//!   the busier of the two has less to do than the busier one before, by a tenth of a worker's time at least.
//! - *A crowd.* Two workers have all that they can do, so their loads are equal whatever is asked of them; but one
//!   has at least two more queues with a backlog than the other. Each of its queues gets less than a fair share.
//!
//! With constant load the first makes the sum of the squares of the loads smaller each time, the second that of the
//! numbers of queues with a backlog, so moves come to an end. Loads that are measured are not constant: so a move must
//! be worth it twice in a row, is the only one of its interval, and a queue that was moved stays where it is for a
//! while, and longer does not go back to where it came from.

use std::collections::BTreeMap;

use crate::host::QueueId;

/// A worker is busy from this share of its time on.
const BUSY_PERCENT: u64 = 60;
/// A worker has all that it can do from this share of its time on.
const FULL_PERCENT: u64 = 95;
/// What a move must take off the busier worker, as a share of the time.
const GAIN_PERCENT: u64 = 10;
/// Intervals for which a queue that was moved stays.
const STAYS: u64 = 10;
/// Intervals in which it does not go back to where it came from.
const NOT_BACK: u64 = 60;

/// What a queue did in an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueLoad {
    pub(crate) id: QueueId,
    /// The worker that it is on.
    pub(crate) worker: usize,
    /// What its bursts took.
    pub(crate) ticks: u64,
    /// Its bursts were nearly full: more was waiting.
    pub(crate) backlog: bool,
}

/// A queue that is to go from a worker to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) id: QueueId,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// A move that was made: in which interval, and where from.
#[derive(Clone, Copy, Debug)]
struct Made {
    at: u64,
    from: usize,
}

/// What is remembered from one interval to the next.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    intervals: u64,
    /// What would have been worth it last time.
    wanted: Option<(usize, usize)>,
    made: BTreeMap<QueueId, Made>,
}

impl Balancer {
    /// The move to make after an interval of `interval` ticks in which the queues did `queues`.
    pub(crate) fn decide(&mut self, workers: usize, interval: u64, queues: &[QueueLoad]) -> Option<Move> {
        self.intervals += 1;
        let now = self.intervals;
        self.made.retain(|_, made| now - made.at <= NOT_BACK);
        let made = &self.made;
        let allowed = |id: QueueId, to: usize| {
            made.get(&id).is_none_or(|made| now - made.at > STAYS && made.from != to)
        };
        let best = best_move(workers, interval, queues, allowed);
        let pair = best.map(|m| (m.from, m.to));
        let last = std::mem::replace(&mut self.wanted, pair);
        let go = best.filter(|_| last == pair)?;
        self.made.insert(go.id, Made { at: now, from: go.from });
        self.wanted = None;
        Some(go)
    }
}

/// The move that pays most, if one pays.
fn best_move(
    workers: usize,
    interval: u64,
    queues: &[QueueLoad],
    allowed: impl Fn(QueueId, usize) -> bool,
) -> Option<Move> {
    // A burst counts when it ends: a load may be a little more than all.
    let percent = |n: u64| u64::try_from(u128::from(interval) * u128::from(n) / 100).unwrap_or(u64::MAX);
    let mut loads = vec![0u64; workers];
    let mut backlogs = vec![0usize; workers];
    for q in queues {
        *loads.get_mut(q.worker)? += q.ticks;
        *backlogs.get_mut(q.worker)? += usize::from(q.backlog);
    }
    let by_load = |&w: &usize| loads[w];
    let (from, to) = ((0..workers).max_by_key(by_load)?, (0..workers).min_by_key(by_load)?);
    if loads[from] >= percent(BUSY_PERCENT) {
        let gap = loads[from] - loads[to];
        let gain = |q: &QueueLoad| q.ticks.min(gap.saturating_sub(q.ticks));
        let worth = queues.iter().filter(|q| q.worker == from && allowed(q.id, to));
        let worth = worth.filter(|q| gain(q) >= percent(GAIN_PERCENT).max(1));
        if let Some(q) = worth.max_by_key(|q| (gain(q), std::cmp::Reverse(q.id))) {
            return Some(Move { id: q.id, from, to });
        }
    }
    let full = || (0..workers).filter(|&w| loads[w] >= percent(FULL_PERCENT) && backlogs[w] > 0);
    let (from, to) = (full().max_by_key(|&w| backlogs[w])?, full().min_by_key(|&w| backlogs[w])?);
    if backlogs[from] < backlogs[to] + 2 {
        return None;
    }
    let crowd = queues.iter().filter(|q| q.worker == from && q.backlog && allowed(q.id, to));
    crowd.min_by_key(|q| (q.ticks, q.id)).map(|q| Move { id: q.id, from, to })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn queue(id: u64, worker: usize, percent: u64, backlog: bool) -> QueueLoad {
        QueueLoad { id: QueueId(id), worker, ticks: SECOND / 100 * percent, backlog }
    }

    fn best(workers: usize, queues: &[QueueLoad]) -> Option<Move> {
        best_move(workers, SECOND, queues, |_, _| true)
    }

    #[test]
    fn the_queue_that_fits_the_gap_best_is_moved() {
        let queues =
            [queue(0, 0, 10, false), queue(1, 0, 35, false), queue(2, 0, 40, false), queue(3, 1, 5, false)];
        assert_eq!(best(2, &queues), Some(Move { id: QueueId(2), from: 0, to: 1 }));
    }

    #[test]
    fn what_does_not_pay_stays() {
        // One queue is all of the load: another worker would only have it instead.
        assert_eq!(best(2, &[queue(0, 0, 100, true)]), None);
        // Nobody is busy.
        assert_eq!(best(2, &[queue(0, 0, 25, false), queue(1, 0, 25, false)]), None);
        // Too little to gain.
        assert_eq!(best(2, &[queue(0, 0, 80, false), queue(1, 0, 9, false), queue(2, 1, 20, false)]), None);
        // One worker.
        assert_eq!(best(1, &[queue(0, 0, 50, true), queue(1, 0, 50, true)]), None);
        assert_eq!(best(0, &[]), None);
        assert_eq!(best(3, &[]), None);
    }

    #[test]
    fn workers_that_are_full_level_their_crowds() {
        let crowd =
            [queue(0, 0, 34, true), queue(1, 0, 33, true), queue(2, 0, 33, true), queue(3, 1, 100, true)];
        assert_eq!(best(2, &crowd), Some(Move { id: QueueId(1), from: 0, to: 1 }));
        // A queue without a backlog has what it wants.
        let quiet =
            [queue(0, 0, 49, true), queue(1, 0, 49, true), queue(2, 0, 2, false), queue(3, 1, 100, true)];
        assert_eq!(best(2, &quiet), None);
    }

    #[test]
    fn a_move_must_pay_twice_and_is_not_taken_back() {
        let mut balancer = Balancer::default();
        let uneven = [queue(0, 0, 50, false), queue(1, 0, 40, false)];
        assert_eq!(balancer.decide(2, SECOND, &uneven), None);
        assert_eq!(balancer.decide(2, SECOND, &[]), None, "it was for one interval only");
        assert_eq!(balancer.decide(2, SECOND, &uneven), None);
        let go = balancer.decide(2, SECOND, &uneven).expect("it pays for the second time");
        // The loads turn round: whatever is measured, the queue stays where it is now.
        let turned: Vec<_> =
            [queue(0, 1, 60, false), queue(1, 1, 40, false)].into_iter().filter(|q| q.id == go.id).collect();
        let other = queue(7, 1, 40, true);
        for _ in 0..NOT_BACK {
            if let Some(next) = balancer.decide(2, SECOND, &[turned[0], other]) {
                assert_ne!(next.id, go.id);
            }
        }
    }

    /// What a worker's queues get of its time: each what it wants, or else the same share as others that want more.
    fn shares(wants: &[u64]) -> Vec<u64> {
        let mut got = vec![0; wants.len()];
        let (mut left, mut hungry) = (SECOND, (0..wants.len()).collect::<Vec<_>>());
        while !hungry.is_empty() && left > 0 {
            let each = (left / hungry.len() as u64).max(1);
            let before = left;
            hungry.retain(|&i| {
                let n = each.min(wants[i] - got[i]).min(left);
                got[i] += n;
                left -= n;
                got[i] < wants[i]
            });
            if before == left {
                break;
            }
        }
        got
    }

    fn measure(wants: &[u64], on: &[usize], workers: usize) -> Vec<QueueLoad> {
        let mut loads = Vec::new();
        for worker in 0..workers {
            let mine: Vec<usize> = (0..wants.len()).filter(|&i| on[i] == worker).collect();
            let got = shares(&mine.iter().map(|&i| wants[i]).collect::<Vec<_>>());
            for (&i, ticks) in mine.iter().zip(got) {
                loads.push(QueueLoad { id: QueueId(i as u64), worker, ticks, backlog: ticks < wants[i] });
            }
        }
        loads
    }

    proptest! {
        /// With a constant demand the moves end, no assignment comes back, and a move by a gap makes the busier
        /// worker of the two less busy.
        #[test]
        fn constant_demand_comes_to_rest(
            workers in 1usize..5,
            wants in prop::collection::vec(prop_oneof![0..SECOND / 10, 0..SECOND, Just(4 * SECOND)], 0..16),
            seed in prop::collection::vec(0usize..4, 16),
        ) {
            let mut on: Vec<usize> = (0..wants.len()).map(|i| seed[i] % workers).collect();
            let mut balancer = Balancer::default();
            let mut seen = vec![on.clone()];
            let mut last = 0;
            for interval in 0..1000 {
                let loads = measure(&wants, &on, workers);
                let Some(go) = balancer.decide(workers, SECOND, &loads) else { continue };
                last = interval;
                let load = |w| loads.iter().filter(|q| q.worker == w).map(|q| q.ticks).sum::<u64>();
                let i = go.id.0 as usize;
                prop_assert_eq!(on[i], go.from);
                on[i] = go.to;
                prop_assert!(!seen.contains(&on), "back at {:?}", &on);
                seen.push(on.clone());
                if load(go.from) - load(go.to) > SECOND / 10 {
                    let ticks = loads.iter().find(|q| q.id == go.id).map_or(0, |q| q.ticks);
                    prop_assert!((load(go.from) - ticks).max(load(go.to) + ticks) < load(go.from));
                }
            }
            prop_assert!(last < 500, "still moving after {} intervals", last);
        }
    }
}
