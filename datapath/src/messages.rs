//! The frames of a bucket as messages of one `sendmmsg(2)`.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, OwnedFd};

use switch_core::verdict::BURST;

use crate::burst::FRAME_SEGMENTS;
use crate::memory::Segment;

/// Pieces that one system call takes: a bucket of frames in a few pieces, and always one frame of the most.
const PIECES: usize = 1 + FRAME_SEGMENTS + 2 * BURST;

/// What to do about a message that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Try it once more.
    Again,
    /// Go on with the next.
    Next,
    /// Leave the rest.
    Stop,
}

/// The messages of one system call. On the stack, and only written as far as it is used.
pub(crate) struct Batch {
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
    pub(crate) fn new() -> Self {
        Self {
            iov: [const { MaybeUninit::uninit() }; PIECES],
            messages: [const { MaybeUninit::uninit() }; BURST],
            frames: [0; BURST],
            begins: [0; BURST],
            pieces: 0,
            len: 0,
        }
    }

    /// Whether a frame with this tail can be added.
    #[inline]
    pub(crate) fn fits(&self, tail: &[Segment]) -> bool {
        self.len < BURST && self.pieces + 1 + tail.len() <= PIECES
    }

    /// Adds frame `i` of the bucket, which fits: `first`, and its tail. `first` must stay where it is until the batch is
    /// sent: it is part of a head of the bucket.
    #[inline]
    pub(crate) fn add(&mut self, i: usize, first: &[u8], tail: &[Segment]) {
        let pieces = &mut self.iov[self.pieces..][..1 + tail.len()];
        pieces[0].write(libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() });
        for (slot, segment) in pieces[1..].iter_mut().zip(tail) {
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

    /// Sends what was added. Of a message that is refused, `refused` is told the kernel's number, its frame as a bit of the
    /// bucket's mask, and the mask of it and all that follow.
    ///
    /// # Safety
    /// Every `first` that was added is still where it was, and no burst was released since.
    #[inline]
    pub(crate) unsafe fn send(&mut self, fd: &OwnedFd, mut refused: impl FnMut(i32, u64, u64) -> Refused) {
        let iov = self.iov.as_mut_ptr().cast::<libc::iovec>();
        for (message, &begin) in self.messages.iter_mut().zip(&self.begins).take(self.len) {
            // SAFETY: the first `len` messages were written by `add`, and their pieces begin within the array.
            unsafe { message.assume_init_mut().msg_hdr.msg_iov = iov.add(usize::from(begin)) };
        }
        let mut sent = 0;
        while sent < self.len {
            let rest = &mut self.messages[sent..self.len];
            // SAFETY: the messages are written, and name the pieces in `self.iov`, all written. Those name heads, which the
            // caller has kept, and segments that stay mapped until the burst is released (`Segment::new`). The kernel
            // reads them only, and answers EFAULT for what cannot be read.
            let n = unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    rest.as_mut_ptr().cast(),
                    rest.len() as u32,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            if let Ok(n @ 1..) = usize::try_from(n) {
                sent += n;
                continue;
            }
            // The first of the rest was refused; those before it went out.
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            if error == libc::EINTR {
                continue;
            }
            let rest = self.frames[sent..self.len].iter().fold(0, |bits, &i| bits | 1 << i);
            match refused(error, 1 << self.frames[sent], rest) {
                Refused::Again => {}
                Refused::Next => sent += 1,
                Refused::Stop => return,
            }
        }
    }
}
