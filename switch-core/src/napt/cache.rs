//! A worker's cache of answers: what a flow's local end becomes.
//!
//! Two ways. An answer is used while its session's epoch is current and its time has not passed; nothing is ever
//! removed. Only sessions that a plain packet does not change are here, and each is told of again within a second.

use super::common::Epochs;
use super::flow::{Address, Endpoint, Key};
use super::time::Tick;

/// Sets of two answers: 96 KB for IPv4.
const SETS: usize = 1 << 10;

/// A cached answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<A> {
    key: Key<A>,
    to: Endpoint<A>,
    /// The hash of the session's own key, whose epoch counts.
    session: u64,
    epoch: u32,
    /// In this tick and after it the tables are to be asked.
    until: Tick,
}

impl<A: Address> Answer<A> {
    pub(super) fn new(key: Key<A>, to: Endpoint<A>, session: u64, epoch: u32, until: Tick) -> Self {
        Self { key, to, session, epoch, until }
    }
}

/// The cache of one direction.
#[derive(Debug)]
pub(super) struct Cache<A> {
    sets: Box<[[Option<Answer<A>>; 2]]>,
}

impl<A: Address> Cache<A> {
    /// An empty cache, whose memory is taken with its first answer: many translators see one version of IP only.
    pub(super) fn new() -> Self {
        Self { sets: Box::default() }
    }

    /// The answer for a key, if it is true.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: &Key<A>, now: Tick, epochs: &Epochs) -> Option<Endpoint<A>> {
        let set = self.sets.get(place(hash))?;
        let answer = set.iter().flatten().find(|answer| answer.key == *key)?;
        (now < answer.until && epochs.current(answer.session) == answer.epoch).then_some(answer.to)
    }

    /// Keeps an answer, in the place of the older one of its set.
    #[inline]
    pub(super) fn put(&mut self, hash: u64, answer: Answer<A>) {
        if self.sets.is_empty() {
            self.sets = vec![[None; 2]; SETS].into_boxed_slice();
        }
        if let Some([first, second]) = self.sets.get_mut(place(hash)) {
            if first.is_some_and(|first| first.key != answer.key) {
                *second = *first;
            }
            *first = Some(answer);
        }
    }
}

#[inline]
fn place(hash: u64) -> usize {
    // Bits that choose no epoch.
    (hash >> 16) as usize & (SETS - 1)
}
