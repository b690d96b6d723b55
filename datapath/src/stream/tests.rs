//! Peers of every kind at a stream port.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use switch_core::head::FRAME_MAX;
use tempfile::TempDir;

use super::frames::LENGTH_MAX;
use super::*;
use crate::port::{Armed, RxDrops, RxQueue, TxReport};
use crate::testing::{Host, Outgoing, PATIENCE, frame, port_id, receive, until};

/// The bytes of frames on the wire.
fn wire(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend((frame.len() as u32).to_be_bytes());
        bytes.extend(frame);
    }
    bytes
}

/// A peer that gives up when nothing happens.
fn patient(peer: UnixStream) -> UnixStream {
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    peer
}

fn connection() -> (UnixStream, Arc<Connection>) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    (patient(theirs), Arc::new(Connection::new(ours, Arc::new(Event::new().unwrap())).unwrap()))
}

fn queue() -> (UnixStream, Arc<Connection>, StreamRx) {
    let (theirs, connection) = connection();
    (theirs, Arc::clone(&connection), StreamRx::new(connection))
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..200,
        4 => 1400usize..1600,
        1 => Just(FRAME_MAX),
        1 => FRAME_MAX + 1..LENGTH_MAX + 1,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn however_the_stream_is_cut_the_frames_are_the_same(
        lens in proptest::collection::vec(lengths(), 1..100),
        cuts in proptest::collection::vec(prop_oneof![1usize..10, 1usize..3000, 1usize..100_000], 1..50),
    ) {
        let (mut theirs, _connection, mut rx) = queue();
        let sent: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, &len)| frame(i as u32, len)).collect();
        let bytes = wire(&sent);
        let (mut got, mut drops) = (Vec::new(), RxDrops::default());
        let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
        while at < bytes.len() {
            let n = cuts.next().unwrap().min(bytes.len() - at);
            theirs.write_all(&bytes[at..at + n]).unwrap();
            at += n;
            got.extend(receive(&mut rx, &mut drops));
            prop_assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
        }
        let (whole, long): (Vec<_>, Vec<_>) = sent.into_iter().partition(|f| f.len() <= FRAME_MAX);
        prop_assert_eq!(drops.oversize as usize, long.len());
        prop_assert_eq!(drops.bytes as usize, long.iter().map(Vec::len).sum::<usize>());
        prop_assert_eq!(got, whole);
    }

    #[test]
    fn whatever_a_peer_takes_at_a_time_frames_arrive_whole(
        steps in proptest::collection::vec(
            (
                proptest::collection::vec(prop_oneof![14usize..200, 1400usize..1600, 9000usize..FRAME_MAX], 1..20),
                1usize..40,
                prop_oneof![0usize..10, 0usize..5000, 0usize..200_000],
                any::<bool>(),
            ),
            1..12,
        ),
    ) {
        let (mut theirs, connection) = connection();
        theirs.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(connection.fd(), 1).unwrap();
        let tx = StreamTx::default();
        tx.set(Some(Arc::clone(&connection)));
        let (mut taken, mut arrived) = (Vec::new(), Vec::new());
        let mut read = |arrived: &mut Vec<u8>, most: usize| {
            let mut into = vec![0; most];
            if let Ok(n) = theirs.read(&mut into) {
                arrived.extend(&into[..n]);
            }
        };
        for (i, (lens, pieces, reads, flush)) in steps.into_iter().enumerate() {
            let frames: Vec<_> =
                lens.iter().enumerate().map(|(j, &len)| frame((100 * i + j) as u32, len)).collect();
            let report = tx.tx_burst(0, &mut Outgoing::new(&frames, pieces).bucket()).unwrap();
            prop_assert_eq!(report, TxReport { full: report.full, ..TxReport::default() });
            taken.extend(frames.into_iter().enumerate().filter(|(j, _)| report.full & (1 << j) == 0).map(|(_, f)| f));
            read(&mut arrived, reads);
            if flush {
                tx.flush();
            }
        }
        let expected = wire(&taken);
        while tx.has_rest() || arrived.len() < expected.len() {
            let before = arrived.len();
            tx.flush();
            read(&mut arrived, 1 << 20);
            prop_assert!(arrived.len() > before, "stuck at {} of {}", before, expected.len());
        }
        prop_assert!(arrived == expected);
        prop_assert!(connection.end().is_none());
    }
}

#[test]
fn many_frames_come_by_one_read_and_bursts_keep_their_order() {
    let (mut theirs, _connection, mut rx) = queue();
    let sent: Vec<_> = (0..200).map(|i| frame(i, 60 + i as usize)).collect();
    theirs.write_all(&wire(&sent)).unwrap();
    let mut burst = crate::Burst::new();
    assert_eq!(rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 64);
    rx.release();
    // The socket is empty, and the queue is not.
    assert!(!connection_readable(&theirs));
    assert_eq!(rx.arm().unwrap(), Armed::Work);
    let mut drops = RxDrops::default();
    assert_eq!(receive(&mut rx, &mut drops), sent[64..]);
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
}

/// Whether the other end of `theirs` has something to read: nothing, if all that was written was taken.
fn connection_readable(theirs: &UnixStream) -> bool {
    // SIOCOUTQ: what was written and not read yet.
    let mut waiting: libc::c_int = 0;
    // SAFETY: the request writes one int at the pointer.
    let done =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(theirs), libc::TIOCOUTQ, &raw mut waiting) };
    assert_eq!(done, 0);
    waiting != 0
}

/// What a hostile peer writes, what comes of it, and why the connection ends, if it does.
#[test]
fn lengths_that_are_none() {
    let head = |len: u32| len.to_be_bytes().to_vec();
    let good = wire(&[frame(1, 60)]);
    type Case = (&'static str, Vec<u8>, usize, u32, Option<&'static str>);
    let cases: [Case; 8] = [
        ("nothing but a length", head(60), 0, 0, None),
        ("length 0", [head(0), good.clone()].concat(), 2, 0, None),
        ("length 1", [wire(&[vec![7]]), good.clone()].concat(), 2, 0, None),
        ("the longest frame", [wire(&[frame(2, FRAME_MAX)]), good.clone()].concat(), 2, 0, None),
        ("too long by one", [wire(&[frame(2, FRAME_MAX + 1)]), good.clone()].concat(), 1, 1, None),
        ("too long by much", [good.clone(), head(LENGTH_MAX as u32 + 1)].concat(), 1, 0, Some("69633")),
        ("2^31", [good.clone(), head(1 << 31), good.clone()].concat(), 1, 0, Some("2147483648")),
        ("2^32-1", [good.clone(), head(u32::MAX)].concat(), 1, 0, Some("4294967295")),
    ];
    for (what, bytes, frames, oversize, why) in cases {
        let (mut theirs, connection, mut rx) = queue();
        theirs.write_all(&bytes).unwrap();
        let mut drops = RxDrops::default();
        let got = receive(&mut rx, &mut drops);
        assert_eq!((got.len(), drops.oversize), (frames, oversize), "{what}");
        match (connection.end(), why) {
            (None, None) => {}
            (Some(Some(end)), Some(why)) => assert!(end.contains(why), "{what}: {end}"),
            (end, _) => panic!("{what}: {end:?}"),
        }
        // However it ended, nothing keeps a worker awake, and nothing more comes.
        assert_eq!(rx.arm().unwrap(), Armed::Sleeping, "{what}");
        theirs.write_all(&good).unwrap();
        assert_eq!(receive(&mut rx, &mut drops).len(), usize::from(why.is_none()), "{what}");
    }
}

#[test]
fn what_a_peer_sent_before_it_went_is_received() {
    let (mut theirs, connection, mut rx) = queue();
    let sent: Vec<_> = (0..100).map(|i| frame(i, 1000)).collect();
    theirs.write_all(&wire(&sent)).unwrap();
    theirs.write_all(&[0, 0, 1]).unwrap();
    drop(theirs);
    assert!(connection.is_hung_up());
    assert_eq!(receive(&mut rx, &mut RxDrops::default()), sent);
    assert_eq!(connection.end(), Some(&None), "a frame that did not end is no fault");
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
}

#[test]
fn a_frame_that_needs_what_the_stream_cannot_say_is_an_error() {
    use switch_core::offload::{Checksum, OffloadSet};
    let (_theirs, connection) = connection();
    let tx = StreamTx::default();
    let frames = vec![frame(1, 60), frame(2, 60)];
    let mut out = Outgoing::new(&frames, 1);
    assert_eq!(tx.offloads(), OffloadSet::ALL, "nothing is completed for nobody");
    assert_eq!(tx.tx_burst(0, &mut out.bucket()).unwrap(), TxReport::all_down(2));
    tx.set(Some(connection));
    assert_eq!(tx.offloads(), OffloadSet::NONE);
    out.burst().heads_mut()[0].offload.checksum = Checksum::Partial { start: 34, offset: 6 };
    assert_eq!(tx.tx_burst(0, &mut out.bucket()).unwrap(), TxReport { error: 1, ..TxReport::default() });
}

struct Rig {
    dir: TempDir,
    host: Arc<Host>,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), host: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("p.sock")
    }

    fn connect(&self) -> UnixStream {
        patient(UnixStream::connect(self.path()).unwrap())
    }

    fn port(&self, role: Role) -> Result<StreamPort, StreamError> {
        let config = StreamConfig { id: port_id(), path: self.path(), role };
        StreamPort::new(config, Arc::clone(&self.host) as Arc<dyn QueueHost>, |_| {})
    }

    /// A frame each way.
    fn both_ways(&self, port: &StreamPort, peer: &mut UnixStream) {
        until("the port is up", || port.state() == PortState::Up);
        let frames = vec![frame(7, 1514)];
        peer.write_all(&wire(&frames)).unwrap();
        let mut got = Vec::new();
        until("a frame comes in", || {
            got.extend(self.host.poll());
            !got.is_empty()
        });
        assert_eq!(got, frames);
        let report = port.tx().tx_burst(0, &mut Outgoing::new(&frames, 3).bucket()).unwrap();
        assert_eq!(report, TxReport::default());
        let mut bytes = vec![0; 4 + 1514];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, wire(&frames));
    }

    fn gone(&self, port: &StreamPort, state: impl Fn(&PortState) -> bool) {
        until("the port has seen the peer's end", || {
            self.host.poll();
            state(&port.state())
        });
        assert_eq!(self.host.len(), 0, "the queue went with the peer");
    }
}

#[test]
fn a_listening_port_has_one_peer_after_the_other() {
    let rig = Rig::new();
    let port = rig.port(Role::Server).unwrap();
    assert_eq!(port.state(), PortState::Waiting);
    for _ in 0..3 {
        let mut first = rig.connect();
        rig.both_ways(&port, &mut first);
        // A second is shown the door, and the first does not notice.
        let mut second = rig.connect();
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
        rig.both_ways(&port, &mut first);
        drop(first);
        rig.gone(&port, |s| *s == PortState::Waiting);
    }
    drop(port);
    assert!(!rig.path().exists());
}

#[test]
fn a_peer_that_comes_back_at_once_is_not_refused() {
    let rig = Rig::new();
    let port = rig.port(Role::Server).unwrap();
    let mut peer = rig.connect();
    rig.both_ways(&port, &mut peer);
    for _ in 0..20 {
        // No worker looks at the queue meanwhile.
        drop(peer);
        peer = rig.connect();
        rig.both_ways(&port, &mut peer);
    }
    assert_eq!(rig.host.len(), 1);
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_connection() {
    let rig = Rig::new();
    let port = rig.port(Role::Server).unwrap();
    let mut peer = rig.connect();
    rig.both_ways(&port, &mut peer);
    peer.write_all(&[0xff; 4]).unwrap();
    rig.gone(&port, |s| matches!(s, PortState::Error(why) if why.contains("4294967295 bytes")));
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    let mut next = rig.connect();
    rig.both_ways(&port, &mut next);
}

#[test]
fn a_connecting_port_comes_back() {
    let rig = Rig::new();
    let port = rig.port(Role::Client).unwrap();
    for _ in 0..3 {
        let listener = UnixListener::bind(rig.path()).unwrap();
        let mut peer = patient(listener.accept().unwrap().0);
        rig.both_ways(&port, &mut peer);
        drop((peer, listener));
        std::fs::remove_file(rig.path()).unwrap();
        rig.gone(&port, |s| *s == PortState::Waiting);
    }
    drop(port);
}

#[test]
fn a_peer_that_reads_nothing_costs_frames_and_no_more() {
    let rig = Rig::new();
    let port = rig.port(Role::Server).unwrap();
    let mut peer = rig.connect();
    rig.both_ways(&port, &mut peer);
    let frames: Vec<_> = (0..64).map(|i| frame(i, 1514)).collect();
    let (mut taken, mut full) = (0usize, 0);
    for _ in 0..1000 {
        let report = port.tx().tx_burst(0, &mut Outgoing::new(&frames, 1).bucket()).unwrap();
        assert_eq!(report.dropped(), report.full);
        full += report.full.count_ones() as usize;
        taken += 64 - report.full.count_ones() as usize;
    }
    assert!(full > 50_000, "{full} dropped, {taken} taken");
    // What was taken arrives, to the last byte of the frame that did not fit; the port's thread sees to it.
    let mut bytes = vec![0; taken * (4 + 1514)];
    peer.read_exact(&mut bytes).unwrap();
    rig.both_ways(&port, &mut peer);
}

#[test]
fn a_port_goes_while_its_peer_is_there() {
    let rig = Rig::new();
    let port = rig.port(Role::Server).unwrap();
    let mut peer = rig.connect();
    rig.both_ways(&port, &mut peer);
    let tx = port.tx();
    drop(port);
    assert_eq!(rig.host.len(), 0);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    let frames = [frame(1, 60)];
    let report = tx.tx_burst(0, &mut Outgoing::new(&frames, 1).bucket()).unwrap();
    assert_eq!(report, TxReport::all_down(1));
}

#[test]
fn who_has_the_path_already() {
    let rig = Rig::new();
    let path = rig.path();
    let refused = |why: &str| {
        let error = rig.port(Role::Server).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    std::fs::write(&path, "").unwrap();
    refused("a file that is no socket");
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    refused("another process does");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "who listens there was not disturbed");
    drop(listener);
    // Whatever kind of socket it was: nobody has it any more.
    drop(rig.port(Role::Server).unwrap());
    drop(UnixDatagram::bind(&path).unwrap());
    drop(rig.port(Role::Server).unwrap());
    let datagrams = UnixDatagram::bind(&path).unwrap();
    refused("another process does");
    drop(datagrams);
    let port = rig.port(Role::Server).unwrap();
    // A file that took the place of ours is not ours.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    drop(port);
    assert!(path.exists());
    let nowhere =
        StreamConfig { id: port_id(), path: Path::new("/nowhere/p.sock").into(), role: Role::Server };
    let error = StreamPort::new(nowhere, Arc::clone(&rig.host) as _, |_| {}).unwrap_err().to_string();
    assert!(error.contains("cannot listen on /nowhere/p.sock"), "{error}");
}
