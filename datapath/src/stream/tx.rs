//! A stream port's transmit side: frames for the peer, as much of a bucket as fits in one system call.
//!
//! A stream socket takes as many bytes as it has room for, which may end within a frame. What is left of that frame is
//! copied and kept, at most one frame for each port, and goes first from then on: with the next bucket, or when the
//! port's thread finds the socket writable. What comes behind it is dropped as [`TxReport::full`], like at any port that
//! is full; nothing is tried twice.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::SendFlags;
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;

use super::connection::Connection;
use super::frames::PREFIX;
use crate::burst::{Bucket, FRAME_SEGMENTS, Frame};
use crate::memory::read_tail;
use crate::port::{PortError, TxPort, TxReport};

/// Pieces that one system call takes: what is left of a frame, a bucket of frames in a few pieces, and always one frame
/// of the most. The kernel takes 1,024.
const PIECES: usize = 1 + FRAME_SEGMENTS + 2 * BURST;

/// The transmit side of a stream port, for all its connections. Workers share it by a lock that each holds for one bucket.
#[derive(Debug, Default)]
pub struct StreamTx {
    /// Somebody is there. For [`TxPort::offloads`], which takes no lock.
    up: AtomicBool,
    side: Mutex<Side>,
}

#[derive(Debug, Default)]
struct Side {
    connection: Option<Arc<Connection>>,
    /// What is left of a frame of which the peer has the beginning.
    rest: Vec<u8>,
}

impl StreamTx {
    fn lock(&self) -> MutexGuard<'_, Side> {
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another peer, or nobody.
    pub(super) fn set(&self, connection: Option<Arc<Connection>>) {
        let mut side = self.lock();
        self.up.store(connection.is_some(), Ordering::Relaxed);
        *side = Side { connection, rest: Vec::new() };
    }

    /// Writes what is left of a frame, if anything is; true if something still is.
    pub(super) fn flush(&self) -> bool {
        let side = &mut *self.lock();
        let Some(connection) = &side.connection else { return false };
        if side.rest.is_empty() {
            return false;
        }
        match rustix::net::send(connection.fd(), &side.rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => drop(side.rest.drain(..n)),
            Err(e) => failed(connection, e.raw_os_error()),
        }
        !side.rest.is_empty()
    }

    /// Whether something is left of a frame.
    pub(super) fn has_rest(&self) -> bool {
        !self.lock().rest.is_empty()
    }
}

impl TxPort for StreamTx {
    fn offloads(&self) -> OffloadSet {
        // The protocol has no place for what a frame would ask of its receiver; and nothing is worth completing for nobody.
        if self.up.load(Ordering::Relaxed) { OffloadSet::NONE } else { OffloadSet::ALL }
    }

    /// One `sendmsg(2)` for the bucket, or more when it has very many pieces.
    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let side = &mut *self.lock();
        let Some(connection) = side.connection.as_ref().filter(|c| c.end().is_none()) else {
            return Ok(TxReport::all_down(frames.len()));
        };
        let fd = connection.fd();
        let mut report = TxReport::default();
        let mut next = 0;
        while next < frames.len() {
            let mut batch = Batch::new(&side.rest);
            while next < frames.len() {
                let frame = frames.frame(next);
                if !frame.head.offload.needs_nothing() {
                    report.error |= 1 << next;
                } else if batch.fits(&frame) {
                    batch.add(next, frame);
                } else {
                    break;
                }
                next += 1;
            }
            if batch.len == 0 {
                break;
            }
            // The part of the bucket that nobody has tried yet shares the fate of what could not be sent.
            let untried = TxReport::all(frames.len()) & !TxReport::all(next);
            match batch.send(fd) {
                Ok(sent) if sent == batch.bytes => side.rest.clear(),
                Ok(sent) => {
                    let had_rest = !side.rest.is_empty();
                    report.full |= keep(sent, batch.members(), frames, &mut side.rest) | untried;
                    if !had_rest && !side.rest.is_empty() {
                        connection.wake();
                    }
                    break;
                }
                Err(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    report.full |= batch.mask() | untried;
                    break;
                }
                // The memory that a tail lies in went away. All of a bucket is one sender's.
                Err(libc::EFAULT) => {
                    report.error |= batch.mask() | untried;
                    break;
                }
                Err(error) => {
                    failed(connection, error);
                    report.down |= batch.mask() | untried;
                    break;
                }
            }
        }
        Ok(report)
    }
}

/// A send failed.
#[cold]
fn failed(connection: &Connection, error: i32) {
    match error {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR => {}
        libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN => connection.finish(None),
        error => connection.finish(Some(format!("sending: {}", io::Error::from_raw_os_error(error)))),
    }
}

/// The first `sent` bytes of what was left and the frames `members` of the bucket were taken: keeps what is left of a
/// frame that was begun. The frames of which nothing was taken, as a mask of the bucket's.
#[cold]
fn keep(mut sent: usize, members: &[u8], frames: &mut Bucket<'_>, rest: &mut Vec<u8>) -> u64 {
    let before = rest.len().min(sent);
    rest.drain(..before);
    sent -= before;
    let mut left = 0;
    for &member in members {
        let member = usize::from(member);
        let Frame { head, tail } = frames.frame(member);
        let len = PREFIX + head.frame_len();
        if sent >= len {
            sent -= len;
        } else if sent > 0 {
            let first = head.with_prefix(prefix(head.frame_len()));
            rest.extend_from_slice(first.get(sent..).unwrap_or_default());
            let (skip, at) = (sent.saturating_sub(first.len()), rest.len());
            rest.resize(at + head.tail_len() - skip, 0);
            read_tail(tail, skip, &mut rest[at..]);
            sent = 0;
        } else {
            left |= 1 << member;
        }
    }
    left
}

/// The length that goes before a frame.
#[inline]
fn prefix(frame_len: usize) -> [u8; PREFIX] {
    // Frames have at most FRAME_MAX bytes.
    (frame_len as u32).to_be_bytes()
}

/// The pieces of one system call. On the stack, and only written as far as it is used.
struct Batch {
    iov: [MaybeUninit<libc::iovec>; PIECES],
    pieces: usize,
    bytes: usize,
    /// Which frames of the bucket it has.
    members: [u8; BURST],
    len: usize,
}

impl Batch {
    /// A batch that begins with what is left of a frame.
    #[inline]
    fn new(rest: &[u8]) -> Self {
        let mut this = Self {
            iov: [const { MaybeUninit::uninit() }; PIECES],
            pieces: 0,
            bytes: 0,
            members: [0; BURST],
            len: 0,
        };
        if !rest.is_empty() {
            this.push(rest.as_ptr(), rest.len());
        }
        this
    }

    #[inline]
    fn push(&mut self, at: *const u8, len: usize) {
        self.iov[self.pieces].write(libc::iovec { iov_base: at.cast_mut().cast(), iov_len: len });
        self.pieces += 1;
        self.bytes += len;
    }

    #[inline]
    fn fits(&self, frame: &Frame<'_>) -> bool {
        self.len < BURST && self.pieces + 1 + frame.tail.len() <= PIECES
    }

    /// Adds frame `i` of the bucket, which fits.
    #[inline]
    fn add(&mut self, i: usize, frame: Frame<'_>) {
        let first = frame.head.with_prefix(prefix(frame.head.frame_len()));
        self.push(first.as_ptr(), first.len());
        for segment in frame.tail {
            self.push(segment.as_ptr(), segment.len());
        }
        self.members[self.len] = i as u8;
        self.len += 1;
    }

    fn members(&self) -> &[u8] {
        &self.members[..self.len]
    }

    fn mask(&self) -> u64 {
        self.members().iter().fold(0, |mask, &i| mask | 1 << i)
    }

    /// How many bytes were taken; the error is the kernel's number.
    #[inline]
    fn send(&self, fd: &OwnedFd) -> Result<usize, i32> {
        // SAFETY: all-zero bytes are a valid msghdr: no address, no data, no control.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = self.iov.as_ptr().cast_mut().cast();
        message.msg_iovlen = self.pieces as _;
        loop {
            // SAFETY: the first `pieces` entries are written. They name what is left of a frame, which is under the
            // caller's lock, heads of the bucket, which is borrowed and not touched before this returns, and segments
            // that stay mapped until the burst is released (`Segment::new`). The kernel reads them only, and answers
            // EFAULT for what cannot be read.
            let n = unsafe {
                libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            match usize::try_from(n) {
                Ok(n) => return Ok(n),
                Err(_) => match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                    libc::EINTR => {}
                    error => return Err(error),
                },
            }
        }
    }
}
