//! `v2v-rings`: what the rings' layout does to the highest rate between two vhost-user ports, switch by switch of it.

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry, peer_names};
use crate::flags::{Choices, Flag};
use crate::generators::{Generator, Load, RING_SIZE, Rings};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE};
use crate::peers::{Setup, VhostPeer};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, Turn, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch, and the generator's guests.
const PAGES: u64 = 256 + 16;
const PEERS: [VhostPeer; 3] = [VhostPeer::Weft, VhostPeer::Ovs, VhostPeer::Reflector];

/// Of each format what drivers have by default, and each switch once; the other combinations are to be asked for.
const RINGS: Flag = Flag {
    name: "rings",
    value: "NAME,…",
    about: "split or packed, then what is on of -mergeable -inorder -indirect -event, or -plain; alone: mergeable",
    default: "split,split-mergeable-indirect,split-inorder,packed,packed-mergeable-event,packed-mergeable-inorder",
};

pub(super) const ENTRY: Entry = Entry {
    name: "v2v-rings",
    about: "two vhost-user ports, one core, 64 B, as fast as it goes: split and packed rings and their switches",
    peers: || peer_names(&PEERS),
    flags: &[RINGS],
    prepare,
};

struct V2vRings {
    peers: Vec<VhostPeer>,
    rings: Vec<Rings>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    let peers = choices.peers(&PEERS, VhostPeer::name);
    Ok(Box::new(V2vRings { peers, rings: choices.parse(&RINGS)? }))
}

impl V2vRings {
    /// The peers that offer a layout: the reflector knows neither indirect tables nor notifications.
    fn peers(&self, rings: Rings) -> Vec<&'static str> {
        let takes =
            |peer: &&VhostPeer| **peer != VhostPeer::Reflector || !(rings.indirect || rings.event_index);
        self.peers.iter().filter(takes).map(|peer| peer.name()).collect()
    }

    fn once(&self, plan: &Plan, rings: Rings, turn: &Turn<'_>) -> Result<Run> {
        let peer = self.peers.iter().find(|known| known.name() == turn.peer).context("no such peer")?;
        let switch = peer.start(&Setup::pair(turn.dir, plan.switch_cpu))?;
        let load = Load { rings, ..Load::new(turn.dir, plan.generator_cpu, plan.seconds) };
        let measured = Generator::Traffic.measure(&switch, &load)?.only(&[RATE, LOSS]);
        Ok(Run { switch: switch.commands.clone(), measured })
    }
}

impl Benchmark for V2vRings {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.rings.iter().map(|&rings| self.peers(rings).len()).sum(), 3.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "Two vhost-user ports, frames of 64 bytes both ways as fast as the rings take them, one forwarding thread, alone\n\
             on CPU {}; the generator is one thread on CPU {}. Rings of {RING_SIZE} descriptors. What a layout's name says\n\
             is negotiated, and nothing else: `mergeable` receive buffers; buffers used `inorder`; every frame sent by an\n\
             `indirect` table, its header apart; notifications suppressed by `event` index. The format alone is with\n\
             mergeable buffers.\n\n\
             `weft`: a network of mode bridge; `ovs`: Open vSwitch's userspace datapath with action NORMAL, whose DPDK\n\
             offers all of them unasked; `reflector`: the least that moves a frame, to show how far the generator gets; it\n\
             knows neither tables nor event indexes.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        for &rings in &self.rings {
            let cell = Cell::new(rings.to_string(), &[RATE, LOSS]).peers(&self.peers(rings));
            let cell = cell.ceiling(VhostPeer::Reflector.name());
            rounds(&mut scenario, cell, Generator::Traffic.name(), |turn| {
                self.once(plan, rings, turn).map(Some)
            })?;
        }
        Ok(scenario)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_different_and_of_both_formats() {
        let rings: Vec<Rings> =
            RINGS.default.split(',').map(|name| name.parse().expect("a layout")).collect();
        for (number, one) in rings.iter().enumerate() {
            assert!(!rings[..number].contains(one), "{one} twice");
        }
        assert!(rings.iter().any(|one| one.packed) && rings.iter().any(|one| !one.packed));
    }
}
