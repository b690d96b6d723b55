//! A port whose other end is a process that sends frames as datagrams: QEMU's `-netdev dgram`.

use std::path::Path;
use std::sync::Arc;

use ctl::model::PortSpec;
use ctl::protocol::PortDetail;
use datapath::TxPort;
use datapath::dgram::{self, DgramTx};

use super::queue::Queue;
use super::{Backend, Context, State};

/// A datagram port.
pub(in crate::daemon) struct Dgram {
    tx: Arc<DgramTx>,
    remote: String,
    queue: Queue,
    /// Why the receive queue broke.
    error: Option<String>,
}

impl Dgram {
    /// Binds the port's own socket. The peer's need not be there.
    pub(in crate::daemon) fn new(spec: &PortSpec, path: &Path, context: Context) -> Result<Self, String> {
        let remote = spec.remote.as_deref().ok_or("the peer's socket is not said")?;
        let changed = context.changed;
        let (rx, tx) = dgram::open(path, remote, move || changed.notify_one()).map_err(|e| e.to_string())?;
        Ok(Self {
            tx,
            remote: remote.display().to_string(),
            queue: Queue::new(context.id, context.host, rx),
            error: None,
        })
    }
}

impl Backend for Dgram {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx) as _
    }

    fn start(&mut self) {
        self.queue.start();
    }

    fn state(&self) -> State {
        match &self.error {
            Some(reason) => State::Error(reason.clone()),
            None => self.tx.state().into(),
        }
    }

    fn describe(&self, detail: &mut PortDetail) {
        detail.remote = Some(self.remote.clone());
    }

    fn broken(&mut self, reason: &str) {
        self.error = Some(reason.to_owned());
    }
}
