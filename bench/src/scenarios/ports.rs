//! `scale-ports`: two guests that send, of ever more that are there.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry};
use crate::flags::{Choices, Flag};
use crate::generators::{Generator, Load, Rate, wake};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, Measure, P50, P99, RATE};
use crate::peers::{Setup, VhostPeer, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch, and the own generator's guests. Guests that rest have ordinary memory.
const PAGES: u64 = 256 + 32;
/// Frames per second, both ways together, of the pair whose latency is measured.
const CALM: f64 = 400_000.0;

const PEERS: [VhostPeer; 2] = [VhostPeer::Weft, VhostPeer::Ovs];

const PORTS: Flag =
    Flag { name: "ports", value: "N,…", about: "guests, of which two send", default: "2,64,1000" };
const RATES: Flag = Flag {
    name: "rates",
    value: "NAME,…",
    about: "full, calm (latency at 400,000 frames a second)",
    default: "full",
};

pub(super) const ENTRY: Entry = Entry {
    name: "scale-ports",
    about: "two guests that send, of ever more that are there, on one core",
    peers: || PEERS.map(VhostPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[PORTS, RATES],
    prepare,
};

struct ScalePorts {
    peers: Vec<VhostPeer>,
    ports: Vec<usize>,
    rates: Vec<Pace>,
}

/// How many frames the pair sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// As many as its rings take.
    Full,
    /// [`CALM`].
    Calm,
}

impl Pace {
    const ALL: [Pace; 2] = [Pace::Full, Pace::Calm];

    fn name(self) -> &'static str {
        match self {
            Pace::Full => "full",
            Pace::Calm => "calm",
        }
    }

    /// The cell's name, what is offered, and what is measured of it.
    fn cell(self) -> (&'static str, Rate, &'static [Measure]) {
        match self {
            Pace::Full => ("64 B, full rate", Rate::Full, &[RATE, LOSS]),
            Pace::Calm => ("64 B, latency", Rate::PerSecond(CALM), &[P99, P50, LOSS]),
        }
    }
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(ScalePorts {
        peers: choices.peers(&PEERS, VhostPeer::name),
        ports: choices.numbers(&PORTS, 2..=1000)?,
        rates: choices.choose(&RATES, &Pace::ALL, Pace::name)?,
    }))
}

impl Benchmark for ScalePorts {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.rates.len() * self.peers.len() * self.ports.len(), 15.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "Vhost-user ports of one bridge, one forwarding thread, alone on CPU {}. Two guests send each other frames of 64\n\
             bytes, by the generator on CPU {}: as fast as their rings take them, or {CALM:.0} a second for their latency.\n\
             The drivers of all others are ready, have been heard, and send nothing. Each number of ports is compared with the\n\
             first. A switch that does not start with so many ports is told as failed.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        let variants: Vec<(String, Option<f64>)> =
            self.ports.iter().map(|&ports| (ports.to_string(), Some(ports as f64))).collect();
        let base = Load::new(Path::new(""), plan.generator_cpu, plan.seconds);
        for (name, rate, measures) in self.rates.iter().map(|pace| pace.cell()) {
            let cell = Cell::new(name, measures).variants("ports", &variants, &names);
            rounds(&mut scenario, cell, "traffic", |turn| {
                let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                    bail!("no such peer");
                };
                let ports = turn.variant.parse().context("a number of ports")?;
                let mut switch = peer.start(&Setup { ports, ..Setup::pair(turn.dir, plan.switch_cpu) })?;
                let resting = switch.sockets.split_off(2);
                let guests = wake::hold(turn.dir, plan.generator_cpu, &resting)?;
                let load = Load { dir: turn.dir, rate, ..base };
                let mut measured = Generator::Traffic.measure(&switch, &load)?;
                if let Some((_guests, line)) = guests {
                    measured = measured.by(line);
                }
                Ok(Some(Run { switch: switch.commands.clone(), measured }))
            })?;
        }
        Ok(scenario)
    }
}
