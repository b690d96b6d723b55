//! `scale-macs`: two vhost-user ports whose frames are between ever more stations.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry, peer_names};
use crate::flags::{Choices, Flag};
use crate::generators::{Generator, Load, RING_SIZE, Stations};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE};
use crate::peers::{Setup, VhostPeer};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch; the generator's guests.
const PAGES: u64 = 256 + 32;
const PEERS: [VhostPeer; 3] = [VhostPeer::Weft, VhostPeer::Ovs, VhostPeer::Reflector];
/// Seconds that a run has beside those that are measured: the switch hears a million stations first.
const BESIDE: f64 = 12.0;

const MACS: Flag = Flag {
    name: "macs",
    value: "N,…",
    about: "stations at both ports together, 2 to 1000000",
    default: "2,1000,64000,1000000",
};
const SPREADS: Flag = Flag {
    name: "spreads",
    value: "NAME,…",
    about: "uniform, zipf (the n-th station has a part of the frames in proportion to 1/n)",
    default: "uniform,zipf",
};

pub(super) const ENTRY: Entry = Entry {
    name: "scale-macs",
    about: "64 B between two vhost-user ports with 2 to 1,000,000 stations, uniform and Zipf",
    peers: || peer_names(&PEERS),
    flags: &[MACS, SPREADS],
    prepare,
};

/// How frames are spread over stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    Uniform,
    Zipf,
}

impl Spread {
    const ALL: [Spread; 2] = [Spread::Uniform, Spread::Zipf];

    fn name(self) -> &'static str {
        match self {
            Spread::Uniform => "uniform",
            Spread::Zipf => "zipf",
        }
    }
}

struct ScaleMacs {
    peers: Vec<VhostPeer>,
    /// Of both ports together.
    macs: Vec<u32>,
    spreads: Vec<Spread>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(ScaleMacs {
        peers: choices.peers(&PEERS, VhostPeer::name),
        macs: choices.numbers(&MACS, 2..=1_000_000)?,
        spreads: choices.choose(&SPREADS, &Spread::ALL, Spread::name)?,
    }))
}

impl ScaleMacs {
    fn once(&self, plan: &Plan, macs: u32, spread: Spread, peer: &str, dir: &Path) -> Result<Run> {
        let peer = self.peers.iter().find(|known| known.name() == peer).context("no such peer")?;
        let switch = peer.start(&Setup { stations: macs, ..Setup::pair(dir, plan.switch_cpu) })?;
        let load = Load::new(dir, plan.generator_cpu, plan.seconds);
        let stations = Stations { count: macs / 2, zipf: spread == Spread::Zipf };
        let measured = Generator::Traffic.measure(&switch, &Load { stations, ..load })?;
        Ok(Run { switch: switch.commands.clone(), measured })
    }
}

impl Benchmark for ScaleMacs {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.macs.len() * self.spreads.len() * self.peers.len(), BESIDE)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "Two vhost-user ports send to each other as fast as the rings take it, frames of 64 bytes, each from one of its\n\
             port's stations to one of the other's; half of the stations are at each port, and the switch has heard all of\n\
             them before anything is measured. Rings of {RING_SIZE} descriptors; one forwarding thread, alone on CPU {}; the\n\
             generator, one thread on CPU {}. The rate of a million stations divided by that of two is what the table costs.\n\n\
             `weft`: a network of mode bridge with `fdb-max` of as many stations, where that is more than comes with it;\n\
             `ovs`: Open vSwitch's userspace datapath with action NORMAL and `mac-table-size` of as many; `reflector`: frames\n\
             go to the other port without a table, to show how far the generator gets with as many stations.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        let variant = |macs: &u32| (macs.to_string(), Some(f64::from(*macs)));
        let variants: Vec<_> = self.macs.iter().map(variant).collect();
        for &spread in &self.spreads {
            let cell = Cell::new(spread.name(), &[RATE, LOSS]).variants("stations", &variants, &names);
            let cell = cell.ceiling(VhostPeer::Reflector.name());
            rounds(&mut scenario, cell, Generator::Traffic.name(), |turn| {
                let macs = turn.variant.parse().context("a variant is a number of stations")?;
                self.once(plan, macs, spread, turn.peer, turn.dir).map(Some)
            })?;
        }
        Ok(scenario)
    }
}
