//! Open vSwitch's userspace datapath, from Debian's package, with a database, sockets and a network namespace of its own:
//! an Open vSwitch of the host's is not touched. Its caches and tables are as they come; what is set is where its
//! forwarding thread runs and how much memory DPDK takes.

use std::path::Path;

use anyhow::Result;

use super::{
    ADDRESSES, INTERFACES, LIMIT, MixedSwitch, Setup, TapSwitch, VhostSwitch, await_file, beside, hand_over,
    launch, namespaces, tell, text, veths,
};
use crate::guard::{Job, Line, Netns};

/// The daemon that is built with DPDK.
pub(crate) const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// Its segmentation offload, which its documentation calls experimental.
const TSO: &str = "other_config:userspace-tso-enable=true";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Stations that a bridge's table takes unless it is told (`mac-table-size`, ovs-vswitchd.conf.db(5)).
const STATIONS_DEFAULT: u32 = 8192;

struct Ovs {
    jobs: Vec<Job>,
    database: String,
    /// Where the bridge takes flows.
    flows: String,
    commands: Vec<String>,
}

impl Ovs {
    /// Starts the database and the daemon, and makes a bridge. `cpu` pins the whole daemon.
    fn start(dir: &Path, netns: &Netns, settings: &[String], cpu: Option<usize>) -> Result<Self> {
        let socket = dir.join("db.sock");
        let database = format!("unix:{}", socket.display());
        let flows = format!("unix:{}", dir.join("br0.mgmt").display());
        let mut ovs = Ovs { jobs: Vec::new(), database, flows, commands: Vec::new() };
        let conf = text(&dir.join("conf.db"));
        tell(&Line::new("ovsdb-tool").arg("create").arg(&conf).arg(SCHEMA), &mut ovs.commands)?;
        let in_dir = |line: Line| {
            line.env("OVS_RUNDIR", text(dir)).env("OVS_LOGDIR", text(dir)).env("OVS_DBDIR", text(dir))
        };
        let server = Line::new("ovsdb-server").arg(conf).arg(format!("--remote=p{}", ovs.database));
        let mut server = launch(&in_dir(server), &dir.join("ovsdb.log"), &mut ovs.commands)?;
        await_file(&mut server, &socket)?;
        ovs.vsctl("--no-wait init")?;
        if !settings.is_empty() {
            ovs.vsctl(&format!("--no-wait set Open_vSwitch . {}", settings.join(" ")))?;
        }
        let mut daemon = Line::new(VSWITCHD).arg(&ovs.database).netns(netns);
        if let Some(cpu) = cpu {
            daemon = daemon.cpu(cpu);
        }
        let daemon = launch(&in_dir(daemon), &dir.join("vswitchd.log"), &mut ovs.commands)?;
        ovs.jobs = vec![daemon, server];
        ovs.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
        Ok(ovs)
    }

    /// Tells the bridge `verb` with at most one flow.
    fn ofctl(&mut self, verb: &str, flow: &str) -> Result<()> {
        let line = Line::new("ovs-ofctl").arg("--names").arg(verb).arg(&self.flows).words(flow);
        tell(&line, &mut self.commands)
    }

    fn vsctl(&mut self, words: &str) -> Result<()> {
        let timeout = format!("--timeout={}", LIMIT.as_secs());
        let line = Line::new("ovs-vsctl").arg(timeout).arg(format!("--db={}", self.database));
        let result = tell(&line.words(words), &mut self.commands);
        result.map_err(|error| match self.jobs.first() {
            Some(daemon) => error.context(format!("Open vSwitch's daemon said:\n{}", daemon.log())),
            None => error,
        })
    }
}

/// How it decides where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decides {
    /// As a bridge that learns.
    Normal,
    /// The same, and ports pass segments of 64 KB on.
    NormalWithSegments,
    /// As a bridge that learns; its forwarding threads sleep up to so many microseconds when there is little to do.
    NormalAndSleeps { us: u32 },
    /// By a flow for each port, to the other of its pair.
    Flows,
}

/// Ports of one call to `ovs-vsctl`: each call waits until the forwarding threads have taken the change over.
const AT_ONCE: usize = 16;

/// DPDK with a forwarding thread on each of the processors; the other threads are beside them.
fn dpdk(cpus: &[usize]) -> Vec<String> {
    vec![
        "other_config:dpdk-init=true".to_string(),
        format!("other_config:dpdk-lcore-mask={:#x}", 1u64 << beside(cpus)),
        "other_config:dpdk-socket-mem=512".to_string(),
        format!("other_config:pmd-cpu-mask={:#x}", cpus.iter().fold(0u64, |mask, cpu| mask | 1 << cpu)),
    ]
}

/// Ports of vhost-user, and a forwarding thread on each of the processors. Ports that listen (`dpdkvhostuser`) never offer
/// segmentation offload, whatever is set: for that they are such that connect.
pub(super) fn vhost(setup: &Setup<'_>, decides: Decides) -> Result<VhostSwitch> {
    let mut settings = dpdk(&setup.cpus);
    if decides == Decides::NormalWithSegments {
        settings.push(TSO.to_string());
    }
    let connects = decides == Decides::NormalWithSegments;
    if let Decides::NormalAndSleeps { us } = decides {
        settings.push(format!("other_config:pmd-maxsleep={us}"));
    }
    let netns = Netns::new("ovs")?;
    let mut ovs = Ovs::start(setup.dir, &netns, &settings, None)?;
    if setup.stations > STATIONS_DEFAULT {
        ovs.vsctl(&format!("set bridge br0 other-config:mac-table-size={}", setup.stations))?;
    }
    let numbers: Vec<usize> = (0..setup.ports).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let add = |n: &usize| {
            let kind = if connects {
                let path = setup.dir.join(format!("vhu{n}"));
                format!("dpdkvhostuserclient options:vhost-server-path={}", path.display())
            } else {
                "dpdkvhostuser".to_string()
            };
            format!("add-port br0 vhu{n} -- set Interface vhu{n} type={kind}")
        };
        ovs.vsctl(&numbers.iter().map(add).collect::<Vec<_>>().join(" -- "))?;
    }
    if decides == Decides::Flows {
        ovs.ofctl("del-flows", "")?;
        for number in 0..setup.ports {
            ovs.ofctl("add-flow", &format!("in_port=vhu{number},actions=output:vhu{}", number ^ 1))?;
        }
    }
    let sockets = setup.sockets();
    Ok(VhostSwitch { sockets, connects, commands: ovs.commands, jobs: ovs.jobs, _netns: Some(netns) })
}

/// Two `tap` ports, which the main thread forwards between: the daemon is pinned to `cpu`.
pub(super) fn taps(dir: &Path, cpu: usize, tso: bool) -> Result<TapSwitch> {
    let settings: &[String] = if tso { &[TSO.to_string()] } else { &[] };
    let (ends, middle) = namespaces()?;
    let mut ovs = Ovs::start(dir, &middle, settings, Some(cpu))?;
    for port in ["tap0", "tap1"] {
        ovs.vsctl(&format!("add-port br0 {port} -- set Interface {port} type=tap"))?;
    }
    hand_over(&ends, &middle, ["tap0", "tap1"])?;
    Ok(TapSwitch { commands: ovs.commands, _jobs: ovs.jobs, ends, _middle: middle })
}

/// By what sockets it has interfaces that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sockets {
    /// `AF_PACKET`; the main thread forwards.
    Packet,
    /// The same, with its segmentation offload.
    PacketTso,
    /// `AF_XDP`; a thread polls.
    Xdp,
}

/// Two interfaces that exist. What forwards runs on `cpu`. Without its segmentation offload Open vSwitch does not see
/// that a frame's checksum is not filled in: the ends must not leave it out, or TCP does not pass.
pub(super) fn netdevs(dir: &Path, cpu: usize, sockets: Sockets) -> Result<TapSwitch> {
    let (ends, middle) = namespaces()?;
    let mut commands = Vec::new();
    let interfaces = veths(&ends, &middle, &mut commands)?;
    if sockets != Sockets::PacketTso {
        for (end, interface) in ends.iter().zip(INTERFACES) {
            tell(&Line::new("ethtool").arg("-K").arg(interface).words("tx off").netns(end), &mut commands)?;
        }
    }
    let (settings, pinned, set) = match sockets {
        Sockets::Packet => (Vec::new(), Some(cpu), ""),
        Sockets::PacketTso => (vec![TSO.to_string()], Some(cpu), ""),
        Sockets::Xdp => {
            let mask = format!("other_config:pmd-cpu-mask={:#x}", 1u64 << cpu);
            (vec![mask], None, "type=afxdp options:xdp-mode=native")
        }
    };
    let mut ovs = Ovs::start(dir, &middle, &settings, pinned)?;
    for port in interfaces {
        let set = if set.is_empty() { String::new() } else { format!(" -- set Interface {port} {set}") };
        ovs.vsctl(&format!("add-port br0 {port}{set}"))?;
    }
    commands.append(&mut ovs.commands);
    Ok(TapSwitch { commands, _jobs: ovs.jobs, ends, _middle: middle })
}

/// A `dpdkvhostuser` port, which a thread on `cpu` polls, and a tap, which the main thread reads, beside it.
pub(super) fn mixed(dir: &Path, cpu: usize, tso: bool) -> Result<MixedSwitch> {
    let mut settings = dpdk(&[cpu]);
    settings.extend(tso.then(|| TSO.to_string()));
    let (end, middle) = (Netns::new("b")?, Netns::new("switch")?);
    let mut ovs = Ovs::start(dir, &middle, &settings, None)?;
    let tap = INTERFACES[1];
    ovs.vsctl("add-port br0 vhu0 -- set Interface vhu0 type=dpdkvhostuser")?;
    ovs.vsctl(&format!("add-port br0 {tap} -- set Interface {tap} type=tap"))?;
    end.adopt(&middle, tap, ADDRESSES[1])?;
    Ok(MixedSwitch {
        socket: dir.join("vhu0"),
        commands: ovs.commands,
        _jobs: ovs.jobs,
        end,
        _middle: middle,
    })
}

/// A `dpdkvhostuser` port, which a thread on `cpu` polls, and the interface `out` of `netns`, to which that thread writes by
/// an `AF_PACKET` socket. All IPv4 from the guest is translated to `address` and sent on with the MAC addresses `macs`.
/// One flow commits and translates: ovs-actions(7) has two with a pass through the tables between them, which costs more,
/// and is of no use where nobody answers.
pub(super) fn translator(
    dir: &Path,
    cpu: usize,
    netns: &Netns,
    out: &str,
    macs: [&str; 2],
    address: &str,
) -> Result<VhostSwitch> {
    let mut ovs = Ovs::start(dir, netns, &dpdk(&[cpu]), None)?;
    ovs.vsctl("add-port br0 vhu0 -- set Interface vhu0 type=dpdkvhostuser")?;
    ovs.vsctl(&format!("add-port br0 {out}"))?;
    ovs.ofctl("del-flows", "")?;
    let [from, to] = macs;
    let translate = format!("ct(commit,nat(src={address})),mod_dl_src:{from},mod_dl_dst:{to},dec_ttl");
    ovs.ofctl("add-flow", &format!("ip,in_port=vhu0,actions={translate},output:{out}"))?;
    let sockets = vec![dir.join("vhu0")];
    Ok(VhostSwitch { sockets, connects: false, commands: ovs.commands, jobs: ovs.jobs, _netns: None })
}
