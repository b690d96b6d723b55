//! A tap's receive queue: frames that the interface's stack sends.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use switch_core::head::{FRAME_MAX, HEAD_LEN, HEAD_MAX};
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::{HEADER_LEN, VnetHeader};

use crate::buffers::Buffers;
use crate::burst::Burst;
use crate::port::{Armed, PortError, RxDrops, RxQueue};

/// One queue of a tap, read a frame at a time into a pool of its own.
///
/// Each frame is one `read(2)` of header and frame into one buffer, and its head is copied from there. To
/// scatter it over head and pool (`readv(2)`) would save that copy, and costs more: the kernel has to look at
/// the pieces. A frame without a tail leaves the buffer to the next one.
#[derive(Debug)]
pub struct TapRx {
    fd: Arc<OwnedFd>,
    accepted: OffloadSet,
    pool: Buffers,
}

impl TapRx {
    pub(super) fn new(fd: Arc<OwnedFd>, accepted: OffloadSet) -> Self {
        Self { fd, accepted, pool: Buffers::new() }
    }
}

impl RxQueue for TapRx {
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = self.accepted;
        self.pool.reset();
        // A frame that is refused takes no room in the burst, so frames are counted apart.
        for _ in 0..BURST {
            if burst.room() == 0 || self.pool.is_full() {
                break;
            }
            let Some(head) = burst.next_head() else { break };
            let read = match rustix::io::read(&*self.fd, self.pool.slot()) {
                Ok((read, _)) => &*read,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                // The kernel could not say in a virtio-net header what the frame needs, and has dropped it.
                Err(Errno::INVAL) => {
                    drops.short_header += 1;
                    continue;
                }
                // Out of memory for the moment: what is queued stays queued.
                Err(Errno::NOMEM | Errno::NOBUFS) => break,
                Err(Errno::BADFD) => return Err(PortError::Gone("the tap interface was removed")),
                Err(e) => return Err(PortError::Io { what: "reading from the tap", source: e.into() }),
            };
            let Some((header, frame)) = read.split_first_chunk::<HEADER_LEN>() else {
                drops.short_header += 1;
                drops.bytes += read.len() as u64;
                continue;
            };
            let frame_len = frame.len();
            if frame_len > FRAME_MAX {
                drops.oversize += 1;
                drops.bytes += frame_len as u64;
                continue;
            }
            head.vnet = VnetHeader::from_bytes(*header);
            let want = if head.vnet.is_plain() { HEAD_LEN } else { HEAD_MAX };
            let bytes = head.begin(frame_len as u32, want);
            let head_len = bytes.len();
            bytes.copy_from_slice(&frame[..head_len]);
            let pushed = if head_len == frame_len {
                burst.push(&[])
            } else {
                let kept = self.pool.take(HEADER_LEN + frame_len);
                burst.push(&[kept.part(HEADER_LEN + head_len, frame_len)])
            };
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
        Ok(_) | Err(Errno::INTR) => Ok(Armed::Work),
        Err(e) => Err(PortError::Io { what: "polling the port", source: e.into() }),
    }
}
