//! What ports whose other end comes and goes by a Unix socket have in common: what they are doing, as others see it
//! ([`Life`]), and the wait for the next peer ([`Peers`]).
//!
//! Such a port has a thread of its own, which is the only one to wait here, and the only one to call `on_change`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::event::Event;
use crate::unix::{self, Link, Listener};

/// Waits between attempts to connect, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Who listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// We do; the peer connects.
    #[default]
    Server,
    /// The peer does; we connect, and connect again.
    Client,
}

/// What a port is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Nobody is connected, or who is there is not ready.
    Waiting,
    /// The peer is there.
    Up,
    /// The last session ended because of this, or something in this one did.
    Error(String),
    /// The port is being removed.
    Down,
}

/// Told of each change of state, on the port's thread, with no lock held. It may ask the port for its state, but not
/// drop it: the drop waits for that thread.
pub type OnChange = Arc<dyn Fn(PortState) + Send + Sync>;

/// What a port is doing, and how its thread is told to look up or to end.
pub struct Life {
    wake: Arc<Event>,
    stopping: AtomicBool,
    state: Mutex<PortState>,
    on_change: OnChange,
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Life {
    /// A port that waits, and whose thread `wake` wakes.
    pub fn new(wake: Arc<Event>, on_change: OnChange) -> Self {
        let (stopping, state) = (AtomicBool::new(false), Mutex::new(PortState::Waiting));
        Self { wake, stopping, state, on_change }
    }

    fn lock(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What wakes the port's thread.
    pub fn wake(&self) -> &Arc<Event> {
        &self.wake
    }

    /// What the port is doing.
    pub fn state(&self) -> PortState {
        self.lock().clone()
    }

    /// Records what the port is doing, and tells it if it is something else than before.
    pub fn set_state(&self, state: PortState) {
        {
            let mut now = self.lock();
            if *now == state {
                return;
            }
            *now = state.clone();
        }
        (self.on_change)(state);
    }

    /// Whether the port's thread is to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends the port's thread.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// Waits until one of `fds` has one of the conditions named with it, somebody wakes the thread, or `time` has
    /// passed. What each descriptor has: nothing, if it was another that ended the wait.
    ///
    /// # Errors
    /// The kernel has no memory to wait with.
    pub fn wait<const N: usize>(
        &self,
        fds: [(BorrowedFd<'_>, PollFlags); N],
        time: Option<Duration>,
    ) -> io::Result<[PollFlags; N]> {
        let time = time.and_then(|t| Timespec::try_from(t).ok());
        let wake = PollFd::new(&*self.wake, PollFlags::IN);
        let others = fds.iter().map(|(fd, what)| PollFd::from_borrowed_fd(*fd, *what));
        let mut all: Vec<PollFd<'_>> = std::iter::once(wake).chain(others).collect();
        match rustix::event::poll(&mut all, time.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok([PollFlags::empty(); N]),
            Err(e) => return Err(e.into()),
        }
        if !all[0].revents().is_empty() {
            self.wake.drain();
        }
        Ok(std::array::from_fn(|i| all[i + 1].revents()))
    }

    /// Waits for `time`, or until somebody wakes the thread.
    pub fn pause(&self, time: Duration) {
        let _ = self.wait([], Some(time));
    }
}

/// The peers of a port, one after the other.
#[derive(Debug)]
pub struct Peers {
    link: Link,
    retry: Duration,
    /// The last attempt to connect failed by what waiting does not mend.
    denied: bool,
}

impl Peers {
    /// Peers that come by `link`.
    pub fn new(link: Link) -> Self {
        Self { link, retry: RETRY_MIN, denied: false }
    }

    /// The socket that peers connect to, if we listen.
    pub fn listener(&self) -> Option<&Listener> {
        match &self.link {
            Link::Server(listener) => Some(listener),
            Link::Client(_) => None,
        }
    }

    /// The next peer, or `None` when there is something else to look at: the thread was woken, or an attempt failed.
    /// Why connecting fails, if it is not that nobody is there, becomes the port's state.
    pub fn next(&mut self, life: &Life) -> Option<UnixStream> {
        match &self.link {
            Link::Server(listener) => {
                life.wait([(listener.as_fd(), PollFlags::IN)], None).ok()?;
                accept(listener, life)
            }
            Link::Client(path) => match unix::connect(path) {
                Ok(stream) => {
                    self.denied = false;
                    Some(stream)
                }
                Err(e) => {
                    self.denied = told(path, &e, self.denied, life);
                    self.back_off(life);
                    None
                }
            },
        }
    }

    /// A session that began at `began` has ended: who connects waits before the next, the longer the shorter they are.
    pub fn ended(&mut self, began: Instant, life: &Life) {
        if matches!(self.link, Link::Client(_)) {
            if began.elapsed() > RETRY_MAX {
                self.retry = RETRY_MIN;
            }
            self.back_off(life);
        }
    }

    fn back_off(&mut self, life: &Life) {
        life.pause(self.retry);
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }
}

/// A peer that connects to us, if one does. After a failure, which is one of the whole process, nothing is tried for a
/// moment.
pub(crate) fn accept(listener: &Listener, life: &Life) -> Option<UnixStream> {
    match listener.accept() {
        Ok(stream) => stream,
        Err(e) => {
            tracing::warn!(error = %e, "cannot accept a peer");
            life.pause(RETRY_MIN);
            None
        }
    }
}

/// Tells why `path` could not be connected to, if it was not told before; whether it is for a person to look at.
fn told(path: &Path, e: &io::Error, before: bool, life: &Life) -> bool {
    tracing::debug!(path = %path.display(), error = %e, "cannot connect");
    // A peer that is not there will come. Anything else is for a person to look at.
    let absent = matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    );
    match (absent, before) {
        (false, false) => {
            life.set_state(PortState::Error(format!("cannot connect to {}: {e}", path.display())));
        }
        (true, true) => life.set_state(PortState::Waiting),
        _ => {}
    }
    !absent
}
