//! Notifications: eventfds that never block, and a wait on several of them that ends.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// An eventfd, non-blocking in both directions.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// A new eventfd of count 0.
    ///
    /// # Errors
    /// The system call's.
    pub fn new() -> Result<Self> {
        let flags = (rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC).bits();
        EventFd::new(flags as i32).map(Event).map_err(|e| Error::io("eventfd", e))
    }

    /// Adds one to the count. A count that is full already is as good as one more.
    #[inline]
    pub fn signal(&self) {
        let _ = self.0.write(1);
    }

    /// Sets the count to 0 and gives what it was.
    pub fn drain(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }

    pub(crate) fn inner(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the EventFd lives, which the borrow ensures.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Waits until one of `fds` is readable, closed or in error, or until `deadline`. Gives whether one is.
///
/// # Errors
/// The system call's; an interruption by a signal is not an error.
pub fn wait_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<bool> {
    let mut set: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut set, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("poll", e)),
        }
    }
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: d.subsec_nanos().into() }
}
