//! The receive queue of a port that has one: kept until the topology knows the port, then handed to the workers, and taken
//! back when this is dropped.

use std::sync::Arc;

use datapath::{QueueHost, QueueId, RxQueue};
use switch_core::PortId;

/// See the module's text.
pub(super) struct Queue {
    id: PortId,
    host: Arc<dyn QueueHost>,
    /// Not handed to a worker yet.
    kept: Option<Box<dyn RxQueue>>,
    attached: Option<QueueId>,
}

impl Queue {
    pub(super) fn new(id: PortId, host: Arc<dyn QueueHost>, rx: impl RxQueue + 'static) -> Self {
        Self { id, host, kept: Some(Box::new(rx)), attached: None }
    }

    /// Hands it to the workers, once.
    pub(super) fn start(&mut self) {
        if let Some(rx) = self.kept.take() {
            self.attached = Some(self.host.attach(self.id, rx));
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(queue) = self.attached.take() {
            self.host.detach(queue);
        }
    }
}
