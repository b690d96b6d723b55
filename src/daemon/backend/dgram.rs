//! A port whose other end is a process that sends frames as datagrams: QEMU's `-netdev dgram`.

use std::path::Path;
use std::sync::Arc;

use ctl::model::PortSpec;
use ctl::protocol::PortDetail;
use datapath::dgram::{self, DgramRx, DgramTx};
use datapath::{QueueHost, QueueId, TxPort};
use switch_core::PortId;

use super::{Backend, Context, State};

/// A datagram port.
pub(in crate::daemon) struct Dgram {
    id: PortId,
    host: Arc<dyn QueueHost>,
    tx: Arc<DgramTx>,
    remote: String,
    /// Not handed to a worker yet.
    rx: Option<DgramRx>,
    queue: Option<QueueId>,
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
            id: context.id,
            host: context.host,
            tx,
            remote: remote.display().to_string(),
            rx: Some(rx),
            queue: None,
            error: None,
        })
    }
}

impl Backend for Dgram {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx) as _
    }

    fn start(&mut self) {
        if let Some(rx) = self.rx.take() {
            self.queue = Some(self.host.attach(self.id, Box::new(rx)));
        }
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

impl Drop for Dgram {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.host.detach(queue);
        }
    }
}
