//! The state directory, held by one daemon at a time.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// How often a lock may turn out to be a file that its last owner has just removed.
const TRIES: usize = 16;

/// Holds the state directory until it is dropped, or until the process ends in whatever way.
pub(super) struct StateDir {
    directory: PathBuf,
    /// Whether this daemon made the directory: then it removes it again if nothing is kept in it.
    made: bool,
    lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing, for its owner alone, and takes it. Errors: it cannot be made
    /// or written to, or another daemon has it.
    pub(super) fn take(directory: &Path) -> anyhow::Result<Self> {
        let made = !directory.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
            format!("making the state directory {}: choose another with --state-dir", directory.display())
        })?;
        let path = directory.join("lock");
        for _ in 0..TRIES {
            let lock =
                File::options().create(true).write(true).truncate(false).open(&path).with_context(|| {
                    format!("opening {}: choose another directory with --state-dir", path.display())
                })?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                    "the state directory {} is another daemon's: stop that one, or choose another with --state-dir",
                    directory.display()
                ),
                Err(e) => return Err(e).with_context(|| format!("locking {}", path.display())),
            }
            if is_at(&lock, &path) {
                return Ok(Self { directory: directory.to_owned(), made, lock });
            }
        }
        bail!(
            "the state directory {} changes hands all the time: is a daemon being restarted?",
            directory.display()
        )
    }
}

/// Whether the open file is the one of that path.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    file.metadata().ok().map(identity) == std::fs::symlink_metadata(path).ok().map(identity)
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Removed while it is locked, so that nobody can hold a file that is not there any more for the lock.
        let path = self.directory.join("lock");
        if is_at(&self.lock, &path) {
            let _ = std::fs::remove_file(path);
        }
        if self.made {
            // Fails if there is something in it, and then it is to stay.
            let _ = std::fs::remove_dir(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time_and_nothing_left_behind() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        let held = StateDir::take(&directory).unwrap();
        let refused = StateDir::take(&directory).err().unwrap().to_string();
        assert!(refused.contains("another daemon's"), "{refused}");
        drop(held);
        assert!(!directory.exists(), "an empty directory that it made goes with it");
        std::fs::create_dir(&directory).unwrap();
        drop(StateDir::take(&directory).unwrap());
        assert!(directory.exists(), "a directory that was there stays");
        let held = StateDir::take(&directory).unwrap();
        std::fs::write(directory.join("kept"), "x").unwrap();
        drop(held);
        assert!(directory.join("kept").exists());
    }
}
