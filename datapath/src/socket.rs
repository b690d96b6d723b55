//! What a port of the host's own sockets needs beyond safe wrappers: frames' payload sent from where it is, and what
//! Linux alone knows of a socket.
//!
//! No call here blocks, whatever the socket's own mode, and none raises `SIGPIPE`.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;
use switch_core::Head;

use crate::memory::Segment;

/// Pieces that one call sends, at most. The kernel takes 1,024 (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 512;

/// Payload on its way to a socket: pieces of frames, in their order.
///
/// The pieces of a bucket may be gathered and sent as long as the bucket is borrowed, which the lifetime says.
#[derive(Debug)]
pub struct Gather<'a> {
    pieces: Vec<Segment>,
    bytes: usize,
    bucket: std::marker::PhantomData<&'a ()>,
}

/// The memory of a [`Gather`], kept from bucket to bucket so that none allocates.
#[derive(Debug, Default)]
pub struct GatherRoom(Vec<Segment>);

// SAFETY: the list is empty between two uses; `Gather::end` clears it.
unsafe impl Send for GatherRoom {}

impl<'a> Gather<'a> {
    /// Nothing yet, in the memory of `room`.
    pub fn begin(room: &mut GatherRoom) -> Self {
        let mut pieces = std::mem::take(&mut room.0);
        pieces.clear();
        pieces.reserve(PIECES_MAX);
        Self { pieces, bytes: 0, bucket: std::marker::PhantomData }
    }

    /// Gives the memory back.
    pub fn end(mut self, room: &mut GatherRoom) {
        self.pieces.clear();
        room.0 = self.pieces;
    }

    /// Forgets the pieces.
    #[inline]
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Bytes gathered.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if nothing is gathered.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// True if one more frame with this tail can be added.
    #[inline]
    pub fn fits(&self, tail: &[Segment]) -> bool {
        self.pieces.len() + 1 + tail.len() <= PIECES_MAX
    }

    /// Adds the bytes `from .. from + len` of a frame, `from` counted from its first byte; what the frame does not have, and
    /// what does not [fit](Gather::fits), is left out.
    #[inline]
    pub fn add(&mut self, head: &'a Head, tail: &'a [Segment], from: usize, len: usize) {
        if !self.fits(tail) {
            return;
        }
        let mut left = len;
        let mut offset = from;
        let bytes = head.bytes();
        if let Some(own) = bytes.get(offset..).filter(|own| !own.is_empty()) {
            let n = own.len().min(left);
            // SAFETY: the head outlives `'a`, while which nobody can write to it; no piece is read after that.
            self.pieces.push(unsafe { Segment::new(own.as_ptr(), n as u32) });
            left -= n;
            offset = 0;
        } else {
            offset -= bytes.len();
        }
        for segment in tail {
            if left == 0 {
                break;
            }
            if offset >= segment.len() {
                offset -= segment.len();
                continue;
            }
            let part = segment.part(offset, left);
            offset = 0;
            left -= part.len();
            self.pieces.push(part);
        }
        self.bytes += len - left;
    }

    /// Writes the pieces as system calls take them; how many there are.
    pub(crate) fn vectors(&self, iov: &mut [MaybeUninit<libc::iovec>; PIECES_MAX]) -> usize {
        let mut n = 0;
        for (slot, piece) in iov.iter_mut().zip(&self.pieces) {
            slot.write(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
            n += 1;
        }
        n
    }

    /// Sends the pieces as far as the socket takes them; how many bytes it took. `more` says that others follow at once
    /// (`MSG_MORE`).
    ///
    /// # Errors
    /// What `sendmsg(2)` says; `EAGAIN` if the socket takes nothing now, `EFAULT` if the memory that a piece lies in
    /// went away.
    pub fn send(&self, fd: BorrowedFd<'_>, more: bool) -> Result<usize, Errno> {
        let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; PIECES_MAX];
        let n = self.vectors(&mut iov);
        // SAFETY: all fields of a msghdr may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.as_mut_ptr().cast();
        message.msg_iovlen = n as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
        // SAFETY: the first `n` entries are written. They name heads that are borrowed for `'a` and segments that stay
        // mapped until the burst is released (`Segment::new`); the kernel only reads them, and answers EFAULT for
        // what cannot be read.
        retried(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
    }
}

/// Calls again what a signal interrupted.
pub(crate) fn retried(mut call: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(n);
        }
        match last_errno() {
            Errno::INTR => {}
            error => return Err(error),
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Takes up to `len` bytes of a TCP socket's stream out of it without reading them; how many there were.
///
/// # Errors
/// What `recv(2)` says; `EAGAIN` if there is nothing.
pub fn discard(fd: BorrowedFd<'_>, len: usize) -> Result<usize, Errno> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC a TCP socket counts bytes and writes none (tcp(7)), so the address is not used.
    retried(|| unsafe { libc::recv(fd.as_raw_fd(), ptr::null_mut(), len, flags) })
}

/// Copies bytes of a stream that stay in it: those after the first `skip`, which are copied, too, into `scratch`, again and
/// again; how many there are after them. For kernels without [`set_peek_offset`].
///
/// # Errors
/// What `recvmsg(2)` says; `EAGAIN` if there is nothing at all.
pub fn peek_behind(
    fd: BorrowedFd<'_>,
    skip: usize,
    scratch: &mut [u8],
    to: &mut [MaybeUninit<u8>],
) -> Result<usize, Errno> {
    let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; PIECES_MAX];
    let (mut n, mut left) = (0, skip);
    while left > 0 && !scratch.is_empty() && n < PIECES_MAX - 1 {
        let len = left.min(scratch.len());
        iov[n].write(libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: len });
        (n, left) = (n + 1, left - len);
    }
    if left > 0 {
        return Err(Errno::NOBUFS);
    }
    iov[n].write(libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() });
    // SAFETY: all fields of a msghdr may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.as_mut_ptr().cast();
    message.msg_iovlen = (n + 1) as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the first `n + 1` entries are written. They name the two slices, which are borrowed for writing; that the
    // kernel writes to one of them several times is no matter.
    let all = retried(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    Ok(all.saturating_sub(skip))
}

/// Sets where the next `MSG_PEEK` begins, in bytes from the first that was not taken; from then on each peek moves it
/// forward, and what is taken moves it back (`SO_PEEK_OFF`, TCP since Linux 6.9).
///
/// # Errors
/// `EOPNOTSUPP` on an older kernel.
pub fn set_peek_offset(fd: BorrowedFd<'_>, offset: u32) -> Result<(), Errno> {
    let value = i32::try_from(offset).unwrap_or(i32::MAX);
    set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value)
}

pub(crate) fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: the option's value is one int, at a place of our own.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(last_errno()) } else { Ok(()) }
}

/// What a socket's send buffer holds, and what it may hold, in the kernel's own count, overhead included
/// (`SO_MEMINFO`): the kernel takes more to send while the first is below the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendSpace {
    /// Bytes that are queued.
    pub queued: u32,
    /// Bytes that may be queued; grows as the connection gets faster.
    pub limit: u32,
}

impl SendSpace {
    /// Bytes that are free.
    #[inline]
    pub const fn free(self) -> u32 {
        self.limit.saturating_sub(self.queued)
    }
}

/// See [`SendSpace`].
///
/// # Errors
/// None on a socket.
pub fn send_space(fd: BorrowedFd<'_>) -> Result<SendSpace, Errno> {
    // SK_MEMINFO_* of linux/sock_diag.h.
    const SNDBUF: usize = 3;
    const WMEM_QUEUED: usize = 5;
    let mut info = [0u32; 16];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the array's size.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done < 0 {
        return Err(last_errno());
    }
    Ok(SendSpace { queued: info[WMEM_QUEUED], limit: info[SNDBUF] })
}
