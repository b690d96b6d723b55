//! A switch in memory behind a real ctl socket, on a thread of its own, for the tests of this crate.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use ctl::model::{
    Claim, ForwardSpec, LeaseKey, LeaseSpec, Mode, NetworkChanges, NetworkSpec, PortChanges, PortSpec,
};
use ctl::protocol::*;
use ctl::server::{ControlSocket, Limits, Switch, serve};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use switch_core::{MacAddr, Vid};
use tempfile::TempDir;

type Fdb = BTreeMap<(String, Option<Vid>, MacAddr), String>;

/// Networks, ports and told addresses, kept as a daemon would, without a datapath.
#[derive(Default)]
pub struct Fake {
    networks: RefCell<BTreeMap<String, NetworkSpec>>,
    ports: RefCell<BTreeMap<String, PortSpec>>,
    fdb: RefCell<Fdb>,
    leases: RefCell<Vec<LeaseSpec>>,
    forwards: RefCell<Vec<ForwardSpec>>,
}

/// Showing the network of this name panics.
pub const PANIC: &str = "panic";

/// An FDB of this many addresses is claimed for the network of this name.
pub const HUGE: (&str, u64) = ("huge", 200_000);

/// So many translations are claimed for every network that has them.
pub const SESSIONS: u64 = 100_000;

impl Fake {
    fn network(&self, name: &str) -> Result<NetworkSpec, Refusal> {
        self.networks.borrow().get(name).cloned().ok_or_else(|| Refusal::no_network(name))
    }

    fn port(&self, name: &str) -> Result<PortSpec, Refusal> {
        self.ports.borrow().get(name).cloned().ok_or_else(|| Refusal::no_port(name))
    }

    fn check_claims(&self, wanted: &[Claim]) -> Result<(), Refusal> {
        let networks = self.networks.borrow().values().flat_map(NetworkSpec::claims).collect::<Vec<_>>();
        let ports = self.ports.borrow().values().flat_map(PortSpec::claims).collect::<Vec<_>>();
        match wanted.iter().find(|claim| networks.contains(claim) || ports.contains(claim)) {
            Some(claim) => Err(Refusal::refused(format!("{claim} is taken already"))),
            None => Ok(()),
        }
    }

    fn members(&self, network: &str) -> Vec<String> {
        let ports = self.ports.borrow();
        ports.values().filter(|port| port.network == network).map(|port| port.name.clone()).collect()
    }
}

/// The entries of a network, or of all; refused for a network that can have none.
fn entries<T: Clone>(
    all: &[T],
    network: Option<NetworkSpec>,
    has: fn(&NetworkSpec) -> bool,
    what: &str,
    of: fn(&T) -> &str,
) -> Result<Vec<T>, Refusal> {
    match network {
        Some(network) if !has(&network) => Err(Refusal::has_no(&network, what)),
        Some(network) => Ok(all.iter().filter(|entry| of(entry) == network.name).cloned().collect()),
        None => Ok(all.to_vec()),
    }
}

fn has_leases(network: &NetworkSpec) -> bool {
    network.dhcp_range().is_some()
}

fn has_forwards(network: &NetworkSpec) -> bool {
    network.mode == Mode::Nat
}

fn describe(spec: &PortSpec) -> Port {
    Port {
        name: spec.name.clone(),
        network: spec.network.clone(),
        kind: spec.kind.to_string(),
        mac: spec.mac.map(|mac| mac.to_string()),
        ip: spec.ip.iter().map(ToString::to_string).collect(),
        state: if spec.isolated { "error" } else { "waiting" }.to_owned(),
        reason: spec.isolated.then(|| "the tap is gone".to_owned()),
        mtu: spec.mtu.unwrap_or(1500).into(),
        queues: spec.queues.into(),
    }
}

impl Switch for Fake {
    fn status(&self) -> Status {
        Status {
            version: "9.9".to_owned(),
            pid: 42,
            uptime_s: 7,
            networks: self.networks.borrow().len() as u64,
            ports: self.ports.borrow().len() as u64,
            cycles: 0,
            cycles_per_s: 0,
            workers: vec![Worker {
                cpu: Some(2),
                queues: 3,
                polls: u64::from(u32::MAX) + 1,
                frames: 1000,
                cycles_busy: 345_678,
                busy_permille: 73,
                ..Worker::default()
            }],
        }
    }

    fn net_add(&self, spec: NetworkSpec, may_exist: bool) -> Result<(), Refusal> {
        if let Ok(there) = self.network(&spec.name) {
            return match may_exist && there == spec {
                true => Ok(()),
                false => Err(Refusal::refused(format!("network {} exists already", spec.name))),
            };
        }
        self.check_claims(&spec.claims())?;
        if let Some(why) = self.networks.borrow().values().find_map(|other| spec.conflicts(other)) {
            return Err(Refusal::refused(format!("network {}: {why}", spec.name)));
        }
        self.networks.borrow_mut().insert(spec.name.clone(), spec);
        Ok(())
    }

    fn net_set(&self, name: &str, changes: &NetworkChanges) -> Result<(), Refusal> {
        let spec = changes.apply(&self.network(name)?)?;
        self.networks.borrow_mut().insert(name.to_owned(), spec);
        Ok(())
    }

    fn net_del(&self, name: &str) -> Result<(), Refusal> {
        self.network(name)?;
        if !self.members(name).is_empty() {
            return Err(Refusal::refused(format!("network {name} has ports: delete them first")));
        }
        self.networks.borrow_mut().remove(name);
        Ok(())
    }

    fn net_list(&self) -> Vec<Network> {
        let networks = self.networks.borrow();
        let entry = |spec: &NetworkSpec| Network {
            name: spec.name.clone(),
            mode: spec.mode.as_str().to_owned(),
            ports: self.members(&spec.name).len() as u64,
            state: "up".to_owned(),
            reason: None,
            mtu: spec.mtu.unwrap_or(1500).into(),
            uplink: spec.uplink_interface().map(str::to_owned),
            host_if: spec.host_if,
        };
        networks.values().map(entry).collect()
    }

    fn net_show(&self, name: &str) -> Result<NetworkDetail, Refusal> {
        assert_ne!(name, PANIC, "asked to");
        let spec = self.network(name)?;
        let members = self.members(name);
        let uplink = spec.uplink_interface().map(str::to_owned);
        let keys = spec.words().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let resolved = spec.has_gateway().then(|| Resolved {
            gateway: spec.gateway4().map(|ip| ip.to_string()),
            dhcp: spec.dhcp_range().map(|(first, last)| format!("{first}-{last}")),
            dns: spec.dns_on(),
            dns_servers: spec.dns_servers.iter().map(ToString::to_string).collect(),
            egress: spec.egress.as_ref().map(ToString::to_string),
            leases_used: has_leases(&spec).then_some(1),
            leases_free: has_leases(&spec).then_some(2),
            ..Resolved::default()
        });
        let switched = spec.mode != Mode::Routed;
        Ok(NetworkDetail {
            name: spec.name,
            mode: spec.mode.as_str().to_owned(),
            ports: members.len() as u64,
            state: "up".to_owned(),
            reason: None,
            mtu: spec.mtu.unwrap_or(1500).into(),
            uplink,
            host_if: spec.host_if,
            host_address: spec.host_address.as_str().to_owned(),
            members,
            keys,
            resolved,
            ageing_s: switched.then_some(spec.ageing_s.into()),
            fdb_max: switched.then_some(spec.fdb_max.into()),
            fdb_entries: switched.then_some(0),
        })
    }

    fn port_add(&self, spec: PortSpec, may_exist: bool) -> Result<(), Refusal> {
        spec.fits(&self.network(&spec.network)?)?;
        if let Ok(there) = self.port(&spec.name) {
            return match may_exist && there == spec {
                true => Ok(()),
                false => Err(Refusal::refused(format!("port {} exists already", spec.name))),
            };
        }
        self.check_claims(&spec.claims())?;
        self.ports.borrow_mut().insert(spec.name.clone(), spec);
        Ok(())
    }

    fn port_set(&self, name: &str, changes: &PortChanges) -> Result<(), Refusal> {
        let spec = changes.apply(&self.port(name)?)?;
        self.ports.borrow_mut().insert(name.to_owned(), spec);
        Ok(())
    }

    fn port_del(&self, name: &str) -> Result<(), Refusal> {
        self.ports.borrow_mut().remove(name).map(drop).ok_or_else(|| Refusal::no_port(name))
    }

    fn port_list(&self, network: Option<&str>) -> Result<Vec<Port>, Refusal> {
        network.map(|name| self.network(name)).transpose()?;
        let ports = self.ports.borrow();
        Ok(ports
            .values()
            .filter(|port| network.is_none_or(|name| port.network == name))
            .map(describe)
            .collect())
    }

    fn port_show(&self, name: &str) -> Result<PortDetail, Refusal> {
        let spec = self.port(name)?;
        let Port { name, network, kind, mac, ip, state, reason, mtu, queues } = describe(&spec);
        Ok(PortDetail {
            name,
            network,
            kind,
            mac,
            ip,
            state,
            reason,
            mtu,
            queues,
            remote: None,
            role: Some(spec.role.as_str().to_owned()),
            vlan: spec.vlan.map(|vlan| vlan.get().into()),
            isolated: spec.isolated,
            antispoof: spec.antispoof,
            routes: spec.routes.iter().map(ToString::to_string).collect(),
            rate: spec.rate.map(|rate| rate.to_string()),
            features: Some(vec!["VIRTIO_F_VERSION_1".to_owned()]),
            rings: Some(vec![Ring { index: 0, size: 256, state: "enabled".to_owned() }]),
            uptime_s: Some(3),
        })
    }

    fn port_stats(&self, name: Option<&str>) -> Result<Vec<PortCounters>, Refusal> {
        name.map(|name| self.port(name)).transpose()?;
        let counters = |spec: &PortSpec| PortCounters {
            name: spec.name.clone(),
            rx_frames: 5,
            rx_bytes: 500,
            rx_bursts: 2,
            cycles: 1234,
            wakeups: 1,
            drops: BTreeMap::from([("tx_ring_full".to_owned(), 2), ("bad_source".to_owned(), 0)]),
            ..PortCounters::default()
        };
        let ports = self.ports.borrow();
        Ok(ports.values().filter(|port| name.is_none_or(|name| port.name == name)).map(counters).collect())
    }

    fn fdb_show(&self, network: &str) -> Result<Vec<FdbEntry>, Refusal> {
        self.network(network)?;
        if network == HUGE.0 {
            let entry = |n: u64| FdbEntry {
                mac: format!("02:00:00:{:02x}:{:02x}:{:02x}", n >> 16 & 255, n >> 8 & 255, n & 255),
                port: "p".to_owned(),
                ..FdbEntry::default()
            };
            return Ok((0..HUGE.1).map(entry).collect());
        }
        let fdb = self.fdb.borrow();
        let entries = fdb.iter().filter(|((name, ..), _)| name == network);
        let entry = |((_, vlan, mac), port): (&(String, Option<Vid>, MacAddr), &String)| FdbEntry {
            mac: mac.to_string(),
            vlan: vlan.map_or(0, |vlan| vlan.get().into()),
            port: port.clone(),
            age_s: 0,
            r#static: true,
        };
        Ok(entries.map(entry).collect())
    }

    fn fdb_add(
        &self,
        network: &str,
        port: &str,
        mac: MacAddr,
        vlan: Option<Vid>,
        may_exist: bool,
    ) -> Result<(), Refusal> {
        self.network(network)?;
        if self.port(port)?.network != network {
            return Err(Refusal::refused(format!("port {port} is not on network {network}")));
        }
        let key = (network.to_owned(), vlan, mac);
        match self.fdb.borrow().get(&key) {
            Some(there) if !may_exist || there != port => {
                return Err(Refusal::refused(format!(
                    "network {network} has {mac} behind port {there} already"
                )));
            }
            _ => {}
        }
        self.fdb.borrow_mut().insert(key, port.to_owned());
        Ok(())
    }

    fn fdb_del(&self, network: &str, mac: MacAddr, vlan: Option<Vid>) -> Result<bool, Refusal> {
        self.network(network)?;
        Ok(self.fdb.borrow_mut().remove(&(network.to_owned(), vlan, mac)).is_some())
    }

    fn fdb_flush(&self, network: &str) -> Result<(), Refusal> {
        self.network(network).map(drop)
    }

    fn lease_list(&self, network: Option<&str>) -> Result<Vec<Lease>, Refusal> {
        let network = network.map(|name| self.network(name)).transpose()?;
        let lease = |spec: LeaseSpec| Lease {
            network: spec.network,
            mac: spec.mac.to_string(),
            ip: spec.ip.to_string(),
            hostname: spec.hostname.unwrap_or_default(),
            expires_s: 0,
            state: "reserved".to_owned(),
            r#static: true,
        };
        let leases = entries(&self.leases.borrow(), network, has_leases, "leases", |spec| &spec.network)?;
        Ok(leases.into_iter().map(lease).collect())
    }

    fn lease_add(&self, spec: LeaseSpec, may_exist: bool) -> Result<(), Refusal> {
        spec.fits(&self.network(&spec.network)?)?;
        let mut leases = self.leases.borrow_mut();
        if may_exist && leases.contains(&spec) {
            return Ok(());
        }
        if let Some(why) = leases.iter().find_map(|other| spec.conflicts(other)) {
            return Err(Refusal::refused(format!("lease of {}: {why}", spec.mac)));
        }
        leases.push(spec);
        Ok(())
    }

    fn lease_del(&self, network: &str, key: LeaseKey) -> Result<bool, Refusal> {
        let network = self.network(network)?;
        if !has_leases(&network) {
            return Err(Refusal::has_no(&network, "leases"));
        }
        let mut leases = self.leases.borrow_mut();
        let before = leases.len();
        leases.retain(|spec| match key {
            _ if spec.network != network.name => true,
            LeaseKey::Mac(mac) => spec.mac != mac,
            LeaseKey::Ip(ip) => ip != spec.ip,
        });
        Ok(leases.len() < before)
    }

    fn nat_sessions(&self, network: &str, limit: usize) -> Result<NatSessionList, Refusal> {
        let network = self.network(network)?;
        if network.mode != Mode::Nat {
            return Err(Refusal::has_no(&network, "address translation"));
        }
        let session = |n: u64| NatSession {
            proto: "tcp".to_owned(),
            inside: format!("192.168.122.10:{}", n % 60_000 + 1),
            state: "established".to_owned(),
            ..NatSession::default()
        };
        Ok(NatSessionList { sessions: (0..SESSIONS).take(limit).map(session).collect(), total: SESSIONS })
    }

    fn forward_add(&self, spec: ForwardSpec, may_exist: bool) -> Result<(), Refusal> {
        spec.fits(&self.network(&spec.network)?)?;
        let mut forwards = self.forwards.borrow_mut();
        if may_exist && forwards.contains(&spec) {
            return Ok(());
        }
        let clash = forwards.iter().find_map(|other| Some((spec.conflicts(other)?, other)));
        if let Some((port, other)) = clash {
            return Err(Refusal::refused(format!(
                "forward {spec}: port {port} is listened on for {other} already"
            )));
        }
        forwards.push(spec);
        Ok(())
    }

    fn forward_del(&self, spec: ForwardSpec) -> Result<bool, Refusal> {
        spec.fits(&self.network(&spec.network)?)?;
        let mut forwards = self.forwards.borrow_mut();
        let before = forwards.len();
        forwards.retain(|there| !there.is_same_way(&spec));
        Ok(forwards.len() < before)
    }

    fn forward_list(&self, network: Option<&str>) -> Result<Vec<Forward>, Refusal> {
        let network = network.map(|name| self.network(name)).transpose()?;
        let forward = |spec: ForwardSpec| Forward {
            proto: spec.protocol.as_str().to_owned(),
            listen: spec.listen(),
            target: spec.target(),
            source: if spec.keeps_source { "keep" } else { "gateway" }.to_owned(),
            network: spec.network,
        };
        let forwards =
            entries(&self.forwards.borrow(), network, has_forwards, "port forwards", |spec| &spec.network)?;
        Ok(forwards.into_iter().map(forward).collect())
    }
}

/// A fake switch that answers on a socket until it is dropped.
pub struct Daemon {
    pub path: PathBuf,
    dir: TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let shutdown = async { drop(stopped.await) };
            runtime.block_on(serve(socket, Rc::new(Fake::default()), limits, shutdown)).unwrap();
        });
        Self { path, dir, stop: Some(stop), thread: Some(thread) }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends it as SIGTERM would; fails when its thread panicked or does not end.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(stop) = self.stop.take() else { return };
        let _ = stop.send(());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
            assert!(!self.path.exists(), "the socket was not removed");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// Limits that tests need not wait long for.
pub fn quick() -> Limits {
    Limits {
        message_time: Duration::from_millis(300),
        reply_time: Duration::from_millis(300),
        ..Limits::default()
    }
}
