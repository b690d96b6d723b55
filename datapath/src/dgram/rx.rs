//! A datagram port's receive queue: frames that the peer sends.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use switch_core::head::{FRAME_MAX, HEAD_LEN};
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::VnetHeader;

use crate::burst::Burst;
use crate::memory::Segment;
use crate::port::{Armed, PortError, RxDrops, RxQueue};
use crate::tap::armed;
use crate::unix::Mailbox;

/// Bytes of a datagram that go into its own small place: all of a frame of the ordinary MTU. An odd number of cache lines,
/// so that the frames' beginnings do not fight for the same ones.
const SMALL: usize = 33 * 64;
/// Bytes of its large place, for the rest: of a longer frame than there can be, one byte is received.
const LARGE: usize = (FRAME_MAX + 1 - SMALL).next_multiple_of(64);

/// One burst by one `recvmmsg(2)`. Only heads are copied; the tails stay in the places that the kernel filled.
#[derive(Debug)]
pub struct DgramRx {
    mailbox: Mailbox,
    places: Places,
}

impl DgramRx {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, places: Places::new() }
    }
}

impl RxQueue for DgramRx {
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = OffloadSet::NONE;
        let received = match self.places.receive(self.mailbox.fd().as_raw_fd(), burst.room()) {
            Ok(n) => n,
            Err(libc::EAGAIN | libc::EINTR | libc::ENOMEM | libc::ENOBUFS) => 0,
            Err(e) => {
                let source = io::Error::from_raw_os_error(e);
                return Err(PortError::Io { what: "receiving datagrams", source });
            }
        };
        for i in 0..received {
            let len = self.places.len(i);
            let (true, Some(head)) = (len <= FRAME_MAX, burst.next_head()) else {
                drops.oversize += 1;
                drops.bytes += len as u64;
                continue;
            };
            let (small, large) = self.places.of(i, len);
            head.vnet = VnetHeader::default();
            let bytes = head.begin(len as u32, HEAD_LEN);
            let (first, rest) = small.split_at(bytes.len());
            bytes.copy_from_slice(first);
            // SAFETY: both are in places that live as long as the queue, and are written to only by the `receive` of an
            // `rx_burst` that follows `release`.
            let tail = [rest, large].map(|t| unsafe { Segment::new(t.as_ptr(), t.len() as u32) });
            let pieces = if rest.is_empty() {
                0
            } else if large.is_empty() {
                1
            } else {
                2
            };
            let pushed = burst.push(&tail[..pieces]);
            // `room` said that the frame fits, and its lengths add up.
            debug_assert!(pushed.is_ok());
            if pushed.is_err() {
                drops.oversize += 1;
                drops.bytes += len as u64;
            }
        }
        Ok(burst.len())
    }

    fn release(&mut self) {
        // The places are the queue's own; the next burst fills them anew.
    }

    fn wake_fd(&self) -> RawFd {
        self.mailbox.fd().as_raw_fd()
    }

    /// As for a tap: asking the level closes the gap that edges leave.
    fn arm(&mut self) -> Result<Armed, PortError> {
        armed(self.mailbox.fd())
    }

    fn disarm(&mut self) {
        // Readiness is the socket's own; there is nothing to drain.
    }
}

/// Places for [`BURST`] datagrams, and what tells the kernel of them.
struct Places {
    /// [`BURST`] places of [`SMALL`] bytes.
    small: Box<[u8]>,
    /// [`BURST`] places of [`LARGE`] bytes. The kernel gives memory to those that are ever used.
    large: Box<[u8]>,
    /// For each datagram its small and its large place.
    pieces: Box<[[libc::iovec; 2]]>,
    messages: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in `pieces` and `messages` name memory that this value owns and that stays where it is; nothing about
// it is bound to a thread.
unsafe impl Send for Places {}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").finish_non_exhaustive()
    }
}

impl Places {
    fn new() -> Self {
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: all-zero bytes are a valid mmsghdr: no address, no data, no control.
        let message: libc::mmsghdr = unsafe { mem::zeroed() };
        Self {
            small: vec![0; BURST * SMALL].into_boxed_slice(),
            large: vec![0; BURST * LARGE].into_boxed_slice(),
            pieces: vec![[empty; 2]; BURST].into_boxed_slice(),
            messages: vec![message; BURST].into_boxed_slice(),
        }
    }

    /// Receives at most `most` datagrams into the first places, never waiting; how many. The error is the kernel's number.
    fn receive(&mut self, fd: RawFd, most: usize) -> Result<usize, i32> {
        let most = most.min(BURST);
        let places = self.small.chunks_exact_mut(SMALL).zip(self.large.chunks_exact_mut(LARGE));
        let told = self.pieces.iter_mut().zip(&mut self.messages);
        for ((small, large), (pieces, message)) in places.zip(told).take(most) {
            *pieces =
                [small, large].map(|p| libc::iovec { iov_base: p.as_mut_ptr().cast(), iov_len: p.len() });
            message.msg_hdr.msg_iov = pieces.as_mut_ptr();
            message.msg_hdr.msg_iovlen = 2;
        }
        // SAFETY: the first `most` messages name two places each, all of them apart from each other and borrowed by this
        // call; no segment names them, as the last burst was released. There is no room for addresses and control data, so
        // the kernel writes none, and closes descriptors that a peer sends along. Without a timeout that pointer is null.
        // MSG_TRUNC: the lengths are the datagrams' own, also of those that are longer than their places.
        let n = unsafe {
            libc::recvmmsg(
                fd,
                self.messages.as_mut_ptr(),
                most as u32,
                (libc::MSG_DONTWAIT | libc::MSG_TRUNC) as _,
                ptr::null_mut(),
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// Bytes of datagram `i`, which may be more than there is room for.
    fn len(&self, i: usize) -> usize {
        self.messages[i].msg_len as usize
    }

    /// What is in the places of datagram `i`, which has `len` bytes, at most [`FRAME_MAX`].
    fn of(&self, i: usize, len: usize) -> (&[u8], &[u8]) {
        let small = len.min(SMALL);
        (&self.small[i * SMALL..][..small], &self.large[i * LARGE..][..len - small])
    }
}
