//! The table against Open vSwitch's vector and against a model that is a plain list.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ids::Registry;

fn ports(n: u16) -> Vec<PortId> {
    let mut registry = Registry::new(n);
    (0..n).map(|_| registry.mint().expect("enough")).collect()
}

fn key(n: u64) -> Key {
    Key::from_u64(0x0200_0000_0000 + n, None)
}

fn at(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

fn count<W: Watch>(table: &Table<W>, port: PortId) -> usize {
    table.entries(Instant::ORIGIN).iter().filter(|e| e.port == port).count()
}

fn table(limit: usize) -> Table {
    Table::new(AGEING_DEFAULT, limit, ())
}

/// Open vSwitch, "MAC table overflow fairness": a table of ten, five ports with two stations each, then
/// sixteen on a sixth port. The sixth ends with three, every other keeps at least one.
#[test]
fn the_overflow_fairness_vector_of_open_vswitch() {
    let ports = ports(6);
    let mut table = table(10);
    for (i, port) in ports[..5].iter().enumerate() {
        for station in 0..2 {
            assert_eq!(table.learn(at(i as u64), key(i as u64 * 2 + station), *port), Learned::New);
        }
    }
    for station in 0..16 {
        assert_eq!(table.learn(at(10), key(100 + station), ports[5]), Learned::New);
        assert_eq!(table.len(), 10);
    }
    assert_eq!(count(&table, ports[5]), 3);
    for port in &ports[..5] {
        assert!((1..=2).contains(&count(&table, *port)));
    }
    // Of the sixth port's, the last ones are left.
    for station in 0..16 {
        assert_eq!(table.lookup(at(10), key(100 + station)).is_some(), station >= 13);
    }
}

#[test]
fn learned_moved_refreshed() {
    let ports = ports(2);
    let mut table = table(10);
    assert_eq!(table.learn(at(0), key(1), ports[0]), Learned::New);
    assert_eq!(table.learn(at(1), key(1), ports[0]), Learned::Refreshed);
    assert_eq!(table.lookup(at(1), key(1)), Some(Found { port: ports[0], seen: Some(at(1)) }));
    assert_eq!(table.learn(at(2), key(1), ports[1]), Learned::Moved(ports[0]));
    assert_eq!(table.lookup(at(2), key(1)), Some(Found { port: ports[1], seen: Some(at(2)) }));
    assert_eq!(table.lookup(at(2), Key::new(key(1).mac(), Vid::new(1))), None, "another VLAN");
    assert!(table.remove(key(1)));
    assert!(!table.remove(key(1)));
    assert!(table.is_empty());
}

#[test]
fn an_aged_entry_is_absent_before_it_is_removed() {
    let ports = ports(2);
    let mut table = table(2);
    table.learn(at(0), key(1), ports[0]);
    table.learn(at(10), key(2), ports[0]);
    assert_eq!(table.poll_at(), Some(at(300)));
    assert!(table.lookup(Instant::from_nanos(300_000_000_000 - 1), key(1)).is_some());
    assert_eq!(table.lookup(at(300), key(1)), None);
    assert_eq!(table.entries(at(300)).len(), 1);
    // It makes room first, though its port does not hold most: ports hold one and one then.
    assert_eq!(table.learn(at(300), key(3), ports[1]), Learned::New);
    assert!(table.lookup(at(300), key(2)).is_some());
    assert_eq!(table.learn(at(310), key(2), ports[1]), Learned::New, "aged, so not a move");
    assert_eq!(table.tick(at(400), 10), 0);
    assert_eq!(table.tick(at(700), 1), 1, "no more work than asked for");
    assert_eq!(table.poll_at(), Some(at(610)));
    assert_eq!(table.tick(at(700), 10), 1);
    assert_eq!(table.poll_at(), None);
}

#[test]
fn time_does_not_run_backwards() {
    let ports = ports(1);
    let mut table = table(10);
    table.learn(at(100), key(1), ports[0]);
    table.learn(at(50), key(2), ports[0]);
    assert_eq!(table.lookup(at(100), key(2)), Some(Found { port: ports[0], seen: Some(at(100)) }));
    assert_eq!(table.tick(at(399), 10), 0);
    assert_eq!(table.tick(at(400), 10), 2);
}

#[test]
fn static_entries_stay() {
    let ports = ports(3);
    let mut table = table(3);
    let mac = |n| key(n).mac();
    table.learn(at(0), key(1), ports[0]);
    table.add_static(mac(1), None, ports[1]).unwrap();
    assert_eq!(table.learn(at(1), key(1), ports[2]), Learned::Static(ports[1]));
    assert_eq!(table.lookup(at(1_000_000), key(1)), Some(Found { port: ports[1], seen: None }));
    for station in 10..30 {
        assert_eq!(table.learn(at(2), key(station), ports[2]), Learned::New);
    }
    assert_eq!((table.len(), count(&table, ports[1])), (3, 1), "not evicted");
    table.add_static(mac(2), None, ports[1]).unwrap();
    table.add_static(mac(3), None, ports[1]).unwrap();
    assert_eq!(count(&table, ports[1]), 3, "configured ones evict learned ones");
    assert_eq!(table.learn(at(2), key(10), ports[2]), Learned::Full);
    assert_eq!(table.add_static(mac(4), None, ports[1]), Err(FdbError::Full(3)));
    assert_eq!(table.add_static(mac(3), None, ports[2]), Ok(()), "replaced, so there is room");
    assert_eq!(table.flush(None), 0);
    assert_eq!(table.tick(at(1_000_000), 10), 0);
    assert_eq!(table.poll_at(), None);
    for bad in [MacAddr([0; 6]), MacAddr::BROADCAST, MacAddr([1, 0, 0, 0, 0, 1])] {
        assert_eq!(table.add_static(bad, None, ports[0]), Err(FdbError::NotAStation(bad)));
    }
    table.configure(AGEING_DEFAULT, 1);
    assert_eq!((table.shrink(10), table.len()), (0, 3), "not even by a lower limit");
    assert_eq!(table.remove_port(ports[1], 10), 2);
    assert_eq!((table.shrink(10), table.len()), (0, 1));
}

#[test]
fn flushing_keeps_static_entries() {
    let ports = ports(2);
    let mut table = table(100);
    for station in 0..20 {
        table.learn(at(0), key(station), ports[(station % 2) as usize]);
    }
    table.add_static(key(50).mac(), Vid::new(9), ports[0]).unwrap();
    assert_eq!(table.flush(Some(ports[0])), 10);
    assert_eq!((count(&table, ports[0]), count(&table, ports[1])), (1, 10));
    assert_eq!(table.flush(None), 10);
    assert_eq!(table.entries(at(0)).len(), 1);
    assert!(table.lookup(at(0), Key::new(key(50).mac(), Vid::new(9))).is_some());
    assert_eq!(table.learn(at(0), key(1), ports[1]), Learned::New);
}

#[test]
fn a_lower_limit_evicts_from_those_with_most() {
    let ports = ports(2);
    let mut table = table(100);
    for station in 0..50 {
        table.learn(at(0), key(station), ports[0]);
    }
    for station in 50..53 {
        table.learn(at(0), key(station), ports[1]);
    }
    table.configure(AGEING_DEFAULT, 10);
    assert_eq!(table.shrink(40), 40);
    assert_eq!(table.shrink(40), 3);
    assert_eq!((count(&table, ports[0]), count(&table, ports[1])), (7, 3));
}

#[test]
fn a_table_of_a_million() {
    let ports = ports(1);
    let mut table = table(usize::MAX);
    assert_eq!(table.limit(), LIMIT_MAX);
    for station in 0..LIMIT_MAX as u64 + 10 {
        assert_eq!(table.learn(at(0), key(station), ports[0]), Learned::New);
    }
    assert_eq!(table.len(), LIMIT_MAX);
    assert!(table.lookup(at(0), key(9)).is_none());
    assert!(table.lookup(at(0), key(10)).is_some());
    assert_eq!(table.flush(None), LIMIT_MAX);
}

/// Collects what the table says is no longer true.
#[derive(Default)]
struct Ended(RefCell<BTreeSet<Key>>, RefCell<bool>);

impl Watch for &Ended {
    fn changed(&self, key: Key) {
        self.0.borrow_mut().insert(key);
    }
    fn all_changed(&self) {
        *self.1.borrow_mut() = true;
    }
}

#[derive(Clone, Debug)]
struct ModelEntry {
    key: Key,
    port: PortId,
    /// `None`: static.
    seen: Option<Instant>,
}

/// What the table is meant to be: a list, least recently seen first, and no structure.
struct Model {
    list: Vec<ModelEntry>,
    ageing: Duration,
    limit: usize,
}

impl Model {
    fn is_aged(&self, entry: &ModelEntry, now: Instant) -> bool {
        entry.seen.is_some_and(|seen| now.since(seen) >= self.ageing)
    }

    fn position(&self, key: Key) -> Option<usize> {
        self.list.iter().position(|e| e.key == key)
    }

    /// The entries of which one has to go for another to come: the oldest if it has aged, else the oldest of
    /// each port that holds most, but not the learner's if there is another.
    fn victims(&self, now: Instant, learner: Option<PortId>) -> Vec<Key> {
        let learned = || self.list.iter().filter(|e| e.seen.is_some());
        if let Some(oldest) = learned().next().filter(|e| self.is_aged(e, now)) {
            return vec![oldest.key];
        }
        let mut counts = BTreeMap::<PortId, usize>::new();
        learned().for_each(|e| *counts.entry(e.port).or_default() += 1);
        let most = counts.values().copied().max().unwrap_or(0);
        let mut fullest: Vec<_> = counts.into_iter().filter(|&(_, n)| n == most).map(|(p, _)| p).collect();
        if fullest.len() > 1 {
            fullest.retain(|&p| Some(p) != learner);
        }
        let oldest_of = |port| learned().find(|e| e.port == port).map(|e| e.key);
        fullest.into_iter().filter_map(oldest_of).collect()
    }

    /// Makes room for one, as the table did: `gone` is what the table does not have any more.
    fn evict(&mut self, now: Instant, learner: Option<PortId>, table: &Table<&Ended>) -> bool {
        let victims = self.victims(now, learner);
        let Some(victim) = victims.iter().copied().find(|&k| !has(table, k)) else {
            assert!(victims.is_empty(), "one of {victims:?} had to go");
            return false;
        };
        self.list.retain(|e| e.key != victim);
        true
    }
}

/// Whether the entry is there at all, aged or not.
fn has(table: &Table<&Ended>, key: Key) -> bool {
    table.lookup(Instant::ORIGIN, key).is_some()
}

#[derive(Clone, Debug)]
enum Op {
    Learn { station: u64, port: usize },
    Storm { port: usize, first: u64, n: u64 },
    Wait(u64),
    AddStatic { station: u64, port: usize },
    Remove(u64),
    Flush(Option<usize>),
    RemovePort(usize),
    Configure { ageing: u64, limit: usize },
    Tick(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (station, port) = (0..24_u64, 0..6_usize);
    let op = prop_oneof![
        20 => (station.clone(), port.clone()).prop_map(|(station, port)| Op::Learn { station, port }),
        3 => (port.clone(), 100..200_u64, 1..16_u64).prop_map(|(port, first, n)| Op::Storm { port, first, n }),
        5 => (0..12_u64).prop_map(Op::Wait),
        2 => (station.clone(), port.clone()).prop_map(|(station, port)| Op::AddStatic { station, port }),
        3 => station.prop_map(Op::Remove),
        1 => proptest::option::of(port.clone()).prop_map(Op::Flush),
        1 => port.prop_map(Op::RemovePort),
        1 => (5..40_u64, 1..20_usize).prop_map(|(ageing, limit)| Op::Configure { ageing, limit }),
        2 => (0..5_usize).prop_map(Op::Tick),
    ];
    proptest::collection::vec(op, 1..120)
}

struct Pair<'a> {
    table: Table<&'a Ended>,
    model: Model,
    now: Instant,
    ports: Vec<PortId>,
}

impl Pair<'_> {
    fn learn(&mut self, key: Key, port: PortId) {
        let now = self.now;
        let got = self.table.learn(now, key, port);
        let entry = ModelEntry { key, port, seen: Some(now) };
        let want = match self.model.position(key) {
            Some(i) if self.model.list[i].seen.is_none() => Learned::Static(self.model.list[i].port),
            Some(i) => {
                let old = self.model.list.remove(i);
                self.model.list.push(entry);
                match () {
                    () if self.model.is_aged(&old, now) => Learned::New,
                    () if old.port == port => Learned::Refreshed,
                    () => Learned::Moved(old.port),
                }
            }
            None if self.model.list.len() >= self.model.limit
                && !self.model.evict(now, Some(port), &self.table) =>
            {
                Learned::Full
            }
            None => {
                self.model.list.push(entry);
                Learned::New
            }
        };
        assert_eq!(got, want);
    }

    fn apply(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Learn { station, port } => self.learn(key(station), self.ports[port]),
            Op::Storm { port, first, n } => {
                (first..first + n).for_each(|station| self.learn(key(station), self.ports[port]));
            }
            Op::Wait(secs) => {
                self.now = now + Duration::from_secs(secs);
                // Operations of the control plane take the time that the table was last told.
                assert_eq!(self.table.tick(self.now, 0), 0);
            }
            Op::AddStatic { station, port } => {
                let (key, port) = (key(station), self.ports[port]);
                let got = self.table.add_static(key.mac(), None, port);
                let room = match self.model.position(key) {
                    Some(i) => {
                        self.model.list.remove(i);
                        true
                    }
                    None => {
                        self.model.list.len() < self.model.limit || self.model.evict(now, None, &self.table)
                    }
                };
                if room {
                    self.model.list.push(ModelEntry { key, port, seen: None });
                }
                assert_eq!(got.is_ok(), room);
            }
            Op::Remove(station) => {
                let there = self.model.position(key(station));
                let want = there.is_some_and(|i| !self.model.is_aged(&self.model.list[i], now));
                assert_eq!(self.table.remove(key(station)), want);
                self.model.list.retain(|e| e.key != key(station));
            }
            Op::Flush(port) => {
                let port = port.map(|p| self.ports[p]);
                let before = self.model.list.len();
                self.model.list.retain(|e| e.seen.is_none() || port.is_some_and(|p| p != e.port));
                assert_eq!(self.table.flush(port), before - self.model.list.len());
            }
            Op::RemovePort(port) => {
                let port = self.ports[port];
                let before = self.model.list.len();
                self.model.list.retain(|e| e.port != port);
                assert_eq!(self.table.remove_port(port, 1000), before - self.model.list.len());
            }
            Op::Configure { ageing, limit } => {
                let ageing = Duration::from_secs(ageing);
                self.table.configure(ageing, limit);
                (self.model.ageing, self.model.limit) = (ageing, limit);
                while self.table.shrink(1) == 1 {
                    assert!(self.model.evict(now, None, &self.table));
                }
                let statics = self.model.list.iter().filter(|e| e.seen.is_none()).count();
                assert!(self.table.len() <= limit.max(statics));
            }
            Op::Tick(work) => {
                let aged = self.model.list.iter().filter(|e| self.model.is_aged(e, now)).count();
                let gone = aged.min(work);
                assert_eq!(self.table.tick(now, work), gone);
                for _ in 0..gone {
                    let oldest = self.model.list.iter().position(|e| e.seen.is_some()).expect("aged ones");
                    self.model.list.remove(oldest);
                }
            }
        }
    }

    /// Everything that can be asked is answered as the list answers it.
    fn compare(&self) {
        let (table, model, now) = (&self.table, &self.model, self.now);
        assert_eq!(table.len(), model.list.len());
        let sorted = |mut entries: Vec<FdbEntry>| {
            entries.sort_by_key(|e| e.mac);
            entries
        };
        let want: Vec<_> = model
            .list
            .iter()
            .filter(|e| !model.is_aged(e, now))
            .map(|e| FdbEntry {
                mac: e.key.mac(),
                vlan: e.key.vlan(),
                port: e.port,
                age: e.seen.map_or(Duration::ZERO, |seen| now.since(seen)),
                is_static: e.seen.is_none(),
            })
            .collect();
        for entry in &want {
            let found = table.lookup(now, Key::new(entry.mac, entry.vlan)).expect("in the list");
            assert_eq!((found.port, found.seen.is_none()), (entry.port, entry.is_static));
        }
        assert_eq!(sorted(table.entries(now)), sorted(want));
        let oldest = model.list.iter().find_map(|e| e.seen);
        assert_eq!(table.poll_at(), oldest.map(|seen| seen + model.ageing));
        let mut chunks = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            next = table.entries_from(now, from, 3, &mut chunks);
        }
        assert_eq!(sorted(chunks), sorted(table.entries(now)));
    }
}

proptest! {
    #[test]
    fn the_table_is_the_list(ops in ops(), limit in 1..20_usize) {
        let ended = Ended::default();
        let ageing = Duration::from_secs(20);
        let mut pair = Pair {
            table: Table::new(ageing, limit, &ended),
            model: Model { list: Vec::new(), ageing, limit },
            now: at(1000),
            ports: ports(6),
        };
        for op in &ops {
            let before = pair.model.list.clone();
            pair.apply(op);
            pair.compare();
            // Whatever was true before and is not any more was reported.
            let changed = ended.0.take();
            if !ended.1.take() {
                for old in before {
                    let now_at = pair.model.list.iter().find(|e| e.key == old.key);
                    let same = now_at.is_some_and(|e| e.port == old.port && e.seen.is_some() == old.seen.is_some());
                    prop_assert!(same || changed.contains(&old.key), "{:?} after {:?}", old, op);
                }
            }
        }
    }

    /// A port that floods the table leaves each other port what it had, up to an even share (rounded up) less
    /// the one entry that it gets when it is even with others.
    #[test]
    fn a_storm_takes_no_more_than_an_even_share(
        held in proptest::collection::vec(0..30_usize, 1..6),
        limit in 6..60_usize,
    ) {
        let ports = ports(held.len() as u16 + 1);
        let mut table = table(limit);
        let mut station = 0;
        let longest = held.iter().copied().max().unwrap_or(0);
        // In turns, so that what does not fit from the start is shared as evenly.
        for turn in 0..longest {
            for (i, &n) in held.iter().enumerate() {
                if turn < n {
                    table.learn(at(0), key(station), ports[i]);
                    station += 1;
                }
            }
        }
        for _ in 0..200 {
            table.learn(at(1), key(station), ports[held.len()]);
            station += 1;
        }
        let share = limit.div_ceil(ports.len()) - 1;
        for (i, &n) in held.iter().enumerate() {
            let left = count(&table, ports[i]);
            prop_assert!(left >= n.min(share), "port {} has {} of {}, limit {}", i, left, n, limit);
        }
    }
}
