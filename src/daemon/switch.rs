//! The networks and ports of this host: what the ctl socket and the configuration file change.
//!
//! Owned by the control thread; the lock is there because the ctl server asks for a shared object, and is never
//! contended. Invariants: every port's network exists; no two ports or networks have a name or claim the same
//! interface or socket; the workers' topology says what this says, except inside a call. A change is checked
//! whole first, then what can fail is done (making a tap, binding a socket), and only then is it recorded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant as Clock};

use anyhow::Context as _;
use ctl::model::{Claim, NetworkSpec, PortSpec};
use ctl::protocol::Refusal;
use datapath::QueueHost;
use datapath::counters::PortCounters;
use datapath::police::RateLimit;
use datapath::pool::{Datapath, Moved};
use datapath::topology::{PortEntry, Topology};
use modes::nat::Nat;
use switch_core::guard::SourceGuard;
use switch_core::ids::Registry;
use switch_core::mode::{Mode, PortFacts, Role};
use switch_core::{Instant, NetworkId, PortId};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::backend::{Backend, Context, State};
use super::compose;
use super::gateways::Told;
use super::plumbing::{HostSide, Plumbing};
use super::services::{Running, Services, Shared};

/// The MTU of networks that name none, in bytes: Ethernet's.
pub(super) const MTU_DEFAULT: u16 = 1500;
/// Ports of a switch, at most.
const PORTS_MAX: u16 = 4096;
/// Networks of a switch, at most.
pub(super) const NETWORKS_MAX: u16 = 1024;

/// Why a port exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An operator added it.
    Added(Box<PortSpec>),
    /// It is its network's interface to the host.
    HostInterface,
    /// It is its network's uplink.
    Uplink,
    /// It is its network's way to the host's sockets.
    Sockets,
    /// It is the switch's own station on its network.
    Gateway,
}

impl Purpose {
    /// What the port is to its network's mode.
    fn role(&self) -> Role {
        match self {
            Self::Added(_) => Role::Guest,
            Self::HostInterface => Role::HostInterface,
            Self::Uplink | Self::Sockets => Role::Uplink,
            Self::Gateway => Role::Gateway,
        }
    }
}

/// A port of the switch.
pub(super) struct Port {
    pub(super) id: PortId,
    pub(super) network: String,
    pub(super) purpose: Purpose,
    pub(super) backend: Box<dyn Backend>,
    pub(super) counters: Arc<PortCounters>,
    /// `KIND:ARG`.
    pub(super) kind: String,
    pub(super) rate: Option<Arc<RateLimit>>,
    last: State,
    last_mtu: Option<u16>,
}

/// A network of the switch.
pub(super) struct Network {
    pub(super) id: NetworkId,
    pub(super) spec: NetworkSpec,
    pub(super) mode: Arc<dyn Mode>,
    /// Its translation, if the switch does that itself.
    pub(super) nat: Option<Arc<Nat>>,
    /// The port of the host's sockets, if they are its outside, once it is there.
    pub(super) sockets: Option<sockets::Control>,
    /// The gateway, once its port is there.
    pub(super) gateway: Option<(Shared, Running)>,
    /// What an operator told it of single guests.
    pub(super) told: Told,
    /// What it changed of the host.
    pub(super) host_side: HostSide,
}

/// Everything that there is.
pub(super) struct Everything {
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) ports: BTreeMap<String, Port>,
    pub(super) port_ids: Registry<PortId>,
    pub(super) network_ids: Registry<NetworkId>,
}

/// See the module's text.
pub(super) struct Host {
    pub(super) datapath: Arc<Datapath>,
    pub(super) started: Clock,
    /// Told by sessions when their peer came or went.
    pub(super) changed: Arc<Notify>,
    pub(super) state_dir: PathBuf,
    pub(super) services: Services,
    pub(super) plumbing: Plumbing,
    inner: Mutex<Everything>,
}

pub(super) type Done = Result<(), Refusal>;

impl Everything {
    /// The MTU that holds for a port of a network, and the one to offer, if one was asked for.
    pub(super) fn mtu(&self, network: &str, own: Option<u16>) -> (u16, Option<u16>) {
        let asked = own.or_else(|| self.networks.get(network).and_then(|n| n.spec.mtu));
        (asked.unwrap_or(MTU_DEFAULT), asked)
    }

    /// Refuses what another network or port has already.
    pub(super) fn check_claims(&self, claims: &[Claim], what: &str, except: Option<&str>) -> Done {
        let networks = self.networks.values().filter(|n| Some(&*n.spec.name) != except);
        let networks = networks.map(|n| (format!("network {}", n.spec.name), n.spec.claims()));
        let ports = self.ports.iter().filter_map(|(name, p)| match &p.purpose {
            Purpose::Added(spec) => Some((format!("port {name}"), spec.claims())),
            _ => None,
        });
        for (owner, taken) in networks.chain(ports) {
            if let Some(claim) = claims.iter().find(|c| taken.contains(c)) {
                return Err(Refusal::refused(format!("{what}: {claim} is {owner}'s already: take another")));
            }
        }
        Ok(())
    }

    pub(super) fn check_port_name(&self, name: &str, what: &str) -> Done {
        if self.ports.contains_key(name) {
            return Err(Refusal::refused(format!(
                "{what}: there is a port {name} already: take another name"
            )));
        }
        Ok(())
    }

    /// What the mode of a port's network is told of it.
    pub(super) fn facts(&self, port: &Port) -> PortFacts {
        let role = port.purpose.role();
        // What is longer than the interface takes is lost there, and nobody would be told.
        let mtu = |own| {
            let mtu = self.mtu(&port.network, own).0;
            port.last_mtu.map_or(mtu, |link| mtu.min(link))
        };
        match &port.purpose {
            Purpose::Added(spec) => PortFacts {
                role,
                mac: spec.mac,
                addresses: spec.ip.clone(),
                routes: spec.routes.clone(),
                mtu: mtu(spec.mtu),
            },
            _ => PortFacts {
                role,
                mac: (role == Role::HostInterface)
                    .then(|| self.networks.get(&port.network).map(|n| compose::host_mac(&n.spec)))
                    .flatten(),
                mtu: mtu(None),
                ..PortFacts::default()
            },
        }
    }

    /// Tells the mode of a port's network what holds for the port.
    pub(super) fn tell_mode(&self, name: &str) {
        if let Some(port) = self.ports.get(name)
            && let Some(network) = self.networks.get(&port.network)
        {
            network.mode.port_changed(port.id, &self.facts(port));
            if let Some((gateway, _)) = &network.gateway {
                if port.purpose.role() == Role::Guest {
                    gateway.lock().guest_added(port.id);
                }
                gateway.wake();
            }
        }
    }

    fn entry(&self, port: &Port) -> Option<PortEntry> {
        let network = self.networks.get(&port.network)?;
        let spec = match &port.purpose {
            Purpose::Added(spec) => Some(spec),
            _ => None,
        };
        let guard = spec
            .filter(|s| s.antispoof)
            .map(|s| Arc::new(SourceGuard { mac: s.mac, addresses: s.ip.clone() }));
        Some(PortEntry {
            id: port.id,
            network: network.id,
            tx: port.backend.tx(),
            counters: Arc::clone(&port.counters),
            pvid: spec.and_then(|s| s.vlan),
            isolated: spec.is_some_and(|s| s.isolated),
            flooded: compose::is_flooded(&network.spec, port.purpose.role()),
            mtu: compose::longest(port.purpose.role(), self.mtu(&port.network, spec.and_then(|s| s.mtu)).0),
            guard,
            rate: port.rate.clone(),
        })
    }
}

pub(super) fn rate_limit(spec: &PortSpec) -> Option<Arc<RateLimit>> {
    let rate = spec.rate?;
    let window = Duration::from_micros(rate.window_us().into());
    Some(Arc::new(RateLimit::new(rate.window_bytes().into(), window)))
}

impl Host {
    /// A switch without networks, whose leases and journals are in `state_dir`.
    ///
    /// # Errors
    /// No thread for the gateways to be had; what an earlier daemon left of the host cannot be put back.
    pub(super) fn new(datapath: Arc<Datapath>, state_dir: &Path) -> anyhow::Result<Self> {
        let changed = Arc::new(Notify::new());
        let services =
            Services::start(Arc::clone(&datapath)).context("starting the thread of the gateways")?;
        let plumbing = Plumbing::start(state_dir, Arc::clone(&changed))?;
        Ok(Self {
            datapath,
            started: Clock::now(),
            changed,
            state_dir: state_dir.to_owned(),
            services,
            plumbing,
            inner: Mutex::new(Everything {
                networks: BTreeMap::new(),
                ports: BTreeMap::new(),
                port_ids: Registry::new(PORTS_MAX),
                network_ids: Registry::new(NETWORKS_MAX),
            }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Everything> {
        // A panic on the control thread ends the daemon; until then the state is what the last call recorded.
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells the workers what there is now. When it returns, it holds for the next frame.
    pub(super) fn publish(&self, state: &Everything) {
        let networks = state.networks.values().map(|n| (n.id, Arc::clone(&n.mode)));
        let ports = state.ports.values().filter_map(|p| state.entry(p));
        self.datapath.set_topology(Topology::new(networks, ports));
    }

    #[expect(clippy::too_many_arguments, reason = "what a port is recorded with, from three callers")]
    pub(super) fn insert_port(
        &self,
        state: &mut Everything,
        name: &str,
        network: &str,
        kind: String,
        purpose: Purpose,
        mtu: u16,
        offered_mtu: Option<u16>,
        make: impl FnOnce(Context) -> Result<Box<dyn Backend>, String>,
    ) -> Result<(), String> {
        let id = state
            .port_ids
            .mint()
            .ok_or_else(|| format!("there are {PORTS_MAX} ports already, which is the most"))?;
        let host: Arc<dyn QueueHost> = Arc::clone(&self.datapath) as _;
        let changed = Arc::clone(&self.changed);
        let backend = match make(Context { id, host, mtu, offered_mtu, changed }) {
            Ok(backend) => backend,
            Err(error) => {
                state.port_ids.retire(id);
                return Err(error);
            }
        };
        let rate = match &purpose {
            Purpose::Added(spec) => rate_limit(spec),
            _ => None,
        };
        let counters = Arc::new(PortCounters::new(self.datapath.workers()));
        let (last, last_mtu) = (backend.state(), backend.link_mtu());
        let port =
            Port { id, network: network.to_owned(), purpose, backend, counters, kind, rate, last, last_mtu };
        state.ports.insert(name.to_owned(), port);
        Ok(())
    }

    pub(super) fn start_ports<'a>(&self, state: &mut Everything, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if let Some(port) = state.ports.get_mut(name) {
                port.backend.start();
            }
        }
    }

    /// Takes ports away: their backends end first, so that nothing of theirs is received any more, then the
    /// workers forget them, then the mode does, and only then can their identifiers be used again.
    pub(super) fn drop_ports(&self, state: &mut Everything, names: &[String]) {
        let gone: Vec<Port> = names.iter().filter_map(|name| state.ports.remove(name)).collect();
        if gone.is_empty() {
            return;
        }
        let gone: Vec<(PortId, String)> = gone.into_iter().map(|p| (p.id, p.network)).collect();
        self.publish(state);
        for (id, network) in gone {
            if let Some(network) = state.networks.get(&network) {
                network.mode.port_removed(id);
                if let Some((gateway, _)) = &network.gateway {
                    gateway.lock().port_removed(id);
                }
            }
            state.port_ids.retire(id);
        }
    }

    pub(super) fn drop_network(&self, state: &mut Everything, name: &str) {
        if let Some(network) = state.networks.get_mut(name) {
            // The host's traffic has its old way before the new one ends.
            self.plumbing.clear(network);
            if let Some((gateway, running)) = network.gateway.take() {
                self.services.remove(running, &gateway);
            }
            // The gateway's task may know the sockets for a while: nobody is to be let in meanwhile.
            if let Some(sockets) = &network.sockets {
                for part in network.told.forwards.iter().flat_map(|forward| forward.parts()) {
                    sockets.remove_forward(&part);
                }
            }
        }
        let ports: Vec<String> =
            state.ports.iter().filter(|(_, p)| p.network == name).map(|(name, _)| name.clone()).collect();
        self.drop_ports(state, &ports);
        if let Some(network) = state.networks.remove(name) {
            self.publish(state);
            state.network_ids.retire(network.id);
        }
    }

    /// A worker found a port broken.
    pub(super) fn port_broken(&self, id: PortId, reason: &str) {
        let state = &mut *self.lock();
        if let Some((name, port)) = state.ports.iter_mut().find(|(_, p)| p.id == id) {
            warn!(port = %name, reason, "the port is quarantined");
            port.backend.broken(reason);
        }
        self.refresh_ports(state);
    }

    /// A queue was moved from one worker to another.
    pub(super) fn queue_moved(&self, Moved { port: id, from, to }: Moved) {
        if let Some((name, _)) = self.lock().ports.iter().find(|(_, p)| p.id == id) {
            info!(port = %name, from, to, "a queue was moved to a worker with less to do");
        }
    }

    /// Interfaces of the host or peers of ports came, went or changed.
    pub(super) fn peers_changed(&self) {
        let state = &mut *self.lock();
        self.refresh_ports(state);
        self.follow_host(state);
    }

    fn refresh_ports(&self, state: &mut Everything) {
        let (mut changed, mut resized) = (Vec::new(), Vec::new());
        for (name, port) in &mut state.ports {
            if port.backend.refresh() {
                changed.push(name.clone());
            }
            let mtu = port.backend.link_mtu();
            if mtu != port.last_mtu {
                port.last_mtu = mtu;
                resized.push(name.clone());
            }
            let now = port.backend.state();
            if now != port.last {
                info!(port = %name, state = now.word(), reason = now.reason(), "port state");
                port.last = now;
            }
        }
        if !changed.is_empty() {
            self.publish(state);
            self.start_ports(state, changed.iter().map(|n| &**n));
        }
        resized.iter().for_each(|name| state.tell_mode(name));
    }

    /// Does what is due in the networks' modes; when to call again.
    pub(super) fn tick(&self) -> Option<Instant> {
        let now = self.datapath.now();
        let state = self.lock();
        for network in state.networks.values() {
            if network.mode.poll_at().is_some_and(|at| at <= now) {
                network.mode.tick(now);
            }
        }
        state.networks.values().filter_map(|n| n.mode.poll_at()).min()
    }

    /// Ends everything, in order.
    pub(super) fn shut_down(&self) {
        let state = &mut *self.lock();
        let names: Vec<String> = state.networks.keys().cloned().collect();
        for name in names {
            self.drop_network(state, &name);
        }
        self.plumbing.end();
    }
}

/// The ports that a network has by itself.
pub(super) fn own_ports(spec: &NetworkSpec) -> Vec<String> {
    let named = spec.host_interface().into_iter().chain(spec.uplink_interface()).map(str::to_owned);
    let named = named.chain(spec.by_sockets().then(|| sockets_port(&spec.name)));
    named.chain(spec.has_gateway().then(|| gateway_port(&spec.name))).collect()
}

/// The name of the port of the host's sockets on a network.
pub(super) fn sockets_port(network: &str) -> String {
    format!("{network}.sockets")
}

/// The name of the port of a network's gateway.
pub(super) fn gateway_port(network: &str) -> String {
    format!("{network}.gateway")
}

pub(super) fn own_mtu(port: &Port) -> Option<u16> {
    match &port.purpose {
        Purpose::Added(spec) => spec.mtu,
        _ => None,
    }
}

pub(super) fn words(words: &[(&'static str, String)]) -> String {
    words.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
}
