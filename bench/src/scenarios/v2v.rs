//! `v2v`: two vhost-user ports, one forwarding thread, small and full frames, against Open vSwitch with DPDK.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Benchmark, Entry};
use crate::flags::{Choices, Flag};
use crate::generators::{Frames, Generator, Load, RING_SIZE, Rate, Rings};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE};
use crate::peers::{Setup, VhostPeer, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB each for a DPDK switch and a DPDK generator, and the own generator's guests.
const PAGES: u64 = 256 + 256 + 32;

const GENERATORS: Flag =
    Flag { name: "generators", value: "NAME,…", about: "testpmd, traffic", default: "" };
const RINGS: Flag = Flag {
    name: "rings",
    value: "NAME,…",
    about: "split or packed, then what is on of -mergeable -inorder -indirect -event, or -plain; alone: mergeable",
    default: "split,split-inorder",
};
const SIZES: Flag = Flag {
    name: "sizes",
    value: "BYTES,…",
    about: "lengths of frames, 60 to 1514, without check sequence; mix; segments (of 64 KB)",
    default: "64,1500",
};
const RATES: Flag = Flag {
    name: "rates",
    value: "RATE,…",
    about: "full; frames per second; lossless, the highest without loss; half of that",
    default: "full",
};

pub(super) const ENTRY: Entry = Entry {
    name: "v2v",
    about: "two vhost-user ports, frames per second on one core",
    peers: || VhostPeer::ALL.map(VhostPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[GENERATORS, RINGS, SIZES, RATES],
    prepare,
};

/// What to measure.
struct V2v {
    /// Switches, ours among them.
    peers: Vec<VhostPeer>,
    generators: Vec<Generator>,
    rings: Vec<Rings>,
    /// Lengths of frames.
    sizes: Vec<Frames>,
    /// How many of them are offered.
    rates: Vec<Rate>,
}

impl V2v {
    /// Every load that was asked for, without a directory, and what makes it.
    fn loads(&self, plan: &Plan) -> Vec<(Generator, Load<'static>)> {
        let base = Load::new(Path::new(""), plan.generator_cpu, plan.seconds);
        let mut loads = Vec::new();
        for &generator in &self.generators {
            for &frames in &self.sizes {
                for &rings in &self.rings {
                    let load = |&rate: &Rate| (generator, Load { frames, rings, rate, ..base });
                    loads.extend(
                        self.rates.iter().map(load).filter(|(generator, load)| generator.makes(load)),
                    );
                }
            }
        }
        loads
    }
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(V2v {
        peers: choices.peers(&VhostPeer::ALL, VhostPeer::name),
        generators: choices.choose(&GENERATORS, &Generator::ALL, Generator::name)?,
        rings: choices.parse(&RINGS)?,
        sizes: choices.parse(&SIZES)?,
        rates: choices.parse(&RATES)?,
    }))
}

impl Benchmark for V2v {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        let generators = self.generators.iter().flat_map(|generator| generator.programs());
        std::iter::once(&machine::IP).chain(peers).chain(generators).copied().collect()
    }

    fn runs(&self, plan: &Plan) -> (usize, f64) {
        (self.loads(plan).len() * self.peers.len(), 4.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "Two vhost-user ports, one forwarding thread, alone on CPU {}; the generator is one thread on CPU {}. Rings of\n\
             {RING_SIZE} descriptors, frames both ways, lengths without check sequence. Each switch has its defaults beside\n\
             that: `weft` a network of mode bridge, `ovs` Open vSwitch's userspace datapath with action NORMAL; `testpmd-io`\n\
             forwards between two DPDK vhost ports and decides nothing; `reflector` does the least that moves a frame, and\n\
             shows how far the generator itself gets. Generator `testpmd` has a fixed number of frames go round and round;\n\
             generator `traffic` sends as fast as the rings take frames, so that there is loss.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for (generator, load) in self.loads(plan) {
            let rate =
                if load.rate == Rate::Full { String::new() } else { format!(", {}", load.rate.title()) };
            let name = format!("{}, {}{rate}, {}", load.frames.title(), load.rings, generator.name());
            let cell = Cell::new(name, &[RATE, LOSS]).peers(&names).ceiling(VhostPeer::Reflector.name());
            rounds(&mut scenario, cell, generator.name(), |turn| {
                let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                    bail!("no such peer");
                };
                let switch = peer.start(&Setup::pair(turn.dir, plan.switch_cpu))?;
                let measured = generator.measure(&switch, &Load { dir: turn.dir, ..load })?;
                Ok(Run { switch: switch.commands.clone(), measured })
            })?;
        }
        Ok(scenario)
    }
}
