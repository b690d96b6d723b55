//! What the ctl socket asks and is told: the server's calls, answered from the state of the host.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use ctl::model::{ForwardSpec, LeaseKey, LeaseSpec, NetworkChanges, NetworkSpec, PortChanges, PortSpec};
use ctl::protocol::{
    FdbEntry, Forward, Lease, NatSessionList, Network as NetworkReport, NetworkDetail, Port as PortReport,
    PortCounters, PortDetail, Refusal, Status, Worker,
};
use ctl::server::Switch;
use datapath::counters::WorkerStats;
use datapath::ticks;
use switch_core::fdb::FdbAccess;
use switch_core::{Instant, MacAddr, Vid};

use super::backend::State;
use super::gateways;
use super::switch::{Everything, Host, Port, Purpose};

fn network_report(state: &Everything, name: &str) -> Option<NetworkReport> {
    let network = state.networks.get(name)?;
    let spec = &network.spec;
    let members = || state.ports.iter().filter(|(_, p)| p.network == name);
    // A network is as well as the ports that it has by itself.
    let own = members().filter(|(_, p)| !matches!(p.purpose, Purpose::Added(_)));
    let broken = own.filter_map(|(port, p)| match p.backend.state() {
        State::Error(reason) => Some(format!("{port}: {reason}")),
        State::Waiting => Some(format!("{port}: there is no such interface at the moment")),
        State::Down => Some(format!("{port}: the interface is down")),
        State::Up => None,
    });
    let gateway = network.gateway.as_ref().and_then(|(gateway, _)| gateway.lock().problem());
    let outside = gateways::waits_for_address(network);
    let broken = broken.chain(network.host_side.problem.clone()).chain(gateway).chain(outside);
    let broken: Vec<String> = broken.collect();
    Some(NetworkReport {
        name: name.to_owned(),
        mode: spec.mode.as_str().to_owned(),
        ports: members().filter(|(_, p)| matches!(p.purpose, Purpose::Added(_))).count() as u64,
        state: if broken.is_empty() { "up" } else { "error" }.to_owned(),
        reason: (!broken.is_empty()).then(|| broken.join("; ")),
        mtu: state.mtu(name, None).0.into(),
        uplink: spec.uplink_interface().map(str::to_owned),
        host_if: spec.host_if,
    })
}

fn network_detail(state: &Everything, name: &str, now: Instant) -> Option<NetworkDetail> {
    let report = network_report(state, name)?;
    let network = state.networks.get(name)?;
    let members = state.ports.iter().filter(|(_, p)| p.network == name).map(|(name, _)| name.clone());
    let usage = network.mode.fdb().map(|fdb| fdb.usage());
    Some(NetworkDetail {
        name: report.name,
        mode: report.mode,
        ports: report.ports,
        state: report.state,
        reason: report.reason,
        mtu: report.mtu,
        uplink: report.uplink,
        host_if: report.host_if,
        host_address: network.spec.host_address.as_str().to_owned(),
        members: members.collect(),
        keys: network.spec.words().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        resolved: gateways::resolved(network, now),
        ageing_s: usage.map(|_| network.spec.ageing_s.into()),
        fdb_max: usage.map(|(_, max)| max as u64),
        fdb_entries: usage.map(|(entries, _)| entries as u64),
    })
}

fn port_detail(state: &Everything, name: &str, port: &Port) -> PortDetail {
    let spec = match &port.purpose {
        Purpose::Added(spec) => Some(spec),
        _ => None,
    };
    let now = port.backend.state();
    let mut detail = PortDetail {
        name: name.to_owned(),
        network: port.network.clone(),
        kind: port.kind.clone(),
        mac: spec.and_then(|s| s.mac).map(|m| m.to_string()),
        ip: spec.map(|s| s.ip.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        state: now.word().to_owned(),
        reason: now.reason(),
        mtu: state.mtu(&port.network, spec.and_then(|s| s.mtu)).0.into(),
        queues: spec.map_or(1, |s| s.queues.into()),
        vlan: spec.and_then(|s| s.vlan).map(|v| v.get().into()),
        isolated: spec.is_some_and(|s| s.isolated),
        antispoof: spec.is_some_and(|s| s.antispoof),
        routes: spec.map(|s| s.routes.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        rate: spec.and_then(|s| s.rate).map(|r| r.to_string()),
        ..PortDetail::default()
    };
    port.backend.describe(&mut detail);
    detail
}

fn port_report(state: &Everything, name: &str, port: &Port) -> PortReport {
    let PortDetail { name, network, kind, mac, ip, state, reason, mtu, queues, .. } =
        port_detail(state, name, port);
    PortReport { name, network, kind, mac, ip, state, reason, mtu, queues }
}

fn counters(name: &str, port: &Port) -> PortCounters {
    let totals = port.counters.read();
    PortCounters {
        name: name.to_owned(),
        rx_frames: totals.rx_frames,
        rx_bytes: totals.rx_bytes,
        tx_frames: totals.tx_frames,
        tx_bytes: totals.tx_bytes,
        drops: totals.drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect::<BTreeMap<_, _>>(),
        copies: totals.copies,
        forwarded: totals.forwarded,
        offered: totals.offered,
        rx_bursts: totals.rx_bursts,
        cycles: totals.cycles,
        polls_idle: totals.polls_idle,
        wakeups: totals.wakeups,
    }
}

impl Host {
    fn workers(&self) -> Vec<Worker> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let busy = self.datapath.busy_permille().into_iter().chain(std::iter::repeat(0));
        let worker = |((cpu, stats), busy): ((Option<usize>, &WorkerStats), u16)| Worker {
            cpu: cpu.map(|c| c as u64),
            queues: read(&stats.queues),
            polls: read(&stats.polls),
            polls_idle: read(&stats.polls_idle),
            frames: read(&stats.frames),
            bursts: read(&stats.bursts),
            sleeps: read(&stats.sleeps),
            wakeups: read(&stats.wakeups),
            cycles_busy: read(&stats.cycles_busy),
            cycles_asleep: stats.cycles_asleep(ticks::now()),
            busy_permille: busy.into(),
        };
        self.datapath.stats().zip(busy).map(worker).collect()
    }
}

impl Switch for Host {
    fn status(&self) -> Status {
        let state = self.lock();
        let clock = self.datapath.clock();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().into(),
            uptime_s: self.started.elapsed().as_secs(),
            networks: state.networks.len() as u64,
            ports: state.ports.len() as u64,
            cycles: clock.elapsed(),
            cycles_per_s: clock.per_second(),
            workers: self.workers(),
        }
    }

    fn net_add(&self, spec: NetworkSpec, may_exist: bool) -> Result<(), Refusal> {
        self.add_network(spec, may_exist)
    }

    fn net_set(&self, name: &str, changes: &NetworkChanges) -> Result<(), Refusal> {
        self.change_network(name, |spec| Ok(changes.apply(spec)?))
    }

    fn net_del(&self, name: &str) -> Result<(), Refusal> {
        self.delete_network(name, false)
    }

    fn net_list(&self) -> Vec<NetworkReport> {
        let state = self.lock();
        state.networks.keys().filter_map(|name| network_report(&state, name)).collect()
    }

    fn net_show(&self, name: &str) -> Result<NetworkDetail, Refusal> {
        network_detail(&self.lock(), name, self.datapath.now()).ok_or_else(|| Refusal::no_network(name))
    }

    fn port_add(&self, spec: PortSpec, may_exist: bool) -> Result<(), Refusal> {
        self.add_port(spec, may_exist)
    }

    fn port_set(&self, name: &str, changes: &PortChanges) -> Result<(), Refusal> {
        self.change_port(name, |spec| Ok(changes.apply(spec)?))
    }

    fn port_del(&self, name: &str) -> Result<(), Refusal> {
        self.delete_port(name, false)
    }

    fn port_list(&self, network: Option<&str>) -> Result<Vec<PortReport>, Refusal> {
        let state = self.lock();
        if let Some(network) = network.filter(|n| !state.networks.contains_key(*n)) {
            return Err(Refusal::no_network(network));
        }
        let wanted = state.ports.iter().filter(|(_, p)| network.is_none_or(|n| p.network == n));
        Ok(wanted.map(|(name, port)| port_report(&state, name, port)).collect())
    }

    fn port_show(&self, name: &str) -> Result<PortDetail, Refusal> {
        let state = self.lock();
        state
            .ports
            .get(name)
            .map(|port| port_detail(&state, name, port))
            .ok_or_else(|| Refusal::no_port(name))
    }

    fn port_stats(&self, name: Option<&str>) -> Result<Vec<PortCounters>, Refusal> {
        let state = self.lock();
        if let Some(name) = name {
            let port = state.ports.get(name).ok_or_else(|| Refusal::no_port(name))?;
            return Ok(vec![counters(name, port)]);
        }
        Ok(state.ports.iter().map(|(name, port)| counters(name, port)).collect())
    }

    fn fdb_show(&self, network: &str) -> Result<Vec<FdbEntry>, Refusal> {
        let state = self.lock();
        let names: HashMap<_, _> = state.ports.iter().map(|(name, port)| (port.id, name)).collect();
        let fdb = fdb_of(&state, network)?;
        let mut entries: Vec<_> = fdb.entries(self.datapath.now());
        entries.sort_by_key(|e| (e.vlan, e.mac));
        // An entry whose port has just gone is about to go too.
        let named = entries.into_iter().filter_map(|e| Some((names.get(&e.port)?, e)));
        Ok(named
            .map(|(port, e)| FdbEntry {
                mac: e.mac.to_string(),
                vlan: e.vlan.map_or(0, |v| v.get().into()),
                port: (*port).clone(),
                age_s: e.age.as_secs(),
                r#static: e.is_static,
            })
            .collect())
    }

    fn fdb_add(
        &self,
        network: &str,
        port: &str,
        mac: MacAddr,
        vlan: Option<Vid>,
        may_exist: bool,
    ) -> Result<(), Refusal> {
        let state = self.lock();
        let fdb = fdb_of(&state, network)?;
        let to = state.ports.get(port).ok_or_else(|| Refusal::no_port(port))?;
        if to.network != network {
            return Err(Refusal::refused(format!(
                "fdb add {mac}: port {port} is on network {}, not on {network}",
                to.network
            )));
        }
        let present = fdb
            .entries(self.datapath.now())
            .into_iter()
            .find(|e| e.mac == mac && e.vlan == vlan && e.is_static);
        match present {
            Some(e) if may_exist && e.port == to.id => return Ok(()),
            Some(_) => {
                return Err(Refusal::refused(format!(
                    "fdb add {mac}: network {network} has a static entry for it already: delete that first"
                )));
            }
            None => {}
        }
        fdb.add_static(mac, vlan, to.id).map_err(|e| Refusal::refused(format!("fdb add {mac}: {e}")))
    }

    fn fdb_del(&self, network: &str, mac: MacAddr, vlan: Option<Vid>) -> Result<bool, Refusal> {
        Ok(fdb_of(&self.lock(), network)?.remove(mac, vlan))
    }

    fn fdb_flush(&self, network: &str) -> Result<(), Refusal> {
        fdb_of(&self.lock(), network)?.flush();
        Ok(())
    }

    fn lease_list(&self, network: Option<&str>) -> Result<Vec<Lease>, Refusal> {
        gateways::lease_list(self, network)
    }

    fn lease_add(&self, spec: LeaseSpec, may_exist: bool) -> Result<(), Refusal> {
        gateways::lease_add(self, &spec, may_exist)
    }

    fn lease_del(&self, network: &str, key: LeaseKey) -> Result<bool, Refusal> {
        gateways::lease_del(self, network, key)
    }

    fn nat_sessions(&self, network: &str, limit: usize) -> Result<NatSessionList, Refusal> {
        gateways::nat_sessions(self, network, limit)
    }

    fn forward_add(&self, spec: ForwardSpec, may_exist: bool) -> Result<(), Refusal> {
        gateways::forward_add(self, &spec, may_exist)
    }

    fn forward_del(&self, spec: ForwardSpec) -> Result<bool, Refusal> {
        gateways::forward_del(self, &spec)
    }

    fn forward_list(&self, network: Option<&str>) -> Result<Vec<Forward>, Refusal> {
        gateways::forward_list(self, network)
    }
}

fn fdb_of<'a>(state: &'a Everything, network: &str) -> Result<&'a dyn FdbAccess, Refusal> {
    let found = state.networks.get(network).ok_or_else(|| Refusal::no_network(network))?;
    found.mode.fdb().ok_or_else(|| {
        let mode = found.spec.mode.as_str();
        Refusal::refused(format!("network {network} is of mode {mode}: it has no forwarding database"))
    })
}
