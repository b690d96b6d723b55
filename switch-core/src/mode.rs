//! The contract between the datapath and a network's forwarding mode.
//!
//! A mode has two faces. [`Mode`] is the network's shared state: tables, timers, what an operator asks. A
//! [`Forwarder`] is one worker's view of it, with that worker's caches: it is called once per burst and is the
//! only dynamic call that a mode costs. Modes know ports by [`PortId`] and never what kind a port is.

use std::sync::Arc;

use crate::fdb::FdbAccess;
use crate::head::Head;
use crate::ids::PortId;
use crate::time::Instant;
use crate::verdict::Verdicts;

/// A network's forwarding, shared by all workers.
pub trait Mode: Send + Sync {
    /// The view of one more worker.
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder>;

    /// When [`Mode::tick`] next has something to do. Called by the control thread.
    fn poll_at(&self) -> Option<Instant>;

    /// Does what is due: ageing, timers. Called by the control thread.
    fn tick(&self, now: Instant);

    /// A port left the network: forget what points to it.
    fn port_removed(&self, port: PortId);

    /// The forwarding database, of modes that have one.
    fn fdb(&self) -> Option<&dyn FdbAccess> {
        None
    }
}

/// One worker's view of a network's forwarding.
pub trait Forwarder: Send {
    /// Decides the frames of a burst, all received from `ingress`, and may rewrite their heads. The frames
    /// were checked; `heads[i]` gets the verdict `out[i]`.
    fn decide(&mut self, now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts);
}
