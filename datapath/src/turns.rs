//! What a queue may cost its worker while others have work: a bound on what its frames cost beyond what frames cost.
//!
//! Workers look at their active queues in turn, a burst each. That is fair as long as bursts cost about the same. A
//! guest can make its own dear, at no cost to itself: chains of a thousand descriptors, frames that are dropped,
//! floods to a thousand ports, super-frames that must be cut into hundreds of segments. So each queue has an account.
//! A burst is charged what it took beyond an *allowance*, which is generous for frames that go anywhere and nothing
//! for others. The account fills up slowly: by one [`EXCESS`]th of the time. A queue that has overdrawn it *rests*, its
//! frames waiting in its ring, until it has not; but only while others have work: a worker never waits for it.
//!
//! Beside that, turns that take longer than a [`QUANTUM`] are paid for in rounds that the queue sits out, so that
//! queues which all have work share the time and not the number of turns. A round in which nobody had work while it sat
//! out ends that.
//!
//! So the excess of one queue takes less than a hundredth of its neighbours' time, and of their frames delays
//! few. So that single delays stay short, a queue whose bursts take longer than
//! [`TURN`] has fewer frames in each; that holds for long frames of honest guests, too.
//!
//! Ticks go on while a worker waits for its CPU. What it waited is taken off what a burst took ([`crate::waited`]), as far
//! as the kernel tells it. A burst may still be charged what its guest is not to blame for: a debt is paid in
//! [`REST_FIRST`] at most, and in longer only by who makes another at once, again and again.

use switch_core::verdict::BURST;

use crate::path::Carried;

/// Ticks that a burst with at least one frame that went somewhere may take: looking at the queue, notifying receivers.
const PER_BURST: u64 = 6_000;
/// Ticks that a frame which went somewhere may take.
const PER_FRAME: u64 = 3_000;
/// Ticks for each byte of such a frame.
const PER_BYTE: u64 = 1;
/// The share of the time that a queue's excess may have is one in so many.
const EXCESS: u64 = 128;
/// Ticks that an account holds at most: an odd dear burst is free.
const SAVED: i64 = 200_000;
/// Ticks that a turn is to take at most: some 50 µs.
const TURN: u64 = 150_000;
/// Ticks for which others are taken to have work after they had: some 100 µs. Senders pause.
const LATELY: u64 = 300_000;
/// Ticks of a turn that nobody has to pay for.
const QUANTUM: u64 = 20_000;
/// Ticks that are paid for by sitting out, at most.
const DEBT_MAX: u64 = 50 * QUANTUM;
/// Ticks of the first rest: about a millisecond.
const REST_FIRST: u64 = 3_000_000;
/// Times that the longest rest doubles while debts are made: to about a quarter of a second.
const STRIKES_MAX: u32 = 8;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// What the queue has saved; below zero, what it owes.
    saved: i64,
    /// When the account was looked at last, in ticks.
    at: u64,
    /// Until when it rests, in ticks.
    rests: u64,
    strikes: u32,
    /// Ticks that it has had beyond a quantum, and sits out for.
    debt: u32,
    /// Frames in the next burst.
    frames: u8,
}

/// What a burst took, and what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Ticks.
    pub(crate) took: u64,
    pub(crate) carried: Carried,
}

/// The two queues of a worker that had work within their allowances last, by their slots, and until when that counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Others {
    last: (usize, u64),
    before: u64,
}

impl Others {
    /// A queue had work.
    #[inline(always)]
    pub(crate) fn worked(&mut self, slot: usize, now: u64) {
        if self.last.0 != slot {
            self.before = self.last.1;
        }
        self.last = (slot, now.saturating_add(LATELY));
    }

    /// Whether another queue than this one had work lately.
    #[inline(always)]
    pub(crate) const fn than(&self, slot: usize, now: u64) -> bool {
        now < if self.last.0 == slot { self.before } else { self.last.1 }
    }
}

impl Account {
    /// A new queue's account: with a little, and one frame in the first burst. A guest gains nothing by having its queues
    /// started anew, and a queue that is moved to another worker is at full bursts again after a few.
    pub(crate) const fn new(now: u64) -> Self {
        Self { saved: SAVED / 4, at: now, rests: 0, strikes: 0, debt: 0, frames: 1 }
    }

    /// Whether the queue has a turn in this round, at `now`; asked once a round, while others have work.
    #[inline(always)]
    pub(crate) fn has_turn(&mut self, now: u64) -> bool {
        if self.rests > now {
            return false;
        }
        if u64::from(self.debt) > QUANTUM {
            self.debt -= QUANTUM as u32;
            return false;
        }
        true
    }

    /// Nobody else had work while it sat out: true if it did, and has its turn now.
    pub(crate) const fn forgive(&mut self) -> bool {
        let sat_out = self.debt > 0;
        self.debt = 0;
        sat_out
    }

    /// Frames that its next burst may have, 1 to [`BURST`]. Also when nobody waits: somebody may, before it ends.
    #[inline(always)]
    pub(crate) const fn frames(&self) -> usize {
        self.frames as usize
    }

    /// A burst ended at `now`; true if it took no more than its allowance. `waited` is asked, if it did, for how many ticks
    /// the worker waited for its CPU meanwhile.
    #[inline]
    pub(crate) fn charge(&mut self, now: u64, turn: Turn, waited: impl FnOnce() -> u64) -> bool {
        let Turn { mut took, carried } = turn;
        let allowance = match carried.forwarded {
            0 => 0,
            n => PER_BURST + n * PER_FRAME + carried.bytes * PER_BYTE,
        };
        if took > allowance.max(QUANTUM) {
            took = took.saturating_sub(waited());
        }
        self.debt = took.saturating_sub(QUANTUM).min(DEBT_MAX) as u32;
        if took > TURN {
            let fit = carried.frames.saturating_mul(TURN) / took;
            self.frames = fit.clamp(1, BURST as u64) as u8;
        } else if usize::from(self.frames) < BURST && took <= TURN / 2 {
            self.frames = self.frames.saturating_mul(2).min(BURST as u8);
        }
        let excess = took.saturating_sub(allowance);
        if excess == 0 && self.saved == SAVED {
            self.at = now;
            self.strikes = 0;
        } else {
            self.settle(now, excess);
        }
        excess == 0
    }

    fn settle(&mut self, now: u64, excess: u64) {
        let earned = now.saturating_sub(self.at) / EXCESS;
        self.at = now;
        let saved = self.saved.saturating_add_unsigned(earned).min(SAVED);
        self.saved = saved.saturating_sub_unsigned(excess);
        if self.saved >= 0 {
            // Half paid back is an honest guest's; the next debt is a first one again.
            if self.saved > SAVED / 2 {
                self.strikes = 0;
            }
            return;
        }
        let rest = self.saved.unsigned_abs().saturating_mul(EXCESS);
        self.rests = now.saturating_add(rest.min(REST_FIRST << self.strikes));
        self.strikes = (self.strikes + 1).min(STRIKES_MAX);
        // What is left of the debt is forgiven: the rest is the price.
        self.saved = 0;
        self.at = self.rests;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(took: u64, frames: u64, forwarded: u64, bytes: u64) -> Turn {
        Turn { took, carried: Carried { frames, forwarded, bytes } }
    }

    /// A worker that looks at an honest queue, whose bursts take 13,000 ticks, and at another in turn; the share of the
    /// time that the other had, in thousandths, and its longest turn after the first second.
    fn beside(mut other: impl FnMut(usize) -> Turn) -> (u64, u64) {
        let (mut now, mut had, mut longest) = (0u64, 0u64, 0u64);
        let (mut honest, mut account) = (Account::new(0), Account::new(0));
        while now < 10_000_000_000 {
            assert!(honest.has_turn(now));
            now += 13_000;
            assert!(honest.charge(now, turn(13_000, 64, 64, 3_840), || 0));
            if account.has_turn(now) {
                let turn = other(account.frames());
                now += turn.took;
                had += turn.took;
                account.charge(now, turn, || 0);
                if now > 3_000_000_000 {
                    longest = longest.max(turn.took);
                }
            }
        }
        (had * 1000 / now, longest)
    }

    #[test]
    fn honest_guests_have_their_turns() {
        let small = |n: usize| turn(200 * n as u64, n as u64, n as u64, 60 * n as u64);
        assert!(beside(small).0 > 480);
        // One request at a time, whose receiver is notified.
        let request = |_| turn(6_500, 1, 1, 60);
        assert!(beside(request).0 > 300);
        // Segments of 64 KB, of which fewer make a turn.
        let long = |n: usize| turn(30_000 * n as u64, n as u64, n as u64, 65_000 * n as u64);
        let (share, longest) = beside(long);
        assert!((500..700).contains(&share) && longest <= TURN, "{share} {longest}");
    }

    #[test]
    fn what_is_dear_takes_a_hundredth() {
        type Other = fn(usize) -> Turn;
        let cases: [(&str, Other); 4] = [
            ("frames that are dropped", |n| turn(60 * n as u64, n as u64, 0, 0)),
            ("chains without end", |_| turn(20_000, 4, 0, 0)),
            ("floods", |n| turn(100_000 * n as u64, n as u64, n as u64, 60 * n as u64)),
            ("512 segments each", |n| turn(150_000 * n as u64, n as u64, n as u64, 4_608 * n as u64)),
        ];
        for (what, other) in cases {
            let (share, longest) = beside(other);
            assert!(share <= 10, "{what}: {share} thousandths");
            assert!(longest <= 2 * TURN, "{what}: {longest} ticks at a time");
        }
    }

    #[test]
    fn an_odd_dear_burst_costs_little() {
        // Once a second the worker is taken off its CPU for 4 ms in the middle of the guest's burst.
        let mut turns = 0u64;
        let (mut now, mut rested) = (0u64, 0u64);
        let mut account = Account::new(0);
        while now < 30_000_000_000 {
            turns += 1;
            let took = if turns.is_multiple_of(200_000) { 12_000_000 } else { 13_000 };
            now += took;
            account.charge(now, turn(took, 64, 64, 3_840), || 0);
            while !account.has_turn(now) {
                now += 13_000;
                rested += 13_000;
            }
        }
        assert!(rested * 1000 / now <= 2, "rested for {rested} of {now}");
    }

    #[test]
    fn others_are_those_that_had_work_lately() {
        let mut others = Others::default();
        assert!(!others.than(0, 5));
        others.worked(0, 10);
        assert!(!others.than(0, 20) && others.than(1, 20) && !others.than(1, 10 + LATELY));
        others.worked(0, 30);
        assert!(!others.than(0, 40));
        others.worked(3, 50);
        assert!(others.than(0, 60) && others.than(3, 60) && others.than(7, 60));
        others.worked(3, 20 + LATELY);
        assert!(others.than(3, 25 + LATELY) && !others.than(3, 30 + LATELY));
    }

    #[test]
    fn who_sat_out_while_nobody_had_work_has_its_turn() {
        let mut account = Account::new(0);
        account.charge(100_000, turn(100_000, 2, 2, 130_000), || 0);
        assert!(!account.has_turn(100_001));
        assert!(account.forgive() && account.has_turn(100_002) && !account.forgive());
    }

    #[test]
    fn what_the_worker_waited_is_not_charged() {
        // Interrupted in every burst, for a tenth of a millisecond.
        let took = 13_000 + 300_000;
        for (waited, rests) in [(300_000, false), (0, true)] {
            let (mut now, mut rested, mut account) = (0, 0, Account::new(0));
            for _ in 0..1000 {
                now += took;
                account.charge(now, turn(took, 64, 64, 3_840), || waited);
                rested += u64::from(account.rests > now);
            }
            assert_eq!(rested > 0, rests);
        }
        // Nor is more taken off than there is, and nobody is asked about what is cheap.
        let mut account = Account::new(0);
        assert!(account.charge(30_000, turn(30_000, 0, 0, 0), || u64::MAX));
        assert!(account.charge(40_000, turn(5_000, 1, 1, 60), || unreachable!()));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut account = Account::new(u64::MAX);
        let turn = turn(u64::MAX, u64::from(u32::MAX), 1, 1 << 40);
        for now in [u64::MAX, 0, 5, u64::MAX] {
            account.charge(now, turn, || 0);
            account.has_turn(now);
            assert!((1..=BURST).contains(&account.frames()));
        }
    }
}
