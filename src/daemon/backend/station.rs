//! The port of a network's gateway: the far end is a station of this process.

use std::sync::Arc;

use datapath::local::{self, LocalRx, LocalTx, Station as FarEnd};
use datapath::{QueueHost, QueueId, TxPort};
use switch_core::PortId;
use tokio::sync::Notify;

use super::{Backend, Context, State};

/// A gateway's port.
pub(in crate::daemon) struct Station {
    id: PortId,
    host: Arc<dyn QueueHost>,
    tx: Arc<LocalTx>,
    rx: Option<LocalRx>,
    queue: Option<QueueId>,
}

impl Station {
    /// A port, the far end of it, and who is told when frames wait there.
    pub(in crate::daemon) fn new(context: Context) -> Result<(Self, FarEnd, Arc<Notify>), String> {
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        let (far, rx, tx) = local::port(move || rung.notify_one()).map_err(|e| format!("an eventfd: {e}"))?;
        let station =
            Self { id: context.id, host: context.host, tx: Arc::new(tx), rx: Some(rx), queue: None };
        Ok((station, far, bell))
    }
}

impl Backend for Station {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx) as _
    }

    fn start(&mut self) {
        if let Some(rx) = self.rx.take() {
            self.queue = Some(self.host.attach(self.id, Box::new(rx)));
        }
    }

    fn state(&self) -> State {
        State::Up
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.host.detach(queue);
        }
    }
}
