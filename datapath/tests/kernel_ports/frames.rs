//! Frames for the tests, made and taken apart.

use std::time::{Duration, Instant};

use datapath::port::RxDrops;
use datapath::{Burst, RxQueue, TxPort, TxReport};
use switch_core::offload::{Checksum, Offload};

pub(crate) const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub(crate) const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// The ones' complement sum of `bytes`, folded.
pub(crate) fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A UDP datagram from 10.0.0.2 to 10.0.0.1 in an Ethernet frame, its checksum as a partial one: the pseudo
/// header's sum.
pub(crate) fn udp(dst: [u8; 6], src: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&dst);
    frame.extend_from_slice(&src);
    frame.extend_from_slice(&[8, 0]);
    let total = (28 + payload.len()) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let header = !sum(&ip, 0);
    ip[10..12].copy_from_slice(&header.to_be_bytes());
    frame.extend_from_slice(&ip);
    let len = (8 + payload.len()) as u16;
    let pseudo = sum(&ip[12..20], 17 + u32::from(len));
    frame.extend_from_slice(&4000_u16.to_be_bytes());
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&pseudo.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The partial checksum that [`udp`] needs.
pub(crate) const UDP_PARTIAL: Offload =
    Offload { checksum: Checksum::Partial { start: 34, offset: 6 }, gso: None };

/// Checks the frames of a burst as a worker does. None of what a kernel sends may fail.
pub(crate) fn check(burst: &mut Burst) {
    let accepted = burst.accepted;
    for head in burst.heads_mut() {
        let done = switch_core::check::frame(head, accepted);
        assert_eq!(done, Ok(()), "{:?} {:x?}", head.vnet, head.bytes());
    }
}

/// A whole frame, out of head and tail.
pub(crate) fn whole(burst: &Burst, i: usize) -> Vec<u8> {
    let head = &burst.heads()[i];
    let mut bytes = head.bytes().to_vec();
    let mut tail = vec![0; head.tail_len()];
    assert_eq!(datapath::memory::read_tail(burst.tail(i), 0, &mut tail), tail.len());
    bytes.extend_from_slice(&tail);
    assert_eq!(bytes.len(), head.frame_len());
    bytes
}

/// Transmits one frame out of the test's memory.
pub(crate) fn send(port: &dyn TxPort, frame: &[u8], offload: Offload) -> TxReport {
    let mut burst = Burst::new();
    load(&mut burst, frame, offload);
    port.tx_burst(0, &mut burst.bucket(&[0])).expect("the port works")
}

/// Puts a frame into a burst, the tail in two pieces.
pub(crate) fn load(burst: &mut Burst, frame: &[u8], offload: Offload) {
    let head = burst.next_head().expect("room");
    let n = frame.len().min(switch_core::head::HEAD_LEN);
    head.begin(frame.len() as u32, n).copy_from_slice(&frame[..n]);
    head.offload = offload;
    let (a, b) = frame[n..].split_at((frame.len() - n) / 2);
    // SAFETY: the frame outlives every use of the burst in these tests.
    let tail = unsafe {
        [
            datapath::Segment::new(a.as_ptr(), a.len() as u32),
            datapath::Segment::new(b.as_ptr(), b.len() as u32),
        ]
    };
    burst.push(if n == frame.len() { &[] } else { &tail }).expect("room");
}

/// Receives until there is something, for a second at most; the caller releases.
pub(crate) fn receive(queue: &mut dyn RxQueue, burst: &mut Burst) -> usize {
    let end = Instant::now() + Duration::from_secs(1);
    let mut drops = RxDrops::default();
    while Instant::now() < end {
        burst.clear();
        if queue.rx_burst(burst, &mut drops).expect("the port works") > 0 {
            break;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    assert!(drops.is_empty(), "{drops:?}");
    burst.len()
}
