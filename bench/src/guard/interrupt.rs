//! Ctrl-C as a flag that every wait of the benchmark looks at.
//!
//! Nothing is torn down in a signal handler: the wait that finds the flag returns an error, and the guards on the way
//! out stop and remove what was started. Owned by the main thread; one thread more waits for the signals.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// How long a wait sleeps before it looks again, short beside a measurement and long beside a scheduler's tick.
const STEP: Duration = Duration::from_millis(20);

/// Turns SIGINT, SIGTERM and SIGHUP into the flag.
///
/// # Errors
/// The signals cannot be waited for.
pub(crate) fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).context("cannot wait for signals")?);
    }
    drop(guard);
    std::thread::spawn(move || {
        for mut signal in signals {
            runtime.handle().spawn(async move {
                while signal.recv().await.is_some() {
                    REQUESTED.store(true, Ordering::Relaxed);
                }
            });
        }
        runtime.block_on(std::future::pending::<()>());
    });
    Ok(())
}

/// # Errors
/// Somebody asked the benchmark to end.
pub(crate) fn check() -> Result<()> {
    if REQUESTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Whether somebody asked the benchmark to end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Sleeps.
///
/// # Errors
/// Somebody asked the benchmark to end.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    let deadline = Instant::now() + duration;
    loop {
        check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(STEP));
    }
}
