//! A port whose other end is a virtual machine's virtio-net device, by shared memory.

use std::path::Path;
use std::sync::Arc;

use ctl::model::PortSpec;
use ctl::protocol::{PortDetail, Ring};
use datapath::TxPort;
use vhost_user::{PortConfig, PortState, VhostUserPort};

use super::{Backend, Context, Since, State, role};

/// A vhost-user port and when its peer came.
pub(in crate::daemon) struct VhostUser {
    port: VhostUserPort,
    role: &'static str,
    since: Since,
}

impl VhostUser {
    /// Listens, or begins to connect.
    pub(in crate::daemon) fn new(spec: &PortSpec, path: &Path, context: Context) -> Result<Self, String> {
        let config = PortConfig {
            id: context.id,
            path: path.to_owned(),
            role: role(spec),
            queue_pairs: spec.queues,
            mtu: context.offered_mtu,
        };
        let since = Since::default();
        let (up_since, changed) = (since.clone(), context.changed);
        let on_change = move |state: PortState| {
            up_since.changed(&state);
            changed.notify_one();
        };
        let port = VhostUserPort::new(config, context.host, on_change).map_err(|e| e.to_string())?;
        Ok(Self { port, role: spec.role.as_str(), since })
    }
}

impl Backend for VhostUser {
    fn tx(&self) -> Arc<dyn TxPort> {
        self.port.tx()
    }

    // The session hands queues over when the guest's driver has set them up.
    fn start(&mut self) {}

    fn state(&self) -> State {
        self.port.state().into()
    }

    fn describe(&self, detail: &mut PortDetail) {
        let info = self.port.info();
        detail.role = Some(self.role.to_owned());
        detail.features = info.connected.then(|| info.features.iter().map(|&f| f.to_owned()).collect());
        let ring = |r: &vhost_user::RingInfo| Ring {
            index: r.index as u64,
            size: r.size.into(),
            state: match (r.running, r.enabled) {
                (true, _) => "enabled",
                (false, true) => "stopped",
                (false, false) => "disabled",
            }
            .to_owned(),
        };
        detail.rings = info.connected.then(|| info.rings.iter().map(ring).collect());
        detail.uptime_s = self.since.seconds();
    }
}
