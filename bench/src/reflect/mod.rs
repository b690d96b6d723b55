//! A bare reflector: the least that a switch of two vhost-user ports can do. What one port sends goes to the other, one
//! copy each, in bursts, without a look at it; nothing is learned, checked, notified or dropped. A generator that gets
//! no further with this is itself the limit.
//!
//! It trusts its front-end, and is no model for anything: it serves one benchmark. A session thread for each port handles
//! messages; one worker moves frames. Both take the port's lock, the worker for one burst at a time.

mod ring;
mod session;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use ring::Port;

/// The verb by which this program starts itself as the reflector.
pub(crate) const VERB: &str = "reflect";

/// The reflector's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The sockets to listen on.
    #[arg(num_args = 2)]
    sockets: Vec<PathBuf>,
}

/// A port that the worker and its session share.
#[derive(Debug, Default)]
struct Shared {
    port: Mutex<Port>,
    /// Messages that wait for the lock: the worker, which takes it again at once, stands back for them.
    waiting: AtomicUsize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn message<T>(&self, change: impl FnOnce(&mut Port) -> T) -> T {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let result = change(&mut self.lock());
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        result
    }
}

/// The reflector's process: prints `ready`, and moves frames until it is killed.
///
/// # Errors
/// A socket cannot be made, or a front-end breaks the rules of a ring.
pub(crate) fn run(options: &Options) -> Result<()> {
    let [first, second] = options.sockets.as_slice() else { bail!("two sockets are needed") };
    let ports: [Arc<Shared>; 2] = Default::default();
    for (path, shared) in [first, second].into_iter().zip(&ports) {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let shared = Arc::clone(shared);
        std::thread::spawn(move || session::serve(&listener, &shared));
    }
    println!("ready");
    loop {
        if ports.iter().any(|shared| shared.waiting.load(Ordering::Acquire) > 0) {
            std::thread::yield_now();
            continue;
        }
        let (mut a, mut b) = (ports[0].lock(), ports[1].lock());
        if !(a.runs() && b.runs()) {
            drop((a, b));
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        ring::carry(&mut a, &mut b)?;
        ring::carry(&mut b, &mut a)?;
    }
}
