//! A tap's transmit side: frames for the interface's stack.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use switch_core::offload::OffloadSet;
use switch_core::virtio_net::HEADER_LEN;

use crate::burst::{Bucket, FRAME_SEGMENTS, Frame};
use crate::port::{PortError, TxPort, TxReport};

/// The transmit side of a tap. Workers share out the queues by their number, and share a queue without a lock.
#[derive(Debug)]
pub struct TapTx {
    queues: Box<[Arc<OwnedFd>]>,
    offloads: OffloadSet,
}

impl TapTx {
    pub(super) fn new(queues: Box<[Arc<OwnedFd>]>, offloads: OffloadSet) -> Self {
        Self { queues, offloads }
    }
}

impl TxPort for TapTx {
    fn offloads(&self) -> OffloadSet {
        self.offloads
    }

    /// One `write(2)` for each frame without a tail, as header and head are one piece; else one `writev(2)`, in
    /// which the tail follows from where it is. An
    /// interface that is down or was removed takes nothing ([`TxReport::down`]); its receive queue is what
    /// reports the removal.
    fn tx_burst(&self, worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let mut report = TxReport::default();
        let fd = &self.queues[worker % self.queues.len()];
        for i in 0..frames.len() {
            let frame = frames.frame(i);
            let bit = 1 << i;
            if !self.offloads.contains(frame.head.offload.needs()) {
                report.error |= bit;
                continue;
            }
            match write(fd, frame) {
                Ok(()) => {}
                Err(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS) => report.full |= bit,
                Err(libc::EIO | libc::EBADFD) => {
                    report.down |= TxReport::all(frames.len()) & !(bit - 1);
                    break;
                }
                // EINVAL: the kernel found the frame or its offload request unfit. EFAULT: the memory that the
                // tail lies in went away.
                Err(_) => report.error |= bit,
            }
        }
        Ok(report)
    }
}

/// Writes one frame; the error is the kernel's number.
#[inline]
fn write(fd: &OwnedFd, frame: Frame<'_>) -> Result<(), i32> {
    // The checked request, never what a guest wrote.
    let header = frame.head.offload.to_vnet().to_bytes();
    let first = frame.head.with_vnet(header, HEADER_LEN);
    if frame.tail.is_empty() {
        // The kernel has no pieces to look at, and this call is no cancellation point of libc's.
        return match rustix::io::retry_on_intr(|| rustix::io::write(fd, first)) {
            Ok(_) => Ok(()),
            Err(e) => Err(e.raw_os_error()),
        };
    }
    let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; 1 + FRAME_SEGMENTS];
    iov[0].write(libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() });
    let mut pieces = 1;
    for (slot, segment) in iov[1..].iter_mut().zip(frame.tail) {
        slot.write(libc::iovec { iov_base: segment.as_ptr().cast_mut().cast(), iov_len: segment.len() });
        pieces += 1;
    }
    loop {
        // SAFETY: the first `pieces` entries are written. They name the head, which is borrowed, and segments
        // that stay mapped until the burst is released (`Segment::new`); the kernel only reads them, and
        // answers EFAULT for what cannot be read.
        let n = unsafe { libc::writev(fd.as_raw_fd(), iov.as_ptr().cast(), pieces) };
        if n >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
            libc::EINTR => {}
            error => return Err(error),
        }
    }
}
