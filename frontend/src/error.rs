//! What can go wrong on the guest's side.

use std::io;
use std::time::Duration;

use crate::ring::RingError;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong on the guest's side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A vhost-user message could not be exchanged, or the back-end refused it.
    #[error("vhost-user {message}: {source}")]
    Message {
        /// The message's name.
        message: &'static str,
        /// Why it failed.
        #[source]
        source: vhost::Error,
    },
    /// The back-end said something that the protocol does not allow, or refused a message.
    #[error("vhost-user: {0}")]
    Protocol(String),
    /// The back-end closed the connection.
    #[error("the back-end closed the connection")]
    Closed,
    /// Guest memory is exhausted, or an address lies outside it.
    #[error("guest memory: {0}")]
    Memory(String),
    /// The device wrote something into a ring that the specification does not allow.
    #[error("virtqueue {queue}: {source}")]
    Ring {
        /// The virtqueue's index (2N receives, 2N + 1 transmits).
        queue: u16,
        /// What the device did.
        #[source]
        source: RingError,
    },
    /// The device delivered a frame that breaks the specification.
    #[error("device: {0}")]
    Device(String),
    /// The configuration asks for what cannot be.
    #[error("configuration: {0}")]
    Config(String),
    /// Nothing came in time.
    #[error("no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
}

impl Error {
    /// Whether this is a [`Error::Timeout`].
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Timeout { .. })
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::Io { what: what.into(), source: source.into() }
    }
}
