//! The tap port.

use std::net::UdpSocket;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use datapath::netdev::link::Links;
use datapath::port::RxDrops;
use datapath::tap::{Tap, TapError, TapRx, TapTx};
use datapath::{Armed, Burst, PortError, RxQueue, TxPort};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use switch_core::MacAddr;
use switch_core::offload::{Checksum, GsoKind, Offload, OffloadSet};

use crate::Body;
use crate::frames::{self, MAC_A, MAC_B, UDP_PARTIAL};
use crate::netns::{Namespace, hush, ip};
use crate::traffic::{self, Seen, Stack};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("tap_frames_pass_both_ways", frames_pass_both_ways),
    ("tap_tcp_super_frames_pass", tcp_super_frames_pass),
    ("tap_without_offloads_sends_plain_frames", without_offloads),
    ("tap_udp_super_frames_pass", udp_super_frames_pass),
    ("tap_empty_queue_sleeps_and_wakes", empty_queue_sleeps_and_wakes),
    ("tap_down_takes_nothing", down_takes_nothing),
    ("tap_removed_is_gone", removed_is_gone),
    ("tap_queues_and_joining", queues_and_joining),
    ("tap_descriptors_are_adopted", descriptors_are_adopted),
    ("tap_settings", settings),
    ("tap_unfit_frames_are_refused", unfit_frames_are_refused),
];

/// A tap that is up with the address 10.0.0.1 and knows 10.0.0.2 at [`MAC_B`].
fn tap_with_stack() -> (Tap, TapRx, TapTx) {
    let tap = Tap::open("weft0", 1).unwrap();
    tap.set_mac(MacAddr(MAC_A)).unwrap();
    hush("weft0");
    tap.set_up(true).unwrap();
    ip("addr add 10.0.0.1/24 dev weft0");
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:0b dev weft0");
    let rx = tap.rx_queues().remove(0);
    let tx = tap.tx();
    (tap, rx, tx)
}

fn frames_pass_both_ways() {
    let (_tap, mut rx, tx) = tap_with_stack();
    let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut burst = Burst::new();
    // Around the head's length, a full frame, and one of several fragments' length.
    for len in [0, 1, 50, 85, 86, 87, 181, 182, 183, 1000, 1472] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        socket.send_to(&payload, "10.0.0.2:4000").unwrap();
        assert_eq!(frames::receive(&mut rx, &mut burst), 1);
        let frame = frames::whole(&burst, 0);
        assert_eq!(frame[..6], MAC_B);
        assert_eq!(frame[6..12], MAC_A);
        assert_eq!(frame[42..], payload);
        frames::check(&mut burst);
        assert_eq!(burst.heads()[0].offload, UDP_PARTIAL, "the stack leaves the checksum to us");
        rx.release();

        let frame = frames::udp(MAC_A, MAC_B, 5000, &payload);
        assert_eq!(frames::send(&tx, &frame, UDP_PARTIAL).dropped(), 0);
        let mut got = [0; 2000];
        let (n, from) = socket.recv_from(&mut got).unwrap();
        assert_eq!((&got[..n], from.to_string().as_str()), (&payload[..], "10.0.0.2:4000"));
    }
}

/// The stack of a namespace of its own, at a tap with this address.
pub(crate) fn stack_at_tap(address: &str, accepted: OffloadSet) -> Stack {
    let namespace = Namespace::new();
    let (rx, tx) = namespace.run(|| {
        let mut tap = Tap::open("weft0", 1).unwrap();
        tap.set_accepted(accepted).unwrap();
        tap.set_up(true).unwrap();
        ip(&format!("addr add {address}/24 dev weft0"));
        (tap.rx_queues().remove(0), tap.tx())
    });
    Stack { namespace, rx: Box::new(rx), tx: Box::new(tx) }
}

fn tcp_transfer(accepted: OffloadSet) -> (Seen, Seen) {
    traffic::tcp(stack_at_tap("10.0.0.1", accepted), stack_at_tap("10.0.0.2", accepted))
}

fn tcp_super_frames_pass() {
    let (there, back) = tcp_transfer(OffloadSet::ALL);
    assert!(there.longest > 60_000, "64 KB segments arrive whole: {there:?}");
    assert!(there.super_frames * 2 > there.frames / 2, "{there:?}");
    assert!(there.partial > 0 && back.frames > 0, "{there:?} {back:?}");
}

fn without_offloads() {
    let (there, back) = tcp_transfer(OffloadSet::NONE);
    assert_eq!((there.super_frames, there.partial, back.partial), (0, 0, 0), "{there:?}");
    assert_eq!(there.longest, 1514);
}

fn udp_super_frames_pass() {
    let (tap, mut rx, tx) = tap_with_stack();
    if !tap.accepted().contains(OffloadSet::UDP_L4) {
        assert!(!tx.offloads().contains(OffloadSet::UDP_L4));
        return;
    }
    let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // UDP_SEGMENT (udp(7)).
    let size: libc::c_int = 1000;
    // SAFETY: the option reads one int.
    let set = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            4,
        )
    };
    assert_eq!(set, 0);
    let payload: Vec<u8> = (0..20_000).map(|i| (i / 7) as u8).collect();
    socket.send_to(&payload, "10.0.0.2:4000").unwrap();
    let mut burst = Burst::new();
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    frames::check(&mut burst);
    let offload = burst.heads()[0].offload;
    let gso = offload.gso.expect("one super-frame");
    assert_eq!((gso.kind, gso.size.get()), (GsoKind::UdpL4, 1000));
    assert_eq!(frames::whole(&burst, 0)[42..], payload);
    rx.release();

    // And back: as twenty datagrams, or as one with UDP_GRO, which this socket did not ask for.
    let frame = frames::udp(MAC_A, MAC_B, 5000, &payload);
    assert_eq!(frames::send(&tx, &frame, offload).dropped(), 0);
    let mut got = [0; 2000];
    for chunk in payload.chunks(1000) {
        assert_eq!(socket.recv(&mut got).unwrap(), 1000);
        assert_eq!(&got[..1000], chunk);
    }
}

fn empty_queue_sleeps_and_wakes() {
    let (_tap, mut rx, _tx) = tap_with_stack();
    let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
    let mut burst = Burst::new();
    let mut drops = RxDrops::default();
    let mut poll = Poll::new().unwrap();
    let fd = rx.wake_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(1), Interest::READABLE).unwrap();
    let mut events = Events::with_capacity(4);

    assert_eq!(rx.rx_burst(&mut burst, &mut drops).unwrap(), 0);
    rx.release();
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
    // The edge of a frame is consumed while nobody is asleep: arming must notice the frame all the same.
    socket.send_to(b"one", "10.0.0.2:4000").unwrap();
    poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
    assert!(!events.is_empty());
    assert_eq!(rx.arm().unwrap(), Armed::Work);
    assert_eq!(rx.arm().unwrap(), Armed::Work, "the level, not the edge");
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    rx.release();
    rx.disarm();
    // Each later frame is an edge.
    for _ in 0..10 {
        assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
        socket.send_to(b"more", "10.0.0.2:4000").unwrap();
        poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
        assert!(!events.is_empty());
        assert_eq!(frames::receive(&mut rx, &mut burst), 1);
        rx.release();
        burst.clear();
    }
    // More than a burst stays in the queue for the next one.
    for _ in 0..100 {
        socket.send_to(b"many", "10.0.0.2:4000").unwrap();
    }
    assert_eq!(frames::receive(&mut rx, &mut burst), 64);
    rx.release();
    assert_eq!(rx.arm().unwrap(), Armed::Work);
    assert_eq!(frames::receive(&mut rx, &mut burst), 36);
    rx.release();
}

fn down_takes_nothing() {
    let (tap, _rx, tx) = tap_with_stack();
    let frame = frames::udp(MAC_A, MAC_B, 5000, b"x");
    tap.set_up(false).unwrap();
    let mut burst = Burst::new();
    for _ in 0..3 {
        frames::load(&mut burst, &frame, UDP_PARTIAL);
    }
    let report = tx.tx_burst(0, &mut burst.bucket(&[0, 1, 2])).unwrap();
    assert_eq!((report.down, report.dropped()), (0b111, 0b111));
    tap.set_up(true).unwrap();
    assert_eq!(frames::send(&tx, &frame, UDP_PARTIAL).dropped(), 0);
}

fn removed_is_gone() {
    let (tap, mut rx, tx) = tap_with_stack();
    ip("link del weft0");
    let mut burst = Burst::new();
    let error = rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap_err();
    assert!(matches!(error, PortError::Gone(_)), "{error}");
    assert_eq!(rx.arm().unwrap(), Armed::Work, "the next receive reports it again");
    let frame = frames::udp(MAC_A, MAC_B, 5000, b"x");
    let report = frames::send(&tx, &frame, UDP_PARTIAL);
    assert_eq!((report.down, report.dropped()), (1, 1));
    assert!(tap.name().is_err());
}

/// True if the interface is gone within a second. A child that another test starts at the wrong moment has
/// the tap's descriptor until it executes its program.
fn goes_away(links: &Links, name: &str) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        links.index_of(name).unwrap().is_none()
    })
}

fn queues_and_joining() {
    let links = Links::open().unwrap();

    assert!(matches!(Tap::open("weft-of-sixteen-", 1), Err(TapError::Name(_))));
    assert!(matches!(Tap::open("weft%d", 1), Err(TapError::Name(_))));
    assert!(matches!(Tap::open("weft0", 0), Err(TapError::Queues(0))));
    assert!(matches!(Tap::open("weft0", 257), Err(TapError::Queues(257))));
    assert_eq!(links.index_of("weft0").unwrap(), None, "nothing was made");

    // Made and gone with its last descriptor.
    let tap = Tap::open("weft0", 4).unwrap();
    assert_eq!((tap.queues(), tap.rx_queues().len(), tap.joined()), (4, 4, false));
    assert_eq!(links.index_of("weft0").unwrap(), Some(tap.index()));
    let tx = tap.tx();
    drop(tap);
    assert!(links.index_of("weft0").unwrap().is_some(), "the transmit side holds it");
    drop(tx);
    assert!(goes_away(&links, "weft0"));

    // A persistent tap of one queue: one holder, one queue.
    ip("tuntap add weft1 mode tap");
    assert!(matches!(Tap::open("weft1", 2), Err(TapError::SingleQueue(_))));
    let tap = loop {
        match Tap::open("weft1", 1) {
            // As in `goes_away`: the attempt before may have a descriptor in a child.
            Err(TapError::Busy(_)) => std::thread::yield_now(),
            done => break done.unwrap(),
        }
    };
    assert!(tap.joined());
    let error = Tap::open("weft1", 1).unwrap_err();
    assert!(
        matches!(error, TapError::Busy(_)) && error.to_string().contains("another process holds it"),
        "{error}"
    );
    assert!(matches!(Tap::open("weft1", 2), Err(TapError::SingleQueue(_))), "held or not");
    drop(tap);
    assert!(links.index_of("weft1").unwrap().is_some(), "it was there before us and stays");

    // One of several queues, joined with one and with several.
    ip("tuntap add weft2 mode tap multi_queue");
    assert_eq!(Tap::open("weft2", 1).unwrap().queues(), 1);
    let tap = Tap::open("weft2", 3).unwrap();
    assert_eq!(tap.queues(), 3);
    tap.set_persistent(false).unwrap();
    drop(tap);
    assert!(goes_away(&links, "weft2"));

    // Other interfaces.
    ip("link add weft3 type veth peer name weft4");
    ip("tuntap add weft5 mode tun");
    for name in ["weft3", "weft5", "lo"] {
        for queues in [1, 2] {
            let error = Tap::open(name, queues).unwrap_err();
            assert!(matches!(error, TapError::NotATap(_)), "{name}, {queues}: {error:?}");
        }
    }
}

fn descriptors_are_adopted() {
    let (tap, rx, tx) = tap_with_stack();
    drop(tx);
    // SAFETY: the queue is alive.
    let fd = unsafe { BorrowedFd::borrow_raw(rx.wake_fd()) }.try_clone_to_owned().unwrap();
    rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::empty()).unwrap();
    drop((tap, rx));
    let tap = Tap::from_fds(vec![fd]).unwrap();
    assert_eq!((tap.name().unwrap().as_str(), tap.joined()), ("weft0", true));
    let (mut rx, tx) = (tap.rx_queues().remove(0), tap.tx());
    let mut burst = Burst::new();
    assert_eq!(rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 0, "it does not block");
    rx.release();
    let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
    socket.send_to(b"adopted", "10.0.0.2:4000").unwrap();
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    assert_eq!(&frames::whole(&burst, 0)[42..], b"adopted");
    rx.release();
    assert_eq!(frames::send(&tx, &frames::udp(MAC_A, MAC_B, 5000, b"back"), UDP_PARTIAL).dropped(), 0);
    let mut got = [0; 100];
    assert_eq!(socket.recv(&mut got).unwrap(), 4);

    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Tap::from_fds(vec![file.into()]), Err(TapError::Adopt(_))));
    let fresh = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    assert!(matches!(Tap::from_fds(vec![fresh.into()]), Err(TapError::Adopt(_))));
    assert!(matches!(Tap::from_fds(Vec::new()), Err(TapError::Queues(0))));
}

fn settings() {
    let tap = Tap::open("weft0", 1).unwrap();
    let links = Links::open().unwrap();
    let mac = MacAddr([2, 1, 2, 3, 4, 5]);
    tap.set_mac(mac).unwrap();
    tap.set_mtu(9000).unwrap();
    tap.set_up(true).unwrap();
    let link = links.get("weft0").unwrap().unwrap();
    assert_eq!((link.mac, link.mtu, link.up, link.running, link.ethernet), (mac, 9000, true, true, true));
    tap.set_up(false).unwrap();
    assert!(!links.get("weft0").unwrap().unwrap().up);
    let error = tap.set_mtu(70_000).unwrap_err();
    assert!(error.to_string().contains("MTU") && error.to_string().contains("weft0"), "{error}");
    // It follows the interface, not the name.
    ip("link set weft0 name other");
    tap.set_mtu(1400).unwrap();
    assert_eq!(tap.name().unwrap(), "other");
    assert_eq!(links.get("other").unwrap().unwrap().mtu, 1400);
}

fn unfit_frames_are_refused() {
    let (_tap, _rx, tx) = tap_with_stack();
    let good = frames::udp(MAC_A, MAC_B, 5000, b"good");
    let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut burst = Burst::new();
    let outside = Offload { checksum: Checksum::Partial { start: 1000, offset: 6 }, gso: None };
    frames::load(&mut burst, &good, UDP_PARTIAL);
    frames::load(&mut burst, &good[..10], Offload::NONE);
    frames::load(&mut burst, &good, outside);
    frames::load(&mut burst, &good, UDP_PARTIAL);
    // Memory that is not there.
    let head = burst.next_head().unwrap();
    head.begin(1000, 42).copy_from_slice(&good[..42]);
    head.offload = UDP_PARTIAL;
    // SAFETY: not kept: the kernel is to find nothing there and to say so.
    burst.push(&[unsafe { datapath::Segment::new(std::ptr::without_provenance(4096), 958) }]).unwrap();
    frames::load(&mut burst, &good, UDP_PARTIAL);
    let report = tx.tx_burst(0, &mut burst.bucket(&[0, 1, 2, 3, 4, 5])).unwrap();
    assert_eq!((report.error, report.dropped()), (0b01_0110, 0b01_0110));
    let mut got = [0; 100];
    for _ in 0..3 {
        assert_eq!(socket.recv(&mut got).unwrap(), 4, "the others arrive");
    }
}
