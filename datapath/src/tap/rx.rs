//! A tap's receive queue: frames that the interface's stack sends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use switch_core::head::{FRAME_MAX, HEAD_MAX};
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::{HEADER_LEN, VnetHeader};

use crate::burst::Burst;
use crate::netdev::buffers::{Buffers, SLOT};
use crate::port::{Armed, PortError, RxDrops, RxQueue};

/// One queue of a tap, read a frame at a time into the burst's heads and a pool of its own.
///
/// Each `readv(2)` scatters a frame over the virtio-net header, the head's own memory and the pool, so that the
/// kernel's copy is the only one. All of [`HEAD_MAX`] is read into the head, whatever the header will ask for:
/// how much the frame needs is only known afterwards, and the bytes are copied either way.
#[derive(Debug)]
pub struct TapRx {
    fd: Arc<OwnedFd>,
    accepted: OffloadSet,
    tails: Buffers,
}

impl TapRx {
    pub(super) fn new(fd: Arc<OwnedFd>, accepted: OffloadSet) -> Self {
        Self { fd, accepted, tails: Buffers::new() }
    }
}

impl RxQueue for TapRx {
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = self.accepted;
        self.tails.reset();
        // A frame that is refused takes no room in the burst, so frames are counted apart.
        for _ in 0..BURST {
            if burst.room() == 0 || self.tails.is_full() {
                break;
            }
            let Some(head) = burst.next_head() else { break };
            let mut vnet = [0; HEADER_LEN];
            let space = head.space();
            let iov = [
                libc::iovec { iov_base: vnet.as_mut_ptr().cast(), iov_len: HEADER_LEN },
                libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: HEAD_MAX },
                libc::iovec { iov_base: self.tails.next().cast(), iov_len: SLOT },
            ];
            // SAFETY: the three ranges are writable and ours alone: the header on the stack, the head's whole
            // space, and SLOT bytes of the pool that no segment of this burst names.
            let n = unsafe { libc::readv(self.fd.as_raw_fd(), iov.as_ptr(), iov.len() as i32) };
            let Ok(n) = usize::try_from(n) else {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => continue,
                    // The kernel could not say in a virtio-net header what the frame needs, and has dropped it.
                    Some(libc::EINVAL) => {
                        drops.short_header += 1;
                        continue;
                    }
                    // Out of memory for the moment: what is queued stays queued.
                    Some(libc::ENOMEM | libc::ENOBUFS) => break,
                    Some(libc::EBADFD) => return Err(PortError::Gone("the tap interface was removed")),
                    _ => return Err(PortError::Io { what: "reading from the tap", source: error }),
                }
            };
            let Some(frame_len) = n.checked_sub(HEADER_LEN) else {
                drops.short_header += 1;
                drops.bytes += n as u64;
                continue;
            };
            if frame_len > FRAME_MAX {
                drops.oversize += 1;
                drops.bytes += frame_len as u64;
                continue;
            }
            head.vnet = VnetHeader::from_bytes(vnet);
            let tail_len = frame_len - head.begin(frame_len as u32, HEAD_MAX).len();
            let pushed =
                if tail_len == 0 { burst.push(&[]) } else { burst.push(&[self.tails.take(tail_len)]) };
            // `room` said that the frame fits, and its lengths add up.
            debug_assert!(pushed.is_ok());
            if pushed.is_err() {
                drops.oversize += 1;
                drops.bytes += frame_len as u64;
            }
        }
        Ok(burst.len())
    }

    fn release(&mut self) {
        // The pool is the queue's own; the next burst begins it anew.
    }

    fn wake_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Looks at the queue once more. A tap wakes its pollers at every frame that it queues, so an edge is lost
    /// only to a waiter who consumed it earlier, while the queue was not armed, and went to sleep on the frame
    /// that it was for. Asking the queue's level here, after which every frame is a new edge, closes that gap;
    /// whether the last burst ended with `EAGAIN` does not, as that edge may be newer than the burst.
    fn arm(&mut self) -> Result<Armed, PortError> {
        armed(&self.fd)
    }

    fn disarm(&mut self) {
        // Readiness is the queue's own; there is nothing to drain, and edges in between wake for nothing.
    }
}

/// [`Armed::Work`] if the descriptor is readable or in error, which the next receive then reports.
pub(crate) fn armed(fd: &OwnedFd) -> Result<Armed, PortError> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Ok(Armed::Sleeping),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Armed::Work),
        Err(e) => Err(PortError::Io { what: "polling the port", source: e.into() }),
    }
}
