//! The switches of the scenarios in which a port is something else than a tap or a vhost-user socket alone: two interfaces
//! that exist, a vhost-user socket and a tap, or two guests of QEMU's.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    ADDRESSES, Setup, TapSwitch, VhostPeer, VhostSwitch, WEFT, WEFT_BUSY, kernel_bridge, ovs, tell, weft,
};
use crate::guard::{Job, Line, Netns};
use crate::machine::{self, Program};

/// The ends' interfaces.
pub(crate) const INTERFACES: [&str; 2] = ["tap0", "tap1"];

/// A switch that joins two interfaces that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetdevPeer {
    /// Ours: two netdev ports, which are `AF_PACKET` sockets.
    Weft,
    /// The kernel's bridge, as a reference: it moves no bytes.
    Bridge,
    /// Open vSwitch's userspace datapath, by `AF_PACKET` sockets.
    Ovs,
    /// The same with its segmentation offload switched on.
    OvsTso,
    /// The same by `AF_XDP` sockets.
    OvsAfxdp,
}

impl NetdevPeer {
    /// All, in the order in which they run in a round.
    pub(crate) const ALL: [NetdevPeer; 5] =
        [NetdevPeer::Weft, NetdevPeer::Bridge, NetdevPeer::Ovs, NetdevPeer::OvsTso, NetdevPeer::OvsAfxdp];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            NetdevPeer::Weft => WEFT,
            NetdevPeer::Bridge => "bridge",
            NetdevPeer::Ovs => "ovs",
            NetdevPeer::OvsTso => "ovs-tso",
            NetdevPeer::OvsAfxdp => "ovs-afxdp",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            NetdevPeer::OvsTso => &[machine::OVS],
            NetdevPeer::Ovs | NetdevPeer::OvsAfxdp => &[machine::OVS, machine::ETHTOOL],
            NetdevPeer::Weft | NetdevPeer::Bridge => &[],
        }
    }

    /// Starts it with its files in `dir`; a switch that is a process does its forwarding on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize) -> Result<TapSwitch> {
        match self {
            NetdevPeer::Weft => weft::netdevs(dir, cpu),
            NetdevPeer::Bridge => kernel_bridge::start(),
            NetdevPeer::Ovs => ovs::netdevs(dir, cpu, ovs::Sockets::Packet),
            NetdevPeer::OvsTso => ovs::netdevs(dir, cpu, ovs::Sockets::PacketTso),
            NetdevPeer::OvsAfxdp => ovs::netdevs(dir, cpu, ovs::Sockets::Xdp),
        }
    }
}

/// A veth pair for each end: `veth0` and `veth1` in the middle, [`INTERFACES`] in the ends, all up, with addresses there.
pub(super) fn veths(
    ends: &[Netns; 2],
    middle: &Netns,
    commands: &mut Vec<String>,
) -> Result<[&'static str; 2]> {
    let ports = ["veth0", "veth1"];
    for (((end, address), interface), port) in ends.iter().zip(ADDRESSES).zip(INTERFACES).zip(ports) {
        let words = format!("link add {port} type veth peer name {interface} netns {}", end.name());
        tell(&Line::new("ip").arg("-n").arg(middle.name()).words(&words), commands)?;
        middle.ip(&format!("link set {port} up"))?;
        end.ip(&format!("address add {address} dev {interface}"))?;
        end.ip(&format!("link set {interface} up"))?;
    }
    Ok(ports)
}

/// A running switch with a vhost-user socket on which it listens, and a tap whose interface is in a namespace.
#[derive(Debug)]
pub(crate) struct MixedSwitch {
    /// Where a front-end connects.
    pub(crate) socket: PathBuf,
    /// How it was started.
    pub(crate) commands: Vec<String>,
    pub(super) _jobs: Vec<Job>,
    /// Where the tap's interface is: the second of [`INTERFACES`], with the second of [`ADDRESSES`].
    pub(crate) end: Netns,
    pub(super) _middle: Netns,
}

impl MixedSwitch {
    /// The tap's end.
    pub(crate) fn tap(&self) -> (&Netns, &'static str) {
        (&self.end, INTERFACES[1])
    }
}

/// A switch that joins a vhost-user socket and a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MixedPeer {
    /// Ours.
    Weft,
    /// Open vSwitch's userspace datapath with DPDK.
    Ovs,
    /// The same with its segmentation offload switched on.
    OvsTso,
}

impl MixedPeer {
    /// All, in the order in which they run in a round.
    pub(crate) const ALL: [MixedPeer; 3] = [MixedPeer::Weft, MixedPeer::Ovs, MixedPeer::OvsTso];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            MixedPeer::Weft => WEFT,
            MixedPeer::Ovs => "ovs",
            MixedPeer::OvsTso => "ovs-tso",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            MixedPeer::Weft => &[],
            MixedPeer::Ovs | MixedPeer::OvsTso => &[machine::OVS],
        }
    }

    /// Starts it with its files in `dir` and its forwarding thread on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize) -> Result<MixedSwitch> {
        match self {
            MixedPeer::Weft => weft::mixed(dir, cpu),
            MixedPeer::Ovs => ovs::mixed(dir, cpu, false),
            MixedPeer::OvsTso => ovs::mixed(dir, cpu, true),
        }
    }
}

/// What two guests are plugged into.
#[derive(Debug)]
pub(crate) enum GuestSwitch {
    /// vhost-user sockets.
    Sockets(VhostSwitch),
    /// A bridge of the kernel's in a namespace: QEMU makes taps there, which become its ports.
    Bridge {
        /// Where.
        netns: Netns,
        /// How it was made.
        commands: Vec<String>,
    },
}

impl GuestSwitch {
    /// Makes a tap that QEMU has made a port of the bridge.
    ///
    /// # Errors
    /// There is no such tap.
    pub(crate) fn join(&mut self, interface: &str) -> Result<()> {
        match self {
            GuestSwitch::Sockets(_) => Ok(()),
            GuestSwitch::Bridge { netns, commands } => {
                tell(&kernel_bridge::enslave(netns, interface), commands)
            }
        }
    }

    /// How it was started.
    pub(crate) fn commands(&self) -> Vec<String> {
        match self {
            GuestSwitch::Sockets(switch) => switch.commands.clone(),
            GuestSwitch::Bridge { commands, .. } => commands.clone(),
        }
    }
}

/// A switch for two guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestPeer {
    /// Ours, by vhost-user.
    Weft,
    /// The same with a forwarding thread that never sleeps, as Open vSwitch's.
    WeftBusy,
    /// Open vSwitch with DPDK, by vhost-user. With its segmentation offload, version 3.1 drops TCP of guests that use it
    /// ("No TCP checksum support") at ports on which it listens.
    Ovs,
    /// The kernel's bridge; QEMU itself carries frames to and from taps.
    Bridge,
}

impl GuestPeer {
    /// All, in the order in which they run in a round.
    pub(crate) const ALL: [GuestPeer; 4] =
        [GuestPeer::Weft, GuestPeer::WeftBusy, GuestPeer::Ovs, GuestPeer::Bridge];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            GuestPeer::Weft => WEFT,
            GuestPeer::WeftBusy => WEFT_BUSY,
            GuestPeer::Ovs => "ovs",
            GuestPeer::Bridge => "qemu-bridge",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            GuestPeer::Ovs => &[machine::OVS],
            GuestPeer::Weft | GuestPeer::WeftBusy | GuestPeer::Bridge => &[],
        }
    }

    /// Starts it with its files in `dir` and its forwarding thread, if it has one, on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize) -> Result<GuestSwitch> {
        match self {
            GuestPeer::Weft => VhostPeer::Weft.start(&Setup::pair(dir, cpu)).map(GuestSwitch::Sockets),
            GuestPeer::WeftBusy => {
                VhostPeer::WeftBusy.start(&Setup::pair(dir, cpu)).map(GuestSwitch::Sockets)
            }
            GuestPeer::Ovs => VhostPeer::Ovs.start(&Setup::pair(dir, cpu)).map(GuestSwitch::Sockets),
            GuestPeer::Bridge => {
                let netns = Netns::new("switch")?;
                let commands = kernel_bridge::make(&netns)?;
                Ok(GuestSwitch::Bridge { netns, commands })
            }
        }
    }
}
