//! A frame's one pass through the switch: receive, check, decide, dispatch, transmit, release.
//!
//! One worker owns a path and calls it once per burst of a queue; simulations call it with a clock of their
//! own. It holds the memory of the burst, the worker's view of each network, and the topology that holds for
//! the burst.

use std::fmt;
use std::sync::Arc;

use switch_core::ids::Id;
use switch_core::mode::{Forwarder, Mode};
use switch_core::verdict::{BURST, Verdict, Verdicts};
use switch_core::{DropReason, Instant, NetworkId, PortId, check};

use crate::burst::Burst;
use crate::dispatch::Dispatcher;
use crate::port::{PortError, RxDrops, RxQueue};
use crate::topology::{PortEntry, Topology};

/// A forwarder and the mode that it was made by, to tell when the network has another.
struct View {
    network: NetworkId,
    mode: Arc<dyn Mode>,
    forwarder: Box<dyn Forwarder>,
}

/// What one look at a queue found.
#[derive(Debug)]
pub enum Found {
    /// No frame.
    Nothing,
    /// Frames, which went their ways.
    Frames(Carried),
    /// The port has sent what its rate allows; it was not asked. It may send again at this time.
    Throttled(Instant),
    /// The port failed.
    Broken(PortError),
}

/// What a burst was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Frames received, whatever became of them.
    pub frames: u64,
    /// Of those, the ones that were handed to at least one port.
    pub forwarded: u64,
    /// Bytes received, without virtio-net headers.
    pub bytes: u64,
}

/// See the module's text.
pub struct FramePath {
    topology: Arc<Topology>,
    views: Vec<Option<View>>,
    burst: Burst,
    verdicts: Verdicts,
    dispatcher: Dispatcher,
    index: usize,
}

impl fmt::Debug for FramePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramePath").field("index", &self.index).finish_non_exhaustive()
    }
}

impl FramePath {
    /// The path of worker `index`, on a switch without ports.
    pub fn new(index: usize) -> Self {
        Self {
            topology: Arc::default(),
            views: Vec::new(),
            burst: Burst::new(),
            verdicts: Verdicts::default(),
            dispatcher: Dispatcher::new(index),
            index,
        }
    }

    /// Takes over a topology: forwarders of networks that stay keep their caches.
    pub fn adopt(&mut self, topology: Arc<Topology>) {
        self.dispatcher.prepare(&topology);
        let mut views: Vec<Option<View>> = Vec::new();
        for network in topology.networks() {
            let slot = network.id.index();
            if views.len() <= slot {
                views.resize_with(slot + 1, || None);
            }
            let kept = self.views.get_mut(slot).and_then(Option::take);
            views[slot] = match kept {
                Some(view) if view.network == network.id && Arc::ptr_eq(&view.mode, &network.mode) => {
                    Some(view)
                }
                _ => Some(View {
                    network: network.id,
                    mode: Arc::clone(&network.mode),
                    forwarder: Arc::clone(&network.mode).forwarder(),
                }),
            };
        }
        self.views = views;
        self.topology = topology;
    }

    /// Takes one burst of a queue of port `from` the whole way. A queue whose port the topology does not have
    /// (it was just added, or is just going) is left alone.
    #[inline]
    pub fn carry(&mut self, now: Instant, from: PortId, queue: &mut dyn RxQueue) -> Found {
        self.carry_at_most(BURST, now, from, queue)
    }

    /// The same, of at most `most` frames, 1 to [`BURST`].
    #[inline]
    pub fn carry_at_most(
        &mut self,
        most: usize,
        now: Instant,
        from: PortId,
        queue: &mut dyn RxQueue,
    ) -> Found {
        let Some(port) = self.topology.port(from) else { return Found::Nothing };
        if let Some(rate) = &port.rate
            && let Some(until) = rate.wait_until(now)
        {
            return Found::Throttled(until);
        }
        self.burst.begin(most);
        self.burst.from = Some(port.id);
        let mut drops = RxDrops::default();
        let received = match queue.rx_burst(&mut self.burst, &mut drops) {
            Ok(n) => n,
            Err(error) => return Found::Broken(error),
        };
        if received == 0 && drops.is_empty() {
            port.counters.cell(self.index).looked_in_vain();
            return Found::Nothing;
        }
        let mut carried = admit(self.index, port, &mut self.burst, &drops);
        if !self.burst.is_empty() {
            self.verdicts.begin(self.burst.len());
            if let Some(to) = self.burst.direct {
                self.verdicts.as_mut_slice().fill(Verdict::Unicast(to));
            } else if let Some(Some(view)) = self.views.get_mut(port.network.index()) {
                view.forwarder.decide(now, port.id, self.burst.heads_mut(), &mut self.verdicts);
            }
            carried.forwarded =
                self.dispatcher.deliver(&self.topology, port, &mut self.burst, &self.verdicts);
        }
        queue.release();
        Found::Frames(carried)
    }

    /// Counts what the burst that was just carried took, in [ticks](crate::ticks).
    #[inline]
    pub fn charge(&self, from: PortId, cycles: u64) {
        if let Some(port) = self.topology.port(from) {
            port.counters.cell(self.index).took(cycles);
        }
    }

    /// Counts that a queue of the port woke its worker.
    pub fn woken(&self, by: PortId) {
        if let Some(port) = self.topology.port(by) {
            port.counters.cell(self.index).woke();
        }
    }

    /// Ports whose transmit side failed since the last call.
    pub fn broken(&mut self) -> impl Iterator<Item = (PortId, PortError)> + '_ {
        self.dispatcher.broken.drain(..)
    }
}

/// Counts a received burst, checks its frames, and keeps those that may go on.
#[inline]
fn admit(worker: usize, port: &PortEntry, burst: &mut Burst, drops: &RxDrops) -> Carried {
    let cell = port.counters.cell(worker);
    let accepted = burst.accepted;
    let received = burst.len();
    let mut bytes = 0;
    let mut refused = 0u64;
    for (i, head) in burst.heads_mut().iter_mut().enumerate() {
        bytes += head.frame_len() as u64;
        let admitted = check::frame(head, accepted).and_then(|()| {
            if let Some(pvid) = port.pvid {
                match head.vlan {
                    None => head.vlan = Some(pvid),
                    Some(vid) if vid != pvid => return Err(DropReason::VlanDenied),
                    Some(_) => {}
                }
            }
            match &port.guard {
                Some(guard) if !guard.allows(head) => Err(DropReason::SourceDenied),
                _ => Ok(()),
            }
        });
        if let Err(reason) = admitted {
            cell.dropped(reason, 1);
            refused |= 1 << i;
        }
    }
    if let Some(rate) = &port.rate {
        rate.spend(bytes);
    }
    let mut frames = received as u64;
    if !drops.is_empty() {
        for (reason, n) in drops.iter() {
            cell.dropped(reason, n);
            frames += n;
        }
        bytes += drops.bytes;
    }
    cell.received(frames, bytes);
    if refused != 0 {
        burst.retain(!refused);
    }
    Carried { frames, forwarded: 0, bytes }
}
