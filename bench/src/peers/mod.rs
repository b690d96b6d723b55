//! The switches that are compared: ours, and its peers. Each is started fresh for each measurement and gone after it.

mod kernel_bridge;
mod ovs;
mod reflector;
mod router;
mod tap_loop;
mod testpmd_io;
mod user;
mod vde;
mod weft;
mod wires;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::guard::{Job, Line, Netns, run};
use crate::machine::{self, Program};
pub(crate) use ovs::VSWITCHD;
pub(crate) use router::{RouterEnd, RouterPeer, RouterSwitch, Work};
pub(crate) use user::{UserPeer, UserSwitch};
use wires::veths;
pub(crate) use wires::{GuestPeer, GuestSwitch, INTERFACES, MixedPeer, MixedSwitch, NetdevPeer};

/// How long a switch may take to start, and a command to it.
const LIMIT: Duration = Duration::from_secs(30);

/// Ports that are added one by one; more of them at once.
const FEW: usize = 16;

/// Our own name among the peers.
pub(crate) const WEFT: &str = "weft";
/// Ours with `--poll busy`.
pub(crate) const WEFT_BUSY: &str = "weft-busy";

/// What a switch of vhost-user ports is to be.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    /// For its files.
    pub(crate) dir: &'a Path,
    /// The processors of its forwarding threads: one thread on each.
    pub(crate) cpus: Vec<usize>,
    /// Ports, `vhu0` and so on, all of one bridge.
    pub(crate) ports: usize,
    /// Whether guests send and take segments of 64 KB, where that has to be said.
    pub(crate) segments: bool,
    /// Whether the first port's frames are for all others: for a peer that knows no addresses.
    pub(crate) broadcast: bool,
    /// Stations at all ports together, for the table's limit.
    pub(crate) stations: u32,
}

impl<'a> Setup<'a> {
    /// Two ports and one forwarding thread.
    pub(crate) fn pair(dir: &'a Path, cpu: usize) -> Self {
        Setup { dir, cpus: vec![cpu], ports: 2, segments: false, broadcast: false, stations: 2 }
    }

    /// Where front-ends connect.
    fn sockets(&self) -> Vec<PathBuf> {
        (0..self.ports).map(|number| self.dir.join(format!("vhu{number}"))).collect()
    }
}

/// A running switch with vhost-user sockets on which it listens.
#[derive(Debug)]
pub(crate) struct VhostSwitch {
    /// Where front-ends connect.
    pub(crate) sockets: Vec<PathBuf>,
    /// Whether it is the other way round: front-ends listen there, and it connects.
    pub(crate) connects: bool,
    /// How it was started.
    pub(crate) commands: Vec<String>,
    /// The one that forwards comes first. Dropped first to last.
    jobs: Vec<Job>,
    _netns: Option<Netns>,
}

impl VhostSwitch {
    /// The process that forwards.
    #[allow(dead_code, reason = "for scenarios of which each uses a part")]
    pub(crate) fn pid(&self) -> Option<u32> {
        self.jobs.first().map(Job::pid)
    }

    /// Of the forwarding thread's life, the part in which another thread had its processor.
    pub(crate) fn waited(&self) -> Option<f64> {
        self.jobs.first().and_then(Job::waited)
    }
}

/// A switch that joins vhost-user sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VhostPeer {
    /// Ours: a network of mode bridge.
    Weft,
    /// The same with a forwarding thread that never sleeps, as a DPDK switch's.
    WeftBusy,
    /// Open vSwitch's userspace datapath with DPDK, action NORMAL.
    Ovs,
    /// The same with flows that say which port's frames go to which: the least that it can decide.
    OvsFlow,
    /// Action NORMAL with segmentation offload between ports, which it calls experimental.
    OvsTso,
    /// DPDK's testpmd, forwarding each port's frames to the other without a look at them.
    TestpmdIo,
    /// A reflector that does the least that moves a frame: the generator's ceiling.
    Reflector,
}

impl VhostPeer {
    /// All that differ where frames never pause, in the order in which they run in a round.
    pub(crate) const ALL: [VhostPeer; 6] = [
        VhostPeer::Weft,
        VhostPeer::Ovs,
        VhostPeer::OvsFlow,
        VhostPeer::OvsTso,
        VhostPeer::TestpmdIo,
        VhostPeer::Reflector,
    ];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            VhostPeer::Weft => WEFT,
            VhostPeer::WeftBusy => WEFT_BUSY,
            VhostPeer::Ovs => "ovs",
            VhostPeer::OvsFlow => "ovs-flow",
            VhostPeer::OvsTso => "ovs-tso",
            VhostPeer::TestpmdIo => "testpmd-io",
            VhostPeer::Reflector => "reflector",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            VhostPeer::Weft | VhostPeer::WeftBusy | VhostPeer::Reflector => &[],
            VhostPeer::Ovs | VhostPeer::OvsFlow | VhostPeer::OvsTso => &[machine::OVS],
            VhostPeer::TestpmdIo => &[machine::TESTPMD],
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// It does not start, or cannot be as `setup` says.
    pub(crate) fn start(self, setup: &Setup<'_>) -> Result<VhostSwitch> {
        match self {
            VhostPeer::Weft => weft::vhost(setup, weft::Poll::Adaptive),
            VhostPeer::WeftBusy => weft::vhost(setup, weft::Poll::Busy),
            VhostPeer::Ovs => ovs::vhost(setup, ovs::Decides::Normal),
            VhostPeer::OvsFlow => ovs::vhost(setup, ovs::Decides::Flows),
            VhostPeer::OvsTso => ovs::vhost(setup, ovs::Decides::NormalWithSegments),
            VhostPeer::TestpmdIo => testpmd_io::start(setup),
            VhostPeer::Reflector => reflector::start(setup),
        }
    }
}

/// Open vSwitch with DPDK, whose forwarding threads sleep up to `us` microseconds when there is little to do.
///
/// # Errors
/// It does not start.
pub(crate) fn ovs_that_sleeps(setup: &Setup<'_>, us: u32) -> Result<VhostSwitch> {
    ovs::vhost(setup, ovs::Decides::NormalAndSleeps { us })
}

/// A running switch between two network namespaces, each with an interface and an address.
#[derive(Debug)]
pub(crate) struct TapSwitch {
    /// How it was started.
    pub(crate) commands: Vec<String>,
    /// Dropped before the namespaces.
    _jobs: Vec<Job>,
    /// Where the generator's client and server run.
    pub(crate) ends: [Netns; 2],
    _middle: Netns,
}

/// The addresses of the two ends, with their prefix length.
pub(crate) const ADDRESSES: [&str; 2] = ["10.99.0.1/24", "10.99.0.2/24"];

/// A switch that joins two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapPeer {
    /// Ours: a network of mode bridge with two tap ports.
    Weft,
    /// A loop that reads from one tap and writes to the other, with virtio headers.
    Loop,
    /// The kernel's bridge with two veth pairs.
    Bridge,
    /// Open vSwitch's userspace datapath with two tap ports.
    Ovs,
    /// The same with its segmentation offload switched on, which it calls experimental.
    OvsTso,
    /// VDE's switch with two taps.
    Vde,
}

impl TapPeer {
    /// All, in the order in which they run in a round.
    pub(crate) const ALL: [TapPeer; 6] =
        [TapPeer::Weft, TapPeer::Loop, TapPeer::Bridge, TapPeer::Ovs, TapPeer::OvsTso, TapPeer::Vde];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            TapPeer::Weft => WEFT,
            TapPeer::Loop => "loop",
            TapPeer::Bridge => "bridge",
            TapPeer::Ovs => "ovs",
            TapPeer::OvsTso => "ovs-tso",
            TapPeer::Vde => "vde",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            TapPeer::Ovs | TapPeer::OvsTso => &[machine::OVS],
            TapPeer::Vde => &[machine::VDE],
            TapPeer::Weft | TapPeer::Loop | TapPeer::Bridge => &[],
        }
    }

    /// Starts it with its files in `dir`; a switch that is a process does its forwarding on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize) -> Result<TapSwitch> {
        match self {
            TapPeer::Weft => weft::taps(dir, cpu),
            TapPeer::Loop => tap_loop::start(dir, cpu),
            TapPeer::Bridge => kernel_bridge::start(),
            TapPeer::Ovs => ovs::taps(dir, cpu, false),
            TapPeer::OvsTso => ovs::taps(dir, cpu, true),
            TapPeer::Vde => vde::start(dir, cpu),
        }
    }
}

/// Three namespaces: the two ends, and one for the switch between them.
fn namespaces() -> Result<([Netns; 2], Netns)> {
    Ok(([Netns::new("a")?, Netns::new("b")?], Netns::new("switch")?))
}

/// Moves the switch's two interfaces to the ends.
fn hand_over(ends: &[Netns; 2], middle: &Netns, interfaces: [&str; 2]) -> Result<()> {
    for ((end, interface), address) in ends.iter().zip(interfaces).zip(ADDRESSES) {
        end.adopt(middle, interface, address)?;
    }
    Ok(())
}

/// Runs a command and notes it down.
fn tell(line: &Line, commands: &mut Vec<String>) -> Result<()> {
    commands.push(line.to_string());
    run(line, LIMIT).map(drop)
}

/// Starts a process and notes its command line down.
fn launch(line: &Line, log: &Path, commands: &mut Vec<String>) -> Result<Job> {
    commands.push(line.to_string());
    Job::start(line, log)
}

/// Waits until a process has made `path`.
fn await_file(job: &mut Job, path: &Path) -> Result<()> {
    job.expect(&format!("{}", path.display()), LIMIT, |_| path.exists().then_some(()))
}

/// A processor that is no forwarding thread's, for a switch's other threads; the first when all are.
fn beside(cpus: &[usize]) -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    (0..all).find(|cpu| !cpus.contains(cpu)).unwrap_or(0)
}

/// Paths in commands are UTF-8: they are in a directory that this program named.
fn text(path: &Path) -> String {
    path.display().to_string()
}
