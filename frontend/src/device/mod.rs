//! A virtio-net device as its driver sees it: queue pairs over a vhost-user session.
//!
//! [`NetDevice`] leads the session through the whole set-up and offers frames: [`NetDevice::send`],
//! [`NetDevice::recv`]. Its queues ([`TxQueue`], [`RxQueue`]) offer batches. One thread owns a device; what other
//! threads may have are memory windows and [`RingAccess`]es.

mod config;
mod header;
mod queue;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

pub use config::{Config, TxLayout};
pub use header::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, VnetHeader,
};
pub(crate) use queue::Frames;
pub use queue::{RxQueue, TxQueue};

use crate::error::{Error, Result};
use crate::eventfd::wait_readable;
use crate::features;
use crate::memory::{GuestMemory, Layout};
use crate::raw::{RawSession, RingAccess};
use crate::session::{RingInfo, Session, SessionListener, status};
use config::Shape;

/// A receive and a transmit queue.
#[derive(Debug)]
pub struct QueuePair {
    /// What the guest receives by.
    pub rx: RxQueue,
    /// What the guest sends by.
    pub tx: TxQueue,
}

/// A virtio-net device, driver's side.
#[derive(Debug)]
pub struct NetDevice {
    session: Session,
    memory: GuestMemory,
    config: Config,
    shape: Shape,
    pairs: Vec<QueuePair>,
    next_rx: usize,
}

impl NetDevice {
    /// Connects to a back-end that listens on `path` and sets the device up: it may send and receive at once.
    ///
    /// # Errors
    /// Whatever fails on the way; [`Error::Config`] when the back-end lacks a required feature or the queue pairs.
    pub fn connect(path: impl AsRef<Path>, config: Config) -> Result<Self> {
        Self::with_session(Session::connect(path, config.timeout)?, config)
    }

    /// Listens on `path` until a back-end of role client connects, and sets the device up.
    ///
    /// # Errors
    /// As for [`NetDevice::connect`]; [`Error::Timeout`] when nobody connects.
    pub fn listen(path: impl AsRef<Path>, config: Config) -> Result<Self> {
        Self::with_session(SessionListener::bind(path)?.accept(config.timeout)?, config)
    }

    /// Sets a device up over a fresh session.
    ///
    /// # Errors
    /// As for [`NetDevice::connect`].
    pub fn with_session(session: Session, config: Config) -> Result<Self> {
        let mut device = Self::prepare(session, config)?;
        for pair in &mut device.pairs {
            pair.rx.fill()?;
        }
        device.start()?;
        Ok(device)
    }

    /// As [`NetDevice::connect`], but no receive queue has a buffer until [`RxQueue::post`] or [`RxQueue::fill`].
    ///
    /// # Errors
    /// As for [`NetDevice::connect`].
    pub fn connect_without_buffers(path: impl AsRef<Path>, config: Config) -> Result<Self> {
        let mut device = Self::prepare(Session::connect(path, config.timeout)?, config)?;
        device.start()?;
        Ok(device)
    }

    /// Negotiates, and lays memory and queues out; tells the back-end nothing of them yet ([`NetDevice::start`] does).
    ///
    /// # Errors
    /// As for [`NetDevice::connect`].
    pub fn prepare(mut session: Session, config: Config) -> Result<Self> {
        session.open(config.protocol)?;
        let shape = negotiate(&session, &config)?;
        let needed = shape.pair_memory() * u64::from(config.queue_pairs);
        let layout = config.memory.clone().unwrap_or_else(|| Layout::single(needed + (1 << 16)));
        let mut memory = GuestMemory::new(&layout)?;
        let pairs = make_pairs(&mut memory, &config, &shape)?;
        Ok(NetDevice { session, memory, config, shape, pairs, next_rx: 0 })
    }

    /// Tells the back-end features, memory and rings, enables them, and reports the driver ready.
    ///
    /// # Errors
    /// The exchange's.
    pub fn start(&mut self) -> Result<()> {
        self.session.set_status(status::ACKNOWLEDGE | status::DRIVER)?;
        self.session.set_features(self.shape.features)?;
        self.session.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK)?;
        if self.config.mtu != 1500 && self.session.has_protocol(features::protocol::MTU) {
            self.session.set_mtu(self.config.mtu)?;
        }
        self.session.set_memory(&self.memory, self.config.mem_slots)?;
        self.start_rings()
    }

    fn start_rings(&mut self) -> Result<()> {
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        for vq in self.pairs.iter().flat_map(|p| [&p.rx.vq, &p.tx.vq]) {
            let info = RingInfo {
                index: vq.index,
                size: vq.ring.size(),
                base: vq.ring.base(),
                addresses: vq.ring.addresses(),
                kick: &vq.kick,
                call: &vq.call,
            };
            self.session.set_ring(&self.memory, &info)?;
        }
        for index in 0..2 * self.pairs.len() as u16 {
            self.session.enable_ring(index, true)?;
        }
        self.session.set_status(ready)?;
        // What was published before the rings ran is announced by nobody else.
        self.pairs.iter().flat_map(|p| [&p.rx.vq, &p.tx.vq]).for_each(|vq| vq.kick.signal());
        Ok(())
    }

    /// Stops every ring, and gives the place at which the back-end stood in each: the available index; for packed rings,
    /// in the low half where it looks for the next available descriptor and in the high half where it writes the next
    /// used one, the wrap counters in the halves' highest bits.
    ///
    /// # Errors
    /// The exchange's.
    pub fn stop(&mut self) -> Result<Vec<u32>> {
        (0..2 * self.pairs.len() as u16).map(|index| self.session.stop_ring(index)).collect()
    }

    /// Starts stopped rings again where they stood, with everything that is in flight.
    ///
    /// # Errors
    /// The exchange's.
    pub fn resume(&mut self) -> Result<()> {
        self.start_rings()
    }

    /// Sets the device up anew over the same session and memory, as when an operating system takes over from the
    /// firmware: rings are stopped, the status is reset, and features, queues and buffers are `config`'s.
    ///
    /// The memory stays, so that `config.memory` is ignored; it must have room for the new queues beside the old.
    ///
    /// # Errors
    /// As for [`NetDevice::connect`].
    pub fn reinit(&mut self, config: Config) -> Result<()> {
        self.stop()?;
        for index in 0..2 * self.pairs.len() as u16 {
            self.session.enable_ring(index, false)?;
        }
        self.session.set_status(0)?;
        let shape = negotiate(&self.session, &config)?;
        self.pairs = make_pairs(&mut self.memory, &config, &shape)?;
        self.shape = shape;
        self.config = config;
        self.next_rx = 0;
        for pair in &mut self.pairs {
            pair.rx.fill()?;
        }
        self.session.set_status(status::ACKNOWLEDGE | status::DRIVER)?;
        self.session.set_features(self.shape.features)?;
        self.session.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK)?;
        if !(self.config.mem_slots && self.session.has_protocol(features::protocol::CONFIGURE_MEM_SLOTS)) {
            // QEMU sends the table at each start; with slots it sends only what changed.
            self.session.set_memory(&self.memory, false)?;
        }
        self.start_rings()
    }

    /// Goes on over a new session after the back-end was lost: same memory, same rings, from the used index on, as
    /// QEMU does when its socket reconnects. The back-end must offer what it offered.
    ///
    /// # Errors
    /// As for [`NetDevice::connect`].
    pub fn reattach(&mut self, mut session: Session) -> Result<()> {
        session.open(self.config.protocol)?;
        if self.shape.features & !session.offered() != 0 {
            return Err(Error::Config(format!(
                "the back-end offered features {:#x} and lacks {:#x} of them now",
                self.shape.features,
                self.shape.features & !session.offered()
            )));
        }
        self.session = session;
        self.start()
    }

    /// Forgets what is in flight and starts all rings at index `base`. The rings must be stopped;
    /// [`NetDevice::resume`] starts them.
    ///
    /// # Errors
    /// [`Error::Ring`].
    pub fn reset_rings(&mut self, base: u16) -> Result<()> {
        for pair in &mut self.pairs {
            pair.tx.restart(base);
            pair.rx.restart(base);
            pair.rx.fill()?;
        }
        Ok(())
    }

    /// Enables or disables both rings of a pair, as multiqueue guests do.
    ///
    /// # Errors
    /// The exchange's; [`Error::Config`] for a pair that is not there.
    pub fn enable_pair(&mut self, pair: u16, enable: bool) -> Result<()> {
        if usize::from(pair) >= self.pairs.len() {
            return Err(Error::Config(format!("no queue pair {pair}")));
        }
        self.session.enable_ring(2 * pair, enable)?;
        self.session.enable_ring(2 * pair + 1, enable)
    }

    /// Sends a frame that asks for no offload by the first queue pair.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the queue stays full; [`Error::Config`] when the frame is longer than the buffers.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_with(&VnetHeader::PLAIN, &[frame])
    }

    /// Sends a frame with its header by the first queue pair. Its bytes are `parts`, one after the other.
    ///
    /// # Errors
    /// As for [`NetDevice::send`].
    pub fn send_with(&mut self, header: &VnetHeader, parts: &[&[u8]]) -> Result<()> {
        self.pairs[0].tx.send(header, parts)
    }

    /// Waits for a frame on any queue pair.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none comes; [`Error::Ring`] and [`Error::Device`] for what breaks the specification.
    pub fn recv(&mut self, timeout: Duration) -> Result<(VnetHeader, Vec<u8>)> {
        let mut frame = Vec::new();
        let header = self.recv_into(&mut frame, timeout)?;
        Ok((header, frame))
    }

    /// As [`NetDevice::recv`], into a buffer that is used again.
    ///
    /// # Errors
    /// As for [`NetDevice::recv`].
    pub fn recv_into(&mut self, frame: &mut Vec<u8>, timeout: Duration) -> Result<VnetHeader> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(header) = self.try_recv(frame)? {
                return Ok(header);
            }
            if !self.wait(deadline)? {
                return Err(Error::Timeout { what: "frame", after: timeout });
            }
        }
    }

    /// Takes a frame from any queue pair, if there is one.
    ///
    /// # Errors
    /// As for [`NetDevice::recv`], without the timeout.
    pub fn try_recv(&mut self, frame: &mut Vec<u8>) -> Result<Option<VnetHeader>> {
        for _ in 0..self.pairs.len() {
            let pair = self.next_rx;
            if let Some(header) = self.pairs[pair].rx.try_recv(frame)? {
                return Ok(Some(header));
            }
            self.next_rx = (pair + 1) % self.pairs.len();
        }
        Ok(None)
    }

    /// Receives and throws away until nothing came for `quiet`. Gives the frames.
    ///
    /// # Errors
    /// As for [`NetDevice::recv`], without the timeout.
    pub fn recv_all(&mut self, quiet: Duration) -> Result<Vec<(VnetHeader, Vec<u8>)>> {
        let mut frames = Vec::new();
        loop {
            match self.recv(quiet) {
                Ok(frame) => frames.push(frame),
                Err(e) if e.is_timeout() => return Ok(frames),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until a frame may be received on any pair, or `deadline`. Gives whether one may.
    ///
    /// # Errors
    /// The system call's.
    pub fn wait(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            let mut ready = false;
            for pair in &mut self.pairs {
                ready |= pair.rx.vq.ring.arm();
            }
            let mut woken = ready;
            if !ready {
                let fds: Vec<BorrowedFd<'_>> = self.pairs.iter().map(|p| p.rx.vq.call.as_fd()).collect();
                woken = wait_readable(&fds, deadline)?;
            }
            for pair in &mut self.pairs {
                pair.rx.vq.call.drain();
                pair.rx.vq.ring.disarm();
                ready |= pair.rx.vq.ring.has_used();
            }
            if ready || !woken {
                return Ok(ready);
            }
        }
    }

    /// The queue pairs.
    #[must_use]
    pub fn pairs(&self) -> &[QueuePair] {
        &self.pairs
    }

    /// The queue pairs, to send and receive by each.
    #[must_use]
    pub fn pairs_mut(&mut self) -> &mut [QueuePair] {
        &mut self.pairs
    }

    /// The features in force (without the bit of the protocol features).
    #[must_use]
    pub fn features(&self) -> u64 {
        self.shape.features
    }

    /// Whether all of these features are in force.
    #[must_use]
    pub fn has(&self, features: u64) -> bool {
        self.shape.features & features == features
    }

    /// The guest's MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.config.mac
    }

    /// The configuration that the device was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Length of the header before each frame: 12, or 10 for legacy guests without merged buffers.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.shape.header_len
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, to say more by it.
    #[must_use]
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The session's socket without rules.
    #[must_use]
    pub fn raw(&self) -> &RawSession {
        self.session.raw()
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Guest memory, to take more of it.
    #[must_use]
    pub fn memory_mut(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// The session and guest memory together, to tell the back-end of changes.
    #[must_use]
    pub fn session_and_memory(&mut self) -> (&mut Session, &mut GuestMemory) {
        (&mut self.session, &mut self.memory)
    }

    /// A ring as anybody may write it (2N receives, 2N + 1 transmits). The device's own use of that ring is undefined
    /// after it was written by this.
    ///
    /// # Errors
    /// [`Error::Config`] for a ring that is not there.
    pub fn ring_access(&self, index: u16) -> Result<RingAccess> {
        let pair = self.pairs.get(usize::from(index / 2));
        let pair = pair.ok_or_else(|| Error::Config(format!("no ring {index}")))?;
        Ok(if index.is_multiple_of(2) { pair.rx.vq.access() } else { pair.tx.vq.access() })
    }
}

fn negotiate(session: &Session, config: &Config) -> Result<Shape> {
    let wanted = config.features & !features::PROTOCOL_FEATURES;
    let lacking = config.required & !session.offered();
    if lacking != 0 {
        return Err(Error::Config(format!("the back-end does not offer the required features {lacking:#x}")));
    }
    if let Some(max) = session.queue_num().filter(|&max| max < u64::from(config.queue_pairs)) {
        return Err(Error::Config(format!("{} queue pairs for a back-end of {max}", config.queue_pairs)));
    }
    if config.queue_pairs > 1 && session.queue_num().is_none() {
        return Err(Error::Config("several queue pairs for a back-end without multiqueue".into()));
    }
    Shape::new(config, wanted & session.offered())
}

fn make_pairs(memory: &mut GuestMemory, config: &Config, shape: &Shape) -> Result<Vec<QueuePair>> {
    let pair = |i: u16| {
        let rx = RxQueue::new(memory, shape, 2 * i, config.ring_base)?;
        let tx = TxQueue::new(memory, shape, 2 * i + 1, config.ring_base, config.timeout)?;
        Ok(QueuePair { rx, tx })
    };
    (0..config.queue_pairs).map(pair).collect()
}
