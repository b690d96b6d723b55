//! Fragments that came before the first of their packet: they wait for it, a few of them, for a moment.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use switch_core::ids::PortId;
use switch_core::napt::fragments::FragmentKey;
use switch_core::time::Instant;

/// How long a fragment waits for the first one.
const WAIT: Duration = Duration::from_secs(5);
/// Fragments that wait, in all.
const HELD_MAX: usize = 512;
/// Fragments that came by one port and wait.
const HELD_EACH: usize = 128;

/// A fragment that waits.
#[derive(Debug)]
struct Held {
    until: Instant,
    key: FragmentKey<IpAddr>,
    from: PortId,
    frame: Vec<u8>,
}

/// The fragments that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Early {
    held: VecDeque<Held>,
}

impl Early {
    /// Keeps a fragment. The oldest of its port goes if there are too many; nothing is kept if other ports have all
    /// the room.
    pub(super) fn hold(&mut self, now: Instant, key: FragmentKey<IpAddr>, from: PortId, frame: Vec<u8>) {
        self.expire(now);
        if self.held.iter().filter(|held| held.from == from).count() >= HELD_EACH
            && let Some(oldest) = self.held.iter().position(|held| held.from == from)
        {
            self.held.remove(oldest);
        }
        if self.held.len() < HELD_MAX {
            self.held.push_back(Held { until: now + WAIT, key, from, frame });
        }
    }

    /// The fragments of a packet whose first one came, in the order that they came in.
    pub(super) fn take(&mut self, key: &FragmentKey<IpAddr>) -> Vec<(PortId, Vec<u8>)> {
        let mut taken = Vec::new();
        if !self.held.iter().any(|held| held.key == *key) {
            return taken;
        }
        for held in std::mem::take(&mut self.held) {
            if held.key == *key {
                taken.push((held.from, held.frame));
            } else {
                self.held.push_back(held);
            }
        }
        taken
    }

    /// Forgets those whose first one did not come.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.held.front().is_some_and(|held| held.until <= now) {
            self.held.pop_front();
        }
    }

    /// When the oldest is to be forgotten.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        self.held.front().map(|held| held.until)
    }
}
