//! A port with several queue pairs: flows stay in their ring and in order, and spread; pairs come and go under traffic.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::{Counters, PATIENCE, Rig, TestPort, until};
use frontend::device::VnetHeader;
use frontend::{Config, NetDevice};
use vhost_user::PortState;

const FLOWS: u16 = 64;
const PAIRS: u16 = 4;

/// A UDP datagram of a flow, with its number in the payload. IPv4 or IPv6, by the flow's number.
fn datagram(flow: u16, number: u32) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
    if flow.is_multiple_of(2) {
        frame.extend([8, 0, 0x45, 0, 0, 34, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 14, 17, 64]);
        frame.extend([0xfd; 32]);
    }
    frame.extend((1000 + flow).to_be_bytes());
    frame.extend([0, 53, 0, 14, 0, 0]);
    frame.extend(flow.to_be_bytes());
    frame.extend(number.to_be_bytes());
    frame
}

fn flow_and_number(frame: &[u8]) -> (u16, u32) {
    let (rest, number) = frame.split_last_chunk().unwrap();
    let (_, flow) = rest.split_last_chunk().unwrap();
    (u16::from_be_bytes(*flow), u32::from_be_bytes(*number))
}

fn rig() -> (Rig, TestPort, TestPort) {
    let rig = Rig::new();
    let (pa, pb) = (rig.port_with("a.sock", |c| c.queue_pairs = PAIRS), rig.port("b.sock"));
    rig.join(&pa, &pb);
    (rig, pa, pb)
}

fn up(pa: &TestPort, pairs: usize) {
    pa.wait_state(&PortState::Up);
    until("all pairs run", || pa.port.info().rings.iter().filter(|r| r.running).count() == 2 * pairs);
}

/// Sends a datagram of each flow in turn, `rounds` times.
fn send(device: &mut NetDevice, rounds: std::ops::Range<u32>) {
    let tx = &mut device.pairs_mut()[0].tx;
    for number in rounds {
        for flow in 0..FLOWS {
            tx.send(&VnetHeader::PLAIN, &[&datagram(flow, number)]).unwrap();
        }
    }
    tx.drain(PATIENCE).unwrap();
}

/// What arrived, pair by pair, in its order.
fn take(device: &mut NetDevice) -> Vec<Vec<(u16, u32)>> {
    let mut frame = Vec::new();
    let pairs = device.pairs_mut().iter_mut();
    pairs
        .map(|pair| {
            let mut got = Vec::new();
            while pair.rx.try_recv(&mut frame).unwrap().is_some() {
                got.push(flow_and_number(&frame));
            }
            got
        })
        .collect()
}

#[test]
fn flows_spread_over_the_rings_and_each_stays_in_one_and_in_order() {
    let (rig, pa, pb) = rig();
    let mut a = NetDevice::connect(&pa.path, Config::default().queue_pairs(PAIRS)).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    up(&pa, PAIRS.into());
    let (mut ring_of, mut used) = (HashMap::new(), [0; PAIRS as usize]);
    for round in 0..50 {
        send(&mut b, round..round + 1);
        until("they arrive", || Counters::get(&pb.counters.sent) == u64::from(round + 1) * u64::from(FLOWS));
        let mut next: HashMap<u16, u32> = HashMap::new();
        for (pair, got) in take(&mut a).into_iter().enumerate() {
            for (flow, number) in got {
                assert_eq!(*ring_of.entry(flow).or_insert(pair), pair, "flow {flow}");
                assert_eq!(number, round);
                assert_eq!(next.insert(flow, number), None, "flow {flow}");
                used[pair] += 1;
            }
        }
        assert_eq!(next.len(), usize::from(FLOWS), "in round {round}");
    }
    // Each ring's share is 16 of the 64 flows; with a good hash none has less than 2 in a million runs.
    assert!(used.iter().all(|&n| n >= 2 * 50), "{used:?}");
    assert_eq!(rig.host.errors(), Vec::<String>::new());
}

#[test]
fn a_ring_without_buffers_costs_its_own_flows_only_and_they_are_counted() {
    let (rig, pa, pb) = rig();
    let config = Config::default().queue_pairs(PAIRS);
    let mut a = NetDevice::connect_without_buffers(&pa.path, config).unwrap();
    for pair in [0, 2, 3] {
        a.pairs_mut()[pair].rx.fill().unwrap();
    }
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    up(&pa, PAIRS.into());
    send(&mut b, 0..3);
    let done = || {
        let (sent, full) = (Counters::get(&pb.counters.sent), Counters::get(&pb.counters.full));
        (sent + full == 3 * u64::from(FLOWS)).then_some((sent, full))
    };
    until("all are accounted for", || done().is_some());
    let (sent, full) = done().unwrap();
    let got = take(&mut a);
    assert!(got[1].is_empty());
    assert_eq!(got.iter().map(Vec::len).sum::<usize>() as u64, sent);
    assert!(full > 0 && full % 3 == 0, "whole flows are missing: {full}");
    let mut flows = HashMap::<u16, Vec<u32>>::new();
    got.into_iter().flatten().for_each(|(flow, number)| flows.entry(flow).or_default().push(number));
    assert!(flows.values().all(|numbers| *numbers == [0, 1, 2]), "{flows:?}");
    assert_eq!(rig.host.errors(), Vec::<String>::new());
}

#[test]
fn pairs_that_are_disabled_under_traffic_lose_nothing() {
    let (rig, pa, pb) = rig();
    let mut a = NetDevice::connect(&pa.path, Config::default().queue_pairs(PAIRS)).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    up(&pa, PAIRS.into());
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let sender = {
        let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let round = rounds.fetch_add(1, Ordering::Relaxed);
                send(&mut b, round..round + 1);
            }
            b
        })
    };
    // Of each flow in each ring: the last number. Within a ring nothing overtakes.
    let mut last: HashMap<(usize, u16), u32> = HashMap::new();
    let mut arrived = 0;
    let mut check = |a: &mut NetDevice| {
        for (pair, got) in take(a).into_iter().enumerate() {
            for (flow, number) in got {
                let before = last.insert((pair, flow), number);
                assert!(
                    before.is_none_or(|before| before < number),
                    "flow {flow}: {number} after {before:?}"
                );
                arrived += 1;
            }
        }
    };
    for round in 0..200_u16 {
        let pair = round % PAIRS;
        a.enable_pair(pair, false).unwrap();
        let seen = rounds.load(Ordering::Relaxed);
        until("traffic goes on with three pairs", || {
            check(&mut a);
            rounds.load(Ordering::Relaxed) > seen + 1
        });
        a.enable_pair(pair, true).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let _b = sender.join().unwrap();
    let offered = u64::from(rounds.load(Ordering::Relaxed)) * u64::from(FLOWS);
    let count = Counters::get;
    until("all are accounted for", || {
        count(&pb.counters.sent) + count(&pb.counters.full) + count(&pb.counters.down) == offered
    });
    check(&mut a);
    assert_eq!(count(&pb.counters.down), 0, "there was always a ring");
    assert_eq!(arrived, count(&pb.counters.sent), "what was transmitted is there");
    assert_eq!((count(&pb.counters.error), rig.host.errors()), (0, Vec::new()));
    assert_eq!(pa.port.state(), PortState::Up);
}
