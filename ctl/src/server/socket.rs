//! The ctl socket in the file system: made safely, held alone, removed when it ends.
//!
//! A lock file beside the socket (`PATH.lock`) says which daemon it belongs to: the kernel lets go of a lock when its
//! process dies, so a socket without a lock is stale and may be replaced. Whoever may write to the socket may change
//! the switch, so it has mode 0660 from its first moment, in a directory that nobody else can write to.

use crate::model::check_socket_path;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// How often the lock is tried again when the file under it was replaced meanwhile.
const LOCK_TRIES: usize = 16;

/// The ctl socket could not be made: one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SocketError(String);

impl SocketError {
    fn new(path: &Path, why: impl std::fmt::Display) -> Self {
        Self(crate::model::one_line(&format!("ctl socket {}: {why}", path.display())))
    }
}

/// A listening ctl socket. Dropping it removes the socket and its lock.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
    /// The socket's device and inode: what we remove must be ours.
    identity: (u64, u64),
    lock: Lock,
}

impl ControlSocket {
    /// Makes the socket at `path`, absolute. A missing directory is made with mode 0750.
    ///
    /// Sets the process's umask for a moment: call it before there are other threads that make files.
    ///
    /// # Errors
    /// The path is not possible; its directory can be written by others; another daemon is there; the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let error = |why: String| SocketError::new(path, why);
        let text = path.to_str().ok_or_else(|| error("the path is not UTF-8".to_owned()))?;
        check_socket_path(text).map_err(|e| SocketError(e.to_string()))?;
        let directory = path.parent().ok_or_else(|| error("names a directory".to_owned()))?;
        make_directory(path, directory)?;

        let lock = Lock::take(path)?;
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(error(format!("cannot look at it: {e}"))),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(error(
                    "there is a file that is no socket: move it away, or take another path".to_owned(),
                ));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(error("another process listens on it: stop it, or take another path".to_owned()));
            }
            Ok(_) => {
                tracing::info!(path = %path.display(), "replacing a stale ctl socket");
                std::fs::remove_file(path)
                    .map_err(|e| error(format!("cannot remove the stale socket: {e}")))?;
            }
        }

        // bind(2) makes the file with 0777 less the umask.
        let before = rustix::process::umask(Mode::from_raw_mode(0o117));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener.map_err(|e| error(format!("cannot listen: {e}")))?;
        let made = std::fs::symlink_metadata(path).map_err(|e| error(format!("cannot look at it: {e}")))?;
        listener.set_nonblocking(true).map_err(|e| error(format!("cannot listen: {e}")))?;
        Ok(Self { path: path.to_owned(), listener, identity: identity(&made), lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket for the runtime that this is called in.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock is still held here: nobody can put another socket in the place of ours between look and removal.
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the ctl socket");
        }
        self.lock.remove();
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn make_directory(path: &Path, directory: &Path) -> Result<(), SocketError> {
    let error =
        |why: String| SocketError::new(path, format_args!("its directory {}: {why}", directory.display()));
    let made = DirBuilder::new().recursive(true).mode(0o750).create(directory);
    made.map_err(|e| error(format!("cannot be made: {e}")))?;
    let found = std::fs::metadata(directory).map_err(|e| error(format!("cannot be looked at: {e}")))?;
    if !found.is_dir() {
        return Err(error("is not a directory".to_owned()));
    }
    // In a sticky directory (as /tmp is) everybody may write, but nobody can take our files away.
    if found.mode() & 0o1002 == 0o002 {
        return Err(error(format!(
            "everybody may write to it (mode {:04o}): take a directory of the daemon's own, as /run/weft",
            found.mode() & 0o7777
        )));
    }
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != own {
        return Err(error(format!("belongs to user {}: take a directory of the daemon's own", found.uid())));
    }
    Ok(())
}

/// The lock file beside the socket, locked.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let error =
            |e: io::Error| SocketError::new(socket, format_args!("cannot lock {}: {e}", path.display()));
        for _ in 0..LOCK_TRIES {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file =
                rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| error(e.into()))?;
            let file = File::from(file);
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(SocketError::new(
                        socket,
                        "another daemon runs on it: stop it, or take another path",
                    ));
                }
                Err(e) => return Err(error(e.into())),
            }
            // A daemon that ended between our open and our lock has removed this file: then it protects nothing.
            let held = file.metadata().map_err(error)?;
            if std::fs::symlink_metadata(&path).is_ok_and(|found| identity(&found) == identity(&held)) {
                return Ok(Self { path, file });
            }
        }
        Err(SocketError::new(
            socket,
            "the lock changes hands all the time: is another daemon being restarted?",
        ))
    }

    /// Removes the file while it is still locked.
    fn remove(&self) {
        let ours = self.file.metadata().ok().zip(std::fs::symlink_metadata(&self.path).ok());
        if ours.is_some_and(|(held, found)| identity(&held) == identity(&found)) {
            // It does no harm when it stays.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn made_safely_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/weft/ctl.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        assert_eq!(mode(&dir.path().join("run/weft/ctl.sock.lock")), 0o600);
        drop(socket);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing stays behind");
    }

    #[test]
    fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let first = ControlSocket::bind(&path).unwrap();
        let message = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(message.contains("another daemon runs on it"), "{message}");
        drop(first);

        // As after a crash: the file is there, and nobody listens.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(ControlSocket::bind(&path).unwrap());

        // Somebody else's socket, alive, without our lock.
        let alive = UnixListener::bind(&path).unwrap();
        let message = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(message.contains("another process listens"), "{message}");
        drop(alive);
        assert!(path.exists(), "what is refused is left alone");
    }

    #[test]
    fn unsafe_places_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        for unsafe_mode in [0o777, 0o702] {
            std::fs::set_permissions(&open, std::fs::Permissions::from_mode(unsafe_mode)).unwrap();
            let message = ControlSocket::bind(&open.join("ctl.sock")).unwrap_err().to_string();
            assert!(message.contains("everybody may write to it"), "{message}");
            assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0, "nothing was made");
        }
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).unwrap();
        drop(ControlSocket::bind(&open.join("ctl.sock")).unwrap());
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let message = ControlSocket::bind(&file).unwrap_err().to_string();
        assert!(message.contains("no socket"), "{message}");
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
        let message = ControlSocket::bind(&file.join("ctl.sock")).unwrap_err().to_string();
        assert!(message.contains("its directory"), "{message}");
        std::os::unix::fs::symlink(&file, dir.path().join("c.sock.lock")).unwrap();
        let message = ControlSocket::bind(&dir.path().join("c.sock")).unwrap_err().to_string();
        assert!(message.contains("cannot lock"), "{message}");
        let long = dir.path().join("x".repeat(108));
        assert!(ControlSocket::bind(&long).unwrap_err().to_string().contains("at most 107"));
        assert!(ControlSocket::bind(Path::new("ctl.sock")).unwrap_err().to_string().contains("not absolute"));
    }
}
