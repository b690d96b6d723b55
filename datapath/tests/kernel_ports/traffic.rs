//! Traffic between real stacks, with a forwarder of the smallest kind between their ports.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath::port::RxDrops;
use datapath::{Burst, RxQueue, TxPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use switch_core::offload::Checksum;

use crate::frames::check;
use crate::netns::Namespace;

/// A namespace's stack, and the port that leads to it.
pub(crate) struct Stack {
    pub(crate) namespace: Namespace,
    pub(crate) rx: Box<dyn RxQueue>,
    pub(crate) tx: Box<dyn TxPort>,
}

/// What a [`forward`] saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Frames.
    pub(crate) frames: u64,
    /// Bytes of the longest.
    pub(crate) longest: usize,
    /// Frames that asked for segmentation.
    pub(crate) super_frames: u64,
    /// Frames that asked for a checksum.
    pub(crate) partial: u64,
    /// Frames that the other side did not take.
    pub(crate) dropped: u64,
    /// Frames of the largest burst.
    pub(crate) burst: usize,
}

/// Moves one burst from `from` to `to`.
pub(crate) fn forward(from: &mut dyn RxQueue, to: &dyn TxPort, burst: &mut Burst, seen: &mut Seen) -> usize {
    burst.clear();
    let mut drops = RxDrops::default();
    let n = from.rx_burst(burst, &mut drops).expect("the port works");
    assert!(drops.is_empty(), "{drops:?}");
    check(burst);
    for head in burst.heads() {
        seen.longest = seen.longest.max(head.frame_len());
        seen.super_frames += u64::from(head.offload.gso.is_some());
        seen.partial += u64::from(matches!(head.offload.checksum, Checksum::Partial { .. }));
    }
    let members: Vec<u8> = (0..n as u8).collect();
    if n > 0 {
        let report = to.tx_burst(0, &mut burst.bucket(&members)).expect("the port works");
        assert_eq!((report.error, report.too_small), (0, 0));
        seen.dropped += u64::from(report.dropped().count_ones());
    }
    from.release();
    seen.frames += n as u64;
    seen.burst = seen.burst.max(n);
    n
}

/// Sends 48 MiB by TCP from the stack at 10.0.0.1 to the one at 10.0.0.2 and checks every byte; what was
/// forwarded there, and back.
pub(crate) fn tcp(a: Stack, b: Stack) -> (Seen, Seen) {
    const BYTES: usize = 48 << 20;
    let (mut a, mut b) = (a, b);
    let done = AtomicBool::new(false);
    let (mut there, mut back) = (Seen::default(), Seen::default());
    std::thread::scope(|scope| {
        let (rx_a, rx_b) = (&mut *a.rx, &mut *b.rx);
        let (tx_a, tx_b) = (&*a.tx, &*b.tx);
        let (done, there, back) = (&done, &mut there, &mut back);
        scope.spawn(move || {
            let mut burst = Burst::new();
            while !done.load(Ordering::Relaxed) {
                if forward(rx_a, tx_b, &mut burst, there) + forward(rx_b, tx_a, &mut burst, back) == 0 {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
        });
        let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 11) as u8;
        let listener = b.namespace.run(|| TcpListener::bind("10.0.0.2:5001").unwrap());
        let receiver = scope.spawn(move || {
            // A connection that fails shows on the other side; nobody is to wait here for ever.
            let mut waited = PollFd::new(&listener, PollFlags::IN);
            let accepted =
                poll(std::slice::from_mut(&mut waited), Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap();
            assert_eq!(accepted, 1, "no connection came");
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut buffer = vec![0; 1 << 16];
            let mut at = 0;
            while at < BYTES {
                let n = stream.read(&mut buffer).unwrap();
                assert_ne!(n, 0, "the stream ended after {at} bytes");
                assert!(buffer[..n].iter().enumerate().all(|(i, &b)| b == byte(at + i)), "damaged near {at}");
                at += n;
            }
        });
        let data: Vec<u8> = (0..BYTES).map(byte).collect();
        let connected = a.namespace.run(|| TcpStream::connect("10.0.0.2:5001"));
        let sent = connected.and_then(|mut stream| stream.write_all(&data));
        let received = receiver.join();
        done.store(true, Ordering::Relaxed);
        sent.unwrap();
        received.unwrap();
    });
    (there, back)
}
