//! What a network changes of the host, and that it is put back.
//!
//! The changes are made by [`modes::host::Plumber`], a thread that is started when the first network needs it, or at
//! once when an earlier daemon left something to be put back. What happens without a call (a move that is undone, a
//! table that somebody flushed) comes by events, which the control thread reads when it is told to look.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context as _;
use ctl::model::{Egress, HostAddress, Mode, NetworkSpec};
use ipnetwork::IpNetwork;
use modes::host::{
    Event, ForwardProto, HostError, HostForward, HostRoute, InterfaceSetup, JOURNAL_NAME, Masquerade,
    Options, Plumber, Report, Sysctl,
};
use switch_core::napt;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::compose;
use super::switch::{Everything, Host, Network, Purpose};

/// What a network changed of the host.
#[derive(Debug, Default)]
pub(super) struct HostSide {
    interface: bool,
    sysctls: bool,
    masquerade: bool,
    /// The routes to guests, as they were last set.
    routes: Option<BTreeSet<HostRoute>>,
    /// The interface whose addresses were moved.
    moved: Option<String>,
    /// What is wrong with it now, in one line.
    pub(super) problem: Option<String>,
}

/// The host, as networks change it.
pub(super) struct Plumbing {
    state_dir: PathBuf,
    plumber: Mutex<Option<Plumber>>,
    events: Arc<Mutex<Vec<Event>>>,
    changed: Arc<Notify>,
}

fn log(what: &str, report: &Report) {
    report.notes.iter().for_each(|note| info!(note, "{what}"));
    report.failures.iter().for_each(|failure| warn!(failure, "{what}"));
}

/// Whether a daemon was ended in `state_dir` before it had put everything back.
pub(super) fn left_something(state_dir: &Path) -> bool {
    state_dir.join(JOURNAL_NAME).exists()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Plumbing {
    /// Puts back what an earlier daemon left in `state_dir`, if it left anything. `changed` is told of events.
    pub(super) fn start(state_dir: &Path, changed: Arc<Notify>) -> anyhow::Result<Self> {
        let plumbing = Self {
            state_dir: state_dir.to_owned(),
            plumber: Mutex::default(),
            events: Arc::default(),
            changed,
        };
        if left_something(state_dir) {
            plumbing.with(|_| Ok(())).context("putting back what an earlier daemon changed of the host")?;
        }
        Ok(plumbing)
    }

    /// Calls the thread, which is started if it is not there.
    fn with<T>(&self, call: impl FnOnce(&Plumber) -> Result<T, HostError>) -> Result<T, HostError> {
        let mut plumber = lock(&self.plumber);
        if plumber.is_none() {
            let (events, changed) = (Arc::clone(&self.events), Arc::clone(&self.changed));
            let started = Plumber::start(Options::new(&self.state_dir), move |event| {
                lock(&events).push(event);
                changed.notify_one();
            })?;
            log("putting back what an earlier daemon changed of the host", started.recovered());
            *plumber = Some(started);
        }
        match &*plumber {
            Some(plumber) => call(plumber),
            None => unreachable!("started above"),
        }
    }

    /// Undoes what a network changed. Goes on past what fails.
    pub(super) fn clear(&self, network: &mut Network) {
        let (side, name) = (std::mem::take(&mut network.host_side), &network.spec.name);
        let undo = |what: &str, report: Result<Report, HostError>| match report {
            Ok(report) => log(what, &report),
            Err(error) => warn!(network = %name, %error, "{what}"),
        };
        if let Some(nic) = &side.moved {
            undo("moving the host's addresses back", self.with(|p| p.move_back(nic)));
        }
        if side.masquerade {
            undo("removing the masquerade table", self.with(|p| p.clear_masquerade(name)));
        }
        if side.routes.is_some() {
            undo("removing routes to guests", self.with(|p| p.clear_routes(name)));
        }
        if side.sysctls {
            undo("restoring sysctls", self.with(|p| p.release_sysctls(name)));
        }
        if side.interface {
            undo("clearing the host interface", self.with(|p| p.clear_interface(name)));
        }
    }

    /// Ends the thread; whatever is left is put back.
    pub(super) fn end(&self) {
        let Some(plumber) = lock(&self.plumber).take() else { return };
        match plumber.shutdown() {
            Ok(report) => log("putting the host back", &report),
            Err(error) => warn!(%error, "putting the host back"),
        }
    }
}

/// A port forward as the host's tables have it.
fn host_forward(part: &napt::Forward) -> HostForward {
    HostForward {
        proto: match part.protocol {
            napt::Protocol::Udp => ForwardProto::Udp,
            napt::Protocol::Tcp | napt::Protocol::Icmp => ForwardProto::Tcp,
        },
        listen: part.address,
        ports: part.port..=part.port.saturating_add(part.count.saturating_sub(1)),
        to: part.target.ip(),
        to_port: part.target.port(),
    }
}

fn masquerade(network: &Network) -> Option<Masquerade> {
    let spec = &network.spec;
    Some(Masquerade {
        network: spec.name.clone(),
        host_if: spec.host_interface()?.to_owned(),
        subnet: spec.subnet?,
        subnet6: spec.subnet6,
        masquerade6: spec.subnet6.is_some(),
        forwards: network.told.forwards.iter().flat_map(|f| f.parts()).map(|p| host_forward(&p)).collect(),
    })
}

/// The addresses that the host has on a network.
fn host_addresses(spec: &NetworkSpec) -> Vec<IpNetwork> {
    if spec.egress != Some(Egress::Host) {
        return Vec::new();
    }
    let v4 = spec.gateway4().zip(spec.subnet).map(|(ip, net)| IpNetwork::new(ip.into(), net.prefix()));
    let v6 = spec.gateway6().zip(spec.subnet6).map(|(ip, net)| IpNetwork::new(ip.into(), net.prefix()));
    v4.into_iter().chain(v6).flatten().collect()
}

impl Host {
    /// Does what a new network needs of the host. What was done before a failure is undone by dropping the network.
    pub(super) fn plumb(&self, state: &mut Everything, name: &str) -> Result<(), HostError> {
        let Some(network) = state.networks.get_mut(name) else { return Ok(()) };
        let spec = network.spec.clone();
        if spec.mode == Mode::Bridge {
            return self.follow_move(network, &spec);
        }
        let Some(interface) = spec.host_interface() else { return Ok(()) };
        let setup = InterfaceSetup {
            name: interface.to_owned(),
            mac: Some(compose::host_mac(&spec)),
            addresses: host_addresses(&spec),
            up: true,
        };
        // The host is a router on this link, or behind one: what the gateway advertises is for guests. It is told so
        // before the interface is up and hears an advertisement.
        let mut sysctls = Vec::new();
        if spec.subnet6.is_some() {
            sysctls.push(Sysctl::accept_ra(interface, 0));
        }
        if spec.may_forward() {
            sysctls.push(Sysctl::forward4());
            if spec.subnet6.is_some() {
                sysctls.push(Sysctl::forward6());
            }
        }
        if !sysctls.is_empty() {
            network.host_side.sysctls = true;
            let report = self.plumbing.with(|p| p.hold_sysctls(name, sysctls))?;
            log("setting sysctls", &report);
        }
        network.host_side.interface = true;
        self.plumbing.with(|p| p.set_interface(setup))?;
        if spec.egress == Some(Egress::Host)
            && let Some(wanted) = masquerade(network)
        {
            network.host_side.masquerade = true;
            self.plumbing.with(|p| p.set_masquerade(wanted))?;
        }
        if let Some(false) = forwards4().filter(|_| !spec.may_forward()) {
            info!(
                network = name,
                "the host does not forward IPv4 (net.ipv4.ip_forward=0): guests reach the host only, unless ip-forward=on"
            );
        }
        if spec.mode == Mode::Routed {
            network.host_side.routes = Some(BTreeSet::new());
        }
        self.follow_host(state);
        Ok(())
    }

    /// Moves the host's addresses to a bridge's host interface, or back, as its description says.
    pub(super) fn follow_move(&self, network: &mut Network, spec: &NetworkSpec) -> Result<(), HostError> {
        let wanted = match (spec.host_address, &spec.uplink, spec.host_interface()) {
            (HostAddress::Move, Some(nic), Some(host_if)) => Some((nic.clone(), host_if.to_owned())),
            _ => None,
        };
        if network.host_side.moved.as_ref() == wanted.as_ref().map(|(nic, _)| nic) {
            return Ok(());
        }
        if let Some(nic) = network.host_side.moved.take() {
            log("moving the host's addresses back", &self.plumbing.with(|p| p.move_back(&nic))?);
        }
        if let Some((nic, host_if)) = wanted {
            let moved = self.plumbing.with(|p| p.move_addresses(&nic, &host_if))?;
            info!(nic = %nic, host_if = %host_if, ?moved, "the host's addresses moved");
            network.host_side.moved = Some(nic);
            network.host_side.problem = None;
        }
        Ok(())
    }

    /// Has the host masquerade with a network's port forwards as they are now.
    pub(super) fn follow_forwards(&self, network: &Network) -> Result<(), HostError> {
        match masquerade(network).filter(|_| network.host_side.masquerade) {
            Some(wanted) => self.plumbing.with(|p| p.set_masquerade(wanted)),
            None => Ok(()),
        }
    }

    /// Brings the host's routes in line with the guests that there are, and reads what happened to the host.
    pub(super) fn follow_host(&self, state: &mut Everything) {
        for event in std::mem::take(&mut *lock(&self.plumbing.events)) {
            happened(state, event);
        }
        let now = self.datapath.now();
        let routed: Vec<String> = state
            .networks
            .values()
            .filter(|n| n.host_side.routes.is_some())
            .map(|n| n.spec.name.clone())
            .collect();
        for name in routed {
            let wanted = guest_routes(state, &name, now);
            let Some(network) = state.networks.get_mut(&name) else { continue };
            if network.host_side.routes.as_ref() == Some(&wanted) {
                continue;
            }
            let Some(interface) = network.spec.host_interface() else { continue };
            let routes = wanted.iter().copied().collect();
            network.host_side.problem = match self.plumbing.with(|p| p.set_routes(&name, interface, routes)) {
                Ok(()) => None,
                Err(error) => {
                    warn!(network = %name, %error, "routes to guests");
                    Some(error.to_string())
                }
            };
            network.host_side.routes = Some(wanted);
        }
    }
}

/// Where the host's packets to a routed network go: to its router, and to guests by what ports were told and what was
/// leased.
fn guest_routes(state: &Everything, network: &str, now: switch_core::Instant) -> BTreeSet<HostRoute> {
    let members = state.ports.values().filter(|p| p.network == network);
    let specs = members.filter_map(|p| match &p.purpose {
        Purpose::Added(spec) => Some(spec),
        _ => None,
    });
    let mut routes = BTreeSet::new();
    for spec in specs {
        routes.extend(spec.ip.iter().map(|&ip| HostRoute::to(ip)));
        routes.extend(spec.routes.iter().map(|&destination| HostRoute { destination, source: None }));
    }
    if let Some(Network { spec, .. }) = state.networks.get(network) {
        // A host that checks where packets come from (`rp_filter`) drops the router's errors without a route to it.
        // Only in a subnet is its address no other network's, too.
        let gateway4 = spec.gateway4().filter(|_| spec.subnet.is_some()).map(IpAddr::V4);
        routes.extend(gateway4.into_iter().chain(spec.gateway6().map(IpAddr::V6)).map(HostRoute::to));
    }
    if let Some((gateway, _)) = state.networks.get(network).and_then(|n| n.gateway.as_ref())
        && let Some(dhcp) = &gateway.lock().services().dhcp4
    {
        let leases = dhcp.leases(now).into_iter().filter(|l| l.port.is_some());
        routes.extend(leases.map(|l| HostRoute::to(l.ip.into())));
    }
    routes
}

fn happened(state: &mut Everything, event: Event) {
    let mut problem_of = |network: &str, problem: Option<String>| {
        if let Some(network) = state.networks.get_mut(network) {
            network.host_side.problem = problem;
        }
    };
    match event {
        Event::MoveConfirmed { nic, host_if } => {
            info!(nic = %nic, host_if = %host_if, "the host is reached by its host interface: the move stays");
        }
        Event::MoveUndone { nic, host_if, reason, report } => {
            warn!(nic = %nic, host_if = %host_if, reason, %report, "the move of the host's addresses was undone");
            if let Some(network) = state.networks.get_mut(&host_if) {
                network.host_side.moved = None;
                network.host_side.problem =
                    Some(format!("host-address=move: {reason}: the addresses are on {nic} again"));
            }
        }
        Event::TableRestored { network, table } => {
            warn!(network = %network, table, "somebody changed or removed the masquerade table: it is there again");
            problem_of(&network, None);
        }
        Event::TableLost { network, table, reason } => {
            warn!(network = %network, table, reason, "the masquerade table is gone and cannot be made again");
            problem_of(&network, Some(format!("the masquerade table {table} is gone: {reason}")));
        }
    }
}

/// Whether the host forwards IPv4; `None` if that cannot be read.
pub(super) fn forwards4() -> Option<bool> {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok().map(|text| text.trim() == "1")
}
