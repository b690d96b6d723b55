//! The port's path in the file system: a socket that we listen on, or one that we connect to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Who may connect: the daemon's user and group.
const MODE: u32 = 0o660;
/// Front-ends that may wait while one is served.
const BACKLOG: i32 = 8;

/// How front-ends are reached.
#[derive(Debug)]
pub(crate) enum Link {
    /// They connect to us.
    Server(Listener),
    /// We connect to them.
    Client(PathBuf),
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: only our own is removed.
    file: (u64, u64),
}

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("cannot listen on {path}: another process does")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// There is a file, and it is no socket.
    #[error("cannot listen on {path}: a file that is no socket is there")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Listener {
    /// Listens. The file of a socket that nobody listens on any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source: io::Error| ListenError::Io { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(ListenError::NoSocket { path: path.to_owned() });
            }
            Ok(_) => match connect(path) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // Also when its queue is full: somebody is there.
                _ => return Err(ListenError::InUse { path: path.to_owned() }),
            },
        }
        let socket = unix_socket().map_err(failed)?;
        // The file gets the socket's mode, less the umask, so it is never open wider than wanted, not even
        // between these two calls.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE)).map_err(|e| failed(e.into()))?;
        let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
        rustix::net::bind(&socket, &address).map_err(|e| failed(e.into()))?;
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        let listener = Self { socket: socket.into(), path: path.to_owned(), file: (meta.dev(), meta.ino()) };
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(|e| failed(e.into()))?;
        listener.socket.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// A front-end, if one is there.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects, without waiting for a listener whose queue is full.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket()?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::connect(&socket, &address)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket.into())
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}
