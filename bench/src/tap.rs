//! `tap`: TCP between two network namespaces, against the kernel's bridge, Open vSwitch and a bare loop.

use anyhow::{Result, bail};

use crate::generators::iperf;
use crate::machine::{self, Program};
use crate::peers::TapPeer;
use crate::results::{Cell, Scenario};
use crate::scenario::{Plan, Run, rounds};

/// What has to be installed.
pub(crate) fn programs(peers: &[TapPeer]) -> Vec<Program> {
    let peers = peers.iter().flat_map(|peer| peer.programs());
    [machine::IPERF3, machine::IP].iter().chain(peers).copied().collect()
}

/// Runs it.
///
/// # Errors
/// It was interrupted; a run that fails is told, and the others go on.
pub(crate) fn run(plan: &Plan, peers: &[TapPeer]) -> Result<Scenario> {
    let mut scenario = Scenario {
        name: "tap",
        about: format!(
            "One TCP connection (iperf3) between two network namespaces, MTU 1500, segments of up to 64 KB where the switch\n\
             carries them. A switch that is a process forwards on CPU {}; the kernel's bridge forwards where the sender runs;\n\
             iperf3 runs where the scheduler puts it. `weft`: a network of mode bridge with two tap ports; `loop`: a loop that\n\
             reads from one tap and writes to the other, with virtio headers, and decides nothing; `bridge`: the kernel's, with\n\
             veth pairs; `ovs`: Open vSwitch's userspace datapath with two tap ports; `ovs-tso`: the same with\n\
             `userspace-tso-enable`, which its documentation calls experimental.",
            plan.switch_cpu
        ),
        pairs: plan.pairs,
        seconds: plan.seconds,
        commands: Default::default(),
        cells: Vec::new(),
    };
    let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
    let cell = Cell::new("TCP, one connection".into(), "bits/s", &names);
    rounds(&mut scenario, cell, "iperf3", |peer, dir| {
        let Some(peer) = peers.iter().find(|known| known.name() == peer) else { bail!("no such peer") };
        let switch = peer.start(dir, plan.switch_cpu)?;
        let measured = iperf::measure(&switch, dir, plan.seconds)?;
        Ok(Run { switch: switch.commands.clone(), measured })
    })?;
    Ok(scenario)
}
