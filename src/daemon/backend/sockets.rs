//! The port of a network whose outside is the host's own sockets.

use std::sync::Arc;

use datapath::{QueueHost, QueueId, TxPort};
use sockets::{Control, SocketsRx, SocketsTx};
use switch_core::PortId;

use super::{Backend, Context, State};

/// A port of sockets.
pub(in crate::daemon) struct Sockets {
    id: PortId,
    host: Arc<dyn QueueHost>,
    control: Control,
    tx: Arc<SocketsTx>,
    rx: Option<SocketsRx>,
    queue: Option<QueueId>,
    broken: Option<String>,
}

impl Sockets {
    /// Opens the port. What it is asked and told later goes by the second.
    pub(in crate::daemon) fn new(
        settings: sockets::Settings,
        context: Context,
    ) -> Result<(Self, Control), String> {
        let (control, rx, tx) = sockets::open(settings).map_err(|e| format!("a descriptor: {e}"))?;
        let port = Self {
            id: context.id,
            host: context.host,
            control: control.clone(),
            tx: Arc::new(tx),
            rx: Some(rx),
            queue: None,
            broken: None,
        };
        Ok((port, control))
    }
}

impl Backend for Sockets {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx) as _
    }

    fn start(&mut self) {
        if let Some(rx) = self.rx.take() {
            self.queue = Some(self.host.attach(self.id, Box::new(rx)));
        }
    }

    fn state(&self) -> State {
        match &self.broken {
            Some(reason) => State::Error(reason.clone()),
            None => State::Up,
        }
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), String> {
        self.control.set_mtu(mtu);
        Ok(())
    }

    fn broken(&mut self, reason: &str) {
        self.broken = Some(reason.to_owned());
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.host.detach(queue);
        }
    }
}
