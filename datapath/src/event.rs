//! Eventfds: how threads, and guests, wake each other.
//!
//! A descriptor may come from a peer, which keeps its end and can do to the shared eventfd what it
//! likes: fill the counter, so that a write would block; drain it, so that a read would; change its flags.
//! Nothing here ever blocks: reads carry `RWF_NOWAIT`, writes are made only when poll says that they
//! can be, on a description that was set to `O_NONBLOCK` besides (eventfd takes no `RWF_NOWAIT` for writing).

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, ReadWriteFlags};

/// An eventfd.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// One of our own. Errors: too many descriptors are open.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// One that a peer sent. Refused if it is anything but an eventfd: of those it is known what reading
    /// and writing them can do.
    pub fn from_peer(file: File) -> io::Result<Self> {
        let fd = OwnedFd::from(file);
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if link.as_bytes() != b"anon_inode:[eventfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not an eventfd"));
        }
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// Adds one to the counter, unless it is full: then whoever reads it is awake already, or does not want to be.
    pub fn signal(&self) {
        let mut poll = [PollFd::new(&self.0, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(1))
            && poll[0].revents().contains(PollFlags::OUT)
        {
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }
    }

    /// Takes what is in the counter.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        let mut into = [IoSliceMut::new(&mut count)];
        let read = rustix::io::preadv2(&self.0, &mut into, u64::MAX, ReadWriteFlags::NOWAIT);
        if let Err(Errno::OPNOTSUPP | Errno::NOSYS) = read {
            // Kernels before 5.8: the description is set to O_NONBLOCK.
            let _ = rustix::io::read(&self.0, &mut count);
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer's end and ours, of one eventfd that blocks.
    fn shared() -> (OwnedFd, Event) {
        let theirs = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ours = Event::from_peer(File::from(theirs.try_clone().unwrap())).unwrap();
        // What a hostile front-end does after we looked.
        let flags = rustix::fs::fcntl_getfl(&theirs).unwrap();
        rustix::fs::fcntl_setfl(&theirs, flags - OFlags::NONBLOCK).unwrap();
        (theirs, ours)
    }

    #[test]
    fn a_call_whose_counter_is_full_does_not_block_us() {
        let (theirs, ours) = shared();
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        ours.signal();
        ours.signal();
        let mut count = [0; 8];
        rustix::io::read(&theirs, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
        ours.signal();
        rustix::io::read(&theirs, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn a_kick_that_was_drained_by_its_peer_does_not_block_us() {
        let (theirs, ours) = shared();
        ours.drain();
        rustix::io::write(&theirs, &5u64.to_ne_bytes()).unwrap();
        ours.drain();
        ours.drain();
    }

    #[test]
    fn only_eventfds_are_taken_from_a_peer() {
        let (pipe, _other) = std::io::pipe().unwrap();
        assert!(Event::from_peer(File::from(OwnedFd::from(pipe))).is_err());
        assert!(Event::from_peer(File::open("/dev/null").unwrap()).is_err());
        let memory = rustix::fs::memfd_create("[eventfd]", rustix::fs::MemfdFlags::empty()).unwrap();
        assert!(Event::from_peer(File::from(memory)).is_err());
    }
}
