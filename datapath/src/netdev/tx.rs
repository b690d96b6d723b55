//! A netdev port's transmit side: frames that go out at the interface.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, OwnedFd};

use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::LEGACY_HEADER_LEN;

use crate::burst::{Bucket, FRAME_SEGMENTS, Frame};
use crate::port::{PortError, TxPort, TxReport};

/// Pieces that one system call takes: a bucket of frames in a few pieces, and always one frame of the most.
const PIECES: usize = 1 + FRAME_SEGMENTS + 2 * BURST;

/// The transmit side of a netdev port. The kernel needs no lock to send on one socket from several threads.
#[derive(Debug)]
pub struct NetdevTx {
    fd: OwnedFd,
    offloads: OffloadSet,
}

impl NetdevTx {
    pub(super) fn new(fd: OwnedFd, offloads: OffloadSet) -> Self {
        Self { fd, offloads }
    }
}

impl TxPort for NetdevTx {
    fn offloads(&self) -> OffloadSet {
        self.offloads
    }

    /// One `sendmmsg(2)` for the bucket, or more when it has very many pieces. An interface that is down or was
    /// removed takes nothing ([`TxReport::down`]); its receive queue is what reports the removal.
    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let mut report = TxReport::default();
        let mut batch = Batch::new();
        for i in 0..frames.len() {
            let frame = frames.frame(i);
            if !self.offloads.contains(frame.head.offload.needs()) {
                report.error |= 1 << i;
                continue;
            }
            if !batch.fits(&frame) {
                batch.send(&self.fd, &mut report);
                batch = Batch::new();
            }
            batch.add(i, frame);
        }
        batch.send(&self.fd, &mut report);
        Ok(report)
    }
}

/// The messages of one system call. On the stack, and only written as far as it is used.
struct Batch {
    iov: [MaybeUninit<libc::iovec>; PIECES],
    messages: [MaybeUninit<libc::mmsghdr>; BURST],
    /// Which frame of the bucket each message is.
    frames: [u8; BURST],
    /// Where each message's pieces begin.
    begins: [u16; BURST],
    pieces: usize,
    len: usize,
}

impl Batch {
    #[inline]
    fn new() -> Self {
        Self {
            iov: [const { MaybeUninit::uninit() }; PIECES],
            messages: [const { MaybeUninit::uninit() }; BURST],
            frames: [0; BURST],
            begins: [0; BURST],
            pieces: 0,
            len: 0,
        }
    }

    #[inline]
    fn fits(&self, frame: &Frame<'_>) -> bool {
        self.len < BURST && self.pieces + 1 + frame.tail.len() <= PIECES
    }

    /// Adds frame `i` of the bucket, which fits.
    #[inline]
    fn add(&mut self, i: usize, frame: Frame<'_>) {
        // The checked request, never what a guest wrote.
        let header = frame.head.offload.to_vnet().to_bytes();
        let first = frame.head.with_vnet(header, LEGACY_HEADER_LEN);
        let pieces = &mut self.iov[self.pieces..][..1 + frame.tail.len()];
        pieces[0].write(libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() });
        for (slot, segment) in pieces[1..].iter_mut().zip(frame.tail) {
            slot.write(libc::iovec { iov_base: segment.as_ptr().cast_mut().cast(), iov_len: segment.len() });
        }
        // SAFETY: all-zero bytes are a valid mmsghdr: no address, no data, no control.
        let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
        // Where the pieces are is filled in when the batch is sent: until then it may move.
        message.msg_hdr.msg_iovlen = pieces.len() as _;
        self.begins[self.len] = self.pieces as u16;
        self.pieces += pieces.len();
        self.messages[self.len].write(message);
        self.frames[self.len] = i as u8;
        self.len += 1;
    }

    /// Sends what was added, and reports what was not taken.
    #[inline]
    fn send(&mut self, fd: &OwnedFd, report: &mut TxReport) {
        let iov = self.iov.as_mut_ptr().cast::<libc::iovec>();
        for (message, &begin) in self.messages.iter_mut().zip(&self.begins).take(self.len) {
            // SAFETY: the first `len` messages were written by `add`, and their pieces begin within the array.
            unsafe { message.assume_init_mut().msg_hdr.msg_iov = iov.add(usize::from(begin)) };
        }
        let mut sent = 0;
        while sent < self.len {
            let rest = &mut self.messages[sent..self.len];
            // SAFETY: the messages are written, and name the pieces in `self.iov`, all written. Those name heads
            // of the bucket, which is borrowed and not touched before this returns, and segments that stay
            // mapped until the burst is released (`Segment::new`). The kernel reads them only, and answers
            // EFAULT for what cannot be read.
            let n = unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    rest.as_mut_ptr().cast(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT as _,
                )
            };
            if let Ok(n @ 1..) = usize::try_from(n) {
                sent += n;
                continue;
            }
            // The first of the rest was refused; those before it went out.
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            let bit = 1 << self.frames[sent];
            let rest = self.frames[sent..self.len].iter().fold(0, |bits, &i| bits | 1 << i);
            match error {
                libc::EINTR => continue,
                // The interface's queue refused this one.
                libc::ENOBUFS | libc::ENOMEM => report.full |= bit,
                // The socket's queue is full, for the rest as well.
                libc::EAGAIN => {
                    report.full |= rest;
                    return;
                }
                libc::ENETDOWN | libc::ENXIO | libc::ENODEV => {
                    report.down |= rest;
                    return;
                }
                libc::EMSGSIZE => report.too_small |= bit,
                // EINVAL: the kernel found the frame or its offload request unfit. EFAULT: the memory that the
                // tail lies in went away.
                _ => report.error |= bit,
            }
            sent += 1;
        }
    }
}
