//! A port whose other end is an IP stack of the host or of a namespace: the switch holds the tap's descriptor.

use std::sync::Arc;

use ctl::protocol::PortDetail;
use datapath::tap::Tap as Device;
use datapath::{QueueHost, QueueId, TxPort};
use switch_core::{MacAddr, PortId};

use super::{Backend, Context, State};

/// A tap and its queues.
pub(in crate::daemon) struct Tap {
    id: PortId,
    host: Arc<dyn QueueHost>,
    device: Device,
    tx: Arc<dyn TxPort>,
    queues: Vec<QueueId>,
    broken: Option<String>,
}

impl Tap {
    /// Makes the tap, or joins one that exists, and switches it on if `up`.
    pub(in crate::daemon) fn new(
        interface: &str,
        queues: u16,
        mac: Option<MacAddr>,
        up: bool,
        context: Context,
    ) -> Result<Self, String> {
        let device = Device::open(interface, queues.into()).map_err(|e| e.to_string())?;
        // An interface that was there before has a guest or an operator who chose its address.
        if let Some(mac) = mac.filter(|_| !device.joined()) {
            device.set_mac(mac).map_err(|e| e.to_string())?;
        }
        device.set_mtu(context.mtu.into()).map_err(|e| e.to_string())?;
        if up {
            device.set_up(true).map_err(|e| e.to_string())?;
        }
        let tx = Arc::new(device.tx());
        Ok(Self { id: context.id, host: context.host, device, tx, queues: Vec::new(), broken: None })
    }
}

impl Backend for Tap {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx)
    }

    fn start(&mut self) {
        if self.queues.is_empty() {
            self.queues =
                self.device.rx_queues().into_iter().map(|q| self.host.attach(self.id, Box::new(q))).collect();
        }
    }

    fn state(&self) -> State {
        match &self.broken {
            Some(reason) => State::Error(reason.clone()),
            None => State::Up,
        }
    }

    fn describe(&self, detail: &mut PortDetail) {
        detail.queues = self.device.queues() as u64;
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), String> {
        self.device.set_mtu(mtu.into()).map_err(|e| e.to_string())
    }

    fn broken(&mut self, reason: &str) {
        self.broken = Some(reason.to_owned());
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        for queue in self.queues.drain(..) {
            self.host.detach(queue);
        }
    }
}
