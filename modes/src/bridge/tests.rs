//! Tables of frames in, verdicts out, with a virtual clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use switch_core::check;
use switch_core::drop::DropReason;
use switch_core::fdb::{AGEING_DEFAULT, FdbAccess, FdbError, LIMIT_DEFAULT};
use switch_core::head::Head;
use switch_core::ids::{MacAddr, PortId, Registry, Vid};
use switch_core::mode::{Forwarder, Mode};
use switch_core::offload::OffloadSet;
use switch_core::time::Instant;
use switch_core::verdict::{BURST, Verdict, Verdicts};

use super::forward::BridgeForwarder;
use super::*;

const BROADCAST: u64 = 0xffff_ffff_ffff;

fn mac(n: u64) -> MacAddr {
    let [_, _, a, b, c, d, e, f] = n.to_be_bytes();
    MacAddr([a, b, c, d, e, f])
}

/// The address of station `n`.
fn station(n: u64) -> u64 {
    0x0200_0000_0000 + n
}

fn frame(destination: u64, source: u64, vlan: Option<u16>) -> Head {
    let mut bytes = Vec::from(mac(destination).0);
    bytes.extend(mac(source).0);
    if let Some(vid) = vlan {
        bytes.extend(0x8100_u16.to_be_bytes());
        bytes.extend(vid.to_be_bytes());
    }
    bytes.extend([0x88, 0xb5]);
    bytes.resize(60, 0);
    let mut head = Head::from_frame(&bytes);
    check::frame(&mut head, OffloadSet::NONE).expect("a sound frame");
    head
}

fn at(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

/// A bridge with one worker.
struct Rig {
    bridge: Arc<Bridge>,
    forwarder: BridgeForwarder,
    ports: Vec<PortId>,
}

impl Rig {
    fn new() -> Self {
        Self::with(AGEING_DEFAULT, LIMIT_DEFAULT)
    }

    fn with(ageing: Duration, limit: usize) -> Self {
        let bridge = Arc::new(Bridge::new(ageing, limit));
        let mut registry = Registry::<PortId>::new(64);
        let ports = (0..64).map(|_| registry.mint().expect("64 ports")).collect();
        Self { forwarder: BridgeForwarder::new(Arc::clone(&bridge)), bridge, ports }
    }

    fn burst(&mut self, now: Instant, ingress: usize, mut heads: Vec<Head>) -> Vec<Verdict> {
        let mut out = Verdicts::default();
        out.begin(heads.len());
        self.forwarder.decide(now, self.ports[ingress], &mut heads, &mut out);
        out.as_slice().to_vec()
    }

    /// One frame, untagged.
    fn send(&mut self, now: Instant, ingress: usize, destination: u64, source: u64) -> Verdict {
        self.burst(now, ingress, vec![frame(destination, source, None)])[0]
    }

    fn to(&self, port: usize) -> Verdict {
        Verdict::Unicast(self.ports[port])
    }

    fn entries_of(&self, now: Instant, port: usize) -> usize {
        self.bridge.entries(now).iter().filter(|e| e.port == self.ports[port]).count()
    }
}

#[test]
fn frames_go_where_their_destination_was_seen() {
    let mut rig = Rig::new();
    let (a, b, c) = (station(1), station(2), station(3));
    let drop = Verdict::Drop;
    // (ingress, destination, source, verdict)
    let table = [
        (0, b, a, Verdict::Flood),
        (1, a, b, rig.to(0)),
        (0, b, a, rig.to(1)),
        (0, BROADCAST, a, Verdict::Flood),
        (0, 0x0100_5e00_0001, a, Verdict::Flood),
        (0, c, a, Verdict::Flood),
        (0, a, c, drop(DropReason::SamePort)),
        (0, a, a, drop(DropReason::SamePort)),
        (0, 0x0180_c200_0000, a, drop(DropReason::ReservedAddress)),
        (0, 0x0180_c200_000f, a, drop(DropReason::ReservedAddress)),
        (0, 0x0180_c200_0010, a, Verdict::Flood),
        (0, b, BROADCAST, drop(DropReason::BadSource)),
        (0, b, 0x0300_0000_0001, drop(DropReason::BadSource)),
        (0, b, 0, drop(DropReason::BadSource)),
        (0, 0x0180_c200_0000, 0, drop(DropReason::ReservedAddress)),
        (0, 0, a, Verdict::Flood),
    ];
    // Twice: from the table, then from the cache (where the second sight of `c` makes no difference).
    for round in 0..2 {
        for (i, &(ingress, destination, source, want)) in table.iter().enumerate() {
            let want = match (round, i) {
                (1, 0) => rig.to(1),
                (1, 5) => drop(DropReason::SamePort),
                _ => want,
            };
            assert_eq!(rig.send(at(1), ingress, destination, source), want, "round {round}, frame {i}");
        }
    }
    assert_eq!(rig.bridge.usage(), (3, LIMIT_DEFAULT));
}

#[test]
fn frames_of_a_burst_see_what_those_before_them_taught() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 1, BROADCAST, b);
    let verdicts = rig.burst(
        at(0),
        0,
        vec![
            frame(b, a, None),
            // The station `b` moves to this port, in between frames to it.
            frame(a, b, None),
            frame(b, a, None),
        ],
    );
    let same = Verdict::Drop(DropReason::SamePort);
    assert_eq!(verdicts, [rig.to(1), same, same]);
}

#[test]
fn a_full_burst_is_decided_in_its_order() {
    let mut rig = Rig::new();
    for i in 0..BURST {
        rig.send(at(0), i, BROADCAST, station(i as u64));
    }
    let heads = (0..BURST).map(|i| frame(station(i as u64), station(63), None)).collect();
    let verdicts = rig.burst(at(0), 63, heads);
    for (i, verdict) in verdicts[..63].iter().enumerate() {
        assert_eq!(*verdict, rig.to(i));
    }
    assert_eq!(verdicts[63], Verdict::Drop(DropReason::SamePort));
}

#[test]
fn mixed_frames_are_decided_as_those_that_come_in_trains() {
    // The same frames, as whole bursts, where each is not like the one before, and one by one after a train each.
    let frames = || {
        let stations = [1, 2, 3, 4, 900].map(station);
        let addresses = stations.into_iter().chain([BROADCAST, 0, 0x0180_c200_0000, 0x0300_0000_0001]);
        let addresses: Vec<u64> = addresses.collect();
        let pairs = addresses.iter().flat_map(|&to| addresses.iter().map(move |&from| (to, from)));
        pairs.collect::<Vec<_>>()
    };
    let (mut mixed, mut trains) = (Rig::new(), Rig::new());
    for rig in [&mut mixed, &mut trains] {
        for (n, port) in [(1, 0), (2, 1), (3, 2), (4, 0)] {
            rig.send(at(0), port, BROADCAST, station(n));
        }
        rig.bridge.add_static(mac(station(4)), None, rig.ports[3]).unwrap();
    }
    for round in 0..4 {
        let pairs = frames();
        let mut by_burst = Vec::new();
        for pairs in pairs.chunks(BURST) {
            let heads = pairs.iter().map(|&(to, from)| frame(to, from, None)).collect();
            by_burst.extend(mixed.burst(at(round), 0, heads));
        }
        for (&(to, from), got) in pairs.iter().zip(by_burst) {
            let want = trains.burst(at(round), 0, vec![frame(to, from, None); BURST]);
            assert_eq!(got, want[0], "round {round}: {from:x} to {to:x}");
        }
    }
}

#[test]
fn a_worker_with_mixed_frames_takes_the_table_no_more_often() {
    let mut rig = Rig::new();
    for n in 0..64 {
        rig.send(at(0), (n % 2) as usize, BROADCAST, station(n));
    }
    let burst = |rig: &mut Rig, port: u64| {
        let heads = (0..32).map(|n| frame(station(2 * n + 1 - port), station(2 * n + port), None)).collect();
        rig.burst(at(0), port as usize, heads)
    };
    for port in [0, 1, 0, 1] {
        burst(&mut rig, port);
    }
    rig.forwarder.slow = 0;
    for _ in 0..10 {
        assert_eq!(burst(&mut rig, 0), vec![rig.to(1); 32]);
        assert_eq!(burst(&mut rig, 1), vec![rig.to(0); 32]);
    }
    assert_eq!(rig.forwarder.slow, 0);
}

#[test]
fn vlans_are_learned_apart_and_vid_0_is_untagged() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.burst(at(0), 0, vec![frame(BROADCAST, a, None)]);
    rig.burst(at(0), 1, vec![frame(BROADCAST, a, Some(7))]);
    let verdicts = rig.burst(
        at(0),
        2,
        vec![frame(a, b, None), frame(a, b, Some(0)), frame(a, b, Some(7)), frame(a, b, Some(8))],
    );
    assert_eq!(verdicts, [rig.to(0), rig.to(0), rig.to(1), Verdict::Flood]);
}

#[test]
fn a_station_that_moves_is_found_at_once_by_every_worker() {
    let mut rig = Rig::new();
    let mut other = Rig { forwarder: BridgeForwarder::new(Arc::clone(&rig.bridge)), ..Rig::new() };
    other.ports.clone_from(&rig.ports);
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 0, BROADCAST, a);
    for _ in 0..3 {
        assert_eq!(other.send(at(0), 2, a, b), rig.to(0));
    }
    assert_eq!(rig.send(at(0), 1, BROADCAST, a), Verdict::Flood, "the move");
    assert_eq!(other.send(at(0), 2, a, b), rig.to(1));
    assert_eq!(rig.send(at(0), 1, b, a), rig.to(2));
    assert_eq!(rig.send(at(0), 0, b, a), rig.to(2), "and back, though the first worker has it cached");
    assert_eq!(other.send(at(0), 2, a, b), rig.to(0));
}

#[test]
fn entries_age_by_the_clock_of_the_frames() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 0, BROADCAST, a);
    assert_eq!(rig.bridge.poll_at(), Some(at(300)));
    for s in [0, 100, 299] {
        assert_eq!(rig.send(at(s), 1, a, b), rig.to(0), "after {s} s");
    }
    assert_eq!(rig.send(at(300), 1, a, b), Verdict::Flood, "aged, though no tick has removed it");
    assert_eq!(rig.bridge.entries(at(300)).len(), 1, "and it is not shown");
    assert_eq!(rig.bridge.usage().0, 2);
    rig.bridge.tick(at(300));
    assert_eq!(rig.bridge.usage().0, 1);
    assert_eq!(rig.bridge.poll_at(), Some(at(600)), "the other one");
}

#[test]
fn a_station_that_keeps_talking_does_not_age() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 0, BROADCAST, a);
    for ms in (0..700_000).step_by(400) {
        let now = Instant::from_nanos(ms * 1_000_000);
        rig.send(now, 0, BROADCAST, a);
        rig.bridge.tick(now);
        let entry = rig.bridge.entries(now)[0];
        assert!(entry.age <= Duration::from_millis(1400), "{entry:?} at {ms} ms");
    }
    let last = Instant::from_nanos(699_600_000_000);
    assert_eq!(rig.send(last + Duration::from_secs(298), 1, a, b), rig.to(0));
    assert_eq!(rig.send(last + Duration::from_secs(300), 1, a, b), Verdict::Flood);
}

#[test]
fn refreshing_takes_the_table_once_a_second() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 1, BROADCAST, b);
    rig.send(at(0), 0, b, a);
    rig.send(at(0), 0, b, a);
    rig.forwarder.slow = 0;
    for ms in 0..10_000 {
        rig.send(Instant::from_nanos(ms * 1_000_000), 0, b, a);
    }
    assert!((9..=12).contains(&rig.forwarder.slow), "{} in ten seconds", rig.forwarder.slow);
}

#[test]
fn a_refresh_does_not_wait_for_the_table() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 1, BROADCAST, b);
    rig.send(at(0), 0, b, a);
    rig.send(at(0), 0, b, a);
    let bridge = Arc::clone(&rig.bridge);
    let held = bridge.table();
    assert_eq!(rig.send(at(100), 0, b, a), rig.to(1), "decided while somebody else has the table");
    drop(held);
    rig.send(at(200), 0, b, a);
    let entries = rig.bridge.entries(at(200));
    assert!(entries.iter().any(|e| e.mac == mac(a) && e.age == Duration::ZERO), "{entries:?}");
}

#[test]
fn static_entries_are_not_taken_over_and_their_frames_are_forwarded() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    rig.send(at(0), 1, BROADCAST, a);
    rig.bridge.add_static(mac(a), None, rig.ports[0]).unwrap();
    rig.send(at(0), 2, BROADCAST, b);
    for s in [0, 1, 1000] {
        assert_eq!(rig.send(at(s), 1, b, a), if s < 300 { rig.to(2) } else { Verdict::Flood });
        assert_eq!(rig.send(at(s), 3, a, station(3)), rig.to(0));
    }
    assert_eq!(
        rig.bridge.add_static(mac(BROADCAST), None, rig.ports[0]),
        Err(FdbError::NotAStation(mac(BROADCAST)))
    );
    rig.bridge.tick(at(10_000));
    assert_eq!(rig.bridge.usage().0, 1, "it does not age");
    assert!(rig.bridge.remove(mac(a), None));
    assert!(!rig.bridge.remove(mac(a), None));
    assert_eq!(rig.send(at(10_000), 3, a, b), Verdict::Flood);
    rig.send(at(10_000), 1, BROADCAST, a);
    assert_eq!(rig.send(at(10_000), 3, a, b), rig.to(1), "learned now that it is not static");
}

#[test]
fn a_static_source_at_another_port_does_not_take_the_table() {
    let mut rig = Rig::new();
    rig.bridge.add_static(mac(station(1)), None, rig.ports[0]).unwrap();
    rig.send(at(0), 1, BROADCAST, station(1));
    rig.forwarder.slow = 0;
    for s in 0..1000 {
        rig.send(at(s), 1, BROADCAST, station(1));
    }
    assert_eq!(rig.forwarder.slow, 0);
}

#[test]
fn completed_changes_hold_for_the_next_frame() {
    let mut rig = Rig::new();
    let (a, b) = (station(1), station(2));
    let warm = |rig: &mut Rig| {
        rig.send(at(0), 0, BROADCAST, a);
        for _ in 0..3 {
            assert_eq!(rig.send(at(0), 1, a, b), rig.to(0));
        }
    };
    warm(&mut rig);
    assert!(rig.bridge.remove(mac(a), None));
    assert_eq!(rig.send(at(0), 1, a, b), Verdict::Flood, "deleted");
    warm(&mut rig);
    assert_eq!(rig.bridge.flush(), 2);
    assert_eq!(rig.send(at(0), 1, a, b), Verdict::Flood, "flushed");
    warm(&mut rig);
    rig.bridge.add_static(mac(a), None, rig.ports[2]).unwrap();
    assert_eq!(rig.send(at(0), 1, a, b), rig.to(2), "configured elsewhere");
    assert_eq!(rig.bridge.flush(), 1, "a static entry is not flushed");
    assert_eq!(rig.send(at(0), 1, a, b), rig.to(2));
    rig.bridge.port_removed(rig.ports[2]);
    assert_eq!(rig.send(at(0), 1, a, b), Verdict::Flood, "its port went");
    warm(&mut rig);
    rig.bridge.configure(Duration::from_secs(15), 100);
    assert_eq!(rig.send(at(20), 1, a, b), Verdict::Flood, "ageing is shorter now");
}

#[test]
fn a_removed_port_leaves_nothing_however_much_it_had() {
    let mut rig = Rig::new();
    for i in 0..3000 {
        rig.send(at(0), (i % 2) as usize, BROADCAST, station(i));
    }
    rig.bridge.add_static(mac(station(9000)), Vid::new(5), rig.ports[0]).unwrap();
    rig.bridge.port_removed(rig.ports[0]);
    assert_eq!(rig.entries_of(at(0), 0), 0);
    assert_eq!(rig.entries_of(at(0), 1), 1500);
}

#[test]
fn a_full_table_is_shared_fairly() {
    let mut rig = Rig::with(AGEING_DEFAULT, 10);
    for i in 0..10 {
        rig.send(at(i), (i % 5) as usize, BROADCAST, station(i));
    }
    let storm = (0..16).map(|i| frame(BROADCAST, station(100 + i), None)).collect();
    rig.burst(at(20), 5, storm);
    assert_eq!(rig.entries_of(at(20), 5), 3);
    for port in 0..5 {
        assert!(rig.entries_of(at(20), port) >= 1, "port {port}");
    }
}

#[test]
fn a_lower_limit_evicts_fairly() {
    let mut rig = Rig::new();
    for i in 0..2000 {
        rig.send(at(0), 0, BROADCAST, station(i));
    }
    for i in 0..3 {
        rig.send(at(0), 1, BROADCAST, station(10_000 + i));
    }
    rig.bridge.configure(AGEING_DEFAULT, 10);
    assert_eq!(rig.bridge.usage(), (10, 10));
    assert_eq!(rig.entries_of(at(0), 1), 3);
}

#[test]
fn a_storm_evicts_its_own_and_leaves_other_workers_caches_alone() {
    let mut rig = Rig::with(AGEING_DEFAULT, 1024);
    let bridge = Arc::clone(&rig.bridge);
    let mut stormy = BridgeForwarder::new(Arc::clone(&bridge));
    // 50 pairs of stations on ports 0 and 1; port 2 storms.
    for i in 0..100 {
        rig.send(at(0), (i % 2) as usize, BROADCAST, station(i));
    }
    let mut out = Verdicts::default();
    let (mut decided, mut stormed) = (0_u64, 0_u64);
    rig.forwarder.slow = 0;
    for round in 0..2000_u64 {
        let mut heads: Vec<_> =
            (0..64).map(|i| frame(BROADCAST, 0x0600_0000_0000 + round * 64 + i, None)).collect();
        out.begin(64);
        stormy.decide(at(1), rig.ports[2], &mut heads, &mut out);
        stormed += 64;
        let i = round % 50 * 2;
        let heads = (0..64).map(|_| frame(station(i + 1), station(i), None)).collect();
        assert_eq!(rig.burst(at(0), 0, heads), vec![rig.to(1); 64]);
        // Interleaved stations, so that the memory of the last one does not help.
        let heads = (0..64).map(|k| frame(station(k / 2 * 2), station(k / 2 * 2 + 1), None)).collect();
        assert_eq!(rig.burst(at(0), 1, heads), vec![rig.to(0); 64]);
        decided += 128;
    }
    assert_eq!(rig.bridge.usage().0, 1024);
    assert_eq!(rig.entries_of(at(1), 0) + rig.entries_of(at(1), 1), 100, "the storm evicted only its own");
    let missed = rig.forwarder.slow as f64 / decided as f64;
    assert!(
        missed < 0.05,
        "{missed} of the frames were not decided from the cache, in {stormed} frames of storm"
    );
}

#[test]
fn workers_at_once_agree_with_the_table() {
    let rig = Rig::with(AGEING_DEFAULT, 512);
    let stop = AtomicBool::new(false);
    // Four workers, each with a port whose eight stations talk to those of the next; two of the ports storm too;
    // the control plane changes things meanwhile.
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let (bridge, ports, stop) = (&rig.bridge, &rig.ports, &stop);
            scope.spawn(move || {
                let mut forwarder = Arc::clone(bridge).forwarder();
                let mut out = Verdicts::default();
                let mut round = 0_u64;
                loop {
                    // Read before the burst: the last one sees all changes completed.
                    let last = stop.load(Ordering::Acquire) && round >= 200;
                    let mut heads: Vec<_> = (0..32)
                        .map(|i| {
                            let to = station((worker + 1) % 4 * 8 + i % 8);
                            frame(to, station(worker * 8 + i % 8), None)
                        })
                        .collect();
                    if worker >= 2 {
                        heads.extend((0..32).map(|i| {
                            frame(BROADCAST, 0x0600_0000_0000 + (worker << 32) + round * 32 + i, None)
                        }));
                    }
                    out.begin(heads.len());
                    forwarder.decide(at(1), ports[worker as usize], &mut heads, &mut out);
                    for verdict in &out.as_slice()[..32] {
                        let next = ports[(worker as usize + 1) % 4];
                        assert!(matches!(verdict, Verdict::Flood) || *verdict == Verdict::Unicast(next));
                    }
                    round += 1;
                    if last {
                        break;
                    }
                }
            });
        }
        for round in 0..200 {
            match round % 4 {
                0 => drop(rig.bridge.flush()),
                1 => drop(rig.bridge.remove(mac(station(round % 32)), None)),
                2 => rig.bridge.tick(at(1)),
                _ => assert!(rig.bridge.entries(at(1)).len() <= 512),
            }
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Release);
    });
    let (used, limit) = rig.bridge.usage();
    assert!(used <= limit);
    for worker in 0..4 {
        assert!(rig.entries_of(at(1), worker) >= 8, "every port has its stations");
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// A burst of one port's, taken by one of three workers: pairs of destination and source.
    Burst {
        worker: usize,
        port: usize,
        frames: Vec<(u64, u64)>,
    },
    Wait {
        ms: u64,
    },
    AddStatic {
        station: u64,
        port: usize,
    },
    Remove {
        station: u64,
    },
    Flush,
    RemovePort {
        port: usize,
    },
    Ageing {
        secs: u64,
    },
    Tick,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (station, port) = (1..9_u64, 0..4_usize);
    // Mixed, and in trains of one burst.
    let frames = proptest::collection::vec((station.clone(), station.clone()), 1..8);
    let train = (station.clone(), station.clone(), 9..=BURST).prop_map(|(to, from, n)| vec![(to, from); n]);
    let frames = prop_oneof![3 => frames, 1 => train];
    let op = prop_oneof![
        24 => (0..3_usize, port.clone(), frames)
            .prop_map(|(worker, port, frames)| Op::Burst { worker, port, frames }),
        6 => (0..1500_u64).prop_map(|ms| Op::Wait { ms }),
        2 => (0..40_000_u64).prop_map(|ms| Op::Wait { ms }),
        1 => (station.clone(), port.clone()).prop_map(|(station, port)| Op::AddStatic { station, port }),
        2 => station.prop_map(|station| Op::Remove { station }),
        1 => Just(Op::Flush),
        1 => port.prop_map(|port| Op::RemovePort { port }),
        1 => (15..40_u64).prop_map(|secs| Op::Ageing { secs }),
        2 => Just(Op::Tick),
    ];
    proptest::collection::vec(op, 1..150)
}

proptest! {
    /// Whatever the caches hold, the verdicts are those of a map without caches. Ages are right to a second.
    #[test]
    fn caches_make_no_difference(ops in ops()) {
        let mut ageing = Duration::from_secs(20);
        let mut rig = Rig::with(ageing, LIMIT_DEFAULT);
        let mut workers: Vec<_> = (0..3).map(|_| BridgeForwarder::new(Arc::clone(&rig.bridge))).collect();
        // Of each station: its port, and when it was last seen, or `None` if it is static.
        let mut model = HashMap::<u64, (usize, Option<Instant>)>::new();
        let mut now = at(1000);
        for op in ops {
            match op {
                Op::Burst { worker, port, frames } => {
                    std::mem::swap(&mut rig.forwarder, &mut workers[worker]);
                    let heads = frames.iter().map(|&(to, from)| frame(station(to), station(from), None));
                    let got = rig.burst(now, port, heads.collect());
                    std::mem::swap(&mut rig.forwarder, &mut workers[worker]);
                    for (&(to, from), got) in frames.iter().zip(got) {
                        let source = model.entry(from).or_insert((port, Some(now)));
                        if source.1.is_some() {
                            *source = (port, Some(now));
                        }
                        let at_port = |p| match p == port {
                            true => Verdict::Drop(DropReason::SamePort),
                            false => rig.to(p),
                        };
                        let want = match model.get(&to) {
                            None => [Verdict::Flood; 2],
                            Some(&(p, None)) => [at_port(p); 2],
                            Some(&(p, Some(seen))) if now - seen < ageing - Duration::from_secs(1) => [at_port(p); 2],
                            Some(&(p, Some(seen))) if now - seen < ageing => [at_port(p), Verdict::Flood],
                            Some(_) => [Verdict::Flood; 2],
                        };
                        prop_assert!(want.contains(&got), "{} to {} at {:?}: {:?}, not {:?}", from, to, port, got, want);
                    }
                }
                Op::Wait { ms } => now = now + Duration::from_millis(ms),
                Op::AddStatic { station: s, port } => {
                    rig.bridge.add_static(mac(station(s)), None, rig.ports[port]).unwrap();
                    model.insert(s, (port, None));
                }
                Op::Remove { station: s } => {
                    rig.bridge.remove(mac(station(s)), None);
                    model.remove(&s);
                }
                Op::Flush => {
                    rig.bridge.flush();
                    model.retain(|_, entry| entry.1.is_none());
                }
                Op::RemovePort { port } => {
                    rig.bridge.port_removed(rig.ports[port]);
                    model.retain(|_, entry| entry.0 != port);
                }
                Op::Ageing { secs } => {
                    // What has aged stays so: a longer time does not bring it back in the model either.
                    rig.bridge.tick(now);
                    let limit = Duration::from_secs(1);
                    model.retain(|_, e| e.1.is_none_or(|seen| now - seen < ageing - limit));
                    let kept: Vec<_> = model.keys().map(|&s| mac(station(s))).collect();
                    for entry in rig.bridge.entries(now).iter().filter(|e| !kept.contains(&e.mac)) {
                        rig.bridge.remove(entry.mac, None);
                    }
                    ageing = Duration::from_secs(secs);
                    rig.bridge.configure(ageing, LIMIT_DEFAULT);
                }
                Op::Tick => rig.bridge.tick(now),
            }
        }
    }
}
