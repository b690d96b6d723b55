//! An internal network: guests among themselves, and nobody else. libvirt calls it isolated.
//!
//! It is a learning bridge without a way out, which holds by what it lacks: it is made without a port of the host or
//! an uplink, nothing in it routes, and the gateway, if there is one, answers for its own addresses only. What a guest
//! sends elsewhere ends at the gateway's port or at the guests.
//!
//! The gateway's address is a configured entry of the table: no guest can take it over.

use std::sync::Arc;
use std::time::Duration;

use switch_core::fdb::FdbAccess;
use switch_core::ids::{MacAddr, PortId};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::time::Instant;

use crate::bridge::Bridge;

/// See the module's text.
#[derive(Debug)]
pub struct Internal {
    bridge: Arc<Bridge>,
    gateway: MacAddr,
}

impl Internal {
    /// A network whose gateway, when it has one, has the address `gateway`. `ageing` and `limit` are those of
    /// [`switch_core::fdb::Table`].
    pub fn new(gateway: MacAddr, ageing: Duration, limit: usize) -> Self {
        Self { bridge: Arc::new(Bridge::new(ageing, limit)), gateway }
    }
}

impl Mode for Internal {
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder> {
        Arc::clone(&self.bridge).forwarder()
    }

    fn poll_at(&self) -> Option<Instant> {
        self.bridge.poll_at()
    }

    fn tick(&self, now: Instant) {
        self.bridge.tick(now);
    }

    fn port_changed(&self, port: PortId, facts: &PortFacts) {
        if facts.role == Role::Gateway {
            // Fails only when the table is full of configured entries, and this is the first.
            let _ = self.bridge.add_static(self.gateway, None, port);
        }
    }

    fn port_removed(&self, port: PortId) {
        self.bridge.port_removed(port);
    }

    fn fdb(&self) -> Option<&dyn FdbAccess> {
        self.bridge.fdb()
    }
}

#[cfg(test)]
mod tests {
    use switch_core::ids::Registry;
    use switch_core::{Head, Verdict, Verdicts};

    use super::*;

    const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn decide(forwarder: &mut dyn Forwarder, from: PortId, to: MacAddr, source: MacAddr) -> Verdict {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&source.0);
        let mut heads = [Head::from_frame(&frame)];
        let mut out = Verdicts::default();
        out.begin(1);
        forwarder.decide(Instant::from_secs(1), from, &mut heads, &mut out);
        out.as_slice()[0]
    }

    #[test]
    fn the_gateway_is_found_at_once_and_cannot_be_taken_over() {
        let mut ports = Registry::<PortId>::new(4);
        let (gateway, one, two) = (ports.mint().unwrap(), ports.mint().unwrap(), ports.mint().unwrap());
        let mode = Arc::new(Internal::new(GATEWAY, Duration::from_secs(300), 16));
        mode.port_changed(gateway, &PortFacts { role: Role::Gateway, ..PortFacts::default() });
        let mut forwarder = Arc::clone(&mode).forwarder();
        let (a, b) = (MacAddr([2, 0, 0, 0, 1, 1]), MacAddr([2, 0, 0, 0, 1, 2]));
        assert_eq!(decide(&mut *forwarder, one, GATEWAY, a), Verdict::Unicast(gateway));
        // A guest that claims the gateway's address changes nothing for the others.
        decide(&mut *forwarder, two, a, GATEWAY);
        assert_eq!(decide(&mut *forwarder, one, GATEWAY, a), Verdict::Unicast(gateway));
        assert_eq!(decide(&mut *forwarder, two, a, b), Verdict::Unicast(one));
        mode.port_removed(gateway);
        assert_eq!(decide(&mut *forwarder, one, GATEWAY, a), Verdict::Flood);
    }
}
