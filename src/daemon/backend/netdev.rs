//! A port that is an interface of the host: a NIC, a veth, a Xen vif, a tap whose descriptor a monitor holds.
//!
//! The interface may be taken away and come back under the port: while it is gone the port waits, and what is
//! sent to it is dropped as `egress_down`.

use std::sync::Arc;

use ctl::protocol::PortDetail;
use datapath::netdev::{Netdev as Device, NetdevRx};
use datapath::port::Absent;
use datapath::{QueueHost, QueueId, TxPort};
use switch_core::PortId;

use super::{Backend, Context, State};

/// An interface, when it is there.
pub(in crate::daemon) struct Netdev {
    id: PortId,
    host: Arc<dyn QueueHost>,
    interface: String,
    device: Option<Device>,
    tx: Arc<dyn TxPort>,
    /// Opened, and not handed to a worker yet.
    idle: Option<NetdevRx>,
    queue: Option<QueueId>,
    /// Why it could not be opened again, or why it broke.
    error: Option<String>,
}

impl Netdev {
    /// Opens the interface. Errors: there is none, it is no Ethernet interface, or we may not.
    pub(in crate::daemon) fn new(interface: &str, context: Context) -> Result<Self, String> {
        let mut this = Self {
            id: context.id,
            host: context.host,
            interface: interface.to_owned(),
            device: None,
            tx: Arc::new(Absent),
            idle: None,
            queue: None,
            error: None,
        };
        this.open()?;
        Ok(this)
    }

    fn open(&mut self) -> Result<(), String> {
        let (device, rx, tx) = Device::open(&self.interface).map_err(|e| e.to_string())?;
        self.device = Some(device);
        self.tx = Arc::new(tx);
        self.idle = Some(rx);
        self.error = None;
        Ok(())
    }

    fn close(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.host.detach(queue);
        }
        self.idle = None;
        self.device = None;
        self.tx = Arc::new(Absent);
    }

    /// Whether the interface that is open is still the one of that name.
    fn is_there(&self) -> bool {
        let link = self.device.as_ref().and_then(|d| d.link().ok().flatten());
        link.is_some_and(|l| l.name == self.interface)
    }
}

impl Backend for Netdev {
    fn tx(&self) -> Arc<dyn TxPort> {
        Arc::clone(&self.tx)
    }

    fn start(&mut self) {
        if let Some(rx) = self.idle.take() {
            self.queue = Some(self.host.attach(self.id, Box::new(rx)));
        }
    }

    fn state(&self) -> State {
        match (&self.device, &self.error) {
            (_, Some(reason)) => State::Error(reason.clone()),
            (None, None) => State::Waiting,
            (Some(device), None) => match device.link() {
                Ok(Some(link)) if link.up => State::Up,
                _ => State::Down,
            },
        }
    }

    fn describe(&self, detail: &mut PortDetail) {
        detail.queues = 1;
    }

    fn link_mtu(&self) -> Option<u16> {
        let link = self.device.as_ref()?.link().ok().flatten()?;
        Some(u16::try_from(link.mtu).unwrap_or(u16::MAX))
    }

    fn broken(&mut self, reason: &str) {
        self.error = Some(reason.to_owned());
        self.close();
    }

    fn refresh(&mut self) -> bool {
        if self.device.is_some() {
            if self.is_there() {
                return false;
            }
            self.close();
            return true;
        }
        if !datapath::netdev::is_present(&self.interface) {
            // Gone for good or for now: there is nothing wrong with the port itself.
            self.error = None;
            return false;
        }
        match self.open() {
            Ok(()) => true,
            Err(reason) => {
                self.error = Some(reason);
                false
            }
        }
    }
}

impl Drop for Netdev {
    fn drop(&mut self) {
        self.close();
    }
}
