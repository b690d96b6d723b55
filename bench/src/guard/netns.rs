//! Network namespaces of a measurement's own. What is in one goes with it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::job::{Line, run};

const LIMIT: Duration = Duration::from_secs(20);

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// Makes one, with a name that no other process and no earlier call has.
    ///
    /// # Errors
    /// Not permitted.
    pub(crate) fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-bench-{}-{number}-{role}", std::process::id());
        run(&Line::new("ip").words("netns add").arg(&name), LIMIT)?;
        let netns = Netns { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip WORDS` in it.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        run(&Line::new("ip").arg("-n").arg(&self.name).words(words), LIMIT).map(drop)
    }

    /// Takes interface `interface` out of `from`, gives it `address` (with prefix length) and sets it up.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn adopt(&self, from: &Netns, interface: &str, address: &str) -> Result<()> {
        from.ip(&format!("link set {interface} netns {}", self.name))?;
        self.ip(&format!("address add {address} dev {interface}"))?;
        self.ip(&format!("link set {interface} up"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Not `run`: an interrupted benchmark cleans up too.
        let removed = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("bench: cannot remove the network namespace {}", self.name);
        }
    }
}
