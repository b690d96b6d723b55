//! How ports hand their receive queues to the workers and get them back.

use switch_core::PortId;

use crate::port::RxQueue;

/// An attached receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub(crate) u64);

impl QueueId {
    /// For hosts of queues other than the datapath's own: in tests.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

/// Whoever polls receive queues: the datapath's workers, or a test in their place. Called off the workers
/// (by sessions and by the control thread), never by a worker.
pub trait QueueHost: Send + Sync {
    /// Hands a queue of `port` to a worker. Frames may be received before this returns.
    fn attach(&self, port: PortId, queue: Box<dyn RxQueue>) -> QueueId;

    /// Takes a queue back. When this returns, no worker polls it, no frame borrows its buffers, and what it
    /// had received was delivered. `None` if it was not attached.
    fn detach(&self, id: QueueId) -> Option<Box<dyn RxQueue>>;
}
