//! A port's path in the file system: a Unix socket that we listen on or receive at, or one that we connect to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Who may connect: the daemon's user and group.
const MODE: u32 = 0o660;
/// Peers that may wait while one is served.
const BACKLOG: i32 = 8;

/// How peers are reached.
#[derive(Debug)]
pub enum Link {
    /// They connect to us.
    Server(Listener),
    /// We connect to them, at this path.
    Client(PathBuf),
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

/// The file of a socket that is bound. It goes with this value.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: only our own is removed.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket with a file at `path`. The file of a socket that nobody has any more is replaced.
fn bind(path: &Path, kind: SocketType) -> Result<(OwnedFd, SocketFile), ListenError> {
    let failed = |source: io::Error| ListenError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NoSocket { path: path.to_owned() });
        }
        Ok(_) => match probe(path) {
            Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed)?,
            Err(Errno::NOENT) => {}
            _ => return Err(ListenError::InUse { path: path.to_owned() }),
        },
    }
    let socket = unix_socket(kind).map_err(failed)?;
    // The file gets the socket's mode, less the umask, so it is never open wider than wanted, not even
    // between these two calls.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE)).map_err(|e| failed(e.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
    rustix::net::bind(&socket, &address).map_err(|e| failed(e.into()))?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    let file = SocketFile { path: path.to_owned(), id: (meta.dev(), meta.ino()) };
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(|e| failed(e.into()))?;
    Ok((socket, file))
}

/// Whether a process has the socket at `path`: with a socket of a type that nobody uses, so that whoever is there is not
/// disturbed. `ECONNREFUSED` if nobody is, `EPROTOTYPE` if somebody is.
fn probe(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub struct Listener {
    /// Dropped before the socket is, which then nobody can find any more.
    _file: SocketFile,
    socket: UnixListener,
}

impl Listener {
    /// Listens at `path`. The file of a socket that nobody has any more is replaced.
    ///
    /// # Errors
    /// Somebody listens there, something else is there, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let (socket, file) = bind(path, SocketType::STREAM)?;
        rustix::net::listen(&socket, BACKLOG)
            .map_err(|e| ListenError::Io { path: path.to_owned(), source: e.into() })?;
        Ok(Self { _file: file, socket: socket.into() })
    }

    /// A peer, if one is there.
    ///
    /// # Errors
    /// The kernel has no descriptor or no memory for it.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
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

/// A socket that receives datagrams; its file goes with it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// As a [`Listener`]'s.
    _file: SocketFile,
    socket: OwnedFd,
}

impl Mailbox {
    /// Receives at `path`. The file of a socket that nobody has any more is replaced.
    ///
    /// # Errors
    /// Somebody listens there, something else is there, or the kernel refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let (socket, file) = bind(path, SocketType::DGRAM)?;
        Ok(Self { _file: file, socket })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.socket
    }
}

/// A socket to send datagrams from, never waiting.
///
/// # Errors
/// Too many descriptors are open.
pub(crate) fn datagram_sender() -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketType::DGRAM)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Connects, without waiting for a listener whose queue is full.
///
/// # Errors
/// As of connect(2); `WouldBlock` if the queue is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket(SocketType::STREAM)?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::connect(&socket, &address)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket.into())
}

fn unix_socket(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}
