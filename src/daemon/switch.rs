//! The networks and ports of this host: what the ctl socket and the configuration file change.
//!
//! Owned by the control thread; the lock is there because the ctl server asks for a shared object, and is never
//! contended. Invariants: every port's network exists; no two ports or networks have a name or claim the same
//! interface or socket; the workers' topology says what this says, except inside a call. A change is checked
//! whole first, then what can fail is done (making a tap, binding a socket), and only then is it recorded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant as Clock};

use ctl::model::{Claim, Mode as ModeWord, NetworkSpec, PortSpec};
use ctl::protocol::Refusal;
use datapath::QueueHost;
use datapath::counters::PortCounters;
use datapath::police::RateLimit;
use datapath::pool::Datapath;
use datapath::topology::{PortEntry, Topology};
use switch_core::guard::SourceGuard;
use switch_core::ids::Registry;
use switch_core::mode::Mode;
use switch_core::{Instant, NetworkId, PortId};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::backend::{self, Backend, Context, Netdev, State, Tap};
use super::pinned;

/// The MTU of networks that name none, in bytes: Ethernet's.
const MTU_DEFAULT: u16 = 1500;
/// Ports of a switch, at most.
const PORTS_MAX: u16 = 4096;
/// Networks of a switch, at most.
const NETWORKS_MAX: u16 = 1024;

/// Why a port exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An operator added it.
    Added(Box<PortSpec>),
    /// It is its network's interface to the host.
    HostInterface,
    /// It is its network's uplink.
    Uplink,
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
    rate: Option<Arc<RateLimit>>,
    last: State,
}

/// A network of the switch.
pub(super) struct Network {
    id: NetworkId,
    pub(super) spec: NetworkSpec,
    pub(super) mode: Arc<dyn Mode>,
}

/// Everything that there is.
pub(super) struct Everything {
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) ports: BTreeMap<String, Port>,
    port_ids: Registry<PortId>,
    network_ids: Registry<NetworkId>,
}

/// See the module's text.
pub(super) struct Host {
    pub(super) datapath: Arc<Datapath>,
    pub(super) started: Clock,
    /// Told by sessions when their peer came or went.
    pub(super) changed: Arc<Notify>,
    inner: Mutex<Everything>,
}

type Done = Result<(), Refusal>;

impl Everything {
    /// The MTU that holds for a port of a network, and the one to offer, if one was asked for.
    pub(super) fn mtu(&self, network: &str, own: Option<u16>) -> (u16, Option<u16>) {
        let asked = own.or_else(|| self.networks.get(network).and_then(|n| n.spec.mtu));
        (asked.unwrap_or(MTU_DEFAULT), asked)
    }

    /// Refuses what another network or port has already.
    fn check_claims(&self, claims: &[Claim], what: &str, except: Option<&str>) -> Done {
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

    fn check_port_name(&self, name: &str, what: &str) -> Done {
        if self.ports.contains_key(name) {
            return Err(Refusal::refused(format!(
                "{what}: there is a port {name} already: take another name"
            )));
        }
        Ok(())
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
            mtu: self.mtu(&port.network, spec.and_then(|s| s.mtu)).0,
            guard,
            rate: port.rate.clone(),
        })
    }
}

fn rate_limit(spec: &PortSpec) -> Option<Arc<RateLimit>> {
    let rate = spec.rate?;
    let window = Duration::from_micros(rate.window_us().into());
    Some(Arc::new(RateLimit::new(rate.window_bytes().into(), window)))
}

impl Host {
    /// A switch without networks.
    pub(super) fn new(datapath: Arc<Datapath>) -> Self {
        Self {
            datapath,
            started: Clock::now(),
            changed: Arc::default(),
            inner: Mutex::new(Everything {
                networks: BTreeMap::new(),
                ports: BTreeMap::new(),
                port_ids: Registry::new(PORTS_MAX),
                network_ids: Registry::new(NETWORKS_MAX),
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Everything> {
        // A panic on the control thread ends the daemon; until then the state is what the last call recorded.
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells the workers what there is now. When it returns, it holds for the next frame.
    fn publish(&self, state: &Everything) {
        let networks = state.networks.values().map(|n| (n.id, Arc::clone(&n.mode)));
        let ports = state.ports.values().filter_map(|p| state.entry(p));
        self.datapath.set_topology(Topology::new(networks, ports));
    }

    /// Adds a network, with its uplink and host interface.
    pub(super) fn add_network(&self, spec: NetworkSpec, may_exist: bool) -> Done {
        let state = &mut *self.lock();
        let what = format!("network {}", spec.name);
        if let Some(present) = state.networks.get(&spec.name) {
            return match may_exist {
                true if present.spec == spec => Ok(()),
                true => Err(Refusal::refused(format!(
                    "{what}: it exists with other values ({}): set them, or delete it first",
                    words(&present.spec.words())
                ))),
                false => Err(Refusal::refused(format!(
                    "{what}: it exists already: delete it first, or say --may-exist"
                ))),
            };
        }
        state.check_claims(&spec.claims(), &what, None)?;
        for name in own_ports(&spec) {
            state.check_port_name(name, &what)?;
        }
        let mode: Arc<dyn Mode> = match spec.mode {
            ModeWord::Bridge => Arc::new(modes::bridge::Bridge::new(
                Duration::from_secs(spec.ageing_s.into()),
                spec.fdb_max as usize,
            )),
            other => {
                return Err(Refusal::refused(format!(
                    "{what}: mode {} is not in this version",
                    other.as_str()
                )));
            }
        };
        let Some(id) = state.network_ids.mint() else {
            return Err(Refusal::refused(format!(
                "{what}: there are {NETWORKS_MAX} networks already, which is the most"
            )));
        };
        let name = spec.name.clone();
        state.networks.insert(name.clone(), Network { id, spec: spec.clone(), mode });
        if let Err(refusal) = self.add_own_ports(state, &spec) {
            self.drop_network(state, &name);
            return Err(refusal);
        }
        self.publish(state);
        self.start_ports(state, own_ports(&spec));
        info!(network = %name, mode = spec.mode.as_str(), "network added");
        Ok(())
    }

    /// Makes the ports that a network has by itself and that are not there yet.
    fn add_own_ports(&self, state: &mut Everything, spec: &NetworkSpec) -> Done {
        let mtu = spec.mtu.unwrap_or(MTU_DEFAULT);
        if spec.host_if && !state.ports.contains_key(&spec.name) {
            let make = |context| Ok(Box::new(Tap::new(&spec.name, 1, None, context)?) as Box<dyn Backend>);
            let kind = format!("tap:{}", spec.name);
            self.insert_port(
                state,
                &spec.name,
                &spec.name,
                kind,
                Purpose::HostInterface,
                mtu,
                spec.mtu,
                make,
            )
            .map_err(|e| Refusal::refused(format!("network {}: host-if=on: {e}", spec.name)))?;
        }
        if let Some(uplink) = &spec.uplink
            && !state.ports.contains_key(uplink)
        {
            let make = |context| Ok(Box::new(Netdev::new(uplink, context)?) as Box<dyn Backend>);
            let kind = format!("netdev:{uplink}");
            self.insert_port(state, uplink, &spec.name, kind, Purpose::Uplink, mtu, spec.mtu, make)
                .map_err(|e| Refusal::refused(format!("network {}: uplink={uplink}: {e}", spec.name)))?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what a port is recorded with, from three callers")]
    fn insert_port(
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
        let last = backend.state();
        let port = Port { id, network: network.to_owned(), purpose, backend, counters, kind, rate, last };
        state.ports.insert(name.to_owned(), port);
        Ok(())
    }

    fn start_ports<'a>(&self, state: &mut Everything, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if let Some(port) = state.ports.get_mut(name) {
                port.backend.start();
            }
        }
    }

    /// Takes ports away: their backends end first, so that nothing of theirs is received any more, then the
    /// workers forget them, then the mode does, and only then can their identifiers be used again.
    fn drop_ports(&self, state: &mut Everything, names: &[String]) {
        let gone: Vec<Port> = names.iter().filter_map(|name| state.ports.remove(name)).collect();
        if gone.is_empty() {
            return;
        }
        let gone: Vec<(PortId, String)> = gone.into_iter().map(|p| (p.id, p.network)).collect();
        self.publish(state);
        for (id, network) in gone {
            if let Some(network) = state.networks.get(&network) {
                network.mode.port_removed(id);
            }
            state.port_ids.retire(id);
        }
    }

    fn drop_network(&self, state: &mut Everything, name: &str) {
        let ports: Vec<String> =
            state.ports.iter().filter(|(_, p)| p.network == name).map(|(name, _)| name.clone()).collect();
        self.drop_ports(state, &ports);
        if let Some(network) = state.networks.remove(name) {
            self.publish(state);
            state.network_ids.retire(network.id);
        }
    }

    /// Takes a network away. Its ports must have gone, but for its own.
    pub(super) fn delete_network(&self, name: &str, if_exists: bool) -> Done {
        let state = &mut *self.lock();
        if !state.networks.contains_key(name) {
            return if if_exists { Ok(()) } else { Err(Refusal::no_network(name)) };
        }
        let added = |p: &&Port| p.network == name && matches!(p.purpose, Purpose::Added(_));
        let ports = state.ports.values().filter(added).count();
        if ports > 0 {
            return Err(Refusal::refused(format!(
                "network {name}: {ports} ports are on it (see weft port list {name}): delete them first"
            )));
        }
        self.drop_network(state, name);
        info!(network = name, "network deleted");
        Ok(())
    }

    /// Changes a network to `spec`, which differs from what it is only in keys that may change.
    pub(super) fn change_network(
        &self,
        name: &str,
        change: impl FnOnce(&NetworkSpec) -> Result<NetworkSpec, Refusal>,
    ) -> Done {
        let state = &mut *self.lock();
        let Some(network) = state.networks.get(name) else { return Err(Refusal::no_network(name)) };
        let old = network.spec.clone();
        let new = change(&old)?;
        if new == old {
            return Ok(());
        }
        let what = format!("network {name}");
        state.check_claims(&new.claims(), &what, Some(name))?;
        let (had, has): (Vec<&str>, Vec<&str>) = (own_ports(&old).collect(), own_ports(&new).collect());
        let come: Vec<&str> = has.iter().copied().filter(|p| !had.contains(p)).collect();
        let go: Vec<String> = had.iter().filter(|p| !has.contains(p)).map(|&p| p.to_owned()).collect();
        for name in &come {
            state.check_port_name(name, &what)?;
        }
        // What can fail comes first, and is taken back when a later part does.
        if let Err(refusal) = self.add_own_ports(state, &new) {
            let made: Vec<String> = come.iter().map(|&p| p.to_owned()).collect();
            self.drop_ports(state, &made);
            return Err(refusal);
        }
        if let Some(network) = state.networks.get_mut(name) {
            network.spec = new.clone();
            if let Some(fdb) = network.mode.fdb() {
                fdb.configure(Duration::from_secs(new.ageing_s.into()), new.fdb_max as usize);
            }
        }
        if new.mtu != old.mtu {
            self.spread_mtu(state, name);
        }
        self.drop_ports(state, &go);
        self.publish(state);
        self.start_ports(state, come);
        info!(network = name, keys = %words(&new.words()), "network changed");
        Ok(())
    }

    /// Sets the MTU of interfaces that the switch made on a network.
    fn spread_mtu(&self, state: &mut Everything, network: &str) {
        let mtus: Vec<(String, u16)> = state
            .ports
            .iter()
            .filter(|(_, p)| p.network == network)
            .map(|(name, p)| (name.clone(), state.mtu(network, own_mtu(p)).0))
            .collect();
        for (name, mtu) in mtus {
            if let Some(port) = state.ports.get_mut(&name)
                && let Err(error) = port.backend.set_mtu(mtu)
            {
                warn!(port = %name, mtu, error, "the interface did not take the MTU");
            }
        }
    }

    /// Adds a port.
    pub(super) fn add_port(&self, spec: PortSpec, may_exist: bool) -> Done {
        let state = &mut *self.lock();
        let name = spec.name.clone();
        let what = format!("port {name}");
        if !state.networks.contains_key(&spec.network) {
            return Err(Refusal::no_network(&spec.network));
        }
        if let Some(Port { purpose: Purpose::Added(present), .. }) = state.ports.get(&name) {
            return match may_exist {
                true if **present == spec => Ok(()),
                true => Err(Refusal::refused(format!(
                    "{what}: it exists with other values (network {}, {}, {}): set them, or delete it first",
                    present.network,
                    present.kind,
                    words(&present.words())
                ))),
                false => Err(Refusal::refused(format!(
                    "{what}: it exists already: delete it first, or say --may-exist"
                ))),
            };
        }
        state.check_port_name(&name, &what)?;
        state.check_claims(&spec.claims(), &what, None)?;
        pinned::check(state, &spec)?;
        let (mtu, offered) = state.mtu(&spec.network, spec.mtu);
        let (network, kind) = (spec.network.clone(), spec.kind.to_string());
        let purpose = Purpose::Added(Box::new(spec.clone()));
        self.insert_port(state, &name, &network, kind, purpose, mtu, offered, |context| {
            backend::make(&spec, context)
        })
        .map_err(|e| Refusal::refused(format!("{what}: {e}")))?;
        let id = state.ports.get(&name).map(|p| p.id);
        if let Some(Err(refusal)) = id.map(|id| pinned::pin(state, id, None, &spec)) {
            self.drop_ports(state, &[name]);
            return Err(refusal);
        }
        self.publish(state);
        self.start_ports(state, [&*name]);
        info!(port = %name, network = %network, kind = %spec.kind, "port added");
        Ok(())
    }

    /// Takes a port away.
    pub(super) fn delete_port(&self, name: &str, if_exists: bool) -> Done {
        let state = &mut *self.lock();
        match state.ports.get(name) {
            None if if_exists => return Ok(()),
            None => return Err(Refusal::no_port(name)),
            Some(Port { purpose: Purpose::Added(_), .. }) => {}
            Some(port) => {
                let key = if port.purpose == Purpose::Uplink { "uplink=" } else { "host-if=off" };
                return Err(Refusal::refused(format!(
                    "port {name}: it belongs to network {}: use weft net set {} {key}",
                    port.network, port.network
                )));
            }
        }
        self.drop_ports(state, &[name.to_owned()]);
        info!(port = name, "port deleted");
        Ok(())
    }

    /// Changes a port to what `change` makes of it.
    pub(super) fn change_port(
        &self,
        name: &str,
        change: impl FnOnce(&PortSpec) -> Result<PortSpec, Refusal>,
    ) -> Done {
        let state = &mut *self.lock();
        let Some(port) = state.ports.get(name) else { return Err(Refusal::no_port(name)) };
        let Purpose::Added(old) = &port.purpose else {
            return Err(Refusal::refused(format!(
                "port {name}: it belongs to network {}: set the network's keys",
                port.network
            )));
        };
        let new = change(old)?;
        if new == **old {
            return Ok(());
        }
        pinned::check(state, &new)?;
        let old = PortSpec::clone(old);
        let (mtu, _) = state.mtu(&new.network, new.mtu);
        pinned::pin(state, port.id, Some(&old), &new)?;
        let Some(port) = state.ports.get_mut(name) else { return Err(Refusal::no_port(name)) };
        if new.mtu != old.mtu
            && let Err(error) = port.backend.set_mtu(mtu)
        {
            let id = port.id;
            // It had its old address a moment ago, so there is room for it.
            let _ = pinned::pin(state, id, Some(&new), &old);
            return Err(Refusal::refused(format!("port {name}: mtu={mtu}: {error}")));
        }
        if new.rate != old.rate {
            port.rate = rate_limit(&new);
        }
        info!(port = name, keys = %words(&new.words()), "port changed");
        port.purpose = Purpose::Added(Box::new(new));
        self.publish(state);
        Ok(())
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

    /// Interfaces of the host or peers of ports came, went or changed.
    pub(super) fn peers_changed(&self) {
        self.refresh_ports(&mut self.lock());
    }

    fn refresh_ports(&self, state: &mut Everything) {
        let mut changed = Vec::new();
        for (name, port) in &mut state.ports {
            if port.backend.refresh() {
                changed.push(name.clone());
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
    }
}

/// The ports that a network has by itself.
fn own_ports(spec: &NetworkSpec) -> impl Iterator<Item = &str> {
    spec.host_if.then_some(&*spec.name).into_iter().chain(spec.uplink.as_deref())
}

fn own_mtu(port: &Port) -> Option<u16> {
    match &port.purpose {
        Purpose::Added(spec) => spec.mtu,
        _ => None,
    }
}

fn words(words: &[(&'static str, String)]) -> String {
    words.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
}
