//! The port as workers see it: a receive queue, a transmit side, and the lock between them and whoever controls the port.
//!
//! The lock is held for one bucket or one burst. Whoever polls the queue and whoever transmits may be different workers;
//! what the one makes the other send (an acknowledgment, say) wakes it by a doorbell, if it sleeps.
//!
//! The queue's descriptor is an epoll descriptor of the port's own, in which are its sockets, its timer and its doorbell:
//! epoll descriptors nest.

use std::io;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use datapath::buffers::Buffers;
use datapath::port::RxDrops;
use datapath::{Armed, Bucket, Burst, PortError, RxQueue, TxPort, TxReport};
use rustix::io::Errno;
use switch_core::Instant;
use switch_core::napt::{Forward, NatSession};
use switch_core::offload::OffloadSet;

use crate::counters::Counters;
use crate::echo;
use crate::engine::Engine;
use crate::fill::Fill;
use crate::forwards::{self, ListenError, Source};
use crate::policy::Policy;
use crate::settings::Settings;
use crate::tcp::{Inbound, NotBegun};

#[derive(Debug)]
struct Shared {
    engine: Mutex<Engine>,
    counters: Arc<Counters>,
    origin: std::time::Instant,
    wake: RawFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// What may be asked and changed while the port is in use.
#[derive(Clone, Debug)]
pub struct Control {
    shared: Arc<Shared>,
}

/// The port's receive queue: frames into the network.
#[derive(Debug)]
pub struct SocketsRx {
    shared: Arc<Shared>,
    pool: Buffers,
}

/// The port's transmit side: frames out of the network.
#[derive(Clone, Debug)]
pub struct SocketsTx {
    shared: Arc<Shared>,
}

/// Opens a port.
///
/// # Errors
/// No descriptor to be had.
pub fn open(settings: Settings) -> io::Result<(Control, SocketsRx, SocketsTx)> {
    let counters = Arc::new(Counters::default());
    let engine = Engine::new(settings, Arc::clone(&counters))?;
    let wake = engine.wake_fd();
    let shared =
        Arc::new(Shared { engine: Mutex::new(engine), counters, origin: std::time::Instant::now(), wake });
    let rx = SocketsRx { shared: Arc::clone(&shared), pool: Buffers::new() };
    Ok((Control { shared: Arc::clone(&shared) }, rx, SocketsTx { shared }))
}

impl Control {
    /// What was counted since the port was opened.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Offers a guest a connection that somebody outside has made to this host: a SYN goes to the guest. What the guest
    /// refuses is reset, and so is what it does not answer.
    ///
    /// # Errors
    /// Why it was not begun; the socket is closed then.
    pub fn accept(&self, socket: OwnedFd, inbound: Inbound) -> Result<(), NotBegun> {
        let now = self.shared.now();
        self.shared.lock().accept(now, socket, inbound)
    }

    /// Listens for a guest: who connects or sends to the forward's ports comes to its target, as `source`. A forward of no
    /// address listens on all of the target's family. It holds when this returns.
    ///
    /// # Errors
    /// Why one of its ports cannot be had. Nothing listens then.
    pub fn add_forward(&self, forward: &Forward, source: Source) -> Result<(), ListenError> {
        let most = self.shared.lock().settings().limits.listeners;
        if u32::from(forward.count) > most {
            return Err(ListenError::TooMany { wanted: forward.count.into(), most });
        }
        let listeners = forwards::open(forward, source)?;
        let now = self.shared.now();
        self.shared.lock().add_forward(now, forward.clone(), listeners)
    }

    /// Takes a forward back, with the connections and flows that came by it; false if it was not there.
    pub fn remove_forward(&self, forward: &Forward) -> bool {
        let now = self.shared.now();
        self.shared.lock().remove_forward(now, forward)
    }

    /// Descriptors that the port may come to have.
    pub fn files(&self) -> u64 {
        let limits = self.shared.lock().settings_mut().limits;
        u64::from(limits.tcp) + u64::from(limits.udp) + u64::from(limits.echo) + u64::from(limits.listeners)
    }

    /// Sets the network's MTU, for frames from now on.
    pub fn set_mtu(&self, mtu: u16) {
        self.shared.lock().settings_mut().mtu = mtu;
    }

    /// Whether the host lets this process have ping sockets. If not, guests' pings to the outside are not answered.
    pub fn pings_allowed(&self) -> bool {
        echo::is_allowed()
    }

    /// Flows, at most `limit`, in no order, and how many there are in all.
    pub fn sessions(&self, limit: usize) -> (Vec<NatSession>, usize) {
        let now = self.shared.now();
        self.shared.lock().sessions(now, limit)
    }

    /// Sets the outbound filter, for flows that begin from now on.
    /// What was learned of names goes on holding.
    pub fn set_policy(&self, policy: Policy) {
        let mut engine = self.shared.lock();
        let settings = engine.settings_mut();
        policy.adopt(&settings.outbound);
        settings.outbound = Arc::new(policy);
    }

    /// Sets whether the gateway's addresses mean the host's loopback, for flows that begin from now on. The filter is to say
    /// the same.
    pub fn set_host_loopback(&self, on: bool) {
        self.shared.lock().settings_mut().host_loopback = on;
    }

    /// Whether [`Control::learn`] has any use.
    pub fn follows_names(&self) -> bool {
        self.shared.lock().settings().outbound.follows_names()
    }

    /// Takes note that the network's gateway told a guest that `name` has the address `ip` for `ttl`: for rules of the
    /// outbound filter that are about names.
    pub fn learn(&self, name: &str, ip: IpAddr, ttl: Duration) {
        let now = self.shared.now();
        let engine = self.shared.lock();
        let outbound = &engine.settings().outbound;
        outbound.tell(now);
        outbound.learn(name, ip, ttl);
    }
}

fn broken(error: Errno) -> PortError {
    PortError::Io { what: "waiting for sockets", source: error.into() }
}

impl RxQueue for SocketsRx {
    fn rx_burst(&mut self, burst: &mut Burst, _drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = OffloadSet::ALL;
        self.pool.reset();
        let now = self.shared.now();
        let fill = &mut Fill::new(burst, &mut self.pool);
        self.shared.lock().burst(now, fill).map_err(broken)?;
        Ok(burst.len())
    }

    fn release(&mut self) {
        // The pool is the queue's own; the next burst begins it anew.
    }

    fn wake_fd(&self) -> RawFd {
        self.shared.wake
    }

    fn arm(&mut self) -> Result<Armed, PortError> {
        let now = self.shared.now();
        let sleeps = self.shared.lock().arm(now).map_err(broken)?;
        Ok(if sleeps { Armed::Sleeping } else { Armed::Work })
    }

    fn disarm(&mut self) {
        self.shared.lock().disarm();
    }
}

impl TxPort for SocketsTx {
    fn offloads(&self) -> OffloadSet {
        OffloadSet::ALL
    }

    /// Every frame is taken: what becomes of it is the flow's affair, and counted by name ([`Counters`]).
    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let now = self.shared.now();
        self.shared.lock().frames(now, frames);
        Ok(TxReport::default())
    }
}
