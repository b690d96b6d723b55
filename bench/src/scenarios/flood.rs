//! `flood`: broadcasts from one port to many, counted in copies where they arrive.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry, peer_names};
use crate::flags::{Choices, Flag};
use crate::generators::{Generator, Load, Pattern, RING_SIZE};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{Better, LOSS, Measure, RATE, Unit};
use crate::peers::{Setup, VhostPeer};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch; each of the generator's guests.
const SWITCH_PAGES: u64 = 256;
const GUEST_PAGES: u64 = 9;
const PEERS: [VhostPeer; 3] = [VhostPeer::Weft, VhostPeer::Ovs, VhostPeer::Reflector];

/// Frames at the receivers, each as often as it arrives.
const COPIES: Measure = Measure {
    name: "copies",
    unit: Unit { name: "copies/s", shown: "Mcopies/s", scale: 1e6, digits: 2 },
    better: Better::More,
};

const RECEIVERS: Flag =
    Flag { name: "receivers", value: "N,…", about: "ports that receive, 1 to 500", default: "8,64" };

pub(super) const ENTRY: Entry = Entry {
    name: "flood",
    about: "broadcasts of 64 B from one vhost-user port to 8 and 64",
    peers: || peer_names(&PEERS),
    flags: &[RECEIVERS],
    prepare,
};

struct Flood {
    peers: Vec<VhostPeer>,
    receivers: Vec<usize>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    let peers = choices.peers(&PEERS, VhostPeer::name);
    Ok(Box::new(Flood { peers, receivers: choices.numbers(&RECEIVERS, 1..=500)? }))
}

impl Flood {
    fn once(&self, plan: &Plan, receivers: usize, peer: &str, dir: &Path) -> Result<Run> {
        let peer = self.peers.iter().find(|known| known.name() == peer).context("no such peer")?;
        let setup = Setup { ports: receivers + 1, broadcast: true, ..Setup::pair(dir, plan.switch_cpu) };
        let switch = peer.start(&setup)?;
        let load = Load::new(dir, plan.generator_cpu, plan.seconds);
        let load = Load { pattern: Pattern::Broadcast, ..load };
        let measured = Generator::Traffic.measure(&switch, &load)?;
        let copies = measured.get(&RATE).context("the generator has no rate")?;
        Ok(Run { switch: switch.commands.clone(), measured: measured.with(&COPIES, copies) })
    }
}

impl Benchmark for Flood {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.receivers.len() * self.peers.len(), 5.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let most = self.receivers.iter().max().copied().unwrap_or_default() as u64 + 1;
        let _pages = Hugepages::reserve(SWITCH_PAGES + GUEST_PAGES * most)?;
        let about = format!(
            "One vhost-user port sends broadcasts of 64 bytes as fast as its ring takes them, and all other ports of its\n\
             bridge receive. What arrives at the receivers is counted, all of them together: one frame sent to 64 ports is 64\n\
             copies. Rings of {RING_SIZE} descriptors; one forwarding thread, alone on CPU {}; the generator, which also\n\
             receives, is one thread on CPU {}.\n\n\
             `weft`: a network of mode bridge; `ovs`: Open vSwitch's userspace datapath with action NORMAL; `reflector`: the\n\
             least that copies a frame to all ports, to show how far the generator gets.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for &receivers in &self.receivers {
            let cell = Cell::new(format!("to {receivers} ports"), &[COPIES, LOSS]).peers(&names);
            let cell = cell.ceiling(VhostPeer::Reflector.name());
            rounds(&mut scenario, cell, Generator::Traffic.name(), |turn| {
                self.once(plan, receivers, turn.peer, turn.dir).map(Some)
            })?;
        }
        Ok(scenario)
    }
}
