//! A vhost-user port: what the rest of the house sees.
//!
//! The port owns its session's thread. The workers meet it as a [`TxPort`] ([`VhostUserPort::tx`]) and as the
//! receive queues that the session attaches to the [`QueueHost`] while the guest's rings run.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use datapath::peer::{Life, OnChange, Peers, PortState, Role};
use datapath::unix::{Link, ListenError, Listener};
use datapath::{Bucket, PortError, QueueHost, TxPort, TxReport};
use switch_core::PortId;
use switch_core::offload::OffloadSet;

use crate::features;
use crate::session::Runner;
use crate::transmit::TxSide;
use crate::vring::RingShared;
use crate::vring::notify::Event;
use crate::vring::rx::OnBroken;

/// Queue pairs that a port may have.
pub const QUEUE_PAIRS_MAX: u16 = 64;
/// A session's thread needs little; the request handler's largest message is 4 KB.
const STACK: usize = 256 * 1024;

/// What a port is made of.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The port's name in the datapath.
    pub id: PortId,
    /// The socket.
    pub path: PathBuf,
    /// Who listens on it.
    pub role: Role,
    /// Queue pairs offered, 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: u16,
    /// The port's MTU. A front-end that asks for a larger one (`NET_SET_MTU`) is refused.
    pub mtu: Option<u16>,
}

/// Why a port cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PortSetupError {
    /// Not 1 to [`QUEUE_PAIRS_MAX`].
    #[error("a port has 1 to {QUEUE_PAIRS_MAX} queues, not {0}")]
    QueuePairs(u16),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No thread or no eventfd.
    #[error("cannot make the port's {what}: {source}")]
    Resource {
        /// What was to be made.
        what: &'static str,
        /// Why it was not.
        source: std::io::Error,
    },
}

/// A guest memory region, for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Guest physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// The front-end's own address.
    pub user: u64,
}

/// A ring, for people to read.
#[derive(Clone, Debug)]
pub struct RingInfo {
    /// Even: the guest receives; odd: the guest transmits.
    pub index: usize,
    /// Descriptors.
    pub size: u32,
    /// Enabled by the front-end.
    pub enabled: bool,
    /// Attached to the workers.
    pub running: bool,
    /// The available index after the last buffer that was used; of a packed ring the slot, and its wrap counter in
    /// bit 15.
    pub next: u16,
    pub(crate) shared: Option<Arc<RingShared>>,
}

/// A port, for people to read.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// What it is doing.
    pub state: PortState,
    /// Who listens.
    pub role: Role,
    /// The socket.
    pub path: PathBuf,
    /// A front-end is connected.
    pub connected: bool,
    /// Agreed virtio features, by name.
    pub features: Vec<&'static str>,
    /// Agreed protocol features, by name.
    pub protocol_features: Vec<&'static str>,
    /// Virtio device status, if the front-end tells it.
    pub status: u8,
    /// The MTU that the front-end wants.
    pub mtu: Option<u16>,
    /// Rings that were set up.
    pub rings: Vec<RingInfo>,
    /// Memory that is shared.
    pub regions: Vec<RegionInfo>,
}

/// What a session says of itself after each message.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionInfo {
    pub(crate) connected: bool,
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
    pub(crate) status: u8,
    pub(crate) mtu: Option<u16>,
    pub(crate) rings: Vec<RingInfo>,
    pub(crate) regions: Vec<RegionInfo>,
}

/// What the port, its session and the workers share.
pub(crate) struct Shared {
    pub(crate) tx: TxSide,
    pub(crate) life: Life,
    session: Mutex<SessionInfo>,
    connection: Mutex<Option<Arc<UnixStream>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(config: &PortConfig, wake: Arc<Event>, on_change: OnChange) -> Self {
        Self {
            tx: TxSide::new(config.queue_pairs, Arc::clone(&wake)),
            life: Life::new(wake, on_change),
            session: Mutex::default(),
            connection: Mutex::new(None),
        }
    }

    pub(crate) fn set_session(&self, info: SessionInfo) {
        *lock(&self.session) = info;
    }

    pub(crate) fn set_connection(&self, stream: Option<Arc<UnixStream>>) {
        let mut connection = lock(&self.connection);
        if self.life.is_stopping()
            && let Some(stream) = &stream
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
        *connection = stream;
    }

    /// What a receive queue does when its ring breaks: the session stops and reports it.
    pub(crate) fn on_broken(&self) -> OnBroken {
        let wake = Arc::clone(self.life.wake());
        Arc::new(move |ring: &RingShared, why: &PortError| {
            if ring.set_broken(why) {
                wake.signal();
            }
        })
    }

    fn stop(&self) {
        self.life.stop();
        if let Some(stream) = &*lock(&self.connection) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl TxPort for Shared {
    #[inline]
    fn offloads(&self) -> OffloadSet {
        self.tx.offloads()
    }

    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        self.tx.transmit(frames)
    }
}

/// See the module's text. Dropping it ends the session, gives all memory and descriptors back and removes the
/// socket's file.
pub struct VhostUserPort {
    config: PortConfig,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for VhostUserPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUserPort").field("config", &self.config).field("state", &self.state()).finish()
    }
}

impl VhostUserPort {
    /// Makes the port: a server listens when this returns, a client begins to connect. Its rings are handed to `host`.
    pub fn new(
        config: PortConfig,
        host: Arc<dyn QueueHost>,
        on_change: impl Fn(PortState) + Send + Sync + 'static,
    ) -> Result<Self, PortSetupError> {
        if config.queue_pairs == 0 || config.queue_pairs > QUEUE_PAIRS_MAX {
            return Err(PortSetupError::QueuePairs(config.queue_pairs));
        }
        let wake = Event::new().map_err(|source| PortSetupError::Resource { what: "eventfd", source })?;
        let wake = Arc::new(wake);
        let link = match config.role {
            Role::Server => Link::Server(Listener::bind(&config.path)?),
            Role::Client => Link::Client(config.path.clone()),
        };
        let shared = Arc::new(Shared::new(&config, wake, Arc::new(on_change)));
        let peers = Peers::new(link);
        let runner = Runner { config: config.clone(), peers, shared: Arc::clone(&shared), host };
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .stack_size(STACK)
            .spawn(move || runner.run())
            .map_err(|source| PortSetupError::Resource { what: "thread", source })?;
        Ok(Self { config, shared, thread: Some(thread) })
    }

    /// The transmit side. Stays the same for as long as the port lives; with nobody there it takes nothing.
    pub fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.shared) as Arc<dyn TxPort>
    }

    /// What the port is doing.
    pub fn state(&self) -> PortState {
        self.shared.life.state()
    }

    /// Everything worth showing.
    pub fn info(&self) -> PortInfo {
        let mut session = lock(&self.shared.session).clone();
        for ring in &mut session.rings {
            if let Some(shared) = ring.shared.take() {
                ring.next = shared.next();
            }
        }
        PortInfo {
            state: self.state(),
            role: self.config.role,
            path: self.config.path.clone(),
            connected: session.connected,
            features: features::names(session.features),
            protocol_features: features::protocol_names(session.protocol_features),
            status: session.status,
            mtu: session.mtu,
            rings: session.rings,
            regions: session.regions,
        }
    }
}

impl Drop for VhostUserPort {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // The session catches its own panics; there is nothing to add.
            let _ = thread.join();
        }
    }
}
