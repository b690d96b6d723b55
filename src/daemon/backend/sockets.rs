//! The port of a network whose outside is the host's own sockets.

use std::sync::Arc;

use datapath::TxPort;
use sockets::{Control, SocketsTx};

use super::queue::Queue;
use super::{Backend, Context, State};

/// A port of sockets.
pub(in crate::daemon) struct Sockets {
    control: Control,
    tx: Arc<SocketsTx>,
    queue: Queue,
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
            control: control.clone(),
            tx: Arc::new(tx),
            queue: Queue::new(context.id, context.host, rx),
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
        self.queue.start();
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
