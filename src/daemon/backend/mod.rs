//! What is behind a port: one file for each kind. Only this folder knows them all.

mod dgram;
mod netdev;
mod queue;
mod sockets;
mod station;
mod stream;
mod tap;
mod vhost_user;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ctl::model::{Kind, PortSpec, Role as RoleWord};
use ctl::protocol::PortDetail;
use datapath::peer::{PortState, Role};
use datapath::{QueueHost, TxPort};
use switch_core::PortId;
use tokio::sync::Notify;

pub(super) use self::sockets::Sockets;
use dgram::Dgram;
pub(super) use netdev::Netdev;
pub(super) use station::Station;
use stream::Stream;
pub(super) use tap::Tap;
pub(super) use vhost_user::VhostUser;

/// Whether somebody is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A peer is there.
    Up,
    /// Not yet, or not any more; it may come.
    Waiting,
    /// Broken, and why.
    Error(String),
    /// There, but switched off.
    Down,
}

impl State {
    /// The word that reports carry.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Waiting => "waiting",
            Self::Error(_) => "error",
            Self::Down => "down",
        }
    }

    /// Why, of an error.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Error(reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

impl From<PortState> for State {
    fn from(state: PortState) -> Self {
        match state {
            PortState::Up => Self::Up,
            PortState::Waiting => Self::Waiting,
            PortState::Error(reason) => Self::Error(reason),
            PortState::Down => Self::Down,
        }
    }
}

/// Who listens on a port's socket, as it was said.
fn role(spec: &PortSpec) -> Role {
    match spec.role {
        RoleWord::Server => Role::Server,
        RoleWord::Client => Role::Client,
    }
}

/// When the peer of a port came.
#[derive(Clone, Debug, Default)]
struct Since(Arc<Mutex<Option<Instant>>>);

impl Since {
    /// The port is in another state now.
    fn changed(&self, state: &PortState) {
        let now = (*state == PortState::Up).then(Instant::now);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// For how many seconds it has been there.
    fn seconds(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed().as_secs())
    }
}

/// What is behind a port. Dropping it ends everything that belongs to it: queues are taken back from the
/// workers, sessions end, what was made is removed.
pub(super) trait Backend: Send {
    /// The transmit side, as the topology is to have it now.
    fn tx(&self) -> Arc<dyn TxPort>;

    /// Hands the receive queues to the workers. The topology has the port by now.
    fn start(&mut self);

    /// Whether somebody is there.
    fn state(&self) -> State;

    /// Fills in what only this kind knows.
    fn describe(&self, _detail: &mut PortDetail) {}

    /// The MTU of an interface that is somebody else's, while it is there.
    fn link_mtu(&self) -> Option<u16> {
        None
    }

    /// Changes the MTU of what the switch made itself. Errors are one line.
    fn set_mtu(&mut self, _mtu: u16) -> Result<(), String> {
        Ok(())
    }

    /// A worker found the port broken.
    fn broken(&mut self, _reason: &str) {}

    /// Interfaces of the host changed: looks whether the peer came or went. True if [`Backend::tx`] is
    /// another one now.
    fn refresh(&mut self) -> bool {
        false
    }
}

/// What a backend is made with.
pub(super) struct Context {
    /// The port.
    pub(super) id: PortId,
    /// Whoever polls its receive queues.
    pub(super) host: Arc<dyn QueueHost>,
    /// The MTU that holds for the port: its own, its network's, or 1500.
    pub(super) mtu: u16,
    /// The MTU to offer to a guest, if one was asked for.
    pub(super) offered_mtu: Option<u16>,
    /// To be notified when the peer came or went.
    pub(super) changed: Arc<Notify>,
}

/// Makes what a port's description asks for, or says in one line why not. Nothing is left behind then.
pub(super) fn make(spec: &PortSpec, context: Context) -> Result<Box<dyn Backend>, String> {
    Ok(match &spec.kind {
        Kind::VhostUser(path) => Box::new(VhostUser::new(spec, path, context)?),
        Kind::Tap(interface) => Box::new(Tap::new(interface, spec.queues, spec.mac, true, context)?),
        Kind::Netdev(interface) => Box::new(Netdev::new(interface, context)?),
        Kind::Stream(path) => Box::new(Stream::new(spec, path, context)?),
        Kind::Dgram(path) => Box::new(Dgram::new(spec, path, context)?),
    })
}
