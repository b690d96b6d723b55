//! The datagram port: frames as datagrams between two Unix sockets, one that we receive at and one of the peer's. QEMU's
//! `-netdev dgram` with `local.type=unix` and `remote.type=unix` speaks so.
//!
//! - `rx`: a burst by one `recvmmsg(2)`. `tx`: a bucket by one `sendmmsg(2)`.
//!
//! Datagrams know no connection: QEMU binds its own path, replaces the file that is there, and sends to ours, from
//! whichever process of it runs now. So our socket takes datagrams from anybody who may write to its file (our user
//! and group), and what we send goes from a second socket, which is connected to whoever has the peer's path, and
//! connected again when that one is gone. A peer is taken to be there if that connection can be made: whoever asks for the
//! state tries it, and so does whoever transmits.
//!
//! There is no virtio-net header: frames come with complete checksums and no longer than the peer's MTU, and so they leave.
//! Of datagrams that a peer does not read, the kernel keeps a number (`net.unix.max_dgram_qlen`), and refuses more.

mod rx;
mod tx;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use self::rx::DgramRx;
pub use self::tx::DgramTx;
use crate::unix::{ListenError, Mailbox};

/// Why a port cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DgramError {
    /// Our own socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No socket to send from.
    #[error("cannot make a socket to send from: {0}")]
    Sender(#[source] io::Error),
}

/// Makes a port that receives at `path` and sends to `remote`, both of at most 107 bytes. The peer need not be there.
/// `on_change` is called, on any thread, when the peer was seen to come or go; it must not block. The socket's file goes
/// with the receive queue.
///
/// # Errors
/// The path cannot be bound, or there is no descriptor to be had. Nothing is left behind.
pub fn open(
    path: &Path,
    remote: &Path,
    on_change: impl Fn() + Send + Sync + 'static,
) -> Result<(DgramRx, Arc<DgramTx>), DgramError> {
    let mailbox = Mailbox::bind(path)?;
    let tx = DgramTx::new(remote.to_owned(), Box::new(on_change)).map_err(DgramError::Sender)?;
    Ok((DgramRx::new(mailbox), Arc::new(tx)))
}

#[cfg(test)]
mod tests;
