//! When connections want to be looked at. A connection's time mostly moves later, with every acknowledgment; so one entry
//! for each stands in a heap at a time that is not too late, and is put back when it turns out to be too early.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use switch_core::Instant;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u32, u16)>>,
}

impl Timers {
    /// Sees to it that a connection, whose earliest entry is `standing`, is looked at by `at`.
    #[inline]
    pub(super) fn want(&mut self, at: Instant, standing: &mut Option<Instant>, slot: u32, generation: u16) {
        if standing.is_none_or(|standing| at < standing) {
            *standing = Some(at);
            self.heap.push(Reverse((at, slot, generation)));
        }
    }

    /// The earliest entry.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes out an entry that is due: its time, slot and generation.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, u32, u16)> {
        self.next().filter(|&at| at <= now)?;
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
