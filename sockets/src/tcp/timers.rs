//! When connections want to be looked at. A connection's time mostly moves later, with every acknowledgment; so its entry
//! stands at a time that is not too late, and is put back when it turns out to be too early. Each connection has one entry
//! at most, also after years of coming and going: what grows by what guests do is bounded by their connections.

use std::collections::BTreeSet;

use switch_core::Instant;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Timers {
    entries: BTreeSet<(Instant, u32, u16)>,
}

impl Timers {
    /// Sees to it that a connection, whose entry is at `standing`, is looked at by `at`.
    #[inline]
    pub(super) fn want(&mut self, at: Instant, standing: &mut Option<Instant>, slot: u32, generation: u16) {
        if standing.is_some_and(|standing| standing <= at) {
            return;
        }
        self.forget(standing, slot, generation);
        *standing = Some(at);
        self.entries.insert((at, slot, generation));
    }

    /// Takes a connection's entry out.
    pub(super) fn forget(&mut self, standing: &mut Option<Instant>, slot: u32, generation: u16) {
        if let Some(at) = standing.take() {
            self.entries.remove(&(at, slot, generation));
        }
    }

    /// The earliest entry.
    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.first().map(|(at, ..)| *at)
    }

    /// Takes out an entry that is due: its slot and generation. Whoever it is of has none then.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(u32, u16)> {
        self.next().filter(|&at| at <= now)?;
        self.entries.pop_first().map(|(_, slot, generation)| (slot, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_one_entry_however_often_it_wants_something_else() {
        let mut timers = Timers::default();
        let mut standing = None;
        for second in 0..1000 {
            let now = Instant::from_secs(second);
            // Idle, then something under way, then idle again.
            timers.want(Instant::from_secs(second + 7440), &mut standing, 3, 1);
            timers.want(Instant::from_nanos(now.as_nanos() + 250_000_000), &mut standing, 3, 1);
            assert_eq!(timers.entries.len(), 1);
            assert_eq!(timers.pop(Instant::from_secs(second + 1)), Some((3, 1)));
            standing = None;
        }
        timers.want(Instant::from_secs(5000), &mut standing, 3, 1);
        timers.want(Instant::from_secs(6000), &mut standing, 3, 1);
        assert_eq!(timers.next(), Some(Instant::from_secs(5000)), "early is not too late");
        timers.forget(&mut standing, 3, 1);
        assert_eq!((timers.next(), standing), (None, None));
    }
}
