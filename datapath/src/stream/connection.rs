//! One peer's connection, as its three users share it: the receive queue, the transmit side, the port's thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::event::Event;

/// Bytes that may wait for the peer: the kernel gives as much of it as an ordinary user may have (`net.core.wmem_max`),
/// and counts its own overhead as well.
const SEND_BUFFER: usize = 1 << 20;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    /// Set once, when it is over: `None` if the peer went, else why we ended it.
    end: OnceLock<Option<String>>,
    wake: Arc<Event>,
}

impl Connection {
    /// A connection; `wake` is signalled when it is over, or when something waits to be written.
    ///
    /// # Errors
    /// The descriptor's flags cannot be set.
    pub(crate) fn new(stream: UnixStream, wake: Arc<Event>) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let fd = OwnedFd::from(stream);
        // With less, more is dropped when the peer is slow.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        Ok(Self { fd, end: OnceLock::new(), wake })
    }

    /// It is over, for the first reason that anybody has.
    #[cold]
    pub(crate) fn finish(&self, why: Option<String>) {
        if self.end.set(why).is_ok() {
            self.wake.signal();
        }
    }

    /// Whether it is over, and why.
    #[inline]
    pub(crate) fn end(&self) -> Option<&Option<String>> {
        self.end.get()
    }

    /// Has the port's thread look at what waits to be written.
    #[cold]
    pub(crate) fn wake(&self) {
        self.wake.signal();
    }

    /// Whether the peer has closed its end, even if not all that it sent was received yet.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
