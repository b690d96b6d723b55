//! `hostile`: a busy pair of guests, and beside it guests that stall or send what is malformed.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry};
use crate::flags::{Choices, Flag};
use crate::generators::attack::{self, Attack};
use crate::generators::{Generator, Load, Rate};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, Measure, P50, P99, RATE};
use crate::peers::{Setup, VhostPeer, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch, and the own generator's guests.
const PAGES: u64 = 256 + 32;
/// Frames per second, both ways together, of the pair whose latency is measured: far from what any switch can carry.
const CALM: f64 = 400_000.0;

const PEERS: [VhostPeer; 2] = [VhostPeer::Weft, VhostPeer::Ovs];

const ATTACKS: Flag = Flag {
    name: "attacks",
    value: "NAME,…",
    about: "none (what the others are compared with), stalled, runts, chains, segments, bytes",
    default: "",
};

pub(super) const ENTRY: Entry = Entry {
    name: "hostile",
    about: "a busy pair beside a guest that stalls or sends what is malformed, on one core",
    peers: || PEERS.map(VhostPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[ATTACKS],
    prepare,
};

struct Hostile {
    peers: Vec<VhostPeer>,
    attacks: Vec<Attack>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    let mut attacks = choices.choose(&ATTACKS, &Attack::ALL, Attack::name)?;
    if attacks.first() != Some(&Attack::None) {
        attacks.insert(0, Attack::None);
    }
    Ok(Box::new(Hostile { peers: choices.peers(&PEERS, VhostPeer::name), attacks }))
}

impl Benchmark for Hostile {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (2 * self.peers.len() * self.attacks.len(), 6.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "Four vhost-user ports of one bridge, one forwarding thread, alone on CPU {}. Two guests send each other frames of\n\
             64 bytes, by the generator on CPU {}: as fast as their rings take them, then {CALM:.0} a second for their latency (of five\n\
             parts of the time, the median).\n\
             The other two are hostile, and hardly use a processor themselves: the attacker's ring names one chain in every\n\
             entry and is offered anew 2,000 times a second. `none`: they are there and send nothing, which the others are\n\
             compared with; `stalled`: one has no receive buffers and is sent 10,000 frames a second; `runts`: frames shorter\n\
             than an Ethernet header; `chains`: of 1,000 descriptors of one byte; `segments`: super-frames that ask to be cut\n\
             into 500, for a guest that takes none; `bytes`: frames for a guest whose receive buffers have one byte.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        let variants: Vec<(String, Option<f64>)> =
            self.attacks.iter().map(|attack| (attack.name().to_string(), None)).collect();
        let base = Load::new(Path::new(""), plan.generator_cpu, plan.seconds);
        let cells: [(&str, Rate, &[Measure]); 2] = [
            ("64 B, full rate", Rate::Full, &[RATE, LOSS]),
            ("64 B, latency", Rate::PerSecond(CALM), &[P99, P50, LOSS]),
        ];
        for (name, rate, measures) in cells {
            let cell = Cell::new(name, measures).variants("attack", &variants, &names);
            rounds(&mut scenario, cell, "traffic", |turn| {
                let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                    bail!("no such peer");
                };
                let attack = self.attacks.iter().find(|attack| attack.name() == turn.variant);
                let attack = *attack.context("no such attack")?;
                let setup = Setup { ports: 4, ..Setup::pair(turn.dir, plan.switch_cpu) };
                let mut switch = peer.start(&setup)?;
                let hostile = switch.sockets.split_off(2);
                let (_attack, line) = attack::begin(turn.dir, plan.generator_cpu, &hostile, attack)?;
                let load = Load { dir: turn.dir, rate, ..base };
                let measured = Generator::Traffic.measure(&switch, &load)?.by(line);
                Ok(Some(Run { switch: switch.commands.clone(), measured }))
            })?;
        }
        Ok(scenario)
    }
}
