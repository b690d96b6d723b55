//! A bare reflector: the least that a switch of vhost-user ports can do. What one port sends goes to the other of its
//! pair, or to all others, one copy for each, in bursts, without a look at it; nothing is learned, checked or notified.
//! A generator that gets no further with this is itself the limit.
//!
//! It trusts its front-end, and is no model for anything: it serves benchmarks. A session thread for each port handles
//! messages; one worker moves frames. Both take the lock of all ports, the worker for one burst of each at a time.

mod port;
mod ring;
mod session;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use port::{Port, Scratch};

/// The verb by which this program starts itself as the reflector.
pub(crate) const VERB: &str = "reflect";

/// The reflector's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The sockets to listen on.
    #[arg(required = true)]
    sockets: Vec<PathBuf>,
    /// What the first port sends goes to all others; without it ports are pairs.
    #[arg(long)]
    broadcast: bool,
}

/// The ports, which the worker and the sessions share.
#[derive(Debug, Default)]
struct Shared {
    ports: Mutex<Vec<Port>>,
    /// Messages that wait for the lock: the worker, which takes it again at once, stands back for them.
    waiting: AtomicUsize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn message<T>(&self, index: usize, change: impl FnOnce(&mut Port) -> T) -> T {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let result = change(&mut self.lock()[index]);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        result
    }
}

/// The reflector's process: prints `ready`, and moves frames until it is killed.
///
/// # Errors
/// A socket cannot be made, or a front-end breaks the rules of a ring.
pub(crate) fn run(options: &Options) -> Result<()> {
    let count = options.sockets.len();
    ensure!(options.broadcast || count.is_multiple_of(2), "{count} ports are no pairs");
    let shared = Arc::new(Shared::default());
    shared.lock().resize_with(count, Port::default);
    for (index, path) in options.sockets.iter().enumerate() {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || session::serve(&listener, &shared, index));
    }
    println!("ready");
    let ways: Vec<(usize, Vec<usize>)> = if options.broadcast {
        vec![(0, (1..count).collect())]
    } else {
        (0..count).map(|port| (port, vec![port ^ 1])).collect()
    };
    let mut scratch = Scratch::default();
    loop {
        if shared.waiting.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
            continue;
        }
        let mut ports = shared.lock();
        if !ports.iter().all(Port::runs) {
            drop(ports);
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        for (from, to) in &ways {
            port::carry(&mut ports, *from, to, &mut scratch)?;
        }
    }
}

#[cfg(test)]
mod tests;
