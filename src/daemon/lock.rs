//! The state directory, held by one daemon at a time.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// Holds the state directory until it is dropped, or until the process ends in whatever way.
pub(super) struct StateDir {
    _lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing, for its owner alone, and takes it. Errors: it cannot be made
    /// or written to, or another daemon has it.
    pub(super) fn take(dir: &Path) -> anyhow::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
            format!("making the state directory {}: choose another with --state-dir", dir.display())
        })?;
        let path = dir.join("lock");
        let lock =
            File::options().create(true).write(true).truncate(false).open(&path).with_context(|| {
                format!("opening {}: choose another directory with --state-dir", path.display())
            })?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!(
                    "the state directory {} is another daemon's: stop that one, or choose another with --state-dir",
                    dir.display()
                )
            }
            Err(e) => Err(e).with_context(|| format!("locking {}", path.display())),
        }
    }
}
