//! The port of a network's gateway: the far end is a station of this process.

use std::sync::Arc;

use datapath::TxPort;
use datapath::local::{self, LocalTx, Station as FarEnd};
use tokio::sync::Notify;

use super::queue::Queue;
use super::{Backend, Context, State};

/// A gateway's port.
pub(in crate::daemon) struct Station {
    tx: Arc<LocalTx>,
    queue: Queue,
}

impl Station {
    /// A port, the far end of it, and who is told when frames wait there.
    pub(in crate::daemon) fn new(context: Context) -> Result<(Self, FarEnd, Arc<Notify>), String> {
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        let (far, rx, tx) = local::port(move || rung.notify_one()).map_err(|e| format!("an eventfd: {e}"))?;
        let station = Self { tx: Arc::new(tx), queue: Queue::new(context.id, context.host, rx) };
        Ok((station, far, bell))
    }
}

impl Backend for Station {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx) as _
    }

    fn start(&mut self) {
        self.queue.start();
    }

    fn state(&self) -> State {
        State::Up
    }
}
