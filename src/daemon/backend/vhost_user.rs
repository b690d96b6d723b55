//! A port whose other end is a virtual machine's virtio-net device, by shared memory.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ctl::model::{PortSpec, Role as RoleWord};
use ctl::protocol::{PortDetail, Ring};
use datapath::TxPort;
use vhost_user::{PortConfig, PortState, Role, VhostUserPort};

use super::{Backend, Context, State};

/// A vhost-user port and when its peer came.
pub(in crate::daemon) struct VhostUser {
    port: VhostUserPort,
    since: Arc<Mutex<Option<Instant>>>,
}

impl VhostUser {
    /// Listens, or begins to connect.
    pub(in crate::daemon) fn new(spec: &PortSpec, path: &Path, context: Context) -> Result<Self, String> {
        let config = PortConfig {
            id: context.id,
            path: path.to_owned(),
            role: match spec.role {
                RoleWord::Server => Role::Server,
                RoleWord::Client => Role::Client,
            },
            queue_pairs: spec.queues,
            mtu: context.offered_mtu,
        };
        let since = Arc::new(Mutex::new(None));
        let up_since = Arc::clone(&since);
        let changed = context.changed;
        let on_change = move |state: PortState| {
            let now = (state == PortState::Up).then(Instant::now);
            *up_since.lock().unwrap_or_else(|e| e.into_inner()) = now;
            changed.notify_one();
        };
        let port = VhostUserPort::new(config, context.host, on_change).map_err(|e| e.to_string())?;
        Ok(Self { port, since })
    }
}

impl Backend for VhostUser {
    fn tx(&self) -> Arc<dyn TxPort> {
        self.port.tx()
    }

    // The session hands queues over when the guest's driver has set them up.
    fn start(&mut self) {}

    fn state(&self) -> State {
        match self.port.state() {
            PortState::Up => State::Up,
            PortState::Waiting => State::Waiting,
            PortState::Error(reason) => State::Error(reason),
            PortState::Down => State::Down,
        }
    }

    fn describe(&self, detail: &mut PortDetail) {
        let info = self.port.info();
        detail.role = Some(match info.role {
            Role::Server => "server".to_owned(),
            Role::Client => "client".to_owned(),
        });
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
        let since = *self.since.lock().unwrap_or_else(|e| e.into_inner());
        detail.uptime_s = since.map(|s| s.elapsed().as_secs());
    }
}
