//! The table from next hops to stations.
//!
//! An entry is *configured* (an operator's word: nothing else changes it) or *dynamic*. A dynamic entry was
//! confirmed at some time, by an answer or by traffic from the station. It is *reachable* for [`REACHABLE`] after
//! that, then *stale* (RFC 4861, 7.3.2): still used, and if it is, the [`super::Resolver`] asks the station and
//! forgets the entry only when no answer comes. A stale entry that nobody uses is forgotten after [`UNUSED`].
//!
//! Bounds: entries in all, and dynamic entries for each port. A port that has as many as it may have gives up one:
//! of a few, the one that was confirmed longest ago; when the table is full, the port with most entries does. So a
//! guest that invents addresses only loses its own, and costs no more with many entries than with few.
//!
//! # Threads
//! Workers read (through a [`super::Cache`]), and note use and traffic in the entry itself. What changes or removes
//! an answer is the slow path's and the control thread's: they hold the index's mutex, and raise the *epoch*, so
//! that a completed change holds for every worker's next burst. An entry that is given up for want of room was
//! true: caches may answer with it for the second that they keep an answer, and a guest cannot make them forget.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use switch_core::ids::PortId;
use switch_core::time::Instant;

use super::{Link, Station};

/// For how long an entry is taken for good after it was confirmed (RFC 4861, 10: REACHABLE_TIME).
pub(super) const REACHABLE: Duration = Duration::from_secs(30);
/// For how long an entry that nobody uses is kept after it was confirmed.
pub(super) const UNUSED: Duration = Duration::from_secs(600);
/// How often a worker notes in the table that an entry is in use.
pub(super) const NOTE_EVERY: Duration = Duration::from_secs(1);

/// Entries of a port that are looked at when one must go.
const EVICT_OF: usize = 32;

pub(super) type Key = (Link, IpAddr);

/// How large the table may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Dynamic entries in all.
    pub total: usize,
    /// Dynamic entries of stations behind one port.
    pub each: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 65_536, each: 4096 }
    }
}

#[derive(Debug)]
struct Entry {
    station: Station,
    configured: bool,
    /// Nanoseconds of the instant when the station last gave a sign of life.
    confirmed: AtomicU64,
    /// Nanoseconds of the instant when the entry was last used, within [`NOTE_EVERY`].
    used: AtomicU64,
}

/// What became of something that was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The address was not known.
    New,
    /// It was known to be there.
    Confirmed,
    /// It was elsewhere.
    Moved,
    /// An operator said where the address is, and it is not there.
    Refused,
    /// It is elsewhere, and who is there gave a sign of life lately: it is asked first.
    Contested,
}

/// The table. See the module's text.
#[derive(Debug)]
pub struct Neighbors {
    entries: DashMap<Key, Entry>,
    /// The dynamic entries of each port.
    ports: Mutex<HashMap<PortId, HashSet<Key>>>,
    epoch: AtomicU64,
    limits: Limits,
}

impl Neighbors {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self { entries: DashMap::new(), ports: Mutex::default(), epoch: AtomicU64::new(0), limits }
    }

    /// Changes when an answer that was given is not true any more. What was read before the change is known by it.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Where a neighbour is, and notes that it is asked for.
    pub fn get(&self, now: Instant, link: Link, address: IpAddr) -> Option<Station> {
        let entry = self.entries.get(&(link, address))?;
        if now.since(nanos(&entry.used)) >= NOTE_EVERY {
            entry.used.fetch_max(now.as_nanos(), Ordering::Relaxed);
        }
        Some(entry.station)
    }

    /// Where a neighbour is, without a trace.
    pub fn peek(&self, link: Link, address: IpAddr) -> Option<Station> {
        Some(self.entries.get(&(link, address))?.station)
    }

    /// Notes traffic from a station: if the table has it there, it is reachable. Nothing is learned of it. Where the
    /// address is known to be.
    pub fn confirm(&self, now: Instant, link: Link, address: IpAddr, station: Station) -> Option<Station> {
        let entry = self.entries.get(&(link, address))?;
        if entry.station == station {
            entry.confirmed.fetch_max(now.as_nanos(), Ordering::Relaxed);
        }
        Some(entry.station)
    }

    /// Dynamic and configured entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// An operator's word: the address is there, whatever a neighbour says.
    pub fn configure(&self, link: Link, address: IpAddr, station: Station) {
        let mut ports = self.ports();
        self.drop_entry(&mut ports, &(link, address));
        let entry =
            Entry { station, configured: true, confirmed: AtomicU64::new(0), used: AtomicU64::new(0) };
        self.entries.insert((link, address), entry);
        self.changed();
    }

    /// Learns that a station has an address. If `fresh`, it is reachable now, else stale until somebody asks.
    pub fn learn(&self, now: Instant, link: Link, address: IpAddr, station: Station, fresh: bool) -> Learned {
        let key = (link, address);
        let mut ports = self.ports();
        let known = self.entries.get(&key).map(|entry| {
            if entry.station == station && fresh {
                entry.confirmed.fetch_max(now.as_nanos(), Ordering::Relaxed);
            }
            (entry.station == station, entry.configured)
        });
        let learned = match known {
            Some((true, _)) => return Learned::Confirmed,
            Some((false, true)) => return Learned::Refused,
            Some((false, false)) => {
                self.drop_entry(&mut ports, &key);
                Learned::Moved
            }
            None => Learned::New,
        };
        let full = ports.get(&station.port).is_some_and(|keys| keys.len() >= self.limits.each.max(1));
        let victim = if full {
            Some(station.port)
        } else if ports.values().map(HashSet::len).sum::<usize>() >= self.limits.total.max(1) {
            ports.iter().max_by_key(|(port, keys)| (keys.len(), **port)).map(|(port, _)| *port)
        } else {
            None
        };
        if let Some(port) = victim {
            self.evict(&mut ports, port);
        }
        let confirmed = if fresh { now.as_nanos() } else { 0 };
        let entry = Entry {
            station,
            configured: false,
            confirmed: AtomicU64::new(confirmed),
            used: AtomicU64::new(now.as_nanos()),
        };
        self.entries.insert(key, entry);
        ports.entry(station.port).or_default().insert(key);
        // What was not known is in no cache.
        if learned == Learned::Moved {
            self.changed();
        }
        learned
    }

    /// Forgets an address, configured or not. False if it was not known.
    pub fn forget(&self, link: Link, address: IpAddr) -> bool {
        let mut ports = self.ports();
        let known = self.drop_entry(&mut ports, &(link, address));
        self.changed();
        known
    }

    /// Forgets an address, unless it is configured.
    pub(super) fn forget_dynamic(&self, key: &Key) {
        let mut ports = self.ports();
        if self.entries.get(key).is_some_and(|entry| !entry.configured) {
            self.drop_entry(&mut ports, key);
            self.changed();
        }
    }

    /// Forgets what is behind a port, and what is on the link that it is.
    pub fn forget_port(&self, port: PortId) {
        let mut ports = self.ports();
        self.entries.retain(|(link, _), entry| entry.station.port != port && *link != Link::Port(port));
        ports.remove(&port);
        for keys in ports.values_mut() {
            keys.retain(|(link, _)| *link != Link::Port(port));
        }
        self.changed();
    }

    /// Stale entries that are in use: to be asked. Those that nobody used for long are forgotten.
    pub(super) fn stale(&self, now: Instant) -> Vec<(Key, Station)> {
        let (mut ask, mut unused) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            let (confirmed, used) = (nanos(&entry.confirmed), nanos(&entry.used));
            if entry.configured || now.since(confirmed) < REACHABLE {
                continue;
            }
            if used > confirmed && now.since(used) < REACHABLE {
                ask.push((*entry.key(), entry.station));
            } else if now.since(confirmed.max(used)) >= UNUSED {
                unused.push(*entry.key());
            }
        }
        for key in unused {
            self.forget_dynamic(&key);
        }
        ask
    }

    /// Whether a dynamic entry was confirmed lately.
    pub(super) fn is_reachable(&self, now: Instant, key: &Key) -> bool {
        let entry = self.entries.get(key);
        entry.is_some_and(|entry| !entry.configured && now.since(nanos(&entry.confirmed)) < REACHABLE)
    }

    /// Whether an entry was confirmed at `since` or after.
    pub(super) fn confirmed_since(&self, key: &Key, since: Instant) -> bool {
        self.entries.get(key).is_some_and(|entry| nanos(&entry.confirmed) >= since)
    }

    /// Whether there is something that ages.
    pub(super) fn ages(&self) -> bool {
        self.ports().values().any(|keys| !keys.is_empty())
    }

    fn evict(&self, ports: &mut HashMap<PortId, HashSet<Key>>, port: PortId) {
        let oldest = ports.get(&port).and_then(|keys| {
            let confirmed = |key: &&Key| self.entries.get(*key).map(|entry| nanos(&entry.confirmed));
            keys.iter().take(EVICT_OF).min_by_key(confirmed).copied()
        });
        if let Some(key) = oldest {
            self.drop_entry(ports, &key);
        }
    }

    /// Removes an entry from the table and the index. True if it was there.
    fn drop_entry(&self, ports: &mut HashMap<PortId, HashSet<Key>>, key: &Key) -> bool {
        let Some((_, entry)) = self.entries.remove(key) else { return false };
        if let Some(keys) = ports.get_mut(&entry.station.port) {
            keys.remove(key);
            if keys.is_empty() {
                ports.remove(&entry.station.port);
            }
        }
        true
    }

    /// Tells every cache, after the change is made.
    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The index. It holds its invariants between any two operations.
    fn ports(&self) -> MutexGuard<'_, HashMap<PortId, HashSet<Key>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(at: &AtomicU64) -> Instant {
    Instant::from_nanos(at.load(Ordering::Relaxed))
}
