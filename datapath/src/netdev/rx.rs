//! A netdev port's receive queue: frames that come in at the interface.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use switch_core::Head;
use switch_core::head::{FRAME_MAX, HEAD_LEN, HEAD_MAX, TAG_LEN};
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::{F_NEEDS_CSUM, GSO_NONE, HEADER_LEN, LEGACY_HEADER_LEN, VnetHeader};

use super::ring::{Ring, Slot};
use super::{link, socket};
use crate::buffers::{Buffers, SLOT};
use crate::burst::Burst;
use crate::port::{Armed, PortError, RxDrops, RxQueue};

/// Bytes of the two addresses, behind which a VLAN tag stands.
const ADDRESSES: usize = 12;
/// Empty receptions after which the interface is looked for: a worker that never sleeps never arms.
const LOOK_EVERY: u32 = 4096;

/// The receive queue of a netdev port.
#[derive(Debug)]
pub struct NetdevRx {
    fd: Arc<OwnedFd>,
    ring: Ring,
    tails: Buffers,
    index: u32,
    lost: Arc<AtomicU64>,
    /// The next slot that the kernel fills.
    next: usize,
    /// The first slot that is to be given back.
    first: usize,
    /// Empty receptions since the interface was looked for.
    idle: u32,
    /// The interface went down, or away.
    down: bool,
}

impl NetdevRx {
    pub(super) fn new(fd: Arc<OwnedFd>, ring: Ring, index: u32, lost: Arc<AtomicU64>) -> Self {
        let tails = Buffers::new();
        Self { fd, ring, tails, index, lost, next: 0, first: 0, idle: 0, down: false }
    }

    /// Takes in a frame that lies in the ring; its tail stays there.
    fn take_slot(&self, slot: &Slot, burst: &mut Burst) -> bool {
        let vnet = VnetHeader::from_bytes(self.ring.vnet(slot));
        let frame = self.ring.frame(slot);
        let Some(head) = burst.next_head() else { return false };
        let want = if vnet.is_plain() { HEAD_LEN } else { HEAD_MAX - TAG_LEN };
        let from_slot = want.min(frame.len());
        match slot.tag {
            Some(tag) if from_slot >= ADDRESSES => {
                let bytes = head.begin((frame.len() + TAG_LEN) as u32, from_slot + TAG_LEN);
                frame.part(0, ADDRESSES).read(bytes);
                bytes[ADDRESSES..ADDRESSES + TAG_LEN].copy_from_slice(&tag);
                frame.part(ADDRESSES, usize::MAX).read(&mut bytes[ADDRESSES + TAG_LEN..]);
                head.vnet = behind_tag(vnet);
            }
            _ => {
                frame.read(head.begin(frame.len() as u32, from_slot));
                head.vnet = vnet;
            }
        }
        let tail = frame.part(from_slot, usize::MAX);
        if tail.is_empty() { burst.push(&[]).is_ok() } else { burst.push(&[tail]).is_ok() }
    }

    /// Receives the frame that was too long for its slot: it is the first in the socket's queue.
    fn take_queued(&mut self, slot: &Slot, burst: &mut Burst, drops: &mut RxDrops) -> Result<(), PortError> {
        let Some(head) = burst.next_head() else { return Ok(()) };
        let gap = if slot.tag.is_some() { TAG_LEN } else { 0 };
        let mut vnet = [0; HEADER_LEN];
        let Some(n) = self.receive(&mut vnet[..LEGACY_HEADER_LEN], head, gap)? else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let Some(frame_len) = n.checked_sub(LEGACY_HEADER_LEN) else {
            drops.short_header += 1;
            return Ok(());
        };
        let frame_len = frame_len + gap;
        if frame_len > FRAME_MAX {
            drops.oversize += 1;
            drops.bytes += frame_len as u64;
            return Ok(());
        }
        let vnet = VnetHeader::from_bytes(vnet);
        let bytes = head.begin(frame_len as u32, HEAD_MAX);
        let tail_len = frame_len - bytes.len();
        if let (Some(tag), true) = (slot.tag, bytes.len() >= ADDRESSES + TAG_LEN) {
            bytes.copy_within(TAG_LEN..TAG_LEN + ADDRESSES, 0);
            bytes[ADDRESSES..ADDRESSES + TAG_LEN].copy_from_slice(&tag);
        }
        head.vnet = if gap != 0 { behind_tag(vnet) } else { vnet };
        let pushed = if tail_len == 0 { burst.push(&[]) } else { burst.push(&[self.tails.take(tail_len)]) };
        if pushed.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Receives one frame from the socket's queue, into the head from `gap` on and then into the pool: how
    /// many bytes it has with its virtio-net header. `None` if the kernel could not give it.
    fn receive(&mut self, vnet: &mut [u8], head: &mut Head, gap: usize) -> Result<Option<usize>, PortError> {
        let space = &mut head.space()[gap..];
        let mut iov = [
            libc::iovec { iov_base: vnet.as_mut_ptr().cast(), iov_len: vnet.len() },
            libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() },
            libc::iovec { iov_base: self.tails.place().cast(), iov_len: SLOT },
        ];
        // SAFETY: all-zero bytes are a valid msghdr: no address, no data, no control.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = iov.as_mut_ptr();
        message.msg_iovlen = iov.len() as _;
        // Once more for each of: an interrupted call, an error that waited from the interface's going down.
        for _ in 0..3 {
            // SAFETY: the three ranges are writable and ours alone: the header on the caller's stack, the
            // head's space, and SLOT bytes of the pool that no segment of this burst names.
            let n = unsafe {
                libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_TRUNC)
            };
            if let Ok(n) = usize::try_from(n) {
                return Ok(Some(n));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENETDOWN) => self.look()?,
                Some(libc::EAGAIN | libc::EINVAL | libc::ENOMEM | libc::ENOBUFS) => return Ok(None),
                _ => return Err(PortError::Io { what: "receiving from the interface", source: error }),
            }
        }
        Ok(None)
    }

    /// Asks the kernel whether the interface is still there.
    #[cold]
    fn look(&mut self) -> Result<(), PortError> {
        // From here on it is looked for again and again, until frames come.
        self.down = true;
        match link::name_of(self.fd.as_raw_fd(), self.index) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(PortError::Gone("the interface was removed")),
            Err(source) => Err(PortError::Io { what: "looking for the interface", source }),
        }
    }

    /// Takes the error that may wait at the socket, and looks for the interface if there is one, or was one:
    /// the kernel tells of the going down only, of a removal that follows it not again.
    #[cold]
    fn check(&mut self) -> Result<(), PortError> {
        let error = socket::pending_error(&self.fd);
        let error =
            error.map_err(|source| PortError::Io { what: "asking the interface's socket", source })?;
        if error != 0 || self.down {
            self.look()?;
        }
        Ok(())
    }
}

/// Positions in the frame move when a tag is put back in front of them. The sums cannot overflow in what the
/// kernel says, and what they give is checked like any other header.
fn behind_tag(mut vnet: VnetHeader) -> VnetHeader {
    if vnet.flags & F_NEEDS_CSUM != 0 {
        vnet.csum_start = vnet.csum_start.wrapping_add(TAG_LEN as u16);
    }
    if vnet.gso_type != GSO_NONE {
        vnet.hdr_len = vnet.hdr_len.wrapping_add(TAG_LEN as u16);
    }
    vnet
}

impl RxQueue for NetdevRx {
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = OffloadSet::ALL;
        self.tails.reset();
        for _ in 0..BURST {
            if burst.room() == 0 {
                break;
            }
            let Some(slot) = self.ring.get(self.next) else { break };
            if slot.captured == slot.frame_len {
                self.take_slot(&slot, burst);
            } else if slot.status & libc::TP_STATUS_COPY == 0 {
                // Too long for a slot, and the socket's queue was full.
                self.lost.fetch_add(1, Ordering::Relaxed);
            } else if self.tails.is_full() {
                break;
            } else {
                self.take_queued(&slot, burst, drops)?;
            }
            self.next = self.ring.after(self.next);
        }
        if burst.is_empty() {
            self.idle += 1;
            if self.idle >= LOOK_EVERY {
                self.idle = 0;
                self.check()?;
            }
        } else {
            self.down = false;
        }
        Ok(burst.len())
    }

    fn release(&mut self) {
        while self.first != self.next {
            self.ring.give_back(self.first);
            self.first = self.ring.after(self.first);
        }
    }

    fn wake_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Looks at the next slot. The kernel wakes the socket's pollers after each slot that it fills, so a frame
    /// is either seen here or is an edge yet to come. An edge that was consumed while the queue was not armed
    /// belongs to a slot that is seen here.
    fn arm(&mut self) -> Result<Armed, PortError> {
        if self.ring.is_filled(self.next) {
            return Ok(Armed::Work);
        }
        let mut fds = [PollFd::new(&*self.fd, PollFlags::empty())];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) if !self.down => {}
            Ok(_) => self.check()?,
            Err(rustix::io::Errno::INTR) => return Ok(Armed::Work),
            Err(e) => return Err(PortError::Io { what: "polling the interface", source: e.into() }),
        }
        Ok(if self.ring.is_filled(self.next) { Armed::Work } else { Armed::Sleeping })
    }

    fn disarm(&mut self) {
        // Readiness is the ring's own; there is nothing to drain, and edges in between wake for nothing.
    }
}
