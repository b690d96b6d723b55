//! The netdev port.

use std::net::UdpSocket;
use std::time::Duration;

use datapath::netdev::link::Links;
use datapath::netdev::{self, Netdev, NetdevError, NetdevRx, NetdevTx};
use datapath::port::RxDrops;
use datapath::{Armed, Burst, PortError, RxQueue, TxPort};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use switch_core::MacAddr;
use switch_core::offload::{Checksum, Gso, GsoKind, Offload, OffloadSet};

use crate::Body;
use crate::frames::{self, MAC_A, MAC_B, UDP_PARTIAL};
use crate::netns::{Namespace, ethtool, ip, up};
use crate::tap::stack_at_tap;
use crate::traffic::{self, Stack};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("netdev_frames_pass_both_ways", frames_pass_both_ways),
    ("netdev_tcp_with_tso", tcp_with_tso),
    ("netdev_tcp_without_tso", tcp_without_tso),
    ("netdev_to_tap_and_back", netdev_to_tap_and_back),
    ("netdev_vlan_tags_are_put_back", vlan_tags_are_put_back),
    ("netdev_outgoing_frames_are_ignored", outgoing_frames_are_ignored),
    ("netdev_frames_for_others_are_received", frames_for_others_are_received),
    ("netdev_empty_queue_sleeps_and_wakes", empty_queue_sleeps_and_wakes),
    ("netdev_full_ring_loses_and_recovers", full_ring_loses_and_recovers),
    ("netdev_down_and_up_again", down_and_up_again),
    ("netdev_removed_is_gone_and_returns", removed_is_gone_and_returns),
    ("netdev_removed_while_down_is_gone", removed_while_down_is_gone),
    ("netdev_unfit_frames_are_refused", unfit_frames_are_refused),
    ("netdev_mtu_raised_later", mtu_raised_later),
    ("netdev_refusals", refusals),
];

/// A veth pair: `weft0` is the port, `far0` in a namespace of its own has a stack at 10.0.0.1 that knows
/// 10.0.0.2 at [`MAC_B`].
fn veth_with_stack() -> (Namespace, Netdev, NetdevRx, NetdevTx) {
    let far = Namespace::new();
    far.veth("far0", "weft0");
    far.run(|| {
        ip(&format!("link set far0 address {} up", MacAddr(MAC_A)));
        ip("addr add 10.0.0.1/24 dev far0");
        ip(&format!("neigh add 10.0.0.2 lladdr {} dev far0", MacAddr(MAC_B)));
    });
    up("weft0");
    far.run(|| up("far0"));
    let (netdev, rx, tx) = Netdev::open("weft0").unwrap();
    (far, netdev, rx, tx)
}

fn socket_in(far: &Namespace) -> UdpSocket {
    let socket = far.run(|| UdpSocket::bind("10.0.0.1:5000").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

fn frames_pass_both_ways() {
    let (far, _netdev, mut rx, tx) = veth_with_stack();
    let socket = socket_in(&far);
    let mut burst = Burst::new();
    for len in [0, 1, 50, 85, 86, 87, 177, 178, 179, 181, 182, 183, 1000, 1472] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        socket.send_to(&payload, "10.0.0.2:4000").unwrap();
        assert_eq!(frames::receive(&mut rx, &mut burst), 1);
        let frame = frames::whole(&burst, 0);
        assert_eq!((&frame[..6], &frame[6..12], &frame[42..]), (&MAC_B[..], &MAC_A[..], &payload[..]));
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

/// The stack of a namespace of its own, behind a veth pair whose near end is the port.
fn stack_at_veth(near: &str, address: &str, tso: bool) -> Stack {
    let namespace = Namespace::new();
    namespace.veth("far0", near);
    namespace.run(|| {
        ip("link set far0 up");
        ip(&format!("addr add {address}/24 dev far0"));
        if !tso {
            ethtool("-K far0 tso off gso off tx off");
        }
    });
    up(near);
    namespace.run(|| up("far0"));
    let (_netdev, rx, tx) = Netdev::open(near).unwrap();
    Stack { namespace, rx: Box::new(rx), tx: Box::new(tx) }
}

fn tcp_with_tso() {
    let (there, back) =
        traffic::tcp(stack_at_veth("near0", "10.0.0.1", true), stack_at_veth("near1", "10.0.0.2", true));
    assert!(there.longest > 60_000, "64 KB segments arrive whole: {there:?}");
    assert!(there.super_frames * 2 > there.frames / 2, "{there:?}");
    assert!(there.partial > 0 && back.frames > 0, "{there:?} {back:?}");
}

fn tcp_without_tso() {
    let (there, _) =
        traffic::tcp(stack_at_veth("near0", "10.0.0.1", false), stack_at_veth("near1", "10.0.0.2", false));
    assert_eq!((there.super_frames, there.partial, there.longest), (0, 0, 1514), "{there:?}");
}

fn netdev_to_tap_and_back() {
    for (tso, accepted, near) in
        [(true, OffloadSet::ALL, ["near0", "near1"]), (false, OffloadSet::NONE, ["near2", "near3"])]
    {
        let (there, _) =
            traffic::tcp(stack_at_veth(near[0], "10.0.0.1", tso), stack_at_tap("10.0.0.2", accepted));
        assert_eq!(there.longest > 60_000, tso, "{there:?}");
        let (there, _) =
            traffic::tcp(stack_at_tap("10.0.0.1", accepted), stack_at_veth(near[1], "10.0.0.2", tso));
        assert_eq!(there.longest > 60_000, tso, "{there:?}");
    }
}

/// An Ethernet frame with a tag, and its offload moved behind it.
fn tagged(frame: &[u8], tag: [u8; 4], mut offload: Offload) -> (Vec<u8>, Offload) {
    let mut bytes = frame[..12].to_vec();
    bytes.extend_from_slice(&tag);
    bytes.extend_from_slice(&frame[12..]);
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start += 4;
    }
    if let Some(gso) = &mut offload.gso {
        gso.header_len += 4;
    }
    (bytes, offload)
}

/// A TCP segment of 10.0.0.2 with `len` bytes of payload, to be cut after 1,000.
fn tcp_super_frame(len: usize) -> (Vec<u8>, Offload) {
    let mut frame = frames::udp(MAC_A, MAC_B, 0, &vec![0; 12 + len]);
    for (i, byte) in frame[54..].iter_mut().enumerate() {
        *byte = (i / 3) as u8;
    }
    frame[23] = 6;
    frame[24..26].fill(0);
    let header = !frames::sum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    let (ports, sequence) = ([0x0f, 0xa0, 0x13, 0x88], [0, 0, 0, 1]);
    frame[34..38].copy_from_slice(&ports);
    frame[38..42].copy_from_slice(&sequence);
    frame[42..46].fill(0);
    // Twenty bytes of header, ACK, a window.
    frame[46..50].copy_from_slice(&[0x50, 0x10, 0x10, 0]);
    let pseudo = frames::sum(&frame[26..34], 6 + 20 + len as u32);
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame[52..54].fill(0);
    let gso = Gso { kind: GsoKind::TcpV4, ecn: false, size: 1000.try_into().unwrap(), header_len: 54 };
    (frame, Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, gso: Some(gso) })
}

fn vlan_tags_are_put_back() {
    let (far, _netdev, mut rx, _tx) = veth_with_stack();
    let (_far_netdev, _far_rx, far_tx) = far.run(|| Netdev::open("far0").unwrap());
    let mut burst = Burst::new();
    let small = (frames::udp(MAC_B, MAC_A, 4000, b"small"), UDP_PARTIAL);
    let long = (frames::udp(MAC_B, MAC_A, 4000, &[7; 1472]), UDP_PARTIAL);
    let super_frame = tcp_super_frame(40_000);
    // A customer's tag, a priority tag with DEI, a service tag, and two tags, of which the kernel takes one.
    for tag in [[0x81, 0, 0x60, 100], [0x81, 0, 0xf0, 0], [0x88, 0xa8, 0, 5]] {
        for (frame, offload) in [&small, &long, &super_frame] {
            let (frame, offload) = tagged(frame, tag, *offload);
            let report = frames::send(&far_tx, &frame, offload);
            if tag[0] == 0x88 && frame.len() == 1518 {
                // Packet sockets count a service tag against the MTU, and a customer's tag not.
                assert_eq!((report.too_small, report.dropped()), (1, 1));
                continue;
            }
            assert_eq!(report.dropped(), 0, "{tag:x?}, {} bytes", frame.len());
            assert_eq!(frames::receive(&mut rx, &mut burst), 1);
            let got = frames::whole(&burst, 0);
            assert_eq!(got[..18], frame[..18], "the tag is back");
            assert!(got == frame, "{tag:x?}, {} bytes", frame.len());
            // The request has moved behind the tag, as the switch's check finds where it knows the tag, which
            // is not so for super-frames behind service tags.
            let (mut vnet, wanted) = (burst.heads()[0].vnet, offload.to_vnet());
            vnet.num_buffers = wanted.num_buffers;
            if offload.gso.is_none() {
                vnet.hdr_len = 0;
            }
            assert_eq!(vnet, wanted);
            if tag[0] == 0x81 || offload.gso.is_none() {
                frames::check(&mut burst);
                assert_eq!(burst.heads()[0].offload, offload);
            }
            rx.release();
        }
    }
    let (inner, offload) = tagged(&small.0, [0x81, 0, 0, 7], UDP_PARTIAL);
    let (both, offload) = tagged(&inner, [0x88, 0xa8, 0, 8], offload);
    assert_eq!(frames::send(&far_tx, &both, offload).dropped(), 0);
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    assert_eq!(frames::whole(&burst, 0), both);
    rx.release();
}

fn outgoing_frames_are_ignored() {
    let (far, _netdev, mut rx, tx) = veth_with_stack();
    let socket = socket_in(&far);
    let mut got = [0; 100];
    for _ in 0..5 {
        assert_eq!(frames::send(&tx, &frames::udp(MAC_A, MAC_B, 5000, b"ours"), UDP_PARTIAL).dropped(), 0);
        socket.recv(&mut got).unwrap();
    }
    // The host's, out of the same interface.
    ip("addr add 10.0.0.9/24 dev weft0");
    ip(&format!("neigh add 10.0.0.1 lladdr {} dev weft0", MacAddr(MAC_A)));
    let host = UdpSocket::bind("10.0.0.9:4000").unwrap();
    host.send_to(b"host's", "10.0.0.1:5000").unwrap();
    assert_eq!(socket.recv(&mut got).unwrap(), 6);
    let mut burst = Burst::new();
    assert_eq!(rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 0);
    rx.release();
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
}

fn frames_for_others_are_received() {
    let (far, netdev, mut rx, _tx) = veth_with_stack();
    let (_far_netdev, _far_rx, far_tx) = far.run(|| Netdev::open("far0").unwrap());
    let near = netdev.link().unwrap().unwrap();
    let mut burst = Burst::new();
    for to in [MAC_B, near.mac.0, [0xff; 6], [1, 0, 0x5e, 0, 0, 9], [1, 0x80, 0xc2, 0, 0, 2]] {
        let frame = frames::udp(to, MAC_A, 4000, b"to whom it may concern");
        assert_eq!(frames::send(&far_tx, &frame, UDP_PARTIAL).dropped(), 0);
        assert_eq!(frames::receive(&mut rx, &mut burst), 1);
        assert_eq!(frames::whole(&burst, 0), frame);
        rx.release();
    }
}

fn empty_queue_sleeps_and_wakes() {
    let (far, _netdev, mut rx, _tx) = veth_with_stack();
    let socket = socket_in(&far);
    let mut burst = Burst::new();
    let mut poll = Poll::new().unwrap();
    let fd = rx.wake_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(1), Interest::READABLE).unwrap();
    let mut events = Events::with_capacity(4);
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
    socket.send_to(b"one", "10.0.0.2:4000").unwrap();
    poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
    assert!(!events.is_empty());
    assert_eq!(rx.arm().unwrap(), Armed::Work, "the edge was consumed, the frame was not");
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    rx.release();
    rx.disarm();
    for _ in 0..10 {
        assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
        socket.send_to(b"more", "10.0.0.2:4000").unwrap();
        poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
        assert!(!events.is_empty());
        assert_eq!(frames::receive(&mut rx, &mut burst), 1);
        rx.release();
    }
    for _ in 0..100 {
        socket.send_to(b"many", "10.0.0.2:4000").unwrap();
    }
    assert_eq!(frames::receive(&mut rx, &mut burst), 64);
    rx.release();
    assert_eq!(rx.arm().unwrap(), Armed::Work);
    assert_eq!(frames::receive(&mut rx, &mut burst), 36);
    rx.release();
}

fn full_ring_loses_and_recovers() {
    const SENT: u64 = 5000;
    let (far, netdev, mut rx, _tx) = veth_with_stack();
    let (_far_netdev, _far_rx, far_tx) = far.run(|| Netdev::open("far0").unwrap());
    let mut burst = Burst::new();
    for round in 0..3 {
        let plain = frames::udp(MAC_B, MAC_A, 4000, b"small");
        let (long, offload) = tcp_super_frame(60_000);
        let lost_before = netdev.lost();
        // Every tenth one goes through the socket's queue.
        for i in 0..SENT {
            let report = if i % 10 == 9 {
                frames::send(&far_tx, &long, offload)
            } else {
                frames::send(&far_tx, &plain, UDP_PARTIAL)
            };
            assert_eq!(report.dropped(), 0);
        }
        let (mut received, mut in_order) = (0, 0);
        loop {
            burst.clear();
            let n = rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap();
            if n == 0 {
                break;
            }
            for i in 0..n {
                let frame = frames::whole(&burst, i);
                assert!(frame.len() == plain.len() || frame.len() == long.len());
                in_order += u64::from((frame.len() == long.len()) == ((received + i as u64) % 10 == 9));
            }
            received += n as u64;
            rx.release();
        }
        let lost = netdev.lost() - lost_before;
        assert_eq!(received + lost, SENT, "round {round}: each frame is received or counted");
        assert!(lost > 0 && received >= 100, "round {round}: {received} received, {lost} lost");
        assert!(
            in_order >= 90,
            "round {round}: frames from ring and queue in the order they came: {in_order}"
        );
    }
}

fn down_and_up_again() {
    let (far, netdev, mut rx, tx) = veth_with_stack();
    let socket = socket_in(&far);
    let frame = frames::udp(MAC_A, MAC_B, 5000, b"x");
    let mut burst = Burst::new();
    ip("link set weft0 down");
    assert!(!netdev.link().unwrap().unwrap().up);
    for _ in 0..3 {
        frames::load(&mut burst, &frame, UDP_PARTIAL);
    }
    let report = tx.tx_burst(0, &mut burst.bucket(&[0, 1, 2])).unwrap();
    assert_eq!((report.down, report.dropped()), (0b111, 0b111));
    burst.clear();
    assert_eq!(rx.rx_burst(&mut burst, &mut RxDrops::default()).unwrap(), 0, "down is not gone");
    rx.release();
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
    up("weft0");
    far.run(|| up("far0"));
    socket.send_to(b"again", "10.0.0.2:4000").unwrap();
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    rx.release();
    assert_eq!(frames::send(&tx, &frame, UDP_PARTIAL).dropped(), 0);
    let mut got = [0; 100];
    assert_eq!(socket.recv(&mut got).unwrap(), 1);
}

/// Polls as a worker that never sleeps, until the queue says that it is gone.
fn gone_by_polling(rx: &mut NetdevRx) -> bool {
    let mut burst = Burst::new();
    (0..100_000).any(|_| matches!(rx.rx_burst(&mut burst, &mut RxDrops::default()), Err(PortError::Gone(_))))
}

fn removed_is_gone_and_returns() {
    let (far, netdev, mut rx, tx) = veth_with_stack();
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
    ip("link del weft0");
    assert!(matches!(rx.arm(), Err(PortError::Gone(_))), "a worker about to sleep is told");
    assert!(gone_by_polling(&mut rx) || matches!(rx.arm(), Err(PortError::Gone(_))));
    assert_eq!(frames::send(&tx, &frames::udp(MAC_A, MAC_B, 5000, b"x"), UDP_PARTIAL).down, 1);
    assert_eq!(netdev.link().unwrap(), None);
    assert!(!netdev::is_present("weft0"));

    // Another interface of the same name is another interface, until it is opened.
    far.veth("far0", "weft0");
    assert!(netdev::is_present("weft0"));
    assert_eq!(netdev.link().unwrap(), None);
    ip("link set weft0 up");
    let (netdev, mut rx, _tx) = Netdev::open("weft0").unwrap();
    assert!(netdev.link().unwrap().is_some());
    ip("link del weft0");
    assert!(gone_by_polling(&mut rx), "a worker that never sleeps is told");
}

fn removed_while_down_is_gone() {
    let (_far, _netdev, mut rx, _tx) = veth_with_stack();
    ip("link set weft0 down");
    assert_eq!(rx.arm().unwrap(), Armed::Sleeping);
    ip("link del weft0");
    assert!(matches!(rx.arm(), Err(PortError::Gone(_))));
    assert!(gone_by_polling(&mut rx));
}

fn unfit_frames_are_refused() {
    let (far, _netdev, _rx, tx) = veth_with_stack();
    let socket = socket_in(&far);
    let good = frames::udp(MAC_A, MAC_B, 5000, b"good");
    let large = frames::udp(MAC_A, MAC_B, 5000, &[0; 2000]);
    let outside = Offload { checksum: Checksum::Partial { start: 1000, offset: 6 }, gso: None };
    let mut burst = Burst::new();
    frames::load(&mut burst, &good, UDP_PARTIAL);
    frames::load(&mut burst, &good[..10], Offload::NONE);
    frames::load(&mut burst, &large, UDP_PARTIAL);
    frames::load(&mut burst, &good, outside);
    frames::load(&mut burst, &good, UDP_PARTIAL);
    let head = burst.next_head().unwrap();
    head.begin(1000, 42).copy_from_slice(&good[..42]);
    head.offload = UDP_PARTIAL;
    // SAFETY: not kept: the kernel is to find nothing there and to say so.
    burst.push(&[unsafe { datapath::Segment::new(std::ptr::without_provenance(4096), 958) }]).unwrap();
    frames::load(&mut burst, &good, UDP_PARTIAL);
    // More pieces than one system call is given.
    let bytes = vec![1_u8; 1400];
    for _ in 0..6 {
        let head = burst.next_head().unwrap();
        let frame = frames::udp(MAC_A, MAC_B, 5000, &bytes);
        head.begin(frame.len() as u32, 42).copy_from_slice(&frame[..42]);
        head.offload = UDP_PARTIAL;
        // SAFETY: `bytes` outlives the burst.
        let pieces: Vec<_> =
            bytes.chunks(7).map(|c| unsafe { datapath::Segment::new(c.as_ptr(), c.len() as u32) }).collect();
        burst.push(&pieces).unwrap();
    }
    let members: Vec<u8> = (0..burst.len() as u8).collect();
    let report = tx.tx_burst(0, &mut burst.bucket(&members)).unwrap();
    assert_eq!((report.error, report.too_small, report.full, report.down), (0b10_1010, 0b100, 0, 0));
    let mut got = [0; 2000];
    for len in [4, 4, 4, 1400, 1400, 1400, 1400, 1400, 1400] {
        assert_eq!(socket.recv(&mut got).unwrap(), len);
    }
}

fn mtu_raised_later() {
    let (far, _netdev, mut rx, tx) = veth_with_stack();
    ip("link set weft0 mtu 9000");
    far.run(|| ip("link set far0 mtu 9000"));
    let socket = socket_in(&far);
    let payload: Vec<u8> = (0..8900).map(|i| (i / 5) as u8).collect();
    socket.send_to(&payload, "10.0.0.2:4000").unwrap();
    let mut burst = Burst::new();
    assert_eq!(frames::receive(&mut rx, &mut burst), 1);
    assert_eq!(frames::whole(&burst, 0)[42..], payload);
    rx.release();
    assert_eq!(frames::send(&tx, &frames::udp(MAC_A, MAC_B, 5000, &payload), UDP_PARTIAL).dropped(), 0);
    let mut got = [0; 9000];
    assert_eq!(socket.recv(&mut got).unwrap(), 8900);
}

fn refusals() {
    assert!(matches!(Netdev::open("no-such-link"), Err(NetdevError::NotFound(_))));
    assert!(matches!(Netdev::open("lo"), Err(NetdevError::NotEthernet(_))));
    assert!(matches!(Netdev::open("weft-of-sixteen-"), Err(NetdevError::Name(_))));
    assert!(!netdev::is_present("no-such-link") && netdev::is_present("lo"));
    assert!(Links::open().unwrap().set_up("no-such-link", true).is_err());
}
