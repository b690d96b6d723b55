//! The stream port: a peer at a Unix stream socket, which sends each frame after its length. QEMU's `-netdev stream`
//! speaks so, and needs neither shared memory nor privileges for it.
//!
//! - `frames`: the protocol. `rx`: several frames by one `read(2)`. `tx`: a bucket by one `sendmsg(2)`.
//! - `connection`: what the two, and this file, know of the peer that is there.
//! - this file: peers come and go, one at a time. A listening port refuses a second one while the first is there.
//!
//! There is no virtio-net header on such a stream: frames come with complete checksums and no longer than the peer's
//! MTU, and so they leave. A peer that breaks the protocol loses its connection, and the port says why.
//!
//! What a peer costs is bounded: the buffer of its receive queue, what the kernel lets wait for it, one frame that it
//! has begun to take. One that reads nothing has its frames dropped; one that writes single bytes wakes a worker for each,
//! as long as others leave it time.
//!
//! A thread for each port waits for peers; it never touches a frame but the end of one that was begun. The port owns it.

mod connection;
mod frames;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod rx;
mod tx;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::PollFlags;
use switch_core::PortId;

use self::connection::Connection;
pub use self::rx::StreamRx;
pub use self::tx::StreamTx;
use crate::event::Event;
use crate::host::QueueHost;
use crate::peer::{Life, Peers, PortState, Role, accept};
use crate::port::TxPort;
use crate::unix::{Link, ListenError, Listener};

/// A port's thread needs little.
const STACK: usize = 256 * 1024;

/// What a port is made of.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// The port's name in the datapath.
    pub id: PortId,
    /// The socket, of at most 107 bytes.
    pub path: PathBuf,
    /// Who listens on it.
    pub role: Role,
}

/// Why a port cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No thread or no eventfd.
    #[error("cannot make the port's {what}: {source}")]
    Resource {
        /// What was to be made.
        what: &'static str,
        /// Why it was not.
        source: io::Error,
    },
}

/// See the module's text. Dropping it ends the connection and removes the socket's file.
#[derive(Debug)]
pub struct StreamPort {
    life: Arc<Life>,
    tx: Arc<StreamTx>,
    thread: Option<JoinHandle<()>>,
}

impl StreamPort {
    /// Makes the port: a server listens when this returns, a client begins to connect. `host` is given a receive queue
    /// for each peer. `on_change` is called on the port's thread, and must not drop the port.
    ///
    /// # Errors
    /// The path cannot be listened on, or there is no thread or descriptor to be had. Nothing is left behind.
    pub fn new(
        config: StreamConfig,
        host: Arc<dyn QueueHost>,
        on_change: impl Fn(PortState) + Send + Sync + 'static,
    ) -> Result<Self, StreamError> {
        let failed = |what| move |source| StreamError::Resource { what, source };
        let wake = Arc::new(Event::new().map_err(failed("eventfd"))?);
        let link = match config.role {
            Role::Server => Link::Server(Listener::bind(&config.path)?),
            Role::Client => Link::Client(config.path.clone()),
        };
        let life = Arc::new(Life::new(wake, Arc::new(on_change)));
        let tx = Arc::new(StreamTx::default());
        let runner =
            Runner { config, peers: Peers::new(link), life: Arc::clone(&life), tx: Arc::clone(&tx), host };
        let thread = std::thread::Builder::new()
            .name("stream".to_owned())
            .stack_size(STACK)
            .spawn(move || runner.run())
            .map_err(failed("thread"))?;
        Ok(Self { life, tx, thread: Some(thread) })
    }

    /// The transmit side. Stays the same for as long as the port lives; with nobody there it takes nothing.
    pub fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx) as Arc<dyn TxPort>
    }

    /// What the port is doing.
    pub fn state(&self) -> PortState {
        self.life.state()
    }
}

impl Drop for StreamPort {
    fn drop(&mut self) {
        self.life.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's work.
struct Runner {
    config: StreamConfig,
    peers: Peers,
    life: Arc<Life>,
    tx: Arc<StreamTx>,
    host: Arc<dyn QueueHost>,
}

impl Runner {
    /// Runs until the port is dropped.
    fn run(mut self) {
        let mut here = None;
        while !self.life.is_stopping() {
            let Some(stream) = here.take().or_else(|| self.peers.next(&self.life)) else { continue };
            let began = Instant::now();
            here = self.session(stream);
            if here.is_none() {
                self.peers.ended(began, &self.life);
            }
        }
        self.life.set_state(PortState::Down);
    }

    /// One peer, from its coming to its going. The next one, if it came before this one's end was seen.
    fn session(&self, stream: UnixStream) -> Option<UnixStream> {
        let path = self.config.path.display();
        let connection = match Connection::new(stream, Arc::clone(self.life.wake())) {
            Ok(connection) => Arc::new(connection),
            Err(e) => {
                tracing::warn!(path = %path, error = %e, "cannot use a connection");
                return None;
            }
        };
        tracing::info!(path = %path, "peer connected");
        self.tx.set(Some(Arc::clone(&connection)));
        let queue = self.host.attach(self.config.id, Box::new(StreamRx::new(Arc::clone(&connection))));
        self.life.set_state(PortState::Up);
        let next = self.serve(&connection);
        // Whatever the workers had received is delivered when this returns.
        self.host.detach(queue);
        self.tx.set(None);
        match connection.end() {
            Some(Some(why)) => {
                tracing::warn!(path = %path, error = %why, "connection closed");
                self.life.set_state(PortState::Error(why.clone()));
            }
            _ => {
                tracing::info!(path = %path, "peer disconnected");
                self.life.set_state(PortState::Waiting);
            }
        }
        next
    }

    /// Waits until the peer goes, or the port does. The next peer, if that is how it was seen.
    fn serve(&self, connection: &Connection) -> Option<UnixStream> {
        while connection.end().is_none() && !self.life.is_stopping() {
            // Without something to wait for, a descriptor is still asked for its errors: the wake stands in.
            let wake = self.life.wake().as_fd();
            let writable = match self.tx.has_rest() {
                true => (connection.as_fd(), PollFlags::OUT),
                false => (wake, PollFlags::empty()),
            };
            let listener = self.peers.listener();
            let peer = listener.map_or((wake, PollFlags::empty()), |l| (l.as_fd(), PollFlags::IN));
            let Ok([writable, peer]) = self.life.wait([writable, peer], None) else {
                connection.finish(Some("no memory to wait for the peer".to_owned()));
                continue;
            };
            if !writable.is_empty() {
                self.tx.flush();
            }
            if let Some(listener) = listener
                && !peer.is_empty()
                && let Some(stream) = accept(listener, &self.life)
            {
                // A peer that comes back may be here before a worker has seen that it went.
                if connection.is_hung_up() {
                    return Some(stream);
                }
                let path = self.config.path.display();
                tracing::warn!(path = %path, "a second peer was refused: one is connected");
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
