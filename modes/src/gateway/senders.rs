//! Who was heard by which port, so that answers find the way: so many for each port.
//!
//! A guest that invents senders only makes the gateway forget its own. Of a port that has as many as it may have, the
//! one that came first goes.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use switch_core::{MacAddr, PortId};

/// Senders that are remembered of one port.
const EACH: usize = 64;

/// Senders by `K`, their MAC or their IP address.
#[derive(Debug)]
pub(super) struct Senders<K> {
    known: HashMap<K, (PortId, MacAddr)>,
    /// Those of each port, the first one first: as many as are in `known`.
    ports: HashMap<PortId, VecDeque<K>>,
}

impl<K> Default for Senders<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), ports: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Senders<K> {
    /// Where a sender was heard last.
    pub(super) fn get(&self, key: &K) -> Option<(PortId, MacAddr)> {
        self.known.get(key).copied()
    }

    /// A sender was heard.
    pub(super) fn heard(&mut self, key: K, port: PortId, mac: MacAddr) {
        match self.known.insert(key, (port, mac)) {
            Some((before, _)) if before == port => return,
            Some((before, _)) => {
                if let Some(keys) = self.ports.get_mut(&before) {
                    keys.retain(|other| *other != key);
                }
            }
            None => {}
        }
        let keys = self.ports.entry(port).or_default();
        if keys.len() >= EACH
            && let Some(first) = keys.pop_front()
        {
            self.known.remove(&first);
        }
        keys.push_back(key);
    }

    /// Forgets who was heard by a port that is gone.
    pub(super) fn forget(&mut self, port: PortId) {
        for key in self.ports.remove(&port).unwrap_or_default() {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_core::ids::Registry;

    #[test]
    fn a_port_that_invents_senders_loses_its_own() {
        let mut registry = Registry::<PortId>::new(2);
        let (a, b) = (registry.mint().unwrap(), registry.mint().unwrap());
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let mut senders = Senders::default();
        senders.heard(0_u32, a, mac);
        for n in 1..10_000 {
            senders.heard(n, b, mac);
        }
        assert_eq!((senders.get(&0), senders.get(&9_999)), (Some((a, mac)), Some((b, mac))));
        assert_eq!(senders.get(&1), None);
        assert_eq!(senders.known.len(), 1 + EACH);
        // One that is elsewhere now counts there.
        senders.heard(9_999, a, mac);
        assert_eq!((senders.get(&9_999), senders.ports[&b].len()), (Some((a, mac)), EACH - 1));
        senders.forget(b);
        assert_eq!(senders.known.len(), 2);
        senders.forget(a);
        assert!(senders.known.is_empty() && senders.ports.is_empty());
    }
}
