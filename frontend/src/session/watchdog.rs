//! Bounds in time for the `vhost` crate's front-end.
//!
//! Its socket layer retries a read that ran into the socket's timeout, so that no socket option bounds it. A thread of
//! the whole process shuts a socket down when a message's deadline passes: the read ends, the session is over. That is
//! right for a session whose peer stopped answering: half a reply cannot be resynchronised.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

struct Entry {
    stream: Arc<UnixStream>,
    fired: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<(Instant, u64), Entry>,
    next: u64,
    running: bool,
}

#[derive(Default)]
struct Watchdog {
    state: Mutex<State>,
    changed: Condvar,
}

static WATCHDOG: LazyLock<Watchdog> = LazyLock::new(Watchdog::default);

/// A deadline that is watched until this is dropped.
pub(super) struct Guard {
    key: (Instant, u64),
    fired: Arc<AtomicBool>,
}

impl Guard {
    /// Whether the deadline passed and the socket was shut down.
    pub(super) fn fired(&self) -> bool {
        self.fired.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock().entries.remove(&self.key);
    }
}

fn lock() -> MutexGuard<'static, State> {
    WATCHDOG.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shuts `stream` down unless the guard is dropped within `timeout`.
pub(super) fn watch(stream: &Arc<UnixStream>, timeout: Duration) -> Guard {
    let fired = Arc::new(AtomicBool::new(false));
    let mut state = lock();
    state.next += 1;
    let key = (Instant::now() + timeout, state.next);
    state.entries.insert(key, Entry { stream: Arc::clone(stream), fired: Arc::clone(&fired) });
    if !state.running {
        let spawned = std::thread::Builder::new().name("vhost-watchdog".into()).spawn(run);
        state.running = spawned.is_ok();
    }
    WATCHDOG.changed.notify_one();
    Guard { key, fired }
}

fn run() {
    let mut state = lock();
    loop {
        let now = Instant::now();
        while let Some(first) = state.entries.first_entry().filter(|e| e.key().0 <= now) {
            let entry = first.remove();
            entry.fired.store(true, Ordering::Release);
            let _ = entry.stream.shutdown(Shutdown::Both);
        }
        let wait = state.entries.keys().next().map_or(Duration::from_secs(3600), |(at, _)| *at - now);
        state = WATCHDOG.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}
