//! A port whose other end is a process that sends each frame after its length: QEMU's `-netdev stream`.

use std::path::Path;
use std::sync::Arc;

use ctl::model::PortSpec;
use ctl::protocol::PortDetail;
use datapath::TxPort;
use datapath::peer::PortState;
use datapath::stream::{StreamConfig, StreamPort};

use super::{Backend, Context, Since, State, role};

/// A stream port and when its peer came.
pub(in crate::daemon) struct Stream {
    port: StreamPort,
    role: &'static str,
    since: Since,
}

impl Stream {
    /// Listens, or begins to connect.
    pub(in crate::daemon) fn new(spec: &PortSpec, path: &Path, context: Context) -> Result<Self, String> {
        let config = StreamConfig { id: context.id, path: path.to_owned(), role: role(spec) };
        let since = Since::default();
        let (up_since, changed) = (since.clone(), context.changed);
        let on_change = move |state: PortState| {
            up_since.changed(&state);
            changed.notify_one();
        };
        let port = StreamPort::new(config, context.host, on_change).map_err(|e| e.to_string())?;
        Ok(Self { port, role: spec.role.as_str(), since })
    }
}

impl Backend for Stream {
    fn tx(&self) -> Arc<dyn TxPort> {
        self.port.tx()
    }

    // The port hands a queue over when a peer is there.
    fn start(&mut self) {}

    fn state(&self) -> State {
        self.port.state().into()
    }

    fn describe(&self, detail: &mut PortDetail) {
        detail.role = Some(self.role.to_owned());
        detail.uptime_s = self.since.seconds();
    }
}
