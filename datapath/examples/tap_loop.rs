//! What a tap path can carry at most: a bare loop that reads frames from one tap and writes them to another,
//! both ways, and decides nothing. The peer of the `tap` benchmark.
//!
//! `tap_loop IF_A IF_B` creates the taps, or joins persistent ones, sets them up, prints `ready`, and forwards
//! until it is killed. Frames carry virtio-net headers of 12 bytes, with every offload the kernel has, so a
//! 64 KB segment is one read and one write. The header is passed on as it came: both ends are kernels, so
//! nobody checks it. When both taps are empty it sleeps in `poll(2)`.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use datapath::RxQueue;
use datapath::tap::{Tap, TapRx};
use rustix::event::{PollFd, PollFlags, poll};
use switch_core::head::FRAME_MAX;
use switch_core::virtio_net::HEADER_LEN;

/// A header and the longest frame.
const BUFFER: usize = HEADER_LEN + FRAME_MAX;
/// Frames that one side may have before the other has its turn.
const TURN: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let [a, b] = names.as_slice() else { return Err("usage: tap_loop IF_A IF_B".into()) };
    let (_tap_a, a) = open(a)?;
    let (_tap_b, b) = open(b)?;
    println!("ready");
    let mut buffer = vec![0; BUFFER];
    loop {
        let moved =
            turn(a.wake_fd(), b.wake_fd(), &mut buffer)? + turn(b.wake_fd(), a.wake_fd(), &mut buffer)?;
        if moved == 0 {
            // SAFETY: the queues are alive until the end.
            let (a, b) =
                unsafe { (BorrowedFd::borrow_raw(a.wake_fd()), BorrowedFd::borrow_raw(b.wake_fd())) };
            poll(
                &mut [PollFd::from_borrowed_fd(a, PollFlags::IN), PollFd::from_borrowed_fd(b, PollFlags::IN)],
                None,
            )?;
        }
    }
}

fn open(name: &str) -> Result<(Tap, TapRx), Box<dyn std::error::Error>> {
    let tap = Tap::open(name, 1)?;
    tap.set_up(true)?;
    let queue = tap.rx_queues().pop().ok_or("no queue")?;
    Ok((tap, queue))
}

/// Forwards until `from` is empty or has had its turn; how many frames.
fn turn(from: RawFd, to: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the caller's descriptors are open.
    let (from, to) = unsafe { (BorrowedFd::borrow_raw(from), BorrowedFd::borrow_raw(to)) };
    for moved in 0..TURN {
        let n = match rustix::io::read(from, &mut *buffer) {
            Ok(n) => n,
            Err(rustix::io::Errno::AGAIN) => return Ok(moved),
            Err(e) => return Err(e.into()),
        };
        match rustix::io::write(to, &buffer[..n]) {
            // What the other side does not take is lost, as on a wire.
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO | rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(TURN)
}
