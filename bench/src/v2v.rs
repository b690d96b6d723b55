//! `v2v`: two vhost-user ports, one forwarding thread, small and full frames, against Open vSwitch with DPDK.

use std::path::Path;

use anyhow::{Result, bail};

use crate::generators::{Frames, Generator, Load, RING_SIZE, Rate, Rings};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::peers::VhostPeer;
use crate::results::{Cell, Scenario};
use crate::scenario::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB each for a DPDK switch and a DPDK generator, and the own generator's guests.
const PAGES: u64 = 256 + 256 + 32;

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Switches, ours among them.
    pub(crate) peers: Vec<VhostPeer>,
    /// Generators.
    pub(crate) generators: Vec<Generator>,
    /// Ring layouts.
    pub(crate) rings: Vec<Rings>,
    /// Lengths of frames.
    pub(crate) sizes: Vec<Frames>,
    /// How many of them are offered.
    pub(crate) rates: Vec<Rate>,
}

/// What has to be installed.
pub(crate) fn programs(options: &Options) -> Vec<Program> {
    let peers = options.peers.iter().flat_map(|peer| peer.programs());
    let generators = options.generators.iter().flat_map(|generator| generator.programs());
    std::iter::once(&machine::IP).chain(peers).chain(generators).copied().collect()
}

/// Runs it.
///
/// # Errors
/// It cannot begin, or was interrupted; a run that fails is told, and the others go on.
pub(crate) fn run(plan: &Plan, options: &Options) -> Result<Scenario> {
    if plan.switch_cpu == plan.generator_cpu {
        bail!("the switch and the generator both poll: they need two processors");
    }
    let _pages = Hugepages::reserve(PAGES)?;
    let mut scenario = Scenario {
        name: "v2v",
        about: format!(
            "Two vhost-user ports, one forwarding thread, alone on CPU {}; the generator is one thread on CPU {}. Rings of\n\
             {RING_SIZE} descriptors, frames both ways, lengths without check sequence. Each switch has its defaults beside\n\
             that: `weft` a network of mode bridge, `ovs` Open vSwitch's userspace datapath with action NORMAL; `testpmd-io`\n\
             forwards between two DPDK vhost ports and decides nothing; `reflector` does the least that moves a frame, and\n\
             shows how far the generator itself gets. Generator `testpmd` has a fixed number of frames go round and round;\n\
             generator `traffic` sends as fast as the rings take frames, so that there is loss.",
            plan.switch_cpu, plan.generator_cpu
        ),
        pairs: plan.pairs,
        seconds: plan.seconds,
        commands: Default::default(),
        cells: Vec::new(),
    };
    let names: Vec<&str> = options.peers.iter().map(|peer| peer.name()).collect();
    for &generator in &options.generators {
        for load in loads(plan, options).iter().filter(|load| generator.makes(load)) {
            let rate =
                if load.rate == Rate::Full { String::new() } else { format!(", {}", load.rate.title()) };
            let name = format!("{}, {}{rate}, {}", load.frames.title(), load.rings, generator.name());
            let cell = Cell::new(name, "frames/s", &names);
            rounds(&mut scenario, cell, generator.name(), |peer, dir| {
                let Some(peer) = options.peers.iter().find(|known| known.name() == peer) else {
                    bail!("no such peer");
                };
                let switch = peer.start(dir, plan.switch_cpu)?;
                let measured = generator.measure(&switch, &Load { dir, ..*load })?;
                Ok(Run { switch: switch.commands.clone(), measured })
            })?;
        }
    }
    Ok(scenario)
}

/// Every load that was asked for, without a directory.
fn loads(plan: &Plan, options: &Options) -> Vec<Load<'static>> {
    let base = Load::new(Path::new(""), plan.generator_cpu, plan.seconds);
    let mut loads = Vec::new();
    for &frames in &options.sizes {
        for &rings in &options.rings {
            loads.extend(options.rates.iter().map(|&rate| Load { frames, rings, rate, ..base }));
        }
    }
    loads
}
