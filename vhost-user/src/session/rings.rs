//! A port's rings as its session sees them: set up by messages, started when all is there, stopped before
//! anything changes under them.
//!
//! Owned by the session's thread. A ring *runs* as one of two things: a guest's transmit queue (odd
//! indices) is attached to the workers as a receive queue; a guest's receive queue (even indices) lies in
//! the port's transmit side. Stopping either is synchronous: when [`Rings::stop`] returns, nobody touches the ring or
//! the memory behind it.

use std::sync::Arc;

use datapath::{PortError, QueueHost, QueueId};
use switch_core::PortId;

use crate::features;
use crate::memory::GuestMemory;
use crate::port::Shared;
use crate::vring::notify::Event;
use crate::vring::{AnyRing, Direction, Layout, RingFeatures, RingSetup, RingShared, SetupError};

/// How the driver wakes us.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// `SET_VRING_KICK` has not come yet: the ring is not to be started.
    #[default]
    Unset,
    /// It came without a descriptor: we poll.
    Polled,
    Event(Arc<Event>),
}

#[derive(Debug)]
enum Running {
    No,
    Receiving(QueueId),
    Transmitting,
}

/// One ring: what the front-end said of it, and whether it runs.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) size: Option<u32>,
    pub(super) layout: Option<Layout>,
    /// Where to go on, as `SET_VRING_BASE` and `GET_VRING_BASE` have it. Set by the one and by stopping.
    pub(super) next: Option<u32>,
    pub(super) kick: Kick,
    pub(super) enabled: bool,
    pub(super) error_event: Option<Event>,
    pub(super) shared: Arc<RingShared>,
    running: Running,
    /// The memory changed, and the ring is not in the new table: it waits for new addresses.
    unmapped: bool,
}

impl Ring {
    fn new(shared: Arc<RingShared>) -> Self {
        Self {
            size: None,
            layout: None,
            next: None,
            kick: Kick::Unset,
            enabled: false,
            error_event: None,
            shared,
            running: Running::No,
            unmapped: false,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        !matches!(self.running, Running::No)
    }

    fn setup(&self, features: u64) -> Option<RingSetup> {
        let wanted =
            self.enabled && !matches!(self.kick, Kick::Unset) && !self.shared.is_broken() && !self.unmapped;
        match (wanted, self.size, self.layout) {
            (true, Some(size), Some(layout)) => Some(RingSetup { layout, size, next: self.next, features }),
            _ => None,
        }
    }
}

/// Where a ring goes on, in the form of `GET_VRING_BASE`. In a packed ring that is two places, and as none of its buffers
/// is ever kept over a stop, both are the same.
pub(super) fn base(next: u16, features: u64) -> u32 {
    let next = u32::from(next);
    if features & (1 << features::RING_PACKED) == 0 { next } else { next | next << 16 }
}

/// What a person reads of [`SetupError::Position`].
const POSITION_LOST: &str =
    "nobody knows where this packed ring stands any more; the guest's driver has to reset its device";

/// Why a ring did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("ring {index}: {source}")]
    Setup { index: usize, source: SetupError },
    #[error("ring {index}: cannot make an eventfd: {source}")]
    Event { index: usize, source: std::io::Error },
}

/// See the module's text.
pub(super) struct Rings {
    list: Vec<Ring>,
    memory: Option<Arc<GuestMemory>>,
    /// Agreed virtio features.
    features: u64,
    port: PortId,
    host: Arc<dyn QueueHost>,
    shared: Arc<Shared>,
}

impl Rings {
    pub(super) fn new(count: usize, port: PortId, host: Arc<dyn QueueHost>, shared: Arc<Shared>) -> Self {
        let list = (0..count).map(|_| Ring::new(Arc::default())).collect();
        Self { list, memory: None, features: 0, port, host, shared }
    }

    pub(super) fn list(&self) -> &[Ring] {
        &self.list
    }

    pub(super) fn get(&mut self, index: usize) -> Option<&mut Ring> {
        self.list.get_mut(index)
    }

    pub(super) fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.memory.as_ref()
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Starts the ring if it is to run and does not.
    pub(super) fn start(&mut self, index: usize) -> Result<(), StartError> {
        let Some(ring) = self.list.get_mut(index) else { return Ok(()) };
        if ring.is_running() {
            return Ok(());
        }
        let (Some(memory), Some(setup)) = (&self.memory, ring.setup(self.features)) else { return Ok(()) };
        let features = RingFeatures::new(self.features);
        let direction = if index % 2 == 1 { Direction::Readable } else { Direction::Writable };
        let made = match AnyRing::new(&setup, direction, Arc::clone(memory), Arc::clone(&ring.shared)) {
            Err(source @ SetupError::Position) => {
                // The session goes on, so that the driver can reset the device.
                tracing::warn!(ring = index, "{source}");
                ring.shared.set_broken(&PortError::Protocol(POSITION_LOST));
                return Ok(());
            }
            other => other.map_err(|source| StartError::Setup { index, source })?,
        };
        if direction == Direction::Readable {
            let kick = match &ring.kick {
                Kick::Event(event) => Some(Arc::clone(event)),
                _ => None,
            };
            let queue = made
                .into_rx(&features, kick, self.shared.on_broken())
                .map_err(|source| StartError::Event { index, source })?;
            ring.running = Running::Receiving(self.host.attach(self.port, queue));
        } else {
            self.shared.tx.put(index / 2, made.into_tx(&features), features.to_driver);
            ring.running = Running::Transmitting;
        }
        // The driver may have missed a call of the last run's.
        ring.shared.call.signal();
        tracing::debug!(ring = index, size = setup.size, "ring started");
        Ok(())
    }

    /// Starts every ring that is to run.
    pub(super) fn start_all(&mut self) -> Result<(), StartError> {
        (0..self.list.len()).try_for_each(|index| self.start(index))
    }

    /// Stops the ring. When this returns nobody touches it.
    pub(super) fn stop(&mut self, index: usize) {
        let Some(ring) = self.list.get_mut(index) else { return };
        match std::mem::replace(&mut ring.running, Running::No) {
            Running::No => return,
            Running::Receiving(id) => drop(self.host.detach(id)),
            Running::Transmitting => self.shared.tx.take(index / 2),
        }
        ring.next = Some(base(ring.shared.next(), self.features));
        tracing::debug!(ring = index, "ring stopped");
    }

    /// Stops every ring.
    pub(super) fn stop_all(&mut self) {
        for index in 0..self.list.len() {
            self.stop(index);
        }
    }

    /// Stops the rings that were quarantined since the last call; the first new reason.
    pub(super) fn stop_broken(&mut self) {
        for index in 0..self.list.len() {
            if self.list[index].is_running() && self.list[index].shared.is_broken() {
                self.stop(index);
                if let Some(event) = &self.list[index].error_event {
                    event.signal();
                }
            }
        }
    }

    /// Why a ring is in quarantine, if one is.
    pub(super) fn fault(&self) -> Option<String> {
        self.list.iter().enumerate().find_map(|(i, r)| Some(format!("ring {i}: {}", r.shared.reason()?)))
    }

    /// True if the memory behind the rings was lost.
    pub(super) fn memory_lost(&self) -> bool {
        self.memory.as_ref().is_some_and(|m| m.poisoned())
    }

    /// Stops the rings, swaps the memory, and starts again those that are in the new one. The others wait for
    /// new addresses.
    pub(super) fn set_memory(&mut self, memory: GuestMemory) -> Result<(), StartError> {
        self.stop_all();
        self.memory = Some(Arc::new(memory));
        for index in 0..self.list.len() {
            self.list[index].unmapped = false;
            match self.start(index) {
                Err(StartError::Setup {
                    source: SetupError::Outside(_) | SetupError::Unaligned(_), ..
                }) => {
                    self.list[index].unmapped = true;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Stops the rings, agrees on features, and starts the rings again.
    pub(super) fn set_features(&mut self, agreed: u64) -> Result<(), StartError> {
        if agreed != self.features {
            self.stop_all();
            self.features = agreed;
        }
        if agreed & (1 << features::PROTOCOL_FEATURES) == 0 {
            // vhost-user, "Ring states": such a front-end cannot enable rings, so they begin enabled.
            self.list.iter_mut().for_each(|ring| ring.enabled = true);
        }
        self.start_all()
    }

    /// New addresses: the ring starts anew.
    pub(super) fn set_layout(&mut self, index: usize, layout: Layout) -> Result<(), StartError> {
        self.renew(index);
        if let Some(ring) = self.list.get_mut(index) {
            ring.layout = Some(layout);
        }
        self.start(index)
    }

    /// Stops the ring and ends its quarantine: the driver sets it up anew.
    pub(super) fn renew(&mut self, index: usize) {
        self.stop(index);
        if let Some(ring) = self.list.get_mut(index) {
            ring.shared.mend();
            ring.unmapped = false;
        }
    }

    /// The same, and the front-end is told where the ring stands.
    pub(super) fn hand_over(&mut self, index: usize) {
        let shared = self.list.get(index).map(|ring| Arc::clone(&ring.shared));
        if let Some(shared) = &shared {
            shared.set_handed_over(true);
        }
        self.renew(index);
        if let Some(shared) = &shared {
            shared.set_handed_over(false);
        }
    }

    /// Stops all and forgets all but the memory and the calls (`RESET_OWNER`, `RESET_DEVICE`).
    pub(super) fn reset(&mut self) {
        for index in 0..self.list.len() {
            self.renew(index);
            let ring = &mut self.list[index];
            (ring.size, ring.layout, ring.next) = (None, None, None);
            ring.kick = Kick::Unset;
            ring.enabled = false;
        }
        self.features = 0;
    }

    /// Stops all and lets go of the memory and every descriptor.
    pub(super) fn tear_down(&mut self) {
        self.stop_all();
        for ring in &mut self.list {
            ring.shared.call.set(None);
            *ring = Ring::new(Arc::default());
        }
        self.memory = None;
        self.features = 0;
    }

    /// Lets a frame enter the switch as if the guest had sent it, now or when a ring starts.
    pub(super) fn inject(&self, frame: &[u8]) -> bool {
        let from = |ring: &&Ring| matches!(ring.running, Running::Receiving(_));
        let Some(ring) = self.list.iter().find(from).or(self.list.get(1)) else { return false };
        let kick = match &ring.kick {
            Kick::Event(event) if ring.is_running() => Some(&**event),
            _ => None,
        };
        ring.shared.inject(frame.into(), kick)
    }
}
