//! `v2v-chain`: four vhost-user ports in two pairs, and two forwarding threads.

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry, peer_names};
use crate::flags::{Choices, Flag};
use crate::generators::{Frames, Generator, Load, RING_SIZE};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE};
use crate::peers::{Setup, VhostPeer};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

const PORTS: usize = 4;
/// Huge pages of 2 MiB: 512 MiB for a DPDK switch, and the generator's guests.
const PAGES: u64 = 256 + 16 * PORTS as u64;
const PEERS: [VhostPeer; 2] = [VhostPeer::Weft, VhostPeer::Ovs];

const SIZES: Flag = Flag {
    name: "sizes",
    value: "BYTES,…",
    about: "lengths of frames, 60 to 1514, without check sequence; mix; segments (of 64 KB)",
    default: "64,1514",
};

pub(super) const ENTRY: Entry = Entry {
    name: "v2v-chain",
    about: "four vhost-user ports in two pairs, both directions, two forwarding threads",
    peers: || peer_names(&PEERS),
    flags: &[SIZES],
    prepare,
};

struct Chain {
    peers: Vec<VhostPeer>,
    sizes: Vec<Frames>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    let peers = choices.peers(&PEERS, VhostPeer::name);
    Ok(Box::new(Chain { peers, sizes: choices.parse(&SIZES)? }))
}

impl Benchmark for Chain {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.sizes.len() * self.peers.len(), 3.5)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        let cpus = [plan.switch_cpu, second(plan)?];
        let _pages = Hugepages::reserve(PAGES)?;
        let shared = cpus.contains(&plan.generator_cpu);
        let mut scenario = plan.scenario(ENTRY.name, about(plan, cpus, shared));
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for &frames in &self.sizes {
            let mut cell = Cell::new(frames.title(), &[RATE, LOSS]).peers(&names);
            if shared {
                cell.remarks.push(format!(
                    "The generator is the limit of every switch here: it shares CPU {} with a forwarding thread.",
                    plan.generator_cpu
                ));
            }
            rounds(&mut scenario, cell, Generator::Traffic.name(), |turn| {
                let peer =
                    self.peers.iter().find(|known| known.name() == turn.peer).context("no such peer")?;
                let setup =
                    Setup { cpus: cpus.to_vec(), ports: PORTS, ..Setup::pair(turn.dir, plan.switch_cpu) };
                let switch = peer.start(&setup)?;
                let load = Load { frames, ..Load::new(turn.dir, plan.generator_cpu, plan.seconds) };
                let mut measured = Generator::Traffic.measure(&switch, &load)?;
                if shared {
                    // Each of them takes a part of the other's processor, as it has to.
                    measured.disturbed = None;
                }
                Ok(Some(Run { switch: switch.commands.clone(), measured }))
            })?;
        }
        Ok(scenario)
    }
}

/// The second forwarding thread's processor: one that nobody has, else the generator's.
fn second(plan: &Plan) -> Result<usize> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    if all < 2 {
        bail!("two forwarding threads need two processors");
    }
    let free = (0..all).find(|cpu| ![plan.switch_cpu, plan.generator_cpu].contains(cpu));
    let other = (0..all).find(|cpu| *cpu != plan.switch_cpu);
    free.or(other).context("no second processor")
}

fn about(plan: &Plan, cpus: [usize; 2], shared: bool) -> String {
    let shares = if shared {
        " There is no processor for the generator alone: it shares one with\n\
         a forwarding thread, so that the figures are of all three threads on two processors, and compare switches only\n\
         with each other."
    } else {
        ""
    };
    format!(
        "Four vhost-user ports of one bridge in two pairs, frames both ways within each pair, rings of {RING_SIZE}\n\
         descriptors. Two forwarding threads, on CPU {} and CPU {}; the generator is one thread on CPU {}.{shares}\n\n\
         `weft`: a network of mode bridge, two workers; `ovs`: Open vSwitch's userspace datapath with action NORMAL and two\n\
         polling threads, ports shared out as it does by itself.",
        cpus[0], cpus[1], plan.generator_cpu
    )
}
