use std::sync::atomic::{AtomicUsize, Ordering};

use switch_core::ids::Registry;
use switch_core::mode::{Forwarder, Mode};
use switch_core::virtio_net::{F_NEEDS_CSUM, GSO_TCPV4, VnetHeader};
use switch_core::{Head, Instant, NetworkId, Verdict, Verdicts};

use super::*;
use crate::counters::PortCounters;
use crate::inmem;
use crate::path::{Found, FramePath};
use crate::topology::{PortEntry, Topology};

/// A network that floods, and knows nothing.
#[derive(Debug)]
struct Hub;

impl Mode for Hub {
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder> {
        Box::new(Hub)
    }
    fn poll_at(&self) -> Option<Instant> {
        None
    }
    fn tick(&self, _now: Instant) {}
    fn port_removed(&self, _port: PortId) {}
}

impl Forwarder for Hub {
    fn decide(&mut self, _now: Instant, _from: PortId, heads: &mut [Head], out: &mut Verdicts) {
        for i in 0..heads.len() {
            out.set(i, Verdict::Flood);
        }
    }
}

struct Rig {
    path: FramePath,
    guests: Vec<(PortId, inmem::Peer, inmem::InMemoryRx)>,
    station: Station,
    station_port: PortId,
    rx: LocalRx,
    wakes: Arc<AtomicUsize>,
    counters: Arc<PortCounters>,
}

fn rig(guests: usize) -> Rig {
    let mut ports = Registry::<PortId>::new(16);
    let network = Registry::<NetworkId>::new(1).mint().unwrap();
    let wakes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&wakes);
    let (station, rx, tx) = port(move || {
        count.fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    let counters = Arc::new(PortCounters::new(1));
    let entry = |id, tx: Arc<dyn TxPort>, counters: Arc<PortCounters>| PortEntry {
        id,
        network,
        tx,
        counters,
        pvid: None,
        isolated: false,
        flooded: true,
        mtu: 1500,
        guard: None,
        rate: None,
    };
    let station_port = ports.mint().unwrap();
    let mut entries = vec![entry(station_port, Arc::new(tx) as _, Arc::clone(&counters))];
    let mut list = Vec::new();
    for _ in 0..guests {
        let (peer, rx, tx) = inmem::port(OffloadSet::ALL, OffloadSet::ALL, 100_000).unwrap();
        let id = ports.mint().unwrap();
        entries.push(entry(id, Arc::new(tx) as _, Arc::new(PortCounters::new(1))));
        list.push((id, peer, rx));
    }
    let mut path = FramePath::new(0);
    path.adopt(Arc::new(Topology::new([(network, Arc::new(Hub) as Arc<dyn Mode>)], entries)));
    Rig { path, guests: list, station, station_port, rx, wakes, counters }
}

impl Rig {
    fn carry_guest(&mut self, guest: usize) {
        let (id, _, rx) = &mut self.guests[guest];
        while let Found::Frames(_) = self.path.carry(Instant::ORIGIN, *id, rx) {}
    }

    fn carry_station(&mut self) {
        while let Found::Frames(_) = self.path.carry(Instant::ORIGIN, self.station_port, &mut self.rx) {}
    }
}

fn frame(tag: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len.max(14)];
    frame[..6].fill(0xff);
    frame[6] = 2;
    frame[11] = tag;
    frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    for (i, b) in frame.iter_mut().enumerate().skip(14) {
        *b = i as u8;
    }
    frame
}

#[test]
fn a_frame_arrives_whole_with_the_port_that_it_came_from() {
    let mut rig = rig(2);
    let sent = frame(1, 900);
    rig.guests[1].1.send(VnetHeader::default(), &sent);
    rig.carry_guest(1);
    assert_eq!(rig.station.recv(), Some(Received { from: rig.guests[1].0, frame: sent }));
    assert_eq!(rig.station.recv(), None);
}

#[test]
fn a_super_frame_arrives_in_segments_with_their_checksums() {
    let mut rig = rig(1);
    let mut sent = vec![0u8; 14 + 40 + 2900];
    sent[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
    let ip = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 3, 4);
    let payload = vec![7u8; 2900];
    let mut built = Vec::new();
    ip.write(&mut built, &payload).unwrap();
    sent.copy_from_slice(&built);
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1450,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    rig.guests[0].1.send(vnet, &sent);
    rig.carry_guest(0);
    for _ in 0..2 {
        let got = rig.station.recv().expect("a segment").frame;
        assert_eq!(got.len(), 54 + 1450);
        let (ip, rest) = etherparse::Ipv4Header::from_slice(&got[14..]).unwrap();
        let (tcp, body) = etherparse::TcpHeader::from_slice(rest).unwrap();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, body).unwrap());
    }
    assert_eq!(rig.station.recv(), None);
}

#[test]
fn the_station_reaches_the_port_that_it_names_and_all_when_it_names_none() {
    let mut rig = rig(2);
    let (to_one, to_all) = (frame(9, 300), frame(8, 60));
    assert!(rig.station.send(Some(rig.guests[0].0), to_one.clone()));
    assert!(rig.station.send(None, to_all.clone()));
    assert!(rig.station.send(Some(rig.guests[0].0), to_one.clone()));
    rig.carry_station();
    let got = |rig: &Rig, guest: usize| -> Vec<Vec<u8>> {
        std::iter::from_fn(|| rig.guests[guest].1.recv()).map(|d| d.frame).collect()
    };
    assert_eq!(got(&rig, 0), [to_one.clone(), to_all.clone(), to_one]);
    assert_eq!(got(&rig, 1), [to_all]);
    assert_eq!(rig.station.recv(), None, "nothing comes back to the sender");
}

#[test]
fn a_source_that_floods_the_station_takes_neither_room_nor_turn_of_another() {
    let mut rig = rig(2);
    for _ in 0..20_000 {
        rig.guests[0].1.send(VnetHeader::default(), &frame(1, 60));
    }
    rig.carry_guest(0);
    let quiet: Vec<Vec<u8>> = (0..3).map(|i| frame(100 + i, 60)).collect();
    for f in &quiet {
        rig.guests[1].1.send(VnetHeader::default(), f);
    }
    rig.carry_guest(1);
    // Three of the quiet one are among the first six.
    let first: Vec<Received> = (0..6).map(|_| rig.station.recv().unwrap()).collect();
    let of_quiet: Vec<&Vec<u8>> =
        first.iter().filter(|r| r.from == rig.guests[1].0).map(|r| &r.frame).collect();
    assert_eq!(of_quiet, quiet.iter().collect::<Vec<_>>());
    let rest = std::iter::from_fn(|| rig.station.recv()).count();
    assert_eq!(rest + 3, PER_SOURCE);
    let totals = rig.counters.read();
    assert_eq!(totals.dropped(switch_core::DropReason::TxRingFull), 20_000 - PER_SOURCE as u64);
}

#[test]
fn the_station_is_woken_once_each_time_that_it_had_nothing() {
    let mut rig = rig(1);
    for _ in 0..2 {
        for _ in 0..5 {
            rig.guests[0].1.send(VnetHeader::default(), &frame(1, 60));
        }
        rig.carry_guest(0);
        while rig.station.recv().is_some() {}
    }
    assert_eq!(rig.wakes.load(Ordering::Relaxed), 2);
}

#[test]
fn a_station_that_outruns_the_worker_is_told() {
    let rig = rig(1);
    let accepted = (0..TO_SWITCH + 10).filter(|_| rig.station.send(None, frame(1, 60))).count();
    assert_eq!(accepted, TO_SWITCH);
}

#[test]
fn arming_sees_what_was_sent_before() {
    let mut rig = rig(1);
    assert_eq!(rig.rx.arm().unwrap(), Armed::Sleeping);
    rig.station.send(None, frame(1, 60));
    assert_eq!(rig.rx.arm().unwrap(), Armed::Work);
    rig.rx.disarm();
    rig.carry_station();
    assert_eq!(rig.rx.arm().unwrap(), Armed::Sleeping);
}
