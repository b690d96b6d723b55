//! The harness of the end-to-end tests: it starts the real daemon, real guests, real network namespaces and other
//! programs' virtio front-ends, and takes all of them away again.
//!
//! Everything that is started is owned by a value whose `Drop` ends it, so a failing test leaves nothing behind. What a
//! program logged is kept until the test's verdict is known ([`logs`]), and printed with a failure.
//!
//! A test declares what it needs ([`Need`]); one whose needs are unmet is reported as ignored, with the reason, or fails
//! where everything is required ([`Suite`]).
#![forbid(unsafe_code)]

mod counters;
mod daemon;
mod dhcp;
mod flow;
mod guest;
pub mod logs;
mod needs;
mod netns;
pub mod ordinary;
pub mod process;
mod program;
mod sniffer;
mod suite;
mod sweep;
mod testpmd;

pub use counters::{PortCounters, conservation, counters};
pub use daemon::{Daemon, DaemonOptions, Output, binary};
pub use dhcp::{DhcpClient, DhcpProgram, RENEWAL_S, Told};
pub use flow::Flow;
pub use guest::{Guest, GuestOptions, Role};
pub use needs::Need;
pub use netns::Netns;
pub use program::Program;
pub use sniffer::Sniffer;
pub use suite::Suite;
pub use testpmd::{RingLayout, Testpmd};

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The workspace's root directory.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The directory that cargo builds into, found from the running test's own place in it (`target/debug/deps/outer-…`).
pub fn build_dir() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let Some(dir) = me.ancestors().find(|dir| dir.join("deps").is_dir()) else {
        bail!("{} is not in a directory that cargo builds into", me.display());
    };
    Ok(dir.to_path_buf())
}

/// Waits until `condition` holds, asking 20 times a second.
///
/// # Errors
/// The last state that `condition` told, when `limit` has passed; an error of `condition` ends the wait at once.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition()? {
            Ok(value) => return Ok(value),
            Err(state) if Instant::now() >= deadline => bail!("{what}: not within {limit:?}: {state}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
