//! Peers of every kind at a datagram port.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use switch_core::head::FRAME_MAX;
use switch_core::offload::Checksum;
use tempfile::TempDir;

use super::*;
use crate::peer::PortState;
use crate::port::{Armed, RxDrops, RxQueue, TxPort, TxReport};
use crate::testing::{Outgoing, frame, receive};

struct Rig {
    dir: TempDir,
    changes: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), changes: Arc::default() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self) -> Result<(DgramRx, Arc<DgramTx>), DgramError> {
        let changes = Arc::clone(&self.changes);
        open(&self.at("ours"), &self.at("theirs"), move || {
            changes.fetch_add(1, Ordering::Relaxed);
        })
    }
}

fn send(tx: &DgramTx, frames: &[Vec<u8>], pieces: usize) -> TxReport {
    tx.tx_burst(0, &mut Outgoing::new(frames, pieces).bucket()).unwrap()
}

/// Everything that is at the peer's socket.
fn arrived(peer: &UnixDatagram) -> Vec<Vec<u8>> {
    peer.set_nonblocking(true).unwrap();
    let mut frames = Vec::new();
    let mut room = vec![0; 1 << 17];
    while let Ok(n) = peer.recv(&mut room) {
        frames.push(room[..n].to_vec());
    }
    frames
}

#[test]
fn frames_of_every_length_cross_whole() {
    let rig = Rig::new();
    let peer = UnixDatagram::bind(rig.at("theirs")).unwrap();
    let (mut rx, tx) = rig.open().unwrap();
    // Around the ends of the head and of the small place.
    let lens = [14, 60, 127, 128, 129, 1514, 2111, 2112, 2113, 9014, FRAME_MAX];
    for len in lens {
        let sent = vec![frame(len as u32, len)];
        for pieces in [1, 5] {
            assert_eq!(send(&tx, &sent, pieces), TxReport::default(), "{len}");
            assert_eq!(arrived(&peer), sent, "{len}");
        }
        assert_eq!(peer.send_to(&sent[0], rig.at("ours")).unwrap(), len);
        let mut drops = RxDrops::default();
        assert_eq!(receive(&mut rx, &mut drops), sent, "{len}");
        assert!(drops.is_empty());
    }
}

#[test]
fn a_bucket_crosses_in_its_order_and_a_burst_comes_at_once() {
    let rig = Rig::new();
    let peer = UnixDatagram::bind(rig.at("theirs")).unwrap();
    let (mut rx, tx) = rig.open().unwrap();
    // What a peer's queue holds is the host's to say, and is at least this.
    let sent: Vec<_> = (0..8).map(|i| frame(i, 200 * i as usize + 60)).collect();
    assert_eq!(send(&tx, &sent, 2), TxReport::default());
    assert_eq!(arrived(&peer), sent);
    for frame in &sent {
        peer.send_to(frame, rig.at("ours")).unwrap();
    }
    assert_eq!(rx.arm().unwrap(), Armed::Work);
    let mut burst = crate::Burst::new();
    assert_eq!(rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), sent.len());
    for (i, frame) in sent.iter().enumerate() {
        assert_eq!(&crate::egress::to_vec(&burst.heads()[i], burst.tail(i)), frame);
    }
    rx.release();
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
}

#[test]
fn datagrams_that_are_no_frames() {
    let rig = Rig::new();
    let peer = UnixDatagram::unbound().unwrap();
    let (mut rx, _tx) = rig.open().unwrap();
    let long = vec![1; FRAME_MAX + 1];
    let longer = vec![1; FRAME_MAX + 40_000];
    for bytes in [&[][..], &[7], &long, &longer, &[8; 60]] {
        peer.send_to(bytes, rig.at("ours")).unwrap();
    }
    let mut drops = RxDrops::default();
    // Those that are too short are frames, which the switch drops by itself.
    let got = receive(&mut rx, &mut drops);
    assert_eq!(got, [vec![], vec![7], vec![8; 60]]);
    assert_eq!((drops.oversize, drops.bytes as usize), (2, long.len() + longer.len()));
}

#[test]
fn a_peer_comes_goes_and_is_replaced() {
    let rig = Rig::new();
    let (_rx, tx) = rig.open().unwrap();
    let frames = vec![frame(1, 100), frame(2, 1514)];
    assert_eq!(tx.state(), PortState::Waiting);
    assert_eq!(send(&tx, &frames, 1), TxReport::all_down(2));
    let changes = || rig.changes.swap(0, Ordering::Relaxed);
    assert_eq!(changes(), 0);
    let mut peer = UnixDatagram::bind(rig.at("theirs")).unwrap();
    // Nobody has to ask for the state: frames find the peer, but do not look for it at each bucket.
    let mut report = TxReport::all_down(2);
    crate::testing::until("the peer is found", || {
        report = send(&tx, &frames, 1);
        report.down == 0
    });
    assert_eq!((report, arrived(&peer), changes()), (TxReport::default(), frames.clone(), 1));
    // As QEMU does it: the file is replaced, the old socket closed.
    for _ in 0..3 {
        std::fs::remove_file(rig.at("theirs")).unwrap();
        peer = UnixDatagram::bind(rig.at("theirs")).unwrap();
        assert_eq!(send(&tx, &frames, 1), TxReport::default());
        assert_eq!((arrived(&peer), changes()), (frames.clone(), 0));
    }
    drop(peer);
    assert_eq!(send(&tx, &frames, 1), TxReport::all_down(2));
    assert_eq!((tx.state(), changes()), (PortState::Waiting, 1));
    std::fs::remove_file(rig.at("theirs")).unwrap();
    let _listener = UnixListener::bind(rig.at("theirs")).unwrap();
    assert!(matches!(tx.state(), PortState::Error(why) if why.contains("takes no datagrams")));
}

#[test]
fn a_peer_that_reads_nothing_costs_frames_and_no_more() {
    let rig = Rig::new();
    let peer = UnixDatagram::bind(rig.at("theirs")).unwrap();
    let (_rx, tx) = rig.open().unwrap();
    let frames: Vec<_> = (0..64).map(|i| frame(i, 1514)).collect();
    let mut taken = Vec::new();
    for _ in 0..100 {
        let report = send(&tx, &frames, 1);
        assert_eq!(report.dropped(), report.full);
        taken.extend(
            frames.iter().enumerate().filter(|(i, _)| report.full & (1 << i) == 0).map(|(_, f)| f.clone()),
        );
    }
    assert!(taken.len() < 6000, "{} taken", taken.len());
    assert_eq!(arrived(&peer), taken);
    assert_eq!(send(&tx, &frames[..4], 1), TxReport::default());
}

#[test]
fn what_the_wire_cannot_say_is_an_error() {
    let rig = Rig::new();
    let peer = UnixDatagram::bind(rig.at("theirs")).unwrap();
    let (_rx, tx) = rig.open().unwrap();
    let frames = vec![frame(1, 60), frame(2, 60)];
    let mut out = Outgoing::new(&frames, 1);
    out.burst().heads_mut()[0].offload.checksum = Checksum::Partial { start: 34, offset: 6 };
    let report = tx.tx_burst(0, &mut out.bucket()).unwrap();
    assert_eq!(report, TxReport { error: 1, ..TxReport::default() });
    assert_eq!(arrived(&peer), frames[1..]);
}

#[test]
fn the_file_goes_with_the_queue() {
    let rig = Rig::new();
    let (rx, _tx) = rig.open().unwrap();
    let error = rig.open().unwrap_err().to_string();
    assert!(error.contains("another process does"), "{error}");
    drop(rx);
    assert!(!rig.at("ours").exists());
    drop(UnixDatagram::bind(rig.at("ours")).unwrap());
    let (rx, _tx) = rig.open().unwrap();
    drop(rx);
}
